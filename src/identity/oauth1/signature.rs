//! The signature: an HMAC over the base string, compared in constant time.

use std::str::FromStr;

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::utf8_percent_encode;
use sha1::Sha1;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{
    origin::Origin,
    parameters::{ENCODED, Parameters},
};
use crate::domain::Secret;

/// The signature methods that carry a secret over no wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    HmacSha1,
    HmacSha256,
}

/// A base string but for the origin: a request may have been signed for any of several.
#[derive(Debug)]
pub struct Base<'a> {
    method: &'a str,
    /// The path and the parameters, encoded as they are in the base string.
    rest: String,
}

/// Of what follows the origin in most base strings, so that no buffer has to grow.
const USUAL_SIZE: usize = 512;

/// The consumer's secret and the token's.
pub type Secrets<'a> = (&'a Secret, Option<&'a Secret>);

impl FromStr for Method {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "HMAC-SHA1" => Ok(Self::HmacSha1),
            "HMAC-SHA256" => Ok(Self::HmacSha256),
            _ => Err(()),
        }
    }
}

/// Decodes an `oauth_signature` as the 1.1 API did: white space is dropped, and the URL-safe alphabet is accepted too. The
/// signature itself is not signed, so this makes no two readings of what is.
pub fn decode(signature: &str) -> Option<Vec<u8>> {
    let letters = signature.bytes().filter(|letter| !letter.is_ascii_whitespace());
    let standard: Vec<u8> = letters
        .map(|letter| match letter {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        })
        .collect();
    BASE64_STANDARD.decode(standard).ok()
}

impl<'a> Base<'a> {
    pub fn new(method: &'a str, path: &str, sources: &[&Parameters<'_>]) -> Self {
        let mut rest = String::with_capacity(USUAL_SIZE);
        rest.extend(utf8_percent_encode(path, ENCODED));
        rest.push('&');
        let mut separator = "";
        for (name, value) in Parameters::normalized(sources) {
            rest.push_str(separator);
            rest.extend(utf8_percent_encode(&name, ENCODED));
            rest.push_str("%3D");
            rest.extend(utf8_percent_encode(&value, ENCODED));
            separator = "%26";
        }
        Self { method, rest }
    }

    /// Computes the HMAC of the whole base string, from one that has its key and nothing else.
    fn mac<M: Mac + Clone>(&self, keyed: &M, origin: &Origin) -> M {
        let mut mac = keyed.clone();
        mac.update(self.method.as_bytes());
        mac.update(b"&");
        for chunk in utf8_percent_encode(origin.as_str(), ENCODED) {
            mac.update(chunk.as_bytes());
        }
        mac.update(self.rest.as_bytes());
        mac
    }
}

/// Returns whether the signature is right for one of the origins, each in a time that does not depend on how much of it is
/// right.
pub fn verify<'o>(
    method: Method,
    base: &Base<'_>,
    origins: impl Iterator<Item = &'o Origin>,
    secrets: Secrets<'_>,
    signature: &[u8],
) -> bool {
    match method {
        Method::HmacSha1 => verify_mac::<Hmac<Sha1>>(base, origins, secrets, signature),
        Method::HmacSha256 => verify_mac::<Hmac<Sha256>>(base, origins, secrets, signature),
    }
}

fn verify_mac<'o, M: Mac + KeyInit + Clone>(
    base: &Base<'_>,
    mut origins: impl Iterator<Item = &'o Origin>,
    secrets: Secrets<'_>,
    signature: &[u8],
) -> bool {
    let keyed = keyed::<M>(secrets);
    keyed.is_some_and(|keyed| origins.any(|origin| base.mac(&keyed, origin).verify_slice(signature).is_ok()))
}

fn keyed<M: KeyInit>((consumer, token): Secrets<'_>) -> Option<M> {
    let token = token.map(Secret::expose).unwrap_or_default();
    // With room for all of it: a string that grows leaves copies behind.
    let room = 3 * (consumer.expose().len() + token.len()) + 1;
    let mut key = Zeroizing::new(String::with_capacity(room));
    key.extend(utf8_percent_encode(consumer.expose(), ENCODED));
    key.push('&');
    key.extend(utf8_percent_encode(token, ENCODED));
    M::new_from_slice(key.as_bytes()).ok()
}

/// Returns the value of an `Authorization` header that signs these parameters with HMAC-SHA1.
#[must_use]
pub fn sign(
    base: (&str, &Origin, &str),
    (consumer_key, token): (&str, &str),
    secrets: (&Secret, &Secret),
    (timestamp, nonce): (i64, &str),
    parameters: &Parameters<'_>,
) -> Option<String> {
    let mut oauth = Parameters::default();
    let timestamp = timestamp.to_string();
    let fields = [
        ("oauth_consumer_key", consumer_key),
        ("oauth_nonce", nonce),
        ("oauth_signature_method", "HMAC-SHA1"),
        ("oauth_timestamp", timestamp.as_str()),
        ("oauth_token", token),
        ("oauth_version", "1.0"),
    ];
    let encode = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
    let fields = fields.map(|(name, value)| (name, encode(value)));
    let mut header = String::from("OAuth ");
    for (name, value) in &fields {
        oauth.push_encoded(name.as_bytes(), value.as_bytes());
        header.push_str(&format!("{name}=\"{value}\", "));
    }
    let (method, origin, path) = base;
    let base = Base::new(method, path, &[&oauth, parameters]);
    let keyed: Hmac<Sha1> = keyed((secrets.0, Some(secrets.1)))?;
    let mac = base.mac(&keyed, origin);
    let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    header.push_str(&format!("oauth_signature=\"{}\"", encode(&signature)));
    Some(header)
}
