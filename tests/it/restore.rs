//! The restore drill: the commands of deploy/RESTORE.md, run as written.

use std::{fs, path::Path, process::Output, time::Duration};

use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, Statement};
use tonic::Code;

use super::{
    batches::tombstones,
    support::{Backend, OTHER, OWNER, TestDatabase, destroy, program::Program, rpc},
};

const DOCUMENT: &str = include_str!("../../deploy/RESTORE.md");

const SCHEDULED_EXPORT: &str = "export --output tombstones.ndjson";

/// Runs the document's block of commands that has this one, and returns what it printed.
async fn run_block(database: &TestDatabase, command: &str) -> String {
    let output = output_of_block(database, command).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{command}: {printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

async fn output_of_block(database: &TestDatabase, command: &str) -> Output {
    let blocks: Vec<&str> =
        DOCUMENT.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let matching: Vec<_> = blocks.iter().filter(|block| block.contains(command)).collect();
    assert_eq!(matching.len(), 1, "{command}");
    let name = database.url.rsplit('/').next().unwrap();
    let script = [blocks[0], matching[0]].concat();
    let script = script
        .replace("postgres://collections@127.0.0.1/collections", &database.url)
        .replace("postgres://postgres@127.0.0.1/postgres", &database.url.replace(name, "postgres"))
        .replace("DATABASE collections ", &format!("DATABASE {name} "))
        .replace("datname = 'collections'", &format!("datname = '{name}'"))
        .replace("collections_damaged", &format!("{name}_damaged"))
        .replace("OWNER collections", "OWNER tests");
    assert!(!script.contains("@127.0.0.1/"), "{script}");
    let binary = Path::new(env!("CARGO_BIN_EXE_collections-service")).parent().unwrap();
    let postgres = std::env::var("TEST_POSTGRES_BIN").expect("no PostgreSQL: start the tests with tests/run");
    let path = format!("{}:{postgres}:{}", binary.display(), std::env::var("PATH").unwrap());
    tokio::process::Command::new("bash")
        .args(["-euc", &script])
        .current_dir(database.folder.path())
        .env("PATH", path)
        .output()
        .await
        .unwrap()
}

/// The one that was not stopped, or was started too early.
async fn assert_scheduled_export_is_refused(database: &TestDatabase) {
    let file = database.folder.path().join("tombstones.ndjson");
    let before = fs::read(&file).unwrap();
    let output = output_of_block(database, SCHEDULED_EXPORT).await;
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && errors.contains("8 of its tombstones"), "{errors}");
    assert_eq!(fs::read(&file).unwrap(), before);
}

fn request_id(id: i64) -> String {
    uuid::Uuid::from_u128(id.cast_unsigned().into()).to_string()
}

async fn destroy_all(program: &Program, ids: impl IntoIterator<Item = i64>) {
    for id in ids {
        destroy(&mut rpc(&program.grpc), OWNER, &format!("custom-{id}"), &request_id(id)).await.unwrap();
    }
}

/// The collections of an owner, over a new connection: the restore ends those that are open.
async fn live(database: &TestDatabase, owner: i64) -> Vec<i64> {
    let connection = database.connection().await;
    let query = format!("SELECT id FROM collections WHERE owner_id = {owner} ORDER BY id");
    let rows =
        connection.query_all_raw(Statement::from_string(connection.get_database_backend(), query)).await;
    rows.unwrap().iter().map(|row| row.try_get("", "id").unwrap()).collect()
}

async fn stop(program: Program) {
    program.signal(Signal::SIGTERM);
    assert!(program.ended(Duration::from_secs(25)).await.0.success());
}

/// Tombstones from before the backup, of collections in the backup, and of one that the backup does not have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_does_not_bring_destroyed_collections_back() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=20 {
        database.put(id, OWNER).await;
    }
    database.put(30, OTHER).await;
    let program = Program::serve(&database, &[]).await;
    program.wait_until_ready().await;
    destroy_all(&program, 1..=3).await;
    run_block(&database, "pg_dump").await;
    database.put(21, OWNER).await;
    destroy_all(&program, (4..=10).chain([21])).await;
    let exported = run_block(&database, SCHEDULED_EXPORT).await;
    assert_eq!(exported, "exported 11 tombstones to tombstones.ndjson\n");
    // After the last scheduled export.
    destroy_all(&program, [11]).await;
    stop(program).await;

    run_block(&database, "cp -p").await;
    let exported = run_block(&database, "--output damaged.ndjson").await;
    assert_eq!(exported, "exported 12 tombstones to damaged.ndjson\n");
    run_block(&database, "pg_restore --exit-on-error").await;
    assert_eq!(live(&database, OWNER).await, (4..=20).collect::<Vec<_>>(), "the backup is of another time");
    assert_scheduled_export_is_refused(&database).await;
    let applied = run_block(&database, "apply before-restore.ndjson").await;
    assert_eq!(
        applied.lines().last().unwrap(),
        "applied 11 tombstones: 7 collections destroyed again, 1 tombstones of absent collections added, \
         3 tombstones were there already; 8 purges queued"
    );
    let applied = run_block(&database, "apply damaged.ndjson").await;
    assert!(applied.starts_with("applied 12 tombstones: 1 collections destroyed again"), "{applied}");
    run_block(&database, "purge --once").await;
    let exported = run_block(&database, SCHEDULED_EXPORT).await;
    assert_eq!(exported, "exported 12 tombstones to tombstones.ndjson\n");

    assert_eq!(live(&database, OWNER).await, (12..=20).collect::<Vec<_>>());
    assert_eq!(live(&database, OTHER).await, [30]);
    assert_eq!(tombstones(&database).await, 12);
    let program = Program::serve(&database, &[]).await;
    program.wait_until_ready().await;
    destroy_all(&program, (1..=11).chain([21])).await;
    for id in (1..=11).chain([21]) {
        let id = format!("custom-{id}");
        let refused = destroy(&mut rpc(&program.grpc), OWNER, &id, "").await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{id}");
    }
    destroy_all(&program, [12]).await;
    stop(program).await;
}
