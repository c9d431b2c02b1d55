//! The causes of refused credentials: what the log holds and the client never sees. Each is something that an operator can act
//! on, and none holds a secret.

use std::sync::{Arc, atomic::AtomicI64};

use chrono::{DateTime, Utc};
use collections_service::{
    config,
    domain::{
        AccessToken, Application, Clock, CredentialDirectory, DestroyError, DestroyFailure, DirectoryError,
        Found, Secret,
    },
    identity::{
        Callers, Peer, PeerCertificate, Transport, VerifiedNames, excerpt, excerpts,
        oauth1::{Origin, Parameters, Request, Verifier},
    },
};
use http::{HeaderMap, HeaderName};
use jsonwebtoken::Algorithm;
use serde_json::json;

use super::{
    forgeries::Keys,
    jwt::verifier,
    support::{
        CONSUMER, NOW, OWNER, PATH, TOKEN,
        jwt::{Key, claims, claims_with},
        oauth::{Signer, in_form, in_header},
        user,
    },
};

use DestroyError::{
    ApplicationInvalid, CallerNotAllowed, CredentialsInvalid, CredentialsMissing, Internal, StoreUnavailable,
    TimestampOutOfBounds, TokenInvalid, UserContextRequired, WriteAccessRequired,
};

const ORIGINS: [&str; 2] = ["https://api.example", "https://api.x.example:8443"];

/// A directory in one state for all keys.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Directory {
    Good,
    UnknownToken,
    RevokedToken,
    ForeignToken,
    ReadOnlyToken,
    UnknownApplication,
    SuspendedApplication,
    Unavailable,
    Broken,
}

impl CredentialDirectory for Directory {
    fn find<'a>(
        &'a self,
        _consumer_key: &'a str,
        token: Option<&'a str>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Found, DirectoryError>> + Send + 'a>> {
        let application = Application {
            secret: Secret::from(CONSUMER.1.to_owned()),
            suspended: *self == Self::SuspendedApplication,
        };
        let access = AccessToken {
            consumer_key: if *self == Self::ForeignToken { "another" } else { CONSUMER.0 }.to_owned(),
            user: user(OWNER),
            secret: Secret::from(TOKEN.1.to_owned()),
            write: *self != Self::ReadOnlyToken,
            revoked: *self == Self::RevokedToken,
        };
        let found = match self {
            Self::Unavailable => Err(DirectoryError::Unavailable("connection refused".to_owned())),
            Self::Broken => Err(DirectoryError::Broken("the key is missing".to_owned())),
            _ => Ok(Found {
                application: (*self != Self::UnknownApplication).then(|| Arc::new(application)),
                token: token.filter(|_| *self != Self::UnknownToken).map(|_| Arc::new(access)),
            }),
        };
        Box::pin(async move { found })
    }
}

/// Verifies a request with this header and this query against some origins.
async fn oauth(directory: Directory, origins: &[&str], header: Option<&str>, query: &str) -> DestroyFailure {
    let clock = Clock::Set(Arc::new(AtomicI64::new(NOW)));
    let origins = origins.iter().map(|origin| origin.parse().unwrap()).collect();
    let verifier = Verifier::new(Arc::new(directory), origins, clock);
    let (query, form) = (Parameters::decode(query.as_bytes()), Parameters::default());
    let own: Origin = "http://own.example".parse().unwrap();
    let origin = header.is_some_and(|header| !header.contains("hostless")).then_some(&own);
    let header = header.map(|header| header.trim_start_matches("OAuth "));
    let request = Request { method: "POST", path: PATH, header, query: &query, form: &form, origin };
    let failure = verifier.verify(request).await.unwrap_err();
    let cause = failure.cause.as_deref().unwrap();
    for secret in [CONSUMER.1, TOKEN.1, TOKEN.0] {
        assert!(!cause.contains(secret), "{cause}");
    }
    failure
}

fn assert_cause(failure: &DestroyFailure, error: DestroyError, parts: &[&str]) {
    let cause = failure.cause.as_deref().unwrap();
    assert_eq!(failure.error, error, "{cause}");
    for part in parts {
        assert!(cause.contains(part), "{cause}: without {part}");
    }
}

#[tokio::test]
async fn oauth_names_the_parameter_that_is_missing_malformed_or_repeated() {
    let good = Signer::owner().sign(&format!("{}{PATH}", ORIGINS[0]), &[("a", "b")]);
    for (name, _) in good.iter().filter(|(name, _)| name != "oauth_token") {
        let rest: Vec<_> = good.iter().filter(|(other, _)| other != name).cloned().collect();
        let failure = oauth(Directory::Good, &ORIGINS, Some(&in_header(&rest)), "").await;
        assert_cause(&failure, CredentialsMissing, &[name, "missing or empty"]);
    }
    for (name, _) in &good {
        let twice: Vec<_> =
            good.iter().chain(good.iter().filter(|(other, _)| other == name)).cloned().collect();
        let failure = oauth(Directory::Good, &ORIGINS, Some(&in_header(&twice)), "").await;
        assert_cause(&failure, CredentialsInvalid, &[name, "more than once", CONSUMER.0]);
    }
    let with = |name: &str, value: &str| {
        let with = good.iter().map(|(other, old)| (other.clone(), if other == name { value } else { old }));
        let with: Vec<_> = with.map(|(name, value)| (name, value.to_owned())).collect();
        in_header(&with)
    };
    let long = "x".repeat(300);
    for (name, value, error, parts) in [
        ("oauth_timestamp", "now%0A", CredentialsMissing, ["\"now\\n\"", "number"]),
        ("oauth_signature_method", "PLAINTEXT", CredentialsInvalid, ["\"PLAINTEXT\"", "HMAC-SHA1"]),
        ("oauth_signature", "*", CredentialsInvalid, ["base64", CONSUMER.0]),
        ("oauth_nonce", "%FF", CredentialsInvalid, ["UTF-8", CONSUMER.0]),
        ("oauth_token", "%00", CredentialsInvalid, ["NUL", CONSUMER.0]),
        ("oauth_consumer_key", &long, CredentialsInvalid, ["longer than 256 bytes", "xxx…\""]),
    ] {
        let failure = oauth(Directory::Good, &ORIGINS, Some(&with(name, value)), "").await;
        assert_cause(&failure, error, &[&parts[..], &[name]].concat());
    }
    let version = Signer { more: vec![("oauth_version", "2.0")], ..Signer::owner() };
    let header = version.header(&format!("{}{PATH}", ORIGINS[0]), &[("a", "b")]);
    let failure = oauth(Directory::Good, &ORIGINS, Some(&header), "").await;
    assert_cause(&failure, CredentialsInvalid, &["oauth_version \"2.0\""]);
    let header = in_header(&good);
    assert_cause(
        &oauth(Directory::Good, &[], Some(&header), &in_form(&good)).await,
        CredentialsInvalid,
        &["more than one of header, query and form"],
    );
    assert_cause(
        &oauth(Directory::Good, &[], None, "a=b").await,
        CredentialsMissing,
        &["no OAuth parameters"],
    );
    assert_cause(&oauth(Directory::Good, &[], Some("a"), "").await, CredentialsInvalid, &["key=value"]);
}

#[tokio::test]
async fn oauth_names_what_is_unknown_late_or_wrong() {
    let url = format!("{}{PATH}", ORIGINS[0]);
    let header = Signer::owner().header(&url, &[] as &[(&str, &str)]);
    let token = "the token \"37077311…\"";
    for (directory, error, parts) in [
        (Directory::UnknownToken, TokenInvalid, [token, "unknown"]),
        (Directory::RevokedToken, TokenInvalid, [token, "revoked"]),
        (Directory::ForeignToken, TokenInvalid, [token, "another application"]),
        (Directory::ReadOnlyToken, WriteAccessRequired, [token, "read-only"]),
        (Directory::UnknownApplication, ApplicationInvalid, ["application", "unknown"]),
        (Directory::SuspendedApplication, ApplicationInvalid, ["application", "suspended"]),
        (Directory::Unavailable, StoreUnavailable, ["looked up", "connection refused"]),
        (Directory::Broken, Internal, ["looked up", "the key is missing"]),
    ] {
        let failure = oauth(directory, &ORIGINS, Some(&header), "").await;
        assert_cause(&failure, error, &[&parts[..], &[CONSUMER.0]].concat());
    }
    for (seconds, text) in
        [(-301, "301 s behind the server's clock"), (400, "400 s ahead of the server's clock")]
    {
        let signer = Signer { timestamp: NOW + seconds, ..Signer::owner() };
        let header = signer.header(&url, &[] as &[(&str, &str)]);
        let failure = oauth(Directory::Good, &ORIGINS, Some(&header), "").await;
        assert_cause(&failure, TimestampOutOfBounds, &[text, CONSUMER.0]);
    }
    // What is signed has changed since.
    let failure = oauth(Directory::Good, &ORIGINS, Some(&header), "a=b").await;
    let tried = "\"https://api.example\", \"https://api.x.example:8443\"";
    assert_cause(&failure, CredentialsInvalid, &["signature", tried, CONSUMER.0]);
    let failure = oauth(Directory::Good, &[], Some(&header), "").await;
    assert_cause(&failure, CredentialsInvalid, &["\"http://own.example\"", CONSUMER.0]);
    let hostless = header.replacen("OAuth ", "OAuth realm=\"hostless\", ", 1);
    let failure = oauth(Directory::Good, &[], Some(&hostless), "").await;
    assert_cause(&failure, CredentialsInvalid, &["no public origin is configured", "host"]);
    let userless = Signer { token: None, ..Signer::owner() };
    let header = userless.header(&url, &[] as &[(&str, &str)]);
    let failure = oauth(Directory::Good, &ORIGINS, Some(&header), "").await;
    assert_cause(&failure, UserContextRequired, &["no token", CONSUMER.0]);
}

#[tokio::test]
async fn a_short_token_is_not_shown_whole() {
    let token = Some(("1-secret".to_owned(), "x".to_owned()));
    let signer = Signer { token, ..Signer::owner() };
    let header = signer.header(&format!("{}{PATH}", ORIGINS[0]), &[] as &[(&str, &str)]);
    let failure = oauth(Directory::UnknownToken, &ORIGINS, Some(&header), "").await;
    assert_cause(&failure, TokenInvalid, &["the token \"1-se…\""]);
}

#[tokio::test]
async fn a_bearer_token_names_the_check_that_failed() {
    let keys = Keys::new();
    let verifier = verifier(&keys.published()).await;
    let good = claims().to_string();
    let with_header = |header: serde_json::Value| keys.ec.sign(&header.to_string(), &good);
    let with_claim = |name: &str, value: serde_json::Value| keys.ec.token(&claims_with(name, value));
    let mut logout = claims_with("events", json!({"http://schemas.openid.net/event/backchannel-logout": {}}));
    logout.as_object_mut().unwrap().remove("exp");
    let mut cases = vec![
        ("a.b.c".to_owned(), "three parts".to_owned()),
        ("x".repeat(9000), "longer than 8192 bytes".to_owned()),
        (with_header(json!({"alg": "ES256", "kid": "gone"})), "key \"gone\" is not in the JWKS".to_owned()),
        (with_header(json!({"alg": "ES256"})), "names no key".to_owned()),
        (with_header(json!({"alg": "EdDSA", "kid": "ec"})), "EdDSA does not fit the key \"ec\"".to_owned()),
        (with_header(json!({"alg": "ES256", "kid": "ec", "crit": ["x"]})), "`crit`".to_owned()),
        (with_header(json!({"alg": "ES256", "kid": "ec", "typ": "dpop+jwt"})), "\"dpop+jwt\"".to_owned()),
        (with_header(json!({"alg": "ES256", "kid": "ec", "typ": "logout+jwt"})), "logout token".to_owned()),
        (keys.stranger.token(&claims()), "signature is wrong for the key \"ec\"".to_owned()),
        (keys.ec.token(&logout), "logout token".to_owned()),
        (with_claim("cnf", json!({"jkt": "x"})), "bound to a key of its sender".to_owned()),
        (with_claim("azp", json!("a\u{202e}b")), "\"a\\u{202e}b\"".to_owned()),
        (with_claim("iss", json!("https://other.example")), "\"https://other.example\"".to_owned()),
        (with_claim("aud", json!(["a", "b"])), "\"a\", \"b\"".to_owned()),
        (with_claim("nbf", json!(NOW + 60)), "valid in 60 s".to_owned()),
        (with_claim("exp", json!(NOW - 60)), "expired 60 s ago".to_owned()),
        (with_claim("exp", json!("x")), "invalid type".to_owned()),
        (keys.ec.token(&claims_with("exp", None)), "exp is missing".to_owned()),
    ];
    let long = "n".repeat(500);
    for alg in ["none", "None", "", "ES512", "Ed448", "HS256", "nonsense", "es256", "a\nb", &long] {
        let shown = format!("algorithm {} is not allowed", excerpt(alg));
        cases.push((with_header(json!({"alg": alg, "kid": "ec"})), shown));
    }
    for (token, part) in cases {
        let failure = verifier.verify(&token).await.unwrap_err();
        assert_cause(&failure, TokenInvalid, &[&part]);
        let cause = failure.cause.unwrap();
        assert!(cause.len() < 300 && !cause.contains('\n') && !cause.contains(&token), "{cause}");
    }
    let failure = verifier.verify(&with_claim("sub", json!("team"))).await.unwrap_err();
    assert_cause(&failure, UserContextRequired, &["\"team\""]);
    let failure = verifier.verify(&with_claim("scope", json!("read"))).await.unwrap_err();
    assert_cause(&failure, WriteAccessRequired, &["scope"]);
}

#[tokio::test]
async fn a_refused_caller_is_named() {
    let key = Key::new("k", Algorithm::EdDSA);
    let callers = Callers {
        trusted_peers: ["orders.example".parse().unwrap()].into_iter().collect(),
        jwt: Some(verifier(&[&key]).await),
        insecure: false,
    };
    let peer = |names: &[&str]| {
        let permitted = names.iter().map(|name| name.parse().unwrap()).collect();
        let verified =
            VerifiedNames { permitted, not_permitted: Vec::new(), not_after: DateTime::<Utc>::MAX_UTC };
        let certificate = Some(Arc::new(PeerCertificate::new(verified, Clock::System)));
        Peer::new("10.0.0.1".parse().unwrap(), Transport::Tls { certificate })
    };
    let metadata = |pairs: &[(&'static str, &str)]| -> HeaderMap {
        let header = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), value.parse::<http::HeaderValue>().unwrap())
        };
        pairs.iter().map(header).collect()
    };
    let named = metadata(&[("x-user-id", "7")]);
    let bearer = format!("Bearer {}", key.token(&claims()));
    let both = metadata(&[("x-user-id", "7"), ("authorization", &bearer)]);
    let trusted = peer(&["orders.example"]);
    for (metadata, peer, error, parts) in [
        (
            &named,
            Some(peer(&["spiffe://example.org/else", "else.example"])),
            CallerNotAllowed,
            &["certificate for spiffe://example.org/else, else.example"][..],
        ),
        (&named, Some(peer(&[])), CallerNotAllowed, &["without a SPIFFE ID or DNS name"]),
        (&metadata(&[]), Some(trusted.clone()), UserContextRequired, &["\"orders.example\" named no user"]),
        (&metadata(&[]), None, CredentialsMissing, &["neither a bearer token nor x-user-id"]),
        (&named, None, CredentialsMissing, &["the peer has no certificate"]),
        (&metadata(&[("x-user-id", "a b")]), Some(trusted.clone()), CredentialsInvalid, &["\"a b\""]),
        (&both, None, CredentialsInvalid, &["x-user-id is 7", "119476949"]),
        (&metadata(&[("authorization", "Basic x")]), None, CredentialsInvalid, &["not a bearer token"]),
        (&metadata(&[("authorization", "Bearer x")]), None, TokenInvalid, &["three parts"]),
    ] {
        let failure = callers.identify(metadata, peer.as_ref()).await.unwrap_err();
        assert_cause(&failure, error, parts);
    }
    let without = Callers { jwt: None, ..callers };
    let failure = without.identify(&both, None).await.unwrap_err();
    assert_cause(&failure, TokenInvalid, &["no JWKS is configured"]);
}

#[test]
fn an_excerpt_is_bounded_and_escaped() {
    for (text, shown) in [
        ("", "\"\""),
        ("a\"b\\", "\"a\\\"b\\\\\""),
        ("\r\n\u{7f}\u{202e}\u{200f}", "\"\\r\\n\\u{7f}\\u{202e}\\u{200f}\""),
    ] {
        assert_eq!(excerpt(text), shown);
    }
    for letter in ["x", "\n", "\u{e9}", "\u{1f604}", "\u{202e}"] {
        let cut = excerpt(&letter.repeat(5000));
        assert!(cut.len() <= config::identity::EXCERPT_LIMIT + "…\"".len() && cut.ends_with("…\""), "{cut}");
    }
    assert_eq!(excerpts(["a", "b"], 2), "\"a\", \"b\"");
    assert_eq!(excerpts(["a", "b", "c", "d"], 2), "\"a\", \"b\" and 2 more");
    assert_eq!(excerpts(Vec::<String>::new(), 2), "");
}
