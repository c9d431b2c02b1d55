//! The log cannot hurt: neither who reads it, nor what is in it.

use std::time::Duration;

use nix::sys::signal::Signal;
use tonic::{Code, Request};

use super::support::{
    Backend, OTHER, OWNER, TestDatabase, form_at,
    program::{Program, run},
    rpc, send,
};
use collections_service::{config::telemetry::VALUE_LIMIT, domain::Clock, proto::DestroyRequest};

/// A pipe holds 64 KiB of lines, and the writer's queue holds [`collections_service::config::telemetry::QUEUED_LINES`].
const CALLS: usize = 12_000;

fn call(request_id: &str) -> Request<DestroyRequest> {
    let mut request = call_for("custom-1", "");
    request.metadata_mut().insert("x-request-id", request_id.parse().unwrap());
    request
}

fn call_for(id: &str, request_id: &str) -> Request<DestroyRequest> {
    let message = DestroyRequest { id: id.to_owned(), request_id: request_id.to_owned() };
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-user-id", OWNER.to_string().parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_reader_stops_neither_calls_nor_health_nor_the_shutdown() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let mut program = Program::serve(&database, &[]).await;
    program.wait_until_ready().await;
    program.stall_log();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = rpc(&program.grpc);
        callers.spawn(async move {
            for _ in 0..CALLS / 8 {
                assert_eq!(client.destroy(call("r")).await.unwrap_err().code(), Code::NotFound);
            }
        });
    }
    callers.join_all().await;
    let admin = program.admin.trim_start_matches("http://").to_owned();
    assert_eq!(run(&["healthcheck", "--addr", &admin], &[]).await.0, 0);
    program.signal(Signal::SIGTERM);
    assert_eq!(program.exit_status(Duration::from_secs(10)).await.code(), Some(0));
}

/// A line as the snapshot has it: sorted fields, and a name for each value that differs from run to run.
fn shown(line: &str) -> String {
    let mut event: serde_json::Map<_, _> = serde_json::from_str(line).unwrap();
    let message = event["message"].as_str().unwrap().to_owned();
    for (name, value) in &mut event {
        let text = value.as_str().unwrap_or_default();
        let shown = match name.as_str() {
            "timestamp" => "[time]".to_owned(),
            "transaction.id" => "[transaction]".to_owned(),
            "request.id" if text.len() == 16 => "[transaction]".to_owned(),
            "version" => "[version]".to_owned(),
            _ if value.is_f64() || (value.is_u64() && message.contains("limits")) => "[number]".to_owned(),
            _ if text.starts_with("127.0.0.1:") => "127.0.0.1:[port]".to_owned(),
            _ => continue,
        };
        *value = shown.into();
    }
    // The clock's part in why a timestamp was refused.
    let line = serde_json::to_string(&event).unwrap();
    let is_seconds = |word: &str| word.len() == 10 && word.bytes().all(|byte| byte.is_ascii_digit());
    let words = line.split(' ').map(|word| if is_seconds(word) { "[seconds]" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_are_as_stored() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    database.put(1, OWNER).await;
    database.put(2, OTHER).await;
    database.put(3, OWNER).await;
    let program = Program::serve(&database, &[]).await;
    let mut client = rpc(&program.grpc);
    let key = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
    client.destroy(call_for("custom-1", key)).await.unwrap();
    client.destroy(call_for("custom-1", key)).await.unwrap();
    client.destroy(call_for("custom-1", "")).await.unwrap_err();
    client.destroy(call_for("custom-2", "")).await.unwrap_err();
    client.destroy(call_for("2", "")).await.unwrap_err();
    let now = Clock::System.now().timestamp();
    for (request, status) in [
        (form_at(&program.rest, "custom-3", now), 200),
        (form_at(&program.rest, "custom-3", now), 404),
        (form_at(&program.rest, "custom-3", now - 100_000), 401),
        (http::Request::get("/").body(String::new()).unwrap(), 404),
        (http::Request::get("/openapi.json").body(String::new()).unwrap(), 200),
    ] {
        assert_eq!(send(&program.rest, request).await.0, status);
    }
    program.signal(Signal::SIGTERM);
    let (_, lines) = program.ended(Duration::from_secs(10)).await;
    insta::assert_snapshot!(lines.iter().map(|line| shown(line)).collect::<Vec<_>>().join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_clients_are_truncated() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    let long = "x".repeat(4000);
    rpc(&program.grpc).destroy(call(&long)).await.unwrap_err();
    let request =
        http::Request::get(format!("/{long}")).header("x-request-id", &long).header("traceparent", &long);
    send(&program.rest, request.body(String::new()).unwrap()).await;
    program.signal(Signal::SIGTERM);
    let (_, lines) = program.ended(Duration::from_secs(10)).await;
    let of_calls: Vec<_> = lines.iter().filter(|line| line.contains("request.id")).collect();
    assert_eq!(of_calls.len(), 2, "{lines:?}");
    for line in of_calls {
        assert!(
            line.contains(&"x".repeat(VALUE_LIMIT - 1)) && !line.contains(&"x".repeat(VALUE_LIMIT + 1)),
            "{line}"
        );
    }
}
