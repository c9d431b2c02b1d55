//! The log cannot hurt: neither who reads it, nor what is in it.

use std::time::Duration;

use nix::sys::signal::Signal;
use tonic::{Code, Request};

use super::support::{
    Backend, Ground, OWNER,
    program::{Program, run},
    rpc,
};
use collections_service::{config::telemetry::VALUE_LIMIT, proto::DestroyRequest};

/// A pipe holds 64 KiB of lines, and the writer's queue holds [`collections_service::config::telemetry::QUEUED_LINES`].
const CALLS: usize = 12_000;

fn call(request_id: &str) -> Request<DestroyRequest> {
    let message = DestroyRequest { id: "custom-1".to_owned(), request_id: String::new() };
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-user-id", OWNER.to_string().parse().unwrap());
    request.metadata_mut().insert("x-request-id", request_id.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_reader_stops_neither_calls_nor_health_nor_the_shutdown() {
    let ground = Ground::new(Backend::Sqlite).await;
    let mut program = Program::serve(&ground, &[]).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_from_outside_are_cut() {
    let ground = Ground::new(Backend::Sqlite).await;
    let program = Program::serve(&ground, &[]).await;
    let long = "x".repeat(4000);
    rpc(&program.grpc).destroy(call(&long)).await.unwrap_err();
    let request =
        http::Request::get(format!("/{long}")).header("x-request-id", &long).header("traceparent", &long);
    super::support::send(&program.rest, request.body(String::new()).unwrap()).await;
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
