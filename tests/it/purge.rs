//! The entries of destroyed collections are erased, each once, and no others.

use collections_service::{
    domain::CollectionId,
    store::{Capacity, NewCollection, PurgeLimits, PurgeWait, Purged, Purger},
};
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement};

use super::{
    batches::{destroy_concurrently, destroy_with_request_id},
    destroy::on_both,
    support::{
        Backend, CONNECTIONS, OWNER, TestDatabase, connect, destroy,
        program::{Program, command, run},
        rpc, user, wait_for, wait_until,
    },
};

on_both!(
    entries_of_destroyed_collections_are_erased,
    a_large_collection_is_erased_in_chunks,
    nothing_is_erased_for_an_id_that_is_not_destroyed,
    purgers_share_the_queue,
    once_erases_everything,
    a_service_erases_what_it_destroys,
);

/// Puts a collection in that has so many entries.
pub async fn put_with_entries(database: &TestDatabase, number: i64, entries: i64) {
    let id = CollectionId::new(number).unwrap();
    let new = NewCollection {
        id,
        owner: user(OWNER),
        name: format!("collection {number}"),
        entries: (1..=entries).collect(),
    };
    assert!(database.store.insert_collection(new).await.unwrap());
}

/// The number in the first row.
pub async fn count(connection: &DatabaseConnection, from: &str) -> i64 {
    let query = format!("SELECT count(*) AS number FROM {from}");
    let query = Statement::from_string(connection.get_database_backend(), query);
    connection.query_one_raw(query).await.unwrap().unwrap().try_get("", "number").unwrap()
}

/// Waits until a service has purged everything that was destroyed.
pub async fn wait_until_purged(connection: &DatabaseConnection) {
    wait_until("the purge queue is empty", async || count(connection, "purge_queue").await == 0).await;
}

/// Steps until the end of the queue.
async fn pass(purger: &mut Purger) -> Purged {
    let mut total = Purged::default();
    while !total.is_pass_complete {
        let purged = purger.step().await.unwrap();
        total.entries += purged.entries;
        total.collections += purged.collections;
        total.is_pass_complete = purged.is_pass_complete;
        total.locked += purged.locked;
        total.wait = total.wait.or(purged.wait);
    }
    total
}

const fn complete(entries: u64, collections: u64) -> Purged {
    Purged { entries, collections, locked: 0, is_pass_complete: true, wait: None }
}

mod cases {
    use super::*;

    pub async fn entries_of_destroyed_collections_are_erased(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        for id in 1..=40 {
            put_with_entries(&database, id, id % 4).await;
        }
        let connection = database.connection().await;
        let before = count(&connection, "collection_entries WHERE collection_id > 20").await;
        let erased = count(&connection, "collection_entries WHERE collection_id <= 20").await;
        destroy_concurrently(&database.store, (1..=20).map(|id| destroy_with_request_id(id, 0))).await;
        let purged = pass(&mut database.store.purger(PurgeLimits::once(7))).await;
        assert_eq!(purged, complete(erased.cast_unsigned(), 20));
        assert_eq!(count(&connection, "purge_queue").await, 0);
        assert_eq!(count(&connection, "destroyed_collections").await, 20);
        assert_eq!(count(&connection, "collection_entries WHERE collection_id <= 20").await, 0);
        assert_eq!(count(&connection, "collection_entries").await, before);
    }

    pub async fn a_large_collection_is_erased_in_chunks(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        for (id, entries) in [(1, 3), (2, 95), (3, 10), (4, 0)] {
            put_with_entries(&database, id, entries).await;
        }
        destroy_concurrently(&database.store, (1..=4).map(|id| destroy_with_request_id(id, 0))).await;
        let mut purger = database.store.purger(PurgeLimits::once(10));
        let mut total = Purged::default();
        loop {
            let purged = purger.step().await.unwrap();
            assert!(purged.entries <= 10, "{purged:?}");
            total.entries += purged.entries;
            total.collections += purged.collections;
            if purged.is_pass_complete {
                break;
            }
        }
        assert_eq!((total.entries, total.collections), (108, 4));
        assert_eq!(count(&database.connection().await, "collection_entries").await, 0);
    }

    pub async fn nothing_is_erased_for_an_id_that_is_not_destroyed(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        for id in 1..=6 {
            put_with_entries(&database, id, 2).await;
        }
        let connection = database.connection().await;
        // 1 and 2 are live, and are queued before what is destroyed. 3 is put back after its destroy.
        for id in [1, 2] {
            let queued =
                format!("INSERT INTO purge_queue (id, since) VALUES ({id}, '2020-01-01 00:00:00+00:00')");
            connection.execute_unprepared(&queued).await.unwrap();
        }
        destroy_concurrently(&database.store, (3..=5).map(|id| destroy_with_request_id(id, 0))).await;
        let put_back = format!(
            "INSERT INTO collections (id, owner_id, name, timeline_order, created_at) \
             VALUES (3, {OWNER}, '', '', CURRENT_TIMESTAMP)"
        );
        connection.execute_unprepared(&put_back).await.unwrap();
        // One collection in each step: those that are skipped do not stop it.
        let mut purger = database.store.purger(PurgeLimits::once(1));
        assert_eq!(pass(&mut purger).await, complete(4, 2));
        assert_eq!(pass(&mut purger).await, complete(0, 0));
        assert_eq!(count(&connection, "purge_queue WHERE id IN (1, 2, 3)").await, 3);
        assert_eq!(count(&connection, "purge_queue").await, 3);
        assert_eq!(count(&connection, "collection_entries WHERE collection_id IN (1, 2, 3, 6)").await, 8);
        let backlog = database.store.purge_backlog(None).await.unwrap();
        assert_eq!((backlog.purgeable, backlog.blocked), (0, 3));
    }

    /// Each over a connection of its own, as in several replicas.
    pub async fn purgers_share_the_queue(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        for id in 1..=60 {
            put_with_entries(&database, id, if id == 1 { 300 } else { 5 }).await;
        }
        destroy_concurrently(&database.store, (1..=60).map(|id| destroy_with_request_id(id, 0))).await;
        let purgers = (0..4).map(|number| {
            let (url, clock) = (database.url.clone(), database.clock.clone());
            tokio::spawn(async move {
                let store = connect(&url, Capacity::of(CONNECTIONS), &clock).await;
                let mut purger = store.purger(PurgeLimits::once(10 + number));
                let mut erased = Purged::default();
                // Rows that another one has locked are found with the next pass.
                while store.purge_backlog(None).await.unwrap().purgeable > 0 {
                    let purged = purger.step().await.unwrap();
                    erased.entries += purged.entries;
                    erased.collections += purged.collections;
                }
                erased
            })
        });
        let mut total = (0, 0);
        for purger in purgers.collect::<Vec<_>>() {
            let erased = purger.await.unwrap();
            total = (total.0 + erased.entries, total.1 + erased.collections);
        }
        assert_eq!(total, (300 + 59 * 5, 60));
        assert_eq!(count(&database.connection().await, "collection_entries").await, 0);
    }

    pub async fn once_erases_everything(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let once = async || run(&["purge", "--once"], &[("COLLECTIONS_DATABASE_URL", &database.url)]).await;
        assert_eq!(once().await.1, "erased 0 entries of 0 collections; the purge is complete\n");
        for id in 1..=30 {
            put_with_entries(&database, id, 4).await;
        }
        destroy_concurrently(&database.store, (1..=29).map(|id| destroy_with_request_id(id, 0))).await;
        let (code, output, _) = once().await;
        assert_eq!(
            (code, output.as_str()),
            (0, "erased 116 entries of 29 collections; the purge is complete\n")
        );
        let connection = database.connection().await;
        assert_eq!(count(&connection, "collection_entries").await, 4);
        let queued = "INSERT INTO purge_queue (id, since) VALUES (30, CURRENT_TIMESTAMP)";
        connection.execute_unprepared(queued).await.unwrap();
        let (code, _, error) = once().await;
        assert_eq!(code, 1);
        assert!(error.contains("rows of the purge queue that are live or have no tombstone: 1;"), "{error}");
        assert_eq!(count(&connection, "collection_entries").await, 4);
        assert_eq!(run(&["purge"], &[("COLLECTIONS_DATABASE_URL", &database.url)]).await.0, 2);
    }

    pub async fn a_service_erases_what_it_destroys(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        for id in 1..=20 {
            put_with_entries(&database, id, 3).await;
        }
        let without = Program::serve(&database, &["--purge", "off"]).await;
        destroy(&mut rpc(&without.grpc), OWNER, "custom-1", "").await.unwrap();
        without.signal(Signal::SIGTERM);
        without.ended(std::time::Duration::from_secs(25)).await;
        let connection = database.connection().await;
        assert_eq!(count(&connection, "purge_queue").await, 1);
        assert_eq!(count(&connection, "collection_entries").await, 60);

        let program = Program::serve(&database, &["--purge-batch", "2", "--purge-pause", "1"]).await;
        for id in 2..=10 {
            destroy(&mut rpc(&program.grpc), OWNER, &format!("custom-{id}"), "").await.unwrap();
        }
        wait_until_purged(&connection).await;
        assert_eq!(count(&connection, "collection_entries").await, 30);
        program.signal(Signal::SIGTERM);
        let (status, log) = program.ended(std::time::Duration::from_secs(25)).await;
        assert!(status.success(), "{log:?}");
        assert!(!log.iter().any(|line| line.contains("\"message\":\"purge")), "{log:?}");
    }
}

/// The service's role may not erase: that is logged once, and destroys go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_without_grants_is_logged_once() {
    let mut database = TestDatabase::new(Backend::Postgres).await;
    put_with_entries(&database, 1, 3).await;
    let role = format!("r{}", collections_service::domain::Entropy::default().hex::<8>());
    let grants = format!(
        "CREATE ROLE {role} LOGIN; GRANT EXECUTE ON FUNCTION destroy_collections_v1 TO {role};
         GRANT SELECT ON oauth_applications, oauth_access_tokens, seaql_migrations TO {role}"
    );
    database.connection().await.execute_unprepared(&grants).await.unwrap();
    let admin_url = database.url.clone();
    database.url = database.url.replace("//tests@", &format!("//{role}@"));
    let program = Program::serve(&database, &[]).await;
    destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap();
    // It fails again and again.
    let admin = Database::connect(admin_url).await.unwrap();
    wait_for(
        &admin,
        "SELECT 1 FROM pg_stat_database WHERE datname = current_database() AND xact_rollback > 2",
    )
    .await;
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(std::time::Duration::from_secs(25)).await;
    let failed: Vec<_> = log.iter().filter(|line| line.contains("purge failed")).collect();
    assert_eq!(failed.len(), 1, "{log:?}");
    assert!(failed[0].contains("permission denied for table purge_queue"), "{failed:?}");
}

/// Rows stay in the queue while the file may not be rewritten, and the entries of newer ones are erased all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_the_queue_while_the_file_may_not_be_rewritten() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    for id in 1..=3 {
        put_with_entries(&database, id, 4).await;
    }
    let connection = database.connection().await;
    let waiting = |wait, entries| Purged { wait: Some(wait), ..complete(entries, 0) };

    destroy_concurrently(&database.store, [destroy_with_request_id(1, 0)]).await;
    let mut limited = database.store.purger(PurgeLimits { vacuum_limit: 0, ..PurgeLimits::background(10) });
    assert_eq!(pass(&mut limited).await, waiting(PurgeWait::TooLarge, 4));
    destroy_concurrently(&database.store, [destroy_with_request_id(2, 0)]).await;
    assert_eq!(pass(&mut limited).await, waiting(PurgeWait::TooLarge, 4));
    assert_eq!(count(&connection, "purge_queue").await, 2);

    let mut paused =
        database.store.purger(PurgeLimits { vacuum_pause_factor: u32::MAX, ..PurgeLimits::background(10) });
    assert_eq!(pass(&mut paused).await, complete(0, 2));
    destroy_concurrently(&database.store, [destroy_with_request_id(3, 0)]).await;
    assert_eq!(pass(&mut paused).await, waiting(PurgeWait::Interval, 4));
    assert_eq!(pass(&mut paused).await, waiting(PurgeWait::Interval, 0));
    assert_eq!(count(&connection, "purge_queue").await, 1);
    assert_eq!(pass(&mut database.store.purger(PurgeLimits::once(10))).await, complete(0, 1));
}

/// A reader in another process keeps the write-ahead log, and with it what was erased: the queue keeps the row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_the_queue_while_the_log_is_held() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    put_with_entries(&database, 1, 3).await;
    let reader = database.connection().await;
    // One connection, so that the transaction and its snapshot stay open.
    let reading = sea_orm::TransactionTrait::begin(&reader).await.unwrap();
    let read = Statement::from_string(reading.get_database_backend(), "SELECT * FROM collection_entries");
    assert_eq!(reading.query_all_raw(read).await.unwrap().len(), 3);
    destroy_concurrently(&database.store, [destroy_with_request_id(1, 0)]).await;
    let mut purger = database.store.purger(PurgeLimits::once(10));
    let held = pass(&mut purger).await;
    assert_eq!(held, Purged { wait: Some(PurgeWait::Busy), ..complete(3, 0) });
    let connection = database.connection().await;
    assert_eq!(count(&connection, "purge_queue").await, 1);
    reading.rollback().await.unwrap();
    assert_eq!(pass(&mut purger).await, complete(0, 1));
    assert_eq!(count(&connection, "purge_queue").await, 0);
}

/// Of many collections one has a locked entry, and one an entry that cannot be deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_cannot_be_erased_stops_no_other() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=20 {
        put_with_entries(&database, id, 3).await;
    }
    destroy_concurrently(&database.store, (1..=20).map(|id| destroy_with_request_id(id, 0))).await;
    let connection = database.connection().await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF old.collection_id = 7 THEN RAISE EXCEPTION 'refused' USING ERRCODE = 'data_corrupted'; END IF; RETURN old;
        END $$;
        CREATE TRIGGER refuse BEFORE DELETE ON collection_entries FOR EACH ROW EXECUTE FUNCTION refuse()";
    connection.execute_unprepared(refuse).await.unwrap();
    let locking = sea_orm::TransactionTrait::begin(&database.connection().await).await.unwrap();
    let lock = "SELECT 1 FROM collection_entries WHERE collection_id = 3 AND tweet_id = 2 FOR SHARE";
    locking.execute_unprepared(lock).await.unwrap();

    let mut purger = database.store.purger(PurgeLimits::once(100));
    let (mut collections, mut locked, mut errors) = (0, 0, Vec::new());
    loop {
        match purger.step().await {
            Ok(purged) => {
                collections += purged.collections;
                locked += purged.locked;
                if purged.is_pass_complete {
                    break;
                }
            }
            Err(error) => {
                errors.push(error.to_string());
                assert!(errors.len() < 10, "{errors:?}");
            }
        }
    }
    assert_eq!((collections, locked), (18, 1));
    assert_eq!(errors, ["custom-7: the database failed: refused (code XX001)"]);
    locking.rollback().await.unwrap();
    connection.execute_unprepared("DROP TRIGGER refuse ON collection_entries").await.unwrap();
    assert_eq!(pass(&mut purger).await, complete(6, 2));
}

/// Two services and a command, of which one is killed in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_and_a_command_erase_each_entry_once() {
    const COLLECTIONS: i64 = 2_000;
    const LARGE: i64 = 20_000;
    let database = TestDatabase::new(Backend::Postgres).await;
    let connection = database.connection().await;
    let insert = format!(
        "INSERT INTO destroyed_collections (id, owner_id, destroyed_at) SELECT id, 1, now() FROM generate_series(1, {COLLECTIONS}) AS id;
         INSERT INTO purge_queue (id, since) SELECT id, destroyed_at + id * interval '1 millisecond' FROM destroyed_collections;
         INSERT INTO collection_entries (collection_id, tweet_id, sort_index, added_at)
           SELECT id, n, n, now() FROM destroyed_collections, generate_series(1, CASE id WHEN 10 THEN {LARGE} ELSE 5 END) AS n;"
    );
    connection.execute_unprepared(&insert).await.unwrap();
    let total = count(&connection, "collection_entries").await;
    let flags = ["--purge-batch", "20", "--purge-pause", "0"];
    let name = database.url.rsplit('/').next().unwrap();
    let strict = format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'");
    connection.execute_unprepared(&strict).await.unwrap();
    let killed = Program::serve(&database, &flags).await;
    let other = Program::serve(&database, &flags).await;
    let arguments = [&["purge", "--once"], &flags[..]].concat();
    let once = command(&arguments).env("COLLECTIONS_DATABASE_URL", &database.url).output();
    let once = tokio::spawn(once);
    let begun = format!("SELECT 1 FROM purge_queue HAVING count(*) < {}", COLLECTIONS * 3 / 4);
    wait_for(&connection, &begun).await;
    killed.signal(Signal::SIGKILL);
    let output =
        tokio::time::timeout(std::time::Duration::from_secs(60), once).await.unwrap().unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(count(&connection, "purge_queue").await, 0);
    assert_eq!(count(&connection, "collection_entries").await, 0);
    other.signal(Signal::SIGTERM);
    let (_, log) = other.ended(std::time::Duration::from_secs(25)).await;
    assert!(!log.iter().any(|line| line.contains("purge failed")), "{log:?}");
    // The statistics of a session arrive when it ends. What the killed one had begun may have been rolled back.
    let counted = format!(
        "SELECT 1 FROM pg_stat_user_tables WHERE relname = 'collection_entries' AND n_tup_del >= {total}"
    );
    wait_for(&connection, &counted).await;
    let statistics = Statement::from_string(
        connection.get_database_backend(),
        "SELECT n_tup_del AS deleted, deadlocks FROM pg_stat_user_tables, pg_stat_database
         WHERE relname = 'collection_entries' AND datname = current_database()",
    );
    let statistics = connection.query_one_raw(statistics).await.unwrap().unwrap();
    let deleted: i64 = statistics.try_get("", "deleted").unwrap();
    assert!((total..=total + 20).contains(&deleted), "{deleted} rows deleted for {total} entries");
    assert_eq!(statistics.try_get::<i64>("", "deadlocks").unwrap(), 0);
}
