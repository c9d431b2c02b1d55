//! Faults while destroys, an import and purges are in flight. Callers keep a ledger of their answers; after each fault
//! the database is compared with it.
//!
//! `TEST_LEDGER_FAULTS=45 tests/run --test it -- ledger:: --nocapture` injects 45 faults of each kind, and prints its
//! progress and a summary.

mod book;
mod fixture;
mod load;
mod summary;
mod work;

use std::{ops::RangeInclusive, time::Duration};

use collections_service::domain::Entropy;
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use super::{
    purge::count,
    support::{program::run, rpc, wait_until},
};
use book::{Answer, Entry, Rows};
use fixture::{Fault, Injected, LedgerFixture};
use load::{Load, attempt};
use summary::Summary;

/// Of each kind, where `TEST_LEDGER_FAULTS` does not set another number.
const FAULTS: usize = 2;
/// For one fault. What the callers leave is deleted.
const COLLECTIONS: i64 = 20_000;
/// The longest that the service may take once the database is right again.
const READY_BOUND: Duration = Duration::from_secs(5);
/// Differences that are printed for one fault.
const PRINTED: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_holds_when_the_service_is_killed() {
    inject_faults(Fault::KillService).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_holds_when_the_service_is_killed_on_sqlite() {
    inject_faults(Fault::KillServiceOnSqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_holds_when_postgres_crashes() {
    inject_faults(Fault::CrashDatabase).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_holds_when_postgres_is_stopped() {
    inject_faults(Fault::StopDatabase).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_holds_when_a_standby_is_promoted() {
    inject_faults(Fault::Promote).await;
}

async fn inject_faults(fault: Fault) {
    let faults = std::env::var("TEST_LEDGER_FAULTS").map_or(FAULTS, |faults| faults.parse().unwrap());
    let mut fixture = LedgerFixture::new(fault).await;
    let mut summary = Summary { kind: fault.name(), ..Summary::default() };
    let mut tombstones = 0;
    for round in 1..=faults {
        let first = i64::try_from(round).unwrap() * COLLECTIONS;
        tombstones += inject_one(&mut fixture, first..=first + COLLECTIONS - 1, &mut summary).await;
        eprintln!(
            "{} {round}/{faults}: ready after {:?}, {:?} without an acknowledged call, {} lost, {} wrong so far",
            fault.name(),
            summary.ready.last().unwrap(),
            summary.gaps.last().unwrap(),
            summary.lost,
            summary.wrong
        );
    }
    summary.print();
    if summary.lost + summary.wrong > 0 {
        fixture.print_log().await;
    }
    assert_eq!((summary.lost, summary.wrong), (0, 0), "{summary}");
    assert!(
        summary.in_flight.0 > 0 && summary.in_flight.1 > 0,
        "no import or no purge was in flight: {summary}"
    );
    // What an earlier round has found is still there.
    let connection = fixture.connect().await;
    let everything = Rows::read(&connection, &(1..=i64::MAX)).await;
    assert_eq!(everything.tombstones(), tombstones, "tombstones are missing");
    for command in [&["purge", "--once", "--purge-pause", "0"][..], &["verify"]] {
        let (code, output, error) = run(command, &[("COLLECTIONS_DATABASE_URL", fixture.url())]).await;
        assert_eq!(code, 0, "{command:?}: {output}{error}");
    }
    for table in ["purge_queue", "collection_entries"] {
        assert_eq!(count(&connection, table).await, 0, "rows are left in {table}");
    }
    assert!(summary.ready.iter().all(|ready| *ready <= READY_BOUND), "{:?}", summary.ready);
}

/// One fault under load. Returns how many of these collections were destroyed.
async fn inject_one(fixture: &mut LedgerFixture, ids: RangeInclusive<i64>, summary: &mut Summary) -> usize {
    fixture.prepare(&ids).await;
    let load = Load::start(fixture.origin.subscribe(), ids.clone());
    load.wait_for_acknowledged(100, Instant::now()).await;
    let mut work = fixture.start_work(*ids.start() / COLLECTIONS);
    // The fault is injected at a random moment of the work.
    sleep(Duration::from_millis(random_below(500))).await;

    let (is_importing, is_purging) = work.in_flight();
    summary.in_flight.0 += usize::from(is_importing);
    summary.in_flight.1 += usize::from(is_purging);
    let begun = Instant::now();
    let Injected { down_at, right_at, killed } = fixture.inject(&mut work).await;
    load.wait_for_acknowledged(1, right_at).await;
    wait_until("the service is serving", async || fixture.is_serving().await).await;
    let ready_at = Instant::now();
    summary.ready.push(ready_at - right_at);
    load.wait_for_acknowledged(100, ready_at).await;
    let (entries, acknowledged) = load.stop().await;

    let connection = fixture.connect().await;
    let rows = Rows::read(&connection, &ids).await;
    let mut differences = rows.compare(ids.clone(), &entries, killed);
    differences.wrong.extend(work.finish(&connection).await);
    summary.purged += rows.purged();
    summary.recovered += rows.recovered(&entries, down_at, right_at);
    let around = begun.checked_sub(Duration::from_millis(200)).unwrap()..ready_at;
    let replayed: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.request_id.is_some() && entry.was_told(&Answer::Ok))
        .filter(|entry| entry.attempts.iter().any(|attempt| around.contains(&attempt.ended)))
        .collect();
    summary.replays += replayed.len();
    differences.wrong.extend(replay(fixture, &replayed).await);
    for difference in differences.lost.iter().chain(&differences.wrong).take(PRINTED) {
        eprintln!("{}: {difference}", summary.kind);
    }
    summary.count(&entries, &acknowledged, &differences);
    fixture.delete_rest(&connection).await;
    rows.tombstones()
}

/// The same requests once more. Returns those that are not answered as the first time.
async fn replay(fixture: &LedgerFixture, entries: &[&Entry]) -> Vec<String> {
    let client = rpc(&fixture.origin.borrow());
    let answers = stream::iter(entries)
        .map(|entry| {
            let mut client = client.clone();
            async move { (entry.id, attempt(&mut client, entry).await.answer) }
        })
        .buffer_unordered(16);
    let others = answers.filter(|(_, answer)| std::future::ready(*answer != Answer::Ok));
    others
        .map(|(id, answer)| format!("custom-{id}: the same request again was answered {answer:?}"))
        .collect()
        .await
}

/// A number at random below this one.
fn random_below(limit: u64) -> u64 {
    u64::from_be_bytes(Entropy::default().bytes()) % limit
}
