//! The rate limit in Redis: shared by several gateways, and while Redis is unavailable.

use std::{sync::atomic::Ordering, time::Duration};

use collections_service::{
    config::rate_limit::REDIS_TIMEOUT,
    domain::{Clock, Secret},
    rate_limit::{RateLimit, Redis},
    store::Capacity,
    telemetry::Metrics,
};
use tokio::time::Instant;

use super::{Granted, key, limited, rule, three_in_ten};
use crate::{
    errors::signed,
    support::{
        App, Backend, CONNECTIONS, OWNER, TestDatabase, connect, form_now, oauth::Signer, program::Program,
        redis::RedisServer, send, wait_until,
    },
};

/// The timeout of gateways whose counts are tested and not their speed: the machine may be busy.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to this server, which is not made yet.
pub fn connection(server: &RedisServer, timeout: Duration, metrics: &Metrics) -> Redis {
    Redis::new(&Secret::from(server.url()), timeout, metrics.clone()).unwrap()
}

/// The requests that were counted in a later window do not use up the limit of the present one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_ahead_leaves_the_present_window_its_limit() {
    let server = RedisServer::start().await;
    let connection = connection(&server, TEST_TIMEOUT, &Metrics::new());
    connection.poll_once().await;
    for redis in [None, Some(connection)] {
        let (limit, clock) = three_in_ten(redis);
        let mut granted = Granted::new();
        for window in [1000, 5000, 1000, 5000, 1000] {
            clock.store(10 * window, Ordering::Relaxed);
            for _ in 0..2 {
                let is_granted = limit.take(key(1)).await.granted;
                *granted.entry(window.cast_unsigned()).or_default() += u32::from(is_granted);
            }
        }
        assert_eq!(granted, Granted::from([(1000, 3), (5000, 3)]));
    }
}

/// Two whole gateways on one database and one Redis.
struct Pair {
    apps: [App; 2],
    metrics: [Metrics; 2],
}

impl Pair {
    async fn new(redis: &RedisServer, limit: &str) -> Self {
        let database = TestDatabase::new(Backend::Postgres).await;
        let admin = connect(&database.url, Capacity::of(CONNECTIONS), &database.clock).await;
        let second = TestDatabase {
            url: database.url.clone(),
            store: admin,
            credentials: database.credentials.clone(),
            keys: database.keys.clone(),
            clock: database.clock.clone(),
            folder: tempfile::tempdir().unwrap(),
        };
        let metrics = [Metrics::new(), Metrics::new()];
        let [first_redis, second_redis] =
            metrics.each_ref().map(|metrics| Some(connection(redis, TEST_TIMEOUT, metrics)));
        let first = limited(database, rule(limit), first_redis).await;
        let second = limited(second, rule(limit), second_redis).await;
        Self { apps: [first, second], metrics }
    }

    /// Destroys these concurrently, alternating between the two gateways. Returns how many requests were granted and refused.
    async fn destroy(&self, ids: std::ops::RangeInclusive<i64>) -> (usize, usize) {
        for id in ids.clone() {
            self.apps[0].put(id, OWNER).await;
        }
        let requests = ids.map(|id| {
            let app = &self.apps[usize::from(id % 2 == 0)];
            let (rest, request) = (app.rest.clone(), signed(app, &Signer::owner(), &format!("custom-{id}")));
            tokio::spawn(async move { send(&rest, request).await })
        });
        let mut counts = (0, 0);
        for request in requests.collect::<Vec<_>>() {
            let (status, _, body) = request.await.unwrap();
            match status {
                200 => counts.0 += 1,
                429 => counts.1 += 1,
                _ => panic!("{status} {body}"),
            }
        }
        counts
    }

    /// Waits until both gateways use Redis (0), or both their own counters (1).
    async fn until_fallback_is(&self, fallback: i64) {
        let is_reached =
            async || self.metrics.iter().all(|metrics| metrics.rate_limit_fallback.get() == fallback);
        wait_until(&format!("rate_limit_fallback is {fallback}"), is_reached).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_grant_exactly_the_limit_between_them() {
    let redis = RedisServer::start().await;
    let pair = Pair::new(&redis, "40/15m").await;
    pair.until_fallback_is(0).await;
    assert_eq!(pair.destroy(1..=100).await, (40, 60));
    assert!(pair.metrics.iter().all(|metrics| metrics.rate_limit_fallbacks.get() == 0));
    assert_eq!(pair.apps[0].owned_by(OWNER).await.len(), 60);
}

/// Killed and restarted without its data: no request is refused because of it, and earlier requests still count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_redis_keeps_the_counts() {
    let mut redis = RedisServer::start().await;
    let pair = Pair::new(&redis, "40/15m").await;
    pair.until_fallback_is(0).await;
    assert_eq!(pair.destroy(1..=20).await, (20, 0));
    redis.kill();
    assert_eq!(pair.destroy(21..=30).await, (10, 0));
    pair.until_fallback_is(1).await;
    for metrics in &pair.metrics {
        assert_eq!(metrics.rate_limit_fallbacks.get(), 1);
    }
    redis.start_again().await;
    pair.until_fallback_is(0).await;
    // Each gateway has the count of its last reply from Redis, ten to twenty, and five requests of its own. Until the gateway
    // with the higher count makes a request, the other one may be granted more.
    let (granted, _) = pair.destroy(31..=90).await;
    assert!((15..=25).contains(&granted), "{granted}");
    assert_eq!(pair.destroy(91..=100).await.0, 0);
}

/// A Redis that accepts connections and never replies delays one request by the timeout, and not every request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_delays_one_request() {
    let redis = RedisServer::start().await;
    let connection = connection(&redis, REDIS_TIMEOUT, &Metrics::new());
    connection.poll_once().await;
    let limit = RateLimit::new(rule("1000/15m"), Clock::System, Some(connection.clone()));
    assert_eq!(limit.take(key(1)).await.remaining, 999);
    redis.freeze();
    let begun = Instant::now();
    for left in (900..999).rev() {
        assert_eq!(limit.take(key(1)).await.remaining, left);
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let begun = Instant::now();
    connection.poll_once().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "an attempt to connect is bounded");
    redis.thaw();
    connection.poll_once().await;
    // Redis executed the call that timed out later. The count of this process includes it already.
    assert_eq!(limit.take(key(1)).await.remaining, 899);
}

/// In the log once each, and in the metrics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outages_of_redis_are_logged_and_measured() {
    let mut redis = RedisServer::start().await;
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &["--redis-url", &redis.url(), "--rate-limit", "5/1h"]).await;
    let metrics = async |line: &str| {
        let (status, _, text) =
            send(&program.admin, http::Request::get("/metrics").body(String::new()).unwrap()).await;
        status == 200 && text.lines().any(|each| each == line)
    };
    let ask = async || send(&program.rest, form_now(&program.rest, "custom-1")).await.0;
    assert_eq!(ask().await, 404);
    assert!(metrics("collections_rate_limit_fallback 0").await);
    redis.kill();
    for _ in 0..3 {
        assert_eq!(ask().await, 404);
    }
    assert!(metrics("collections_rate_limit_fallback 1").await);
    assert!(metrics("collections_rate_limit_fallbacks_total 1").await);
    redis.start_again().await;
    wait_until("Redis is used again", async || metrics("collections_rate_limit_fallback 0").await).await;
    assert_eq!((ask().await, ask().await), (404, 429));
    program.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(9)).await;
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!((count("redis unavailable"), count("redis available")), (1, 2), "{log:?}");
}

/// A Redis that is down from the start, and one that rejects the script: each is logged once for any number of attempts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_never_counts_is_logged_once() {
    let mut down = RedisServer::start().await;
    down.kill();
    let refusing = RedisServer::start().await;
    let client = redis::Client::open(refusing.url()).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let rules = ["SETUSER", "default", "-eval", "-evalsha"];
    redis::cmd("ACL").arg(&rules).query_async::<()>(&mut admin).await.unwrap();
    for redis in [&down, &refusing] {
        let metrics = Metrics::new();
        let connection = connection(redis, REDIS_TIMEOUT, &metrics);
        let limit = RateLimit::new(rule("3/1h"), Clock::System, Some(connection.clone()));
        for remaining in [2, 1, 0] {
            connection.poll_once().await;
            assert_eq!(limit.take(key(1)).await.remaining, remaining);
            assert_eq!(metrics.rate_limit_fallback.get(), 1);
        }
        assert_eq!(metrics.rate_limit_fallbacks.get(), 1);
    }
}
