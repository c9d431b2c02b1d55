//! Names of services: in certificates, on the list of trusted peers, and which of them an authority may issue.

use std::{collections::HashSet, fmt, net::IpAddr, str::FromStr, sync::Arc};

use x509_parser::{extensions::GeneralName, prelude::FromDer};

use crate::config;

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

/// The names that an authority may issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameScope {
    /// SPIFFE IDs of this trust domain.
    TrustDomain(String),
    /// DNS names below this one, and the name itself.
    Domain(String),
    /// DNS names below this one.
    Subdomains(String),
}

/// A text that is no scope of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected spiffe://<trust domain>, or a DNS suffix such as example.org or .example.org")]
pub struct NameScopeError;

/// The services that may name the user of a call.
#[derive(Clone, Debug, Default)]
pub struct TrustedPeers(Arc<HashSet<PeerName>>);

impl TrustedPeers {
    /// The names on the list, as tombstones have them.
    pub fn callers(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(PeerName::as_caller)
    }

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
    /// The service of this name as a tombstone's caller.
    pub(super) fn as_caller(&self) -> String {
        format!("mtls:{self}")
    }

    /// Reads the names that a certificate (DER) gives its holder. A certificate with two URIs has no SPIFFE identity, and
    /// names that are malformed cannot be on a list: both are left out.
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
        match self {
            Self::Spiffe(name) | Self::Dns(name) => f.write_str(name),
        }
    }
}

impl NameScope {
    /// Whether the name is in the scope.
    #[must_use]
    pub fn covers(&self, name: &PeerName) -> bool {
        let is_below = |name: &str, domain: &str| {
            name.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        };
        match (self, name) {
            (Self::TrustDomain(domain), PeerName::Spiffe(id)) => {
                split_spiffe(id).is_some_and(|(of, _)| of == domain)
            }
            (Self::Domain(domain), PeerName::Dns(name)) => name == domain || is_below(name, domain),
            (Self::Subdomains(domain), PeerName::Dns(name)) => is_below(name, domain),
            _ => false,
        }
    }
}

impl FromStr for NameScope {
    type Err = NameScopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(domain) = text.strip_prefix("spiffe://") {
            return if is_trust_domain(domain) {
                Ok(Self::TrustDomain(domain.to_owned()))
            } else {
                Err(NameScopeError)
            };
        }
        let (domain, scope): (_, fn(String) -> Self) = match text.strip_prefix('.') {
            Some(domain) => (domain, Self::Subdomains),
            None => (text, Self::Domain),
        };
        match dns(domain) {
            Some(PeerName::Dns(domain)) => Ok(scope(domain)),
            _ => Err(NameScopeError),
        }
    }
}

/// A workload's SPIFFE ID: a trust domain without a path names the authority, and no service.
fn spiffe(text: &str) -> Option<PeerName> {
    let (domain, path) = split_spiffe(text)?;
    let is_path = path.split('/').all(|part| is_plain(part, b"-._") && part != "." && part != "..");
    (text.len() <= config::identity::PEER_NAME_LIMIT && is_trust_domain(domain) && is_path)
        .then(|| PeerName::Spiffe(text.to_owned()))
}

/// Splits a SPIFFE ID into its trust domain and its path.
fn split_spiffe(id: &str) -> Option<(&str, &str)> {
    id.strip_prefix("spiffe://")?.split_once('/')
}

fn is_trust_domain(text: &str) -> bool {
    is_plain(text, b"-._") && !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_plain(text: &str, more: &[u8]) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
}

fn dns(text: &str) -> Option<PeerName> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // An address is no name, although its parts have the form of labels.
    let is_name = text.len() <= 253 && text.split('.').all(is_label) && text.parse::<IpAddr>().is_err();
    is_name.then(|| PeerName::Dns(text.to_ascii_lowercase()))
}
