// SPDX-License-Identifier: Apache-2.0
//! Which class each address has: the exact map and the CIDRs, as they should be and as they are.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use wardline_bpf::abi::{self, Address, CidrKey, Peer, PeerKey};
use wardline_policy::tables::{Class, Tables};

use super::ids::Ids;
use super::map::{MapError, TypedMap};
use super::tables::Meanings;
use crate::index::Desired;

/// What an open flow may have to be judged again for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Moves {
    /// Between which some address moves.
    pub(super) classes: HashSet<(u32, u32)>,
    /// Some address became a node's, or is one's no longer.
    pub(super) nodes: bool,
}

/// Address and CIDR to class, under one generation of the peer maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Peers {
    pub(super) exact: HashMap<IpAddr, Peer>,
    pub(super) cidrs: HashMap<IpNet, Peer>,
}

impl Peers {
    /// What the tables ask for. Addresses of this node and of others are always there, marked as such.
    pub(super) fn wanted(desired: &Desired, meanings: &mut Meanings, ids: &mut Ids) -> Self {
        let tables = &desired.tables;
        // Addresses of one class share it. Its hash goes over all that its selectors say, which an ipBlock with
        // thousands of exceptions makes long: it is taken once a class, not once an address.
        let mut known = HashMap::new();
        let mut peer = |class: &Arc<Class>, flags| Peer {
            class: *known
                .entry(Arc::as_ptr(class))
                .or_insert_with(|| meanings.class(class, ids)),
            flags,
        };
        let mut exact: HashMap<IpAddr, Peer> = tables
            .peers
            .iter()
            .map(|(address, class)| (*address, peer(class, 0)))
            .collect();
        let cidrs = tables
            .cidrs
            .iter()
            .map(|(cidr, class)| (*cidr, peer(class, 0)))
            .collect();
        let lengths: BTreeSet<(bool, u8)> = tables.cidrs.keys().map(family_and_length).collect();
        let outside = Arc::new(Class::default());
        for address in desired.nodes.union(&desired.local) {
            let class = tables
                .peers
                .get(address)
                .or_else(|| longest(tables, &lengths, *address))
                .unwrap_or(&outside);
            let local = if desired.local.contains(address) {
                abi::PEER_LOCAL
            } else {
                0
            };
            exact.insert(*address, peer(class, local | abi::PEER_NODE));
        }
        Self { exact, cidrs }
    }

    pub(super) fn len(&self) -> usize {
        self.exact.len() + self.cidrs.len()
    }

    /// The classes that some address can have.
    pub(super) fn classes(&self) -> HashSet<u32> {
        self.exact
            .values()
            .chain(self.cidrs.values())
            .map(|peer| peer.class)
            .chain([0])
            .collect()
    }

    /// What moves on the way from `self` to `wanted`.
    pub(super) fn moves(&self, wanted: &Self) -> Moves {
        let mut classes = HashSet::new();
        let mut note = |old: u32, new: u32| {
            if old != new {
                classes.insert((old, new));
            }
        };
        for (address, new) in &wanted.exact {
            note(self.class_of(address), new.class);
        }
        for address in self.exact.keys().filter(|address| !wanted.exact.contains_key(address)) {
            note(self.class_of(address), wanted.class_of(address));
        }
        // An address that is only in CIDRs moves when the prefix that holds it changes, comes or goes.
        for (cidr, new) in &wanted.cidrs {
            note(self.class_of_prefix(cidr), new.class);
        }
        for cidr in self.cidrs.keys().filter(|cidr| !wanted.cidrs.contains_key(cidr)) {
            note(self.class_of_prefix(cidr), wanted.class_of_prefix(cidr));
        }
        Moves {
            classes,
            nodes: self.nodes() != wanted.nodes(),
        }
    }

    /// The addresses that are nodes', and whose.
    fn nodes(&self) -> HashMap<IpAddr, u32> {
        let flagged = self.exact.iter().filter(|(_, peer)| peer.flags != 0);
        flagged.map(|(address, peer)| (*address, peer.flags)).collect()
    }

    fn class_of(&self, address: &IpAddr) -> u32 {
        self.exact
            .get(address)
            .map_or_else(|| self.class_of_prefix(&IpNet::from(*address)), |peer| peer.class)
    }

    /// The class of the longest prefix that holds all of `cidr`.
    fn class_of_prefix(&self, cidr: &IpNet) -> u32 {
        (0..=cidr.prefix_len())
            .rev()
            .filter_map(|length| IpNet::new(cidr.addr(), length).ok())
            .find_map(|prefix| self.cidrs.get(&prefix.trunc()))
            .map_or(0, |peer| peer.class)
    }
}

/// The class of the longest prefix that holds the address; `lengths` are those that occur, so that thousands of nodes
/// beside thousands of prefixes do not make thousands of times thousands.
fn longest<'a>(tables: &'a Tables, lengths: &BTreeSet<(bool, u8)>, address: IpAddr) -> Option<&'a Arc<Class>> {
    let of_family = lengths.range((address.is_ipv4(), 0)..=(address.is_ipv4(), u8::MAX));
    of_family
        .rev()
        .filter_map(|(_, length)| IpNet::new(address, *length).ok())
        .find_map(|prefix| tables.cidrs.get(&prefix.trunc()))
}

fn family_and_length(cidr: &IpNet) -> (bool, u8) {
    (cidr.addr().is_ipv4(), cidr.prefix_len())
}

/// The two peer maps.
#[derive(Debug)]
pub(super) struct PeerMaps {
    pub(super) exact: TypedMap<PeerKey, Peer>,
    pub(super) cidrs: TypedMap<CidrKey, Peer>,
}

impl PeerMaps {
    /// Brings generation `id` from `old` to `new`.
    pub(super) fn update(&self, id: u32, old: &Peers, new: &Peers) -> Result<(), MapError> {
        for (address, peer) in &new.exact {
            if old.exact.get(address) != Some(peer) {
                self.exact.set(&peer_key(id, address), peer)?;
            }
        }
        for (cidr, peer) in &new.cidrs {
            if old.cidrs.get(cidr) != Some(peer) {
                self.cidrs.set(&cidr_key(id, cidr), peer)?;
            }
        }
        for address in old.exact.keys().filter(|address| !new.exact.contains_key(address)) {
            self.exact.delete(&peer_key(id, address))?;
        }
        for cidr in old.cidrs.keys().filter(|cidr| !new.cidrs.contains_key(cidr)) {
            self.cidrs.delete(&cidr_key(id, cidr))?;
        }
        Ok(())
    }

    /// Deletes what belongs to none of the generations `keep`.
    pub(super) fn sweep(&self, keep: &HashSet<u32>) -> Result<(), MapError> {
        for key in self.exact.keys().iter().filter(|key| !keep.contains(&key.peers)) {
            self.exact.delete(key)?;
        }
        for key in self.cidrs.keys().iter().filter(|key| !keep.contains(&key.peers)) {
            self.cidrs.delete(key)?;
        }
        Ok(())
    }
}

fn peer_key(peers: u32, address: &IpAddr) -> PeerKey {
    PeerKey {
        peers,
        address: Address::from(*address),
    }
}

fn cidr_key(peers: u32, cidr: &IpNet) -> CidrKey {
    // 32 bits of generation, and 96 of the mapping where the prefix is an IPv4 one.
    let mapped = if cidr.addr().is_ipv4() { 96 } else { 0 };
    CidrKey {
        prefixlen: 32 + mapped + u32::from(cidr.prefix_len()),
        peers,
        address: Address::from(cidr.network()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(exact: &[(&str, u32)], cidrs: &[(&str, u32)]) -> Peers {
        let peer = |class| Peer { class, flags: 0 };
        Peers {
            exact: exact.iter().map(|(a, c)| (a.parse().unwrap(), peer(*c))).collect(),
            cidrs: cidrs.iter().map(|(a, c)| (a.parse().unwrap(), peer(*c))).collect(),
        }
    }

    #[test]
    fn moves_are_seen_through_prefixes() {
        let table = [
            (
                "nothing",
                peers(&[("10.0.0.1", 1)], &[]),
                peers(&[("10.0.0.1", 1)], &[]),
                vec![],
            ),
            (
                "a new address",
                peers(&[], &[]),
                peers(&[("10.0.0.1", 1)], &[]),
                vec![(0, 1)],
            ),
            (
                "a new address inside a CIDR",
                peers(&[], &[("10.0.0.0/8", 4)]),
                peers(&[("10.0.0.1", 1)], &[("10.0.0.0/8", 4)]),
                vec![(4, 1)],
            ),
            (
                "an address that goes",
                peers(&[("10.0.0.1", 1)], &[("10.0.0.0/8", 4)]),
                peers(&[], &[("10.0.0.0/8", 4)]),
                vec![(1, 4)],
            ),
            (
                "a narrower CIDR",
                peers(&[], &[("10.0.0.0/8", 4)]),
                peers(&[], &[("10.0.0.0/8", 4), ("10.1.0.0/16", 5)]),
                vec![(4, 5)],
            ),
            (
                "a CIDR that goes",
                peers(&[], &[("::/0", 4)]),
                peers(&[], &[]),
                vec![(4, 0)],
            ),
        ];
        for (what, old, new, expected) in table {
            let classes = expected.into_iter().collect();
            assert_eq!(old.moves(&new), Moves { classes, nodes: false }, "{what}");
        }
    }

    #[test]
    fn an_address_that_a_node_gets_or_loses_moves_too() {
        let ordinary = peers(&[("10.0.0.1", 1)], &[]);
        let mut nodes = ordinary.clone();
        nodes.exact.values_mut().for_each(|peer| peer.flags = abi::PEER_LOCAL);
        for (old, new) in [(&ordinary, &nodes), (&nodes, &ordinary), (&nodes, &peers(&[], &[]))] {
            assert!(old.moves(new).nodes, "{old:?} {new:?}");
        }
    }
}
