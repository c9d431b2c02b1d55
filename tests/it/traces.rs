//! Traces, as a collector receives them from the program.

use std::{collections::BTreeSet, time::Duration};

use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{Code, Request, Response, Status};

use super::support::{
    Backend, OTHER, OWNER, PATH, TestDatabase,
    collector::{Collector, Received},
    form_now,
    pki::{Authority, For},
    program::{Program, path, run},
    rpc, send,
};
use collections_service::proto::{DestroyRequest, DestroyResponse};

const METHOD: &str = "collections.v1.CollectionsService/Destroy";
const SERVE: [&str; 4] = ["serve", "--insecure-identity", "--grpc-addr", "127.0.0.1:0"];
/// Exports at once.
const PROMPTLY: &str = "export OTEL_BSP_SCHEDULE_DELAY=20";
/// Exports at the end alone.
const LATE: &str = "export OTEL_BSP_SCHEDULE_DELAY=3600000";
const BOUND: Duration = Duration::from_secs(15);

async fn serve(setup: &str, database: &TestDatabase, flags: &[&str]) -> Program {
    let program = Program::start_after(setup, database, &[&SERVE[..], flags].concat()).await;
    program.wait_until_ready().await;
    program
}

/// A caller's context: trace, span and flags. The ids are made of the number.
fn context(number: u8, flags: &str) -> String {
    format!("00-{}-{}-{flags}", trace(number), format!("{number:02x}").repeat(8))
}

fn trace(number: u8) -> String {
    format!("{number:02x}").repeat(16)
}

async fn destroy(
    origin: &str,
    owner: i64,
    id: &str,
    traceparent: Option<&str>,
) -> Result<Response<DestroyResponse>, Status> {
    let mut request = Request::new(DestroyRequest { id: id.to_owned(), request_id: String::new() });
    request.metadata_mut().insert("x-user-id", owner.to_string().parse().unwrap());
    if let Some(traceparent) = traceparent {
        request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    }
    rpc(origin).destroy(request).await
}

/// Stops the program; its log lines as JSON.
async fn stop(program: Program) -> Vec<Value> {
    program.signal(Signal::SIGTERM);
    let (status, lines) = program.ended(BOUND).await;
    assert_eq!(status.code(), Some(0), "{lines:?}");
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn lines<'a>(log: &'a [Value], message: &str) -> Vec<&'a Value> {
    log.iter().filter(|line| line["message"] == message).collect()
}

fn attribute<'a>(span: &'a Received, name: &str) -> &'a str {
    span.attributes.get(name).map_or("", String::as_str)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_gateway_rpc_and_statement_as_one_tree() {
    for (backend, system) in [(Backend::Postgres, "postgresql"), (Backend::Sqlite, "sqlite")] {
        let database = TestDatabase::new(backend).await;
        database.put(1, OWNER).await;
        let collector = Collector::start().await;
        let flags = ["--otlp-endpoint", &collector.url, "--otlp-sample", "1"];
        let service = serve(PROMPTLY, &database, &flags).await;
        let upstream = [&["gateway", "--upstream", &service.grpc], &flags[..]].concat();
        let gateway = Program::start_after(PROMPTLY, &database, &upstream).await;

        let mut request = form_now(&gateway.rest, "custom-1");
        request.headers_mut().insert("traceparent", context(7, "01").parse().unwrap());
        request.headers_mut().insert("tracestate", "vendor=value".parse().unwrap());
        assert_eq!(send(&gateway.rest, request).await.0, 200);
        let spans = collector.spans.wait_for(4).await;
        let below = |parent: &str| {
            let children: Vec<_> = spans.iter().filter(|span| span.parent == parent).collect();
            assert_eq!(children.len(), 1, "below {parent}: {spans:#?}");
            children[0]
        };
        let edge = below(&"07".repeat(8));
        let call = below(&edge.id);
        let served = below(&call.id);
        let statement = below(&served.id);
        for (span, kind, name, service) in [
            (edge, SpanKind::Server, format!("POST {PATH}"), "collections-gateway"),
            (call, SpanKind::Client, METHOD.to_owned(), "collections-gateway"),
            (served, SpanKind::Server, METHOD.to_owned(), "collections-service"),
            (statement, SpanKind::Client, "destroy".to_owned(), "collections-service"),
        ] {
            assert_eq!((span.kind, &span.name, &span.trace), (kind, &name, &trace(7)));
            assert_eq!((span.state.as_str(), span.is_error), ("vendor=value", false), "{span:?}");
            assert_eq!(span.resource["service.name"], service);
            assert!(span.nanoseconds.0 > 0 && span.nanoseconds.0 <= span.nanoseconds.1, "{span:?}");
        }
        assert_eq!(attribute(edge, "http.request.method"), "POST");
        assert_eq!(attribute(edge, "http.route"), PATH);
        assert_eq!(attribute(edge, "http.response.status_code"), "200");
        for span in [call, served] {
            assert_eq!(attribute(span, "rpc.system.name"), "grpc");
            assert_eq!(attribute(span, "rpc.method"), METHOD);
            assert_eq!(attribute(span, "rpc.response.status_code"), "OK");
        }
        assert_eq!(attribute(statement, "db.system.name"), system);
        assert_eq!(attribute(statement, "db.operation.name"), "destroy");
        assert!(!statement.attributes.contains_key("db.operation.batch.size"));

        let scrape =
            http::Request::get("/metrics").header("accept", "application/openmetrics-text; version=1.0.0");
        let (_, _, metrics) = send(&service.admin, scrape.body(String::new()).unwrap()).await;
        let is_exemplar = |line: &&str| line.starts_with("rpc_server_call") && line.contains(&trace(7));
        assert_eq!(metrics.lines().filter(is_exemplar).count(), 1, "{metrics}");

        let (outer, inner) = (stop(gateway).await, stop(service).await);
        let (outer, inner) = (lines(&outer, "request")[0], lines(&inner, "call")[0]);
        for (line, span) in [(outer, edge), (inner, served)] {
            assert_eq!((&line["trace_id"], &line["span_id"]), (&trace(7).into(), &span.id.as_str().into()));
            assert!(line["traceparent"].is_null());
        }
        assert_eq!(collector.spans.all().len(), 4, "{:#?}", collector.spans.all());
    }
}

/// A lock on the file holds the statement back until eight calls wait for it; then the ninth is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_a_statement_with_all_recorded_calls_that_share_it() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let collector = Collector::start().await;
    let flags = ["--otlp-endpoint", &collector.url, "--max-in-flight", "16", "--purge", "off"];
    let program = serve(LATE, &database, &flags).await;
    let lock = database.connection().await;
    let lock =
        sea_orm::ConnectionTrait::execute_unprepared(&lock, "BEGIN IMMEDIATE").await.map(|_| lock).unwrap();
    let mut calls = JoinSet::new();
    for number in 1..=9 {
        let origin = program.grpc.clone();
        calls.spawn(async move {
            let is_sampled = number % 3 != 0;
            let parent = context(number, if is_sampled { "01" } else { "00" });
            let answer = destroy(&origin, OWNER, &format!("custom-{number}"), Some(&parent)).await;
            (number, is_sampled, answer.unwrap_err().code())
        });
    }
    let (refused, is_recorded, code) = calls.join_next().await.unwrap().unwrap();
    assert_eq!(code, Code::Unavailable);
    sea_orm::ConnectionTrait::execute_unprepared(&lock, "ROLLBACK").await.unwrap();
    let mut recorded = BTreeSet::new();
    for (number, is_sampled, code) in calls.join_all().await {
        assert_eq!(code, Code::NotFound);
        recorded.extend(is_sampled.then(|| trace(number)));
    }
    stop(program).await;

    let spans = collector.spans.all();
    let (statements, served): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.name == "destroy");
    assert_eq!(served.len(), recorded.len() + usize::from(is_recorded), "{spans:#?}");
    for span in &served {
        let is_refused = span.trace == trace(refused);
        let status = if is_refused { "UNAVAILABLE" } else { "NOT_FOUND" };
        assert_eq!((attribute(span, "rpc.response.status_code"), span.is_error), (status, is_refused));
        assert_eq!(attribute(span, "error.type"), if is_refused { status } else { "" });
    }
    let [statement] = statements[..] else { panic!("one statement: {spans:#?}") };
    assert_eq!(attribute(statement, "db.operation.batch.size"), "8");
    let of = |id: &str| served.iter().find(|span| span.id == id).unwrap();
    let first = of(&statement.parent);
    assert_eq!(statement.trace, first.trace);
    let linked: BTreeSet<_> = statement.links.iter().map(|id| of(id).trace.clone()).collect();
    assert_eq!(statement.links.len(), linked.len());
    assert_eq!(linked, recorded.iter().filter(|trace| **trace != first.trace).cloned().collect());
    for id in &statement.links {
        assert_eq!(of(id).links, std::slice::from_ref(&statement.id), "no link back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_has_decided_has_precedence_over_the_ratio() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    for (ratio, malformed_is_recorded) in [("0", false), ("1", true)] {
        let collector = Collector::start().await;
        let flags = ["--otlp-endpoint", &collector.url, "--otlp-sample", ratio];
        let program = serve(LATE, &database, &flags).await;
        let malformed = context(3, "01").replace("00-", "ff-");
        for parent in [&context(1, "01"), &context(2, "00"), &malformed] {
            destroy(&program.grpc, OWNER, "custom-9", Some(parent)).await.unwrap_err();
        }
        let log = stop(program).await;
        // Nothing is exported before the end: the drain has sent all of it.
        let spans: Vec<_> = collector.spans.all();
        let served: Vec<_> = spans.iter().filter(|span| span.name == METHOD).collect();
        assert_eq!(served.len(), 1 + usize::from(malformed_is_recorded), "{ratio}: {spans:#?}");
        assert_eq!((&served[0].trace, &served[0].parent), (&trace(1), &"01".repeat(8)));
        if let Some(new) = served.get(1) {
            assert_eq!(new.parent, "");
            assert_ne!(new.trace, trace(3));
        }
        let ids: Vec<_> = lines(&log, "call").iter().map(|line| line["trace_id"].as_str().unwrap()).collect();
        assert_eq!(ids[..2], [trace(1), trace(2)]);
        assert!(ids[2].len() == 32 && ids[2] != trace(3), "{ids:?}");
        assert!(served.get(1).is_none_or(|new| new.trace == ids[2]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_server_errors_alone_as_errors() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    database.put(1, OTHER).await;
    let collector = Collector::start().await;
    let program = serve(LATE, &database, &["--otlp-endpoint", &collector.url, "--otlp-sample", "1"]).await;
    for id in ["custom-1", "custom-2", "x"] {
        destroy(&program.grpc, OWNER, id, None).await.unwrap_err();
    }
    for (method, target) in [("GET", PATH), ("POST", "/elsewhere"), ("PURGE", "/elsewhere")] {
        let request = http::Request::builder().method(method).uri(target).body(String::new()).unwrap();
        send(&program.rest, request).await;
    }
    // The file is gone: the statement fails.
    std::fs::remove_file(database.folder.path().join("db")).unwrap();
    let status = destroy(&program.grpc, OWNER, "custom-3", None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    stop(program).await;
    let spans = collector.spans.all();
    let of = |name: &str, key: &str| -> Vec<_> {
        let named = spans.iter().filter(|span| span.name == name);
        named.map(|span| (attribute(span, key).to_owned(), span.is_error)).collect()
    };
    let expected = [
        ("PERMISSION_DENIED", false),
        ("NOT_FOUND", false),
        ("INVALID_ARGUMENT", false),
        ("UNAVAILABLE", true),
    ];
    assert_eq!(
        of(METHOD, "rpc.response.status_code"),
        expected.map(|(code, error)| (code.to_owned(), error))
    );
    let outcomes: Vec<_> =
        of(METHOD, "collections.outcome").into_iter().map(|(outcome, _)| outcome).collect();
    assert_eq!(outcomes, ["NOT_OWNER", "COLLECTION_NOT_FOUND", "ID_INVALID", "STORE_UNAVAILABLE"]);
    assert_eq!(of(&format!("GET {PATH}"), "http.response.status_code"), [("400".to_owned(), false)]);
    assert_eq!(of("POST", "http.response.status_code"), [("404".to_owned(), false)]);
    assert_eq!(of("HTTP", "http.request.method_original"), [("PURGE".to_owned(), false)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_fails_neither_calls_nor_the_drain() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let program = serve(PROMPTLY, &database, &["--otlp-endpoint", &url, "--otlp-sample", "1"]).await;
    let call = async || {
        assert_eq!(destroy(&program.grpc, OWNER, "custom-1", None).await.unwrap_err().code(), Code::NotFound);
    };
    // More connections than one export tries.
    for _ in 0..10 {
        call().await;
        drop(listener.accept().await.unwrap());
    }
    let collector = Collector::on(listener);
    while collector.spans.all().is_empty() {
        call().await;
    }
    let log = stop(program).await;
    assert_eq!(
        lines(&log, "traces cannot be exported; spans are dropped until the collector accepts them").len(),
        1
    );
    let again = lines(&log, "traces are exported again");
    assert!(again.len() == 1 && again[0]["spans_lost"].as_u64().unwrap() > 0, "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_does_not_answer_delays_the_end_for_seconds_at_most() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let flags = ["--otlp-endpoint", &url, "--otlp-sample", "1", "--drain-seconds", "2"];
    let program = serve(&format!("{PROMPTLY} OTEL_BSP_MAX_QUEUE_SIZE=3"), &database, &flags).await;
    destroy(&program.grpc, OWNER, "custom-1", None).await.unwrap_err();
    let _silent = listener.accept().await.unwrap();
    for _ in 0..5 {
        destroy(&program.grpc, OWNER, "custom-1", None).await.unwrap_err();
    }
    program.signal(Signal::SIGTERM);
    let (status, log) = program.ended(Duration::from_secs(8)).await;
    assert_eq!(status.code(), Some(0));
    let log: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let lost = lines(&log, "spans were not exported");
    let sum = lost[0]["spans_failed"].as_u64().unwrap() + lost[0]["spans_dropped"].as_u64().unwrap();
    assert_eq!((lost.len(), sum), (1, 12), "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honours_the_standard_variables() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let folder = database.folder.path();
    let authority = Authority::new("ours");
    let ca = authority.write(folder, "ca.pem");
    let (certificate, key) = authority.issue(&["service"], For::Client).write(folder, "client");
    let collector = Collector::start_tls(&authority, &authority.server()).await;
    let other = Collector::start().await;
    let setup = format!(
        "{LATE} OTEL_EXPORTER_OTLP_ENDPOINT={} OTEL_EXPORTER_OTLP_CERTIFICATE={} OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE={} \
         OTEL_EXPORTER_OTLP_CLIENT_KEY={} OTEL_EXPORTER_OTLP_HEADERS=x-tenant=one OTEL_EXPORTER_OTLP_COMPRESSION=gzip \
         OTEL_SERVICE_NAME=named OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test,service.name=unused \
         OTEL_TRACES_SAMPLER=always_on",
        collector.url,
        path(&ca),
        path(&certificate),
        path(&key)
    );
    let program = serve(&setup, &database, &[]).await;
    destroy(&program.grpc, OWNER, "custom-1", Some(&context(1, "00"))).await.unwrap_err();
    stop(program).await;
    let spans = collector.spans.all();
    assert_eq!(spans.len(), 2, "{spans:#?}");
    let resource = &spans[0].resource;
    assert_eq!((&*resource["service.name"], &*resource["deployment.environment.name"]), ("named", "test"));
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    let exports = collector.spans.exports();
    assert_eq!(exports[0].get("x-tenant").unwrap(), "one");
    assert_eq!(exports[0].get("grpc-encoding").unwrap(), "gzip");

    // The flags have precedence.
    let program = serve(&setup, &database, &["--otlp-endpoint", &other.url, "--otlp-sample", "0"]).await;
    destroy(&program.grpc, OWNER, "custom-1", Some(&context(1, "00"))).await.unwrap_err();
    destroy(&program.grpc, OWNER, "custom-1", Some(&context(2, "01"))).await.unwrap_err();
    stop(program).await;
    assert_eq!((collector.spans.all().len(), other.spans.all().len()), (2, 2));

    for off in ["OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=none"] {
        let program = serve(&format!("{setup} {off}"), &database, &[]).await;
        destroy(&program.grpc, OWNER, "custom-1", Some(&context(3, "01"))).await.unwrap_err();
        destroy(&program.grpc, OWNER, "custom-1", Some("malformed")).await.unwrap_err();
        let log = stop(program).await;
        assert_eq!(collector.spans.all().len(), 2);
        let calls = lines(&log, "call");
        assert_eq!(calls[0]["trace_id"], trace(3));
        assert!(calls[0]["span_id"].is_null() && calls[1]["trace_id"].is_null(), "{calls:?}");
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_is_refused() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let key = database.folder.path().join("key");
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
    for (flags, variables, expected) in [
        (&["--otlp-endpoint", "collector:4317"][..], &[][..], "--otlp-endpoint"),
        (&["--otlp-endpoint", "http://collector:4318/v1/traces"], &[], "--otlp-endpoint"),
        (&["--otlp-endpoint", "http://user:secret@collector:4317"], &[], "--otlp-endpoint"),
        (&["--otlp-endpoint", endpoint.1, "--otlp-sample", "1.5"], &[], "--otlp-sample"),
        (&["--otlp-sample", "0.5"], &[], "--otlp-sample: has no effect without --otlp-endpoint"),
        (&[], &[("COLLECTIONS_OTLP_ENDPOINT", "x")], "--otlp-endpoint"),
        (&[], &[(endpoint.0, "collector:4317")], "OTEL_EXPORTER_OTLP_ENDPOINT: expected http"),
        (
            &[],
            &[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
            "OTEL_EXPORTER_OTLP_PROTOCOL: only grpc",
        ),
        (&[], &[endpoint, ("OTEL_TRACES_SAMPLER", "xray")], "OTEL_TRACES_SAMPLER: expected always_on"),
        (
            &[],
            &[endpoint, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")],
            "OTEL_TRACES_SAMPLER_ARG: expected a number from 0 to 1",
        ),
        (
            &[],
            &[endpoint, ("OTEL_BSP_MAX_QUEUE_SIZE", "0")],
            "OTEL_BSP_MAX_QUEUE_SIZE: expected a positive number",
        ),
        (
            &["--otlp-endpoint", "https://collector:4317"],
            &[("OTEL_EXPORTER_OTLP_CERTIFICATE", "/missing.pem")],
            "OTEL_EXPORTER_OTLP_CERTIFICATE /missing.pem: ",
        ),
        (
            &["--otlp-endpoint", "https://collector:4317"],
            &[("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/dev/null")],
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: is needed",
        ),
    ] {
        for command in [&SERVE[..], &["gateway", "--upstream", "http://127.0.0.1:1"]] {
            let arguments = [command, &["--credentials-key-file", path(&key)], flags].concat();
            let database = ("COLLECTIONS_DATABASE_URL", database.url.as_str());
            let (code, _, error) = run(&arguments, &[&[database], variables].concat()).await;
            assert_eq!(code, 2, "{flags:?} {variables:?}: {error}");
            assert!(
                error.contains(expected) && !error.contains("secret"),
                "{flags:?} {variables:?}: {error}"
            );
        }
    }
}
