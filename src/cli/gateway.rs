//! `gateway`: the REST side in a process of its own, in front of the RPC elsewhere.

use std::{path::PathBuf, time::Duration};

use super::{
    Exit,
    address::Address,
    credentials::read_keys,
    database::DatabaseArgs,
    edge::Edge,
    heading::{DATABASE, LISTENERS, PROCESS, REST_CLIENTS, UPSTREAM},
    jwt::JwtArgs,
    rate_limit::RateLimitArgs,
    serve::run_settings,
    traces::TraceArgs,
};
use crate::{
    config,
    domain::{Clock, Entropy, Secret},
    net::{ClientTls, KeyPair},
    server::{Rpc, Settings},
    store::Capacity,
    telemetry::Metrics,
    upstream::UpstreamUrl,
};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The RPC: `https://<host>:<port>`
    ///
    /// Calls take turns among all addresses of the host.
    #[arg(long, value_name = "URL", env = "COLLECTIONS_UPSTREAM", hide_env_values = true, help_heading = UPSTREAM)]
    upstream: Secret,
    /// PEM file of the authorities that sign the RPC's certificate [default: the authorities that browsers trust]
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_UPSTREAM_CA", help_heading = UPSTREAM)]
    upstream_ca: Option<PathBuf>,
    /// PEM file of the certificate chain by which this gateway authenticates to the RPC as a trusted peer
    ///
    /// It is read again when it changes.
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_UPSTREAM_CERT", requires = "upstream_key", help_heading = UPSTREAM)]
    upstream_cert: Option<PathBuf>,
    /// PEM file of the private key of `--upstream-cert`
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_UPSTREAM_KEY", requires = "upstream_cert", help_heading = UPSTREAM)]
    upstream_key: Option<PathBuf>,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Connections to PostgreSQL
    #[arg(long, value_name = "COUNT", default_value_t = 4, env = "COLLECTIONS_DATABASE_CONNECTIONS", value_parser = clap::value_parser!(u32).range(2..=1000), help_heading = DATABASE)]
    database_connections: u32,
    /// The address of the REST listener
    ///
    /// Of a host name such as `localhost:8080`, the first address that belongs to this machine is used.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", env = "COLLECTIONS_REST_ADDR", help_heading = LISTENERS)]
    rest_addr: Address,
    /// The address of the admin listener: health for probes, and metrics, without TLS
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090", env = "COLLECTIONS_ADMIN_ADDR", help_heading = LISTENERS)]
    admin_addr: Address,
    /// The file with the keys that open OAuth secrets
    ///
    /// Each line is `<key id>:<base64 of 32 bytes>`. The file must not be readable by all users. It is read again when it
    /// changes.
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_CREDENTIALS_KEY_FILE", help_heading = REST_CLIENTS)]
    credentials_key_file: PathBuf,
    #[command(flatten)]
    edge: Edge,
    #[command(flatten)]
    jwt: JwtArgs,
    #[command(flatten)]
    rate_limit: RateLimitArgs,
    /// Threads that serve requests
    ///
    /// TLS handshakes and the verification of bearer tokens have threads of their own.
    #[arg(long, value_name = "COUNT", default_value_t = 1, env = "COLLECTIONS_WORKER_THREADS", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = PROCESS)]
    pub worker_threads: u16,
    /// Seconds that accepted requests have to finish after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 20, env = "COLLECTIONS_DRAIN_SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600), help_heading = PROCESS)]
    drain_seconds: u64,
    #[command(flatten)]
    traces: TraceArgs,
}

const EXAMPLES: &str = "Example:
  collections-service gateway --rest-addr 0.0.0.0:8080 --upstream https://collections.example.org:50051 --upstream-ca ca.pem --upstream-cert gateway.pem --upstream-key gateway.key --credentials-key-file credentials.key

The example takes the database from COLLECTIONS_DATABASE_URL.";

pub async fn run(args: Args) -> Result<(), Exit> {
    let settings = settings(&args).await?;
    let capacity = Capacity::without_destroys(args.database_connections);
    run_settings(args.database.url(), capacity, args.worker_threads, settings, || ()).await
}

async fn settings(args: &Args) -> Result<Settings, Exit> {
    // Not by clap, whose message would show a password.
    let upstream = args.upstream.expose().parse::<UpstreamUrl>();
    let upstream = upstream.map_err(|error| Exit::Usage(format!("--upstream: {error}")))?;
    let key_pair = args.upstream_cert.clone().zip(args.upstream_key.clone());
    let key_pair = key_pair.map(|(certificate, key)| KeyPair { certificate, key });
    let refuse = |message: &str| Err(Exit::Usage(message.to_owned()));
    match (upstream.is_tls(), &key_pair) {
        (true, None) => {
            return refuse(
                "--upstream-cert: is needed, or the RPC does not accept this gateway as a trusted peer",
            );
        }
        (false, Some(_)) => {
            return refuse("--upstream-cert: has no effect, because --upstream is plain http");
        }
        _ => {}
    }
    if !upstream.is_tls() && args.upstream_ca.is_some() {
        return refuse("--upstream-ca: has no effect, because --upstream is plain http");
    }
    let rest_address = args.rest_addr.resolve("--rest-addr").await?.to_bind();
    let (entropy, metrics) = (Entropy::default(), Metrics::new());
    let keys = read_keys(&args.credentials_key_file, entropy.clone())?;
    let redis = args.rate_limit.redis(&metrics)?;
    let user_limit = args.rate_limit.user_limit(redis.as_ref());
    if redis.is_some() && user_limit.is_none() {
        return refuse("--redis-url: has no effect, because --rate-limit is 0");
    }
    Ok(Settings {
        rpc: Rpc::Upstream(upstream, ClientTls { authorities: args.upstream_ca.clone(), key_pair }),
        rest: Some(args.edge.rest(rest_address, keys, user_limit)?),
        jwt: args.jwt.settings()?,
        admin: args.admin_addr.resolve("--admin-addr").await?.to_bind(),
        purge: None,
        max_in_flight: config::calls::IN_FLIGHT as usize,
        drain: Duration::from_secs(args.drain_seconds),
        metrics,
        traces: args.traces.start("collections-gateway", &entropy)?,
        clock: Clock::System,
        entropy,
    })
}
