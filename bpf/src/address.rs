// SPDX-License-Identifier: Apache-2.0
//! Addresses and ports between the ABI's network byte order and Rust's types.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::IntoBytes;

use crate::abi::{Address, Backend};

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(address.octets().chunks_exact(4)) {
            word.as_mut_bytes().copy_from_slice(bytes);
        }
        Self { word: words }
    }
}

/// IPv4 is mapped into `::ffff:0:0/96`.
impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        address.to_ipv6_mapped().into()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

/// A mapped address comes back as the IPv4 address that it stands for.
impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        octets.copy_from_slice(address.word.as_bytes());
        Ipv6Addr::from(octets).to_canonical()
    }
}

impl From<SocketAddr> for Backend {
    fn from(backend: SocketAddr) -> Self {
        Self {
            address: backend.ip().into(),
            port: backend.port().to_be(),
            pad: 0,
        }
    }
}

impl From<Backend> for SocketAddr {
    fn from(backend: Backend) -> Self {
        Self::new(backend.address.into(), u16::from_be(backend.port))
    }
}

impl Address {
    /// All zero, which in an endpoint means that it has no address of that family.
    pub const NONE: Self = Self { word: [0; 4] };

    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        for (text, bytes) in [
            ("10.244.1.7", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 244, 1, 7]),
            ("fd00::1:2", [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2]),
            ("::", [0; 16]),
        ] {
            let parsed: IpAddr = text.parse().unwrap();
            let address = Address::from(parsed);
            assert_eq!(address.as_bytes(), bytes, "{text}");
            assert_eq!(IpAddr::from(address), parsed, "{text}");
        }
        assert!(Address::from(Ipv6Addr::UNSPECIFIED).is_none());
        assert!(!Address::from(Ipv4Addr::UNSPECIFIED).is_none());
    }
}
