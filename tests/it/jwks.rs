//! The keys of bearer tokens: read, refreshed, and kept while they cannot be refreshed.

mod service;

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
use tokio::time::Instant;

use super::support::{
    NOW, OWNER,
    jwt::{AUDIENCE, Endpoint, ISSUER, Key, claims, claims_with, jwks},
};

use DestroyError::{StoreUnavailable, TokenInvalid};

/// A verifier over a source, and its clock.
struct VerifierFixture {
    jwks: Jwks,
    verifier: Verifier,
    time: Arc<AtomicI64>,
}

impl VerifierFixture {
    async fn new(source: JwksSource) -> Self {
        let time = Arc::new(AtomicI64::new(NOW));
        let clock = Clock::Set(time.clone());
        let jwks = Jwks::open(source, clock.clone()).await.unwrap();
        let verifier = Verifier::new(Arc::new(jwks.clone()), ISSUER, &[AUDIENCE.to_owned()], clock);
        Self { jwks, verifier, time }
    }

    fn advance(&self, seconds: i64) {
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
    let fixture = VerifierFixture::new(endpoint.source()).await;
    assert_eq!((fixture.user(&old).await, endpoint.fetches()), (Ok(OWNER), 1));
    endpoint.publish(&[&old, &new]);
    endpoint.change(|reply| reply.after = Duration::from_millis(200));
    // However many ask at once.
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (verifier, token) = (fixture.verifier.clone(), new.token(&claims()));
        all.spawn(async move { verifier.verify(&token).await.is_ok() });
    }
    assert_eq!(all.join_all().await, [true; 50]);
    assert_eq!(endpoint.fetches(), 2);
    assert_eq!(fixture.user(&old).await, Ok(OWNER));
}

#[tokio::test]
async fn a_flood_of_unknown_keys_does_not_reach_the_issuer() {
    let (old, new) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    let fixture = VerifierFixture::new(endpoint.source()).await;
    let begun = Instant::now();
    // What would be refused under any key brings about no fetch at all.
    let header = json!({"alg": "HS256", "kid": "unknown"});
    let token = new.sign(&header.to_string(), &claims().to_string());
    assert_eq!(fixture.verify(&token).await, Err(TokenInvalid));
    assert_eq!(endpoint.fetches(), 1);
    for number in 0..300 {
        let header = json!({"alg": "ES256", "kid": format!("unknown {number}")});
        let token = new.sign(&header.to_string(), &claims().to_string());
        assert_eq!(fixture.verify(&token).await, Err(TokenInvalid));
    }
    assert_eq!(endpoint.fetches(), 2);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // A key that appears within the pause has to wait for it, or for the next round of the loop.
    endpoint.publish(&[&old, &new]);
    fixture.advance(config::jwks::ON_DEMAND_INTERVAL - 1);
    assert_eq!((fixture.user(&new).await, endpoint.fetches()), (Err(TokenInvalid), 2));
    fixture.advance(1);
    assert_eq!((fixture.user(&new).await, endpoint.fetches()), (Ok(OWNER), 3));
    // A clock that is set back does not end it.
    let third = Key::new("third", Algorithm::ES256);
    endpoint.publish(&[&third]);
    fixture.advance(-1_000_000);
    assert_eq!((fixture.user(&third).await, endpoint.fetches()), (Ok(OWNER), 4));
    assert_eq!(fixture.user(&old).await, Err(TokenInvalid), "a revoked key is still accepted");
}

#[tokio::test]
async fn a_call_does_not_wait_long_for_a_key() {
    let (old, new) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    let fixture = VerifierFixture::new(endpoint.source()).await;
    endpoint.publish(&[&new]);
    endpoint.change(|reply| reply.after = Duration::from_secs(3));
    let begun = Instant::now();
    assert_eq!(fixture.user(&new).await, Err(TokenInvalid));
    let waited = begun.elapsed();
    assert!(
        waited >= config::jwks::ON_DEMAND_TIMEOUT && waited < config::jwks::ON_DEMAND_TIMEOUT * 3 / 2,
        "{waited:?}"
    );
    // Other calls are served meanwhile, and the fetch goes on without the call that began it.
    assert_eq!(fixture.user(&old).await, Ok(OWNER));
    assert_eq!((fixture.user(&new).await, endpoint.fetches()), (Ok(OWNER), 2));
}

#[tokio::test]
async fn the_last_loaded_keys_are_kept_for_a_limited_time() {
    let (old, new) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    let fixture = VerifierFixture::new(endpoint.source()).await;
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
        fixture.advance(1);
        assert!(!fixture.jwks.refresh().await, "{status} {body}");
        assert_eq!(fixture.user(&old).await, Ok(OWNER), "{status} {body}");
    }
    let elsewhere = Endpoint::start(&[&new]).await;
    endpoint.change(|reply| (reply.status, reply.location) = (302, Some(elsewhere.url.clone())));
    assert!(!fixture.jwks.refresh().await);
    assert_eq!(elsewhere.fetches(), 0, "a redirect was followed");

    let failed = 10;
    fixture.advance(config::jwks::MAX_AGE - failed);
    assert_eq!(fixture.user(&old).await, Ok(OWNER));
    fixture.advance(1);
    assert_eq!(fixture.user(&old).await, Err(StoreUnavailable));
    let cause = fixture.jwks.keys().unwrap_err().to_string();
    assert!(cause.contains("86401 s old") && cause.contains("302"), "{cause}");
    endpoint.change(|reply| (reply.status, reply.body) = (200, good));
    assert!(fixture.jwks.refresh().await);
    assert_eq!(fixture.user(&old).await, Ok(OWNER));
}

/// An issuer that revokes all its keys is obeyed at the next refresh.
#[tokio::test]
async fn revoked_keys_are_rejected() {
    let (key, _) = pair();
    let endpoint = Endpoint::start(&[&key]).await;
    let fixture = VerifierFixture::new(endpoint.source()).await;
    assert_eq!(fixture.user(&key).await, Ok(OWNER));
    endpoint.publish(&[]);
    assert!(fixture.jwks.refresh().await);
    assert_eq!(fixture.user(&key).await, Err(TokenInvalid));
}

#[tokio::test]
async fn without_keys_calls_are_unavailable() {
    let (old, _) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    endpoint.change(|reply| reply.status = 503);
    let fixture = VerifierFixture::new(endpoint.source()).await;
    assert_eq!(fixture.user(&old).await, Err(StoreUnavailable));
    assert_eq!(fixture.verify("a.b.c").await, Err(TokenInvalid));
    endpoint.change(|reply| reply.status = 200);
    assert!(fixture.jwks.refresh().await);
    assert_eq!(fixture.user(&old).await, Ok(OWNER));

    // A server whose certificate no trusted authority issued counts as unavailable, and the log has the reason.
    let foreign = Endpoint::start(&[&old]).await;
    for ca in [None, Some(endpoint.ca.as_path())] {
        let fixture = VerifierFixture::new(JwksSource::new(&foreign.url, ca).unwrap()).await;
        assert_eq!(fixture.user(&old).await, Err(StoreUnavailable));
        let cause = fixture.jwks.keys().unwrap_err().to_string();
        assert!(cause.contains("certificate"), "{cause}");
    }
    assert_eq!(foreign.fetches(), 0);
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
