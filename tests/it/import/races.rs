//! Destroys and other imports at the same time.

use std::time::Duration;

use collections_service::{
    config,
    domain::CollectionId,
    store::{CollectionToImport, ImportError, ImportOutcome, ImportProgress},
};
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, TransactionTrait};

use super::{
    super::{
        destroy::on_both,
        support::{BLOCKED, Backend, OWNER, TestDatabase, operator::signal, user, wait_for},
    },
    Ended, ImportFixture, ended, line, summary,
};

on_both!(a_second_import_of_a_name_resumes_it, batches_on_sqlite_leave_time_for_other_writers);

fn collection(id: i64) -> CollectionToImport {
    CollectionToImport {
        id: CollectionId::new(id).unwrap(),
        owner: user(OWNER),
        name: String::new(),
        description: None,
        url: None,
        timeline_order: "tweet_chron",
        created_at: None,
        entries: Vec::new(),
    }
}

mod cases {
    use super::*;

    pub async fn a_second_import_of_a_name_resumes_it(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let step = |before: &ImportProgress, outcomes: &[ImportOutcome]| {
            assert_eq!(outcomes, [ImportOutcome::Imported]);
            Ok(ImportProgress { byte_offset: before.byte_offset + 10, line: before.line + 1, ..*before })
        };
        let mut first = database.store.begin_import("a", "head", false).await.unwrap();
        first.run(&[&collection(1)], step).await.unwrap();
        let mut second = database.store.begin_import("a", "head", true).await.unwrap();
        assert_eq!((second.progress().byte_offset, second.progress().line), (10, 1));
        let superseded = first.run(&[&collection(2)], step).await.unwrap_err();
        assert!(matches!(superseded, ImportError::Superseded), "{superseded}");
        let mut other = database.store.begin_import("b", "head", false).await.unwrap();
        other.run(&[&collection(4)], step).await.unwrap();
        second.run(&[&collection(3)], step).await.unwrap();
        assert_eq!(database.owned_by(OWNER).await, [1, 3, 4]);
        // The end of the first does not forget the progress of the second.
        first.finish().await.unwrap();
        let different = database.store.begin_import("a", "other head", true).await.unwrap_err();
        assert!(matches!(different, ImportError::OtherInput), "{different}");
        assert_eq!(database.store.begin_import("a", "head", true).await.unwrap().progress().line, 2);
        // From the start.
        assert_eq!(database.store.begin_import("a", "other head", false).await.unwrap().progress().line, 0);
    }

    pub async fn batches_on_sqlite_leave_time_for_other_writers(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let import = database.store.begin_import("a", "head", false).await.unwrap();
        let pauses =
            [Duration::from_millis(40), Duration::from_secs(30)].map(|batch| import.pause_after(batch));
        let expected = match backend {
            Backend::Sqlite => [Duration::from_millis(40), config::import::LONGEST_SQLITE_PAUSE],
            Backend::Postgres => [Duration::ZERO; 2],
        };
        assert_eq!(pauses, expected);
    }
}

/// What another transaction does with `custom-5`, after it has inserted it and before it commits.
const DESTROY: &str = "SELECT destroy_collections_v1(5, '{5}', '{7}', now(), \
    '{00000000-0000-4000-8000-000000000005}', '{a}', false, false, '1s')";
const INSERT: &str = "INSERT INTO collections (id, owner_id, name, timeline_order, created_at) VALUES \
    (5, 7, 'number 5', 'curation_reverse_chron', '2026-01-02T03:04:05Z')";

/// An import that found nothing under the id, and whose insert waits for a transaction that has inserted it.
async fn import_during(then: Option<&str>) -> (ImportFixture, Ended) {
    let fixture = ImportFixture::new(Backend::Postgres).await;
    fixture.write("in", [line(4, 1), line(5, 0), line(6, 1)].concat());
    let admin = fixture.database.connection().await;
    let other = admin.begin().await.unwrap();
    other.execute_unprepared(INSERT).await.unwrap();
    let child = fixture.command(&["in"]).spawn().unwrap();
    wait_for(&fixture.database.connection().await, BLOCKED).await;
    match then {
        Some(statement) => {
            other.execute_unprepared(statement).await.unwrap();
            other.commit().await.unwrap();
        }
        None => other.rollback().await.unwrap(),
    }
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    (fixture, ended(output.unwrap().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroy_in_flight_wins_over_an_import() {
    let (fixture, (code, printed, _)) = import_during(Some(DESTROY)).await;
    assert_eq!((code, printed), (1, summary(2, 2, 0, 1)));
    let rejects = fixture.rejects("in.rejects.ndjson");
    assert_eq!((rejects[0].0, rejects[0].1.as_str()), (2, "the collection was destroyed"));
    assert_eq!(fixture.database.owned_by(7).await, [4, 6]);
    assert_eq!(fixture.entries().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_waits_for_an_insert_in_flight() {
    let (fixture, ended) = import_during(None).await;
    assert_eq!(ended, (0, summary(3, 2, 0, 0), String::new()));
    assert_eq!(fixture.database.owned_by(7).await, [4, 5, 6]);
    let (fixture, ended) = import_during(Some("SELECT 1")).await;
    assert_eq!(ended, (0, summary(2, 2, 1, 0), String::new()));
    assert_eq!(fixture.database.owned_by(7).await, [4, 5, 6]);
    let (fixture, ended) = import_during(Some("UPDATE collections SET name = 'x' WHERE id = 5")).await;
    assert_eq!((ended.0, ended.1), (1, summary(2, 2, 0, 1)));
    assert_eq!(fixture.rejects("in.rejects.ndjson")[0].1, "the collection exists and differs in: name");
}

/// An import of a collection whose destroy is not committed yet finds it, and writes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroy_of_an_existing_collection_stays_one() {
    let fixture = ImportFixture::new(Backend::Postgres).await;
    fixture.write("in", line(5, 2));
    assert_eq!(fixture.import(&["in"]).await.0, 0);
    let admin = fixture.database.connection().await;
    let destroying = admin.begin().await.unwrap();
    destroying.execute_unprepared(DESTROY).await.unwrap();
    assert_eq!(fixture.import(&["in"]).await, (0, summary(0, 0, 1, 0), String::new()));
    destroying.commit().await.unwrap();
    assert_eq!(fixture.import(&["in"]).await.1, summary(0, 0, 0, 1));
    assert_eq!(fixture.database.owned_by(7).await, [] as [i64; 0]);
}

/// Two imports of the same collections under different names: each collection once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_imports_of_the_same_collections_agree() {
    let fixture = ImportFixture::new(Backend::Postgres).await;
    let lines: Vec<_> = (1..=4000).map(|id| line(id, 3)).collect();
    fixture.write("up", lines.concat());
    fixture.write("down", lines.iter().rev().cloned().collect::<String>());
    let (up, down) = tokio::join!(fixture.import(&["up"]), fixture.import(&["down"]));
    assert_eq!((up.0, down.0), (0, 0), "{up:?} {down:?}");
    let imported = |ended: &Ended| -> u64 { ended.1.split(' ').nth(1).unwrap().parse().unwrap() };
    assert_eq!(imported(&up) + imported(&down), 4000, "{up:?} {down:?}");
    assert_eq!(fixture.collections().await.len(), 4000);
    assert_eq!(fixture.entries().await.len(), 12_000);
}

/// An import reads the facts about an id in several statements, and another import commits the id between them.
async fn import_next_to_another(arguments: &[&str]) -> Ended {
    let fixture = ImportFixture::new(Backend::Postgres).await;
    fixture.write("in", line(5, 1));
    let admin = fixture.database.connection().await;
    let other = admin.begin().await.unwrap();
    let entry = "INSERT INTO collection_entries (collection_id, tweet_id, sort_index, added_at) VALUES \
        (5, 1, 0, '2026-01-02T03:04:05Z'); LOCK TABLE collection_entries IN ACCESS EXCLUSIVE MODE";
    other.execute_unprepared(INSERT).await.unwrap();
    other.execute_unprepared(entry).await.unwrap();
    let child = fixture.command(arguments).spawn().unwrap();
    wait_for(&fixture.database.connection().await, BLOCKED).await;
    other.commit().await.unwrap();
    ended(child.wait_with_output().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_of_a_concurrent_import_is_not_an_orphan() {
    assert_eq!(import_next_to_another(&["in"]).await, (0, summary(0, 0, 1, 0), String::new()));
    let checked = summary(0, 0, 1, 0).replace("imported", "would import");
    assert_eq!(import_next_to_another(&["in", "--dry-run"]).await, (0, checked, String::new()));
}

/// SIGTERM ends an import that waits for a lock, in its first statement and in a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_an_import_that_waits_for_a_lock() {
    for (lock, expected) in [
        ("LOCK TABLE imports IN ACCESS EXCLUSIVE MODE", "error: stopped before the first batch; "),
        (INSERT, "error: stopped; after line 0: "),
    ] {
        let fixture = ImportFixture::new(Backend::Postgres).await;
        fixture.write("in", line(5, 1));
        let admin = fixture.database.connection().await;
        let other = admin.begin().await.unwrap();
        other.execute_unprepared(lock).await.unwrap();
        let child = fixture.command(&["in"]).spawn().unwrap();
        wait_for(&fixture.database.connection().await, BLOCKED).await;
        signal(&child, Signal::SIGTERM);
        let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
        let (code, printed, errors) = ended(output.expect("a signal is ignored").unwrap());
        assert_eq!((code, printed.as_str()), (1, ""), "{errors}");
        assert!(errors.starts_with(expected), "{errors}");
        other.rollback().await.unwrap();
        assert_eq!(fixture.import(&["in", "--resume"]).await, (0, summary(1, 1, 0, 0), String::new()));
    }
}
