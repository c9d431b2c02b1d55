//! The rate limit: its rules, its windows and the headers of responses.

mod callers;
mod shared;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use collections_service::{
    config::rate_limit::KEY_LIMIT,
    domain::Clock,
    rate_limit::{Key, MemoryCounter, RateLimit, Redis, Rule},
};
use http::HeaderMap;
use proptest::prelude::*;

use super::{
    errors::{assert_answer, error_body, form, signed},
    support::{App, Backend, NOW, OTHER, OWNER, PATH, TestDatabase, oauth::Signer, user},
};

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

proptest! {
    /// Every moment is in exactly one window, and windows have the length of the rule.
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

/// An app whose gateway has a rate limit.
async fn limited(database: TestDatabase, rule: Rule, redis: Option<Redis>) -> App {
    App::start_with(database, |settings| {
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
    let database = TestDatabase::new(Backend::Sqlite).await;
    database.put(1, OWNER).await;
    database.put(2, OTHER).await;
    database.put(3, OWNER).await;
    let app = limited(database, rule("3/15m"), None).await;
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

    let Clock::Set(clock) = &app.database.clock else { panic!("a clock of its own") };
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
