//! The addresses behind the upstream's name, as they come and go.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use rustls::pki_types::ServerName;
use tokio::sync::watch;

use super::upstream::Backend;
use crate::config;

/// Where the RPC is: `https://<host>:<port>`; without TLS on this machine alone, because a gateway says who the user is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    scheme: &'static str,
    host: String,
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

/// Looks the name up again and again.
#[derive(Debug)]
pub struct Resolver {
    url: UpstreamUrl,
    backends: watch::Sender<Arc<[Backend]>>,
    failing: bool,
}

impl Resolver {
    /// Knows no address yet.
    pub fn new(url: UpstreamUrl) -> (Self, watch::Receiver<Arc<[Backend]>>) {
        let (backends, receiver) = watch::channel(Arc::from([]));
        (Self { url, backends, failing: false }, receiver)
    }

    /// One look. Addresses that stay keep what is known of them; when the name cannot be resolved all of them stay, and
    /// the log says so once.
    pub async fn look(&mut self) {
        match tokio::time::timeout(config::RESOLVE_WAIT, self.url.addresses()).await {
            Ok(Ok(addresses)) if addresses.is_empty() => self.failed("it has no address"),
            Ok(Ok(addresses)) => self.found(addresses),
            Ok(Err(error)) => self.failed(&error.to_string()),
            Err(_elapsed) => self.failed("no answer in time"),
        }
    }

    pub(super) fn found(&mut self, mut addresses: Vec<SocketAddr>) {
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(config::UPSTREAM_ADDRESSES);
        self.failing = false;
        self.backends.send_if_modified(|backends| {
            let changed = !backends.iter().map(|backend| backend.address).eq(addresses.iter().copied());
            if changed {
                tracing::info!(?addresses, "the upstream's addresses");
                let kept = |address| backends.iter().find(|backend| backend.address == address).cloned();
                let backend =
                    |address| kept(address).unwrap_or_else(|| Backend::new(self.url.scheme, address));
                *backends = addresses.iter().copied().map(backend).collect();
            }
            changed
        });
    }

    fn failed(&mut self, error: &str) {
        if !self.failing {
            tracing::error!(error, host = self.url.host, "the upstream's name cannot be resolved");
        }
        self.failing = true;
    }

    /// Looks again and again.
    pub async fn keep(mut self) {
        loop {
            tokio::time::sleep(config::RESOLVE_INTERVAL).await;
            self.look().await;
        }
    }
}

impl UpstreamUrl {
    /// Whether the RPC is asked for a certificate.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.scheme == "https"
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
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
