//! The keys of bearer tokens: read, refreshed, and kept while they cannot be refreshed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use collections_service::{
    config,
    domain::{Clock, DestroyError},
    identity::jwt::{KeySet, KeySource, Verifier},
    jwks::{Jwks, JwksSource},
};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::Instant,
};

use super::support::{
    App, Backend, Ground, NOW, OWNER,
    jwt::{AUDIENCE, Endpoint, ISSUER, Key, believing, claims, claims_with, file, jwks},
    program::{Program, command, path, run},
    wait_until, write_private,
};

use DestroyError::{StoreUnavailable, TokenInvalid};

/// A verifier over a source, and its clock.
struct Bench {
    jwks: Jwks,
    verifier: Verifier,
    time: Arc<AtomicI64>,
}

impl Bench {
    async fn over(source: JwksSource) -> Self {
        let time = Arc::new(AtomicI64::new(NOW));
        let clock = Clock::Set(time.clone());
        let jwks = Jwks::open(source, clock.clone()).await.unwrap();
        let verifier = Verifier::new(Arc::new(jwks.clone()), ISSUER, &[AUDIENCE.to_owned()], clock);
        Self { jwks, verifier, time }
    }

    fn pass(&self, seconds: i64) {
        self.time.fetch_add(seconds, Ordering::SeqCst);
    }

    /// Returns the user that a token of this key names.
    async fn user(&self, key: &Key) -> Result<i64, DestroyError> {
        // As if it had been issued just now.
        let now = self.time.load(Ordering::SeqCst);
        let mut claims = claims_with("exp", json!(now + 300));
        claims["nbf"] = json!(now);
        self.verify(&key.token(&claims)).await
    }

    async fn verify(&self, token: &str) -> Result<i64, DestroyError> {
        let verified = self.verifier.verify(token).await;
        verified.map(|user| user.user().get()).map_err(|failure| failure.error)
    }
}

fn pair() -> (Key, Key) {
    (Key::new("old", Algorithm::ES256), Key::new("new", Algorithm::ES256))
}

#[tokio::test]
async fn an_unknown_key_is_fetched_once() {
    let (old, new) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    let bench = Bench::over(endpoint.source()).await;
    assert_eq!((bench.user(&old).await, endpoint.fetches()), (Ok(OWNER), 1));
    endpoint.publish(&[&old, &new]);
    endpoint.change(|reply| reply.after = Duration::from_millis(200));
    // However many ask at once.
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (verifier, token) = (bench.verifier.clone(), new.token(&claims()));
        all.spawn(async move { verifier.verify(&token).await.is_ok() });
    }
    assert_eq!(all.join_all().await, [true; 50]);
    assert_eq!(endpoint.fetches(), 2);
    assert_eq!(bench.user(&old).await, Ok(OWNER));
}

#[tokio::test]
async fn a_flood_of_unknown_keys_does_not_reach_the_issuer() {
    let (old, new) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    let bench = Bench::over(endpoint.source()).await;
    let begun = Instant::now();
    // What would be refused under any key brings about no fetch at all.
    let header = json!({"alg": "HS256", "kid": "unknown"});
    let token = new.sign(&header.to_string(), &claims().to_string());
    assert_eq!(bench.verify(&token).await, Err(TokenInvalid));
    assert_eq!(endpoint.fetches(), 1);
    for number in 0..300 {
        let header = json!({"alg": "ES256", "kid": format!("unknown {number}")});
        let token = new.sign(&header.to_string(), &claims().to_string());
        assert_eq!(bench.verify(&token).await, Err(TokenInvalid));
    }
    assert_eq!(endpoint.fetches(), 2);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // A key that appears within the pause has to wait for it, or for the next round of the loop.
    endpoint.publish(&[&old, &new]);
    bench.pass(config::jwks::ON_DEMAND_INTERVAL - 1);
    assert_eq!((bench.user(&new).await, endpoint.fetches()), (Err(TokenInvalid), 2));
    bench.pass(1);
    assert_eq!((bench.user(&new).await, endpoint.fetches()), (Ok(OWNER), 3));
    // A clock that is set back does not end it.
    let third = Key::new("third", Algorithm::ES256);
    endpoint.publish(&[&third]);
    bench.pass(-1_000_000);
    assert_eq!((bench.user(&third).await, endpoint.fetches()), (Ok(OWNER), 4));
    assert_eq!(bench.user(&old).await, Err(TokenInvalid), "a revoked key is still accepted");
}

#[tokio::test]
async fn a_call_does_not_wait_long_for_a_key() {
    let (old, new) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    let bench = Bench::over(endpoint.source()).await;
    endpoint.publish(&[&new]);
    endpoint.change(|reply| reply.after = Duration::from_secs(3));
    let begun = Instant::now();
    assert_eq!(bench.user(&new).await, Err(TokenInvalid));
    let waited = begun.elapsed();
    assert!(
        waited >= config::jwks::ON_DEMAND_TIMEOUT && waited < config::jwks::ON_DEMAND_TIMEOUT * 3 / 2,
        "{waited:?}"
    );
    // The others are served meanwhile, and the fetch goes on without whoever asked for it.
    assert_eq!(bench.user(&old).await, Ok(OWNER));
    assert_eq!((bench.user(&new).await, endpoint.fetches()), (Ok(OWNER), 2));
}

#[tokio::test]
async fn the_last_good_keys_are_kept_but_not_for_ever() {
    let (old, new) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    let bench = Bench::over(endpoint.source()).await;
    let good = jwks(&[&old]);
    let many: Vec<Value> = (0..=config::jwks::KEY_LIMIT).map(|_| old.jwk.clone()).collect();
    for (status, body) in [
        (500, good.clone()),
        (404, String::new()),
        (204, String::new()),
        (200, String::new()),
        (200, good.replacen("keys", "key", 1)),
        (200, good.trim_end_matches('}').to_owned()),
        (200, r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"old","alg":"HS256"}]}"#.to_owned()),
        (200, json!({ "keys": many }).to_string()),
        (200, format!("{good}{}", " ".repeat(config::jwks::SIZE_LIMIT as usize))),
        (200, "<html>Sign in</html>".to_owned()),
    ] {
        endpoint.change(|reply| (reply.status, reply.body) = (status, body.clone()));
        bench.pass(1);
        assert!(!bench.jwks.refresh().await, "{status} {body}");
        assert_eq!(bench.user(&old).await, Ok(OWNER), "{status} {body}");
    }
    let elsewhere = Endpoint::start(&[&new]).await;
    endpoint.change(|reply| (reply.status, reply.location) = (302, Some(elsewhere.url.clone())));
    assert!(!bench.jwks.refresh().await);
    assert_eq!(elsewhere.fetches(), 0, "a redirect was followed");

    let failed = 10;
    bench.pass(config::jwks::MAX_AGE - failed);
    assert_eq!(bench.user(&old).await, Ok(OWNER));
    bench.pass(1);
    assert_eq!(bench.user(&old).await, Err(StoreUnavailable));
    let cause = bench.jwks.keys().unwrap_err().to_string();
    assert!(cause.contains("86401 s old") && cause.contains("302"), "{cause}");
    endpoint.change(|reply| (reply.status, reply.body) = (200, good));
    assert!(bench.jwks.refresh().await);
    assert_eq!(bench.user(&old).await, Ok(OWNER));
}

/// An issuer that revokes all its keys is obeyed at the next refresh.
#[tokio::test]
async fn revoked_keys_are_rejected() {
    let (key, _) = pair();
    let endpoint = Endpoint::start(&[&key]).await;
    let bench = Bench::over(endpoint.source()).await;
    assert_eq!(bench.user(&key).await, Ok(OWNER));
    endpoint.publish(&[]);
    assert!(bench.jwks.refresh().await);
    assert_eq!(bench.user(&key).await, Err(TokenInvalid));
}

#[tokio::test]
async fn without_keys_no_token_is_at_fault() {
    let (old, _) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    endpoint.change(|reply| reply.status = 503);
    let bench = Bench::over(endpoint.source()).await;
    assert_eq!(bench.user(&old).await, Err(StoreUnavailable));
    assert_eq!(bench.verify("a.b.c").await, Err(TokenInvalid));
    endpoint.change(|reply| reply.status = 200);
    assert!(bench.jwks.refresh().await);
    assert_eq!(bench.user(&old).await, Ok(OWNER));

    // A server whose certificate no trusted authority issued counts as unavailable, and the log has the reason.
    let foreign = Endpoint::start(&[&old]).await;
    for ca in [None, Some(endpoint.ca.as_path())] {
        let bench = Bench::over(JwksSource::new(&foreign.url, ca).unwrap()).await;
        assert_eq!(bench.user(&old).await, Err(StoreUnavailable));
        let cause = bench.jwks.keys().unwrap_err().to_string();
        assert!(cause.contains("certificate"), "{cause}");
    }
    assert_eq!(foreign.fetches(), 0);
}

/// The running loop, for a URL that answers late and for a file that is swapped.
#[tokio::test]
async fn a_service_refreshes_its_keys() {
    let (old, new) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    endpoint.change(|reply| reply.status = 503);
    let start = async |source: JwksSource| {
        let jwt = Some(believing(source));
        App::start_with(Ground::new(Backend::Sqlite).await, |settings| settings.jwt = jwt).await
    };
    let app = start(endpoint.source()).await;
    let send = async |app: &App, key: &Key| {
        let authorization = format!("Bearer {}", key.token(&claims()));
        app.send(super::errors::form(super::support::PATH, &authorization, "id=custom-9")).await.0
    };
    assert_eq!(send(&app, &old).await, 503);
    endpoint.change(|reply| reply.status = 200);
    wait_until("the old key is accepted", async || send(&app, &old).await == 404).await;
    // A drain ends the loop, which would else try again every few seconds.
    endpoint.change(|reply| reply.status = 503);
    let mut failing = start(endpoint.source()).await;
    assert!(failing.running.take().unwrap().drain().await);
    let fetches = endpoint.fetches();

    // As Kubernetes swaps the files of a mount: a link to a folder is put over the link to another.
    let folder = tempfile::tempdir().unwrap();
    let mount = |name: &str, text: &str| {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("jwks.json"), text).unwrap();
        std::os::unix::fs::symlink(name, folder.path().join("next")).unwrap();
        std::fs::rename(folder.path().join("next"), folder.path().join("data")).unwrap();
    };
    mount("first", &jwks(&[&old]));
    let source = JwksSource::new(path(&folder.path().join("data/jwks.json")), None).unwrap();
    let app = start(source).await;
    assert_eq!((send(&app, &old).await, send(&app, &new).await), (404, 401));
    mount("second", &jwks(&[&new]));
    let begun = Instant::now();
    wait_until("the new key is accepted", async || send(&app, &new).await == 404).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(send(&app, &old).await, 401);
    mount("third", "{");
    // The file is read meanwhile; a failure changes nothing that a test in the same process can see.
    tokio::time::sleep(config::jwks::FILE_INTERVAL * 3 / 2).await;
    assert_eq!(send(&app, &new).await, 404);
    mount("fourth", &jwks(&[&old]));
    wait_until("the old key is accepted again", async || send(&app, &old).await == 404).await;
    assert_eq!(endpoint.fetches(), fetches);
}

#[tokio::test]
async fn only_keys_for_signatures_are_used() {
    let (key, _) = pair();
    let with = |name: &str, value: Value| {
        let mut jwk = key.jwk.clone();
        jwk[name] = value;
        jwk
    };
    let rsa = Key::new("rsa", Algorithm::RS256).jwk;
    let short = |name: &str, length: usize| {
        let mut jwk = rsa.clone();
        jwk[name] = jwk[name].as_str().unwrap().chars().take(length).collect::<String>().into();
        jwk
    };
    for unusable in [
        with("use", json!("enc")),
        with("key_ops", json!(["encrypt"])),
        with("alg", json!("ES384")),
        with("alg", json!("HS256")),
        with("alg", json!("none")),
        with("alg", json!("ECDH-ES")),
        with("crv", json!("P-384")),
        with("crv", json!("secp256k1")),
        with("kty", json!("RSA")),
        with("kty", json!("AKP")),
        with("kid", json!(7)),
        with("y", json!("AAAA")),
        with("y", Value::Null),
        short("n", 172),
        // 1024 bits, written as 2048.
        json!({"kty": "RSA", "n": "A".repeat(172) + rsa["n"].as_str().unwrap().split_at(172).0, "e": "AQAB"}),
        json!({"kty": "oct", "k": "c2VjcmV0", "kid": "k", "alg": "RS256"}),
        json!("key"),
        json!(null),
    ] {
        let set = |keys: &[&Value]| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
        assert!(set(&[&unusable]).is_err(), "{unusable}");
        assert_eq!(set(&[&unusable, &rsa]).unwrap().counts(), (1, 1), "{unusable}");
    }
    for useful in [with("use", Value::Null), with("key_ops", json!(["verify"])), with("x5t", json!("x"))] {
        assert!(KeySet::parse(json!({ "keys": [useful] }).to_string().as_bytes()).is_ok(), "{useful}");
    }
}

#[tokio::test]
async fn serve_refuses_half_an_issuer() {
    let ground = Ground::new(Backend::Sqlite).await;
    let (key, _) = pair();
    drop(file(ground.folder.path(), &[&key]));
    let in_folder = |name: &str| ground.folder.path().join(name).to_str().unwrap().to_owned();
    let (good, bad, ca) = (in_folder("jwks.json"), in_folder("bad"), in_folder("ca"));
    std::fs::write(&bad, "{}").unwrap();
    std::fs::write(&ca, "no PEM").unwrap();
    let (issuer, audience) = (["--jwt-issuer", ISSUER], ["--jwt-audience", AUDIENCE]);
    let url = "https://issuer.example/keys";
    for (arguments, named) in [
        (vec!["--jwks", &good], "--jwt-issuer"),
        ([&["--jwks", good.as_str()], &issuer[..]].concat(), "--jwt-audience"),
        ([&["--jwks", good.as_str()], &audience[..]].concat(), "--jwt-issuer"),
        (issuer.to_vec(), "--jwt-issuer"),
        (audience.to_vec(), "--jwt-audience"),
        (vec!["--jwks-ca", &ca], "--jwks-ca"),
        ([&["--jwks", good.as_str(), "--jwt-issuer", ""], &audience[..]].concat(), "--jwt-issuer"),
        ([&["--jwks", good.as_str(), "--jwt-audience", ""], &issuer[..]].concat(), "--jwt-audience"),
        ([&["--jwks", good.as_str(), "--jwt-issuer", " https://a"], &audience[..]].concat(), "--jwt-issuer"),
        ([&["--jwks", good.as_str(), "--jwt-issuer", "https://a\n"], &audience[..]].concat(), "--jwt-issuer"),
        ([&["--jwks", good.as_str(), "--jwt-audience", "a, b"], &issuer[..]].concat(), "--jwt-audience"),
        ([&["--jwks", good.as_str(), "--jwt-audience", "a b"], &issuer[..]].concat(), "--jwt-audience"),
        ([&["--jwks", good.as_str(), "--jwt-audience", "a\u{a0}"], &issuer[..]].concat(), "--jwt-audience"),
        ([&["--jwks", "/nowhere"], &issuer[..], &audience].concat(), "--jwks: /nowhere"),
        ([&["--jwks", bad.as_str()], &issuer[..], &audience].concat(), "--jwks"),
        ([&["--jwks", "http://issuer.example/"], &issuer[..], &audience].concat(), "--jwks"),
        ([&["--jwks", good.as_str(), "--jwks-ca", &ca], &issuer[..], &audience].concat(), "--jwks-ca"),
        ([&["--jwks", url, "--jwks-ca", &ca], &issuer[..], &audience].concat(), "--jwks-ca"),
        ([&["--jwks", url, "--jwks-ca", "/nowhere"], &issuer[..], &audience].concat(), "--jwks-ca"),
    ] {
        let key_file = in_folder("key");
        let serve = ["serve", "--database-url", &ground.url, "--credentials-key-file", &key_file];
        let (code, _, errors) = run(&[&serve[..], &arguments].concat(), &[]).await;
        assert!(code == 2 && errors.contains(&format!("{named}: ")), "{arguments:?}: {code} {errors}");
    }
}

/// With an issuer gRPC has callers, so `serve` starts without any other way to authenticate.
#[tokio::test]
async fn serve_needs_nothing_but_an_issuer() {
    let folder = tempfile::tempdir().unwrap();
    drop(file(folder.path(), &[&pair().0]));
    let url = format!("sqlite:{}?mode=rwc", folder.path().join("db").display());
    let keys = folder.path().join("jwks.json");
    let jwt = ["--jwks", path(&keys), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    let free = "127.0.0.1:0";
    let serve =
        ["serve", "--database-url", &url, "--rest-addr", "off", "--grpc-addr", free, "--admin-addr", free];
    let mut child =
        command(&[&serve[..], &jwt].concat()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    while !log.next_line().await.unwrap().expect("it ended").contains("\"serving\"") {}
}

/// A loaded JWKS is logged with the ids of its keys, and each load warns of private keys in it.
#[tokio::test]
async fn the_log_names_the_keys_in_force_and_private_ones() {
    let ground = Ground::new(Backend::Sqlite).await;
    let (old, new) = pair();
    let mut many: Vec<Key> =
        (0..20).map(|number| Key::new(&format!("key {number}"), Algorithm::EdDSA)).collect();
    many[3].kid = "x".repeat(1000);
    many[3].jwk["kid"] = many[3].kid.clone().into();
    drop(file(ground.folder.path(), &many.iter().collect::<Vec<_>>()));
    let keys = ground.folder.path().join("jwks.json");
    let more = ["--jwks", path(&keys), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    let program = Program::serve(&ground, &more).await;
    let with = |jwk: &Value, name: &str| {
        let mut jwk = jwk.clone();
        jwk[name] = json!("AAAA");
        jwk
    };
    let secret = json!({"kty": "oct", "k": "AAAA", "kid": "shared"});
    let private = json!({"keys": [with(&old.jwk, "d"), new.jwk, secret]}).to_string();
    write_private(&keys, &private);
    // The second load's lines have been written once a request with a new key is no longer refused for the key.
    let mut now = claims_with("nbf", None);
    now["exp"] = json!(Clock::System.now().timestamp() + 300);
    let token = new.token(&now);
    let token = || format!("Bearer {token}");
    let client = program.rest.clone();
    wait_until("the new key is accepted", async || {
        let form = super::errors::form(super::support::PATH, &token(), "id=custom-9");
        super::support::send(&client, form).await.0 != 401
    })
    .await;
    program.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(10)).await;
    let events: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kids = |begin: &str| -> Vec<String> {
        let named = events.iter().filter(|event| event["message"].as_str().unwrap().starts_with(begin));
        named.map(|event| event["kids"].as_str().unwrap().to_owned()).collect()
    };
    let [first, second] = &kids("jwks loaded")[..] else { panic!("{log:#?}") };
    assert!(first.starts_with("\"key 0\", \"key 1\", \"key 2\", \"xxx"), "{first}");
    assert!(first.ends_with(", \"key 15\" and 4 more") && first.len() < 500, "{first}");
    assert_eq!(second, "\"old\", \"new\"");
    assert_eq!(kids("jwks contains private keys"), ["\"old\", \"shared\""]);
    assert!(!log.iter().any(|line| line.contains("AAAA")), "{log:#?}");
}

/// One error as long as nothing changes, and one line when it is over.
#[tokio::test]
async fn the_log_has_one_line_for_each_change_of_the_jwks() {
    let ground = Ground::new(Backend::Sqlite).await;
    let (key, _) = pair();
    drop(file(ground.folder.path(), &[&key]));
    let keys = ground.folder.path().join("jwks.json");
    let more = ["--jwks", path(&keys), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    let program = Program::serve(&ground, &more).await;
    write_private(&keys, "{");
    program.wait_for_log(1, "jwks unavailable").await;
    // The file is read again, several times.
    tokio::time::sleep(config::jwks::FILE_INTERVAL * 7 / 2).await;
    write_private(&keys, &jwks(&[&key]));
    program.wait_for_log(1, "jwks available again").await;
    program.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(10)).await;
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("\"jwks loaded\""), 1, "{log:#?}");
    assert_eq!(count("jwks unavailable; keeping the last loaded keys"), 1, "{log:#?}");
    assert_eq!(count("jwks available again"), 1, "{log:#?}");
    assert_eq!(count("private keys"), 0, "{log:#?}");
    let failed = log.iter().find(|line| line.contains("\"ERROR\"")).unwrap();
    let failed: Value = serde_json::from_str(failed).unwrap();
    let last_good = failed["last_good"].as_str().unwrap();
    assert!(last_good.len() == "2026-01-01T00:00:00Z".len() && last_good.ends_with('Z'), "{last_good}");
}

#[tokio::test]
async fn a_first_load_that_fails_is_logged_as_such() {
    let ground = Ground::new(Backend::Sqlite).await;
    let more = ["--jwks", "http://127.0.0.1:1/keys", "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    let program = Program::serve(&ground, &more).await;
    program.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(10)).await;
    let expected = "jwks unavailable; no keys were loaded; bearer tokens are answered with UNAVAILABLE";
    let lines: Vec<_> = log.iter().filter(|line| line.contains("jwks unavailable")).collect();
    assert!(matches!(lines[..], [line] if line.contains(expected)), "{log:#?}");
}
