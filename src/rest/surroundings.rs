//! What stands between the clients and the gateway.

use http::HeaderMap;
use ipnet::IpNet;

use crate::identity::Peer;

/// How requests come here.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Refuse what came without TLS.
    pub require_tls: bool,
    /// Proxies whose `x-forwarded-proto` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Surroundings {
    /// Whether a request came over TLS: to us, or to a proxy that says so and is believed. Where several proxies have
    /// written the header, all must say so.
    pub fn is_secure(&self, peer: Option<&Peer>, headers: &HeaderMap) -> bool {
        let Some(peer) = peer else { return false };
        if peer.is_secure() {
            return true;
        }
        let mut forwarded = headers.get_all("x-forwarded-proto").iter().peekable();
        self.trusted_proxies.iter().any(|proxies| proxies.contains(&peer.address))
            && forwarded.peek().is_some()
            && forwarded.all(|value| {
                let mut protocols = value.to_str().unwrap_or_default().split(',');
                protocols.all(|protocol| protocol.trim().eq_ignore_ascii_case("https"))
            })
    }
}
