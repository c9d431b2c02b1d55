//! Request rate limits in fixed windows, as the 1.1 API had them: of a REST user, and of a service that calls over gRPC.

mod key;
mod memory;
mod redis;
mod rule;

use crate::domain::Clock;

pub use key::Key;
pub use memory::MemoryCounter;
pub use redis::{Redis, RedisUrlError};
pub use rule::{Rule, RuleError, Window};

/// The state of a key's limit after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Whether the request is within the limit.
    pub granted: bool,
    pub limit: u32,
    pub remaining: u32,
    /// The start of the next window, in Unix seconds.
    pub reset: u64,
    /// Seconds until the next window starts.
    pub wait: u64,
}

/// A rule with the counters of its keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RateLimit {
    rule: Rule,
    clock: Clock,
    counter: MemoryCounter,
    redis: Option<Redis>,
}

impl RateLimit {
    /// Counts in this process, and with `redis` together with all other processes that use it.
    #[must_use]
    pub fn new(rule: Rule, clock: Clock, redis: Option<Redis>) -> Self {
        Self { rule, clock, counter: MemoryCounter::default(), redis }
    }

    /// The connection that has to be maintained by [`Redis::run`], where there is one.
    #[must_use]
    pub const fn redis(&self) -> Option<&Redis> {
        self.redis.as_ref()
    }

    /// Counts a request of this key. A request that is refused is not counted. While Redis is unavailable the counter of
    /// this process is used, which has the highest count that it received from Redis.
    pub async fn take(&self, key: Key) -> Allowance {
        let now = u64::try_from(self.clock.now().timestamp()).unwrap_or_default();
        let window = self.rule.window_at(now);
        let used = match self.take_from_redis(key, window.number).await {
            Some(used) => used,
            None => self.counter.take(window.number, key, self.rule.limit),
        };
        Allowance {
            granted: used.is_some(),
            limit: self.rule.limit,
            remaining: used.map_or(0, |used| self.rule.limit.saturating_sub(used)),
            reset: window.reset,
            wait: window.reset.saturating_sub(now),
        }
    }

    /// The outer `None`: Redis did not count the request. The inner one: the limit is used up.
    async fn take_from_redis(&self, key: Key, window: u64) -> Option<Option<u32>> {
        let redis = self.redis.as_ref()?;
        let known = self.counter.used(window, key);
        let used = redis.take(key, window, self.rule, known).await?;
        self.counter.raise(window, key, used.unwrap_or(self.rule.limit));
        Some(used)
    }
}
