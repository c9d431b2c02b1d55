//! An issuer's public keys, from its JWKS.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, crypto::aws_lc::DEFAULT_PROVIDER};
use serde::Deserialize;

use super::{super::excerpt::excerpt, error::JwtError};
use crate::config;

/// Members of a JWK that only its owner may have (RFC 7518, 6); `priv` is that of newer key types.
const PRIVATE_MEMBERS: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];

/// How the log names a key without an id.
const NO_KID: &str = "(no kid)";

/// The keys of a JWKS that tokens can be verified with.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Arc<Key>>,
    ignored: usize,
    /// The ids of keys that were published with their private half.
    private: Vec<String>,
}

/// Why a text is no usable JWKS.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    #[error("it is no JWKS: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("it has more than {} keys", config::jwks::KEY_LIMIT)]
    TooMany,
    #[error("none of its {0} keys can verify a signature of an allowed algorithm")]
    NoUsableKey(usize),
}

/// A public key, with the algorithms that it is for.
#[derive(Debug)]
pub struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Jwks {
    /// Parsed one by one: a key of an unsupported kind must not make the others unusable.
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a JWKS. Keys that cannot verify an allowed algorithm are ignored, as RFC 7517 requires; shared secrets (`oct`)
    /// are among them. A set without any key is valid: its issuer has revoked all of them.
    ///
    /// # Errors
    /// The text is no JWKS, is too large, or would leave nothing to verify with.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        let set: Jwks = serde_json::from_slice(text)?;
        let number = set.keys.len();
        if number > config::jwks::KEY_LIMIT {
            return Err(KeySetError::TooMany);
        }
        let is_private =
            |key: &&serde_json::Value| PRIVATE_MEMBERS.iter().any(|name| key.get(name).is_some());
        let kid = |key: &serde_json::Value| {
            key.get("kid").and_then(serde_json::Value::as_str).unwrap_or(NO_KID).to_owned()
        };
        let private = set.keys.iter().filter(is_private).map(kid).collect();
        let keys: Vec<Arc<Key>> = set
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value::<Jwk>(key).ok()?.usable().map(Arc::new))
            .collect();
        if keys.is_empty() && number > 0 {
            return Err(KeySetError::NoUsableKey(number));
        }
        Ok(Self { ignored: number - keys.len(), keys, private })
    }

    /// Returns the ids of the keys that can be used.
    pub fn kids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.kid.as_deref().unwrap_or(NO_KID))
    }

    /// Returns the ids of the keys that were published with their private half, or that are shared secrets.
    #[must_use]
    pub fn private_kids(&self) -> &[String] {
        &self.private
    }

    /// Returns how many keys can be used, and how many cannot.
    #[must_use]
    pub const fn counts(&self) -> (usize, usize) {
        (self.keys.len(), self.ignored)
    }

    /// Returns whether there is a key with this id.
    #[must_use]
    pub fn has(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// Returns the keys that may have signed a token: those with the id that it names and the algorithm. A token that names no
    /// key must be of the only one: to try one key after the other would hide which one an issuer still signs with, and its
    /// cost would grow with the number of keys.
    pub(super) fn candidates(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<Arc<Key>>, JwtError> {
        let named: Vec<&Arc<Key>> = match (kid, self.keys.as_slice()) {
            (Some(kid), keys) => keys.iter().filter(|key| key.kid.as_deref() == Some(kid)).collect(),
            (None, [only]) => vec![only],
            (None, _) => return Err(JwtError::NoKeyId),
        };
        if named.is_empty() {
            return Err(JwtError::UnknownKey(kid_excerpt(kid)));
        }
        // Several keys may share an id as long as their kinds differ (RFC 7517, 4.5).
        let fitting = named.into_iter().filter(|key| key.algorithms.contains(&algorithm));
        let fitting: Vec<Arc<Key>> = fitting.take(config::jwks::CANDIDATE_LIMIT).cloned().collect();
        if fitting.is_empty() {
            return Err(JwtError::WrongKey { algorithm, kid: kid_excerpt(kid) });
        }
        Ok(fitting)
    }
}

impl Key {
    /// Returns whether this key signed a text. Computes for some 20 to 200 µs.
    pub(super) fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        // The provider by name: the library's own choice would depend on which features other crates ask for.
        let verifier = (DEFAULT_PROVIDER.verifier_factory)(&algorithm, &self.key);
        verifier.is_ok_and(|verifier| verifier.verify(signed, &signature.to_vec()).is_ok())
    }
}

/// Returns the allowed algorithm with this name.
pub(super) fn parse_algorithm(name: &str) -> Option<Algorithm> {
    // RFC 9864 replaces `EdDSA` by names that include the curve. Only Ed25519 is supported.
    let name = if name == "Ed25519" { "EdDSA" } else { name };
    name.parse().ok().filter(|algorithm| config::identity::JWT_ALGORITHMS.contains(algorithm))
}

/// Quotes the id of a key for the log.
pub(super) fn kid_excerpt(kid: Option<&str>) -> String {
    kid.map_or_else(|| NO_KID.to_owned(), excerpt)
}

/// Removes the leading zero bytes of a number. RFC 7518 forbids them, and some issuers publish them all the same.
fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let begin = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    number.get(begin..).unwrap_or_default()
}

impl Jwk {
    /// Returns the key with the algorithms that it is for; none where it is not for verifying signatures.
    fn usable(self) -> Option<Key> {
        let for_signatures = self.usage.as_ref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|name| name == "verify"));
        let (key, mut algorithms) = self.material().filter(|_| for_signatures)?;
        if let Some(name) = &self.alg {
            let only = parse_algorithm(name);
            algorithms.retain(|algorithm| only == Some(*algorithm));
        }
        algorithms.retain(|algorithm| config::identity::JWT_ALGORITHMS.contains(algorithm));
        (!algorithms.is_empty()).then_some(Key { kid: self.kid, algorithms, key })
    }

    /// Returns the key itself, with the algorithms that its type and curve can be for.
    fn material(&self) -> Option<(DecodingKey, Vec<Algorithm>)> {
        let bytes = |member: &Option<String>| BASE64_URL_SAFE_NO_PAD.decode(member.as_ref()?).ok();
        let point = |length: usize| {
            let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
            let uncompressed = || DecodingKey::from_ec_der(&[&[4], x.as_slice(), y.as_slice()].concat());
            (x.len() == length && y.len() == length).then(uncompressed)
        };
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (bytes(&self.n)?, bytes(&self.e)?);
                let (n, e) = (without_leading_zeros(&n), without_leading_zeros(&e));
                // 2048 to 8192 bits, as the cryptography library requires too: shorter ones can be broken.
                if !(256..=1024).contains(&n.len()) {
                    return None;
                }
                let key = DecodingKey::from_rsa_raw_components(n, e);
                Some((key, AlgorithmFamily::Rsa.algorithms().to_vec()))
            }
            ("EC", Some("P-256")) => Some((point(32)?, vec![Algorithm::ES256])),
            ("EC", Some("P-384")) => Some((point(48)?, vec![Algorithm::ES384])),
            ("OKP", Some("Ed25519")) => {
                let x = bytes(&self.x).filter(|x| x.len() == 32)?;
                Some((DecodingKey::from_ed_der(&x), vec![Algorithm::EdDSA]))
            }
            _ => None,
        }
    }
}
