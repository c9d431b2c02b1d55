//! Bearer tokens: which are accepted, and which are rejected.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use collections_service::{
    config,
    domain::{Clock, DestroyError},
    identity::{AuthenticatedUser, jwt::Verifier},
    jwks::{Jwks, JwksSource},
};
use http::Request;
use jsonwebtoken::Algorithm;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{
    errors::{assert_answer, error_body, form},
    forgeries::Keys,
    support::{
        App, Backend, NOW, OTHER, OWNER, PATH, TestDatabase,
        jwt::{AUDIENCE, CLIENT, FixedKeys, ISSUER, Key, claims, claims_with, file, jwt_settings},
        oauth::Signer,
        user,
    },
};

use DestroyError::{Overloaded, TokenInvalid, WriteAccessRequired};

/// A verifier of tokens that these keys sign, whose clock stands at `NOW`.
pub async fn verifier(keys: &[&Key]) -> Verifier {
    let clock = Clock::Set(Arc::new(NOW.into()));
    let folder = tempfile::tempdir().unwrap();
    let jwks = Jwks::open(file(folder.path(), keys), clock.clone()).await.unwrap();
    Verifier::new(Arc::new(jwks), ISSUER, &["another".to_owned(), AUDIENCE.to_owned()], clock)
}

fn bearer(token: &str, id: &str) -> Request<String> {
    form(PATH, &format!("Bearer {token}"), &format!("id={id}"))
}

async fn verify(verifier: &Verifier, token: &str) -> Result<i64, DestroyError> {
    verifier.verify(token).await.map(|user| user.user().get()).map_err(|failure| failure.error)
}

#[tokio::test]
async fn every_allowed_algorithm_is_accepted() {
    let keys: Vec<Key> = config::identity::JWT_ALGORITHMS
        .into_iter()
        .map(|algorithm| Key::new(&format!("{algorithm:?}"), algorithm))
        .collect();
    let verifier = verifier(&keys.iter().collect::<Vec<_>>()).await;
    for key in &keys {
        let accepted: AuthenticatedUser = verifier.verify(&key.token(&claims())).await.unwrap();
        assert_eq!(
            (accepted.user(), accepted.caller().map(|caller| &**caller)),
            (user(OWNER), Some("jwt:test-client"))
        );
        let mut flipped = key.token(&claims()).into_bytes();
        let last = flipped.len() - 10;
        flipped[last] = if flipped[last] == b'A' { b'B' } else { b'A' };
        let flipped = String::from_utf8(flipped).unwrap();
        assert_eq!(verify(&verifier, &flipped).await, Err(TokenInvalid), "{}", key.kid);
    }
}

#[tokio::test]
async fn the_caller_is_the_client_or_else_the_issuer() {
    let key = Key::new("k", Algorithm::ES256);
    let verifier = verifier(&[&key]).await;
    let mut both = claims_with("client_id", json!("other"));
    let caller = async |claims: &Value| {
        let verified = verifier.verify(&key.token(claims)).await;
        verified.map(|user| user.caller().unwrap().to_string()).map_err(|failure| failure.error)
    };
    assert_eq!(caller(&both).await.unwrap(), format!("jwt:{CLIENT}"));
    both.as_object_mut().unwrap().remove("azp");
    assert_eq!(caller(&both).await.unwrap(), "jwt:other");
    assert_eq!(caller(&claims_with("azp", None)).await.unwrap(), format!("jwt:{ISSUER}"));
    let mut wrong = vec![json!(""), json!("x".repeat(257)), json!(7), json!(null)];
    // Control characters, separators of lines, and characters that change the direction of what is displayed.
    let misleading =
        ['\0', '\n', '\u{7f}', '\u{85}', '\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'];
    let misleading = misleading.into_iter().chain('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}');
    wrong.extend(misleading.map(|letter| json!(format!("a{letter}b"))));
    for wrong in wrong {
        for name in ["azp", "client_id"] {
            assert_eq!(caller(&claims_with(name, wrong.clone())).await, Err(TokenInvalid), "{name} {wrong}");
        }
    }
}

#[tokio::test]
async fn every_other_token_is_rejected() {
    let keys = Keys::new();
    let verifier = verifier(&keys.published()).await;
    let unproven = keys.forged().into_iter().chain(keys.broken());
    let all: Vec<_> = unproven.map(|(why, token)| (why, token, TokenInvalid)).chain(keys.refused()).collect();
    let app = app(&keys.published()).await;
    app.put(1, OWNER).await;
    app.put(2, OTHER).await;
    assert!(all.len() > 150, "{}", all.len());
    for (why, token, expected) in all {
        assert_eq!(verify(&verifier, &token).await, Err(expected), "{why}: {token}");
        // An HTTP client would not send it.
        if !token.is_ascii() {
            continue;
        }
        let row = expected.row();
        for id in ["custom-1", "custom-2"] {
            let (status, headers, body) = app.send(bearer(&token, id)).await;
            assert_eq!((status, body), (row.http, error_body(row.code, row.message)), "{why}: {token}");
            let access = headers.get("x-access-level").map(http::HeaderValue::as_bytes);
            assert_eq!(access, (expected == WriteAccessRequired).then_some(&b"read"[..]), "{why}");
        }
    }
    assert_eq!((app.owned_by(OWNER).await, app.owned_by(OTHER).await), (vec![1], vec![2]));
}

/// No byte of a token can be another one.
#[tokio::test]
async fn every_byte_is_signed() {
    let key = Key::new("k", Algorithm::EdDSA);
    let verifier = verifier(&[&key]).await;
    let token = key.token(&claims());
    for place in 0..token.len() {
        for other in [0x01, 0x02, 0x04, 0x10, 0x20] {
            let mut bytes = token.clone().into_bytes();
            bytes[place] ^= other;
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(verify(&verifier, &changed).await, Err(TokenInvalid), "{place}: {changed}");
        }
    }
}

/// The values at the limit of what is rejected.
#[tokio::test]
async fn values_at_the_limits_are_accepted() {
    let keys = Keys::new();
    let verifier = verifier(&keys.published()).await;
    for (name, value) in [
        ("exp", Some(json!(NOW - 29))),
        ("exp", Some(json!(NOW as f64 + 0.25))),
        ("nbf", Some(json!(NOW + 30))),
        ("nbf", None),
        ("aud", Some(json!([AUDIENCE]))),
        ("aud", Some(json!(["x", "another"]))),
        ("sub", Some(json!("9223372036854775807"))),
        ("scope", None),
        ("scope", Some(json!("collection.write"))),
        ("scope", Some(json!("openid collections.write"))),
        ("scope", Some(json!(["a", "collections.write"]))),
        ("scp", Some(json!(["a", "collections.write"]))),
        ("scp", Some(json!("a collection.write"))),
        ("nonce", Some(json!({"of": ["the", "issuer's", "own"]}))),
    ] {
        let token = keys.ec.token(&claims_with(name, value.clone()));
        assert!(verify(&verifier, &token).await.is_ok(), "{name}: {value:?}");
    }
    for typ in ["jwt", "at+jwt", "application/at+JWT"] {
        let header = json!({"alg": "ES256", "kid": "ec", "typ": typ}).to_string();
        assert_eq!(verify(&verifier, &keys.ec.sign(&header, &claims().to_string())).await, Ok(OWNER));
    }
}

/// RFC 9864 names the algorithm after its curve.
#[tokio::test]
async fn ed25519_is_another_name_of_eddsa() {
    for (published, sent) in [("EdDSA", "Ed25519"), ("Ed25519", "EdDSA"), ("Ed25519", "Ed25519")] {
        let mut key = Key::new("k", Algorithm::EdDSA);
        key.jwk["alg"] = published.into();
        let verifier = verifier(&[&key]).await;
        let token = key.sign(&json!({"alg": sent, "kid": "k"}).to_string(), &claims().to_string());
        assert_eq!(verify(&verifier, &token).await, Ok(OWNER), "{published} {sent}");
    }
}

/// RFC 7518 forbids leading zero bytes, and some issuers publish them all the same.
#[tokio::test]
async fn leading_zeros_of_an_rsa_key_are_ignored() {
    for (name, zeros) in [("n", 1), ("n", 3), ("e", 1), ("e", 5)] {
        let mut key = Key::new("k", Algorithm::RS256);
        let number = BASE64_URL_SAFE_NO_PAD.decode(key.jwk[name].as_str().unwrap()).unwrap();
        key.jwk[name] = BASE64_URL_SAFE_NO_PAD.encode([vec![0; zeros], number].concat()).into();
        let verifier = verifier(&[&key]).await;
        assert_eq!(verify(&verifier, &key.token(&claims())).await, Ok(OWNER), "{zeros} before {name}");
    }
}

#[tokio::test]
async fn a_token_without_a_key_id_is_of_the_only_key() {
    let key = Key::new("k", Algorithm::ES256);
    let token = key.sign(r#"{"alg":"ES256"}"#, &claims().to_string());
    assert_eq!(verify(&verifier(&[&key]).await, &token).await, Ok(OWNER));
    let other = Key::new("other", Algorithm::EdDSA);
    assert_eq!(verify(&verifier(&[&key, &other]).await, &token).await, Err(TokenInvalid));
}

#[tokio::test]
async fn keys_of_two_kinds_may_share_an_id() {
    let (ec, ed) = (Key::new("k", Algorithm::ES256), Key::new("k", Algorithm::EdDSA));
    let verifier = verifier(&[&ec, &ed]).await;
    for key in [ec, ed] {
        assert_eq!(verify(&verifier, &key.token(&claims())).await, Ok(OWNER));
    }
}

async fn app(keys: &[&Key]) -> App {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let source = file(database.folder.path(), keys);
    App::start_with(database, |settings| settings.jwt = Some(jwt_settings(source))).await
}

#[tokio::test]
async fn a_token_destroys_over_rest() {
    let key = Key::new("k", Algorithm::ES256);
    let app = app(&[&key]).await;
    for id in 1..=3 {
        app.put(id, OWNER).await;
    }
    app.put(4, OTHER).await;
    let token = key.token(&claims());
    let answer = app.send(bearer(&token, "custom-1")).await;
    assert_answer(&answer, 200, r#"{"destroyed":true}"#);
    assert_eq!(answer.1["x-access-level"], "read-write");
    assert_eq!(app.send(form(PATH, &format!("bearer  {token}"), "id=custom-2")).await.0, 200);
    assert_eq!(app.send(bearer(&token, "custom-4")).await.0, 403);
    let query = "SELECT caller FROM destroyed_collections WHERE id = 1";
    let row =
        app.database.connection().await.query_one_raw(Statement::from_string(DbBackend::Sqlite, query)).await;
    assert_eq!(row.unwrap().unwrap().try_get_by_index::<String>(0).unwrap(), format!("jwt:{CLIENT}"));

    // Two credentials at once are none, whichever of them is good.
    let invalid = error_body(32, "Could not authenticate you.");
    let url = format!("{}{PATH}", app.rest);
    let signed = Signer::owner().header(&url, &[("id", "custom-3")]);
    let in_query = signed.trim_start_matches("OAuth ").replace(", ", "&").replace('"', "");
    let with_query = form(&format!("{PATH}?{in_query}"), &format!("Bearer {token}"), "id=custom-3");
    assert_answer(&app.send(with_query).await, 401, &invalid);
    let with_form = bearer(&token, &format!("custom-3&{in_query}"));
    assert_answer(&app.send(with_form).await, 401, &invalid);
    for second in [format!("Bearer {token}"), signed] {
        let mut twice = bearer(&token, "custom-3");
        twice.headers_mut().append("authorization", second.parse().unwrap());
        assert_answer(&app.send(twice).await, 401, &invalid);
    }
    assert_eq!(app.owned_by(OWNER).await, [3]);
}

#[tokio::test]
async fn no_token_is_accepted_without_an_issuer() {
    let app = App::start(Backend::Sqlite).await;
    let token = Key::new("k", Algorithm::ES256).token(&claims());
    let refused = app.send(bearer(&token, "custom-1")).await;
    assert_answer(&refused, 401, &error_body(89, "Invalid or expired token."));
}

#[test]
fn a_key_set_is_read_from_protected_sources_only() {
    let source = |text: &str| JwksSource::new(text, None);
    for good in [
        "https://issuer.example/keys?v=1",
        "http://localhost:1/",
        "http://127.0.0.1/x",
        "http://[::1]/",
        "keys",
    ] {
        assert!(source(good).is_ok(), "{good}");
    }
    for wrong in [
        "http://issuer.example/keys",
        "http://127.0.0.1.issuer.example/",
        "http://0.0.0.0/",
        "ftp://issuer.example/",
        "file:///etc/keys",
        "https://",
        "https:///keys",
        "https://user:secret@issuer.example/keys",
        "https://issuer example/",
        "https://issuer.example/keys#@",
        "https://issuer.example:+443/keys",
        "https://issuer.example:/keys",
        "http://issuer.example[::1]/keys",
    ] {
        let error = source(wrong).unwrap_err().to_string();
        assert!(error.starts_with("--jwks: ") && !error.contains("secret"), "{wrong}: {error}");
    }
}

/// A runtime with one blocking thread, which is occupied until the sender is dropped.
fn blocked_runtime() -> (Runtime, std::sync::mpsc::Sender<()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || released.recv());
    (runtime, release)
}

/// Polls all tasks of the runtime until none makes progress.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// The thread that serves connections does no public-key cryptography, and the number of calls that wait for it is limited.
#[test]
fn signatures_are_verified_on_other_threads() {
    let key = Key::new("k", Algorithm::ES256);
    let clock = Clock::Set(Arc::new(NOW.into()));
    let verifier = Verifier::new(Arc::new(FixedKeys::of(&[&key])), ISSUER, &[AUDIENCE.to_owned()], clock);
    let token = key.token(&claims());
    let (runtime, release) = blocked_runtime();
    runtime.block_on(async {
        let start = || {
            let (verifier, token) = (verifier.clone(), token.clone());
            tokio::spawn(async move { verify(&verifier, &token).await })
        };
        let mut calls = Vec::new();
        // More than run and wait at one time, on any number of processors.
        let many = config::identity::JWT_VERIFICATION_LIMIT + config::identity::JWT_VERIFICATION_QUEUE;
        for _ in 0..=many {
            calls.push(start());
        }
        settle().await;
        let (ended, pending): (Vec<_>, Vec<_>) = calls.into_iter().partition(|call| call.is_finished());
        assert!(pending.len() > config::identity::JWT_VERIFICATION_QUEUE && pending.len() <= many);
        assert!(!ended.is_empty(), "the queue has no limit");
        for call in ended {
            assert_eq!(call.await.unwrap(), Err(Overloaded));
        }
        // What needs no key is still answered, and a call that is cancelled gives its place to another.
        assert_eq!(verify(&verifier, "a.b.c").await, Err(TokenInvalid));
        let (last, others) = {
            let mut pending = pending;
            (pending.pop().unwrap(), pending)
        };
        last.abort();
        assert!(last.await.unwrap_err().is_cancelled());
        let next = start();
        settle().await;
        assert!(!next.is_finished(), "the place of a cancelled call is lost");
        drop(release);
        for call in others.into_iter().chain([next]) {
            assert_eq!(call.await.unwrap(), Ok(OWNER));
        }
    });
}
