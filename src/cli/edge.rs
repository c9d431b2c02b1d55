//! Flags for TLS, proxies and origins of listeners.

use std::{net::IpAddr, net::SocketAddr, path::PathBuf, sync::Arc};

use ipnet::IpNet;

use super::{
    Exit,
    heading::{GRPC_CALLERS, REST_CLIENTS, TLS},
};
use crate::{
    identity::{PeerName, oauth1::Origin},
    net::{ClientAuth, ClientAuthority, KeyPair, ServerTls},
    rate_limit::RateLimit,
    rest::TransportPolicy,
    server::Rest,
    store::KeyRing,
};

/// The gRPC listener's TLS, and the callers that may name a user.
#[derive(Debug, clap::Args)]
pub struct GrpcTls {
    /// PEM file of the gRPC listener's certificate chain
    ///
    /// It is read again when it changes.
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_TLS_CERT", requires = "tls_key", help_heading = TLS)]
    tls_cert: Option<PathBuf>,
    /// PEM file of the private key of `--tls-cert`
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_TLS_KEY", requires = "tls_cert", help_heading = TLS)]
    tls_key: Option<PathBuf>,
    /// PEM file of the authorities that sign callers' certificates
    ///
    /// A scope limits the names that the file's authorities may issue: `spiffe://example.org` to SPIFFE IDs of that trust
    /// domain, `example.org` to that DNS name and those below it, `.example.org` to those below it.
    #[arg(long, value_name = "[SCOPE=]FILE", env = "COLLECTIONS_CLIENT_CA", value_delimiter = ',', requires_all = ["tls_cert", "trusted_peer"], help_heading = GRPC_CALLERS)]
    client_ca: Vec<ClientAuthority>,
    /// A service whose `x-user-id` is accepted: the SPIFFE ID or DNS name in its certificate
    #[arg(long, value_name = "NAME", env = "COLLECTIONS_TRUSTED_PEER", value_delimiter = ',', requires = "client_ca", help_heading = GRPC_CALLERS)]
    pub trusted_peer: Vec<PeerName>,
}

/// The REST listener's transport and origins.
#[derive(Debug, clap::Args)]
pub struct Edge {
    /// An origin that REST clients sign for, such as `https://api.twitter.com` [default: the origin of each request]
    ///
    /// Needed behind a proxy that terminates TLS or changes the host name, unless the proxy is a `--trusted-proxy`.
    #[arg(long, value_name = "ORIGIN", env = "COLLECTIONS_PUBLIC_ORIGIN", value_delimiter = ',', help_heading = REST_CLIENTS)]
    public_origin: Vec<Origin>,
    /// PEM file of the REST listener's certificate chain
    ///
    /// It is read again when it changes.
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_REST_TLS_CERT", requires = "rest_tls_key", help_heading = TLS)]
    rest_tls_cert: Option<PathBuf>,
    /// PEM file of the private key of `--rest-tls-cert`
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_REST_TLS_KEY", requires = "rest_tls_cert", help_heading = TLS)]
    rest_tls_key: Option<PathBuf>,
    /// Refuse REST requests that were sent without TLS, with code 92
    ///
    /// TLS may end at this process or at a `--trusted-proxy`.
    #[arg(long, env = "COLLECTIONS_REQUIRE_TLS", help_heading = TLS)]
    require_tls: bool,
    /// An address, or a network such as `10.0.0.0/8`, of proxies whose `x-forwarded-proto` is trusted
    #[arg(long, value_name = "NETWORK", env = "COLLECTIONS_TRUSTED_PROXY", value_delimiter = ',', value_parser = parse_network, help_heading = TLS)]
    trusted_proxy: Vec<IpNet>,
}

impl GrpcTls {
    /// The listener's TLS. With `others`, callers without a certificate can authenticate in another way.
    ///
    /// # Errors
    /// No authority may issue the name of a trusted peer.
    pub fn server(&self, others: bool) -> Result<Option<ServerTls>, Exit> {
        let Some(key_pair) = key_pair(self.tls_cert.as_ref(), self.tls_key.as_ref()) else { return Ok(None) };
        let is_in_scope = |name: &PeerName| {
            let mut scopes = self.client_ca.iter().map(|authority| authority.scope.as_ref());
            scopes.any(|scope| scope.is_none_or(|scope| scope.covers(name)))
        };
        if let Some(name) = self.trusted_peer.iter().find(|name| !is_in_scope(name)) {
            return Err(Exit::Usage(format!(
                "--trusted-peer {name}: is in the scope of no --client-ca; give one with its trust domain or DNS suffix"
            )));
        }
        let authorities = self.client_ca.clone();
        let clients = match (authorities.is_empty(), others) {
            (true, _) => ClientAuth::Anyone,
            (false, true) => ClientAuth::Optional(authorities),
            (false, false) => ClientAuth::Required(authorities),
        };
        Ok(Some(ServerTls { key_pair, clients, alpn: &["h2"] }))
    }
}

impl Edge {
    /// The REST listener at this address.
    pub fn rest(
        &self,
        address: SocketAddr,
        keys: Arc<KeyRing>,
        rate_limit: Option<RateLimit>,
    ) -> Result<Rest, Exit> {
        let tls = key_pair(self.rest_tls_cert.as_ref(), self.rest_tls_key.as_ref())
            .map(|key_pair| ServerTls { key_pair, clients: ClientAuth::Anyone, alpn: &["h2", "http/1.1"] });
        if self.require_tls && tls.is_none() && self.trusted_proxy.is_empty() {
            return Err(Exit::Usage(
                "--require-tls: no request could be accepted; give --rest-tls-cert, or --trusted-proxy"
                    .to_owned(),
            ));
        }
        let transport =
            TransportPolicy { require_tls: self.require_tls, trusted_proxies: self.trusted_proxy.clone() };
        let public_origins = self.public_origin.clone();
        Ok(Rest { address, tls, transport, public_origins, rate_limit, keys })
    }

    /// A flag that was given although there is no REST listener.
    pub fn given(&self) -> Option<&'static str> {
        [
            ("--public-origin", !self.public_origin.is_empty()),
            ("--rest-tls-cert", self.rest_tls_cert.is_some()),
            ("--require-tls", self.require_tls),
            ("--trusted-proxy", !self.trusted_proxy.is_empty()),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }
}

/// A certificate with its key; clap requires both or neither.
fn key_pair(certificate: Option<&PathBuf>, key: Option<&PathBuf>) -> Option<KeyPair> {
    certificate
        .zip(key)
        .map(|(certificate, key)| KeyPair { certificate: certificate.clone(), key: key.clone() })
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_error| "expected an address, or a network such as 10.0.0.0/8".to_owned())
}
