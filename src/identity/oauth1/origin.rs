//! The origin that a base string begins with.

use std::str::FromStr;

/// What a client signed: scheme, host and port as they are in a base string, without default ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

/// A text that is no origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected http:// or https://, a host and perhaps a port, and nothing else")]
pub struct OriginError;

impl Origin {
    /// Returns the text, such as `https://api.twitter.com`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Builds the origin of a request that arrived over `scheme` and names this host.
    #[must_use]
    pub fn of_request(scheme: &str, authority: &str) -> Option<Self> {
        format!("{scheme}://{authority}").parse().ok()
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: http::Uri = text.parse().map_err(|_error| OriginError)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(OriginError);
        };
        let default_port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err(OriginError),
        };
        let host = authority.host();
        // `Authority` finds a host and a port in texts that have no such parts: `a[::1]:80`, `a:+80`.
        let port = match authority.as_str().strip_prefix(host) {
            Some("") => None,
            Some(rest) => Some(rest.strip_prefix(':').and_then(port).ok_or(OriginError)?),
            None => return Err(OriginError),
        };
        // `Uri` drops a fragment, and adds a path.
        let is_all = text.len() == scheme.len() + "://".len() + authority.as_str().len();
        if !is_all || host.is_empty() {
            return Err(OriginError);
        }
        let host = host.to_ascii_lowercase();
        Ok(Self(match port.filter(|port| *port != default_port) {
            Some(port) => format!("{scheme}://{host}:{port}"),
            None => format!("{scheme}://{host}"),
        }))
    }
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
