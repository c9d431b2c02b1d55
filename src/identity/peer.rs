//! The other end of a connection, and the certificate that it presented.

use std::{fmt::Write, net::IpAddr, sync::Arc};

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use super::{PeerName, client_network::client_network};
use crate::{config, domain::Clock};

/// The other end of a connection, as the listener sees it. It travels in the extensions of each request, which nothing on
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
        /// The client's certificate, where it presented one; the listener has verified it.
        certificate: Option<Arc<PeerCertificate>>,
    },
}

/// A client certificate that the listener has verified, for as long as its connection is open.
#[derive(Debug)]
pub struct PeerCertificate {
    verified: VerifiedNames,
    clock: Clock,
    rejected: CancellationToken,
}

/// The outcome of the verification of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedNames {
    /// Names that the certificate's authorities may issue.
    pub permitted: Vec<PeerName>,
    /// Names in the certificate that its authorities may not issue.
    pub not_permitted: Vec<PeerName>,
    /// The end of the certificate's validity.
    pub not_after: DateTime<Utc>,
}

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

    /// Returns what counts as one client where shares are limited: the address, or its /64 network.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        client_network(self.address)
    }

    /// Whether the connection is protected against being read or changed on its way.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        matches!(self.transport, Transport::Tls { .. })
    }

    /// The certificate that the peer presented.
    #[must_use]
    pub fn certificate(&self) -> Option<&PeerCertificate> {
        match &self.transport {
            Transport::Tls { certificate } => certificate.as_deref(),
            Transport::Plain => None,
        }
    }
}

impl Transport {
    /// Returns once the peer's certificate is rejected.
    pub async fn rejected(&self) {
        match self {
            Self::Tls { certificate: Some(certificate) } => certificate.rejected.cancelled().await,
            Self::Tls { certificate: None } | Self::Plain => std::future::pending().await,
        }
    }
}

impl PeerCertificate {
    #[must_use]
    pub fn new(verified: VerifiedNames, clock: Clock) -> Self {
        Self { verified, clock, rejected: CancellationToken::new() }
    }

    /// What was verified when the connection was opened.
    #[must_use]
    pub const fn verified(&self) -> &VerifiedNames {
        &self.verified
    }

    /// The names that count now: none once the certificate has expired or is rejected.
    pub(super) fn names(&self) -> &[PeerName] {
        if !self.rejected.is_cancelled() && self.clock.now() > self.verified.not_after {
            self.reject();
        }
        if self.rejected.is_cancelled() { &[] } else { &self.verified.permitted }
    }

    /// Takes its names from the certificate for all further calls, and makes its connection close.
    pub fn reject(&self) {
        self.rejected.cancel();
    }

    /// Describes the certificate in the log of a refused call: its names, and why they do not count. At most
    /// [`config::identity::LOGGED_CERTIFICATE_LIMIT`] bytes.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = if self.clock.now() > self.verified.not_after {
            "expired certificate".to_owned()
        } else if self.rejected.is_cancelled() {
            "certificate that the present authorities do not accept".to_owned()
        } else {
            "certificate".to_owned()
        };
        if self.verified.permitted.is_empty() && self.verified.not_permitted.is_empty() {
            text.push_str(" without a SPIFFE ID or DNS name");
        }
        for (label, names) in
            [(" for", &self.verified.permitted), (" without authority for", &self.verified.not_permitted)]
        {
            for (number, name) in names.iter().enumerate() {
                // Writing to a string cannot fail.
                let _written = write!(text, "{} {name}", if number == 0 { label } else { "," });
            }
        }
        text.truncate(text.floor_char_boundary(config::identity::LOGGED_CERTIFICATE_LIMIT));
        text
    }
}
