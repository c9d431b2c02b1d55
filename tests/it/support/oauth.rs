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
    /// HMAC-SHA256 rather than HMAC-SHA1.
    pub sha256: bool,
}

impl Signer {
    /// The documentation's application and user, now.
    pub fn owner() -> Self {
        let pair = |(key, secret): (&str, &str)| (key.to_owned(), secret.to_owned());
        Self { consumer: pair(CONSUMER), token: Some(pair(TOKEN)), timestamp: NOW, sha256: false }
    }

    /// The `Authorization` header for a POST to this URL with these query or form parameters.
    pub fn header(&self, url: &str, parameters: &[(&str, &str)]) -> String {
        let mut oauth = vec![
            ("oauth_consumer_key".to_owned(), self.consumer.0.clone()),
            ("oauth_nonce".to_owned(), "n0nce".to_owned()),
            (
                "oauth_signature_method".to_owned(),
                format!("HMAC-SHA{}", if self.sha256 { "256" } else { "1" }),
            ),
            ("oauth_timestamp".to_owned(), self.timestamp.to_string()),
        ];
        if let Some((token, _)) = &self.token {
            oauth.push(("oauth_token".to_owned(), token.clone()));
        }
        let mut all = oauth.clone();
        all.extend(parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut pairs: Vec<(String, String)> =
            all.iter().map(|(name, value)| (escape(name), escape(value))).collect();
        pairs.sort();
        let joined: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let base = format!("POST&{}&{}", escape(url), escape(joined.join("&")));
        let token_secret = self.token.as_ref().map(|(_, secret)| escape(secret)).unwrap_or_default();
        let key = format!("{}&{token_secret}", escape(&self.consumer.1));
        let signature = if self.sha256 {
            BASE64_STANDARD.encode(mac::<Hmac<sha2::Sha256>>(&key, &base))
        } else {
            BASE64_STANDARD.encode(mac::<Hmac<sha1::Sha1>>(&key, &base))
        };
        oauth.push(("oauth_signature".to_owned(), signature));
        let fields: Vec<String> =
            oauth.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        format!("OAuth {}", fields.join(", "))
    }
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
