//! `verify` over more rows than one step reads or repairs, stopped and run again.

use std::process::Stdio;

use collections_service::config;
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement, TransactionTrait};
use serde_json::json;

use super::{execute, ids, number, operate, verify};
use crate::{
    destroy::on_both,
    support::{BLOCKED, Backend, OWNER, TestDatabase, operator::signal, program::command, wait_for},
};

on_both!(
    collections_that_span_steps_are_counted_once,
    the_first_ids_of_many_are_named,
    keys_at_the_ends_of_their_range_are_read
);

/// Entries `1..=entries` under each of these ids.
async fn add_entries(connection: &DatabaseConnection, ids: &str, entries: i64) {
    let insert = format!(
        "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {entries})
         INSERT INTO collection_entries (collection_id, tweet_id, sort_index, added_at)
         SELECT id, n, n, CURRENT_TIMESTAMP FROM number, ({ids}) AS ids"
    );
    connection.execute_unprepared(&insert).await.unwrap();
}

mod cases {
    use super::*;

    pub async fn collections_that_span_steps_are_counted_once(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let admin = database.connection().await;
        let rows = config::verify::CHUNK_ROWS;
        database.put(1, OWNER).await;
        database.put(3, OWNER).await;
        // With the two entries of the first, the second's last entry is the last that the third step reads.
        add_entries(&admin, "SELECT 2 AS id", 3 * rows - 2).await;
        let (code, object) = verify(&database, &[]).await;
        assert_eq!((code, ids(&object)), (1, vec![("orphan_entries", vec!["custom-2"])]));
        let checked = &object["checked"];
        assert_eq!(
            (&checked["collections_with_entries"], &checked["entries"]),
            (&json!(3), &json!(3 * rows + 2))
        );
        let (code, object) = verify(&database, &["--fix"]).await;
        assert_eq!((code, &object["found"], &object["fixed"]), (0, &json!(1), &json!(1)));
        assert_eq!(number(&admin, "SELECT count(*) FROM collection_entries").await, 4);
        assert_eq!(database.owned_by(OWNER).await, [1, 3]);
    }

    pub async fn the_first_ids_of_many_are_named(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let admin = database.connection().await;
        let many = config::verify::CHUNK_ROWS + 1;
        for table in ["purge_queue", "event_outbox"] {
            let fill = format!(
                "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {many})
                 INSERT INTO {table} (id, since) SELECT n, CURRENT_TIMESTAMP FROM number"
            );
            execute(&admin, &[&fill]).await;
        }
        let numbers =
            "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 250)
            SELECT n AS id FROM number";
        add_entries(&admin, numbers, 9).await;
        let (code, object) = verify(&database, &[]).await;
        assert_eq!(code, 1);
        let first: Vec<_> = (1..=config::verify::NAMED).map(|id| format!("custom-{id}")).collect();
        let found = ids(&object);
        assert_eq!(
            found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            ["orphan_entries", "purge_without_tombstone", "event_without_tombstone"]
        );
        assert!(found.iter().all(|(_, ids)| *ids == first), "{found:?}");
        assert_eq!(object["found"], json!(2 * many + 250));
        let (_, output, _) = operate(&database, &["verify"]).await;
        assert_eq!(output.matches("\n  custom-").count(), 3 * config::verify::NAMED);
        assert!(output.contains("\n  and 150 more\n"), "{output}");
        // So many of each are repaired by several transactions.
        execute(
            &admin,
            &["DELETE FROM purge_queue WHERE id > 250", "DELETE FROM event_outbox WHERE id > 250"],
        )
        .await;
        let (code, object) = verify(&database, &["--fix"]).await;
        assert_eq!((code, &object["fixed"]), (0, &json!(750)));
        assert_eq!(verify(&database, &[]).await.0, 0);
    }

    pub async fn keys_at_the_ends_of_their_range_are_read(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let admin = database.connection().await;
        let (least, most) = (i64::MIN, i64::MAX);
        for (id, tweet) in [(least, least), (least, most), (0, 0), (most, least), (most, most)] {
            let insert = format!(
                "INSERT INTO collection_entries (collection_id, tweet_id, sort_index, added_at)
                 VALUES ({id}, {tweet}, 1, CURRENT_TIMESTAMP)"
            );
            execute(&admin, &[&insert]).await;
        }
        // The last step reads as many rows as it may, up to the last key of all.
        add_entries(&admin, &format!("SELECT {most} AS id"), config::verify::CHUNK_ROWS - 5).await;
        // The first two are no ids that `inspect` takes.
        let named = [least.to_string(), "0".to_owned(), format!("custom-{most}")];
        let (code, object) = verify(&database, &["--fix"]).await;
        assert_eq!(
            (code, ids(&object)),
            (0, vec![("orphan_entries", named.iter().map(String::as_str).collect())])
        );
        assert_eq!(number(&admin, "SELECT count(*) FROM collection_entries").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_fix_is_run_again() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let admin = database.connection().await;
    execute(&admin, &["INSERT INTO purge_queue SELECT id, now() FROM generate_series(1, 150) AS id"]).await;
    let held = admin.begin().await.unwrap();
    let lock = "SELECT id FROM purge_queue WHERE id = 120 FOR UPDATE";
    held.query_one_raw(Statement::from_string(DbBackend::Postgres, lock)).await.unwrap().unwrap();
    let mut verify = command(&["verify", "--fix"]);
    verify.env("COLLECTIONS_DATABASE_URL", &database.url).stdout(Stdio::piped()).stderr(Stdio::piped());
    let verify = verify.spawn().unwrap();
    wait_for(&database.connection().await, BLOCKED).await;
    // The lock is still held: the command does not wait for it.
    signal(&verify, Signal::SIGTERM);
    let output = verify.wait_with_output().await.unwrap();
    held.rollback().await.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(1), vec![]), "{errors}");
    let expected = "error: stopped: checked 0 entries under 0 ids, 0 tombstones, 150 rows of queues: 150 findings so \
                    far, 100 fixed; repairs are kept; run verify again\n";
    assert_eq!(errors, expected);
    assert_eq!(operate(&database, &["verify", "--fix"]).await.0, 0);
}

/// An import that begins while orphan entries of its id are being deleted waits, and loses none of its entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_of_an_id_waits_for_the_deletion_of_its_orphans() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let admin = database.connection().await;
    add_entries(&admin, "SELECT 1 AS id", 2).await;
    let held = admin.begin().await.unwrap();
    let lock = "SELECT tweet_id FROM collection_entries WHERE tweet_id = 2 FOR UPDATE";
    held.query_one_raw(Statement::from_string(DbBackend::Postgres, lock)).await.unwrap().unwrap();
    let mut verify = command(&["verify", "--fix"]);
    let verify = verify.env("COLLECTIONS_DATABASE_URL", &database.url).stdout(Stdio::null()).spawn().unwrap();
    let watch = database.connection().await;
    wait_for(&watch, BLOCKED).await;
    // It keeps entries that are there already, such as the one that is still to be deleted.
    let import = tokio::spawn(async move {
        let import = admin.begin().await.unwrap();
        for statement in [
            &format!("INSERT INTO collections VALUES (1, {OWNER}, '', NULL, NULL, '', now())"),
            "INSERT INTO collection_entries VALUES (1, 2, 1, now()) ON CONFLICT DO NOTHING",
        ] {
            import.execute_unprepared(statement).await.unwrap();
        }
        import.commit().await.unwrap();
    });
    wait_for(&watch, &format!("{BLOCKED} OFFSET 1")).await;
    held.rollback().await.unwrap();
    assert!(verify.wait_with_output().await.unwrap().status.success());
    import.await.unwrap();
    assert_eq!(number(&watch, "SELECT count(*) FROM collection_entries").await, 1);
    assert_eq!(database.owned_by(OWNER).await, [1]);
}

/// A destroy in flight of a collection whose id is in the queue without tombstone leaves a queue row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_row_is_not_taken_from_a_destroy_in_flight() {
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    let admin = database.connection().await;
    execute(&admin, &["INSERT INTO purge_queue VALUES (1, now())"]).await;
    let held = admin.begin().await.unwrap();
    let destroy = format!(
        "SELECT destroy_collections_v1(1, '{{1}}', '{{{OWNER}}}', now(), '{{00000000-0000-4000-8000-000000000000}}', \
         '{{x}}', false, true, '5s')"
    );
    held.execute_unprepared(&destroy).await.unwrap();
    let mut verify = command(&["verify", "--fix"]);
    let verify = verify.env("COLLECTIONS_DATABASE_URL", &database.url).stdout(Stdio::null()).spawn().unwrap();
    wait_for(&database.connection().await, BLOCKED).await;
    held.commit().await.unwrap();
    verify.wait_with_output().await.unwrap();
    assert_eq!(number(&admin, "SELECT count(*) FROM purge_queue").await, 1);
    assert_eq!(super::verify(&database, &[]).await.0, 0);
}
