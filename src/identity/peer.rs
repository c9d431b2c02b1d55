//! The other end of a connection, and the services whose word about a user is taken.

use std::{collections::HashSet, fmt, net::IpAddr, str::FromStr, sync::Arc};

use x509_parser::{extensions::GeneralName, prelude::FromDer};

use crate::config;

/// The other end of a connection, as the listener saw it. It travels in the extensions of each request, which nothing on
/// a network can set.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: IpAddr,
    /// The address as the log has it: made once, because every call names it.
    text: Arc<str>,
    pub transport: Transport,
}

/// How a connection is protected.
#[derive(Clone, Debug)]
pub enum Transport {
    Plain,
    Tls {
        /// What the peer's certificate calls it, where it showed one; the listener has verified the certificate.
        certificate: Option<Arc<[PeerName]>>,
    },
}

/// A service's name, as it stands in a certificate and on the list of trusted peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// `spiffe://<trust domain>/<path>`.
    Spiffe(String),
    /// A DNS name in lower case.
    Dns(String),
}

/// A text that names no service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected spiffe://<trust domain>/<path> or a DNS name, and no wildcard")]
pub struct PeerNameError;

/// The services that may say who the user is.
#[derive(Clone, Debug, Default)]
pub struct TrustedPeers(Arc<HashSet<PeerName>>);

impl Peer {
    #[must_use]
    pub fn new(address: IpAddr, transport: Transport) -> Self {
        Self { address, text: address.to_string().into(), transport }
    }

    /// The address, for the log.
    #[must_use]
    pub fn address_text(&self) -> Arc<str> {
        self.text.clone()
    }

    /// A number that no other open connection has.
    #[must_use]
    pub fn connection(&self) -> usize {
        // All requests of a connection share the text.
        self.text.as_ptr().addr()
    }

    /// Whether nobody on the way could read or change what came over this connection.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        matches!(self.transport, Transport::Tls { .. })
    }

    /// The names in the certificate that the peer showed.
    pub(super) fn certificate(&self) -> Option<&[PeerName]> {
        match &self.transport {
            Transport::Tls { certificate } => certificate.as_deref(),
            Transport::Plain => None,
        }
    }
}

impl TrustedPeers {
    /// The first of these names that is on the list.
    pub(super) fn find<'a>(&self, names: &'a [PeerName]) -> Option<&'a PeerName> {
        names.iter().find(|name| self.0.contains(*name))
    }
}

impl FromIterator<PeerName> for TrustedPeers {
    fn from_iter<I: IntoIterator<Item = PeerName>>(names: I) -> Self {
        Self(Arc::new(names.into_iter().collect()))
    }
}

impl PeerName {
    /// The names that a certificate (DER) gives its holder. One with two URIs is no SPIFFE identity, and whatever has not
    /// the form of a name cannot be on a list: both are left out.
    #[must_use]
    pub fn of_certificate(der: &[u8]) -> Vec<Self> {
        let Ok((_, certificate)) = x509_parser::certificate::X509Certificate::from_der(der) else {
            return Vec::new();
        };
        let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
        let names = &names.value.general_names;
        let uris = names.iter().filter(|name| matches!(name, GeneralName::URI(_))).count();
        let read = |name: &GeneralName<'_>| match name {
            GeneralName::URI(uri) if uris == 1 => spiffe(uri),
            GeneralName::DNSName(name) => dns(name),
            _ => None,
        };
        names.iter().filter_map(read).take(config::identity::PEER_NAME_COUNT).collect()
    }

    /// Returns the name as it is written in the certificate, a DNS name in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Spiffe(name) | Self::Dns(name) => name,
        }
    }
}

impl FromStr for PeerName {
    type Err = PeerNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        spiffe(text).or_else(|| dns(text)).ok_or(PeerNameError)
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A workload's SPIFFE ID: a trust domain alone names the authority and no service.
fn spiffe(text: &str) -> Option<PeerName> {
    let (domain, path) = text.strip_prefix("spiffe://")?.split_once('/')?;
    let plain = |text: &str, more: &[u8]| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    };
    let is_domain = plain(domain, b"-._") && !domain.bytes().any(|byte| byte.is_ascii_uppercase());
    let is_path = path.split('/').all(|part| plain(part, b"-._") && part != "." && part != "..");
    (text.len() <= config::identity::PEER_NAME_LIMIT && is_domain && is_path)
        .then(|| PeerName::Spiffe(text.to_owned()))
}

fn dns(text: &str) -> Option<PeerName> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // An address is no name, although its parts look like labels.
    let is_name = text.len() <= 253 && text.split('.').all(is_label) && text.parse::<IpAddr>().is_err();
    is_name.then(|| PeerName::Dns(text.to_ascii_lowercase()))
}
