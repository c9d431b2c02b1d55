//! Several services on one PostgreSQL database.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use collections_service::store::Capacity;
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, DbBackend, Statement, TransactionTrait};
use tonic::Code;

use super::{
    batches::{destroy_concurrently, destroy_of, tombstones},
    support::{BLOCKED, Backend, OWNER, TestDatabase, connect, destroy, program::Program, rpc, wait_for},
};

/// Batches of two replicas that hold the same rows, put together in opposite orders.
#[tokio::test]
async fn replicas_do_not_wait_for_each_other() {
    const IDS: i64 = 32;
    let database = TestDatabase::new(Backend::Postgres).await;
    let admin = database.connection().await;
    // Deadlocks are seen before a batch gives up waiting for a lock. A plan for tables known to be empty goes by the order of
    // the batch, not of the index; autovacuum would change it.
    for statement in [
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = 5', current_database()); END $$",
        "ALTER TABLE collections SET (autovacuum_enabled = off)",
        "VACUUM ANALYZE collections",
    ] {
        admin.execute_unprepared(statement).await.unwrap();
    }
    let connect = || connect(&database.url, Capacity::of(4), &database.clock);
    let stores = [connect().await, connect().await];
    for store in &stores {
        destroy_concurrently(store, (1..=10).map(destroy_of)).await;
    }
    let fill = format!(
        "INSERT INTO collections (id, owner_id, name, timeline_order, created_at)
         SELECT id, {OWNER}, '', '', now() FROM generate_series(1, {IDS}) AS id"
    );
    admin.execute_unprepared(&fill).await.unwrap();
    // Each has taken what comes before the middle when it meets the other.
    let middle = database.connection().await.begin().await.unwrap();
    let lock = format!("SELECT id FROM collections WHERE id = {} FOR UPDATE", IDS / 2);
    middle.execute_unprepared(&lock).await.unwrap();
    let meet = async {
        wait_for(&admin, &format!("{BLOCKED} OFFSET 1")).await;
        middle.rollback().await.unwrap();
    };
    let (upwards, downwards, ()) = tokio::join!(
        destroy_concurrently(&stores[0], (1..=IDS).map(destroy_of)),
        destroy_concurrently(&stores[1], (1..=IDS).rev().map(destroy_of)),
        meet
    );
    for (one, other) in upwards.iter().zip(downwards.iter().rev()) {
        assert!(one.is_ok() != other.is_ok(), "{one:?}, {other:?}");
    }
    for store in stores {
        store.close().await;
    }
    assert_eq!(deadlocks(&database).await, 0);
}

/// Once only the test's own sessions are left: a session reports its statistics when it ends, or much later.
async fn deadlocks(database: &TestDatabase) -> i64 {
    let admin = database.connection().await;
    let others =
        "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
        AND query LIKE 'SELECT destroy_collections%')";
    wait_for(&admin, others).await;
    let count = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let row = admin.query_one_raw(Statement::from_string(DbBackend::Postgres, count)).await;
    row.unwrap().unwrap().try_get("", "deadlocks").unwrap()
}

/// Two services on one database, whose callers want the same collections in different orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_a_database() {
    const IDS: i64 = 2000;
    let database = Arc::new(TestDatabase::new(Backend::Postgres).await);
    let admin = database.connection().await;
    let many = ["--worker-threads", "2", "--batches-in-flight", "2"];
    let programs = [Program::serve(&database, &[]).await, Program::serve(&database, &many).await];
    let fill = format!(
        "INSERT INTO collections (id, owner_id, name, timeline_order, created_at)
         SELECT id, {OWNER}, '', '', now() FROM generate_series(1, {IDS}) AS id"
    );
    admin.execute_unprepared(&fill).await.unwrap();
    let mut callers = Vec::new();
    for (program, backwards) in programs.iter().zip([false, true]) {
        let client = rpc(&program.grpc);
        let next = Arc::new(std::sync::atomic::AtomicI64::new(0));
        for _ in 0..64 {
            let (mut client, next) = (client.clone(), next.clone());
            callers.push(tokio::spawn(async move {
                let mut won = Vec::new();
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= IDS {
                        return won;
                    }
                    // The same ids at about the same time, in opposite orders.
                    let (block, place) = (turn / 50 * 50, turn % 50);
                    let id = block + if backwards { 50 - place } else { place + 1 };
                    match destroy(&mut client, OWNER, &format!("custom-{id}"), "").await {
                        Ok(_) => won.push(id),
                        Err(status) => assert_eq!(status.code(), Code::NotFound, "{status:?}"),
                    }
                }
            }));
        }
    }
    let mut won = Vec::new();
    for caller in callers {
        won.extend(caller.await.unwrap());
    }
    won.sort_unstable();
    assert_eq!(won, (1..=IDS).collect::<Vec<_>>());
    assert_eq!(tombstones(&database).await, IDS);
    for program in programs {
        program.signal(Signal::SIGTERM);
        assert!(program.ended(Duration::from_secs(30)).await.0.success());
    }
    assert_eq!(deadlocks(&database).await, 0);
}
