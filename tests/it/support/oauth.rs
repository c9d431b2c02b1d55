//! An OAuth 1.0a signer of the tests' own, written from the RFC and not from the code under test.

use std::fmt::Write;

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};

use super::{CONSUMER, NOW, TOKEN};

/// What a client signs with.
#[derive(Clone, Debug)]
pub struct Signer {
    pub consumer: (String, String),
    pub token: Option<(String, String)>,
    pub timestamp: i64,
    /// The signature method by its name. What is unknown is signed as HMAC-SHA1.
    pub method: &'static str,
    /// Further OAuth parameters; one with a usual name takes the usual one's place.
    pub more: Vec<(&'static str, &'static str)>,
}

/// Encoded names and values.
type Pairs = Vec<(String, String)>;

impl Signer {
    /// The documentation's application and user, now.
    pub fn owner() -> Self {
        let pair = |(key, secret): (&str, &str)| (key.to_owned(), secret.to_owned());
        let (consumer, token) = (pair(CONSUMER), Some(pair(TOKEN)));
        Self { consumer, token, timestamp: NOW, method: "HMAC-SHA1", more: Vec::new() }
    }

    /// The `Authorization` header for a POST to this URL with these query or form parameters.
    pub fn header<N: AsRef<[u8]>, V: AsRef<[u8]>>(&self, url: &str, parameters: &[(N, V)]) -> String {
        in_header(&self.sign(url, parameters))
    }

    /// The OAuth parameters for such a POST, encoded, the signature last.
    pub fn sign<N: AsRef<[u8]>, V: AsRef<[u8]>>(&self, url: &str, parameters: &[(N, V)]) -> Pairs {
        let timestamp = self.timestamp.to_string();
        let mut usual = vec![
            ("oauth_consumer_key", self.consumer.0.as_str()),
            ("oauth_nonce", "n0nce"),
            ("oauth_signature_method", self.method),
            ("oauth_timestamp", &timestamp),
        ];
        usual.extend(self.token.as_ref().map(|(token, _)| ("oauth_token", token.as_str())));
        usual.retain(|(name, _)| self.more.iter().all(|(other, _)| other != name));
        let mut oauth: Pairs =
            usual.iter().chain(&self.more).map(|(name, value)| (escape(name), escape(value))).collect();
        let mut pairs = oauth.clone();
        pairs.extend(parameters.iter().map(|(name, value)| (escape(name), escape(value))));
        pairs.sort();
        let joined: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let base = format!("POST&{}&{}", escape(url), escape(joined.join("&")));
        let token_secret = self.token.as_ref().map(|(_, secret)| escape(secret)).unwrap_or_default();
        let key = format!("{}&{token_secret}", escape(&self.consumer.1));
        let signature = match self.method {
            "PLAINTEXT" => key,
            "HMAC-SHA256" => BASE64_STANDARD.encode(mac::<Hmac<sha2::Sha256>>(&key, &base)),
            _ => BASE64_STANDARD.encode(mac::<Hmac<sha1::Sha1>>(&key, &base)),
        };
        oauth.push(("oauth_signature".to_owned(), escape(signature)));
        oauth
    }
}

/// As the value of an `Authorization` header.
pub fn in_header(oauth: &[(String, String)]) -> String {
    let fields: Vec<String> = oauth.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    format!("OAuth {}", fields.join(", "))
}

/// As a query or as a form.
pub fn in_form(oauth: &[(String, String)]) -> String {
    oauth.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

fn mac<M: Mac + KeyInit>(key: &str, base: &str) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(base.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// RFC 5849, 3.6.
pub fn escape(text: impl AsRef<[u8]>) -> String {
    text.as_ref().iter().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            escaped.push(char::from(*byte));
        } else {
            write!(escaped, "%{byte:02X}").unwrap();
        }
        escaped
    })
}
