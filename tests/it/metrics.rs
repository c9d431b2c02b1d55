//! `/metrics`: every metric with its values, its formats, and labels that are bounded.

use std::{collections::BTreeSet, io::Write, process::Stdio};

use bytes::Bytes;
use collections_service::{
    config::telemetry::CALLER_LABELS,
    domain::Entropy,
    jobs::backlog,
    store::Capacity,
    telemetry::{Metrics, MetricsFormat},
};
use http::{Method, Request};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    support::{
        BLOCKED, Backend, OTHER, OWNER, PATH, TestDatabase, connect, destroy, form_now,
        jwt::{self, AUDIENCE, ISSUER},
        pki::{Authority, For, tls_rpc},
        program::{Program, path},
        rpc,
        scrape::{Scrape, get},
        send, wait_for,
    },
    tls::{self, SERVICE},
};

const DESTROY: &str = "collections.v1.CollectionsService/Destroy";
/// When the certificates of the tests expire: at the beginning of 4096.
const EXPIRY: f64 = 67090118400.0;
const REQUEST_ID: &str = "7f9c24e8-3b12-4e5a-9c1d-2b6f0a8d4e11";

/// The names that rules, dashboards and documents use, as the text format has them.
const FAMILIES: [&str; 34] = [
    "collections_batch_size",
    "collections_build_info",
    "collections_calls_in_flight",
    "collections_calls_in_flight_limit",
    "collections_calls_refused_total",
    "collections_calls_total",
    "collections_certificate_expiry_timestamp_seconds",
    "collections_connections",
    "collections_destroyed_total",
    "collections_handshake_failures_total",
    "collections_jwks_last_success_timestamp_seconds",
    "collections_log_lines_dropped_total",
    "collections_purge_backlog",
    "collections_purge_failures_total",
    "collections_purge_oldest_age_seconds",
    "collections_purged_entries_total",
    "collections_queue_depth",
    "collections_queue_wait_duration_seconds",
    "collections_rate_limit_fallback",
    "collections_rate_limit_fallbacks_total",
    "collections_ready",
    "collections_reload_failing",
    "collections_reload_last_success_timestamp_seconds",
    "collections_reloads_total",
    "db_client_operation_duration_seconds",
    "http_server_request_duration_seconds",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
    "rpc_server_call_duration_seconds",
];

/// `serve` over TLS with client certificates and bearer tokens, which is all that a process can have but Redis.
async fn full_program(database: &TestDatabase, authority: &Authority) -> Program {
    let folder = database.folder.path();
    let (cert, key) = authority.server().write(folder, "server");
    let ca = authority.write(folder, "ca.pem");
    let jwks = folder.join("jwks.json");
    std::fs::write(&jwks, jwt::jwks(&[])).unwrap();
    let [cert, key, ca, jwks] = [&cert, &key, &ca, &jwks].map(|file| path(file).to_owned());
    let tls = ["--tls-cert", &cert, "--tls-key", &key, "--client-ca", &ca, "--trusted-peer", SERVICE];
    let jwt = ["--jwks", &jwks, "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    Program::serve_strictly(database, &[&tls[..], &jwt].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_exists_and_no_other() {
    let (database, authority) = (TestDatabase::new(Backend::Sqlite).await, Authority::new("ours"));
    database.put(1, OWNER).await;
    let program = full_program(&database, &authority).await;
    program.wait_until_ready().await;
    let trusted_peer = format!("mtls:{SERVICE}");
    let before = Scrape::until(&program.admin, |_| true).await;
    // Prometheus does not see the first value of a new series as an increase.
    assert_eq!(before.value("collections_destroyed_total", &[("caller", &trusted_peer)]), 0.0);
    let leaf = authority.issue(&[SERVICE], For::Client);
    let mut client = tls_rpc(&program.grpc.replace("http://", "https://"), &authority, Some(&leaf));
    tls::destroy(&mut client, OWNER, "custom-1").await.unwrap();
    send(&program.rest, form_now(&program.rest, "custom-1")).await;
    let address = program.grpc.trim_start_matches("http://");
    TcpStream::connect(address).await.unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let failed = [("listener", "grpc")];
    let has_failed = |scrape: &Scrape| scrape.value("collections_handshake_failures_total", &failed) == 1.0;
    Scrape::until(&program.admin, has_failed).await;
    let has_backlog = |scrape: &Scrape| scrape.names().contains("collections_purge_backlog");
    let scrape = Scrape::until(&program.admin, has_backlog).await;
    assert_eq!(scrape.names(), BTreeSet::from(FAMILIES));

    let flag = |name| [("flag", name)];
    assert_eq!(scrape.value("collections_certificate_expiry_timestamp_seconds", &flag("--tls-cert")), EXPIRY);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let started = scrape.value("process_start_time_seconds", &[]);
    assert!((now - started).abs() < 120.0, "{started} {now}");
    for name in ["--tls-cert", "--credentials-key-file"] {
        let loaded = scrape.value("collections_reload_last_success_timestamp_seconds", &flag(name));
        assert!(loaded >= started - 1.0 && loaded <= now + 1.0, "{loaded}");
    }
    let fetched = scrape.value("collections_jwks_last_success_timestamp_seconds", &[]);
    assert!(fetched >= started - 1.0 && fetched <= now + 1.0, "{fetched}");
    assert_eq!(scrape.value("collections_handshake_failures_total", &[("listener", "rest")]), 0.0);
    assert_eq!(scrape.value("collections_destroyed_total", &[("caller", &trusted_peer)]), 1.0);
    let connections = |listener| scrape.value("collections_connections", &[("listener", listener)]);
    assert!(connections("grpc") >= 1.0 && connections("admin") >= 1.0);
    assert_eq!(scrape.value("collections_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(scrape.value("collections_calls_in_flight_limit", &[]), 2048.0);
    for name in [
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_threads",
    ] {
        assert!(scrape.value(name, &[]) >= 1.0, "{name}");
    }
}

async fn calls_are_counted_by_outcome(backend: Backend, system: &str) {
    let database = TestDatabase::new(backend).await;
    for (id, owner) in [(1, OWNER), (2, OTHER), (3, OWNER), (4, OWNER)] {
        database.put(id, owner).await;
    }
    let program = Program::serve(&database, &[]).await;
    program.wait_until_ready().await;
    let mut client = rpc(&program.grpc);
    for request_id in ["", REQUEST_ID, REQUEST_ID] {
        let id = if request_id.is_empty() { "custom-1" } else { "custom-3" };
        destroy(&mut client, OWNER, id, request_id).await.unwrap();
    }
    for id in ["custom-1", "custom-2", "", "x"] {
        destroy(&mut client, OWNER, id, "").await.unwrap_err();
    }
    assert_eq!(send(&program.rest, form_now(&program.rest, "custom-4")).await.0, 200);
    assert_eq!(send(&program.rest, form_now(&program.rest, "custom-4")).await.0, 404);
    for (method, path) in [(Method::POST, PATH), (Method::GET, PATH), (Method::POST, "/else")] {
        let request = Request::builder().method(method).uri(path).body(String::new()).unwrap();
        send(&program.rest, request).await;
    }
    let erased = |scrape: &Scrape| scrape.value("collections_purged_entries_total", &[]) == 6.0;
    let scrape = Scrape::until(&program.admin, erased).await;

    let calls = |protocol, reason| {
        scrape.value("collections_calls_total", &[("protocol", protocol), ("reason", reason)])
    };
    for (protocol, reason, count) in [
        ("grpc", "OK", 3.0),
        ("grpc", "COLLECTION_NOT_FOUND", 1.0),
        ("grpc", "NOT_OWNER", 1.0),
        ("grpc", "ID_REQUIRED", 1.0),
        ("grpc", "ID_INVALID", 1.0),
        ("grpc", "INTERNAL", 0.0),
        ("rest", "OK", 1.0),
        ("rest", "COLLECTION_NOT_FOUND", 1.0),
        ("rest", "CREDENTIALS_MISSING", 1.0),
        ("rest", "WRONG_METHOD", 1.0),
        ("rest", "UNKNOWN_PATH", 1.0),
        ("rest", "OVERLOADED", 0.0),
    ] {
        assert_eq!(calls(protocol, reason), count, "{protocol} {reason}");
    }
    let rpc_calls = |code| {
        let labels = [("rpc_method", DESTROY), ("rpc_response_status_code", code), ("error_type", "")];
        scrape.value("rpc_server_call_duration_seconds_count", &labels)
    };
    for (code, count) in
        [("OK", 3.0), ("NOT_FOUND", 1.0), ("PERMISSION_DENIED", 1.0), ("INVALID_ARGUMENT", 2.0)]
    {
        assert_eq!(rpc_calls(code), count, "{code}");
    }
    let requests = |method, route, status| {
        let labels =
            [("http_request_method", method), ("http_route", route), ("http_response_status_code", status)];
        scrape.value("http_server_request_duration_seconds_count", &labels)
    };
    for (method, route, status) in [
        ("POST", PATH, "200"),
        ("POST", PATH, "404"),
        ("POST", PATH, "400"),
        ("GET", PATH, "400"),
        ("POST", "", "404"),
    ] {
        assert_eq!(requests(method, route, status), 1.0, "{method} {route} {status}");
    }
    assert_eq!(scrape.value("collections_destroyed_total", &[]), 3.0, "without the replay");
    // Each statement has one destroy; those that a database refuses to read are not sent.
    let statements = |operation| {
        let labels = [("db_system_name", system), ("db_operation_name", operation), ("error_type", "")];
        scrape.value("db_client_operation_duration_seconds_count", &labels)
    };
    assert_eq!(statements("destroy"), 7.0);
    assert!(statements("check") >= 1.0 && statements("purge") >= 1.0 && statements("credentials") >= 2.0);
    for (histogram, sum) in
        [("collections_batch_size", Some(7.0)), ("collections_queue_wait_duration_seconds", None)]
    {
        assert_eq!(scrape.value(&format!("{histogram}_count"), &[]), 7.0);
        assert!(sum.is_none_or(|sum| scrape.value(&format!("{histogram}_sum"), &[]) == sum));
    }
    let zero = ["collections_calls_in_flight", "collections_queue_depth", "collections_purge_failures_total"];
    for name in
        zero.into_iter().chain(["collections_calls_refused_total", "collections_log_lines_dropped_total"])
    {
        assert_eq!(scrape.value(name, &[]), 0.0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_counted_by_outcome_on_sqlite() {
    calls_are_counted_by_outcome(Backend::Sqlite, "sqlite").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_counted_by_outcome_on_postgres() {
    calls_are_counted_by_outcome(Backend::Postgres, "postgresql").await;
}

/// They have no log line each, and are counted all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_and_abandoned_calls_are_counted() {
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    let program = Program::serve(&database, &["--max-in-flight", "1"]).await;
    program.wait_until_ready().await;
    let lock = database.connection().await.begin().await.unwrap();
    lock.execute_unprepared("SELECT id FROM collections FOR UPDATE").await.unwrap();
    let mut client = rpc(&program.grpc);
    let held = tokio::spawn(async move { destroy(&mut client, OWNER, "custom-1", "").await });
    wait_for(&database.connection().await, BLOCKED).await;
    destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap_err();
    assert_eq!(send(&program.rest, form_now(&program.rest, "custom-1")).await.0, 503);
    let scrape = Scrape::of(&program.admin).await;
    assert_eq!(scrape.value("collections_calls_in_flight", &[]), 1.0);
    assert_eq!(scrape.value("collections_calls_in_flight_limit", &[]), 1.0);
    let overloaded = [("reason", "OVERLOADED")];
    assert_eq!(scrape.value("collections_calls_refused_total", &overloaded), 2.0);
    for protocol in ["grpc", "rest"] {
        let labels = [("protocol", protocol), overloaded[0]];
        assert_eq!(scrape.value("collections_calls_total", &labels), 1.0, "{protocol}");
    }
    let unavailable = [("rpc_response_status_code", "UNAVAILABLE"), ("error_type", "UNAVAILABLE")];
    assert_eq!(scrape.value("rpc_server_call_duration_seconds_count", &unavailable), 1.0);
    let busy = [("http_response_status_code", "503"), ("error_type", "OVERLOADED")];
    assert_eq!(scrape.value("http_server_request_duration_seconds_count", &busy), 1.0);

    held.abort();
    let cancelled = [("rpc_method", DESTROY), ("rpc_response_status_code", "CANCELLED"), ("error_type", "")];
    let is_cancelled = |scrape: &Scrape| {
        scrape.series("rpc_server_call_duration_seconds_count", &cancelled) == [1.0]
            && scrape.value("collections_calls_in_flight", &[]) == 0.0
    };
    let scrape = Scrape::until(&program.admin, is_cancelled).await;
    let labels = [("protocol", "grpc"), ("reason", "CANCELLED")];
    assert_eq!(scrape.value("collections_calls_total", &labels), 1.0);
    lock.rollback().await.unwrap();
}

/// A gRPC call of any path, with an empty message.
async fn call(client: &Client<HttpConnector, Full<Bytes>>, origin: &str, path: &str) {
    let request = Request::post(format!("{origin}{path}")).header("content-type", "application/grpc");
    client.request(request.body(Full::from(&[0_u8; 5][..])).unwrap()).await.unwrap();
}

/// Methods and callers are what the sender of a request chooses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_values_share_a_label() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for number in 0..10 {
        call(&client, &program.grpc, &format!("/collections.v1.CollectionsService/Method{number}")).await;
        call(&client, &program.grpc, &format!("/a.Service{number}/Method")).await;
        let method = Method::from_bytes(format!("BREW{number}").as_bytes()).unwrap();
        let request = Request::builder().method(method).uri(format!("/path{number}"));
        send(&program.rest, request.body(String::new()).unwrap()).await;
    }
    HealthClient::with_origin(
        Client::builder(TokioExecutor::new()).http2_only(true).build_http(),
        program.grpc.parse().unwrap(),
    )
    .check(HealthCheckRequest { service: String::new() })
    .await
    .unwrap();
    let scrape = Scrape::of(&program.admin).await;
    let count = "rpc_server_call_duration_seconds_count";
    let unimplemented = [
        ("rpc_method", "_OTHER"),
        ("rpc_response_status_code", "UNIMPLEMENTED"),
        ("error_type", "UNIMPLEMENTED"),
    ];
    assert_eq!(scrape.value(count, &unimplemented), 20.0);
    let health = [("rpc_method", "grpc.health.v1.Health/Check"), ("rpc_response_status_code", "OK")];
    assert_eq!(scrape.value(count, &health), 1.0);
    let other = [("http_request_method", "_OTHER"), ("http_route", "")];
    assert_eq!(scrape.series("http_server_request_duration_seconds_count", &other), [10.0]);
    assert!(!["Method1", "BREW", "path1"].iter().any(|text| scrape.0.contains(text)), "{}", scrape.0);

    let metrics = Metrics::new();
    for number in 0..2 * CALLER_LABELS {
        metrics.callers.count(Some(&format!("caller {number}\u{202e}\n")));
    }
    metrics.callers.count(Some("caller 0\u{202e}\n"));
    let scrape = Scrape(metrics.text(MetricsFormat::Plain));
    assert_eq!(scrape.series("collections_destroyed_total", &[]).len(), CALLER_LABELS + 2);
    let other = [("caller", "_OTHER")];
    assert_eq!(scrape.value("collections_destroyed_total", &other), CALLER_LABELS as f64);
    let first = [("caller", r"caller 0\\u{202e}\\n")];
    assert_eq!(scrape.value("collections_destroyed_total", &first), 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serves_openmetrics_when_it_is_accepted() {
    let program = Program::serve(&TestDatabase::new(Backend::Sqlite).await, &[]).await;
    let openmetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let plain = "text/plain; version=0.0.4; charset=utf-8";
    for (accept, format) in
        [(None, plain), (Some("*/*"), plain), (Some("text/plain"), plain), (Some(openmetrics), openmetrics)]
    {
        let mut request = Request::get("/metrics").body(String::new()).unwrap();
        if let Some(accept) = accept {
            request.headers_mut().insert("accept", accept.parse().unwrap());
        }
        let (status, headers, text) = send(&program.admin, request).await;
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, format), "{accept:?}");
        let is_openmetrics = format == openmetrics;
        assert_eq!(text.ends_with("\n# EOF\n"), is_openmetrics, "{text}");
        assert_eq!(text.contains("# TYPE collections_calls counter\n"), is_openmetrics);
        assert_eq!(text.contains("# TYPE collections_calls_total counter\n"), !is_openmetrics);
    }
}

/// Its rules are those of good names, helps and types.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promtool_finds_nothing_wrong() {
    let (database, authority) = (TestDatabase::new(Backend::Sqlite).await, Authority::new("ours"));
    let program = full_program(&database, &authority).await;
    program.wait_until_ready().await;
    send(&program.rest, form_now(&program.rest, "custom-1")).await;
    let (_, _, text) = get(&program.admin, "/metrics").await;
    let mut promtool = std::process::Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = promtool.spawn().expect("no promtool: start the tests with tests/run");
    running.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    let found =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && found.is_empty(), "{found}");
}

async fn the_purge_queue_is_counted_to_a_limit(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let (store, metrics) = (&database.store, database.store.metrics());
    let counted = || {
        let scrape = Scrape(metrics.text(MetricsFormat::Plain));
        ["collections_purge_backlog", "collections_purge_oldest_age_seconds"]
            .map(|name| scrape.series(name, &[]))
    };
    assert_eq!(counted(), [[0.0; 0]; 2]);
    backlog::count_once(store, metrics).await.unwrap();
    assert_eq!(counted(), [[0.0], [0.0]]);
    for id in 1..=3 {
        database.put(id, OWNER).await;
        assert_eq!(super::batches::outcome_of(store, super::batches::destroy_of(id)).await.map(drop), Ok(()));
    }
    database.set_clock(super::support::NOW + 90);
    backlog::count_once(store, metrics).await.unwrap();
    assert_eq!(counted(), [[3.0], [90.0]]);
    assert_eq!(store.purge_queue(2).await.unwrap().rows, 2);
}

#[tokio::test]
async fn the_purge_queue_is_counted_to_a_limit_on_sqlite() {
    the_purge_queue_is_counted_to_a_limit(Backend::Sqlite).await;
}

#[tokio::test]
async fn the_purge_queue_is_counted_to_a_limit_on_postgres() {
    the_purge_queue_is_counted_to_a_limit(Backend::Postgres).await;
}

/// A count that is not possible any more leaves no value behind.
#[tokio::test]
async fn a_purge_queue_that_may_not_be_read_has_no_backlog() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let (role, admin) = (format!("r{}", Entropy::default().hex::<8>()), database.connection().await);
    let made = format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON purge_queue TO {role}");
    admin.execute_unprepared(&made).await.unwrap();
    let url = database.url.replace("//tests@", &format!("//{role}@"));
    let store = connect(&url, Capacity::of(4), &database.clock).await;
    let backlog =
        || Scrape(store.metrics().text(MetricsFormat::Plain)).series("collections_purge_backlog", &[]);
    backlog::count_once(&store, store.metrics()).await.unwrap();
    assert_eq!(backlog(), [0.0]);
    admin.execute_unprepared(&format!("REVOKE SELECT ON purge_queue FROM {role}")).await.unwrap();
    let error = backlog::count_once(&store, store.metrics()).await.unwrap_err().to_string();
    assert!(error.contains("permission denied for table purge_queue"), "{error}");
    assert_eq!(backlog(), [] as [f64; 0]);
}
