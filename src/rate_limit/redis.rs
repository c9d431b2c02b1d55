//! Requests counted in Redis, by all processes together. A Redis that is unavailable or slow delays no request by more
//! than a timeout, and refuses none.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client, RedisResult, Script, aio::MultiplexedConnection};

use super::{Key, Rule};
use crate::{config, domain::Secret, telemetry::Metrics};

/// One atomic step. KEYS: the count. ARGV: the limit, the count that this process knows, and the count's time to live in
/// seconds. Returns the new count, or -1 where the limit is used up. The count that this process knows is used where
/// Redis has lost its own, in a restart for example.
const TAKE: &str = "
local used = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[2]))
if used >= tonumber(ARGV[1]) then return -1 end
redis.call('SET', KEYS[1], used + 1, 'EX', ARGV[3])
return used + 1";

/// Why a Redis URL was rejected. Never shows the URL, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--redis-url: expected redis://<host>:<port> or rediss://<host>:<port>, with /<number> for another database; `#`, `/`, `?` \
     and `@` in a password are written %23, %2F, %3F and %40"
)]
pub struct RedisUrlError;

/// A connection to Redis, re-established in the background. Cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

struct Shared {
    client: Client,
    script: Script,
    timeout: Duration,
    state: Mutex<State>,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    /// `None` while Redis is unavailable.
    connection: Option<MultiplexedConnection>,
    /// Counts the connections: a failure on an old connection must not close the new one.
    generation: u64,
    /// Whether the present outage has been logged.
    is_logged: bool,
}

impl Redis {
    /// Does not connect yet. `timeout` bounds the wait of each request, usually [`config::rate_limit::REDIS_TIMEOUT`].
    ///
    /// # Errors
    /// The URL is malformed.
    pub fn new(url: &Secret, timeout: Duration, metrics: Metrics) -> Result<Self, RedisUrlError> {
        if !is_whole(url.expose()) {
            return Err(RedisUrlError);
        }
        let client = Client::open(url.expose()).map_err(|_error| RedisUrlError)?;
        metrics.rate_limit_fallback.set(1);
        let (script, state) = (Script::new(TAKE), Mutex::default());
        Ok(Self(Arc::new(Shared { client, script, timeout, state, metrics })))
    }

    /// Counts a request, within the timeout. The outer `None`: Redis is unavailable. The inner value is the new count, or
    /// `None` where the limit is used up.
    pub(super) async fn take(&self, key: Key, window: u64, rule: Rule, known: u32) -> Option<Option<u32>> {
        let (mut connection, generation) = {
            let state = self.state();
            (state.connection.clone()?, state.generation)
        };
        let mut call = self.0.script.prepare_invoke();
        call.key(format!("collections:rate:{}:{key}:{window}", rule.window.as_secs()));
        call.arg(rule.limit).arg(known).arg(rule.window.as_secs());
        match tokio::time::timeout(self.0.timeout, call.invoke_async::<i64>(&mut connection)).await {
            Ok(Ok(used)) => return Some(u32::try_from(used).ok()),
            Ok(Err(error)) => self.disconnect(generation, &error.to_string()),
            Err(_elapsed) => self.disconnect(generation, "no reply within the timeout"),
        }
        None
    }

    /// Drops the connection until [`Self::poll_once`] makes a new one. An outage is logged once.
    fn disconnect(&self, generation: u64, error: &str) {
        let mut state = self.state();
        if state.generation != generation {
            return;
        }
        state.connection = None;
        if !state.is_logged {
            state.is_logged = true;
            tracing::warn!(error = format!("{error:.128}"), "redis unavailable; using in-process counters");
            self.0.metrics.rate_limit_fallback.set(1);
            self.0.metrics.rate_limit_fallbacks.inc();
        }
    }

    /// Tries to connect once, unless there is a connection.
    pub async fn poll_once(&self) {
        let generation = {
            let state = self.state();
            if state.connection.is_some() {
                return;
            }
            state.generation
        };
        match self.connect().await {
            Ok(connection) => {
                *self.state() =
                    State { connection: Some(connection), generation: generation + 1, is_logged: false };
                self.0.metrics.rate_limit_fallback.set(0);
                tracing::info!("redis available; using its counters");
            }
            Err(error) => self.disconnect(generation, &error.to_string()),
        }
    }

    /// A connection over which requests can be counted: a server that accepts connections, or replies to a PING, may
    /// still reject the script.
    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let bounds = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config::rate_limit::REDIS_CONNECT_TIMEOUT))
            .set_response_timeout(Some(config::rate_limit::REDIS_CONNECT_TIMEOUT));
        let mut connection = self.0.client.get_multiplexed_async_connection_with_config(&bounds).await?;
        let mut probe = self.0.script.prepare_invoke();
        probe.key("collections:rate:probe").arg(1).arg(0).arg(1);
        probe.invoke_async::<i64>(&mut connection).await?;
        Ok(connection)
    }

    /// Reconnects at intervals while Redis is unavailable. Never returns.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(config::rate_limit::REDIS_RETRY_INTERVAL).await;
            self.poll_once().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the client library uses all of this URL. It drops white space, a query and a fragment: of a password with a `#`
/// it would use the part before it as a port, and the user as the host.
fn is_whole(url: &str) -> bool {
    let rest = url.strip_prefix("redis://").or_else(|| url.strip_prefix("rediss://"));
    let is_dropped = |letter: char| letter.is_whitespace() || letter.is_control() || "#?".contains(letter);
    rest.is_some_and(|rest| !rest.contains(is_dropped))
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("is_connected", &self.state().connection.is_some())
            .finish_non_exhaustive()
    }
}
