//! The address of the RPC.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use rustls::pki_types::ServerName;

/// Where the RPC is: `https://<host>:<port>`; without TLS on this machine alone, because a gateway says who the user is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    pub(super) scheme: &'static str,
    pub(super) host: String,
    port: u16,
    /// What the server's certificate has to name.
    pub(super) name: ServerName<'static>,
}

/// A text that is no address of an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamUrlError {
    #[error("expected https://<host>:<port> and nothing behind it")]
    Malformed,
    #[error("without TLS the upstream must be a loopback address, because a gateway says who the user is")]
    Plain,
}

impl UpstreamUrl {
    /// Whether the RPC is asked for a certificate.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.scheme == "https"
    }

    pub(super) async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        // Whoever is no name for this machine but is called so must not hear who the user is.
        let allowed = |address: &SocketAddr| self.is_tls() || address.ip().is_loopback();
        Ok(found.filter(allowed).collect())
    }
}

impl FromStr for UpstreamUrl {
    type Err = UpstreamUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = UpstreamUrlError::Malformed;
        let uri: http::Uri = text.parse().map_err(|_error| malformed)?;
        let authority = uri.authority().ok_or(malformed)?;
        let bare = uri.path() == "/" && uri.query().is_none() && !authority.as_str().contains('@');
        let port = authority.port_u16().filter(|_| bare).ok_or(malformed)?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_error| malformed)?;
        let is_loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let scheme = match uri.scheme_str() {
            Some("https") => "https",
            Some("http") if is_loopback => "http",
            Some("http") => return Err(UpstreamUrlError::Plain),
            _ => return Err(malformed),
        };
        Ok(Self { scheme, host, port, name })
    }
}
