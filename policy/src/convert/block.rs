// SPDX-License-Identifier: Apache-2.0
//! IP blocks, read as Kubernetes reads them: host bits are masked away, leading zeros are decimal, and an IPv4-mapped
//! block is the IPv4 block that it maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::IPBlock;

use super::{InvalidPolicy, each};
use crate::model::IpBlock;

pub(super) fn read(source: &IPBlock) -> Result<IpBlock, InvalidPolicy> {
    let cidr = cidr(&source.cidr).map_err(|cause| InvalidPolicy::at("cidr", cause))?;
    let except = each(source.except.as_deref(), "except", |text| {
        let except = self::cidr(text).map_err(|cause| InvalidPolicy::at("", cause))?;
        if !cidr.contains(&except) || cidr == except {
            return Err(InvalidPolicy::at(
                "",
                format!("{text} is not a strict part of cidr, {}", source.cidr),
            ));
        }
        Ok(except)
    })?;
    Ok(IpBlock { cidr, except })
}

fn cidr(text: &str) -> Result<IpNet, String> {
    parse(text).ok_or_else(|| format!("{text:?} is not a CIDR such as 10.0.0.0/8 or fd00::/8"))
}

fn parse(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length: u8 = decimal(length)?;
    let net = match address.parse::<Ipv6Addr>() {
        Ok(address) => IpNet::new(IpAddr::V6(address), length).ok()?,
        Err(_) => IpNet::new(IpAddr::V4(ipv4(address)?), length).ok()?,
    };
    Some(unmapped(net.trunc()))
}

/// Four decimal octets, leading zeros allowed, which the standard library refuses.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let octets: Vec<u8> = text.split('.').map(decimal).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)
}

fn decimal(text: &str) -> Option<u8> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// Packets never carry IPv4-mapped addresses, so such a block can only mean the IPv4 one.
fn unmapped(net: IpNet) -> IpNet {
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6
            .network()
            .to_ipv4_mapped()
            .and_then(|address| IpNet::new(IpAddr::V4(address), v6.prefix_len() - 96).ok())
            .unwrap_or(net),
        _ => net,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3/32", "10.1.2.3/32"),
            ("010.001.0.0/16", "10.1.0.0/16"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("fd00::1/64", "fd00::/64"),
            ("FD00:0:0::1/128", "fd00::1/128"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            assert_eq!(cidr(text), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0/8",
            "10.0.0.256/8",
            "::/129",
            "fd00::/-1",
            "10.0.0.0/8/8",
            "fd00::%eth0/64",
            "10.0.0.0.0/8",
            " 10.0.0.0/8",
            "10.0.0.+1/8",
        ] {
            assert!(cidr(text).is_err(), "{text}");
        }
    }

    #[test]
    fn excepts_are_strict_parts() {
        let block = |cidr: &str, except: &str| {
            read(&IPBlock {
                cidr: cidr.to_owned(),
                except: Some(vec!["10.1.0.0/16".to_owned(), except.to_owned()]),
            })
        };
        assert_eq!(
            block("10.0.0.0/8", "10.2.3.4/24").unwrap().except[1].to_string(),
            "10.2.3.0/24"
        );
        for except in ["10.0.0.0/8", "0.0.0.0/0", "11.0.0.0/16", "fd00::/64", "10.2.0.0"] {
            assert_eq!(block("10.0.0.0/8", except).unwrap_err().field, "except[1]", "{except}");
        }
        assert_eq!(block("10/8", "10.2.0.0/16").unwrap_err().field, "cidr");
    }
}
