//! The rate limit of calling services, and the flags of both limits.

use std::sync::atomic::Ordering;

use collections_service::{
    domain::Clock,
    rate_limit::{RateLimit, Redis},
    telemetry::Metrics,
};
use tonic::Code;
use tonic_types::StatusExt;

use super::{
    rule,
    shared::{TEST_TIMEOUT, connection},
};
use crate::{
    errors::signed,
    support::{
        App, Backend, NOW, OTHER, OWNER, TestDatabase, destroy, grpc_of,
        oauth::Signer,
        pki::{Authority, For, tls_rpc},
        program::{path, run},
        reason,
        redis::RedisServer,
    },
    tls::{self, SERVICE, server_tls},
};

/// An app whose gRPC callers have a limit of two calls an hour; callers named in certificates, or none named.
async fn with_caller_limit(authority: Option<&Authority>, redis: Option<Redis>) -> App {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let tls = authority.map(|authority| server_tls(database.folder.path(), authority));
    App::start_with(database, |settings| {
        let limit = RateLimit::new(rule("2/1h"), settings.clock.clone(), redis);
        let grpc = grpc_of(settings);
        grpc.caller_rate_limit = Some(limit);
        grpc.insecure_identity = tls.is_none();
        grpc.tls = tls;
        grpc.trusted_peers = [SERVICE, "billing.example"].iter().map(|name| name.parse().unwrap()).collect();
    })
    .await
}

/// Each calling service has a limit of its own, for all its users. Calls that are not authenticated are not counted, and
/// REST has another limit.
#[tokio::test]
async fn calling_services_are_limited() {
    let authority = Authority::new("ours");
    let app = with_caller_limit(Some(&authority), None).await;
    let reset = (NOW / 3600 + 1) * 3600;
    for name in [SERVICE, "billing.example"] {
        let leaf = authority.issue(&[name], For::Client);
        let mut rpc = tls_rpc(&app.grpc, &authority, Some(&leaf));
        let mut call = async |user| tls::destroy(&mut rpc, user, "custom-1").await.unwrap_err();
        assert_eq!(reason(&call(0).await), "CREDENTIALS_INVALID");
        for user in [OWNER, OTHER] {
            assert_eq!(reason(&call(user).await), "COLLECTION_NOT_FOUND", "{name}");
        }
        let refused = call(OWNER).await;
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
        let wait = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
        assert_eq!(wait.as_secs(), (reset - NOW).cast_unsigned());
        assert_eq!(app.send(signed(&app, &Signer::owner(), "custom-1")).await.0, 404);
    }
    let Clock::Set(clock) = &app.database.clock else { panic!("a clock of its own") };
    clock.store(reset, Ordering::Relaxed);
    let leaf = authority.issue(&[SERVICE], For::Client);
    let mut rpc = tls_rpc(&app.grpc, &authority, Some(&leaf));
    assert_eq!(reason(&tls::destroy(&mut rpc, OWNER, "custom-1").await.unwrap_err()), "COLLECTION_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_limit_of_a_caller_through_redis() {
    let server = RedisServer::start().await;
    let mut reasons = Vec::new();
    let mut apps = Vec::new();
    for _ in 0..3 {
        let redis = connection(&server, TEST_TIMEOUT, &Metrics::new());
        apps.push(with_caller_limit(None, Some(redis)).await);
    }
    for app in &apps {
        reasons.push(reason(&destroy(&mut app.rpc(), OWNER, "custom-1", "").await.unwrap_err()));
    }
    assert_eq!(reasons, ["COLLECTION_NOT_FOUND", "COLLECTION_NOT_FOUND", "RATE_LIMITED"]);
}

#[tokio::test]
async fn contradictory_flags_are_rejected() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let key = path(&database.folder.path().join("key")).to_owned();
    let with_rest = ["serve", "--insecure-identity", "--credentials-key-file", &key];
    let without = ["serve", "--insecure-identity", "--rest-addr", "off"];
    for (start, flags, expected) in [
        (&with_rest[..], ["--rate-limit", "many"].to_vec(), "--rate-limit"),
        (&with_rest, vec!["--redis-url", "s3cret"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "http://s3cret"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "unix:///s3cret"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "redis://127.0.0.1:1#s3cret"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "redis://127.0.0.1:1?db=s3cret"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "redis://127.0.0.1:1\n"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "rediss://s3cret:1/#insecure"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "redis://:s3cret@127.0.0.1:1"], "--redis-url"),
        (&with_rest, vec!["--redis-url", "redis://127.0.0.1:1", "--rate-limit", "0"], "--redis-url"),
        (&with_rest, vec!["--caller-rate-limit", "many"], "--caller-rate-limit"),
        (&without, vec!["--redis-url", "redis://127.0.0.1:1"], "--redis-url"),
        (&without, vec!["--redis-url", "redis://127.0.0.1:1", "--caller-rate-limit", "0"], "--redis-url"),
    ] {
        let arguments = [start, &flags].concat();
        let (code, _, error) = run(&arguments, &[("COLLECTIONS_DATABASE_URL", &database.url)]).await;
        assert_eq!(code, 2, "{flags:?}: {error}");
        assert!(error.contains(expected) && !error.contains("s3cret"), "{flags:?}: {error}");
    }
    // The limit of callers needs no REST: here it is the database that does not exist.
    let shared = ["--redis-url", "redis://127.0.0.1:1", "--caller-rate-limit", "5/1h"];
    let missing = [("COLLECTIONS_DATABASE_URL", "sqlite:/nowhere/db")];
    let (code, _, error) = run(&[&without[..], &shared].concat(), &missing).await;
    assert!(code == 2 && error.contains("--database-url"), "{error}");
}
