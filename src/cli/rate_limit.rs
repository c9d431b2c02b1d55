//! The rate limit: flags of every command that serves REST.

use super::Exit;
use crate::{
    config,
    domain::{Clock, Secret},
    rate_limit::{RateLimit, Redis, Rule},
    telemetry::Metrics,
};

#[derive(Debug, clap::Args)]
pub struct RateLimitArgs {
    /// REST requests of one user in each window, such as 300/15m; 0 for no limit
    #[arg(long, default_value_t = Rule::default(), env = "COLLECTIONS_RATE_LIMIT")]
    rate_limit: Rule,
    /// A Redis that counts the requests of all gateways together: redis://<host>:<port>. Without it each counts its own
    #[arg(long, env = "COLLECTIONS_REDIS_URL", hide_env_values = true)]
    redis_url: Option<Secret>,
}

impl RateLimitArgs {
    /// The limit, unless it is switched off.
    pub fn limit(&self, metrics: &Metrics) -> Result<Option<RateLimit>, Exit> {
        if self.redis_url.is_some() && !self.rate_limit.is_on() {
            return Err(Exit::Usage("--redis-url: is of no use, because --rate-limit is 0".to_owned()));
        }
        let redis = self.redis_url.as_ref();
        let redis = redis.map(|url| Redis::new(url, config::rate_limit::REDIS_TIMEOUT, metrics.clone()));
        let redis = redis.transpose().map_err(Exit::usage)?;
        Ok(self.rate_limit.is_on().then(|| RateLimit::new(self.rate_limit, Clock::System, redis)))
    }

    /// Whether there is a Redis, which is of no use without REST.
    pub const fn has_redis(&self) -> bool {
        self.redis_url.is_some()
    }
}
