//! The admin listener: `/livez` and `/readyz` for probes, before a database is ready, in an outage and in a drain.

use std::time::Duration;

use http::{Method, Request};
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::time::timeout;

use super::support::{
    BLOCKED, Backend, OWNER, TestDatabase,
    cluster::Cluster,
    connect, destroy, fresh_database, fresh_postgres,
    program::{Program, run},
    rpc,
    scrape::{Scrape, get, try_get},
    send, wait_for, write_private,
};
use collections_service::{
    domain::Entropy,
    store::{Capacity, KeyRing},
};

/// The longest that readiness may take to follow what it depends on.
const SOON: Duration = Duration::from_secs(10);

/// Waits until a path has this status; returns the lines of its body.
async fn wait_for_status(program: &Program, path: &str, status: u16) -> Vec<String> {
    let seen = async {
        loop {
            if let Some((found, content_type, text)) = try_get(&program.admin, path).await
                && found == status
            {
                assert_eq!(content_type, "text/plain; charset=utf-8");
                return text.lines().map(str::to_owned).collect();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, seen).await.unwrap_or_else(|_| panic!("{path} is not {status} in time"))
}

async fn readyz(program: &Program, status: u16) -> Vec<String> {
    wait_for_status(program, "/readyz?verbose", status).await
}

async fn assert_alive(program: &Program) {
    let (status, _, text) = get(&program.admin, "/livez").await;
    assert_eq!((status, text.as_str()), (200, "ok\n"));
}

async fn wait_for_metric(program: &Program, ready: f64) {
    Scrape::until(&program.admin, |scrape| scrape.value("collections_ready", &[]) == ready).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serves_get_and_head_of_three_paths_and_nothing_else() {
    let program = Program::serve(&TestDatabase::new(Backend::Sqlite).await, &[]).await;
    for path in ["/readyz", "/readyz?verboser"] {
        assert_eq!(wait_for_status(&program, path, 200).await, ["ok"]);
    }
    for path in ["/readyz?verbose", "/readyz?a=b&verbose=1"] {
        assert_eq!(wait_for_status(&program, path, 200).await.last().unwrap(), "readyz check passed");
    }
    let ask = async |method: Method, path: &str| {
        send(&program.admin, Request::builder().method(method).uri(path).body(String::new()).unwrap()).await
    };
    for path in ["/livez", "/readyz", "/readyz?verbose", "/metrics"] {
        let (status, headers, body) = ask(Method::HEAD, path).await;
        // A machine that is busy with other tests may not be ready for a moment.
        assert!(status == 200 || (status == 503 && path.starts_with("/readyz")), "{path}: {status}");
        assert_eq!(body, "");
        assert_eq!(headers["cache-control"], "no-store");
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let (status, headers, body) = ask(method, path).await;
            assert_eq!((status, headers["allow"].to_str().unwrap(), body.as_str()), (405, "GET, HEAD", ""));
        }
    }
    for path in ["/", "/livez/", "/livez/x", "/readyz/x", "/healthz", "/metrics/x", "/LIVEZ"] {
        assert_eq!(ask(Method::GET, path).await.0, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_schema_is_not_ready_and_alive() {
    let mut database = TestDatabase::new(Backend::Postgres).await;
    database.url = fresh_postgres().await;
    let program = Program::serve(&database, &[]).await;
    let lines = readyz(&program, 503).await;
    assert!(lines[0].starts_with("[-]database failed: the database schema is older"), "{lines:?}");
    assert_eq!(
        lines[1..],
        [
            "[-]credentials failed: not checked yet",
            "[+]shutdown ok",
            "[+]reload/credentials-key-file ok",
            "readyz check failed"
        ]
    );
    assert_alive(&program).await;
    wait_for_metric(&program, 0.0).await;
    // Not admitted, and counted.
    destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap_err();
    let refused = [("reason", "STORE_UNAVAILABLE")];
    assert_eq!(Scrape::of(&program.admin).await.value("collections_calls_refused_total", &refused), 1.0);

    connect(&database.url, Capacity::of(4), &database.clock).await.migrate().await.unwrap();
    let lines = readyz(&program, 200).await;
    assert_eq!(
        lines,
        [
            "[+]database ok",
            "[+]credentials ok",
            "[+]shutdown ok",
            "[+]reload/credentials-key-file ok",
            "readyz check passed"
        ]
    );
    wait_for_metric(&program, 1.0).await;
}

/// The cause is the one in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_database_is_not_ready_and_alive() {
    let mut cluster = Cluster::start().await;
    let database = TestDatabase::on(Some(fresh_database(&cluster.url()).await)).await;
    let program = Program::serve(&database, &[]).await;
    readyz(&program, 200).await;
    cluster.stop();
    readyz(&program, 503).await;
    assert_alive(&program).await;
    wait_for_metric(&program, 0.0).await;
    // It differs with what the server was doing when it stopped. Each is in the log.
    let lines = readyz(&program, 503).await;
    let cause = lines[0].strip_prefix("[-]database failed: ").unwrap().to_owned();
    cluster.start_again().await;
    readyz(&program, 200).await;
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(SOON).await;
    let quoted = serde_json::Value::from(cause).to_string();
    assert!(log.iter().any(|line| line.contains("not ready") && line.contains(&quoted)), "{quoted} {log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_not_ready_and_alive() {
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    let program = Program::serve(&database, &[]).await;
    readyz(&program, 200).await;
    let lock = database.connection().await.begin().await.unwrap();
    lock.execute_unprepared("SELECT id FROM collections FOR UPDATE").await.unwrap();
    let mut client = rpc(&program.grpc);
    let call = tokio::spawn(async move { destroy(&mut client, OWNER, "custom-1", "").await });
    wait_for(&database.connection().await, BLOCKED).await;
    program.signal(Signal::SIGTERM);
    let lines = readyz(&program, 503).await;
    assert_eq!(
        lines,
        [
            "[+]database ok",
            "[+]credentials ok",
            "[-]shutdown failed: draining",
            "[+]reload/credentials-key-file ok",
            "readyz check failed"
        ]
    );
    // Without being asked for.
    assert_eq!(wait_for_status(&program, "/readyz", 503).await, lines);
    assert_alive(&program).await;
    wait_for_metric(&program, 0.0).await;
    lock.rollback().await.unwrap();
    assert!(call.await.unwrap().unwrap().get_ref().destroyed);
    assert_eq!(program.ended(SOON).await.0.code(), Some(0));
}

/// The keys before it stay in use, so that calls can still be served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_reload_is_reported_and_leaves_readiness() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    readyz(&program, 200).await;
    let key_file = database.folder.path().join("key");
    let good = std::fs::read_to_string(&key_file).unwrap();
    let flag = ("flag", "--credentials-key-file");
    let reloads =
        |scrape: &Scrape, result| scrape.value("collections_reloads_total", &[flag, ("result", result)]);
    write_private(&key_file, "not a key\n");
    let is_failing = |scrape: &Scrape| scrape.value("collections_reload_failing", &[flag]) == 1.0;
    let scrape = Scrape::until(&program.admin, is_failing).await;
    assert_eq!((reloads(&scrape, "failure"), reloads(&scrape, "success")), (1.0, 0.0));
    let lines = readyz(&program, 200).await;
    let failed = "[-]reload/credentials-key-file failed, not required: ";
    let cause = lines.iter().find_map(|line| line.strip_prefix(failed)).unwrap().to_owned();
    assert_eq!(lines.last().unwrap(), "readyz check passed");

    write_private(&key_file, &format!("{good}{}", *KeyRing::generate_line("next", &Entropy::default())));
    let is_reloaded = |scrape: &Scrape| reloads(scrape, "success") == 1.0;
    let scrape = Scrape::until(&program.admin, is_reloaded).await;
    assert_eq!(scrape.value("collections_reload_failing", &[flag]), 0.0);
    assert_eq!(reloads(&scrape, "failure"), 1.0, "once for each change, however often it is tried");
    assert!(readyz(&program, 200).await.contains(&"[+]reload/credentials-key-file ok".to_owned()));
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(SOON).await;
    let quoted = serde_json::Value::from(cause).to_string();
    assert!(
        log.iter().any(|line| line.contains("not reloaded") && line.contains(&quoted)),
        "{quoted} {log:?}"
    );
}

/// It is ready whether or not the RPC is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_has_probes_and_metrics() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::gateway(&database, "http://127.0.0.1:9", &[]).await;
    readyz(&program, 200).await;
    assert_alive(&program).await;
    let answer = send(&program.rest, super::support::form_now(&program.rest, "custom-1")).await;
    assert_eq!(answer.0, 503);
    let scrape = Scrape::of(&program.admin).await;
    let failed = [("http_response_status_code", "503"), ("error_type", "STORE_UNAVAILABLE")];
    assert_eq!(scrape.value("http_server_request_duration_seconds_count", &failed), 1.0);
    let admitted = [("reason", "STORE_UNAVAILABLE")];
    assert_eq!(scrape.value("collections_calls_refused_total", &admitted), 0.0, "it was admitted");
    let of_grpc = [("protocol", "grpc")];
    assert_eq!(scrape.series("collections_calls_total", &of_grpc), [] as [f64; 0]);
    let admin = program.admin.trim_start_matches("http://");
    assert_eq!(run(&["healthcheck", "--addr", admin], &[]).await.0, 0);
}
