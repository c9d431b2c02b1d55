//! The gateway in a process of its own.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use collections_service::{domain::DestroyError, net::ClientTls, server::Rpc};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tonic::Status;

use super::{
    errors::{assert_answer, error_body, signed},
    support::{
        App, Backend, OTHER, OWNER, PATH, TestDatabase, form_now,
        oauth::Signer,
        pki::{Authority, For},
        program::{Program, path, run},
        send, wait_until,
    },
};

const GATEWAY: &str = "spiffe://example.org/gateway";
const DESTROYED: &str = r#"{"destroyed":true}"#;

/// Two processes with a network between them, and certificates for both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_gateway_calls_for_its_users() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for (id, owner) in [(1, OWNER), (2, OTHER), (3, OWNER)] {
        database.put(id, owner).await;
    }
    let folder = database.folder.path();
    let authority = Authority::new("ours");
    let (cert, key) = authority.server().write(folder, "server");
    let ca = authority.write(folder, "ca.pem");
    let (own_cert, own_key) = authority.issue(&[GATEWAY], For::Client).write(folder, "gateway");
    let [cert, key, ca] = [&cert, &key, &ca].map(|file| path(file).to_owned());
    let tls = ["--tls-cert", &cert, "--tls-key", &key, "--client-ca", &ca, "--trusted-peer", GATEWAY];
    let service = Program::serve_strictly(&database, &tls).await;
    let upstream = service.grpc.replace("http://", "https://");
    let own = ["--upstream-ca", &ca, "--upstream-cert", path(&own_cert), "--upstream-key", path(&own_key)];
    let gateway = Program::gateway(&database, &upstream, &own).await;

    let mut forged = form_now(&gateway.rest, "custom-2");
    forged.headers_mut().insert("x-user-id", OTHER.to_string().parse().unwrap());
    assert_eq!(send(&gateway.rest, forged).await.0, 403);
    assert_answer(&send(&gateway.rest, form_now(&gateway.rest, "custom-1")).await, 200, DESTROYED);
    assert_eq!(send(&gateway.rest, form_now(&gateway.rest, "custom-1")).await.0, 404);
    let query = Statement::from_string(DbBackend::Postgres, "SELECT caller FROM destroyed_collections");
    let row = database.connection().await.query_one_raw(query).await.unwrap().unwrap();
    assert_eq!(row.try_get::<String>("", "caller").unwrap(), format!("mtls:{GATEWAY}"));

    // A new certificate, which is used for the next connection.
    authority.issue(&["spiffe://example.org/other"], For::Client).write(folder, "gateway");
    let is_refused = async || send(&gateway.rest, form_now(&gateway.rest, "custom-9")).await.0 == 500;
    wait_until("the service refuses the new certificate", is_refused).await;

    service.signal(Signal::SIGTERM);
    assert_eq!(service.ended(Duration::from_secs(9)).await.0.code(), Some(0));
    let answer = send(&gateway.rest, form_now(&gateway.rest, "custom-3")).await;
    assert_answer(&answer, 503, &error_body(130, "Over capacity"));
    gateway.signal(Signal::SIGTERM);
    let (status, log) = gateway.ended(Duration::from_secs(9)).await;
    assert_eq!(status.code(), Some(0));
    assert!(log.iter().any(|line| line.contains("the upstream did not answer")), "{log:?}");
    assert_eq!(database.owned_by(OWNER).await, [3]);
}

/// What a stand-in for the RPC does with each call in turn; the last goes on for ever.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Destroys,
    Unavailable,
    HangsUp,
    Hangs,
    /// Begins an answer, and no more.
    HangsAfterHeaders,
    /// Does not trust the gateway.
    Refuses,
}

/// An RPC that keeps the metadata of its calls.
struct StandIn {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<HeaderMap>>>,
    accepting: JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl StandIn {
    async fn on(address: &str, turns: &'static [Turn]) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = calls.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let seen = seen.clone();
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let mut seen = seen.lock().unwrap();
                    let turn = turns[seen.len().min(turns.len() - 1)];
                    seen.push(request.headers().clone());
                    answer(turn)
                });
                connections.spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    // A connection that the service breaks ends in an error.
                    let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { address, calls, accepting })
    }

    fn calls(&self) -> Vec<HeaderMap> {
        self.calls.lock().unwrap().clone()
    }
}

async fn answer(turn: Turn) -> Result<Response<BoxBody<Bytes, Infallible>>, std::io::Error> {
    match turn {
        Turn::Destroys => {
            let trailers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                http::HeaderValue::from_static("0"),
            )]);
            let body = Full::new(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]));
            let body = body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed();
            Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
        }
        Turn::Unavailable => Ok(Status::unavailable("").into_http::<Full<Bytes>>().map(BoxBody::new)),
        Turn::HangsUp => Err(std::io::Error::other("as it shall")),
        Turn::HangsAfterHeaders => {
            let body = StreamBody::new(tokio_stream::pending()).boxed();
            Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
        }
        Turn::Refuses => {
            let status = collections_service::grpc::status_of(DestroyError::CallerNotAllowed);
            Ok(status.into_http::<Full<Bytes>>().map(BoxBody::new))
        }
        Turn::Hangs => std::future::pending().await,
    }
}

/// A gateway in this process, in front of this address.
async fn gateway(upstream: &str) -> App {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let url = upstream.parse().unwrap();
    App::start_with(database, |settings| {
        settings.rpc = Rpc::Upstream(url, ClientTls { authorities: None, key_pair: None });
    })
    .await
}

const KEY: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";

/// A call that may have been sent is sent again under an idempotency key alone.
#[tokio::test]
async fn only_safe_calls_are_retried() {
    for (turns, key, status, calls) in [
        (&[Turn::Unavailable, Turn::Destroys][..], true, 200, 2),
        (&[Turn::Unavailable, Turn::Destroys], false, 503, 1),
        (&[Turn::HangsUp, Turn::HangsUp, Turn::Destroys], true, 200, 3),
        (&[Turn::HangsUp, Turn::Destroys], false, 503, 1),
        (&[Turn::Unavailable], true, 503, 3),
        (&[Turn::Destroys], true, 200, 1),
    ] {
        let rpc = StandIn::on("127.0.0.1:0", turns).await.unwrap();
        let app = gateway(&format!("http://{}", rpc.address)).await;
        let mut request = signed(&app, &Signer::owner(), "custom-1");
        if key {
            request.headers_mut().insert("idempotency-key", KEY.parse().unwrap());
        }
        let answer = app.send(request).await;
        assert_eq!((answer.0, rpc.calls().len()), (status, calls), "{turns:?} {key}");
    }
}

/// The authenticated user and the remaining time are forwarded; headers of the client that name them are not.
#[tokio::test]
async fn the_user_and_the_remaining_time_are_forwarded() {
    let rpc = StandIn::on("127.0.0.1:0", &[Turn::Destroys]).await.unwrap();
    let app = gateway(&format!("http://{}", rpc.address)).await;
    let signed = signed(&app, &Signer::owner(), "custom-1");
    let authorization = signed.headers()["authorization"].to_str().unwrap();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: {}\r\nauthorization: {authorization}\r\nx-user-id: 7\r\ngrpc-timeout: 9H\r\n\
         x-request-id: r1\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 11\r\n\
         connection: close\r\n\r\nid=",
        app.rest.trim_start_matches("http://")
    );
    let mut stream = TcpStream::connect(app.rest.trim_start_matches("http://")).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // What the body takes to arrive is missing from the time that is left for the RPC.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    stream.write_all(b"custom-1").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let [call] = <[HeaderMap; 1]>::try_from(rpc.calls()).unwrap();
    let users: Vec<_> = call.get_all("x-user-id").iter().collect();
    assert_eq!(users, [&OWNER.to_string()]);
    assert_eq!(call["x-request-id"], "r1");
    assert!(!call.contains_key("authorization"));
    let left = call["grpc-timeout"].to_str().unwrap().strip_suffix('u').unwrap();
    assert!((1..=8_800_000).contains(&left.parse::<u32>().unwrap()), "{left}");
}

/// An RPC that takes calls and never answers, or never ends its answer, costs each its deadline; the client gets JSON.
#[tokio::test]
async fn a_call_without_an_answer_ends_at_its_deadline() {
    for turns in [&[Turn::Hangs], &[Turn::HangsAfterHeaders]] {
        let rpc = StandIn::on("127.0.0.1:0", turns).await.unwrap();
        let app = gateway(&format!("http://{}", rpc.address)).await;
        let request = app.send(signed(&app, &Signer::owner(), "custom-1"));
        let answer = tokio::time::timeout(Duration::from_secs(12), request).await.expect("it waits on");
        assert_answer(&answer, 503, &error_body(130, "Over capacity"));
        assert_eq!(rpc.calls().len(), 1);
    }
}

/// A gateway that is not on the list is not the fault of its clients.
#[tokio::test]
async fn a_rejection_of_the_gateway_is_not_blamed_on_the_user() {
    let rpc = StandIn::on("127.0.0.1:0", &[Turn::Refuses]).await.unwrap();
    let app = gateway(&format!("http://{}", rpc.address)).await;
    let answer = app.send(signed(&app, &Signer::owner(), "custom-1")).await;
    assert_answer(&answer, 500, &error_body(131, "Internal error"));
}

#[tokio::test]
async fn incomplete_gateway_flags_are_rejected() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let key_file = path(&database.folder.path().join("key")).to_owned();
    for (flags, expected) in [
        (vec![], "--upstream"),
        (vec!["--upstream", "collections:50051"], "--upstream"),
        (vec!["--upstream", "https://collections"], "--upstream"),
        (vec!["--upstream", "https://collections:50051/path"], "--upstream"),
        (vec!["--upstream", "https://collections:50051#@"], "--upstream: expected"),
        (vec!["--upstream", "https://collections:50051/#"], "--upstream: expected"),
        (vec!["--upstream", "https://collections:50051?"], "--upstream: expected"),
        (vec!["--upstream", "https://collections:+50051"], "--upstream: expected"),
        (vec!["--upstream", "https://collections[::1]:50051"], "--upstream: expected"),
        (vec!["--upstream", "https://user:a-password@collections:50051"], "--upstream: expected"),
        (vec!["--upstream", "http://collections:50051"], "loopback"),
        (vec!["--upstream", "https://collections:50051"], "--upstream-cert"),
        (vec!["--upstream", "https://collections:50051", "--upstream-cert", "x"], "--upstream-key"),
        (vec!["--upstream", "http://127.0.0.1:1", "--upstream-ca", "x"], "--upstream-ca"),
        (vec!["--upstream", "http://127.0.0.1:1", "--require-tls"], "--require-tls"),
    ] {
        let arguments = [&["gateway", "--credentials-key-file", &key_file][..], &flags].concat();
        let (code, _, error) = run(&arguments, &[("COLLECTIONS_DATABASE_URL", &database.url)]).await;
        assert_eq!(code, 2, "{flags:?}: {error}");
        assert!(error.contains(expected), "{flags:?}: {error}");
        assert!(!error.contains("a-password"), "{error}");
    }
}
