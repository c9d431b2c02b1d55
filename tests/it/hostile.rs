//! During attacks, other callers are served, and the memory stays bounded. `cargo bench --bench hostile` measures the
//! figures.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    support::{
        Backend, OWNER, PATH, TestDatabase,
        attack::{ATTACKER, Attack, connect_from},
        destroy, form_now,
        pki::Authority,
        program::{Program, path, run},
        reason, rpc, send, wait_until,
    },
    tls,
};

/// The loopback address of honest callers.
const HERE: &str = "127.0.0.1";
/// More than the connections that may be without a call.
const MANY: usize = 1_200;
/// Open files that leave room for fewer connections than a test opens.
const FEW_FILES: u32 = 1_024;
/// More connections than that.
const TOO_MANY_FOR_FILES: usize = 1_100;

fn memory_mb(program: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

async fn open(attack: Attack, address: &str, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.extend(attack.open_from(HERE, address).await);
    }
    streams
}

/// Whether the other end has closed the connection, or does so within this time.
async fn is_closed(stream: &mut TcpStream, limit: Duration) -> bool {
    let mut buffer = [0; 4096];
    let closed = async {
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_settings) => {}
            }
        }
    };
    tokio::time::timeout(limit, closed).await.is_ok()
}

/// The connections that have been idle for the longest are evicted for new ones, which do not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_do_not_block_others() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    let (grpc, rest) =
        (program.grpc.trim_start_matches("http://"), program.rest.trim_start_matches("http://"));
    let mut known = rpc(&program.grpc);
    assert_eq!(destroy(&mut known, OWNER, "custom-1", "").await.unwrap_err().code(), Code::NotFound);
    for (attack, address) in [
        (Attack::Silence, grpc),
        (Attack::HalfPreface, grpc),
        (Attack::Idle, grpc),
        (Attack::SlowHeaders, rest),
        (Attack::Silence, program.admin.trim_start_matches("http://")),
    ] {
        let mut streams = open(attack, address, MANY).await;
        let new_client = tokio::time::timeout(Duration::from_secs(5), async {
            destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap_err().code()
        });
        assert_eq!(new_client.await.expect("a new client waits"), Code::NotFound, "{attack:?}");
        let request = tokio::time::timeout(
            Duration::from_secs(5),
            send(&program.rest, form_now(&program.rest, "custom-1")),
        );
        assert_eq!(request.await.expect("a request waits").0, 404, "{attack:?}");
        // A connection that has made a call is kept.
        assert_eq!(destroy(&mut known, OWNER, "custom-1", "").await.unwrap_err().code(), Code::NotFound);
        assert!(
            is_closed(&mut streams[0], Duration::from_secs(3)).await,
            "{attack:?}: the first keeps its place"
        );
        let last = streams.last_mut().unwrap();
        assert!(!is_closed(last, Duration::from_millis(100)).await, "{attack:?}: the last has no place");
    }
    let probe = ["healthcheck", "--addr", program.admin.trim_start_matches("http://")];
    assert_eq!(run(&probe, &[]).await.0, 0);
    assert!(memory_mb(&program) < 150, "{} MB", memory_mb(&program));
    program.signal(Signal::SIGTERM);
    assert_eq!(program.ended(Duration::from_secs(9)).await.0.code(), Some(0));
}

/// TLS handshakes that do not begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_handshakes_do_not_block_others() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let authority = Authority::new("ours");
    let (cert, key) = authority.server().write(database.folder.path(), "server");
    let flags = ["--rest-tls-cert", path(&cert), "--rest-tls-key", path(&key)];
    let program = Program::serve(&database, &flags).await;
    let mut streams = open(Attack::Silence, program.rest.trim_start_matches("http://"), MANY).await;
    let shown = tokio::time::timeout(Duration::from_secs(5), tls::shown(&program.rest, &authority));
    assert!(!shown.await.expect("a handshake waits").is_empty());
    assert!(is_closed(&mut streams[0], Duration::from_secs(3)).await);
    // The connections that are left time out.
    let last = streams.last_mut().unwrap();
    assert!(is_closed(last, Duration::from_secs(12)).await, "a handshake may take for ever");
}

/// Requests that are reset at once, headers without an end, and frames that cost nothing to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_end_the_connection() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    let mut known = rpc(&program.grpc);
    for attack in [
        Attack::RapidReset,
        Attack::Continuation,
        Attack::Pings,
        Attack::WindowUpdates,
        Attack::Settings,
        Attack::Priorities,
        Attack::TinyData,
    ] {
        for address in [&program.grpc, &program.rest] {
            let address = address.trim_start_matches("http://");
            for _ in 0..10 {
                if let Some(mut stream) = attack.open_from(HERE, address).await {
                    assert!(is_closed(&mut stream, Duration::from_secs(10)).await, "{attack:?} goes on");
                }
            }
            assert_eq!(destroy(&mut known, OWNER, "custom-1", "").await.unwrap_err().code(), Code::NotFound);
        }
    }
    assert!(memory_mb(&program) < 150, "{} MB", memory_mb(&program));
    program.signal(Signal::SIGTERM);
    let (status, log) = program.ended(Duration::from_secs(9)).await;
    assert_eq!(status.code(), Some(0));
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:?}");
}

/// Watching health needs no user, so the streams have a limit; probes, which only check, are served all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_without_a_user_have_a_limit() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    for origin in [&program.grpc, &program.admin] {
        let ask = || HealthCheckRequest { service: String::new() };
        let (mut held, mut refused) = (Vec::new(), 0);
        for _ in 0..4 {
            let http =
                Client::builder(TokioExecutor::new()).http2_only(true).build_http::<tonic::body::Body>();
            let mut health = HealthClient::with_origin(http, origin.parse().unwrap());
            for _ in 0..90 {
                match health.watch(ask()).await {
                    Ok(stream) => held.push(stream),
                    Err(status) => refused += usize::from(reason(&status) == "OVERLOADED"),
                }
            }
            assert_eq!(health.check(ask()).await.unwrap().get_ref().status, 1);
        }
        // One client never has more places than are free.
        let limit = collections_service::config::calls::AUXILIARY_CALLS / 2;
        assert_eq!((held.len(), refused), (limit, 360 - limit), "{origin}");
        drop(held);
        let http = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<tonic::body::Body>();
        let mut health = HealthClient::with_origin(http, origin.parse().unwrap());
        wait_until("the places are free again", async || health.watch(ask()).await.is_ok()).await;
    }
}

/// Requests whose bodies do not arrive hold no places, so that a body which arrives late is served all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_do_not_count_as_in_flight() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &["--max-in-flight", "8"]).await;
    let rest = program.rest.trim_start_matches("http://");
    let _held = open(Attack::SlowBody, rest, 300).await;
    let request = form_now(&program.rest, "custom-1");
    let mut stream = TcpStream::connect(rest).await.unwrap();
    let mut head =
        format!("POST {PATH} HTTP/1.1\r\nhost: {rest}\r\ncontent-length: {}\r\n", request.body().len());
    for (name, value) in request.headers() {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    // A body that arrived with its head would never be without a place.
    tokio::time::sleep(Duration::from_millis(150)).await;
    stream.write_all(request.body().as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
}

/// A client far away takes its time between the connection and its first call, while another address opens connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_one_address_evicts_no_other() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve_with_files(&database, FEW_FILES).await;
    let rest = program.rest.trim_start_matches("http://");
    let distant = connect_from(ATTACKER, rest).await.unwrap();
    let mut idle = connect_from(ATTACKER, rest).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {rest}\r\n\r\n");
    idle.write_all(request.as_bytes()).await.unwrap();
    assert!(idle.read(&mut [0; 4096]).await.unwrap() > 0);
    let _flood = open(Attack::SlowHeaders, rest, MANY).await;
    let _calls = open(Attack::SlowBody, rest, TOO_MANY_FOR_FILES).await;
    for mut stream in [distant, idle] {
        let mut answer = [0; 12];
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_exact(&mut answer).await.expect("a distant client is evicted");
        assert_eq!(&answer, b"HTTP/1.1 404");
    }
}

/// Connections that each hold an unfinished call, and answer PINGs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_calls_do_not_block_others() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve_with_files(&database, FEW_FILES).await;
    let grpc = program.grpc.trim_start_matches("http://");
    let mut streams = open(Attack::UnfinishedCheck, grpc, TOO_MANY_FOR_FILES).await;
    for _ in 0..3 {
        let new_client = tokio::time::timeout(Duration::from_secs(5), async {
            destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap_err().code()
        });
        assert_eq!(new_client.await.expect("a new client waits"), Code::NotFound);
    }
    assert!(is_closed(&mut streams[0], Duration::from_secs(3)).await, "the first keeps its place");
}

/// Few bytes that decode to many: each connection sends about 15 kB and makes 1.5 MB of headers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_headers_use_a_bounded_amount_of_memory() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    let grpc = program.grpc.trim_start_matches("http://");
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.extend(Attack::LargeHeaders.open_from(ATTACKER, grpc).await);
    }
    assert_eq!(
        destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap_err().code(),
        Code::NotFound
    );
    assert!(memory_mb(&program) < 150, "{} MB", memory_mb(&program));
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(20)).await;
    assert!(log.iter().any(|line| line.contains("requests refused")), "{log:?}");
}

/// Connections to one listener must leave files for the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_limit_of_open_files_blocks_no_listener() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve_with_files(&database, FEW_FILES).await;
    let rest = program.rest.trim_start_matches("http://");
    let mut flood = Vec::new();
    for _ in 0..TOO_MANY_FOR_FILES {
        let mut stream = connect_from(ATTACKER, rest).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        flood.push(stream);
    }
    // Until the service has accepted as many as it can.
    assert!(flood[900].read(&mut [0; 4096]).await.unwrap() > 0);
    let new_client = tokio::time::timeout(Duration::from_secs(5), async {
        destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap_err().code()
    });
    assert_eq!(new_client.await.expect("a new client waits"), Code::NotFound);
    let probe = ["healthcheck", "--addr", program.admin.trim_start_matches("http://")];
    assert_eq!(run(&probe, &[]).await.0, 0);
}

/// The largest body that is read, in frames of a hundred bytes, on a connection that has not completed a call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_in_small_frames_is_accepted() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    let frames =
        (0..655).map(|_| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![b'x'; 100]))));
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let request = http::Request::post(format!("{}{PATH}", program.rest)).body(body).unwrap();
    let http = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    assert_eq!(http.request(request).await.unwrap().status(), 400);
}

/// While the process stands still, a client gives up forty calls; it resets them before they are accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_time_out_together_do_not_end_their_connection() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    let mut known = rpc(&program.grpc);
    assert_eq!(destroy(&mut known, OWNER, "custom-1", "").await.unwrap_err().code(), Code::NotFound);
    program.signal(Signal::SIGSTOP);
    let call = || {
        let mut rpc = known.clone();
        async move { destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap_err() }
    };
    let healthy: Vec<_> = (0..10).map(|_| tokio::spawn(call())).collect();
    let given_up = (0..40).map(|_| tokio::time::timeout(Duration::from_millis(300), call()));
    assert!(futures_util::future::join_all(given_up).await.iter().all(Result::is_err));
    // The client sends its resets in a task of its own, and the stopped process does not show that they have arrived.
    tokio::time::sleep(Duration::from_millis(300)).await;
    program.signal(Signal::SIGCONT);
    for call in healthy {
        let status = call.await.unwrap();
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
    }
}

/// The HTTP/2 library refuses an authority with two ports before any of our code has the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_authority_is_logged() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    let mut stream =
        Attack::TwoPorts.open_from(HERE, program.grpc.trim_start_matches("http://")).await.unwrap();
    // Until its reset, a frame of 13 bytes with PROTOCOL_ERROR, has arrived.
    let mut received = Vec::new();
    while !received.windows(4).any(|bytes| bytes == [0, 0, 4, 3]) {
        assert!(stream.read_buf(&mut received).await.unwrap() > 0);
    }
    program.wait_for_log(1, "malformed HTTP/2").await;
}

/// HTTP/1.1 bodies within the limit, in chunks of one byte: six bytes for each of content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_in_tiny_chunks_use_a_bounded_amount_of_memory() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    let rest = program.rest.trim_start_matches("http://");
    let mut streams = open(Attack::TinyChunks, rest, 50).await;
    assert_eq!(send(&program.rest, form_now(&program.rest, "custom-1")).await.0, 404);
    for stream in &mut streams {
        // The body has no end, so the request times out.
        assert!(is_closed(stream, Duration::from_secs(20)).await);
    }
    assert!(memory_mb(&program) < 150, "{} MB", memory_mb(&program));
}
