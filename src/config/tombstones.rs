//! Limits of the export and the application of tombstones.

use std::time::Duration;

/// Tombstones that the export reads in one statement.
pub const EXPORT_BATCH: u64 = 10_000;
/// Tombstones that are applied in one transaction. Its rows are locked until the commit, so that destroys of the same
/// collections wait that long, and on SQLite all of them.
pub const APPLY_BATCH: usize = 1_000;
/// The longest that one batch may take.
pub const BATCH_BOUND: Duration = Duration::from_secs(60);
/// How often a batch is run when the database undoes it, is away, or holds a row of it locked.
pub const ATTEMPTS: u32 = 30;
/// How long a batch waits for a locked row before it releases its own and starts again. Longer than a destroy waits, so that
/// of two that wait for each other the destroy gives way.
pub const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause before a batch is run again, doubled each time up to the longest.
pub const RETRY_PAUSE: Duration = Duration::from_millis(10);
pub const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The longest line of a file of tombstones, in bytes. The longest name of a caller, with every byte escaped, is a fifth.
pub const LINE_LIMIT: usize = 64 * 1024;
/// How many collections of other owners are named.
pub const NAMED: usize = 100;
