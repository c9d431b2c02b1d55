//! Entries that other programs add by the documented statement, while their collection is destroyed.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use chrono::{DateTime, Utc};
use collections_service::{
    config,
    domain::{Clock, DestroyError},
    store::PurgeLimits,
};
use futures_util::future::join_all;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, IsolationLevel, Statement, TransactionTrait,
};
use tokio::time::sleep;

use super::{execute, number, purge, verify};
use crate::{
    batches::{destroy_of, outcome_of},
    destroy::on_both,
    support::{BLOCKED, Backend, OWNER, TestDatabase, user, wait_for},
};

on_both!(
    entries_written_by_the_documented_statement_leave_no_orphans,
    the_documented_statement_inserts_what_the_service_reads,
);

const DATABASE: &str = include_str!("../../../deploy/DATABASE.md");

/// How other programs add an entry, as deploy/DATABASE.md has it. The parameters are collection, post, place in the order.
fn documented_statement(backend: DbBackend) -> &'static str {
    let (_, section) = DATABASE.split_once("\n## Other writers\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let statements: Vec<_> =
        section.split("```sql\n").skip(1).map(|block| block.split_once("```").unwrap().0).collect();
    let [postgres, sqlite] = statements[..] else { panic!("{statements:?}") };
    if backend == DbBackend::Postgres { postgres } else { sqlite }
}

/// Returns the rows that were inserted.
async fn add_entry(connection: &impl ConnectionTrait, id: i64, tweet: i64) -> Result<u64, DbErr> {
    let backend = connection.get_database_backend();
    let values = [id.into(), tweet.into(), tweet.into()];
    let statement = Statement::from_sql_and_values(backend, documented_statement(backend), values);
    Ok(connection.execute_raw(statement).await?.rows_affected())
}

/// Adds entries until the collection is gone, every second one in a transaction of two. Returns how many were added.
async fn add_until_gone(connection: &DatabaseConnection, id: i64, first: i64, added: &AtomicI64) {
    for tweet in (first..).step_by(10) {
        let inserted = if tweet % 20 < 10 {
            add_entry(connection, id, tweet).await.unwrap()
        } else {
            let transaction = connection.begin().await.unwrap();
            let inserted = add_entry(&transaction, id, tweet).await.unwrap();
            tokio::task::yield_now().await;
            let more = add_entry(&transaction, id, tweet + 5).await.unwrap();
            transaction.commit().await.unwrap();
            assert_eq!(inserted, more, "the collection went within a transaction that has locked it");
            inserted
        };
        if inserted == 0 {
            return;
        }
        added.fetch_add(1, Ordering::Relaxed);
    }
}

/// A collection that is destroyed while two other sessions add entries to it.
async fn race(database: &TestDatabase, writers: &[DatabaseConnection; 2], id: i64, added: &AtomicI64) {
    // Not by the store, whose one connection to SQLite may be in use for too long.
    let insert = format!(
        "INSERT INTO collections (id, owner_id, name, timeline_order, created_at)
         VALUES ({id}, {OWNER}, '', '', CURRENT_TIMESTAMP)"
    );
    execute(&writers[0], &[&insert]).await;
    let own = AtomicI64::new(0);
    let destroyed = async {
        while own.load(Ordering::Relaxed) <= id % 4 {
            tokio::task::yield_now().await;
        }
        loop {
            match outcome_of(&database.store, destroy_of(id)).await {
                Ok(_) => break,
                // The row was locked for too long, again and again.
                Err(DestroyError::DeadlineExceeded | DestroyError::StoreUnavailable) => {}
                Err(error) => panic!("custom-{id}: {error:?}"),
            }
        }
    };
    let [first, second] = writers;
    tokio::join!(destroyed, add_until_gone(first, id, 100, &own), add_until_gone(second, id, 101, &own));
    added.fetch_add(own.into_inner(), Ordering::Relaxed);
}

/// Purges what is destroyed, as a service does, until the writers have ended. Returns how many entries were erased.
async fn purge_repeatedly(database: &TestDatabase, batch: u32, has_ended: &AtomicBool) -> u64 {
    let mut purger = database.store.purger(PurgeLimits::background(batch));
    let mut erased = 0;
    while !has_ended.load(Ordering::Acquire) {
        match purger.step().await {
            Ok(purged) => erased += purged.entries,
            Err(error) => panic!("{error}"),
        }
        // SQLite has one connection for this and the destroys.
        sleep(config::purge::PAUSE).await;
    }
    erased
}

mod cases {
    use super::*;

    pub async fn entries_written_by_the_documented_statement_leave_no_orphans(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let races = std::env::var("TEST_ORPHAN_RACES").map_or(300, |races| races.parse().unwrap());
        let (next, added, has_ended) = (AtomicI64::new(1), AtomicI64::new(0), AtomicBool::new(false));
        let worker = async || {
            let writers = [database.connection().await, database.connection().await];
            loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                if id > races {
                    return;
                }
                race(&database, &writers, id, &added).await;
            }
        };
        let racing = async {
            join_all((0..4).map(|_| worker())).await;
            has_ended.store(true, Ordering::Release);
        };
        // One erases a collection in several steps, the other several collections in one.
        let purging = [3, 50].map(|batch| purge_repeatedly(&database, batch, &has_ended));
        let ((), erased) = tokio::join!(racing, join_all(purging));
        let erased: u64 = erased.into_iter().sum();
        assert!(erased > 0, "nothing was purged next to the writers");
        purge(&database).await;
        let admin = database.connection().await;
        assert!(database.owned_by(OWNER).await.is_empty());
        assert_eq!(number(&admin, "SELECT count(*) FROM destroyed_collections").await, races);
        assert_eq!(number(&admin, "SELECT count(*) FROM collection_entries").await, 0);
        assert_eq!(number(&admin, "SELECT count(*) FROM purge_queue").await, 0);
        assert_eq!(verify(&database, &[]).await.0, 0);
        let added = added.into_inner();
        assert!(added > races, "{added} entries");
        eprintln!("{races} races, {added} additions, {erased} entries purged next to them");
    }

    /// Once, and nothing for an id without collection. The time is as the service writes it.
    pub async fn the_documented_statement_inserts_what_the_service_reads(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        database.put(1, OWNER).await;
        let admin = database.connection().await;
        for (id, tweet, expected) in [(1, 9, 1), (1, 9, 0), (1, 1, 0), (2, 9, 0)] {
            assert_eq!(add_entry(&admin, id, tweet).await, Ok(expected), "{id}, {tweet}");
        }
        let query = "SELECT added_at FROM collection_entries ORDER BY tweet_id";
        let query = Statement::from_string(admin.get_database_backend(), query);
        let rows = admin.query_all_raw(query).await.unwrap();
        let times: Vec<DateTime<Utc>> = rows.iter().map(|row| row.try_get("", "added_at").unwrap()).collect();
        assert_eq!(times.len(), 3);
        assert!((Clock::System.now() - times[2]).num_hours() == 0, "{times:?}");
        if let Backend::Sqlite = backend {
            let text: Vec<String> = rows.iter().map(|row| row.try_get("", "added_at").unwrap()).collect();
            let form = |text: &str| text.replace(|digit: char| digit.is_ascii_digit(), "0");
            let [of_service, of_statement] = [&text[0], &text[2]].map(|text| form(text));
            assert_eq!(of_statement.replace(".000", ""), of_service.replace(".000", ""));
        }
    }
}

/// A destroy that has deleted the row and not committed.
async fn destroy_in_flight(connection: &DatabaseConnection) -> sea_orm::DatabaseTransaction {
    let transaction = connection.begin().await.unwrap();
    let destroy = format!(
        "SELECT destroy_collections_v1(1, '{{1}}', '{{{OWNER}}}', now(), '{{00000000-0000-4000-8000-000000000000}}', \
         '{{x}}', false, false, '5s')"
    );
    transaction.execute_unprepared(&destroy).await.unwrap();
    transaction
}

/// The statement waits for a destroy in flight. Under READ COMMITTED it then inserts nothing, under the stricter levels it
/// fails with a serialization failure, and inserts nothing when it is run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_statement_waits_for_a_destroy_in_flight() {
    for level in [IsolationLevel::ReadCommitted, IsolationLevel::RepeatableRead, IsolationLevel::Serializable]
    {
        let database = TestDatabase::new(Backend::Postgres).await;
        database.put(1, OWNER).await;
        let destroyed = destroy_in_flight(&database.connection().await).await;
        let writer = database.connection().await;
        let adding = tokio::spawn(async move {
            let transaction = writer.begin_with_config(Some(level), None).await.unwrap();
            let added = add_entry(&transaction, 1, 9).await;
            transaction.commit().await.unwrap();
            (added, add_entry(&writer, 1, 9).await)
        });
        wait_for(&database.connection().await, BLOCKED).await;
        destroyed.commit().await.unwrap();
        let (added, again) = adding.await.unwrap();
        if level == IsolationLevel::ReadCommitted {
            assert_eq!(added, Ok(0));
        } else {
            let error = added.unwrap_err().to_string();
            assert!(error.contains("could not serialize access"), "{level:?}: {error}");
        }
        assert_eq!(again, Ok(0));
        purge(&database).await;
        assert_eq!(verify(&database, &[]).await.0, 0);
    }
}

/// A destroy waits for the transaction that adds entries, and queues the collection with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroy_waits_for_entries_in_flight() {
    for level in [IsolationLevel::ReadCommitted, IsolationLevel::RepeatableRead, IsolationLevel::Serializable]
    {
        let database = TestDatabase::new(Backend::Postgres).await;
        database.put(1, OWNER).await;
        let writer = database.connection().await;
        let adding = writer.begin_with_config(Some(level), None).await.unwrap();
        assert_eq!(add_entry(&adding, 1, 9).await, Ok(1));
        let store = database.store.clone();
        let destroyed = tokio::spawn(async move { outcome_of(&store, destroy_of(1)).await });
        wait_for(&database.connection().await, BLOCKED).await;
        assert!(!destroyed.is_finished());
        adding.commit().await.unwrap();
        destroyed.await.unwrap().unwrap();
        let admin = database.connection().await;
        assert_eq!(number(&admin, "SELECT count(*) FROM collection_entries").await, 3);
        assert_eq!(number(&admin, "SELECT count(*) FROM purge_queue").await, 1);
        assert_eq!(verify(&database, &[]).await.0, 0);
        assert_eq!(database.store.collections_of(user(OWNER), 9).await.unwrap(), []);
    }
}
