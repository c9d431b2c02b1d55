//! Rows that other transactions keep locked hold up their own destroys, and no others.

use std::time::Duration;

use collections_service::{
    config::store::{BATCH_LOCK_TIMEOUT, LOCKED_CAPACITY},
    domain::{DestroyError, Destroyed},
    store::{Capacity, Destroy},
};
use sea_orm::{ConnectionTrait, DatabaseTransaction, TransactionTrait};
use tokio::time::{Instant, sleep};

use super::{
    batches::{destroy_concurrently, destroy_of, outcome_of},
    faults::{Sent, front, relay},
    support::{BLOCKED, Backend, OWNER, TestDatabase, connect, wait_for},
};

/// Locks these rows until the transaction ends.
async fn lock(database: &TestDatabase, rows: &str) -> DatabaseTransaction {
    let rival = database.connection().await.begin().await.unwrap();
    let lock = format!("SELECT id FROM collections WHERE {rows} FOR UPDATE");
    rival.execute_unprepared(&lock).await.unwrap();
    rival
}

fn with_deadline(limit: Duration, destroy: Destroy) -> Destroy {
    Destroy { deadline: Instant::now() + limit, ..destroy }
}

/// Twenty locked rows in the batches of others: none of the others is refused, and those that are locked are destroyed once
/// their locks are gone.
#[tokio::test]
async fn locked_rows_refuse_no_other_destroys() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=200 {
        database.put(id, OWNER).await;
    }
    let rival = lock(&database, "id % 10 = 0").await;
    let locked: Vec<_> = (1..=20)
        .map(|number| {
            let store = database.store.clone();
            tokio::spawn(async move {
                outcome_of(&store, with_deadline(Duration::from_secs(30), destroy_of(10 * number))).await
            })
        })
        .collect();
    let others = (1..=200).filter(|id| id % 10 != 0);
    let outcomes = destroy_concurrently(&database.store, others.map(destroy_of)).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Destroyed::Now)), "{outcomes:?}");
    assert!(locked.iter().all(|call| !call.is_finished()));
    rival.rollback().await.unwrap();
    for call in locked {
        assert_eq!(call.await.unwrap(), Ok(Destroyed::Now));
    }
}

/// While an id is known to be locked, its callers do not come into batches: those go without a wait.
#[tokio::test]
async fn a_locked_row_delays_one_batch() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=40 {
        database.put(id, OWNER).await;
    }
    let rival = lock(&database, "id = 13").await;
    let again = |limit| {
        let store = database.store.clone();
        tokio::spawn(async move { outcome_of(&store, with_deadline(limit, destroy_of(13))).await })
    };
    let first = again(Duration::from_secs(20));
    // In a batch it would have given up before it has waited for so long.
    let waits = format!(
        "SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted
         AND datname = current_database() AND waitstart < clock_timestamp() - interval '{} ms'",
        2 * BATCH_LOCK_TIMEOUT.as_millis()
    );
    wait_for(&database.connection().await, &waits).await;
    // PostgreSQL shows waits that ended in lock_timeout only in its log, so the test measures the time.
    let begun = Instant::now();
    let mut later = Vec::new();
    for id in (1..=40).filter(|id| *id != 13) {
        later.push(again(Duration::from_secs(20)));
        assert_eq!(outcome_of(&database.store, destroy_of(id)).await, Ok(Destroyed::Now));
    }
    // With a wait in each batch it would be two seconds.
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    rival.rollback().await.unwrap();
    let mut outcomes = vec![first.await.unwrap()];
    for call in later {
        outcomes.push(call.await.unwrap());
    }
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Ok(Destroyed::Now)).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Err(DestroyError::NotFound)).count(), 39);
}

/// A table that is locked as a whole, by a migration or a VACUUM FULL: its batch waits, and is not taken apart.
async fn a_batch_waits_for_a_locked_table(table: &str) {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=300 {
        database.put(id, OWNER).await;
    }
    let rival = database.connection().await.begin().await.unwrap();
    rival.execute_unprepared(&format!("LOCK TABLE {table}")).await.unwrap();
    let ((listener, through, server), sent) = (front(&database.url).await, Sent::default());
    tokio::spawn(relay(listener, server, sent.clone()));
    let store = connect(&through, Capacity::of(4), &database.clock).await;
    let release = async {
        wait_for(&database.connection().await, BLOCKED).await;
        // Longer than a batch would wait for a row.
        sleep(Duration::from_secs(2)).await;
        rival.rollback().await.unwrap();
    };
    let (outcomes, ()) = tokio::join!(destroy_concurrently(&store, (1..=300).map(destroy_of)), release);
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Destroyed::Now)), "{outcomes:?}");
    // Taken apart, it would be one for each destroy.
    let statements = sent.lock().unwrap().iter().filter(|kind| **kind == b'E').count();
    assert!(statements < 25, "{statements} statements");
}

#[tokio::test]
async fn a_batch_waits_for_a_locked_table_of_collections() {
    a_batch_waits_for_a_locked_table("collections").await;
}

#[tokio::test]
async fn a_batch_waits_for_a_locked_table_of_tombstones() {
    a_batch_waits_for_a_locked_table("destroyed_collections").await;
}

/// So many destroys wait for locked rows; more are refused. A caller's deadline ends its wait.
#[tokio::test]
async fn waiting_for_a_lock_has_limits() {
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    let rival = lock(&database, "id = 1").await;
    let short = outcome_of(&database.store, with_deadline(Duration::from_secs(1), destroy_of(1))).await;
    assert_eq!(short, Err(DestroyError::DeadlineExceeded));
    let more = LOCKED_CAPACITY + 40;
    let all = destroy_concurrently(
        &database.store,
        (0..more).map(|_| with_deadline(Duration::from_secs(3), destroy_of(1))),
    );
    let outcomes = all.await;
    let refused = outcomes.iter().filter(|outcome| **outcome == Err(DestroyError::Overloaded)).count();
    assert!((39..=40).contains(&refused), "{refused}");
    rival.rollback().await.unwrap();
    assert_eq!(outcome_of(&database.store, destroy_of(1)).await, Ok(Destroyed::Now));
}
