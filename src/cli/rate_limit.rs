//! Rate limits: flags of every command that serves requests.

use super::{Exit, heading::LIMITS};
use crate::{
    config,
    domain::{Clock, Secret},
    rate_limit::{RateLimit, Redis, Rule},
    telemetry::Metrics,
};

/// The flags of commands that serve REST.
#[derive(Debug, clap::Args)]
pub struct RateLimitArgs {
    /// REST requests that one user may make in each window, such as `300/15m`; 0 for no limit
    #[arg(long, value_name = "REQUESTS/WINDOW", default_value_t = Rule::default(), env = "COLLECTIONS_RATE_LIMIT", help_heading = LIMITS)]
    rate_limit: Rule,
    /// The Redis that counts the requests of all replicas together: `redis://<host>:<port>`, or `rediss://` for TLS
    ///
    /// Without it, and while it is unavailable, each replica counts its own. A password is accepted in the variable, but not
    /// on the command line.
    #[arg(long, value_name = "URL", env = "COLLECTIONS_REDIS_URL", hide_env_values = true, help_heading = LIMITS)]
    redis_url: Option<Secret>,
}

impl RateLimitArgs {
    /// The Redis that all rate limits share, where there is one.
    ///
    /// # Errors
    /// The URL is malformed.
    pub fn redis(&self, metrics: &Metrics) -> Result<Option<Redis>, Exit> {
        let url = self.redis_url.as_ref();
        let redis = url.map(|url| Redis::new(url, config::rate_limit::REDIS_TIMEOUT, metrics.clone()));
        redis.transpose().map_err(Exit::usage)
    }

    /// The limit of each REST user, unless it is off.
    pub fn user_limit(&self, redis: Option<&Redis>) -> Option<RateLimit> {
        limit(self.rate_limit, redis)
    }
}

/// The limit of this rule, unless it is off.
pub fn limit(rule: Rule, redis: Option<&Redis>) -> Option<RateLimit> {
    rule.is_on().then(|| RateLimit::new(rule, Clock::System, redis.cloned()))
}
