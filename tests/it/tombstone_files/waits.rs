//! Batches of `tombstones apply` that wait for other transactions, or are run again.

use super::*;

/// A destroy of the same collection is in flight, and another transaction holds a row for longer than a batch waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_for_locked_rows() {
    let database = TestDatabase::new(Backend::Postgres).await;
    put_many(&database, 1..=3).await;
    let file = write(&database, &complete(&(1..=3).map(line).collect::<String>()));
    let held = database.connection().await.begin().await.unwrap();
    held.execute_unprepared("SELECT 1 FROM collections WHERE id = 2 FOR UPDATE").await.unwrap();
    let child = applying(&database, &file);
    let watcher = database.connection().await;
    let first =
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait_for(&watcher, first).await;
    // Its first wait has ended when it is seen between two of them.
    wait_for(&watcher, &format!("SELECT 1 WHERE NOT EXISTS ({first})")).await;
    wait_for(&watcher, first).await;
    held.rollback().await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), summary(3, 0, 0, 3));
}

/// An id that is inserted while its missing tombstone is applied: whichever is first, it is not live in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insert_and_an_application_wait_for_each_other() {
    const KEY: i64 = 8_390_044_900_425_756_526;
    let database = TestDatabase::new(Backend::Postgres).await;
    let watcher = database.connection().await;
    let inserting = database.connection().await.begin().await.unwrap();
    inserting.execute_unprepared(&format!("SELECT pg_advisory_xact_lock_shared({KEY})")).await.unwrap();
    let row = format!("INSERT INTO collections VALUES (1, {OWNER}, '', NULL, NULL, '', now())");
    inserting.execute_unprepared(&row).await.unwrap();
    let child = applying(&database, &write(&database, &complete(&line(1))));
    wait_for(&watcher, BLOCKED).await;
    inserting.commit().await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), summary(1, 0, 0, 1));

    let applying = database.connection().await.begin().await.unwrap();
    applying.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({KEY})")).await.unwrap();
    let tombstone = format!("INSERT INTO destroyed_collections VALUES (2, {OWNER}, now(), NULL, NULL)");
    applying.execute_unprepared(&tombstone).await.unwrap();
    let store = database.store.clone();
    let inserted = tokio::spawn(async move { store.insert_collection(empty(2)).await.unwrap() });
    wait_for(&watcher, BLOCKED).await;
    applying.commit().await.unwrap();
    assert!(!inserted.await.unwrap());
    assert_eq!(database.owned_by(OWNER).await, [] as [i64; 0]);
}

/// Errors of a pooler that has moved the connection, and of a conflict: each once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_run_again_after_a_temporary_failure() {
    let database = TestDatabase::new(Backend::Postgres).await;
    put_many(&database, 1..=3).await;
    // A sequence counts on when a transaction is rolled back.
    let fails = "CREATE SEQUENCE tries; GRANT USAGE ON SEQUENCE tries TO PUBLIC;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE codes text[] := ARRAY['26000', '42P05', '40001']; number bigint := nextval('public.tries');
        BEGIN
          IF number <= 3 THEN RAISE EXCEPTION 'try %', number USING ERRCODE = codes[number]; END IF;
          RETURN new;
        END $$;
        CREATE TRIGGER fail BEFORE INSERT ON destroyed_collections FOR EACH STATEMENT EXECUTE FUNCTION fail()";
    execute(&database, fails).await;
    let file = write(&database, &complete(&(1..=3).map(line).collect::<String>()));
    assert_eq!(apply(&database, &file).await, (0, summary(3, 0, 0, 3), String::new()));
}
