//! TLS on both listeners: which clients are served, and what happens when files change.

use std::{path::Path, time::Duration};

use collections_service::{
    config::net::RELOAD_INTERVAL,
    net::{ClientAuth, ClientAuthority, KeyPair, ServerTls},
    proto::DestroyRequest,
    rest::TransportPolicy,
};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use sea_orm::{ConnectionTrait, DbBackend, Statement, TransactionTrait};
use tokio::{net::TcpStream, time::Instant};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    errors::{assert_answer, error_body, form},
    support::{
        App, BLOCKED, Backend, NOW, OWNER, PATH, TestDatabase, grpc_of,
        oauth::Signer,
        pki::{Authority, For, Leaf, TlsRpc, client_config, https, tls_rpc},
        program::{Program, path, run},
        reason, wait_for, wait_until,
    },
};

pub const SERVICE: &str = "spiffe://example.org/orders";

/// A gRPC listener with TLS that verifies the certificates of clients which present one.
pub fn server_tls(folder: &Path, authority: &Authority) -> ServerTls {
    let (certificate, key) = authority.server().write(folder, "server");
    let file = authority.write(folder, "ca.pem");
    let clients = ClientAuth::Optional(vec![ClientAuthority { scope: None, file }]);
    ServerTls { key_pair: KeyPair { certificate, key }, clients, alpn: &["h2"] }
}

async fn app(authority: &Authority, peers: &[&str]) -> App {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let tls = server_tls(database.folder.path(), authority);
    App::start_with(database, |settings| {
        let grpc = grpc_of(settings);
        grpc.tls = Some(tls);
        grpc.insecure_identity = false;
        grpc.trusted_peers = peers.iter().map(|name| name.parse().unwrap()).collect();
    })
    .await
}

pub async fn destroy(rpc: &mut TlsRpc, user: i64, id: &str) -> Result<(), tonic::Status> {
    let mut request = tonic::Request::new(DestroyRequest { id: id.to_owned(), request_id: String::new() });
    request.metadata_mut().insert("x-user-id", user.to_string().parse().unwrap());
    rpc.destroy(request).await.map(|_| ())
}

#[tokio::test]
async fn a_trusted_peer_is_accepted_and_recorded() {
    let authority = Authority::new("ours");
    let app = app(&authority, &[SERVICE, "billing.example"]).await;
    for (id, name, caller) in
        [(1, SERVICE, "mtls:spiffe://example.org/orders"), (2, "Billing.Example", "mtls:billing.example")]
    {
        app.put(id, OWNER).await;
        let leaf = authority.issue(&[name], For::Client);
        let mut rpc = tls_rpc(&app.grpc, &authority, Some(&leaf));
        destroy(&mut rpc, OWNER, &format!("custom-{id}")).await.unwrap();
        let query = format!("SELECT caller FROM destroyed_collections WHERE id = {id}");
        let row = app.database.connection().await;
        let row = row.query_one_raw(Statement::from_string(DbBackend::Sqlite, query)).await.unwrap().unwrap();
        assert_eq!(row.try_get::<String>("", "caller").unwrap(), caller);
    }
}

/// Names that are similar to one on the list.
#[tokio::test]
async fn no_other_name_is_trusted() {
    let authority = Authority::new("ours");
    let app = app(&authority, &[SERVICE, "billing.example"]).await;
    app.put(1, OWNER).await;
    for names in [
        &["spiffe://example.org/orders/"][..],
        &["spiffe://example.org/Orders"],
        &["spiffe://example.org/orders/v2"],
        &["spiffe://example.org.evil/orders"],
        &["https://example.org/orders"],
        &[SERVICE, "spiffe://example.org/other"],
        &["*.example"],
        &["billing.example.evil"],
        &["127.0.0.1"],
        &[],
    ] {
        let leaf = authority.issue(names, For::Client);
        let refused = destroy(&mut tls_rpc(&app.grpc, &authority, Some(&leaf)), OWNER, "custom-1").await;
        assert_eq!(reason(&refused.unwrap_err()), "CALLER_NOT_ALLOWED", "{names:?}");
    }
    // A certificate for servers is none for clients, whatever it names.
    let leaf = authority.issue(&[SERVICE], For::Server);
    let refused = destroy(&mut tls_rpc(&app.grpc, &authority, Some(&leaf)), OWNER, "custom-1").await;
    assert!(refused.unwrap_err().details().is_empty(), "no handshake, no answer");
    assert_eq!(app.owned_by(OWNER).await, [1]);
}

/// Or its certificate would not be looked at again, however long ago it expired.
#[tokio::test]
async fn no_session_of_a_client_with_a_certificate_is_resumed() {
    let authority = Authority::new("ours");
    let app = app(&authority, &[SERVICE]).await;
    let leaf = authority.issue_until(&[SERVICE], Duration::from_secs(NOW.cast_unsigned() + 4));
    let config = client_config(&authority, Some(&leaf));
    let rpc = || {
        let http = Client::builder(TokioExecutor::new()).http2_only(true).build(https(config.clone(), true));
        TlsRpc::with_origin(http, app.grpc.replace("http://", "https://").parse().unwrap())
    };
    assert_eq!(reason(&destroy(&mut rpc(), OWNER, "custom-9").await.unwrap_err()), "COLLECTION_NOT_FOUND");
    app.put(1, OWNER).await;
    app.database.set_clock(NOW + 5);
    let refused = destroy(&mut rpc(), OWNER, "custom-1").await.unwrap_err();
    assert!(refused.details().is_empty(), "no handshake, no answer: {refused:?}");
    assert_eq!(app.owned_by(OWNER).await, [1]);
}

/// Health and reflection are no more open to a service off the list than the RPC is.
#[tokio::test]
async fn an_unlisted_peer_is_rejected_by_every_service() {
    let authority = Authority::new("ours");
    let app = app(&authority, &[SERVICE]).await;
    for (name, refused) in [(SERVICE, false), ("spiffe://example.org/other", true)] {
        let leaf = authority.issue(&[name], For::Client);
        let connector = https(client_config(&authority, Some(&leaf)), true);
        let http = Client::builder(TokioExecutor::new()).http2_only(true).build(connector);
        let origin = app.grpc.replace("http://", "https://").parse().unwrap();
        let mut health = HealthClient::<Client<_, tonic::body::Body>>::with_origin(http, origin);
        let answer = health.check(HealthCheckRequest { service: String::new() }).await;
        assert_eq!(answer.is_err(), refused);
        if let Err(status) = answer {
            assert_eq!(reason(&status), "CALLER_NOT_ALLOWED");
        }
    }
}

/// The certificate that a listener shows now, as DER.
pub async fn shown(origin: &str, authority: &Authority) -> Vec<u8> {
    let address = origin.trim_start_matches("http://");
    let config = std::sync::Arc::new(client_config(authority, None));
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream = TcpStream::connect(address).await.unwrap();
    let name = "127.0.0.1".try_into().unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// Waits until the listener shows another certificate than this.
async fn wait_for_change(origin: &str, authority: &Authority, before: &[u8]) {
    let is_changed = async || shown(origin, authority).await != before;
    wait_until("the listener shows another certificate", is_changed).await;
}

/// With a call in flight, which waits for a lock, over the connection that the old certificate made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_changes_is_served_within_two_seconds() {
    let authority = Authority::new("ours");
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    let folder = database.folder.path().to_owned();
    server_tls(&folder, &authority);
    let leaf = authority.issue(&[SERVICE], For::Client);
    let file = |name: &str| path(&folder.join(name)).to_owned();
    let (certificate, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let flags =
        ["--tls-cert", &certificate, "--tls-key", &key, "--client-ca", &ca, "--trusted-peer", SERVICE];
    let program = Program::serve_strictly(&database, &flags).await;

    let before = shown(&program.grpc, &authority).await;
    let lock = database.connection().await.begin().await.unwrap();
    lock.execute_unprepared("SELECT id FROM collections WHERE id = 1 FOR UPDATE").await.unwrap();
    let mut rpc = tls_rpc(&program.grpc, &authority, Some(&leaf));
    let call = tokio::spawn({
        let mut rpc = rpc.clone();
        async move { destroy(&mut rpc, OWNER, "custom-1").await }
    });
    wait_for(&database.connection().await, BLOCKED).await;

    authority.server().write(&folder, "server");
    let begun = Instant::now();
    wait_for_change(&program.grpc, &authority, &before).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    lock.rollback().await.unwrap();
    call.await.unwrap().unwrap();
    let now = shown(&program.grpc, &authority).await;

    // Certificates that cannot be used: no PEM, another's key, expired.
    let other = authority.server();
    let expired = authority.issue(&["127.0.0.1"], For::ExpiredServer);
    let broken = [
        Leaf { certificate: "no certificate".to_owned(), key: other.key.clone() },
        Leaf { certificate: other.certificate.clone(), key: authority.server().key },
        expired,
    ];
    for (rejected, leaf) in (1..).zip(broken) {
        leaf.write(&folder, "server");
        program.wait_for_log(rejected, "\"not reloaded").await;
        assert_eq!(shown(&program.grpc, &authority).await, now);
    }
    std::fs::remove_file(&certificate).unwrap();
    program.wait_for_log(4, "\"not reloaded").await;
    assert_eq!(shown(&program.grpc, &authority).await, now);

    // One file after the other: what stands there in between is not used.
    for reloaded in 2..=4 {
        let next = authority.server();
        std::fs::write(&certificate, &next.certificate).unwrap();
        // The files are polled in between, and must be the same at two polls.
        tokio::time::sleep(RELOAD_INTERVAL * 9 / 10).await;
        std::fs::write(&key, &next.key).unwrap();
        program.wait_for_log(reloaded, "\"reloaded\"").await;
    }
    let now = shown(&program.grpc, &authority).await;

    // Callers of another authority, once that is trusted instead.
    let theirs = Authority::new("theirs");
    other.write(&folder, "server");
    theirs.write(&folder, "ca.pem");
    wait_for_change(&program.grpc, &authority, &now).await;
    destroy(&mut rpc, OWNER, "custom-1").await.unwrap_err();
    let new_leaf = theirs.issue(&[SERVICE], For::Client);
    let refused = destroy(&mut tls_rpc(&program.grpc, &authority, Some(&new_leaf)), OWNER, "custom-1").await;
    assert_eq!(reason(&refused.unwrap_err()), "COLLECTION_NOT_FOUND");
    let refused = destroy(&mut tls_rpc(&program.grpc, &authority, Some(&leaf)), OWNER, "custom-1").await;
    assert!(refused.unwrap_err().details().is_empty(), "an authority that is not trusted any more");

    program.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(9)).await;
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!((count("\"not reloaded"), count("\"reloaded\"")), (4, 5), "{log:?}");
    assert_eq!(count("\"certificate in force\""), 6, "{log:?}");
}

async fn https_send(app: &App, authority: &Authority, http2: bool, id: &str) -> super::support::Answer {
    let origin = app.rest.replace("http://", "https://");
    let connector = https(client_config(authority, None), http2);
    let client =
        Client::builder(TokioExecutor::new()).http2_only(http2).build::<_, Full<bytes::Bytes>>(connector);
    let header = Signer::owner().header(&format!("{origin}{PATH}"), &[("id", id)]);
    let (mut parts, body) = form(PATH, &header, &format!("id={id}")).into_parts();
    parts.uri = format!("{origin}{PATH}").parse().unwrap();
    let answer = client.request(Request::from_parts(parts, Full::from(body))).await.unwrap();
    assert_eq!(answer.version() == http::Version::HTTP_2, http2);
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

/// Both protocols, and signatures for `https://`.
#[tokio::test]
async fn rest_is_served_over_tls() {
    let authority = Authority::new("ours");
    let database = TestDatabase::new(Backend::Sqlite).await;
    database.put(1, OWNER).await;
    database.put(2, OWNER).await;
    let (certificate, key) = authority.server().write(database.folder.path(), "rest");
    let key_pair = KeyPair { certificate, key };
    let app = App::start_with(database, |settings| {
        let rest = settings.rest.as_mut().unwrap();
        rest.tls = Some(ServerTls { key_pair, clients: ClientAuth::Anyone, alpn: &["h2", "http/1.1"] });
        rest.transport.require_tls = true;
    })
    .await;
    for (http2, id) in [(false, "custom-1"), (true, "custom-2")] {
        let answer = https_send(&app, &authority, http2, id).await;
        assert_answer(&answer, 200, r#"{"destroyed":true}"#);
        assert_eq!(answer.1["strict-transport-security"], "max-age=631138519");
    }
}

/// Behind a proxy that terminates TLS: `X-Forwarded-Proto` counts if a trusted proxy has set it.
#[tokio::test]
async fn only_a_trusted_proxy_may_set_x_forwarded_proto() {
    for (proxies, forwarded, served) in [
        ("127.0.0.0/8", &["https"][..], true),
        ("127.0.0.1/32", &["HTTPS, https"], true),
        ("127.0.0.1/32", &["http"], false),
        ("127.0.0.1/32", &["https, http"], false),
        ("127.0.0.1/32", &["https", "http"], false),
        ("127.0.0.1/32", &[""], false),
        ("127.0.0.1/32", &[], false),
        ("10.0.0.0/8", &["https"], false),
    ] {
        let database = TestDatabase::new(Backend::Sqlite).await;
        database.put(1, OWNER).await;
        let app = App::start_with(database, |settings| {
            settings.rest.as_mut().unwrap().transport =
                TransportPolicy { require_tls: true, trusted_proxies: vec![proxies.parse().unwrap()] };
        })
        .await;
        let url = format!("{}{PATH}", app.rest.replace("http://", "https://"));
        let header = Signer::owner().header(&url, &[("id", "custom-1")]);
        let mut request = form(PATH, &header, "id=custom-1");
        for value in forwarded {
            request.headers_mut().append("x-forwarded-proto", value.parse().unwrap());
        }
        let answer = app.send(request).await;
        if served {
            assert_answer(&answer, 200, r#"{"destroyed":true}"#);
        } else {
            assert_answer(&answer, 403, &error_body(92, "SSL is required"));
        }
        assert_eq!(answer.1.contains_key("strict-transport-security"), served);
        assert_eq!(app.owned_by(OWNER).await.len(), usize::from(!served), "{proxies} {forwarded:?}");
    }
}

/// Incomplete and unsafe flags are rejected at the start; the error names the flag.
#[tokio::test]
async fn incomplete_flags_are_rejected() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let folder = database.folder.path();
    let authority = Authority::new("ours");
    server_tls(folder, &authority);
    std::fs::write(folder.join("empty"), "").unwrap();
    authority.server().write(folder, "other");
    let file = |name: &str| folder.join(name).display().to_string();
    let (cert, key, ca, empty, other) =
        (file("server.pem"), file("server.key"), file("ca.pem"), file("empty"), file("other.key"));
    let url = database.url.clone();
    let whole = ["--tls-cert", &cert, "--tls-key", &key];
    let scoped = |file: &str| format!("spiffe://example.org={file}");
    let other_key = |flag: &str| format!("{flag} {other}: is not the key of the certificate");
    let peers = ["--client-ca", &ca, "--trusted-peer", SERVICE];
    for (flags, expected) in [
        (vec!["--tls-cert", &cert], "--tls-key"),
        (vec!["--tls-key", &key], "--tls-cert"),
        (peers.to_vec(), "--tls-cert"),
        ([&whole[..], &["--client-ca", &ca]].concat(), "--trusted-peer"),
        ([&whole[..], &["--trusted-peer", SERVICE]].concat(), "--client-ca"),
        ([&whole[..], &peers[..], &["--trusted-peer", "*.example"]].concat(), "--trusted-peer"),
        ([&whole[..], &peers[..], &["--trusted-peer", "spiffe://example.org"]].concat(), "--trusted-peer"),
        ([&whole[..], &peers[..], &["--trusted-peer", "10.0.0.1"]].concat(), "--trusted-peer"),
        ([&whole[..], &peers[..], &["--insecure-identity"]].concat(), "--insecure-identity"),
        (vec!["--tls-cert", &cert, "--tls-key", &other, "--insecure-identity"], &other_key("--tls-key")),
        (vec!["--tls-cert", &empty, "--tls-key", &key, "--insecure-identity"], "--tls-cert"),
        (vec!["--tls-cert", &cert, "--tls-key", &empty, "--insecure-identity"], "--tls-key"),
        (vec!["--tls-cert", "/nowhere", "--tls-key", &key, "--insecure-identity"], "/nowhere"),
        ([&whole[..], &["--client-ca", &empty, "--trusted-peer", SERVICE]].concat(), "--client-ca"),
        (
            [&whole[..], &["--client-ca", &scoped(&ca), "--trusted-peer", "spiffe://else.example/orders"]]
                .concat(),
            "--trusted-peer spiffe://else.example/orders: is in the scope of no --client-ca",
        ),
        ([&whole[..], &["--client-ca", &scoped(&empty), "--trusted-peer", SERVICE]].concat(), "--client-ca"),
        (
            [&whole[..], &["--client-ca", "spiffe://Example.org=ca", "--trusted-peer", SERVICE]].concat(),
            "--client-ca",
        ),
        (vec!["--require-tls", "--insecure-identity"], "--rest-addr"),
        (vec!["--insecure-identity", "--trusted-proxy", "10.0.0.0/8"], "--trusted-proxy"),
    ] {
        let arguments = [&["serve", "--rest-addr", "off", "--grpc-addr", "127.0.0.1:0"][..], &flags].concat();
        let (code, _, error) = run(&arguments, &[("COLLECTIONS_DATABASE_URL", &url)]).await;
        assert_eq!(code, 2, "{flags:?}: {error}");
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
    let key_file = file("key");
    let rest =
        ["serve", "--insecure-identity", "--grpc-addr", "127.0.0.1:0", "--credentials-key-file", &key_file];
    for (flags, expected) in [
        (vec!["--require-tls"], "--require-tls"),
        (vec!["--rest-tls-cert", &cert], "--rest-tls-key"),
        (vec!["--trusted-proxy", "proxy"], "--trusted-proxy"),
        (vec!["--rest-tls-cert", &cert, "--rest-tls-key", &other], &other_key("--rest-tls-key")),
    ] {
        let (code, _, error) =
            run(&[&rest[..], &flags].concat(), &[("COLLECTIONS_DATABASE_URL", &url)]).await;
        assert_eq!(code, 2, "{flags:?}: {error}");
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
}
