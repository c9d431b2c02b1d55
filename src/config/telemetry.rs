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
