//! Limits of an import.

use std::time::Duration;

/// The longest line, in bytes without its end: a collection of about 1,500,000 entries as bare ids, or 350,000 with every
/// field. What is read of a longer one is dropped at once.
pub const LINE_LIMIT: usize = 32 * 1024 * 1024;
/// How much of a line over the limit goes to the rejects file, in bytes.
pub const TRUNCATED_LINE: usize = 4 * 1024;
/// A batch, which is one transaction, ends with the line that reaches one of these: lines, rows (collections and entries),
/// or bytes of text. A collection is never split, so a long line makes a larger batch.
pub const BATCH_LINES: usize = 1_000;
pub const BATCH_ROWS: usize = 10_000;
pub const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Entries that one statement inserts.
pub const STATEMENT_ROWS: usize = 5_000;
/// Batches that have been read and wait for the database. With the one that is written and the one that is read, three
/// are in memory.
pub const BATCHES_WAITING: usize = 1;
/// The start of the input whose hash shows, on `--resume`, that it is the same input, in bytes.
pub const HEAD: usize = 64 * 1024;
/// The buffer between the file and the lines, in bytes.
pub const READ_BUFFER: usize = 256 * 1024;
/// The timeout of one transaction, which is not retried: 1,500,000 entries, in the longest line, at 12,500 rows/s.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a statement waits for a lock, on PostgreSQL, before the transaction is rolled back and retried.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts of a transaction after conflicts with concurrent transactions, lock timeouts included.
pub const CONFLICT_ATTEMPTS: u32 = 10;
/// Attempts of a transaction while the database is unavailable.
pub const UNAVAILABLE_ATTEMPTS: u32 = 8;
/// The pause before the second attempt, doubled before each further one up to the longest.
pub const RETRY_PAUSE: Duration = Duration::from_millis(100);
pub const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause between two batches on SQLite.
pub const LONGEST_SQLITE_PAUSE: Duration = Duration::from_secs(1);
/// How long the batch in progress may take after SIGTERM or SIGINT before it is cancelled, which rolls it back.
pub const STOP_GRACE: Duration = Duration::from_secs(2);
/// How often the progress is updated while lines that are already imported are skipped.
pub const SKIP_PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Rejects after which an import stops, unless an operator configures another number.
pub const MAX_REJECTS: u64 = 100;
/// The longest name of an import, in bytes.
pub const NAME_LIMIT: usize = 255;
