//! Whose share of connections and memory a connection has.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::identity::client_network;

/// The peer of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A client, by its network.
    Client(IpAddr),
    /// A trusted proxy, which forwards the requests of many clients.
    Proxy,
}

/// Connections that are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Those of one client network.
    Network(IpAddr),
    /// One connection of a proxy, by its number.
    Connection(u64),
}

impl Source {
    pub fn of(address: IpAddr, proxies: &[IpNet]) -> Self {
        if proxies.iter().any(|network| network.contains(&address)) {
            Self::Proxy
        } else {
            Self::Client(client_network(address))
        }
    }

    /// Returns the group of the connection with this number.
    pub const fn group(self, number: u64) -> Group {
        match self {
            Self::Client(network) => Group::Network(network),
            Self::Proxy => Group::Connection(number),
        }
    }
}
