//! Limits of counting requests.

use std::time::Duration;

/// The longest a request waits for Redis to count it. A shared count is worth less than a fast answer.
pub const REDIS_TIMEOUT: Duration = Duration::from_millis(20);
/// The longest a connection to Redis may take, and then its first answer.
pub const REDIS_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a Redis that is away is looked for.
pub const REDIS_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Users whose requests are counted in memory, some 32 MB of them. More in one window are not limited: refusing them
/// would let anyone with many accounts lock out the rest.
pub const KEY_LIMIT: usize = 1_000_000;
