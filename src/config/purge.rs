//! Limits of the purge.

use std::time::Duration;

/// Entries that are erased in one step, unless an operator configures another number.
pub const BATCH: u32 = 500;
/// The shortest pause between two steps, unless an operator configures another one.
pub const PAUSE: Duration = Duration::from_millis(10);
/// After a step the purge pauses for so many times as long as the step took.
pub const PAUSE_FACTOR: u32 = 4;
/// The pause at the end of the queue, and after a failure.
pub const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Failures in a row after which `purge --once` ends.
pub const ATTEMPTS: u32 = 10;
/// The longest that one step may take.
pub const STEP_BOUND: Duration = Duration::from_secs(7);
/// The longest that it may take to read the queue: all of it is read, because it has no index by age.
pub const QUEUE_BOUND: Duration = Duration::from_secs(60);
/// Rows of the queue that are read at one time, some 16 bytes each in memory.
pub const CANDIDATES: i64 = 10_000;
/// SQLite: ids whose entries are erased before the file is rewritten, 8 bytes each in memory.
pub const ERASED: usize = 10_000;
/// SQLite: the largest file, in bytes, that the background purge rewrites (`VACUUM`). Destroys wait for that, half
/// a second to a second with this size.
pub const VACUUM_LIMIT: u64 = 32 * 1024 * 1024;
/// SQLite: after the file was rewritten, it is rewritten again no earlier than so many times as long as that took.
pub const VACUUM_PAUSE_FACTOR: u32 = 100;
/// SQLite: how long the purge waits for a reader in another process before it leaves the write-ahead log as it is. Destroys
/// wait meanwhile.
pub const CHECKPOINT_TIMEOUT: Duration = Duration::from_millis(50);
/// The same for `purge --once`.
pub const LONG_CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the queue is counted for metrics.
pub const BACKLOG_INTERVAL: Duration = Duration::from_secs(15);
/// Rows of the queue that are counted for metrics: counting as many takes some ten milliseconds.
pub const BACKLOG_LIMIT: i64 = 100_000;
