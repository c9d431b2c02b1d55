//! The signature: an HMAC over the base string, compared in constant time.

use std::str::FromStr;

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{percent_encode, utf8_percent_encode};
use sha1::Sha1;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{
    Origin,
    parameters::{ENCODED, Parameters},
};
use crate::domain::Secret;

/// The signature methods that carry a secret over no wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    HmacSha1,
    HmacSha256,
}

/// What is signed, before it is put together.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    pub method: &'a str,
    pub origin: &'a Origin,
    pub path: &'a str,
    pub normalized: &'a str,
}

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

/// The bytes of an `oauth_signature`.
pub fn decode(signature: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(signature).ok()
}

/// Whether the signature is right, in a time that does not depend on how much of it is.
pub fn verify(method: Method, base: Base<'_>, secrets: Secrets<'_>, signature: &[u8]) -> bool {
    match method {
        Method::HmacSha1 => {
            mac::<Hmac<Sha1>>(base, secrets).is_some_and(|mac| mac.verify_slice(signature).is_ok())
        }
        Method::HmacSha256 => {
            mac::<Hmac<Sha256>>(base, secrets).is_some_and(|mac| mac.verify_slice(signature).is_ok())
        }
    }
}

fn mac<M: Mac + KeyInit>(base: Base<'_>, (consumer, token): Secrets<'_>) -> Option<M> {
    let token = token.map(Secret::expose).unwrap_or_default();
    // With room for all of it: a string that grows leaves copies behind.
    let room = 3 * (consumer.expose().len() + token.len()) + 1;
    let mut key = Zeroizing::new(String::with_capacity(room));
    key.extend(utf8_percent_encode(consumer.expose(), ENCODED));
    key.push('&');
    key.extend(utf8_percent_encode(token, ENCODED));
    let mut mac = <M as KeyInit>::new_from_slice(key.as_bytes()).ok()?;
    mac.update(base.method.as_bytes());
    for (separator, text) in [("&", base.origin.as_str()), ("", base.path), ("&", base.normalized)] {
        mac.update(separator.as_bytes());
        for chunk in percent_encode(text.as_bytes(), ENCODED) {
            mac.update(chunk.as_bytes());
        }
    }
    Some(mac)
}

/// The value of an `Authorization` header that signs these parameters with HMAC-SHA1.
#[must_use]
pub fn sign(
    base: (&str, &Origin, &str),
    (consumer_key, token): (&str, &str),
    secrets: (&Secret, &Secret),
    (timestamp, nonce): (i64, &str),
    parameters: &Parameters,
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
    let mut header = String::from("OAuth ");
    for (name, value) in fields {
        oauth.push_encoded(name.as_bytes(), encode(value).as_bytes());
        header.push_str(&format!("{name}=\"{}\", ", encode(value)));
    }
    let normalized = Parameters::normalized(&[&oauth, parameters]);
    let (method, origin, path) = base;
    let base = Base { method, origin, path, normalized: &normalized };
    let mac: Hmac<Sha1> = mac(base, (secrets.0, Some(secrets.1)))?;
    let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    header.push_str(&format!("oauth_signature=\"{}\"", encode(&signature)));
    Some(header)
}
