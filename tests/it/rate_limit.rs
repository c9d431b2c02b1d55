//! The rate limit: in memory, shared through Redis, and while Redis is unavailable.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use collections_service::{
    config::rate_limit::{KEY_LIMIT, REDIS_TIMEOUT},
    domain::{Clock, Secret},
    rate_limit::{Key, MemoryCounter, RateLimit, Redis, Rule},
    store::Capacity,
    telemetry::Metrics,
};
use http::HeaderMap;
use proptest::prelude::*;
use tokio::time::Instant;
use tonic::Code;
use tonic_types::StatusExt;

use super::{
    errors::{assert_answer, error_body, form, signed},
    support::{
        App, Backend, CONNECTIONS, Ground, NOW, OTHER, OWNER, PATH, connect, destroy, grpc_of,
        oauth::Signer,
        pki::{Authority, For, tls_rpc},
        program::{Program, path, run},
        reason,
        redis::RedisServer,
        send, user, wait_until,
    },
    tls::{self, SERVICE, server_tls},
};

/// The timeout of gateways whose counts are tested and not their speed: the machine may be busy.
const TEST_TIMEOUT: Duration = Duration::from_secs(5);

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

proptest! {
    /// Every moment is in exactly one window, and windows are as long as the rule says.
    #[test]
    fn each_moment_is_in_one_window(length in 1..86_400_u64, now in 0..10_000_000_000_u64) {
        let rule = Rule { limit: 1, window: Duration::from_secs(length) };
        let window = rule.window_at(now);
        prop_assert!(now < window.reset && window.reset <= now + length);
        prop_assert_eq!(rule.window_at(window.reset).number, window.number + 1);
        prop_assert_eq!(rule.window_at(window.reset - 1), window);
        prop_assert_eq!(window.reset % length, 0);
    }

    /// A rule that was parsed is displayed as a text that parses to the same rule.
    #[test]
    fn rules_round_trip(limit in 1..u32::MAX, length in 1..20_u64, unit in prop::sample::select(vec!["s", "m", "h"])) {
        let rule: Rule = format!("{limit}/{length}{unit}").parse().unwrap();
        prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        prop_assert_eq!(rule.limit, limit);
    }
}

#[test]
fn malformed_rules_are_rejected() {
    for text in [
        "",
        "300",
        "/15m",
        "300/",
        "300/15",
        "300/0m",
        "300/25h",
        "-1/15m",
        "+1/15m",
        "300/15 m",
        "1/m",
        "300/15m ",
        "4294967296/15m",
        "300/15M",
        "300/99999999999m",
        "1/2/3m",
        "300/1ü",
    ] {
        assert!(text.parse::<Rule>().is_err(), "{text}");
    }
    assert!(!rule("0").is_on() && !rule("0/15m").is_on() && rule("1/15m").is_on());
    assert_eq!(rule("300/15m"), Rule::default());
}

/// An app on this ground whose gateway has a rate limit.
async fn limited(ground: Ground, rule: Rule, redis: Option<Redis>) -> App {
    App::start_with(ground, |settings| {
        let limit = RateLimit::new(rule, settings.clock.clone(), redis);
        settings.rest.as_mut().unwrap().rate_limit = Some(limit);
    })
    .await
}

fn headers(headers: &HeaderMap) -> Option<(u64, u64, u64)> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse().ok();
    Some((number("x-rate-limit-limit")?, number("x-rate-limit-remaining")?, number("x-rate-limit-reset")?))
}

/// On success, on failures once the user is known, and when the limit is used up. The next window starts at zero.
#[tokio::test]
async fn responses_have_the_rate_limit_headers() {
    let ground = Ground::new(Backend::Sqlite).await;
    ground.put(1, OWNER).await;
    ground.put(2, OTHER).await;
    ground.put(3, OWNER).await;
    let app = limited(ground, rule("3/15m"), None).await;
    let window = 15 * 60;
    let reset = (NOW.cast_unsigned() / window + 1) * window;
    let good = Signer::owner();

    let answer = app.send(form(PATH, "", "id=custom-1")).await;
    assert_eq!((answer.0, headers(&answer.1)), (400, None));
    let mut wrong = good.clone();
    wrong.consumer.1.push('x');
    let answer = app.send(signed(&app, &wrong, "custom-1")).await;
    assert_eq!((answer.0, headers(&answer.1)), (401, None));
    for (id, status, remaining) in [("custom-1", 200, 2), ("custom-2", 403, 1), ("", 403, 0)] {
        let answer = app.send(signed(&app, &good, id)).await;
        assert_eq!((answer.0, headers(&answer.1)), (status, Some((3, remaining, reset))), "{id}");
        assert!(!answer.1.contains_key("retry-after"));
    }
    for _ in 0..2 {
        let answer = app.send(signed(&app, &good, "custom-3")).await;
        assert_answer(&answer, 429, &error_body(88, "Rate limit exceeded"));
        assert_eq!(headers(&answer.1), Some((3, 0, reset)));
        assert_eq!(answer.1["retry-after"], (reset - NOW.cast_unsigned()).to_string());
        assert_eq!(answer.1["x-access-level"], "read-write");
    }
    assert_eq!(app.owned_by(OWNER).await, [3]);

    let Clock::Set(clock) = &app.ground.clock else { panic!("a clock of its own") };
    clock.store(reset.cast_signed(), Ordering::Relaxed);
    let later = Signer { timestamp: reset.cast_signed(), ..good };
    let answer = app.send(signed(&app, &later, "custom-3")).await;
    assert_eq!((answer.0, headers(&answer.1)), (200, Some((3, 2, reset + window))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_grants_exactly_the_limit() {
    let limit = RateLimit::new(rule("50/1h"), Clock::System, None);
    let takes = (0..200).map(|number| {
        let limit = limit.clone();
        tokio::spawn(async move { (number % 2, limit.take(key(1 + number % 2)).await) })
    });
    let mut granted = [0; 2];
    let mut remaining = BTreeSet::new();
    for take in takes.collect::<Vec<_>>() {
        let (who, allowance) = take.await.unwrap();
        granted[usize::try_from(who).unwrap()] += i32::from(allowance.granted);
        remaining.insert(allowance.remaining);
    }
    assert_eq!(granted, [50, 50]);
    assert_eq!(remaining, (0..50).collect());
}

/// A connection to this server, which is not made yet.
fn connection(server: &RedisServer, timeout: Duration, metrics: &Metrics) -> Redis {
    Redis::new(&Secret::from(server.url()), timeout, metrics.clone()).unwrap()
}

fn key(number: i64) -> Key {
    Key::User(user(number))
}

/// The number of requests that each window has granted.
type Granted = BTreeMap<u64, u32>;

/// A limit of three requests in ten seconds, with a clock that can be set.
fn three_in_ten(redis: Option<Redis>) -> (RateLimit, Arc<AtomicI64>) {
    let seconds = Arc::new(AtomicI64::new(0));
    (RateLimit::new(rule("3/10s"), Clock::Set(seconds.clone()), redis), seconds)
}

proptest! {
    /// A clock that jumps between two windows grants the limit in each of them, in any order. A window that was not counted
    /// before has its whole limit, whether it is earlier or later than the windows before it.
    #[test]
    fn requests_count_in_the_window_of_the_clock(
        windows in prop::collection::vec((0..3_u64, 0..10_u64), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (limit, clock) = three_in_ten(None);
        // The reference: the counts of the two windows that were used last, the latest one at the end.
        let mut counted: Vec<(u64, u32)> = Vec::new();
        for (window, second) in windows {
            clock.store((10 * (1000 + window) + second).cast_signed(), Ordering::Relaxed);
            let count = counted.iter().position(|(number, _)| *number == window);
            let used = count.map_or(0, |index| counted.remove(index).1);
            let allowance = runtime.block_on(limit.take(key(1)));
            prop_assert_eq!(allowance.granted, used < 3);
            prop_assert_eq!(allowance.wait, 10 - second);
            counted.push((window, used + u32::from(allowance.granted)));
            let excess = counted.len().saturating_sub(2);
            counted.drain(..excess);
        }
    }
}

/// Keys beyond the limit are not counted, and first the earlier window gives up its memory.
#[test]
fn counted_keys_are_bounded() {
    let counter = MemoryCounter::default();
    let take = |window, number: usize| counter.take(window, key(i64::try_from(number).unwrap()), 1);
    assert_eq!((take(1, 1), take(1, 1)), (Some(1), None));
    for number in 1..=KEY_LIMIT {
        assert_eq!(take(2, number), Some(1));
    }
    assert_eq!(
        (take(2, KEY_LIMIT), take(2, KEY_LIMIT + 1), take(2, KEY_LIMIT + 1)),
        (None, Some(1), Some(1))
    );
    assert_eq!(take(1, 1), Some(1));
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
        let ground = Ground::new(Backend::Postgres).await;
        let admin = connect(&ground.url, Capacity::of(CONNECTIONS), &ground.clock).await;
        let second = Ground {
            url: ground.url.clone(),
            store: admin,
            credentials: ground.credentials.clone(),
            keys: ground.keys.clone(),
            clock: ground.clock.clone(),
            folder: tempfile::tempdir().unwrap(),
        };
        let metrics = [Metrics::new(), Metrics::new()];
        let [first_redis, second_redis] =
            metrics.each_ref().map(|metrics| Some(connection(redis, TEST_TIMEOUT, metrics)));
        let first = limited(ground, rule(limit), first_redis).await;
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
    let ground = Ground::new(Backend::Sqlite).await;
    let program = Program::serve(&ground, &["--redis-url", &redis.url(), "--rate-limit", "5/1h"]).await;
    let metrics = async |line: &str| {
        let (status, headers, text) =
            send(&program.admin, http::Request::get("/metrics").body(String::new()).unwrap()).await;
        assert!(headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
        status == 200 && text.lines().any(|each| each == line)
    };
    let ask = async || send(&program.rest, super::support::form_now(&program.rest, "custom-1")).await.0;
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

/// An app whose gRPC callers have a limit of two calls an hour; callers named in certificates, or none named.
async fn with_caller_limit(authority: Option<&Authority>, redis: Option<Redis>) -> App {
    let ground = Ground::new(Backend::Sqlite).await;
    let tls = authority.map(|authority| server_tls(ground.folder.path(), authority));
    App::start_with(ground, |settings| {
        let limit = RateLimit::new(rule("2/1h"), settings.clock.clone(), redis);
        let grpc = grpc_of(settings);
        grpc.caller_rate_limit = Some(limit);
        grpc.insecure_identity = tls.is_none();
        grpc.tls = tls;
        grpc.trusted_peers = [SERVICE, "billing.example"].iter().map(|name| name.parse().unwrap()).collect();
    })
    .await
}

/// Each calling service has a limit of its own, for all its users. Calls that are not authenticated are not counted, and
/// REST has another limit.
#[tokio::test]
async fn calling_services_are_limited() {
    let authority = Authority::new("ours");
    let app = with_caller_limit(Some(&authority), None).await;
    let reset = (NOW / 3600 + 1) * 3600;
    for name in [SERVICE, "billing.example"] {
        let leaf = authority.issue(&[name], For::Client);
        let mut rpc = tls_rpc(&app.grpc, &authority, Some(&leaf));
        let mut call = async |user| tls::destroy(&mut rpc, user, "custom-1").await.unwrap_err();
        assert_eq!(reason(&call(0).await), "CREDENTIALS_INVALID");
        for user in [OWNER, OTHER] {
            assert_eq!(reason(&call(user).await), "COLLECTION_NOT_FOUND", "{name}");
        }
        let refused = call(OWNER).await;
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
        let wait = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
        assert_eq!(wait.as_secs(), (reset - NOW).cast_unsigned());
        assert_eq!(app.send(signed(&app, &Signer::owner(), "custom-1")).await.0, 404);
    }
    let Clock::Set(clock) = &app.ground.clock else { panic!("a clock of its own") };
    clock.store(reset, Ordering::Relaxed);
    let leaf = authority.issue(&[SERVICE], For::Client);
    let mut rpc = tls_rpc(&app.grpc, &authority, Some(&leaf));
    assert_eq!(reason(&tls::destroy(&mut rpc, OWNER, "custom-1").await.unwrap_err()), "COLLECTION_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_limit_of_a_caller_through_redis() {
    let server = RedisServer::start().await;
    let mut reasons = Vec::new();
    let mut apps = Vec::new();
    for _ in 0..3 {
        let redis = connection(&server, TEST_TIMEOUT, &Metrics::new());
        apps.push(with_caller_limit(None, Some(redis)).await);
    }
    for app in &apps {
        reasons.push(reason(&destroy(&mut app.rpc(), OWNER, "custom-1", "").await.unwrap_err()));
    }
    assert_eq!(reasons, ["COLLECTION_NOT_FOUND", "COLLECTION_NOT_FOUND", "RATE_LIMITED"]);
}

#[tokio::test]
async fn contradictory_flags_are_rejected() {
    let ground = Ground::new(Backend::Sqlite).await;
    let key = path(&ground.folder.path().join("key")).to_owned();
    let with_rest = ["serve", "--insecure-identity", "--credentials-key-file", &key];
    let without = ["serve", "--insecure-identity", "--rest-addr", "off"];
    for (start, flags, expected) in [
        (&with_rest[..], ["--rate-limit", "many"].to_vec(), "--rate-limit"),
        (&with_rest, vec!["--redis-url", "s3cret"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "http://s3cret"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "unix:///s3cret"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "redis://127.0.0.1:1#s3cret"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "redis://127.0.0.1:1?db=s3cret"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "redis://127.0.0.1:1\n"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "rediss://s3cret:1/#insecure"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "redis://:s3cret@127.0.0.1:1"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "redis://127.0.0.1:1", "--rate-limit", "0"], "--redis-url"),
        (&with_rest, vec!["--caller-rate-limit", "many"], "--caller-rate-limit"),
        (&without, vec!["--redis-url", "redis://127.0.0.1:1"], "--redis-url"),
        (&without, vec!["--redis-url", "redis://127.0.0.1:1", "--caller-rate-limit", "0"], "--redis-url"),
    ] {
        let arguments = [start, &flags].concat();
        let (code, _, error) = run(&arguments, &[("COLLECTIONS_DATABASE_URL", &ground.url)]).await;
        assert_eq!(code, 2, "{flags:?}: {error}");
        assert!(error.contains(expected) && !error.contains("s3cret"), "{flags:?}: {error}");
    } // The limit of callers needs no REST: here it is the database that does not exist.
    let shared = ["--redis-url", "redis://127.0.0.1:1", "--caller-rate-limit", "5/1h"];
    let missing = [("COLLECTIONS_DATABASE_URL", "sqlite:/nowhere/db")];
    let (code, _, error) = run(&[&without[..], &shared].concat(), &missing).await;
    assert!(code == 2 && error.contains("--database-url"), "{error}");
}
