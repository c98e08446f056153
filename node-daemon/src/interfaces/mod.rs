// SPDX-License-Identifier: Apache-2.0
//! The host-side interfaces of the node's pods, found by rtnetlink alone.
//!
//! ```text
//! dump links      -> veth {ifindex, peer's ifindex, id of the peer's namespace}
//! dump addresses  -> of that namespace (IFA_TARGET_NETNSID), on the peer's ifindex
//! ```
//!
//! It needs no runtime socket, no `setns` and nothing mounted, and works the same for every plugin that makes veth
//! pairs: docs/decisions/0003-finding-pod-interfaces.md.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::Netlink;

/// What a scan of the node found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// By ifindex: the veths whose other end is in another namespace.
    pub veths: BTreeMap<u32, Veth>,
    /// The node's own addresses, on whatever interface.
    pub local: BTreeSet<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    pub name: String,
    /// Of the other end, link-local ones left out. A pod that may change its addresses can have any here.
    pub addresses: BTreeSet<IpAddr>,
}

impl Veth {
    pub fn has_all(&self, addresses: &[IpAddr]) -> bool {
        addresses.iter().all(|address| self.addresses.contains(address))
    }
}

/// Reads the interfaces of the namespace that the process is in.
pub fn scan() -> io::Result<Interfaces> {
    let mut netlink = Netlink::open()?;
    let links = links(&mut netlink)?;
    let ends: Vec<VethEnd> = links.iter().filter_map(veth_end).collect();
    let ipvs = links
        .iter()
        .find(|link| is_named(link, IPVS))
        .map(|link| link.header.index);
    let own = addresses(&mut netlink, None)?;
    let local = own
        .into_iter()
        .filter(|(index, _)| Some(*index) != ipvs)
        .map(|(_, address)| address)
        .collect();

    let mut by_namespace = BTreeMap::new();
    for namespace in ends.iter().map(|end| end.namespace).collect::<BTreeSet<_>>() {
        // A namespace that went away since the links were read has no addresses any more.
        by_namespace.insert(namespace, addresses(&mut netlink, Some(namespace)).unwrap_or_default());
    }
    let veths = ends
        .into_iter()
        .map(|end| {
            let addresses = by_namespace[&end.namespace]
                .iter()
                .filter(|(index, address)| *index == end.peer && !is_link_local(address))
                .map(|(_, address)| *address)
                .collect();
            (
                end.index,
                Veth {
                    name: end.name,
                    addresses,
                },
            )
        })
        .collect();
    Ok(Interfaces { veths, local })
}

/// The interface that has this name now.
pub fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// Calls `changed` after each notification about links or addresses, until it returns false. Missed ones count as one:
/// the scan that follows finds what they were about.
pub fn follow(mut changed: impl FnMut() -> bool) -> io::Result<()> {
    let groups = [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR];
    let netlink = Netlink::subscribe(&groups)?;
    while changed() {
        netlink.wait()?;
    }
    Ok(())
}

struct VethEnd {
    index: u32,
    name: String,
    peer: u32,
    namespace: i32,
}

/// kube-proxy's, in IPVS mode: it holds every Service address, and none of them is the node.
const IPVS: &str = "kube-ipvs0";

fn links(netlink: &mut Netlink) -> io::Result<Vec<LinkMessage>> {
    let answers = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let link = |answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    };
    Ok(answers.into_iter().filter_map(link).collect())
}

fn is_named(link: &LinkMessage, name: &str) -> bool {
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfName(found) if found == name))
}

/// None for what is no veth, or whose other end is in the same namespace.
fn veth_end(link: &LinkMessage) -> Option<VethEnd> {
    let (mut name, mut peer, mut namespace, mut is_veth) = (None, None, None, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Link(value) => peer = Some(*value),
            LinkAttribute::LinkNetNsId(value) => namespace = Some(*value),
            LinkAttribute::LinkInfo(infos) => {
                is_veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    let end = VethEnd {
        index: link.header.index,
        name: name?,
        peer: peer?,
        namespace: namespace?,
    };
    is_veth.then_some(end)
}

/// Interface and address of a whole namespace; None is the process's own.
fn addresses(netlink: &mut Netlink, namespace: Option<i32>) -> io::Result<Vec<(u32, IpAddr)>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = AddressMessage::default();
        request.header.family = family;
        request
            .attributes
            .extend(namespace.map(AddressAttribute::TargetNetNsId));
        for answer in netlink.dump(RouteNetlinkMessage::GetAddress(request))? {
            if let RouteNetlinkMessage::NewAddress(address) = answer {
                found.extend(own_address(&address).map(|ip| (address.header.index, ip)));
            }
        }
    }
    Ok(found)
}

/// On a point-to-point interface `IFA_ADDRESS` is the other side's, `IFA_LOCAL` the own one.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_local() {
        // Reading needs no privilege, so this much runs anywhere; the pods' side is tested with root.
        let interfaces = scan().unwrap();
        assert!(
            interfaces.local.contains(&"127.0.0.1".parse().unwrap()),
            "{interfaces:?}"
        );
    }
}
