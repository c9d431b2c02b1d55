//! A token's parts: read as strictly as RFC 7515 and RFC 7519 have them, because two readings of one token are two users.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::{JwtError, KeySet};
use crate::config;

/// Either of these scopes lets a token destroy.
const WRITE_SCOPES: [&str; 2] = ["collections.write", "collection.write"];

/// A token whose signature is not yet checked: of its claims nothing is known.
pub struct Token<'a> {
    header: Header,
    /// What is signed: the header and the claims, still encoded.
    signed: &'a str,
    claims: &'a str,
    signature: Vec<u8>,
}

/// The header's members that matter. A key or a key's URL in a header is the sender's word, so none is read. A name that
/// stands twice is refused.
#[derive(Deserialize)]
struct Header {
    alg: Algorithm,
    #[serde(default, deserialize_with = "not_null")]
    kid: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    typ: Option<String>,
    /// No extension is understood here, so whatever `crit` holds is too much.
    #[serde(default, deserialize_with = "there")]
    crit: bool,
}

/// The claims that matter, of a token whose signature is right. One that stands twice is refused.
#[derive(Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: Texts,
    pub exp: f64,
    #[serde(default, deserialize_with = "not_null")]
    pub nbf: Option<f64>,
    #[serde(default, deserialize_with = "not_null")]
    pub sub: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    azp: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    client_id: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    scope: Option<Texts>,
    #[serde(default, deserialize_with = "not_null")]
    scp: Option<Texts>,
}

/// A text, or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Texts {
    One(String),
    Several(Vec<String>),
}

impl<'a> Token<'a> {
    pub fn read(text: &'a str) -> Result<Self, JwtError> {
        if text.len() > config::identity::JWT_LIMIT {
            return Err(JwtError::TooLong);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(JwtError::Malformed)?;
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_error| JwtError::Malformed)?;
        if header.crit {
            return Err(JwtError::Critical);
        }
        if header.typ.as_ref().is_some_and(|typ| !is_access_token(typ)) {
            return Err(JwtError::Type);
        }
        if !config::identity::JWT_ALGORITHMS.contains(&header.alg) {
            return Err(JwtError::Algorithm);
        }
        Ok(Self { header, signed, claims, signature: decode(signature)? })
    }

    /// Which key it says it is signed with.
    pub fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// The claims, if one of these keys signed them. Until then they are not even parsed.
    pub fn verify(self, keys: &KeySet) -> Result<Claims, JwtError> {
        keys.verify(self.kid(), self.header.alg, self.signed.as_bytes(), &self.signature)?;
        let claims: Claims =
            serde_json::from_slice(&decode(self.claims)?).map_err(|_error| JwtError::Claims)?;
        if claims.azp.iter().chain(&claims.client_id).all(|client| is_name(client)) {
            Ok(claims)
        } else {
            Err(JwtError::Claims)
        }
    }
}

impl Claims {
    /// The application that the token was issued to, or else its issuer.
    pub fn client(&self) -> &str {
        self.azp.as_ref().or(self.client_id.as_ref()).unwrap_or(&self.iss)
    }

    /// Whether the subject is the application itself, as where it got the token without a user (RFC 9068, 2.2). Its id may
    /// look like a user's.
    pub fn is_of_a_client(&self, sub: &str) -> bool {
        self.azp.iter().chain(&self.client_id).any(|client| client == sub)
    }

    /// Whether the token's scopes let it write, where it has any. Issuers name the claim one way or the other; where both
    /// are there, the narrower one counts.
    pub fn may_write(&self) -> bool {
        self.scope.iter().chain(&self.scp).all(|scopes| {
            let mut scopes = scopes.iter().flat_map(|text| text.split(' '));
            scopes.any(|scope| WRITE_SCOPES.contains(&scope))
        })
    }
}

impl Texts {
    pub fn iter(&self) -> std::slice::Iter<'_, String> {
        match self {
            Self::One(text) => std::slice::from_ref(text).iter(),
            Self::Several(texts) => texts.iter(),
        }
    }
}

/// RFC 8725, 3.11: an issuer signs more than access tokens with the same key, such as the notice that a user logged out.
/// Many issuers leave the type out, or say JWT of everything, so this cannot be all that tells them apart.
fn is_access_token(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    ["jwt", "at+jwt"].contains(&typ.strip_prefix("application/").unwrap_or(&typ))
}

/// Whether the audit trail can keep it: PostgreSQL's texts hold no NUL, and a log line is one line.
fn is_name(client: &str) -> bool {
    !client.is_empty()
        && client.len() <= config::identity::JWT_CLIENT_LIMIT
        && !client.contains(char::is_control)
}

/// Without padding, without stray bits: one text for one value.
fn decode(part: &str) -> Result<Vec<u8>, JwtError> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_error| JwtError::Malformed)
}

/// A `null` is not the same as nothing: a scope of `null` must not read as a token without limits.
fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

fn there<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_whatever| true)
}
