//! A token's parts: read as strictly as RFC 7515 and RFC 7519 define them, because two readings of one token are two users.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::{
    super::excerpt::excerpt,
    error::JwtError,
    keys::{Key, KeySet, kid_excerpt, parse_algorithm},
};
use crate::config;

/// Either of these scopes lets a token destroy.
const WRITE_SCOPES: [&str; 2] = ["collections.write", "collection.write"];

/// A token whose signature is not yet checked: nothing in its claims can be relied on.
pub struct Token {
    kid: Option<String>,
    algorithm: Algorithm,
    /// What is signed: the header and the claims, still encoded.
    signed: String,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

/// The header's members that matter. A key or a key's URL in a header is the sender's choice, so none is read. A repeated
/// name is refused.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default, deserialize_with = "not_null")]
    kid: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    typ: Option<String>,
    /// No extension is supported here, so any `crit` is rejected.
    #[serde(default, deserialize_with = "is_present")]
    crit: bool,
}

/// The claims that matter, of a token whose signature is right. A repeated one is refused.
#[derive(Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: Texts,
    /// Required; optional only while the token may still be one for another purpose.
    #[serde(default, deserialize_with = "not_null")]
    pub exp: Option<f64>,
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
    /// RFC 7800: the sender must prove that it holds a key (RFC 8705, RFC 9449).
    #[serde(default, deserialize_with = "is_present")]
    cnf: bool,
    /// RFC 8417: the token reports something that happened, such as a logout.
    #[serde(default, deserialize_with = "is_present")]
    events: bool,
}

/// A text, or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Texts {
    One(String),
    Several(Vec<String>),
}

impl Token {
    /// Splits a token, and checks all that can be checked without a key.
    pub fn read(text: &str) -> Result<Self, JwtError> {
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
        header.typ.as_deref().map_or(Ok(()), check_type)?;
        let algorithm =
            parse_algorithm(&header.alg).ok_or_else(|| JwtError::Algorithm(excerpt(&header.alg)))?;
        let (claims, signature) = (decode(claims)?, decode(signature)?);
        Ok(Self { kid: header.kid, algorithm, signed: signed.to_owned(), claims, signature })
    }

    /// Returns the id of the key that the token claims to be signed with.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Returns the keys that may have signed the token.
    pub fn candidates(&self, keys: &KeySet) -> Result<Vec<Arc<Key>>, JwtError> {
        keys.candidates(self.kid(), self.algorithm)
    }

    /// Returns the claims, if one of these keys signed them. Until then they are not even parsed. Computes as long as
    /// public-key cryptography takes.
    pub fn verify(&self, candidates: &[Arc<Key>]) -> Result<Claims, JwtError> {
        let signed = self.signed.as_bytes();
        if !candidates.iter().any(|key| key.verifies(self.algorithm, signed, &self.signature)) {
            return Err(JwtError::Signature(kid_excerpt(self.kid())));
        }
        let claims: Claims = serde_json::from_slice(&self.claims)
            .map_err(|error| JwtError::Claims(excerpt(&error.to_string())))?;
        claims.check_purpose()?;
        if let Some(client) = claims.azp.iter().chain(&claims.client_id).find(|client| !is_name(client)) {
            return Err(JwtError::Client(excerpt(client)));
        }
        Ok(claims)
    }
}

impl Claims {
    /// Refuses what an issuer signs with the same key for another purpose than to be shown by its bearer.
    const fn check_purpose(&self) -> Result<(), JwtError> {
        if self.events {
            Err(JwtError::SecurityEvent)
        } else if self.cnf {
            Err(JwtError::SenderConstrained)
        } else {
            Ok(())
        }
    }

    /// Returns the application that the token was issued to, or else its issuer.
    pub fn client(&self) -> &str {
        self.azp.as_ref().or(self.client_id.as_ref()).unwrap_or(&self.iss)
    }

    /// Returns whether the subject is the application itself, as where it got the token without a user (RFC 9068, 2.2). Its
    /// id may have the form of a user's.
    pub fn is_of_a_client(&self, sub: &str) -> bool {
        self.azp.iter().chain(&self.client_id).any(|client| client == sub)
    }

    /// Returns whether the token's scopes allow it to write, where it has any. Issuers name the claim one way or the other;
    /// where both are there, the narrower one counts.
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
/// Many issuers leave the type out, or use JWT for everything, so this cannot be the only check.
fn check_type(typ: &str) -> Result<(), JwtError> {
    let lower = typ.to_ascii_lowercase();
    match lower.strip_prefix("application/").unwrap_or(&lower) {
        "jwt" | "at+jwt" => Ok(()),
        "logout+jwt" | "secevent+jwt" => Err(JwtError::SecurityEvent),
        _ => Err(JwtError::Type(excerpt(typ))),
    }
}

/// Returns whether the audit trail can hold the name: PostgreSQL's texts hold no NUL, a log line is one line, and a name must
/// be displayed as it is.
fn is_name(client: &str) -> bool {
    !client.is_empty()
        && client.len() <= config::identity::JWT_CLIENT_LIMIT
        && !client.contains(is_misleading)
}

/// Returns whether a character ends a line, is a control character, or changes the direction of the text around it.
fn is_misleading(letter: char) -> bool {
    let changes_direction = matches!(
        letter,
        '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
    );
    letter.is_control() || changes_direction
}

/// Decodes base64url without padding and without stray bits: one text for one value.
fn decode(part: &str) -> Result<Vec<u8>, JwtError> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_error| JwtError::Malformed)
}

/// Refuses `null`, which is not the same as nothing: a scope of `null` must not read as a token without limits.
fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

/// Returns true for any value, `null` included.
fn is_present<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_ignored| true)
}
