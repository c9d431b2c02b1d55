//! Destroys a collection over gRPC: `cargo run --example destroy -- ADDRESS USER ID`
//!
//! ADDRESS is HOST:PORT: 127.0.0.1:50051 for `collections-service dev`. Several are separated by commas, and calls are spread
//! over them. For mutual TLS set TLS_CA, TLS_CERT and TLS_KEY to PEM files. To repeat an operation whose outcome is unknown, set
//! REQUEST_ID to the one that was printed.
//!
//! Another crate generates the client from `proto/collections/v1/collections.proto` with tonic-prost-build. tonic has no service
//! config, so this program retries by the policy in `deploy/service-config.json`, and it has no health checks:
//! a replica that is not serving answers UNAVAILABLE, which is retried.
//!
//! Exit codes: 0 destroyed, 3 not found, 4 not permitted, 5 outcome unknown, 2 wrong arguments, 1 any other error.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::{env, error::Error, fs, process::ExitCode, time::Duration};

use collections_service::proto::{DestroyRequest, collections_service_client::CollectionsServiceClient};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use uuid::Uuid;

/// For all attempts together.
const DEADLINE: Duration = Duration::from_secs(5);

const SERVICE_CONFIG: &str = include_str!("../deploy/service-config.json");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceConfig {
    method_config: [MethodConfig; 1],
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MethodConfig {
    retry_policy: RetryPolicy,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RetryPolicy {
    max_attempts: u32,
    initial_backoff: String,
    max_backoff: String,
    backoff_multiplier: f64,
}

impl RetryPolicy {
    fn load() -> Result<Self, Box<dyn Error>> {
        let ServiceConfig { method_config: [method] } = serde_json::from_str(SERVICE_CONFIG)?;
        Ok(method.retry_policy)
    }

    /// The longest pauses between the attempts. The real ones are random, so that callers do not retry together.
    fn backoffs(&self) -> Result<Vec<Duration>, Box<dyn Error>> {
        let seconds = |text: &str| text.trim_end_matches('s').parse::<f64>();
        let (mut backoff, longest) = (seconds(&self.initial_backoff)?, seconds(&self.max_backoff)?);
        let mut backoffs = Vec::new();
        for _ in 1..self.max_attempts {
            backoffs.push(Duration::try_from_secs_f64(backoff.min(longest))?);
            backoff *= self.backoff_multiplier;
        }
        Ok(backoffs)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [addresses, user, id] = arguments.as_slice() else {
        eprintln!("usage: destroy ADDRESS USER ID");
        return ExitCode::from(2);
    };
    // One for the operation, the same in every attempt: without it, a retry after a lost answer gets NOT_FOUND.
    #[expect(clippy::disallowed_methods, reason = "only the service's own ids come from its Entropy")]
    let request_id = match env::var("REQUEST_ID") {
        Ok(repeated) if !repeated.is_empty() => repeated,
        _ => Uuid::new_v4().to_string(),
    };
    match run(addresses, user, DestroyRequest { id: id.clone(), request_id: request_id.clone() }).await {
        Ok(Ok(())) => {
            println!("destroyed {id}");
            ExitCode::SUCCESS
        }
        Ok(Err(status)) => explain(&status, id, &request_id),
        Err(error) => {
            eprintln!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the outcome of the call, or why there was none.
async fn run(
    addresses: &str,
    user: &str,
    request: DestroyRequest,
) -> Result<Result<(), Status>, Box<dyn Error>> {
    let client = CollectionsServiceClient::new(connect(addresses)?);
    Ok(destroy(client, user.parse()?, request, RetryPolicy::load()?.backoffs()?).await)
}

/// A channel that spreads calls over the addresses. It connects when it is used.
fn connect(addresses: &str) -> Result<Channel, Box<dyn Error>> {
    let tls = match env::var("TLS_CA") {
        Ok(ca) => {
            Some(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(ca)?)).identity(
                Identity::from_pem(fs::read(env::var("TLS_CERT")?)?, fs::read(env::var("TLS_KEY")?)?),
            ))
        }
        Err(_) => None,
    };
    let mut endpoints = Vec::new();
    for address in addresses.split(',') {
        endpoints.push(match &tls {
            Some(tls) => Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls.clone())?,
            None => Endpoint::from_shared(format!("http://{address}"))?,
        });
    }
    Ok(Channel::balance_list(endpoints.into_iter()))
}

/// Calls, and calls again after a pause while the answer is UNAVAILABLE.
async fn destroy(
    mut client: CollectionsServiceClient<Channel>,
    user: AsciiMetadataValue,
    request: DestroyRequest,
    backoffs: Vec<Duration>,
) -> Result<(), Status> {
    let deadline = Instant::now() + DEADLINE;
    let mut backoffs = backoffs.into_iter();
    loop {
        let mut call = Request::new(request.clone());
        call.metadata_mut().insert("x-user-id", user.clone());
        call.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let answer = timeout_at(deadline, client.destroy(call)).await;
        let status = match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
            Ok(_destroyed) => return Ok(()),
            Err(status) => status,
        };
        // tonic reports a connection that breaks before the call was sent as CANCELLED.
        let is_retryable = matches!(status.code(), Code::Unavailable | Code::Cancelled);
        let Some(backoff) = backoffs.next().filter(|_| is_retryable) else {
            return Err(status);
        };
        let jitter = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        sleep(backoff.mul_f64(0.8 + 0.2 * jitter)).await;
    }
}

/// Prints why a call failed, and returns the exit code.
fn explain(status: &Status, id: &str, request_id: &str) -> ExitCode {
    match status.code() {
        Code::NotFound => {
            eprintln!("{id} does not exist, or was destroyed already");
            ExitCode::from(3)
        }
        Code::PermissionDenied => {
            eprintln!("not permitted: {}", status.message());
            ExitCode::from(4)
        }
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
            eprintln!("outcome unknown: {}", status.message());
            eprintln!("to try again: REQUEST_ID={request_id}");
            ExitCode::from(5)
        }
        code => {
            eprintln!("failed: {code:?}: {}", status.message());
            ExitCode::FAILURE
        }
    }
}
