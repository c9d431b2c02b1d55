//! `serve`: the service in production. It refuses to start on an unsafe or half-given configuration.

use std::{path::PathBuf, str::FromStr, time::Duration};

use super::{
    Exit, VERSION,
    address::{Address, AddressError},
    credentials::read_keys,
    database::DatabaseArgs,
    edge::{Edge, GrpcTls},
    heading::{DATABASE, GRPC_CALLERS, LIMITS, LISTENERS, PROCESS, PURGE, REST_CLIENTS},
    jwt::JwtArgs,
    purge::PaceArgs,
    rate_limit::{self, RateLimitArgs},
    signal::Stop,
    traces::TraceArgs,
};
use crate::{
    config::{self, DatabaseUrl},
    domain::{Clock, Entropy},
    rate_limit::Rule,
    server::{Grpc, NotReady, Rpc, Running, Settings, StartError},
    store::{Capacity, Store},
    telemetry::Metrics,
};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Connections to PostgreSQL
    ///
    /// One for each batch in flight, one for readiness, one for the purge, the others for credentials and for destroys that
    /// wait for a locked row. SQLite gets one.
    #[arg(long, value_name = "COUNT", default_value_t = 8, env = "COLLECTIONS_DATABASE_CONNECTIONS", value_parser = clap::value_parser!(u32).range(4..=1000), help_heading = DATABASE)]
    database_connections: u32,
    /// Destroys in one statement, at most
    #[arg(long, value_name = "COUNT", default_value_t = config::store::BATCH_MAX, env = "COLLECTIONS_BATCH_MAX", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = DATABASE)]
    batch_max: u32,
    /// Statements that destroy at the same time
    ///
    /// More of them make smaller batches. SQLite has one.
    #[arg(long, value_name = "COUNT", default_value_t = 1, env = "COLLECTIONS_BATCHES_IN_FLIGHT", value_parser = clap::value_parser!(u32).range(1..=64), help_heading = DATABASE)]
    batches_in_flight: u32,
    /// The address of the gRPC listener: the service, health and reflection
    ///
    /// Of a host name such as `localhost:50051`, the first address that belongs to this machine is used.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051", env = "COLLECTIONS_GRPC_ADDR", help_heading = LISTENERS)]
    grpc_addr: Address,
    /// The address of the REST listener, which serves the 1.1 API, or `off`
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", env = "COLLECTIONS_REST_ADDR", help_heading = LISTENERS)]
    rest_addr: RestAddr,
    /// The address of the admin listener: health for probes, and metrics, without TLS
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090", env = "COLLECTIONS_ADMIN_ADDR", help_heading = LISTENERS)]
    admin_addr: Address,
    #[command(flatten)]
    grpc_tls: GrpcTls,
    /// Accept `x-user-id` from every caller, for development
    ///
    /// Accepted only where `--grpc-addr` has loopback addresses alone.
    #[arg(long, env = "COLLECTIONS_INSECURE_IDENTITY", help_heading = GRPC_CALLERS)]
    insecure_identity: bool,
    #[command(flatten)]
    jwt: JwtArgs,
    /// The file with the keys that seal OAuth secrets; required by the REST listener
    ///
    /// Each line is `<key id>:<base64 of 32 bytes>`, and the first key seals. The file must not be readable by all users. It
    /// is read again when it changes.
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_CREDENTIALS_KEY_FILE", help_heading = REST_CLIENTS)]
    credentials_key_file: Option<PathBuf>,
    #[command(flatten)]
    edge: Edge,
    #[command(flatten)]
    rate_limit: RateLimitArgs,
    /// gRPC calls that one calling service may make in each window, such as `10000/1h`; 0 for no limit
    #[arg(long, value_name = "CALLS/WINDOW", default_value = "0", env = "COLLECTIONS_CALLER_RATE_LIMIT", help_heading = LIMITS)]
    caller_rate_limit: Rule,
    /// Calls in flight; further calls are refused at once with UNAVAILABLE
    ///
    /// One client address, user or calling service never gets more places than are free, so that some stay free for others.
    #[arg(long, value_name = "COUNT", default_value_t = config::calls::IN_FLIGHT, env = "COLLECTIONS_MAX_IN_FLIGHT", value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = LIMITS)]
    max_in_flight: u32,
    /// Whether this process erases the entries of destroyed collections
    ///
    /// At least one process that uses the database must.
    #[arg(long, value_enum, default_value_t = Switch::On, env = "COLLECTIONS_PURGE", help_heading = PURGE)]
    purge: Switch,
    #[command(flatten)]
    purge_pace: PaceArgs,
    /// Threads that serve calls
    ///
    /// One thread can use all that PostgreSQL can do. TLS handshakes and the verification of bearer tokens have threads of
    /// their own.
    #[arg(long, value_name = "COUNT", default_value_t = 1, env = "COLLECTIONS_WORKER_THREADS", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = PROCESS)]
    pub worker_threads: u16,
    /// Seconds that accepted calls have to finish after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 20, env = "COLLECTIONS_DRAIN_SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600), help_heading = PROCESS)]
    drain_seconds: u64,
    #[command(flatten)]
    traces: TraceArgs,
}

const EXAMPLES: &str = "Examples:
  A gRPC service with TLS, called by the service `orders`, without the REST listener:
  collections-service serve --rest-addr off --grpc-addr 0.0.0.0:50051 --tls-cert server.pem --tls-key server.key --client-ca ca.pem --trusted-peer spiffe://example.org/orders

  The REST listener for 1.1 clients, behind a proxy that terminates TLS:
  collections-service serve --rest-addr 0.0.0.0:8080 --credentials-key-file credentials.key --public-origin https://api.example.org

  Bearer tokens over gRPC and REST:
  collections-service serve --credentials-key-file credentials.key --jwks https://issuer.example/.well-known/jwks.json --jwt-issuer https://issuer.example --jwt-audience https://collections.example

Every example takes the database from COLLECTIONS_DATABASE_URL.";

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

/// An address, or none.
#[derive(Clone, Debug)]
struct RestAddr(Option<Address>);

impl FromStr for RestAddr {
    type Err = RestAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" { Ok(Self(None)) } else { Ok(Self(Some(text.parse()?))) }
    }
}

/// A text that is neither an address nor `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; or off")]
struct RestAddrError(#[from] AddressError);

pub async fn run(args: Args) -> Result<(), Exit> {
    let settings = settings(&args).await?;
    let capacity = capacity(&args)?;
    let insecure = args.insecure_identity;
    let unidentified = !insecure && settings.jwt.is_none() && args.grpc_tls.trusted_peer.is_empty();
    let clear = settings.jwt.is_some() && settings.is_in_clear();
    run_settings(args.database.url(), capacity, args.worker_threads, settings, || {
        if insecure {
            tracing::warn!(
                "--insecure-identity: any process on this machine can destroy the collections of every user"
            );
        }
        if unidentified {
            tracing::warn!(
                "no gRPC caller can be identified, so every destroy over gRPC is refused; to accept callers give --trusted-peer or --jwks"
            );
        }
        if clear {
            tracing::warn!("--jwks: bearer tokens are received without TLS, unless a proxy terminates it");
        }
    })
    .await
}

/// Serves until a signal. Calls `serving` when all listeners accept connections.
pub async fn run_settings(
    database: &DatabaseUrl,
    capacity: Capacity,
    threads: u16,
    settings: Settings,
    serving: impl FnOnce(),
) -> Result<(), Exit> {
    let stop = Stop::listen()?;
    let (entropy, metrics) = (settings.entropy.clone(), settings.metrics.clone());
    let connected = Store::connect_observed(database, capacity, Clock::System, entropy, metrics).await;
    let (store, driver) = connected.map_err(Exit::database_url)?;
    let serve = serve(store, settings, stop, serving);
    if threads == 1 {
        return driver.run_until(serve).await;
    }
    // The task that a multi-threaded runtime blocks on is not on a worker thread: to run the batches there would add a switch
    // of threads to each call.
    let driver = tokio::spawn(driver.run());
    serve.await?;
    let _in_time = tokio::time::timeout(config::store::CLOSE_TIMEOUT, driver).await;
    Ok(())
}

async fn serve(store: Store, settings: Settings, mut stop: Stop, serving: impl FnOnce()) -> Result<(), Exit> {
    let purge = if settings.purge.is_some() { "on" } else { "off" };
    let running = Running::start(store, settings).await.map_err(|error| match error {
        StartError::NotReady(NotReady::Credentials(error)) => {
            Exit::Usage(format!("--credentials-key-file: {error}"))
        }
        StartError::Tls { .. } | StartError::Jwks(_) | StartError::Keys(_) => Exit::usage(error),
        other => Exit::failed(other),
    })?;
    tracing::info!(
        version = VERSION,
        grpc = running.grpc.map(tracing::field::display),
        rest = running.rest.map(tracing::field::display),
        admin = %running.admin,
        purge,
        "serving"
    );
    serving();
    stop.requested().await;
    drain(running, &mut stop).await
}

/// Drains the server, and logs the result.
///
/// # Errors
/// A second signal was received before the drain was complete.
pub async fn drain(running: Running, stop: &mut Stop) -> Result<(), Exit> {
    tracing::info!("draining");
    tokio::select! {
        biased;
        is_complete = running.drain() => {
            if is_complete {
                tracing::info!("stopped");
            } else {
                tracing::warn!("stopped with connections still open");
            }
            Ok(())
        }
        () = stop.requested() => {
            Err(Exit::failed("stopped by a second signal before the drain was complete; calls in flight were cut off"))
        }
    }
}

/// The store's limits.
fn capacity(args: &Args) -> Result<Capacity, Exit> {
    let purge = matches!(args.purge, Switch::On);
    // Readiness, destroys that wait for a locked row, credentials, and the purge take one each.
    let others = 3 + u32::from(purge);
    if args.database_connections < args.batches_in_flight + others {
        return Err(Exit::Usage(format!(
            "--database-connections: needs {others} more than --batches-in-flight, for readiness, the purge, locked rows and credentials"
        )));
    }
    Ok(Capacity {
        connections: args.database_connections,
        batch_max: args.batch_max,
        batches_in_flight: args.batches_in_flight,
        purge,
        publish: false,
    })
}

/// Checks the arguments together.
async fn settings(args: &Args) -> Result<Settings, Exit> {
    let refuse = |message: &str| Err(Exit::Usage(message.to_owned()));
    let grpc_address = args.grpc_addr.resolve("--grpc-addr").await?;
    if args.insecure_identity && !grpc_address.is_loopback() {
        return refuse(
            "--insecure-identity: any caller can name any user, so --grpc-addr must have loopback addresses only",
        );
    }
    let (entropy, metrics) = (Entropy::default(), Metrics::new());
    let redis = args.rate_limit.redis(&metrics)?;
    let rest = match (&args.rest_addr.0, &args.credentials_key_file) {
        (None, None) => None,
        (None, Some(_)) => {
            return refuse("--credentials-key-file: is for the REST listener, but --rest-addr is off");
        }
        (Some(_), None) => {
            return refuse(
                "--credentials-key-file: is required by the REST listener; or give --rest-addr off",
            );
        }
        (Some(address), Some(path)) => {
            let address = address.resolve("--rest-addr").await?.to_bind();
            let keys = read_keys(path, entropy.clone())?;
            Some(args.edge.rest(address, keys, args.rate_limit.user_limit(redis.as_ref()))?)
        }
    };
    if let (None, Some(flag)) = (&rest, args.edge.given()) {
        return refuse(&format!("{flag}: is for the REST listener, but --rest-addr is off"));
    }
    let caller_rate_limit = rate_limit::limit(args.caller_rate_limit, redis.as_ref());
    let user_rate_limit = rest.as_ref().and_then(|rest| rest.rate_limit.as_ref());
    if redis.is_some() && user_rate_limit.or(caller_rate_limit.as_ref()).is_none() {
        return refuse(
            "--redis-url: has no effect without a rate limit; give --caller-rate-limit, or --rate-limit with --rest-addr",
        );
    }
    let trusted_peers = &args.grpc_tls.trusted_peer;
    if args.insecure_identity && !trusted_peers.is_empty() {
        return refuse("--insecure-identity: any caller can name any user, so --trusted-peer has no effect");
    }
    let jwt = args.jwt.settings()?;
    if rest.is_none() && jwt.is_none() && !args.insecure_identity && trusted_peers.is_empty() {
        return refuse(
            "--trusted-peer, --jwks, --insecure-identity or --rest-addr: without one of them no caller can be identified",
        );
    }
    Ok(Settings {
        rpc: Rpc::Served(Grpc {
            address: grpc_address.to_bind(),
            tls: args.grpc_tls.server(jwt.is_some())?,
            trusted_peers: trusted_peers.iter().cloned().collect(),
            insecure_identity: args.insecure_identity,
            caller_rate_limit,
        }),
        rest,
        jwt,
        admin: args.admin_addr.resolve("--admin-addr").await?.to_bind(),
        purge: matches!(args.purge, Switch::On).then(|| args.purge_pace.settings()),
        max_in_flight: args.max_in_flight as usize,
        drain: Duration::from_secs(args.drain_seconds),
        metrics,
        traces: args.traces.start("collections-service", &entropy)?,
        clock: Clock::System,
        entropy,
    })
}
