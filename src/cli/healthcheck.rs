//! `healthcheck`: a gRPC health probe with the exit codes of grpc-health-probe.

use std::time::Duration;

use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tonic::{Status, body::Body};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{Exit, address::Address, print};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  collections-service healthcheck
  collections-service healthcheck --addr localhost:9090 --service ''")]
pub struct Args {
    /// The address of an admin listener, or of a gRPC listener without TLS
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9090",
        env = "COLLECTIONS_HEALTHCHECK_ADDR"
    )]
    addr: Address,
    /// The service to check; an empty name stands for the process as a whole
    #[arg(
        long,
        value_name = "NAME",
        default_value = "collections.v1.CollectionsService",
        env = "COLLECTIONS_HEALTHCHECK_SERVICE"
    )]
    service: String,
    /// How long to wait for the answer, in milliseconds
    #[arg(
        long,
        value_name = "MILLISECONDS",
        default_value_t = 2000,
        env = "COLLECTIONS_HEALTHCHECK_TIMEOUT_MS"
    )]
    timeout_ms: u64,
}

pub async fn run(args: Args) -> Result<(), Exit> {
    let checked = tokio::time::timeout(Duration::from_millis(args.timeout_ms), check(&args)).await;
    match checked.unwrap_or_else(|_elapsed| Err(Exit::Code(2, format!("no answer from {}", args.addr))))? {
        ServingStatus::Serving => {
            // The code is the answer.
            drop(print("serving"));
            Ok(())
        }
        other => Err(Exit::Code(4, format!("not serving: {}", other.as_str_name()))),
    }
}

async fn check(args: &Args) -> Result<ServingStatus, Exit> {
    // Tries all addresses of a host name.
    tokio::net::TcpStream::connect(args.addr.to_string())
        .await
        .map_err(|error| Exit::Code(2, format!("{}: {error}", args.addr)))?;
    let http: Client<HttpConnector, Body> =
        Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let origin =
        format!("http://{}", args.addr).parse().map_err(|error| Exit::Code(1, format!("{error}")))?;
    let mut client = HealthClient::with_origin(http, origin);
    let answer = client.check(HealthCheckRequest { service: args.service.clone() }).await.map_err(rpc)?;
    Ok(answer.get_ref().status())
}

fn rpc(status: Status) -> Exit {
    Exit::Code(3, format!("{:?}: {}", status.code(), status.message()))
}
