//! Limits of `verify`.

use std::time::Duration;

/// Rows that one statement reads. It is the longest that a snapshot is held: some 20 ms from memory.
pub const CHUNK_ROWS: i64 = 10_000;
/// Ids that one transaction of `--fix` treats.
pub const FIX_IDS: usize = 100;
/// Entries that one transaction of `--fix` deletes: that long, a destroy on SQLite waits.
pub const FIX_ENTRIES: u64 = 1000;
/// The longest that one statement which reads, or one transaction of `--fix`, may take: its rows from a slow disk.
pub const STEP_BOUND: Duration = Duration::from_secs(60);
/// How often a step is run again: after a conflict (SQLSTATE 40001, 40P01), and while the database is unavailable or another
/// process has locked the SQLite file.
pub const STEP_ATTEMPTS: u32 = 10;
/// The pause before the second attempt, doubled each time up to the longest.
pub const RETRY_PAUSE: Duration = Duration::from_millis(5);
pub const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Ids of each kind of finding that are named.
pub const NAMED: usize = 100;
