//! Bearer tokens, and what else settings are read from: a JWKS, names of peers, rules, upstreams.

use std::sync::{Arc, OnceLock};

use collections_service::{
    domain::Clock,
    identity::{
        PeerName,
        jwt::{KeySet, Verifier},
    },
    rate_limit::Rule,
    upstream::UpstreamUrl,
};
use jsonwebtoken::Algorithm;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::{
    super::support::{
        NOW, OWNER,
        jwt::{AUDIENCE, FixedKeys, ISSUER, Key, claims, jwks},
    },
    Change, Checked, error_of, fuzz, pieced, raw_text,
};

struct Issuer {
    verifier: Verifier,
    token: String,
    runtime: Runtime,
}

fn issuer() -> &'static Issuer {
    static ISSUER_OF_ALL: OnceLock<Issuer> = OnceLock::new();
    ISSUER_OF_ALL.get_or_init(|| {
        let key = Key::new("k", Algorithm::EdDSA);
        let keys = FixedKeys::of(&[&key]);
        let clock = Clock::Set(Arc::new(NOW.into()));
        let verifier = Verifier::new(Arc::new(keys), ISSUER, &[AUDIENCE.to_owned()], clock);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Issuer { verifier, token: key.token(&claims()), runtime }
    })
}

fn tokens() -> impl Strategy<Value = String> {
    const PIECES: &[&str] =
        &[".", ".", "eyJhbGciOiJFZERTQSIsImtpZCI6ImsifQ", "e30", "bnVsbA", "W10", "=", "-", "_", "AAAA"];
    let changed = proptest::collection::vec(Change::any(), 0..3).prop_map(|changes| {
        let mut bytes = issuer().token.clone().into_bytes();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    });
    prop_oneof![1 => raw_text(), 2 => pieced(PIECES, 8), 4 => changed]
}

/// Nothing but the token itself is accepted.
fn check_token(text: String) -> Checked {
    let issuer = issuer();
    let verified = issuer.runtime.handle().block_on(issuer.verifier.verify(&text)).map_err(error_of);
    prop_assert_eq!(verified.is_ok(), text == issuer.token, "{}", text);
    prop_assert!(verified.is_err() || verified.is_ok_and(|user| user.user().get() == OWNER));
    Ok(())
}

#[test]
fn token() {
    fuzz("token", tokens, check_token);
}

fn key_sets() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: &[&str] = &[
        "{\"keys\":[",
        "]}",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\"kty\":\"OKP\"",
        "\"kty\":\"RSA\"",
        "\"kty\":\"EC\"",
        "\"crv\":\"Ed25519\"",
        "\"crv\":\"P-256\"",
        "\"n\":\"AQAB\"",
        "\"e\":\"AQAB\"",
        "\"x\":\"AAAA\"",
        "\"y\":\"AAAA\"",
        "\"kid\":\"k\"",
        "\"kid\":null",
        "\"use\":\"sig\"",
        "\"key_ops\":[\"verify\"]",
        "1e999",
    ];
    let changed = proptest::collection::vec(Change::any(), 0..4).prop_map(|changes| {
        static SET: OnceLock<String> = OnceLock::new();
        let set = SET.get_or_init(|| {
            let keys = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256].map(|each| Key::new("k", each));
            jwks(&keys.iter().collect::<Vec<_>>())
        });
        let mut bytes = set.clone().into_bytes();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    });
    prop_oneof![1 => raw_text().prop_map(String::into_bytes), 2 => pieced(PIECES, 16).prop_map(String::into_bytes), 4 => changed]
}

/// What is accepted has something to verify with, unless the issuer has taken everything back.
fn check_key_set(text: Vec<u8>) -> Checked {
    if let Ok(keys) = KeySet::parse(&text) {
        prop_assert!(keys.counts().0 > 0 || keys.counts() == (0, 0));
        prop_assert_eq!(keys.kids().count(), keys.counts().0);
        prop_assert!(keys.private_kids().len() <= keys.counts().0 + keys.counts().1);
        prop_assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
    }
    Ok(())
}

#[test]
fn key_set() {
    fuzz("key_set", key_sets, check_key_set);
}

fn flags() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "spiffe://",
        "https://",
        "http://",
        "example.org",
        "localhost",
        "127.0.0.1",
        "[::1]",
        "/",
        "/orders",
        "..",
        ".",
        "*",
        "-",
        ":",
        ":50051",
        "@",
        "?",
        "#",
        "300",
        "0",
        "15",
        "m",
        "s",
        "h",
        "18446744073709551616",
    ];
    prop_oneof![1 => raw_text(), 4 => pieced(PIECES, 8)]
}

/// What is accepted is written as it was read, and names one thing alone.
fn check_flag(text: String) -> Checked {
    if let Ok(name) = text.parse::<PeerName>() {
        prop_assert!(name.to_string().eq_ignore_ascii_case(&text));
        prop_assert!(!text.contains(['*', '@', '?', '#', ' ', ':']) || text.starts_with("spiffe://"));
        prop_assert_eq!(name.to_string().parse::<PeerName>(), Ok(name));
    }
    if let Ok(rule) = text.parse::<Rule>() {
        prop_assert_eq!(rule.to_string().parse::<Rule>().map(|again| again.is_on()), Ok(rule.is_on()));
        prop_assert!((1..=86_400).contains(&rule.window.as_secs()));
    }
    if let Ok(url) = text.parse::<UpstreamUrl>() {
        let (scheme, rest) = text.split_once("://").unwrap();
        prop_assert!(scheme.eq_ignore_ascii_case(if url.is_tls() { "https" } else { "http" }), "{text}");
        let (host, port) = rest.strip_suffix('/').unwrap_or(rest).rsplit_once(':').unwrap();
        prop_assert!(!host.contains(['@', '?', '#', '/']) && !host.is_empty(), "{text}");
        prop_assert!(port.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    }
    Ok(())
}

/// Finds of long runs.
#[test]
fn flags_that_name_something_else_are_rejected() {
    for text in ["https://example.org:50051#@", "https://example.org:50051/#", "https://example.org:50051#"] {
        assert!(text.parse::<UpstreamUrl>().is_err(), "{text}");
    }
}

#[test]
fn flag() {
    fuzz("flag", flags, check_flag);
}
