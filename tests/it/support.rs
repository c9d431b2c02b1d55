//! Starts the service in process on free ports, over a database of its own.

pub mod oauth;

use std::{
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use collections_service::{
    domain::{Clock, CollectionId, Entropy, Secret, UserId},
    proto::{DestroyRequest, DestroyResponse},
    server::{Rest, Running, Settings},
    store::{Credentials, KeyRing, NewCollection, Store},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use sea_orm::{ConnectionTrait, Database};
use tempfile::TempDir;
use tonic::{Request, Response, Status, body::Body};

pub type Rpc = collections_service::proto::collections_service_client::CollectionsServiceClient<
    Client<HttpConnector, Body>,
>;

/// The credentials of the API's published documentation, which the recorded requests are signed with.
pub const CONSUMER: (&str, &str) = ("xvz1evFS4wEEPTGEFPHBog", "kAcSOqF21Fu85e7zjz7ZN2U4ZRhfV3WpwPAoE3Z7kBw");
pub const TOKEN: (&str, &str) =
    ("370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb", "LswwdoUaIvS8ltyTt5jkRh4J50vUPVVHtR2YPi5kE");
pub const OWNER: i64 = 119_476_949;
pub const OTHER: i64 = 783_214;

#[derive(Clone, Copy, Debug)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// A service that is up.
pub struct App {
    pub running: Option<Running>,
    pub store: Store,
    pub credentials: Credentials,
    pub grpc: String,
    pub rest: String,
    _folder: TempDir,
}

impl App {
    pub async fn start(backend: Backend) -> Self {
        Self::start_for(backend, &[]).await
    }

    pub async fn start_for(backend: Backend, origins: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = match backend {
            Backend::Sqlite => format!("sqlite:{}?mode=rwc", folder.path().join("db").display()),
            Backend::Postgres => fresh_postgres().await,
        };
        let clock = Clock::Set(Arc::new(AtomicI64::new(1_795_461_500)));
        let store = Store::connect(&url.parse().unwrap(), 8, clock.clone()).await.unwrap();
        while store.migrate_one().await.unwrap().is_some() {}
        let key_file = folder.path().join("key");
        let entropy = Entropy::default();
        std::fs::write(&key_file, KeyRing::generate_line("test", &entropy).as_bytes()).unwrap();
        let keys = Arc::new(KeyRing::read(&key_file, entropy.clone()).unwrap());
        let credentials = Credentials::new(store.clone(), keys.clone());
        credentials.put_app("documentation", CONSUMER.0, &Secret::from(CONSUMER.1.to_owned())).await.unwrap();
        let secret = Secret::from(TOKEN.1.to_owned());
        credentials.put_token(CONSUMER.0, user(OWNER), true, TOKEN.0, &secret).await.unwrap();
        let settings = Settings {
            grpc: "127.0.0.1:0".parse().unwrap(),
            rest: Some(Rest {
                address: "127.0.0.1:0".parse().unwrap(),
                public_origins: origins.iter().map(|origin| origin.parse().unwrap()).collect(),
                keys,
            }),
            admin: "127.0.0.1:0".parse().unwrap(),
            insecure_identity: true,
            max_in_flight: 1024,
            drain: Duration::from_secs(5),
            clock,
            entropy,
        };
        let running = Running::start(store.clone(), settings).await.unwrap();
        let (grpc, rest) = (format!("http://{}", running.grpc), format!("http://{}", running.rest.unwrap()));
        Self { running: Some(running), store, credentials, grpc, rest, _folder: folder }
    }

    pub fn rpc(&self) -> Rpc {
        let http = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Rpc::with_origin(http, self.grpc.parse().unwrap())
    }

    pub async fn put(&self, number: i64, owner: i64) {
        let id = CollectionId::new(number).unwrap();
        let new = NewCollection { id, owner: user(owner), name: "a name".to_owned(), entries: vec![1, 2] };
        assert!(self.store.insert_collection(new).await.unwrap(), "{id} is taken");
    }

    pub async fn owned_by(&self, owner: i64) -> Vec<i64> {
        let ids = self.store.collections_of(user(owner), 1000).await.unwrap();
        ids.into_iter().map(CollectionId::get).collect()
    }

    /// One request to the gateway: status, headers, body.
    pub async fn send(&self, request: http::Request<String>) -> (u16, http::HeaderMap, String) {
        use http_body_util::{BodyExt, Full};
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
        let (mut parts, body) = request.into_parts();
        parts.uri = format!("{}{}", self.rest, parts.uri).parse().unwrap();
        let response = client.request(http::Request::from_parts(parts, Full::from(body))).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }
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

/// A database of its own in the cluster that `tests/run` started.
async fn fresh_postgres() -> String {
    let cluster = std::env::var("TEST_POSTGRES").expect("no PostgreSQL: start the tests with tests/run");
    let name = format!("t{}", Entropy::default().hex::<8>());
    let admin = Database::connect(format!("{cluster}/postgres")).await.unwrap();
    admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
    admin.close().await.unwrap();
    format!("{cluster}/{name}")
}
