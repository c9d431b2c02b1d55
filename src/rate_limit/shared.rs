//! Requests counted by all gateways together, in Redis. A Redis that is away or slow costs no request anything: this
//! process goes on counting alone, from what it knows.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client, Script, aio::MultiplexedConnection};

use super::{Memory, Rule};
use crate::{
    config,
    domain::{Secret, UserId},
    telemetry::Metrics,
};

/// One atomic step. KEYS: the count. ARGV: the limit, how many this gateway knows of, and the count's life in seconds.
/// Answers how many there are now, or -1 where the limit is used up. What a gateway knows counts even if Redis has
/// forgotten it, in a restart say.
const TAKE: &str = "
local used = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[2]))
if used >= tonumber(ARGV[1]) then return -1 end
redis.call('SET', KEYS[1], used + 1, 'EX', ARGV[3])
return used + 1";

/// Why a Redis cannot be used at all. Never shows the URL, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--redis-url: expected redis://<host>:<port> or rediss://<host>:<port>")]
pub struct RedisError;

/// The counts in Redis, and beside them what this process knows of them.
#[derive(Clone)]
pub struct Shared {
    client: Client,
    script: Script,
    budget: Duration,
    link: Arc<Mutex<Link>>,
    memory: Memory,
    metrics: Metrics,
}

#[derive(Default)]
struct Link {
    /// None while Redis is away.
    connection: Option<MultiplexedConnection>,
    /// How many connections there were: who fails on an old one must not lose the new one.
    number: u64,
    /// Whether the log was told that Redis is away.
    said: bool,
}

impl Shared {
    /// Does not connect yet. No request waits longer than the budget, usually [`config::rate_limit::REDIS_TIMEOUT`].
    ///
    /// # Errors
    /// The URL is not understood.
    pub fn new(url: &Secret, budget: Duration, metrics: Metrics) -> Result<Self, RedisError> {
        let client = Client::open(url.expose()).map_err(|_error| RedisError)?;
        metrics.rate_limit_fallback.set(1);
        Ok(Self {
            client,
            script: Script::new(TAKE),
            budget,
            link: Arc::default(),
            memory: Memory::default(),
            metrics,
        })
    }

    /// Counts a request, within the budget in any case. How many there are now, or `None` where the limit is used up.
    pub async fn take(&self, window: u64, user: UserId, rule: Rule) -> Option<u32> {
        let (connection, number) = {
            let link = self.link();
            (link.connection.clone(), link.number)
        };
        let Some(mut connection) = connection else {
            return self.memory.take(window, user, rule.limit);
        };
        let known = self.memory.used(window, user);
        let mut call = self.script.prepare_invoke();
        call.key(format!("collections:rate:{}:{user}:{window}", rule.window.as_secs()));
        call.arg(rule.limit).arg(known).arg(rule.window.as_secs());
        let counted = tokio::time::timeout(self.budget, call.invoke_async::<i64>(&mut connection)).await;
        let error = match counted {
            Ok(Ok(used)) => {
                let granted = u32::try_from(used).ok();
                self.memory.learn(window, user, granted.unwrap_or(rule.limit));
                return granted;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "no answer in time".to_owned(),
        };
        self.lose(number, &error);
        self.memory.take(window, user, rule.limit)
    }

    /// Does without Redis until [`Self::look`] finds it again. The log says so once, whoever notices first.
    fn lose(&self, number: u64, error: &str) {
        let mut link = self.link();
        if link.number != number {
            return;
        }
        link.connection = None;
        if !link.said {
            link.said = true;
            tracing::warn!(error, "Redis is away: each gateway counts its own requests");
            self.metrics.rate_limit_fallback.set(1);
            self.metrics.rate_limit_fallbacks.inc();
        }
    }

    /// One look for a Redis that is away.
    pub async fn look(&self) {
        let number = {
            let link = self.link();
            if link.connection.is_some() {
                return;
            }
            link.number
        };
        match self.connect().await {
            Ok(connection) => {
                let mut link = self.link();
                *link = Link { connection: Some(connection), number: number + 1, said: false };
                self.metrics.rate_limit_fallback.set(0);
                tracing::info!("Redis counts the requests of all gateways");
            }
            Err(error) => self.lose(number, &error.to_string()),
        }
    }

    /// A connection over which requests can be counted: whoever accepts connections, or answers a ping, need not let us.
    async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let bounds = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config::rate_limit::REDIS_CONNECT_TIMEOUT))
            .set_response_timeout(Some(config::rate_limit::REDIS_CONNECT_TIMEOUT));
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&bounds).await?;
        let mut probe = self.script.prepare_invoke();
        probe.key("collections:rate:probe").arg(1).arg(0).arg(1);
        probe.invoke_async::<i64>(&mut connection).await?;
        Ok(connection)
    }

    /// Looks again and again.
    pub async fn keep(self) {
        loop {
            tokio::time::sleep(config::rate_limit::REDIS_RETRY_INTERVAL).await;
            self.look().await;
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("connected", &self.link().connection.is_some()).finish_non_exhaustive()
    }
}
