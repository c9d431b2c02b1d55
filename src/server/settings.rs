//! The settings of a server, and the errors of its start.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use super::not_ready::NotReady;
use crate::{
    domain::{Clock, Entropy},
    identity::{TrustedPeers, oauth1::Origin},
    jobs::purge::PurgeSettings,
    jwks::{JwksError, Jwt},
    net::{ClientTls, ServerTls, TlsError},
    rate_limit::{RateLimit, Redis},
    rest::TransportPolicy,
    store::{KeyRing, KeyRingError},
    telemetry::{Metrics, Traces},
    upstream::UpstreamUrl,
};

/// What to serve, and where. Port 0 takes a free one.
#[derive(Debug)]
pub struct Settings {
    pub rpc: Rpc,
    /// The REST gateway, with the keys that open its credentials.
    pub rest: Option<Rest>,
    /// The issuer whose bearer tokens are accepted, on either side.
    pub jwt: Option<Jwt>,
    pub admin: SocketAddr,
    /// Whether this process erases the entries of destroyed collections, and how fast.
    pub purge: Option<PurgeSettings>,
    /// Calls in flight; more are refused at once.
    pub max_in_flight: usize,
    /// The longest wait for accepted calls after a signal to stop.
    pub drain: Duration,
    pub metrics: Metrics,
    pub traces: Traces,
    pub clock: Clock,
    pub entropy: Entropy,
}

impl Settings {
    /// The Redis that the rate limits share.
    pub(super) fn redis(&self) -> Option<Redis> {
        let caller_limit = match &self.rpc {
            Rpc::Served(grpc) => grpc.caller_rate_limit.as_ref(),
            Rpc::Upstream(..) => None,
        };
        let user_limit = self.rest.as_ref().and_then(|rest| rest.rate_limit.as_ref());
        user_limit.or(caller_limit).and_then(RateLimit::redis).cloned()
    }

    /// Whether a listener on another than a loopback address has no TLS.
    #[must_use]
    pub fn is_in_clear(&self) -> bool {
        let open =
            |address: SocketAddr, tls: &Option<ServerTls>| !address.ip().is_loopback() && tls.is_none();
        let grpc = match &self.rpc {
            Rpc::Served(grpc) => open(grpc.address, &grpc.tls),
            Rpc::Upstream(..) => false,
        };
        grpc || self.rest.as_ref().is_some_and(|rest| open(rest.address, &rest.tls))
    }
}

/// Where destroys are carried out.
#[derive(Debug)]
pub enum Rpc {
    /// In this process, for gRPC callers and for the gateway.
    Served(Grpc),
    /// By servers elsewhere: this process is a gateway alone.
    Upstream(UpstreamUrl, ClientTls),
}

/// The gRPC side.
#[derive(Debug)]
pub struct Grpc {
    pub address: SocketAddr,
    /// The admin listener never has TLS: a probe carries no certificate.
    pub tls: Option<ServerTls>,
    /// Services whose `x-user-id` is accepted, once their certificates are verified.
    pub trusted_peers: TrustedPeers,
    /// Accept `x-user-id` from every caller. The command line allows it on a loopback address alone.
    pub insecure_identity: bool,
    /// Limits the calls of each calling service. Uses the same Redis as the limit of REST users.
    pub caller_rate_limit: Option<RateLimit>,
}

/// The REST side.
#[derive(Debug)]
pub struct Rest {
    pub address: SocketAddr,
    pub tls: Option<ServerTls>,
    pub transport: TransportPolicy,
    pub public_origins: Vec<Origin>,
    pub rate_limit: Option<RateLimit>,
    pub keys: Arc<KeyRing>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{flag} {address}: {error}")]
    Bind { flag: &'static str, address: SocketAddr, error: io::Error },
    #[error("{flag} {error}")]
    Tls { flag: &'static str, error: TlsError },
    #[error("the threads of TLS handshakes could not be started: {0}")]
    Threads(io::Error),
    #[error(transparent)]
    NotReady(NotReady),
    #[error("--credentials-key-file: {0}")]
    Keys(#[from] KeyRingError),
    #[error("--jwks: {0}")]
    Jwks(#[from] JwksError),
    #[error("the reflection service could not be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}
