//! An issuer's public keys, from its JWKS.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, crypto::aws_lc::DEFAULT_PROVIDER};
use serde::Deserialize;

use super::JwtError;
use crate::config;

/// The keys of a JWKS that tokens can be verified with.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Key>,
    ignored: usize,
}

/// Why a text is no usable JWKS.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    #[error("it is no JWKS: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("it has more than {} keys", config::jwks::KEY_LIMIT)]
    TooMany,
    #[error("none of its {0} keys can verify a signature of an allowed algorithm")]
    Useless(usize),
}

#[derive(Debug)]
struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Jwks {
    /// Looked at one by one: a key of a kind that is not known here must not spoil the others.
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
    /// Reads a JWKS. Keys that cannot verify an allowed algorithm are ignored, as RFC 7517 wants; shared secrets (`oct`)
    /// are among them. A set without any is good: its issuer has taken all of them back.
    ///
    /// # Errors
    /// The text is no JWKS, is too large, or would leave nothing to verify with.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        let set: Jwks = serde_json::from_slice(text)?;
        let number = set.keys.len();
        if number > config::jwks::KEY_LIMIT {
            return Err(KeySetError::TooMany);
        }
        let keys: Vec<Key> = set
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value::<Jwk>(key).ok()?.usable())
            .collect();
        if keys.is_empty() && number > 0 {
            return Err(KeySetError::Useless(number));
        }
        Ok(Self { ignored: number - keys.len(), keys })
    }

    /// How many keys can be used, and how many cannot.
    #[must_use]
    pub const fn counts(&self) -> (usize, usize) {
        (self.keys.len(), self.ignored)
    }

    /// Whether there is a key with this id.
    #[must_use]
    pub fn has(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// Whether the key that the token names signed this. A token that names none must be of the only key: to try one key
    /// after the other would hide which one an issuer still signs with, and cost the more the more keys there are.
    pub(super) fn verify(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), JwtError> {
        let named: Vec<&Key> = match (kid, self.keys.as_slice()) {
            (Some(kid), keys) => keys.iter().filter(|key| key.kid.as_deref() == Some(kid)).collect(),
            (None, [only]) => vec![only],
            (None, _) => return Err(JwtError::UnknownKey),
        };
        if named.is_empty() {
            return Err(JwtError::UnknownKey);
        }
        // Several keys may share an id as long as their kinds differ (RFC 7517, 4.5).
        let mut fitting = named.iter().filter(|key| key.algorithms.contains(&algorithm)).peekable();
        if fitting.peek().is_none() {
            return Err(JwtError::WrongKey);
        }
        if fitting.any(|key| key.signed(algorithm, signed, signature)) {
            Ok(())
        } else {
            Err(JwtError::Signature)
        }
    }
}

impl Key {
    fn signed(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        // The provider by name: the library's own choice would depend on which features other crates ask for.
        let verifier = (DEFAULT_PROVIDER.verifier_factory)(&algorithm, &self.key);
        verifier.is_ok_and(|verifier| verifier.verify(signed, &signature.to_vec()).is_ok())
    }
}

impl Jwk {
    /// The key with the algorithms that it is for; none where it is not for verifying signatures.
    fn usable(self) -> Option<Key> {
        let for_signatures = self.usage.as_ref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|name| name == "verify"));
        let (key, mut algorithms) = self.material().filter(|_| for_signatures)?;
        if let Some(name) = &self.alg {
            algorithms.retain(|algorithm| name.parse() == Ok(*algorithm));
        }
        algorithms.retain(|algorithm| config::identity::JWT_ALGORITHMS.contains(algorithm));
        (!algorithms.is_empty()).then_some(Key { kid: self.kid, algorithms, key })
    }

    /// The key itself, with the algorithms that its type and curve can be for.
    fn material(&self) -> Option<(DecodingKey, Vec<Algorithm>)> {
        let bytes = |member: &Option<String>| BASE64_URL_SAFE_NO_PAD.decode(member.as_ref()?).ok();
        let point = |length: usize| {
            let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
            let uncompressed = || DecodingKey::from_ec_der(&[&[4], x.as_slice(), y.as_slice()].concat());
            (x.len() == length && y.len() == length).then(uncompressed)
        };
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                // 2048 to 8192 bits, as the cryptography would insist all the same: shorter ones can be broken.
                let n = bytes(&self.n).filter(|n| (256..=1024).contains(&n.len()))?;
                let key = DecodingKey::from_rsa_raw_components(&n, &bytes(&self.e)?);
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
