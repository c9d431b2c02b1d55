//! Limits of the request counters.

use std::time::Duration;

/// The longest wait of a request for Redis to count it: a shared count matters less than a fast answer.
pub const REDIS_TIMEOUT: Duration = Duration::from_millis(20);
/// The longest time that connecting to Redis may take, and then its first reply.
pub const REDIS_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause between two attempts to connect while Redis is unavailable.
pub const REDIS_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Keys that one rate limit counts in memory, which take at most 60 MB. The requests of further keys in one window are not
/// limited: to refuse them would let a client with many accounts lock out all others.
pub const KEY_LIMIT: usize = 900_000;
