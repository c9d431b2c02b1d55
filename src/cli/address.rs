//! Addresses in flags: `<host>:<port>`, where the host may be a name.

use std::{
    fmt,
    net::{SocketAddr, TcpListener},
    str::FromStr,
};

use super::Exit;
use crate::config;

/// A host and a port that have not been resolved.
#[derive(Clone, Debug)]
pub struct Address(String);

/// A text that is not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected <host>:<port>, such as 127.0.0.1:50051, [::1]:50051 or localhost:50051")]
pub struct AddressError;

/// The addresses of a host, at least one, in the order of the system's resolver.
#[derive(Debug)]
pub struct Resolved {
    addresses: Vec<SocketAddr>,
    first: SocketAddr,
}

impl Address {
    /// Resolves the host, within [`config::cli::RESOLVE_TIMEOUT`].
    ///
    /// # Errors
    /// The host has no address, or none is found in time; the error names the flag.
    pub async fn resolve(&self, flag: &str) -> Result<Resolved, Exit> {
        let refuse = |error: &dyn fmt::Display| Exit::Usage(format!("{flag} {self}: {error}"));
        let lookup = tokio::net::lookup_host(self.0.as_str());
        let found = tokio::time::timeout(config::cli::RESOLVE_TIMEOUT, lookup).await;
        let found = found.map_err(|_elapsed| refuse(&"the host name was not resolved in time"))?;
        let addresses: Vec<_> = found.map_err(|error| refuse(&error))?.collect();
        let first = addresses.first().copied();
        first.map(|first| Resolved { addresses, first }).ok_or_else(|| refuse(&"the host has no address"))
    }
}

impl Resolved {
    /// Whether every address is a loopback address.
    pub fn is_loopback(&self) -> bool {
        self.addresses.iter().all(|address| address.ip().is_loopback())
    }

    /// The address to listen on: the first one that belongs to this machine. `localhost` may have an IPv6 address on a
    /// machine without IPv6. Where none belongs to it the first one, so that binding it reports the error.
    pub fn to_bind(&self) -> SocketAddr {
        let is_local = |address: &&SocketAddr| TcpListener::bind((address.ip(), 0)).is_ok();
        self.addresses.iter().find(is_local).copied().unwrap_or(self.first)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(AddressError)?;
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
        let is_valid = text.parse::<SocketAddr>().is_ok() || (is_host_name(host) && is_port);
        is_valid.then(|| Self(text.to_owned())).ok_or(AddressError)
    }
}

/// Whether this can be a host name. Resolvers take a name whose last label is a number for an IPv4 address: `0` for
/// 0.0.0.0, and `127.1` for 127.0.0.1.
fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.split('.').all(is_label)
        && !last.bytes().next().is_some_and(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{Address, AddressError, Resolved};

    #[test]
    fn a_host_is_loopback_if_all_its_addresses_are() {
        let first = SocketAddr::from(([127, 0, 0, 1], 1));
        for (other, is_loopback) in [([127, 0, 0, 2], true), ([10, 0, 0, 1], false)] {
            let addresses = vec![first, SocketAddr::from((other, 1))];
            assert_eq!(Resolved { addresses, first }.is_loopback(), is_loopback);
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for text in [
            "127.0.0.1:50051",
            "0.0.0.0:0",
            "[::1]:50051",
            "[::]:1",
            "localhost:9090",
            "a-b.svc.cluster.local:1",
            "host_1.example.:65535",
        ] {
            assert!(text.parse::<Address>().is_ok_and(|address| address.to_string() == text), "{text}");
        }
        for text in [
            "",
            ":1",
            "localhost",
            "localhost:",
            "localhost:+1",
            "localhost:65536",
            "localhost:50051#",
            "localhost:50051/",
            "user@localhost:1",
            "local host:1",
            " localhost:1",
            "localhost:1\n",
            "a..b:1",
            "::1:50051",
            "[localhost]:1",
            "[::1]",
            "0:1",
            "127.1:1",
            "2130706433:1",
            "host.0x7f:1",
            "http://localhost:1",
            "*:1",
        ] {
            assert_eq!(text.parse::<Address>().err(), Some(AddressError), "{text}");
        }
    }
}
