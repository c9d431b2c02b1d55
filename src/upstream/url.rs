//! The URL of the RPC.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use rustls::pki_types::ServerName;

/// `https://<host>:<port>`. `http` is for loopback hosts only, because the gateway's calls name the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    pub(super) scheme: &'static str,
    pub(super) host: String,
    port: u16,
    /// The name that the server's certificate must have.
    pub(super) name: ServerName<'static>,
}

/// A text that is not the URL of an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamUrlError {
    #[error("expected https://<host>:<port>, without user, path, query or fragment")]
    Malformed,
    #[error("without TLS the host must be a loopback address, because the gateway's calls name the user")]
    Plain,
}

impl UpstreamUrl {
    /// Whether connections use TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.scheme == "https"
    }

    pub(super) async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        // `localhost` may resolve to another machine, which must not receive calls without TLS.
        let allowed = |address: &SocketAddr| self.is_tls() || address.ip().is_loopback();
        Ok(found.filter(allowed).collect())
    }
}

impl FromStr for UpstreamUrl {
    type Err = UpstreamUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = UpstreamUrlError::Malformed;
        let uri: http::Uri = text.parse().map_err(|_error| malformed)?;
        let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or(malformed)?;
        // `Uri` drops a fragment and adds a path, and `Authority` accepts `a[::1]:80` and `a:+80`. Nothing may be dropped.
        let length = scheme.len() + "://".len() + authority.as_str().len();
        let port = authority.as_str().strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':'));
        let is_whole = text.strip_suffix('/').unwrap_or(text).len() == length;
        let port = port.filter(|_| is_whole).and_then(parse_port).ok_or(malformed)?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_error| malformed)?;
        let is_loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let scheme = match scheme {
            "https" => "https",
            "http" if is_loopback => "http",
            "http" => return Err(UpstreamUrlError::Plain),
            _ => return Err(malformed),
        };
        Ok(Self { scheme, host, port, name })
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
