//! `tombstones export` and `tombstones apply` as an operator runs them: complete, cut, again, interrupted, and while the
//! service destroys.

mod exports;
mod waits;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use collections_service::{
    domain::{CollectionId, DestroyError, Destroyed},
    store::NewCollection,
};
use nix::sys::signal::Signal;
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait,
};
use sha2::{Digest, Sha256};
use tokio::process::Child;

use super::{
    batches::{
        UUIDS, destroy_by_other, destroy_concurrently, destroy_of, destroy_with_request_id, tombstones,
    },
    destroy::on_both,
    support::{
        BLOCKED, Backend, OTHER, OWNER, TestDatabase,
        operator::signal,
        program::{command, path, run},
        user, wait_for,
    },
};

on_both!(
    an_applied_file_restores_the_exported_tombstones,
    restored_collections_are_destroyed_again_and_retries_replay,
    ids_of_other_owners_are_left_alone,
    existing_tombstones_are_not_changed,
    entries_without_a_purge_are_queued,
    an_invalid_file_is_not_applied,
    concurrent_destroys_and_applications_destroy_once,
    a_stopped_application_is_run_again,
    a_killed_application_is_run_again,
);

/// Runs a `tombstones` command on this database.
async fn tombstones_command(database: &TestDatabase, arguments: &[&str]) -> (i32, String, String) {
    run(&[&["tombstones"], arguments].concat(), &[("COLLECTIONS_DATABASE_URL", &database.url)]).await
}

async fn apply(database: &TestDatabase, file: &str) -> (i32, String, String) {
    tombstones_command(database, &["apply", file]).await
}

async fn export(database: &TestDatabase) -> String {
    let (code, exported, errors) = tombstones_command(database, &["export"]).await;
    assert_eq!((code, errors.as_str()), (0, ""));
    exported
}

/// The line of the owner's tombstone, with a request.
fn line(id: i64) -> String {
    let request = UUIDS[0];
    format!(
        "{{\"id\":\"custom-{id}\",\"owner_id\":\"{OWNER}\",\"destroyed_at\":\"2026-11-27T10:00:00.123456Z\",\
         \"request_id\":\"{request}\",\"caller\":\"mtls:orders\"}}\n"
    )
}

/// Without its last bytes.
fn cut(text: &str) -> &str {
    text.get(..text.len() - 5).unwrap()
}

/// These lines with the last one that fits them.
fn complete(lines: &str) -> String {
    let hash: String = Sha256::digest(lines).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{lines}{{\"count\":{},\"sha256\":\"{hash}\"}}\n", lines.lines().count())
}

fn write(database: &TestDatabase, text: &str) -> String {
    let file = database.folder.path().join("tombstones.ndjson");
    fs::write(&file, text).unwrap();
    path(&file).to_owned()
}

/// Every row of a table, as a text that shows what is stored.
async fn rows(database: &TestDatabase, table: &str) -> Vec<String> {
    let admin = database.connection().await;
    let (is_sqlite, backend) = (database.url.starts_with("sqlite"), admin.get_database_backend());
    let query = match table {
        "destroyed_collections" if is_sqlite => {
            "id || ' ' || owner_id || ' ' || destroyed_at || ' ' || lower(hex(request_id)) || ' ' || coalesce(caller, '-')"
        }
        "destroyed_collections" => {
            "id || ' ' || owner_id || ' ' || destroyed_at || ' ' || coalesce(request_id::text, '') || ' ' || \
             coalesce(caller, '-')"
        }
        "collections" => "id || ' ' || owner_id",
        _ => "id || ' ' || since",
    };
    let query = format!("SELECT {query} AS line FROM {table} WHERE id > 0 ORDER BY id");
    let rows = admin.query_all_raw(Statement::from_string(backend, query)).await.unwrap();
    rows.iter().map(|row| row.try_get("", "line").unwrap()).collect()
}

/// The files of a folder, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

async fn execute(database: &TestDatabase, statement: &str) {
    database.connection().await.execute_unprepared(statement).await.unwrap();
}

/// Collections without entries, in one transaction.
async fn put_many(database: &TestDatabase, ids: impl Iterator<Item = i64>) {
    let values: Vec<_> =
        ids.map(|id| format!("({id}, {OWNER}, '', '', '2026-11-27T10:00:00+00:00')")).collect();
    let columns = "id, owner_id, name, timeline_order, created_at";
    execute(database, &format!("INSERT INTO collections ({columns}) VALUES {}", values.join(", "))).await;
}

fn empty(id: i64) -> NewCollection {
    let id = CollectionId::new(id).unwrap();
    NewCollection { id, owner: user(OWNER), name: String::new(), entries: Vec::new() }
}

fn summary(destroyed: usize, recorded: usize, existing: usize, queued: usize) -> String {
    format!(
        "applied {} tombstones: {destroyed} collections destroyed again, {recorded} tombstones of absent collections \
         added, {existing} tombstones were there already; {queued} purges queued\n",
        destroyed + recorded + existing
    )
}

mod cases {
    use super::*;

    /// Into an empty database: every column comes back as it was, and a second application changes nothing.
    pub async fn an_applied_file_restores_the_exported_tombstones(backend: Backend) {
        let (lost, restored) = (TestDatabase::new(backend).await, TestDatabase::new(backend).await);
        for id in 1..=4 {
            lost.put(id, OWNER).await;
        }
        let nameless = collections_service::store::Destroy { caller: None, ..destroy_of(4) };
        let calls = [destroy_with_request_id(1, 0), destroy_with_request_id(2, 1), destroy_of(3), nameless];
        assert_eq!(destroy_concurrently(&lost.store, calls).await, [Ok(Destroyed::Now); 4]);
        // As precise as the database can be: PostgreSQL has microseconds.
        let digits = if matches!(backend, Backend::Sqlite) { ".123456789" } else { ".123456" };
        for (id, time) in [(1, digits), (2, ".120"), (3, ".000001")] {
            let time = format!("2026-11-27T10:00:00{time}+00:00");
            execute(
                &lost,
                &format!("UPDATE destroyed_collections SET destroyed_at = '{time}' WHERE id = {id}"),
            )
            .await;
        }
        execute(
            &lost,
            "UPDATE destroyed_collections SET caller = 'jwt:a \"quote\", a \\ and a line\u{b}ü' WHERE id = 2",
        )
        .await;
        execute(&lost, "UPDATE destroyed_collections SET request_id = NULL WHERE id = 3").await;
        let exported = export(&lost).await;
        let file = write(&restored, &exported);
        assert_eq!(apply(&restored, &file).await, (0, summary(0, 4, 0, 4), String::new()));
        assert_eq!(
            rows(&restored, "destroyed_collections").await,
            rows(&lost, "destroyed_collections").await
        );
        let queue: Vec<_> = rows(&restored, "purge_queue").await;
        for (queued, tombstone) in queue.iter().zip(rows(&restored, "destroyed_collections").await) {
            let (id, since) = queued.split_once(' ').unwrap();
            assert!(tombstone.starts_with(&format!("{id} {OWNER} {since} ")), "{queued}: {tombstone}");
        }
        assert_eq!(queue.len(), 4);
        assert_eq!(export(&restored).await, exported);

        assert_eq!(apply(&restored, &file).await, (0, summary(0, 0, 4, 0), String::new()));
        assert_eq!(export(&restored).await, exported);
        assert_eq!(rows(&restored, "purge_queue").await, queue);
        assert_eq!(rows(&restored, "event_outbox").await, [] as [&str; 0]);
    }

    /// In more than one batch.
    pub async fn restored_collections_are_destroyed_again_and_retries_replay(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        put_many(&database, 1..=1500).await;
        let lines: String = (1..=1500).filter(|id| id % 3 != 0).map(line).collect();
        let file = write(&database, &complete(&lines));
        assert_eq!(apply(&database, &file).await, (0, summary(1000, 0, 0, 1000), String::new()));
        let live: Vec<_> = (1..=1500).filter(|id| id % 3 == 0).collect();
        assert_eq!(database.owned_by(OWNER).await, live);
        assert_eq!(rows(&database, "event_outbox").await, [] as [&str; 0]);
        let retried =
            destroy_concurrently(&database.store, [1, 1499].map(|id| destroy_with_request_id(id, 0))).await;
        assert_eq!(retried, [Ok(Destroyed::Before); 2]);
        let renewed =
            destroy_concurrently(&database.store, [1, 1499].map(|id| destroy_with_request_id(id, 1))).await;
        assert_eq!(renewed, [Err(DestroyError::NotFound); 2]);
        assert_eq!(apply(&database, &file).await, (0, summary(0, 0, 1000, 0), String::new()));
    }

    pub async fn ids_of_other_owners_are_left_alone(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        for id in 1..=200 {
            database.put(id, OTHER).await;
        }
        database.put(201, OWNER).await;
        assert_eq!(
            destroy_concurrently(&database.store, [destroy_by_other(200)]).await,
            [Ok(Destroyed::Now)]
        );
        let before = rows(&database, "destroyed_collections").await;
        let file = write(&database, &complete(&(1..=201).map(line).collect::<String>()));
        let (code, printed, errors) = apply(&database, &file).await;
        assert_eq!((code, printed), (1, summary(1, 0, 0, 1)), "{errors}");
        assert!(errors.starts_with("error: 200 ids belong to another owner in this database"), "{errors}");
        assert!(errors.contains(&format!("custom-100: of {OWNER} in the file, of {OTHER} in the database")));
        assert!(errors.ends_with("and 100 more\n") && !errors.contains("custom-101:"), "{errors}");
        assert_eq!(database.owned_by(OTHER).await, (1..=199).collect::<Vec<_>>());
        let mut after = rows(&database, "destroyed_collections").await;
        assert!(after.pop().unwrap().starts_with("201 "));
        assert_eq!(after, before);
        let file = write(&database, &complete(&line(200)));
        let (code, _, errors) = apply(&database, &file).await;
        assert!(code == 1 && errors.contains("custom-200: of"), "{errors}");
    }

    /// Also where the collection was put back by hand after its destroy.
    pub async fn existing_tombstones_are_not_changed(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        put_many(&database, 1..=2).await;
        assert_eq!(
            destroy_concurrently(&database.store, (1..=2).map(|id| destroy_with_request_id(id, 1))).await,
            [Ok(Destroyed::Now); 2]
        );
        execute(&database, "DELETE FROM purge_queue WHERE id = 2").await;
        put_many(&database, 2..=2).await;
        let tombstones = rows(&database, "destroyed_collections").await;
        let queue = rows(&database, "purge_queue").await;
        let file = write(&database, &complete(&[line(1), line(2)].concat()));
        assert_eq!(apply(&database, &file).await, (0, summary(1, 0, 1, 1), String::new()));
        assert_eq!(rows(&database, "destroyed_collections").await, tombstones);
        assert_eq!(database.owned_by(OWNER).await, [] as [i64; 0]);
        assert_eq!(rows(&database, "purge_queue").await[..1], queue);
    }

    /// Tombstones that stand, and entries that a restore brought back under them.
    pub async fn entries_without_a_purge_are_queued(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        for id in 1..=3 {
            database.put(id, OWNER).await;
        }
        assert_eq!(
            destroy_concurrently(&database.store, (1..=3).map(|id| destroy_with_request_id(id, 0))).await,
            [Ok(Destroyed::Now); 3]
        );
        execute(&database, "DELETE FROM purge_queue WHERE id > 1").await;
        execute(&database, "DELETE FROM collection_entries WHERE collection_id = 3").await;
        let queue = rows(&database, "purge_queue").await;
        let file = write(&database, &complete(&(1..=3).map(line).collect::<String>()));
        assert_eq!(apply(&database, &file).await, (0, summary(0, 0, 3, 1), String::new()));
        let now = rows(&database, "purge_queue").await;
        assert!(now[0] == queue[0] && now[1].starts_with("2 2026-11-27") && now.len() == 2, "{now:?}");
    }

    pub async fn an_invalid_file_is_not_applied(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        put_many(&database, 1..=3).await;
        let lines: String = (1..=3).map(line).collect();
        let whole = complete(&lines);
        let swapped = [line(1), line(3), line(2)].concat();
        let last = whole.lines().last().unwrap();
        for (text, expected) in [
            (String::new(), "the file has no trailing line"),
            (lines.clone(), "the file has no trailing line"),
            (cut(&lines).to_owned(), "the file was cut within line 3"),
            (cut(&whole).to_owned(), "the file was cut within line 4"),
            (whole.replace("123456", "123457"), "the trailing line states another hash"),
            (whole.replace(":3,", ":4,"), "the trailing line states 4 tombstones, and the file has 3"),
            (complete(&swapped), "line 3: its id is not greater than the one before"),
            (complete(&[line(1), line(1)].concat()), "line 2: its id is not greater"),
            (complete(&format!("{}x\n", line(1))), "line 2: not a valid tombstone object"),
            (
                complete("[\"custom-1\", \"1\", \"2026-11-27T10:00:00Z\", null, null]\n"),
                "line 1: expected a JSON object, not an array",
            ),
            (complete(&format!("{}\n", line(1))), "line 2: not a valid tombstone object"),
            (complete(&line(1).replace("custom-", "")), "line 1: id `1`: "),
            (complete(&line(1).replace(&OWNER.to_string(), "0")), "line 1: owner_id `0`: "),
            (complete(&line(1).replace("T10", "T30")), "line 1: destroyed_at `2026-11-27T30"),
            (complete(&line(1).replace("2026-", "0000-")), "the year in UTC must be from 1 to 9999"),
            (
                complete(&line(1).replace("2026-11-27T10:00:00.123456Z", "9999-12-31T23:59:59-00:01")),
                "the year in UTC must be from 1 to 9999",
            ),
            (complete(&line(1).replace(UUIDS[0], "x")), "line 1: request_id `x`: "),
            (complete(&line(1).replace("orders", "\\u0000")), "line 1: caller `mtls:\\0`"),
            (complete(&line(1).replace("caller", "client")), "unknown field `client`"),
            (complete(&line(1).replace("mtls", &"m".repeat(70_000))), "line 1: longer than 65536 bytes"),
            (format!("{whole}{}", line(4)), "line 5: unexpected line after the trailing line"),
            (format!("{whole}{last}\n"), "line 5: unexpected line after the trailing line"),
        ] {
            let file = write(&database, &text);
            let (code, printed, errors) = apply(&database, &file).await;
            assert_eq!((code, printed.as_str()), (1, ""), "{text}");
            assert!(
                errors.contains(expected) && errors.contains("nothing was applied"),
                "{expected}: {errors}"
            );
        }
        assert_eq!(database.owned_by(OWNER).await, [1, 2, 3]);
        assert_eq!(tombstones(&database).await, 0);

        let allowed = async |text: &str| {
            tombstones_command(&database, &["apply", &write(&database, text), "--allow-incomplete"]).await
        };
        let (code, _, errors) = allowed(&complete(&format!("{}x\n", line(1)))).await;
        assert!(code == 1 && errors.contains("line 2: not a valid"), "{errors}");
        assert_eq!(tombstones(&database).await, 0);
        let (code, printed, errors) = allowed(cut(&lines)).await;
        assert_eq!(code, 0, "{errors}");
        let expected = format!("{}; the file was cut within line 3\n", summary(2, 0, 0, 2).trim_end());
        assert_eq!(printed, expected);
        assert_eq!(database.owned_by(OWNER).await, [3]);
        // Without the last line break nothing is missing.
        let file = write(&database, whole.trim_end());
        assert_eq!(apply(&database, &file).await, (0, summary(1, 0, 2, 1), String::new()));
        for (file, expected) in [("/nowhere", "No such file"), ("/dev/null", "not a regular file")] {
            let (code, _, errors) = apply(&database, file).await;
            assert!(code == 2 && errors.contains(expected), "{errors}");
        }
    }

    /// The service destroys what the file names, under the same and under other requests, and more.
    pub async fn concurrent_destroys_and_applications_destroy_once(backend: Backend) {
        const MOST: i64 = 6000;
        let database = TestDatabase::new(backend).await;
        put_many(&database, 1..=MOST).await;
        let file =
            write(&database, &complete(&(1..=MOST).filter(|id| id % 3 != 0).map(line).collect::<String>()));
        let applying = tokio::spawn({
            let url = database.url.clone();
            async move { run(&["tombstones", "apply", &file], &[("COLLECTIONS_DATABASE_URL", &url)]).await }
        });
        // Against the order of the file, so that they meet.
        let mut destroyed = 0;
        let mut ids: Vec<i64> = (1..=MOST).collect();
        while let Some(from) = ids.len().checked_sub(50) {
            let batch = ids.split_off(from);
            let calls = batch.iter().map(|id| destroy_with_request_id(*id, usize::from(id % 2 == 0)));
            for (id, outcome) in batch.iter().zip(destroy_concurrently(&database.store, calls).await) {
                match outcome {
                    Ok(Destroyed::Now) => destroyed += 1,
                    Ok(Destroyed::Before) => assert!(id % 2 != 0 && id % 3 != 0, "{id}"),
                    Err(error) => assert!(error == DestroyError::NotFound && id % 2 == 0, "{id}: {error:?}"),
                }
            }
        }
        let (code, printed, errors) = applying.await.unwrap();
        assert_eq!(code, 0, "{printed}{errors}");
        let applied: usize = printed.split(' ').nth(3).unwrap().parse().unwrap();
        assert!(applied > 0 && destroyed > 0, "they did not meet: {applied} and {destroyed}");
        assert_eq!(applied + destroyed, MOST as usize, "{printed}");
        assert_eq!(tombstones(&database).await, MOST);
        assert_eq!(database.owned_by(OWNER).await, [] as [i64; 0]);
        let queued: BTreeSet<_> = rows(&database, "purge_queue").await.into_iter().collect();
        assert_eq!(queued.len(), MOST as usize);
    }

    pub async fn a_stopped_application_is_run_again(backend: Backend) {
        an_interrupted_application_is_run_again(backend, Signal::SIGTERM).await;
    }

    pub async fn a_killed_application_is_run_again(backend: Backend) {
        an_interrupted_application_is_run_again(backend, Signal::SIGKILL).await;
    }
}

/// Enough for an application to be caught in its middle, however busy the machine is.
const MANY: i64 = 30_000;

fn applying(database: &TestDatabase, file: &str) -> Child {
    start(database, &["apply", file])
}

fn start(database: &TestDatabase, arguments: &[&str]) -> Child {
    let mut command = command(&[&["tombstones"], arguments].concat());
    command.env("COLLECTIONS_DATABASE_URL", &database.url);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Starts the application, and holds what it waits for once it is in the middle.
async fn hold(database: &TestDatabase, file: &str) -> (DatabaseTransaction, Child) {
    let admin = database.connection().await;
    if admin.get_database_backend() == DbBackend::Postgres {
        let held = admin.begin().await.unwrap();
        held.execute_unprepared("SELECT 1 FROM collections WHERE id = 2500 FOR UPDATE").await.unwrap();
        let child = applying(database, file);
        wait_for(&database.connection().await, BLOCKED).await;
        return (held, child);
    }
    let child = applying(database, file);
    let immediate = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..Default::default()
    };
    let caught = async {
        loop {
            let held = admin.begin_with_options(immediate).await.unwrap();
            let any =
                Statement::from_string(DbBackend::Sqlite, "SELECT id FROM destroyed_collections LIMIT 1");
            if held.query_one_raw(any).await.unwrap().is_some() {
                return held;
            }
            held.rollback().await.unwrap();
        }
    };
    (tokio::time::timeout(Duration::from_secs(20), caught).await.unwrap(), child)
}

async fn an_interrupted_application_is_run_again(backend: Backend, with: Signal) {
    let database = TestDatabase::new(backend).await;
    put_many(&database, (1..=MANY).filter(|id| id % 2 == 0)).await;
    let file = write(&database, &complete(&(1..=MANY).map(line).collect::<String>()));
    let (held, child) = hold(&database, &file).await;
    signal(&child, with);
    // It ends although what it waits for is still held.
    let output = child.wait_with_output().await.unwrap();
    held.rollback().await.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    let done = tombstones(&database).await;
    assert!(done > 0 && done < MANY && done % 1000 == 0, "not in the middle: {done}");
    if with == Signal::SIGTERM {
        assert_eq!(output.status.code(), Some(1), "{errors}");
        // Of a batch that was just committed the command may not have received the answer.
        let stopped = |done| {
            format!("error: stopped; {done} of {MANY} tombstones are done: applied tombstones stay applied")
        };
        let expected = [done, done - 1000].map(stopped);
        assert!(expected.iter().any(|begin| errors.starts_with(begin)), "{errors}");
    } else {
        assert_eq!(output.status.code(), None);
    }
    assert_eq!(output.stdout, b"");
    let (done, rest) = (done as usize, (MANY - done) as usize);
    let (code, printed, errors) = apply(&database, &file).await;
    // On a busy machine it lasts so long that it prints its progress.
    assert_eq!((code, printed), (0, summary(rest / 2, rest / 2, done, rest)), "{errors}");
    assert_eq!(database.owned_by(OWNER).await, [] as [i64; 0]);
    assert_eq!(tombstones(&database).await, MANY);
}
