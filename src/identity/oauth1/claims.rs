//! The `oauth_*` parameters of a request.

use super::{
    super::excerpt::excerpt,
    error::OAuthError,
    parameters::Parameters,
    signature::{self, Method},
};
use crate::config;

const CONSUMER_KEY: &str = "oauth_consumer_key";
const TOKEN: &str = "oauth_token";
const TIMESTAMP: &str = "oauth_timestamp";
const METHOD: &str = "oauth_signature_method";
const VERSION: &str = "oauth_version";

/// The `oauth_*` parameters that are verified, each given exactly once.
pub struct Claims<'a> {
    pub consumer_key: &'a str,
    pub token: Option<&'a str>,
    pub method: Method,
    pub signature: Vec<u8>,
    /// Unix seconds, by the client's clock.
    pub timestamp: i64,
}

impl<'a> Claims<'a> {
    /// Reads the parameters from all places at once.
    ///
    /// # Errors
    /// One is missing, malformed, or given more than once, in one place or in two.
    pub fn read(sent: &[&'a Parameters<'_>]) -> Result<Self, OAuthError> {
        let optional = |name: &'static str| -> Result<Option<&'a str>, OAuthError> {
            let mut values = sent.iter().flat_map(|parameters| parameters.all(name));
            let first = values.next();
            if values.next().is_some() {
                return Err(OAuthError::Repeated(name));
            }
            let text = first.map(std::str::from_utf8).transpose();
            text.map_err(|_error| OAuthError::NotText(name))
        };
        let required = |name: &'static str| {
            optional(name)?.filter(|value| !value.is_empty()).ok_or(OAuthError::Missing(name))
        };
        let consumer_key = key(CONSUMER_KEY, required(CONSUMER_KEY)?)?;
        let token = optional(TOKEN)?.filter(|token| !token.is_empty());
        let token = token.map(|token| key(TOKEN, token)).transpose()?;
        required("oauth_nonce")?;
        let timestamp = required(TIMESTAMP)?;
        let timestamp =
            timestamp.parse().map_err(|_error| OAuthError::TimestampFormat(excerpt(timestamp)))?;
        let method = required(METHOD)?;
        let method = method.parse().map_err(|()| OAuthError::Method(excerpt(method)))?;
        let signature = required("oauth_signature")?;
        let signature = signature::decode(signature).ok_or(OAuthError::SignatureFormat)?;
        match optional(VERSION)? {
            None | Some("1.0" | "1.0a" | "1.0A") => {}
            Some(other) => return Err(OAuthError::Version(excerpt(other))),
        }
        Ok(Self { consumer_key, token, method, signature, timestamp })
    }
}

/// Returns the consumer key of a request that is refused, however malformed the rest of it is.
pub fn sent_consumer_key<'a>(sent: &[&'a Parameters<'_>]) -> Option<&'a [u8]> {
    sent.iter().find_map(|parameters| parameters.all(CONSUMER_KEY).next())
}

/// Checks that a key can be looked up: clients choose it, and it is cached, and PostgreSQL's texts hold no NUL.
fn key<'a>(name: &'static str, value: &'a str) -> Result<&'a str, OAuthError> {
    if value.len() <= config::identity::OAUTH_KEY_LIMIT && !value.contains('\0') {
        Ok(value)
    } else {
        Err(OAuthError::Key(name))
    }
}
