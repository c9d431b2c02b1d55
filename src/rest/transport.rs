//! Whether a request was sent over TLS.

use http::HeaderMap;
use ipnet::IpNet;

use crate::identity::Peer;

/// What the gateway requires of the transport, and which proxies it trusts to report it.
#[derive(Clone, Debug, Default)]
pub struct TransportPolicy {
    /// Refuse requests that were not sent over TLS.
    pub require_tls: bool,
    /// Proxies whose `x-forwarded-proto` is trusted.
    pub trusted_proxies: Vec<IpNet>,
}

impl TransportPolicy {
    /// Whether a request was sent over TLS: to this process, or to a trusted proxy that reports it. Where several proxies
    /// have written the header, all must report it.
    pub fn is_secure(&self, peer: Option<&Peer>, headers: &HeaderMap) -> bool {
        let Some(peer) = peer else { return false };
        if peer.is_secure() {
            return true;
        }
        let mut forwarded = headers.get_all("x-forwarded-proto").iter().peekable();
        self.is_proxy(peer)
            && forwarded.peek().is_some()
            && forwarded.all(|value| {
                let mut protocols = value.to_str().unwrap_or_default().split(',');
                protocols.all(|protocol| protocol.trim().eq_ignore_ascii_case("https"))
            })
    }

    /// Whether the peer is a trusted proxy, which forwards the requests of many clients.
    pub fn is_proxy(&self, peer: &Peer) -> bool {
        self.trusted_proxies.iter().any(|proxies| proxies.contains(&peer.address))
    }
}
