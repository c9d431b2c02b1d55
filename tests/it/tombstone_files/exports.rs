//! `tombstones export`.

use std::fs;

use nix::sys::signal::Signal;

use super::*;
use crate::destroy::on_both;

on_both!(an_export_is_ordered_and_counted_and_hashed, an_export_with_other_tombstones_is_not_replaced);

mod cases {
    use super::*;

    pub async fn an_export_is_ordered_and_counted_and_hashed(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        assert_eq!(export(&database).await, complete(""));
        for id in [100, 9, 20] {
            database.put(id, if id == 20 { OTHER } else { OWNER }).await;
        }
        database.put(1, OWNER).await;
        let nameless = collections_service::store::Destroy { caller: None, ..destroy_with_request_id(9, 1) };
        let outcomes = destroy_concurrently(
            &database.store,
            [destroy_with_request_id(100, 0), nameless, destroy_by_other(20)],
        )
        .await;
        assert_eq!(outcomes, [Ok(Destroyed::Now); 3]);
        execute(
            &database,
            "UPDATE destroyed_collections SET destroyed_at = '2026-11-27T10:00:00.123456+00:00' WHERE id <> 9",
        )
        .await;
        execute(&database, "UPDATE destroyed_collections SET request_id = NULL WHERE id = 20").await;
        let exported = export(&database).await;
        let nine = format!(
            "{{\"id\":\"custom-9\",\"owner_id\":\"{OWNER}\",\"destroyed_at\":\"2026-11-23T19:18:20Z\",\
             \"request_id\":\"{}\",\"caller\":null}}\n",
            UUIDS[1]
        );
        let twenty = line(20)
            .replace(&OWNER.to_string(), &OTHER.to_string())
            .replace(&format!("\"{}\"", UUIDS[0]), "null");
        assert_eq!(exported, complete(&[nine, twenty, line(100)].concat()));

        let folder = database.folder.path().join("kept");
        fs::create_dir(&folder).unwrap();
        let file = folder.join("tombstones.ndjson");
        // Left by an older version, and readable by all users.
        let leftover = folder.join("tombstones.ndjson.partial");
        fs::write(&leftover, "x".repeat(10_000)).unwrap();
        fs::set_permissions(&leftover, fs::Permissions::from_mode(0o644)).unwrap();
        let (code, printed, errors) =
            tombstones_command(&database, &["export", "--output", path(&file)]).await;
        assert_eq!((code, errors.as_str()), (0, ""));
        assert_eq!(printed, format!("exported 3 tombstones to {}\n", file.display()));
        assert_eq!(fs::read_to_string(&file).unwrap(), exported);
        assert_eq!(mode(&file), 0o600);
        assert_eq!(fs::read_to_string(&leftover).unwrap(), "x".repeat(10_000));
        assert_eq!(files(&folder), [file, leftover]);
    }

    /// As after a restore: one tombstone is lost, and another one is new.
    pub async fn an_export_with_other_tombstones_is_not_replaced(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        for id in 1..=4 {
            database.put(id, OWNER).await;
        }
        let first =
            destroy_concurrently(&database.store, (1..=3).map(|id| destroy_with_request_id(id, 0))).await;
        assert_eq!(first, [Ok(Destroyed::Now); 3]);
        let folder = database.folder.path().join("kept");
        fs::create_dir(&folder).unwrap();
        let file = folder.join("tombstones.ndjson");
        let export_to = async |file: &Path, more: &[&str]| {
            tombstones_command(&database, &[&["export", "--output", path(file)], more].concat()).await
        };
        assert_eq!(export_to(&file, &[]).await.0, 0);
        let before = fs::read_to_string(&file).unwrap();
        execute(&database, "DELETE FROM destroyed_collections WHERE id = 2").await;
        assert_eq!(
            destroy_concurrently(&database.store, [destroy_with_request_id(4, 0)]).await,
            [Ok(Destroyed::Now)]
        );
        let (code, printed, errors) = export_to(&file, &[]).await;
        assert_eq!((code, printed.as_str()), (1, ""), "{errors}");
        assert!(errors.contains("1 of its tombstones") && errors.contains("--force"), "{errors}");
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
        assert_eq!(files(&folder), [file.as_path()]);

        let other = folder.join("other.ndjson");
        assert_eq!(export_to(&other, &[]).await.0, 0);
        let now = fs::read_to_string(&other).unwrap();
        assert_eq!(export(&database).await, now);
        assert_eq!(export_to(&file, &["--force"]).await.0, 0);
        assert_eq!(fs::read_to_string(&file).unwrap(), now);
        // What is not complete cannot be applied, and is replaced.
        for text in [cut(&before), "x\n", ""] {
            fs::write(&file, text).unwrap();
            assert_eq!(export_to(&file, &[]).await.0, 0, "{text}");
            assert_eq!(fs::read_to_string(&file).unwrap(), now);
        }
        assert_eq!(apply(&database, &write(&database, &before)).await.0, 0);
        assert_eq!(export_to(&file, &[]).await.0, 0);
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 5);
        assert_eq!(tombstones_command(&database, &["export", "--force"]).await.0, 2);
    }
}

/// An export that cannot be completed leaves the file of the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_fails_leaves_the_file_as_it_was() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    assert!(database.store.insert_collection(empty(1)).await.unwrap());
    assert_eq!(destroy_concurrently(&database.store, [destroy_of(1)]).await, [Ok(Destroyed::Now)]);
    let folder = database.folder.path().join("kept");
    fs::create_dir(&folder).unwrap();
    let file: PathBuf = folder.join("tombstones.ndjson");
    let export = async || tombstones_command(&database, &["export", "--output", path(&file)]).await;
    assert_eq!(export().await.0, 0);
    let before = fs::read_to_string(&file).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // A caller that no service writes: too long for a line of the file.
    execute(&database, &format!("UPDATE destroyed_collections SET caller = '{}'", "x".repeat(70_000))).await;
    let (code, _, errors) = export().await;
    assert!(
        code == 1 && errors.contains("the tombstone of custom-1 has a caller that is too long"),
        "{errors}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

/// Neither export writes to the file of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_to_one_file_may_overlap() {
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    assert_eq!(destroy_concurrently(&database.store, [destroy_of(1)]).await, [Ok(Destroyed::Now)]);
    let exported = export(&database).await;
    let folder = database.folder.path().join("kept");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("tombstones.ndjson");
    let held = database.connection().await.begin().await.unwrap();
    held.execute_unprepared("LOCK TABLE destroyed_collections").await.unwrap();
    let mut children = Vec::new();
    for count in 1..=2 {
        children.push(start(&database, &["export", "--output", path(&file)]));
        let blocked = format!("SELECT 1 FROM ({BLOCKED}) AS blocked HAVING count(*) = {count}");
        wait_for(&database.connection().await, &blocked).await;
        assert_eq!(files(&folder).len(), count);
    }
    let modes: Vec<_> = files(&folder).iter().map(|file| mode(file)).collect();
    assert_eq!(modes, [0o600; 2]);
    held.rollback().await.unwrap();
    for child in children {
        let output = child.wait_with_output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), exported);
    assert_eq!(files(&folder), [file]);
}

/// Ends at a signal while it waits, and deletes what it has written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_export_leaves_no_file() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let folder = database.folder.path().join("kept");
    fs::create_dir(&folder).unwrap();
    let held = database.connection().await.begin().await.unwrap();
    held.execute_unprepared("LOCK TABLE destroyed_collections").await.unwrap();
    let child = start(&database, &["export", "--output", path(&folder.join("tombstones.ndjson"))]);
    wait_for(&database.connection().await, BLOCKED).await;
    signal(&child, Signal::SIGTERM);
    let output = child.wait_with_output().await.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.starts_with("error: stopped after 0 tombstones"), "{errors}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(files(&folder), [] as [PathBuf; 0]);
    held.rollback().await.unwrap();
}
