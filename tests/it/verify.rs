//! `verify` and `inspect`: what is written against the rules is found and repaired, and nothing else is.

mod inspect;
mod load;
mod orphans;
mod steps;

use collections_service::store::PurgeLimits;
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use serde_json::{Value, json};

use super::{
    batches::{destroy_of, destroy_with_request_id},
    destroy::on_both,
    support::{Backend, OWNER, TestDatabase, program::run},
};

on_both!(
    a_database_that_follows_the_rules_has_no_findings,
    every_kind_is_found_and_named,
    fix_repairs_only_the_documented_findings,
    a_fix_of_everything_exits_with_0,
);

/// Runs the command with these arguments.
async fn operate(database: &TestDatabase, arguments: &[&str]) -> (i32, String, String) {
    run(arguments, &[("COLLECTIONS_DATABASE_URL", &database.url)]).await
}

/// `verify --json`, with more arguments: exit code, object.
async fn verify(database: &TestDatabase, more: &[&str]) -> (i32, Value) {
    let (code, output, errors) = operate(database, &[&["verify", "--json"], more].concat()).await;
    let parsed = serde_json::from_str(&output);
    (code, parsed.unwrap_or_else(|error| panic!("{error}: {output}{errors}")))
}

/// The ids of each kind that has any, in the order of the report.
fn ids(object: &Value) -> Vec<(&str, Vec<&str>)> {
    let findings = object["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 5);
    let of = |finding: &Value| finding["found"] != 0;
    findings
        .iter()
        .filter(|finding| of(finding))
        .map(|finding| {
            let ids = finding["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap());
            (finding["kind"].as_str().unwrap(), ids.collect())
        })
        .collect()
}

async fn execute(connection: &DatabaseConnection, statements: &[&str]) {
    for statement in statements {
        connection.execute_unprepared(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

async fn number(connection: &DatabaseConnection, query: &str) -> i64 {
    let statement = Statement::from_string(connection.get_database_backend(), query);
    connection.query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap()
}

/// Purges until nothing is left that can be purged.
async fn purge(database: &TestDatabase) {
    let mut purger = database.store.purger(PurgeLimits::once(100));
    while database.store.purge_backlog(None).await.unwrap().purgeable > 0 {
        purger.step().await.unwrap();
    }
}

/// Rows of each kind that only a hand can write; 1 and 7 are live, 2 and 4 destroyed and purged.
async fn database_with_findings(backend: Backend) -> TestDatabase {
    let database = TestDatabase::new(backend).await;
    let admin = database.connection().await;
    for id in [1, 2, 4, 7] {
        database.put(id, OWNER).await;
    }
    for id in [2, 4] {
        database.store.destroy(destroy_with_request_id(id, 0)).await.unwrap();
    }
    purge(&database).await;
    let entry = "INSERT INTO collection_entries (collection_id, tweet_id, sort_index, added_at) VALUES";
    let row = "INSERT INTO collections (id, owner_id, name, timeline_order, created_at) VALUES";
    let queue = "INSERT INTO purge_queue (id, since) VALUES";
    let outbox = "INSERT INTO event_outbox (id, since) VALUES";
    execute(
        &admin,
        &[
            &format!("{entry} (2, 9, 1, CURRENT_TIMESTAMP), (3, 8, 1, CURRENT_TIMESTAMP)"),
            &format!("{entry} (3, 9, 1, CURRENT_TIMESTAMP), (8, 9, 1, CURRENT_TIMESTAMP)"),
            &format!("{row} (4, {OWNER}, '', '', CURRENT_TIMESTAMP)"),
            &format!("{queue} (5, CURRENT_TIMESTAMP), (7, CURRENT_TIMESTAMP), (8, CURRENT_TIMESTAMP)"),
            &format!("{outbox} (6, CURRENT_TIMESTAMP)"),
        ],
    )
    .await;
    database
}

/// What each of those rows is found as.
fn expected_findings() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("orphan_entries", vec!["custom-3", "custom-8"]),
        ("purged_with_entries", vec!["custom-2"]),
        ("live_and_destroyed", vec!["custom-4"]),
        ("purge_without_tombstone", vec!["custom-5", "custom-7", "custom-8"]),
        ("event_without_tombstone", vec!["custom-6"]),
    ]
}

mod cases {
    use super::*;

    pub async fn a_database_that_follows_the_rules_has_no_findings(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let (code, output, errors) = operate(&database, &["verify"]).await;
        let checked = "checked 0 entries under 0 ids, 0 tombstones, 0 rows of queues: nothing found\n";
        assert_eq!((code, output.as_str(), errors.as_str()), (0, checked, ""));
        for id in 1..=5 {
            database.put(id, OWNER).await;
        }
        database.store.destroy(destroy_of(3)).await.unwrap();
        purge(&database).await;
        database.store.destroy(destroy_of(2)).await.unwrap();
        let (code, output, errors) = operate(&database, &["verify"]).await;
        let checked = "oldest row of the purge queue: 2026-11-23T19:18:20+00:00\n\
                       checked 8 entries under 4 ids, 2 tombstones, 1 row of queues: nothing found\n";
        assert_eq!((code, output.as_str(), errors.as_str()), (0, checked, ""));
        let (code, object) = verify(&database, &["--fix"]).await;
        assert_eq!(code, 0);
        let checked = json!({
            "collections_with_entries": 4, "entries": 8, "tombstones": 2, "purge_queue": 1, "event_outbox": 0
        });
        assert_eq!(object["checked"], checked);
        assert_eq!((&object["found"], &object["fixed"]), (&json!(0), &json!(0)));
        assert_eq!(object["purge_queue_oldest"], "2026-11-23T19:18:20+00:00");
        assert_eq!(ids(&object), []);
        purge(&database).await;
        assert_eq!(verify(&database, &[]).await.1["purge_queue_oldest"], Value::Null);
    }

    pub async fn every_kind_is_found_and_named(backend: Backend) {
        let database = database_with_findings(backend).await;
        for _ in 0..2 {
            // Without --fix nothing changes.
            let (code, object) = verify(&database, &[]).await;
            assert_eq!(code, 1);
            assert_eq!(ids(&object), expected_findings());
            assert_eq!((&object["found"], &object["fixed"]), (&json!(8), &json!(0)));
            let (_, text, _) = operate(&database, &["verify"]).await;
            for finding in object["findings"].as_array().unwrap() {
                let advice = finding["advice"].as_str().unwrap();
                assert!(text.contains(&format!("\n  what to do: {advice}\n")), "{finding} {text}");
            }
        }
        let (code, output, errors) = operate(&database, &["verify"]).await;
        assert_eq!((code, errors.as_str()), (1, "error: 8 findings\n"));
        for (_, ids) in expected_findings() {
            assert!(ids.iter().all(|id| output.contains(&format!("\n  {id}\n"))), "{output}");
        }
        assert_eq!(output.matches("what to do: ").count(), 5, "{output}");
        let last = "checked 8 entries under 5 ids, 2 tombstones, 4 rows of queues: 8 findings";
        assert_eq!(output.lines().last(), Some(last));
    }

    pub async fn fix_repairs_only_the_documented_findings(backend: Backend) {
        let database = database_with_findings(backend).await;
        let (code, object) = verify(&database, &["--fix"]).await;
        assert_eq!(code, 1);
        assert_eq!(ids(&object), expected_findings());
        assert_eq!((&object["found"], &object["fixed"]), (&json!(8), &json!(7)));
        let (code, object) = verify(&database, &["--fix"]).await;
        assert_eq!((code, ids(&object)), (1, vec![("live_and_destroyed", vec!["custom-4"])]));
        let (_, _, errors) = operate(&database, &["verify", "--fix"]).await;
        assert_eq!(errors, "error: 1 finding, 0 fixed\n");
        let admin = database.connection().await;
        for (query, expected) in [
            ("SELECT count(*) FROM collection_entries WHERE collection_id IN (1, 7)", 4),
            ("SELECT count(*) FROM collection_entries", 5),
            ("SELECT count(*) FROM collections WHERE id IN (1, 4, 7)", 3),
            ("SELECT count(*) FROM collections", 3),
            ("SELECT count(*) FROM destroyed_collections", 2),
            ("SELECT count(*) FROM purge_queue WHERE id = 2", 1),
            ("SELECT count(*) FROM purge_queue", 1),
            ("SELECT count(*) FROM event_outbox", 0),
        ] {
            assert_eq!(number(&admin, query).await, expected, "{query}");
        }
        database.store.destroy(destroy_with_request_id(4, 1)).await.unwrap();
        let (code, object) = verify(&database, &[]).await;
        assert_eq!((code, ids(&object)), (0, vec![]));
    }

    pub async fn a_fix_of_everything_exits_with_0(backend: Backend) {
        let database = database_with_findings(backend).await;
        execute(&database.connection().await, &["DELETE FROM collections WHERE id = 4"]).await;
        let (code, output, errors) = operate(&database, &["verify", "--fix"]).await;
        assert_eq!((code, errors.as_str()), (0, ""), "{output}");
        assert!(output.ends_with(": 7 findings, 7 fixed\n"), "{output}");
        assert_eq!(verify(&database, &[]).await.0, 0);
    }
}
