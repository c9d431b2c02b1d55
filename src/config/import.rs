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
/// The longest one try of a batch may take: the longest line has some four million entries.
pub const BATCH_BOUND: Duration = Duration::from_secs(300);
/// How often a batch is run when another transaction undoes it or changes what it was built on.
pub const CONFLICT_ATTEMPTS: u32 = 10;
/// How often a batch is run while the database is unavailable.
pub const UNAVAILABLE_ATTEMPTS: u32 = 8;
/// The pause before such a try, doubled each time up to the longest.
pub const RETRY_PAUSE: Duration = Duration::from_millis(100);
pub const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Rejects after which an import stops, unless an operator configures another number.
pub const MAX_REJECTS: u64 = 100;
/// The longest name of an import, in bytes.
pub const NAME_LIMIT: usize = 255;
