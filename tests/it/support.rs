//! Starts the service in process on free ports, over a database of its own.

pub mod attack;
pub mod cluster;
pub mod collector;
pub mod jwt;
pub mod oauth;
pub mod operator;
pub mod pgbouncer;
pub mod pki;
pub mod program;
pub mod redis;
pub mod relay;
pub mod scrape;

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use collections_service::{
    domain::{Clock, CollectionId, Entropy, Secret, UserId},
    identity::TrustedPeers,
    proto::{DestroyRequest, DestroyResponse},
    rest::TransportPolicy,
    server::{self, Grpc, Rest, Running, Settings},
    store::{Capacity, Credentials, KeyRing, NewCollection, Store},
    telemetry::Traces,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use tempfile::TempDir;
use tonic::{Request, Response, Status, body::Body};
use tonic_types::StatusExt;

pub type Rpc = collections_service::proto::collections_service_client::CollectionsServiceClient<
    Client<HttpConnector, Body>,
>;

/// The credentials of the API's published documentation, which the recorded requests are signed with.
pub const CONSUMER: (&str, &str) = ("xvz1evFS4wEEPTGEFPHBog", "kAcSOqF21Fu85e7zjz7ZN2U4ZRhfV3WpwPAoE3Z7kBw");
pub const TOKEN: (&str, &str) =
    ("370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb", "LswwdoUaIvS8ltyTt5jkRh4J50vUPVVHtR2YPi5kE");
pub const OWNER: i64 = 119_476_949;
pub const OTHER: i64 = 783_214;
/// The time of the services' clocks, in seconds since the epoch.
pub const NOW: i64 = 1_795_461_500;
/// The longest that a test waits for a condition. It is far longer than needed, because the machine may be busy.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Of a store to PostgreSQL.
pub const CONNECTIONS: u32 = 8;
pub const PATH: &str = "/1.1/collections/destroy.json";

#[derive(Clone, Copy, Debug)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// A migrated database with the documentation's application and token in it.
pub struct TestDatabase {
    pub url: String,
    pub store: Store,
    pub credentials: Credentials,
    pub keys: Arc<KeyRing>,
    pub clock: Clock,
    pub folder: TempDir,
}

/// A service that is up in this process.
pub struct App {
    pub running: Option<Running>,
    pub database: TestDatabase,
    pub grpc: String,
    pub rest: String,
}

impl TestDatabase {
    pub async fn new(backend: Backend) -> Self {
        match backend {
            Backend::Sqlite => Self::on(None).await,
            Backend::Postgres => Self::on(Some(fresh_postgres().await)).await,
        }
    }

    /// On this PostgreSQL database, or on an SQLite one.
    pub async fn on(postgres: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sqlite = || format!("sqlite:{}?mode=rwc", folder.path().join("db").display());
        let url = postgres.unwrap_or_else(sqlite);
        let clock = Clock::Set(Arc::new(AtomicI64::new(NOW)));
        let store = connect(&url, Capacity::of(CONNECTIONS), &clock).await;
        store.migrate().await.unwrap();
        let key_file = folder.path().join("key");
        let entropy = Entropy::default();
        write_private(&key_file, &KeyRing::generate_line("test", &entropy));
        let keys = Arc::new(KeyRing::read(&key_file, entropy).unwrap());
        let credentials = Credentials::new(store.clone(), keys.clone());
        credentials.put_app("documentation", CONSUMER.0, &Secret::from(CONSUMER.1.to_owned())).await.unwrap();
        let secret = Secret::from(TOKEN.1.to_owned());
        credentials.put_token(CONSUMER.0, user(OWNER), true, TOKEN.0, &secret).await.unwrap();
        Self { url, store, credentials, keys, clock, folder }
    }

    pub async fn put(&self, number: i64, owner: i64) {
        let id = CollectionId::new(number).unwrap();
        let new = NewCollection { id, owner: user(owner), name: "a name".to_owned(), entries: vec![1, 2] };
        assert!(self.store.insert_collection(new).await.unwrap(), "{id} is taken");
    }

    pub async fn owned_by(&self, owner: i64) -> Vec<i64> {
        let ids = self.store.collections_of(user(owner), 100_000).await.unwrap();
        ids.into_iter().map(CollectionId::get).collect()
    }

    /// Sets the clock of the services on this database.
    pub fn set_clock(&self, seconds: i64) {
        match &self.clock {
            Clock::Set(now) => now.store(seconds, Ordering::Relaxed),
            Clock::System => panic!("the machine's clock"),
        }
    }

    /// A connection of the test's own to the service's database.
    pub async fn connection(&self) -> DatabaseConnection {
        Database::connect(&self.url).await.unwrap()
    }
}

impl App {
    pub async fn start(backend: Backend) -> Self {
        Self::start_with(TestDatabase::new(backend).await, |_| ()).await
    }

    pub async fn start_with(database: TestDatabase, customize: impl FnOnce(&mut Settings)) -> Self {
        let free = || "127.0.0.1:0".parse().unwrap();
        let mut settings = Settings {
            rpc: server::Rpc::Served(Grpc {
                address: free(),
                tls: None,
                trusted_peers: TrustedPeers::default(),
                insecure_identity: true,
                caller_rate_limit: None,
            }),
            rest: Some(Rest {
                address: free(),
                tls: None,
                transport: TransportPolicy::default(),
                public_origins: Vec::new(),
                rate_limit: None,
                keys: database.keys.clone(),
            }),
            jwt: None,
            admin: free(),
            purge: None,
            max_in_flight: 1024,
            drain: Duration::from_secs(5),
            metrics: database.store.metrics().clone(),
            traces: Traces::default(),
            clock: database.clock.clone(),
            entropy: Entropy::default(),
        };
        customize(&mut settings);
        let running = Running::start(database.store.clone(), settings).await.unwrap();
        let origin = |address: Option<_>| format!("http://{}", address.unwrap_or(running.admin));
        let (grpc, rest) = (origin(running.grpc), origin(running.rest));
        Self { running: Some(running), database, grpc, rest }
    }

    pub fn rpc(&self) -> Rpc {
        rpc(&self.grpc)
    }

    pub async fn put(&self, number: i64, owner: i64) {
        self.database.put(number, owner).await;
    }

    pub async fn owned_by(&self, owner: i64) -> Vec<i64> {
        self.database.owned_by(owner).await
    }

    /// One request to the gateway.
    pub async fn send(&self, request: http::Request<String>) -> Answer {
        send(&self.rest, request).await
    }
}

/// A store whose batches run as a task.
pub async fn connect(url: &str, capacity: Capacity, clock: &Clock) -> Store {
    let connected = Store::connect(&url.to_owned().into(), capacity, clock.clone(), Entropy::default()).await;
    let (store, driver) = connected.unwrap();
    tokio::spawn(driver.run());
    store
}

/// The gRPC side of a service that has one.
pub fn grpc_of(settings: &mut Settings) -> &mut Grpc {
    match &mut settings.rpc {
        server::Rpc::Served(grpc) => grpc,
        server::Rpc::Upstream(..) => panic!("a gateway"),
    }
}

/// An answer of the gateway: status, headers, body.
pub type Answer = (u16, http::HeaderMap, String);

/// A client of the RPC on a connection of its own.
pub fn rpc(origin: &str) -> Rpc {
    let http = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    Rpc::with_origin(http, origin.parse().unwrap())
}

pub async fn send(origin: &str, request: http::Request<String>) -> Answer {
    use http_body_util::{BodyExt, Full};
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
    let (mut parts, body) = request.into_parts();
    parts.uri = format!("{origin}{}", parts.uri).parse().unwrap();
    let response = client.request(http::Request::from_parts(parts, Full::from(body))).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

/// `google.rpc.ErrorInfo.reason`, which every error carries.
pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "collections.v1");
    info.reason.clone()
}

/// A form that the documentation's user signs now, for a service whose clock is that of the machine.
pub fn form_now(origin: &str, id: &str) -> http::Request<String> {
    form_at(origin, id, Clock::System.now().timestamp())
}

pub fn form_at(origin: &str, id: &str, timestamp: i64) -> http::Request<String> {
    let signer = oauth::Signer { timestamp, ..oauth::Signer::owner() };
    let header = signer.header(&format!("{origin}{PATH}"), &[("id", id)]);
    super::errors::form(PATH, &header, &format!("id={id}"))
}

/// A file that only its owner may read, put in place at once, as a key file must be.
pub fn write_private(path: &Path, text: &str) {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    std::fs::rename(new, path).unwrap();
}

pub fn user(number: i64) -> UserId {
    UserId::new(number).unwrap()
}

/// Calls Destroy as this user.
pub async fn destroy(
    rpc: &mut Rpc,
    owner: i64,
    id: &str,
    request_id: &str,
) -> Result<Response<DestroyResponse>, Status> {
    let mut request = Request::new(DestroyRequest { id: id.to_owned(), request_id: request_id.to_owned() });
    request.metadata_mut().insert("x-user-id", owner.to_string().parse().unwrap());
    rpc.destroy(request).await
}

/// The sessions of a PostgreSQL database that wait for a lock.
pub const BLOCKED: &str =
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Polls until the query returns a row. The connection must not be in a transaction, in which pg_stat_activity does not change.
pub async fn wait_for(connection: &DatabaseConnection, query: &str) {
    let statement = Statement::from_string(DbBackend::Postgres, query);
    let has_row = async || connection.query_one_raw(statement.clone()).await.unwrap().is_some();
    wait_until(query, has_row).await;
}

/// Polls until the condition holds; panics when it does not within [`WAIT_TIMEOUT`].
pub async fn wait_until(description: &str, mut holds: impl AsyncFnMut() -> bool) {
    let polling = async {
        while !holds().await {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let polled = tokio::time::timeout(WAIT_TIMEOUT, polling).await;
    polled.unwrap_or_else(|_elapsed| panic!("after {WAIT_TIMEOUT:?} still not: {description}"));
}

/// A database of its own in the cluster that `tests/run` started.
pub async fn fresh_postgres() -> String {
    let cluster = std::env::var("TEST_POSTGRES").expect("no PostgreSQL: start the tests with tests/run");
    fresh_database(&cluster).await
}

pub async fn fresh_database(cluster: &str) -> String {
    let name = format!("t{}", Entropy::default().hex::<8>());
    let admin = Database::connect(format!("{cluster}/postgres")).await.unwrap();
    admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
    admin.close().await.unwrap();
    format!("{cluster}/{name}")
}
