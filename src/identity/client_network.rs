//! What counts as one client where shares are limited.

use std::net::{IpAddr, Ipv6Addr};

/// Returns the address of a client, or the /64 network of an IPv6 address: one client usually has all addresses of it.
pub fn client_network(address: IpAddr) -> IpAddr {
    const NETWORK: u128 = !0 << 64;
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test")]
mod tests {
    use std::net::IpAddr;

    use super::client_network;

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let network = |text: &str| client_network(text.parse::<IpAddr>().expect("an address")).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("192.0.2.1"), "192.0.2.1");
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
