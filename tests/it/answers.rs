//! Every answer arrives, also where it is given without the request's body: clients lose one that is followed by a reset. Debian's
//! curl is the client, one of those that did.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::{process::Command, task::JoinSet};

use super::support::{
    Backend, OWNER, PATH, TestDatabase, destroy,
    pki::Authority,
    program::{Program, path},
    rpc, wait_until,
};

/// Requests over one connection.
const REUSES: usize = 5;
/// Connections, each with another request.
const CONNECTIONS: usize = 3;

/// The flags of one way to speak to the gateway, and whether curl 7.88 can reuse such a connection: over cleartext HTTP/2 with
/// prior knowledge it never sends a second request.
type Dialect = (&'static str, bool);

const CLEARTEXT: [Dialect; 3] = [("--http1.1", true), ("--http2", true), ("--http2-prior-knowledge", false)];
const TLS: [Dialect; 2] = [("--http1.1", true), ("--http2", true)];

/// What curl reports of each of these requests: the status, or its own error.
async fn curl(flags: &[&str], url: &str, body: &Path, requests: usize) -> Vec<String> {
    let data = format!("@{}", path(body));
    let mut command = Command::new("curl");
    command.args(["--silent", "--insecure", "--max-time", "60", "--data-binary", &data]).args(flags);
    command.args(["--write-out", "%{http_code} %{exitcode}\n"]);
    for _ in 0..requests {
        command.args(["--output", "/dev/null", url]);
    }
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Sends the request over new connections and over one that is reused; every answer must have this status.
async fn all_arrive(dialects: &[Dialect], flags: &[&str], url: &str, body: &Path, status: u16) {
    let expected = format!("{status} 0");
    for (dialect, can_reuse) in dialects {
        let flags = [&[*dialect], flags].concat();
        for requests in (0..CONNECTIONS).map(|_| 1).chain(can_reuse.then_some(REUSES)) {
            let answers = curl(&flags, url, body, requests).await;
            assert_eq!(answers, vec![expected.clone(); requests], "{flags:?} {url} {body:?}");
        }
    }
}

/// Bodies of these sizes, as files.
fn bodies(database: &TestDatabase, sizes: &[usize]) -> Vec<(usize, PathBuf)> {
    let write = |size: &usize| {
        let file = database.folder.path().join(format!("body-{size}"));
        std::fs::write(&file, vec![b'a'; *size]).unwrap();
        (*size, file)
    };
    sizes.iter().map(write).collect()
}

async fn tls(database: &TestDatabase) -> Vec<String> {
    let (certificate, key) = Authority::new("ours").server().write(database.folder.path(), "rest");
    ["--rest-tls-cert", path(&certificate), "--rest-tls-key", path(&key)].map(str::to_owned).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_arrive_with_bodies_of_every_size() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let bodies = bodies(&database, &[100, 20_000, 100_000, 20_000_000]);
    let flags = tls(&database).await;
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    for (scheme, dialects, flags) in [("http", &CLEARTEXT[..], &[][..]), ("https", &TLS[..], &flags[..])] {
        let program = Program::serve(&database, flags).await;
        let origin = program.rest.replace("http", scheme);
        for (size, body) in &bodies {
            // The longest ones once without waiting for `100 Continue`, which curl does of its own accord.
            let flags: &[&str] = if *size > 1_000_000 { &["--header", "expect:"] } else { &[] };
            all_arrive(dialects, flags, &format!("{origin}/nowhere"), body, 404).await;
            let put = [flags, &["--request", "PUT"]].concat();
            all_arrive(dialects, &put, &format!("{origin}{PATH}"), body, 400).await;
            let status = if *size > 64 * 1024 { 413 } else { 400 };
            all_arrive(dialects, flags, &format!("{origin}{PATH}"), body, status).await;
        }
    }
}

/// The one place is taken by a call that waits for a locked database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_arrive_in_overload() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let bodies = bodies(&database, &[100, 20_000, 60_000]);
    let flags = tls(&database).await;
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    for (scheme, dialects, flags) in [("http", &CLEARTEXT[..], &[][..]), ("https", &TLS[..], &flags[..])] {
        let program = Program::serve(&database, &[flags, &["--max-in-flight", "1"]].concat()).await;
        let url = format!("{}{PATH}", program.rest.replace("http", scheme));
        let locked = database.connection().await.begin().await.unwrap();
        locked.execute_unprepared("UPDATE collections SET name = ''").await.unwrap();
        let mut calls = JoinSet::new();
        let grpc = program.grpc.clone();
        calls.spawn(async move {
            // One call after the other keeps the place.
            loop {
                let _failed = destroy(&mut rpc(&grpc), OWNER, "custom-1", "").await;
            }
        });
        let is_refused = async || curl(&["--http1.1"], &url, &bodies[0].1, 1).await == ["503 0"];
        wait_until("a request is refused", is_refused).await;
        for (_, body) in &bodies {
            for (dialect, can_reuse) in dialects {
                for requests in (0..CONNECTIONS).map(|_| 1).chain(can_reuse.then_some(REUSES)) {
                    for answer in curl(&[dialect], &url, body, requests).await {
                        // Between two calls the place is free for a moment.
                        assert!(
                            ["503 0", "400 0"].contains(&answer.as_str()),
                            "{dialect} {body:?}: {answer}"
                        );
                    }
                }
            }
        }
        calls.abort_all();
        locked.rollback().await.unwrap();
    }
}
