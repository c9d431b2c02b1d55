//! The README and the documents in `deploy/`: their tables are the program's, and their commands run as written.

use std::{os::unix::process::CommandExt, process::Stdio, time::Duration};

use collections_service::{
    domain::{DestroyError, Entropy},
    store::{Credentials, KeyRing},
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use sea_orm::{ConnectionTrait, Database};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
};

use super::support::{
    Backend, OWNER, TestDatabase, destroy, form_now, fresh_postgres, program, rpc, send, wait_for,
    write_private,
};

const README: &str = include_str!("../../README.md");
const PRODUCTION: &str = include_str!("../../deploy/README.md");
const IDENTITY: &str = include_str!("../../deploy/IDENTITY.md");

#[test]
fn the_readme_has_every_error() {
    for error in DestroyError::ALL {
        let row = error.row();
        let line = README.lines().find(|line| line.starts_with(&format!("| {} |", row.reason))).unwrap();
        assert!(line.ends_with(&format!("| {} | {} | {} |", row.http, row.code, row.message)), "{line}");
        let grpc = line.split(" | ").nth(1).unwrap().replace('_', "").to_lowercase();
        assert_eq!(grpc, format!("{:?}", row.grpc).to_lowercase());
    }
    let row = DestroyError::NotFound.row();
    assert!(README.contains(&format!("  Message: {}\n", row.grpc_message)), "grpcurl's output");
    assert!(README.contains(&format!("\"reason\":\"{}\"", row.reason)), "grpcurl's output");
}

/// A role with the grants of `deploy/DATABASE.md`, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_grants_suffice() {
    let mut database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    database.put(2, OWNER).await;
    let role = format!("r{}", Entropy::default().hex::<8>());
    let grants = format!(
        "CREATE ROLE {role} LOGIN; GRANT EXECUTE ON FUNCTION destroy_collections_v1, purge_collections_v1 TO {role};
         GRANT SELECT ON purge_queue, oauth_applications, oauth_access_tokens, seaql_migrations TO {role}"
    );
    database.connection().await.execute_unprepared(&grants).await.unwrap();
    let admin_url = database.url.clone();
    database.url = database.url.replace("//tests@", &format!("//{role}@"));
    let program = program::Program::serve(&database, &[]).await;
    destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap();
    assert_eq!(send(&program.rest, form_now(&program.rest, "custom-2")).await.0, 200);
    let admin = Database::connect(admin_url).await.unwrap();
    wait_for(&admin, "SELECT 1 WHERE NOT EXISTS (SELECT FROM collection_entries)").await;
}

/// The commands as written, while a service runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_change_of_the_key_works() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let block = IDENTITY.split("```sh\n").find(|block| block.starts_with("echo \"second:")).unwrap();
    let script = block.split("```").next().unwrap();
    let file = |name: &str| database.folder.path().join(name);
    let first = std::fs::read_to_string(file("key")).unwrap().replace("test:", "first:");
    write_private(&file("credentials.key"), &first);
    let keys = std::sync::Arc::new(KeyRing::read(&file("credentials.key"), Entropy::default()).unwrap());
    let credentials = Credentials::new(database.store.clone(), keys);
    // What the documentation's application and token are sealed under is called `first` here.
    for table in ["oauth_applications", "oauth_access_tokens"] {
        let renamed = format!("UPDATE {table} SET key_id = 'first'");
        database.connection().await.execute_unprepared(&renamed).await.unwrap();
    }
    std::fs::remove_file(file("key")).unwrap();
    std::os::unix::fs::symlink("credentials.key", file("key")).unwrap();
    let program = program::Program::serve(&database, &[]).await;
    let mut command = Command::new("bash");
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_collections-service")).parent().unwrap();
    command
        .args(["-euc", &script.replace("# Wait", "sleep 1.5 # Wait").replace("# When", "sleep 1.5 # When")])
        .current_dir(database.folder.path())
        .env("PATH", format!("{}:{}", binary.display(), std::env::var("PATH").unwrap()))
        .env("COLLECTIONS_DATABASE_URL", &database.url)
        .env("COLLECTIONS_CREDENTIALS_KEY_FILE", "credentials.key");
    let output = command.output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let expected =
        "re-sealed 2 secrets under key second, 0 were under it already; no stored secret needs a key other";
    assert!(said.starts_with(expected), "{said}");
    let left = std::fs::read_to_string(file("credentials.key")).unwrap();
    assert!(left.starts_with("second:") && left.lines().count() == 1);
    assert!(credentials.check().await.is_err(), "the first key still opens something");
    program.wait_for_log(3, "\"reloaded\"").await;
    database.put(1, OWNER).await;
    assert_eq!(send(&program.rest, form_now(&program.rest, "custom-1")).await.0, 200);
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(25)).await;
    assert_eq!(log.iter().filter(|line| line.contains("\"reloaded\"")).count(), 3, "{log:?}");
    assert!(!log.iter().any(|line| line.contains("\"ERROR\"")), "{log:?}");
}

/// Each block of shell commands of `deploy/README.md`, with another database and free ports, the start of the service last.
#[tokio::test]
async fn the_documented_way_to_production_works() {
    let blocks = PRODUCTION.split("```sh\n").skip(1).map(|block| block.split_once("```").unwrap().0);
    let (mut commands, serve): (Vec<_>, Vec<_>) =
        blocks.partition(|block| !block.contains("\ncollections-service serve\n"));
    assert_eq!((commands.len(), serve.len()), (3, 1), "schema and data, certificates, credentials; start");
    commands
        .push("for word in \"$key\" \"$secret\" \"$token\" \"$token_secret\"; do test -n \"$word\"; done\n");
    commands.extend(serve);
    let script = commands.concat();
    let folder = tempfile::tempdir().unwrap();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_collections-service")).parent().unwrap();
    let mut command = std::process::Command::new("bash");
    command
        .args(["-euc", &script])
        .current_dir(folder.path())
        .env("PATH", format!("{}:{}", binary.display(), std::env::var("PATH").unwrap()))
        .env("COLLECTIONS_DATABASE_URL", fresh_postgres().await)
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for name in ["GRPC", "REST", "ADMIN"] {
        command.env(format!("COLLECTIONS_{name}_ADDR"), "127.0.0.1:0");
    }
    let mut child = Command::from(command).spawn().unwrap();
    let group = Pid::from_raw(child.id().unwrap().cast_signed());
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let serving = async {
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains("\"serving\"") {
                return;
            }
            eprintln!("{line}");
        }
        panic!("the service ended before it served");
    };
    tokio::time::timeout(Duration::from_secs(30), serving).await.unwrap();
    killpg(group, Signal::SIGTERM).unwrap();
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).await.unwrap();
    for line in
        ["the schema is complete", "imported 3 collections with 3 entries, 0 existed already, 0 rejected"]
    {
        assert!(printed.contains(line), "{printed}");
    }
}
