//! Client certificates: which names their authorities may issue, how long they count, and how failures are logged.

use std::{
    io::ErrorKind,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use collections_service::{
    domain::Clock,
    identity::{PeerCertificate, VerifiedNames},
    net::{ClientAuth, ClientAuthority},
};
use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use super::{
    support::{
        App, Backend, NOW, OWNER, TestDatabase, grpc_of,
        pki::{Authority, For, Leaf, TlsRpc, client_config, tls_rpc},
        program::{Program, path},
        reason, wait_until,
    },
    tls::{SERVICE, destroy, server_tls},
};

const PARTNER: &str = "billing.partner.example";

/// A service whose clients' authorities are these, each with a scope or none, and whose own certificate is the first's.
async fn app(authorities: &[(&str, &Authority)]) -> App {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let folder = database.folder.path();
    let mut tls = server_tls(folder, authorities[0].1);
    let written = authorities.iter().enumerate().map(|(number, (scope, authority))| {
        let file = authority.write(folder, &format!("ca{number}.pem"));
        let text = if scope.is_empty() { path(&file).to_owned() } else { format!("{scope}={}", path(&file)) };
        text.parse::<ClientAuthority>().unwrap()
    });
    tls.clients = ClientAuth::Optional(written.collect());
    App::start_with(database, |settings| {
        let grpc = grpc_of(settings);
        grpc.tls = Some(tls);
        grpc.insecure_identity = false;
        grpc.trusted_peers = [SERVICE, PARTNER].iter().map(|name| name.parse().unwrap()).collect();
    })
    .await
}

/// What a call is answered that names a collection that does not exist: a reason, or nothing where there is no connection.
async fn answer(rpc: &mut TlsRpc) -> String {
    let status = destroy(rpc, OWNER, "custom-9").await.unwrap_err();
    if status.details().is_empty() { String::new() } else { reason(&status) }
}

const ACCEPTED: &str = "COLLECTION_NOT_FOUND";
const NOT_ALLOWED: &str = "CALLER_NOT_ALLOWED";
const NO_CONNECTION: &str = "";

#[tokio::test]
async fn an_authority_may_issue_only_names_in_its_scope() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    for (our_scope, their_scope, expected) in [
        ("", "", [ACCEPTED, ACCEPTED, ACCEPTED, ACCEPTED]),
        ("spiffe://example.org", "partner.example", [ACCEPTED, NOT_ALLOWED, NOT_ALLOWED, ACCEPTED]),
        ("spiffe://example.org", ".partner.example", [ACCEPTED, NOT_ALLOWED, NOT_ALLOWED, ACCEPTED]),
        ("spiffe://example.org.evil", PARTNER, [NOT_ALLOWED, NOT_ALLOWED, NOT_ALLOWED, ACCEPTED]),
        ("spiffe://example", ".billing.partner.example", [NOT_ALLOWED; 4]),
        ("", "artner.example", [ACCEPTED, ACCEPTED, NOT_ALLOWED, NOT_ALLOWED]),
    ] {
        let app = app(&[(our_scope, &ours), (their_scope, &theirs)]).await;
        let mut answers = Vec::new();
        for authority in [&ours, &theirs] {
            for name in [SERVICE, PARTNER] {
                let leaf = authority.issue(&[name], For::Client);
                answers.push(answer(&mut tls_rpc(&app.grpc, &ours, Some(&leaf))).await);
            }
        }
        assert_eq!(answers, expected, "{our_scope:?} {their_scope:?}");
    }
}

/// One authority with two scopes, which the same file is given for.
#[tokio::test]
async fn scopes_of_one_authority_add_up() {
    let ours = Authority::new("ours");
    let app = app(&[("spiffe://example.org", &ours), (".partner.example", &ours)]).await;
    for (name, expected) in
        [(SERVICE, ACCEPTED), (PARTNER, ACCEPTED), ("spiffe://else.example/orders", NOT_ALLOWED)]
    {
        let leaf = ours.issue(&[name], For::Client);
        assert_eq!(answer(&mut tls_rpc(&app.grpc, &ours, Some(&leaf))).await, expected, "{name}");
    }
}

/// RFC 5280 leaves SPIFFE IDs open to an authority that is constrained to DNS names.
#[tokio::test]
async fn an_authority_constrained_to_dns_names_may_issue_no_spiffe_id() {
    let root = Authority::new("root");
    let constrained_root = Authority::root("constrained", &["partner.example"]);
    let app = app(&[("", &root), ("", &constrained_root)]).await;
    let below = root.intermediate("below", &["partner.example"]);
    let deeper = below.intermediate("deeper", &[]);
    for (authority, name, expected) in [
        (&root.intermediate("open", &[]), SERVICE, ACCEPTED),
        (&below, SERVICE, NOT_ALLOWED),
        (&below, PARTNER, ACCEPTED),
        (&below, "billing.else.example", NO_CONNECTION),
        (&deeper, SERVICE, NOT_ALLOWED),
        (&deeper, PARTNER, ACCEPTED),
        (&constrained_root, SERVICE, NOT_ALLOWED),
        (&constrained_root, PARTNER, ACCEPTED),
    ] {
        let leaf = authority.issue(&[name], For::Client);
        assert_eq!(answer(&mut tls_rpc(&app.grpc, &root, Some(&leaf))).await, expected, "{name}");
    }
}

/// With certificates that the path to the authority does not need.
#[tokio::test]
async fn a_chain_with_many_intermediates_is_refused() {
    let root = Authority::new("root");
    let app = app(&[("", &root)]).await;
    let below = root.intermediate("below", &[]);
    for (others, expected) in [
        (vec!["a", "b", "c", "d", "e"], ACCEPTED),
        (vec!["a", "b", "c", "d", "e", "f"], NO_CONNECTION),
        (vec!["root", "root"], ACCEPTED),
        (vec!["root", "root", "root"], NO_CONNECTION),
    ] {
        let mut leaf = below.issue(&[SERVICE], For::Client);
        if others.len() == 2 {
            // What cannot be parsed is ignored.
            leaf.certificate += "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        }
        leaf.certificate.extend(others.iter().map(|name| Authority::new(name).certificate));
        assert_eq!(answer(&mut tls_rpc(&app.grpc, &root, Some(&leaf))).await, expected, "{others:?}");
    }
}

#[tokio::test]
async fn a_call_is_refused_once_its_certificate_has_expired() {
    let authority = Authority::new("ours");
    let app = app(&[("", &authority)]).await;
    let leaf = authority.issue_until(&[SERVICE], Duration::from_secs(NOW.cast_unsigned() + 60));
    let mut rpc = tls_rpc(&app.grpc, &authority, Some(&leaf));
    for (now, expected) in [(NOW, ACCEPTED), (NOW + 60, ACCEPTED), (NOW + 61, NOT_ALLOWED)] {
        app.database.set_clock(now);
        assert_eq!(answer(&mut rpc).await, expected, "{now}");
    }
    wait_for_answer(&mut rpc, NO_CONNECTION).await;
}

/// On the connection that it was made over: the other authority's goes on.
#[tokio::test]
async fn a_call_is_refused_once_its_authority_was_replaced() {
    let (old, kept) = (Authority::new("old"), Authority::new("kept"));
    let app = app(&[("", &kept), ("", &old)]).await;
    let rpc =
        |authority: &Authority| tls_rpc(&app.grpc, &kept, Some(&authority.issue(&[SERVICE], For::Client)));
    let (mut old_rpc, mut kept_rpc) = (rpc(&old), rpc(&kept));
    assert_eq!((answer(&mut old_rpc).await, answer(&mut kept_rpc).await), (ACCEPTED.into(), ACCEPTED.into()));
    Authority::new("new").write(app.database.folder.path(), "ca1.pem");
    wait_for_answer(&mut old_rpc, NO_CONNECTION).await;
    assert_eq!(answer(&mut kept_rpc).await, ACCEPTED);
}

/// For the log line of a refused call.
#[test]
fn a_certificate_is_described_by_its_names_and_their_validity() {
    let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
    let described = |permitted: &[&str], not_permitted: &[&str], now: i64, rejected: bool| {
        let verified = VerifiedNames {
            permitted: names(permitted),
            not_permitted: names(not_permitted),
            not_after: chrono::DateTime::from_timestamp(NOW, 0).unwrap(),
        };
        let certificate = PeerCertificate::new(verified, Clock::Set(Arc::new(AtomicI64::new(now))));
        if rejected {
            certificate.reject();
        }
        certificate.describe()
    };
    let (id, other) = ("spiffe://a/b", "c.example");
    assert_eq!(described(&[id, other], &[], NOW, false), "certificate for spiffe://a/b, c.example");
    assert_eq!(
        described(&[other], &[id], NOW, false),
        "certificate for c.example without authority for spiffe://a/b"
    );
    assert_eq!(described(&[id], &[], NOW + 1, true), "expired certificate for spiffe://a/b");
    let rejected = described(&[id], &[], NOW, true);
    assert_eq!(rejected, "certificate that the present authorities do not accept for spiffe://a/b");
    assert_eq!(described(&[&format!("spiffe://a/{}", "x".repeat(500))], &[], NOW, false).len(), 128);
}

/// Calls until the answer is this one.
async fn wait_for_answer(rpc: &mut TlsRpc, expected: &str) {
    wait_until(&format!("the answer is {expected:?}"), async || answer(rpc).await == expected).await;
}

/// Performs a handshake, and returns how it failed.
async fn fail(program: &Program, authority: &Authority, leaf: &Leaf) {
    use tokio::io::AsyncReadExt;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(authority, Some(leaf))));
    let stream = TcpStream::connect(program.grpc.trim_start_matches("http://")).await.unwrap();
    let mut stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
    // The service refuses the certificate after the client has finished its part.
    assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::InvalidData);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_handshakes_are_logged_with_the_names_of_the_certificate() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let database = TestDatabase::new(Backend::Sqlite).await;
    let folder = database.folder.path().to_owned();
    server_tls(&folder, &ours);
    let file = |name: &str| path(&folder.join(name)).to_owned();
    let (certificate, key) = (file("server.pem"), file("server.key"));
    let scoped = format!("spiffe://example.org={}", file("ca.pem"));
    let flags =
        ["--tls-cert", &certificate, "--tls-key", &key, "--client-ca", &scoped, "--trusted-peer", SERVICE];
    let program = Program::serve_strictly(&database, &flags).await;
    let others = ["a", "b"].map(|letter| format!("{}.example", letter.repeat(60)));
    let leaf = theirs.issue(&[SERVICE, &others[0], &others[1]], For::Client);
    for _ in 0..20 {
        fail(&program, &ours, &leaf).await;
    }
    let tasks = std::fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    assert!(names.into_iter().any(|name| name.trim() == "tls-handshake"), "no thread for handshakes");
    let listener = program.grpc.trim_start_matches("http://").to_owned();
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(9)).await;
    let lines: Vec<serde_json::Value> = log
        .iter()
        .filter(|line| line.contains("\"TLS handshakes failed\""))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!((1..20).contains(&lines.len()), "{log:?}");
    assert_eq!(lines.iter().map(|line| line["count"].as_u64().unwrap()).sum::<u64>(), 20, "{log:?}");
    for line in lines {
        assert_eq!(line["reason"], "invalid peer certificate: UnknownIssuer");
        // Names do not displace the reason, however long they are.
        let names = format!("{SERVICE}, {}", others.join(", "));
        assert_eq!(line["names"], format!("{}…", names.get(..128).unwrap()));
        assert_eq!(line["client.address"], "127.0.0.1");
        assert_eq!(line["listener"], listener);
    }
}
