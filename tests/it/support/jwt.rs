//! An issuer of JWTs: its keys, its JWKS, and tokens with any header and claims, good or broken.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use collections_service::{
    identity::jwt::{KeySet, KeySource, NoKeys},
    jwks::{JwksSource, Jwt},
};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, AlgorithmFamily, EncodingKey, crypto, jwk::Jwk};
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::{NOW, OWNER};

pub const ISSUER: &str = "https://issuer.example";
pub const AUDIENCE: &str = "https://collections.example";
/// The application that tokens are issued to.
pub const CLIENT: &str = "test-client";

/// A key that an issuer signs with.
pub struct Key {
    pub kid: String,
    pub algorithm: Algorithm,
    /// Its public half as a JWK.
    pub jwk: Value,
    /// Its public half in DER.
    pub public_der: Vec<u8>,
    private: EncodingKey,
}

impl Key {
    /// A new key. RSA keys are all the same one, because it takes long to make.
    pub fn new(kid: &str, algorithm: Algorithm) -> Self {
        static RSA: OnceLock<KeyPair> = OnceLock::new();
        let generate = |kind| KeyPair::generate_for(kind).unwrap();
        let made;
        let pair = match algorithm {
            Algorithm::ES256 => {
                made = generate(&rcgen::PKCS_ECDSA_P256_SHA256);
                &made
            }
            Algorithm::ES384 => {
                made = generate(&rcgen::PKCS_ECDSA_P384_SHA384);
                &made
            }
            Algorithm::EdDSA => {
                made = generate(&rcgen::PKCS_ED25519);
                &made
            }
            _ => RSA.get_or_init(|| generate(&rcgen::PKCS_RSA_SHA256)),
        };
        let der = pair.serialize_der();
        let private = match algorithm.family() {
            // PKCS#1 within PKCS#8, of 2048 bits.
            AlgorithmFamily::Rsa => EncodingKey::from_rsa_der(&der[26..]),
            AlgorithmFamily::Ec => EncodingKey::from_ec_der(&der),
            _ => EncodingKey::from_ed_der(&der),
        };
        let mut jwk = if algorithm == Algorithm::EdDSA {
            let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key_raw());
            json!({"kty": "OKP", "crv": "Ed25519", "x": x, "alg": "EdDSA"})
        } else {
            serde_json::to_value(Jwk::from_encoding_key(&private, algorithm).unwrap()).unwrap()
        };
        jwk["kid"] = kid.into();
        jwk["use"] = "sig".into();
        Self { kid: kid.to_owned(), algorithm, jwk, public_der: pair.subject_public_key_info(), private }
    }

    /// A token with the usual header.
    pub fn token(&self, claims: &Value) -> String {
        self.sign(&self.header().to_string(), &claims.to_string())
    }

    /// A token with claims of any text, JSON or not.
    pub fn token_of(&self, claims: &str) -> String {
        self.sign(&self.header().to_string(), claims)
    }

    pub fn header(&self) -> Value {
        json!({"alg": format!("{:?}", self.algorithm), "typ": "JWT", "kid": self.kid})
    }

    /// A token with a valid signature and this header.
    pub fn sign(&self, header: &str, claims: &str) -> String {
        let signed = unsigned(header, claims);
        let signature = crypto::sign(signed.as_bytes(), &self.private, self.algorithm).unwrap();
        format!("{signed}.{signature}")
    }
}

/// The first two parts of a token.
pub fn unsigned(header: &str, claims: &str) -> String {
    let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}", encode(header), encode(claims))
}

/// A token that is signed with a shared secret.
pub fn hs256(header: &str, claims: &str, secret: &[u8]) -> String {
    let signed = unsigned(header, claims);
    let signature = crypto::sign(signed.as_bytes(), &EncodingKey::from_secret(secret), Algorithm::HS256);
    format!("{signed}.{}", signature.unwrap())
}

/// A JWKS of these keys.
pub fn jwks(keys: &[&Key]) -> String {
    let keys: Vec<&Value> = keys.iter().map(|key| &key.jwk).collect();
    json!({ "keys": keys }).to_string()
}

/// A source of keys that never change.
pub struct FixedKeys(Arc<KeySet>);

impl FixedKeys {
    pub fn of(keys: &[&Key]) -> Self {
        Self(Arc::new(KeySet::parse(jwks(keys).as_bytes()).unwrap()))
    }
}

impl KeySource for FixedKeys {
    fn keys(&self) -> Result<Arc<KeySet>, NoKeys> {
        Ok(self.0.clone())
    }

    fn refresh_once(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// Claims that let the documentation's user destroy.
pub fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": OWNER.to_string(), "azp": CLIENT,
        "iat": NOW, "nbf": NOW, "exp": NOW + 300, "scope": "collections.write",
    })
}

/// The claims with one of them set to this, or without it.
pub fn claims_with(name: &str, value: impl Into<Option<Value>>) -> Value {
    let mut claims = claims();
    match value.into() {
        Some(value) => claims[name] = value,
        None => drop(claims.as_object_mut().unwrap().remove(name)),
    }
    claims
}

/// The settings that accept the tokens of this issuer.
pub fn jwt_settings(jwks: JwksSource) -> Jwt {
    Jwt { jwks, issuer: ISSUER.to_owned(), audiences: vec!["another".to_owned(), AUDIENCE.to_owned()] }
}

/// A JWKS file with these keys.
pub fn file(folder: &Path, keys: &[&Key]) -> JwksSource {
    let path = folder.join("jwks.json");
    std::fs::write(&path, jwks(keys)).unwrap();
    JwksSource::new(path.to_str().unwrap(), None).unwrap()
}

/// An https server of a JWKS.
pub struct Endpoint {
    pub url: String,
    pub ca: PathBuf,
    reply: Arc<Mutex<Reply>>,
    fetches: Arc<AtomicUsize>,
    _folder: TempDir,
}

#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    pub location: Option<String>,
    pub body: String,
    pub after: Duration,
}

impl Endpoint {
    pub async fn start(keys: &[&Key]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, certified.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/jwks", listener.local_addr().unwrap().port());
        let reply = Reply { status: 200, location: None, body: jwks(keys), after: Duration::ZERO };
        let reply = Arc::new(Mutex::new(reply));
        let fetches = Arc::new(AtomicUsize::new(0));
        let (answered, counted) = (reply.clone(), fetches.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, answered, counted) = (acceptor.clone(), answered.clone(), counted.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = hyper::service::service_fn(move |_request| {
                        counted.fetch_add(1, Ordering::SeqCst);
                        let reply = answered.lock().unwrap().clone();
                        async move {
                            // As the test asked for.
                            tokio::time::sleep(reply.after).await;
                            let mut response = http::Response::builder().status(reply.status);
                            if let Some(location) = reply.location {
                                response = response.header("location", location);
                            }
                            response.body(Full::<bytes::Bytes>::from(reply.body))
                        }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(stream), answer).await);
                });
            }
        });
        Self { url, ca, reply, fetches, _folder: folder }
    }

    pub fn source(&self) -> JwksSource {
        JwksSource::new(&self.url, Some(&self.ca)).unwrap()
    }

    pub fn change(&self, change: impl FnOnce(&mut Reply)) {
        change(&mut self.reply.lock().unwrap());
    }

    pub fn publish(&self, keys: &[&Key]) {
        self.change(|reply| reply.body = jwks(keys));
    }

    /// How often it was asked.
    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}
