//! Limits of the log.

use std::time::Duration;

/// Log lines that wait for the writer, some 8 MiB of them. When the reader of standard error stalls, further ones are dropped.
pub const QUEUED_LINES: usize = 8192;
/// The pause between two writes of lines: longer ones would be noticed by a person, and shorter ones cost CPU.
pub const WRITE_INTERVAL: Duration = Duration::from_millis(5);
/// Bytes of lines that are written in one system call.
pub const WRITE_SIZE: usize = 64 * 1024;
/// Bytes of a value from outside that are logged: a client chooses its request id, and one header can be sent in one byte.
pub const VALUE_LIMIT: usize = 128;
/// How often the number of dropped lines is logged.
pub const DROPPED_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Bounds of the buckets of durations, in seconds: from the fastest destroy to [`super::calls::TIMEOUT`].
pub const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds of the buckets of batch sizes.
pub const BATCH_BUCKETS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// Callers that have a label of their own; further ones are counted together, so that the number of series is bounded.
pub const CALLER_LABELS: usize = 100;
/// The longest wait for the write of the error that ends the program. It blocks while standard error is a full pipe.
pub const LAST_LINE_TIMEOUT: Duration = Duration::from_secs(1);
