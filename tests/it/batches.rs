//! Destroys that share a statement: each has the outcome that it would have had alone.

use std::{future::Future, time::Duration};

use collections_service::{
    config::store::{CLOSE_TIMEOUT, QUEUE_CAPACITY, STATEMENT_BOUND},
    domain::{CollectionId, DestroyError, DestroyFailure, Destroyed, Entropy},
    store::{Capacity, Destroy, Store},
};
use sea_orm::{ConnectionTrait, Statement, TransactionTrait};
use tokio::time::Instant;

use super::{
    faults::{Sent, front, relay},
    support::{
        BLOCKED, Backend, OTHER, OWNER, TestDatabase, cluster::Cluster, connect, fresh_database,
        fresh_postgres, user, wait_for, wait_until,
    },
};

pub type Outcome = Result<Destroyed, DestroyError>;

pub const UUIDS: [&str; 2] = ["7c9e6679-7425-40de-944b-e07fc1f90ae7", "0f14d0ab-9605-4a62-a9e4-5ed26688389b"];

/// Of the owner, with a deadline that no test reaches.
pub fn destroy_of(id: i64) -> Destroy {
    Destroy {
        id: CollectionId::new(id).unwrap(),
        user: user(OWNER),
        request_id: None,
        caller: Some("mtls:orders".to_owned()),
        deadline: Instant::now() + Duration::from_secs(10),
        span: None,
    }
}

pub fn destroy_with_request_id(id: i64, request: usize) -> Destroy {
    Destroy { request_id: Some(UUIDS[request].parse().unwrap()), ..destroy_of(id) }
}

pub fn destroy_by_other(id: i64) -> Destroy {
    Destroy { user: user(OTHER), ..destroy_of(id) }
}

/// Returns the outcome without its cause, which is for the log.
pub async fn outcome_of(store: &Store, destroy: Destroy) -> Outcome {
    store.destroy(destroy).await.map_err(|failure| failure.error)
}

/// Destroys all of them at once. In a runtime with one thread they are all in the queue before the batcher runs.
pub async fn destroy_concurrently(
    store: &Store,
    destroys: impl IntoIterator<Item = Destroy>,
) -> Vec<Outcome> {
    let mut calls: Vec<_> = destroys.into_iter().map(|destroy| Box::pin(store.destroy(destroy))).collect();
    let mut outcomes = vec![None; calls.len()];
    std::future::poll_fn(|context| {
        for (call, outcome) in calls.iter_mut().zip(&mut outcomes).filter(|(_, outcome)| outcome.is_none()) {
            if let std::task::Poll::Ready(ready) = call.as_mut().poll(context) {
                *outcome = Some(ready);
            }
        }
        if outcomes.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    outcomes
        .into_iter()
        .flatten()
        .map(|outcome: Result<_, DestroyFailure>| outcome.map_err(|failure| failure.error))
        .collect()
}

async fn each_caller_gets_its_own_outcome(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    for id in 1..=6 {
        database.put(id, OWNER).await;
    }
    database.put(7, OTHER).await;
    let store = &database.store;
    assert_eq!(outcome_of(store, destroy_with_request_id(6, 0)).await, Ok(Destroyed::Now));
    let outcomes = destroy_concurrently(
        store,
        [
            destroy_of(5),
            destroy_with_request_id(6, 0),
            destroy_of(6),
            destroy_with_request_id(6, 1),
            destroy_of(1),
            destroy_of(2),
            destroy_of(2),
            destroy_with_request_id(3, 0),
            destroy_with_request_id(3, 0),
            destroy_with_request_id(3, 1),
            destroy_by_other(4),
            destroy_of(4),
            destroy_of(7),
            destroy_by_other(7),
            destroy_of(8),
        ],
    )
    .await;
    use DestroyError::{NotFound, NotOwner};
    use Destroyed::{Before, Now};
    assert_eq!(outcomes[..5], [Ok(Now), Ok(Before), Err(NotFound), Err(NotFound), Ok(Now)]);
    let count = |range: std::ops::Range<usize>, wanted: Outcome| {
        outcomes[range].iter().filter(|outcome| **outcome == wanted).count()
    };
    assert_eq!((count(5..7, Ok(Now)), count(5..7, Err(NotFound))), (1, 1));
    // Whichever request id won, it won for all who sent it.
    assert_eq!(count(7..10, Ok(Now)), 1);
    let shared = (outcomes[7], outcomes[8], outcomes[9]);
    assert!(
        [
            (Ok(Now), Ok(Before), Err(NotFound)),
            (Ok(Before), Ok(Now), Err(NotFound)),
            (Err(NotFound), Err(NotFound), Ok(Now)),
        ]
        .contains(&shared),
        "{shared:?}"
    );
    // Another user's call in the same batch came before or after the owner's.
    assert!([Err(NotOwner), Err(NotFound)].contains(&outcomes[10]), "{:?}", outcomes[10]);
    assert_eq!(outcomes[11], Ok(Now));
    assert!([Err(NotOwner), Err(NotFound)].contains(&outcomes[12]), "{:?}", outcomes[12]);
    assert_eq!(outcomes[13..], [Ok(Now), Err(NotFound)]);
    assert_eq!(database.owned_by(OWNER).await, [] as [i64; 0]);
    assert_eq!(tombstones(&database).await, 7);
}

pub async fn tombstones(database: &TestDatabase) -> i64 {
    let admin = database.connection().await;
    let count = "SELECT count(*) AS n FROM destroyed_collections WHERE owner_id > 0";
    let row = admin.query_one_raw(Statement::from_string(admin.get_database_backend(), count)).await.unwrap();
    row.unwrap().try_get("", "n").unwrap()
}

#[tokio::test]
async fn each_caller_gets_its_own_outcome_on_sqlite() {
    each_caller_gets_its_own_outcome(Backend::Sqlite).await;
}

#[tokio::test]
async fn each_caller_gets_its_own_outcome_on_postgres() {
    each_caller_gets_its_own_outcome(Backend::Postgres).await;
}

/// A row that the database refuses is refused alone.
async fn a_rejected_row_fails_only_its_own_destroy(backend: Backend, refuse: &str) {
    let database = TestDatabase::new(backend).await;
    for id in 1..=500 {
        database.put(id, OWNER).await;
    }
    database.connection().await.execute_unprepared(refuse).await.unwrap();
    let outcomes = destroy_concurrently(&database.store, (1..=500).map(destroy_of)).await;
    for (id, outcome) in (1..).zip(outcomes) {
        let expected = if id == 13 { Err(DestroyError::Internal) } else { Ok(Destroyed::Now) };
        assert_eq!(outcome, expected, "custom-{id}");
    }
    assert_eq!(database.owned_by(OWNER).await, [13]);
}

#[tokio::test]
async fn a_rejected_row_fails_only_its_own_destroy_on_sqlite() {
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON destroyed_collections WHEN new.id = 13
        BEGIN SELECT RAISE(ABORT, 'refused'); END";
    a_rejected_row_fails_only_its_own_destroy(Backend::Sqlite, refuse).await;
}

#[tokio::test]
async fn a_rejected_row_fails_only_its_own_destroy_on_postgres() {
    a_rejected_row_fails_only_its_own_destroy(
        Backend::Postgres,
        "ALTER TABLE destroyed_collections ADD CHECK (id <> 13)",
    )
    .await;
}

/// The same where the error is of a kind that usually meets every statement.
#[tokio::test]
async fn a_failing_trigger_fails_only_its_own_destroy() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=100 {
        database.put(id, OWNER).await;
    }
    let broken = "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM * FROM missing; RETURN old; END $$;
        CREATE TRIGGER broken BEFORE DELETE ON collections FOR EACH ROW WHEN (old.id = 13) EXECUTE FUNCTION broken()";
    database.connection().await.execute_unprepared(broken).await.unwrap();
    for (id, outcome) in (1..).zip(destroy_concurrently(&database.store, (1..=100).map(destroy_of)).await) {
        let expected = if id == 13 { Err(DestroyError::StoreUnavailable) } else { Ok(Destroyed::Now) };
        assert_eq!(outcome, expected, "custom-{id}");
    }
}

/// A row that the database cannot read (58030, io_error) fails alone, when its caller's deadline has passed.
#[tokio::test]
async fn an_unreadable_row_fails_only_its_own_destroy() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=100 {
        database.put(id, OWNER).await;
    }
    let unreadable = "CREATE FUNCTION unreadable() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not read block' USING ERRCODE = 'io_error'; END $$;
        CREATE TRIGGER unreadable BEFORE DELETE ON collections FOR EACH ROW WHEN (old.id = 13)
        EXECUTE FUNCTION unreadable()";
    database.connection().await.execute_unprepared(unreadable).await.unwrap();
    let begun = Instant::now();
    let others = (1..=100).map(|id| {
        let limit = Duration::from_secs(if id == 13 { 8 } else { 5 });
        Destroy { deadline: Instant::now() + limit, ..destroy_of(id) }
    });
    let outcomes = destroy_concurrently(&database.store, others).await;
    for (id, outcome) in (1..).zip(outcomes) {
        let expected = if id == 13 { Err(DestroyError::StoreUnavailable) } else { Ok(Destroyed::Now) };
        assert_eq!(outcome, expected, "custom-{id}");
    }
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
}

/// Another transaction keeps a row locked.
#[tokio::test]
async fn a_locked_row_delays_only_its_own_destroy() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=20 {
        database.put(id, OWNER).await;
    }
    let rival = database.connection().await.begin().await.unwrap();
    rival.execute_unprepared("SELECT id FROM collections WHERE id = 13 FOR UPDATE").await.unwrap();
    let (store, begun) = (database.store.clone(), Instant::now());
    let locked = tokio::spawn({
        let store = store.clone();
        async move { outcome_of(&store, destroy_of(13)).await }
    });
    let outcomes = destroy_concurrently(&store, (1..=20).filter(|id| *id != 13).map(destroy_of)).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Destroyed::Now)), "{outcomes:?}");
    // Half of what the locked one waits.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!locked.is_finished());
    rival.rollback().await.unwrap();
    assert_eq!(locked.await.unwrap(), Ok(Destroyed::Now));
}

/// Where each transaction keeps its first snapshot, a row that another transaction deletes makes the whole batch start anew.
#[tokio::test]
async fn a_batch_is_retried_after_a_serialization_failure() {
    let url = fresh_postgres().await;
    let strict = format!("{url}?options[default_transaction_isolation]=repeatable%20read");
    let database = TestDatabase::on(Some(strict)).await;
    for id in 1..=20 {
        database.put(id, OWNER).await;
    }
    let (watcher, rival) = (database.connection().await, database.connection().await.begin().await.unwrap());
    rival.execute_unprepared("DELETE FROM collections WHERE id = 13").await.unwrap();
    let end = async {
        wait_for(&watcher, BLOCKED).await;
        rival.commit().await.unwrap();
    };
    let (outcomes, ()) = tokio::join!(destroy_concurrently(&database.store, (1..=20).map(destroy_of)), end);
    for (id, outcome) in (1..).zip(outcomes) {
        let expected = if id == 13 { Err(DestroyError::NotFound) } else { Ok(Destroyed::Now) };
        assert_eq!(outcome, expected, "custom-{id}");
    }
    assert_eq!(tombstones(&database).await, 19);
}

/// A connection that breaks during a batch: the batch is run again with request ids of the service's own, and every caller
/// gets the right outcome.
#[tokio::test]
async fn a_batch_is_retried_when_its_connection_breaks() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=20 {
        database.put(id, OWNER).await;
    }
    let admin = database.connection().await;
    // Long enough to be cut in the middle.
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF new.id = 13 AND NOT EXISTS (SELECT FROM cut)
        THEN PERFORM pg_sleep(10); END IF; RETURN new; END $$;
        CREATE TABLE cut (n int);
        CREATE TRIGGER slow BEFORE INSERT ON destroyed_collections FOR EACH ROW EXECUTE FUNCTION slow()";
    admin.execute_unprepared(slow).await.unwrap();
    let cut = async {
        const SLEEPING: &str = "SELECT pid FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event = 'PgSleep'";
        wait_for(&admin, SLEEPING).await;
        admin.execute_unprepared("INSERT INTO cut VALUES (1)").await.unwrap();
        let terminate = SLEEPING.replace("SELECT pid", "SELECT pg_terminate_backend(pid)");
        admin.execute_unprepared(&terminate).await.unwrap();
    };
    let (outcomes, ()) = tokio::join!(destroy_concurrently(&database.store, (1..=20).map(destroy_of)), cut);
    assert_eq!(outcomes, [Ok(Destroyed::Now); 20]);
    assert_eq!(tombstones(&database).await, 20);
}

/// A store that is connected to this database through a relay, and the messages that it has sent.
async fn behind_relay(url: &str) -> (TestDatabase, Sent) {
    let ((listener, through, server), sent) = (front(url).await, Sent::default());
    tokio::spawn(relay(listener, server, sent.clone()));
    (TestDatabase::on(Some(through)).await, sent)
}

/// Waits until a statement was sent for execution.
async fn wait_until_sent(sent: &Sent) {
    wait_until("a statement was sent", async || sent.lock().unwrap().contains(&b'E')).await;
}

/// In the queue a destroy is unsent: it is dropped when its deadline passes or its caller disconnects.
#[tokio::test]
async fn a_queued_destroy_is_dropped_without_its_caller() {
    let mut cluster = Cluster::start().await;
    let (database, sent) = behind_relay(&fresh_database(&cluster.url()).await).await;
    for id in 1..=5 {
        database.put(id, OWNER).await;
    }
    assert_eq!(outcome_of(&database.store, destroy_of(5)).await, Ok(Destroyed::Now));
    let call = |destroy: Destroy| {
        let store = database.store.clone();
        tokio::spawn(async move { outcome_of(&store, destroy).await })
    };
    cluster.freeze();
    sent.lock().unwrap().clear();
    let first = call(destroy_of(1));
    wait_until_sent(&sent).await;
    let late = call(Destroy { deadline: Instant::now() + Duration::from_millis(50), ..destroy_of(2) });
    let (gone, kept) = (call(destroy_of(3)), call(destroy_of(4)));
    assert_eq!(late.await.unwrap(), Err(DestroyError::DeadlineExceeded));
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    cluster.thaw();
    assert_eq!(kept.await.unwrap(), Ok(Destroyed::Now));
    assert_eq!(first.await.unwrap(), Ok(Destroyed::Now));
    assert_eq!(database.owned_by(OWNER).await, [2, 3]);
    cluster.stop();
}

/// A database that neither answers nor closes its connections: a destroy waits for as long as its caller does.
#[tokio::test]
async fn a_destroy_waits_for_the_database_until_its_deadline() {
    let mut cluster = Cluster::start().await;
    let (database, sent) = behind_relay(&fresh_database(&cluster.url()).await).await;
    database.put(1, OWNER).await;
    assert_eq!(outcome_of(&database.store, destroy_of(1)).await, Ok(Destroyed::Now));
    cluster.freeze();
    sent.lock().unwrap().clear();
    let call = |destroy: Destroy| {
        let store = database.store.clone();
        tokio::spawn(async move { outcome_of(&store, destroy).await })
    };
    let within = |limit: Duration| Instant::now() + limit;
    let (stuck, begun) =
        (call(Destroy { deadline: within(STATEMENT_BOUND), ..destroy_of(2) }), Instant::now());
    wait_until_sent(&sent).await;
    let queued = call(Destroy { deadline: within(Duration::from_secs(1)), ..destroy_of(3) });
    let patient = call(Destroy { deadline: within(Duration::from_secs(20)), ..destroy_of(3) });
    assert_eq!(queued.await.unwrap(), Err(DestroyError::DeadlineExceeded));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(!stuck.is_finished());
    assert_eq!(stuck.await.unwrap(), Err(DestroyError::StoreUnavailable));
    cluster.thaw();
    assert_eq!(patient.await.unwrap(), Err(DestroyError::NotFound));
    cluster.stop();
}

#[tokio::test]
async fn a_full_queue_rejects_destroys() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let more = QUEUE_CAPACITY + 10;
    let outcomes =
        destroy_concurrently(&database.store, (1..=more).map(|id| destroy_of(id.try_into().unwrap()))).await;
    let refused = outcomes.iter().filter(|outcome| **outcome == Err(DestroyError::Overloaded)).count();
    assert_eq!(refused, 10);
    assert!(outcomes[QUEUE_CAPACITY..].iter().all(|outcome| *outcome == Err(DestroyError::Overloaded)));
    database.put(1, OWNER).await;
    database.store.close().await;
    assert_eq!(outcome_of(&database.store, destroy_of(1)).await, Err(DestroyError::StoreUnavailable));
}

/// Those who wait together cost one statement, or two where they are many: each half. No statement has more than
/// `--batch-max` of them.
#[tokio::test]
async fn a_batch_is_one_statement() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=256 {
        database.put(id, OWNER).await;
    }
    let ((listener, through, server), sent) = (front(&database.url).await, Sent::default());
    tokio::spawn(relay(listener, server, sent.clone()));
    let statements = |kind: u8| sent.lock().unwrap().iter().filter(|byte| **byte == kind).count();
    for (first, callers, most, expected) in [(1, 64, 1024, 1), (65, 128, 1024, 2), (193, 64, 16, 4)] {
        let capacity = Capacity { batch_max: most, ..Capacity::of(4) };
        let store = connect(&through, capacity, &database.clock).await;
        // The connection and the statement are made once.
        destroy_concurrently(&store, [destroy_of(1000), destroy_of(1001)]).await;
        sent.lock().unwrap().clear();
        let outcomes = destroy_concurrently(&store, (first..first + callers).map(destroy_of)).await;
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        assert_eq!(
            (statements(b'E'), statements(b'P'), statements(b'Q')),
            (expected, 0, 0),
            "{callers}, {most}"
        );
    }
}

/// Whichever of them worked last, none of the others is waited for.
#[tokio::test]
async fn idle_batches_end_at_once() {
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    let capacity = Capacity { batches_in_flight: 12, ..Capacity::of(14) };
    let url = database.url.clone().into();
    let (store, driver) =
        Store::connect(&url, capacity, database.clock.clone(), Entropy::default()).await.unwrap();
    let ended = driver
        .run_until(async {
            assert_eq!(outcome_of(&store, destroy_of(1)).await, Ok(Destroyed::Now));
            Instant::now()
        })
        .await;
    assert!(ended.elapsed() < CLOSE_TIMEOUT, "{:?}", ended.elapsed());
    assert_eq!(outcome_of(&store, destroy_of(2)).await, Err(DestroyError::StoreUnavailable));
}

/// A row that is refused does not cost a statement for each of the others.
#[tokio::test]
async fn a_bad_row_is_found_in_few_statements() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=256 {
        database.put(id, OWNER).await;
    }
    let refuse = "ALTER TABLE destroyed_collections ADD CHECK (id <> 13)";
    database.connection().await.execute_unprepared(refuse).await.unwrap();
    let ((listener, through, server), sent) = (front(&database.url).await, Sent::default());
    tokio::spawn(relay(listener, server, sent.clone()));
    let store = connect(&through, Capacity::of(4), &database.clock).await;
    let outcomes = destroy_concurrently(&store, (1..=256).map(destroy_of)).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 255);
    let statements = sent.lock().unwrap().iter().filter(|kind| **kind == b'E').count();
    assert!(statements < 50, "{statements}");
}
