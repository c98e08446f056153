// SPDX-License-Identifier: Apache-2.0
//! Flows to a Service have two entries that lead to each other, as bpf/include/abi.h describes: they go together.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use wardline_bpf::abi::{self, ConntrackEntry, ConntrackKey};

use super::map::{MapError, TypedMap};

pub(super) type Connections = TypedMap<ConntrackKey, ConntrackEntry>;

/// IANA's numbers.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// How a flow goes: to a Service's address and port, and on to a backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    pub front: SocketAddr,
    pub backend: SocketAddr,
}

pub(super) fn is_alias(entry: &ConntrackEntry) -> bool {
    has(entry, abi::CONNTRACK_ALIAS)
}

pub(super) fn is_translated(entry: &ConntrackEntry) -> bool {
    has(entry, abi::CONNTRACK_TRANSLATED)
}

pub(super) fn is_hairpin(entry: &ConntrackEntry) -> bool {
    has(entry, abi::CONNTRACK_HAIRPIN)
}

fn has(entry: &ConntrackEntry, flag: u32) -> bool {
    u32::from(entry.flags) & flag != 0
}

pub(super) fn at(address: abi::Address, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(address), u16::from_be(port))
}

/// The alias of a translated flow's entry.
pub(super) fn alias_of(key: &ConntrackKey, entry: &ConntrackEntry) -> ConntrackKey {
    let pod_port = if is_hairpin(entry) {
        key.remote_port
    } else {
        key.pod_port
    };
    ConntrackKey {
        remote: entry.nat,
        pod_port,
        remote_port: entry.nat_port,
        ..*key
    }
}

/// The entry that an alias leads to.
pub(super) fn entry_of(key: &ConntrackKey, alias: &ConntrackEntry) -> ConntrackKey {
    if is_hairpin(alias) {
        ConntrackKey {
            pod_port: alias.nat_port,
            remote_port: key.pod_port,
            ..*key
        }
    } else {
        ConntrackKey {
            remote: alias.nat,
            remote_port: alias.nat_port,
            ..*key
        }
    }
}

pub(super) fn way(key: &ConntrackKey, entry: &ConntrackEntry) -> Way {
    let backend = if is_hairpin(entry) {
        at(key.pod, key.pod_port)
    } else {
        at(key.remote, key.remote_port)
    };
    Way {
        front: at(entry.nat, entry.nat_port),
        backend,
    }
}

/// Takes away an entry and its alias; the alias first, so that no packet follows it any more.
pub(super) fn delete(map: &Connections, key: &ConntrackKey, entry: &ConntrackEntry) -> Result<(), MapError> {
    map.delete(&alias_of(key, entry))?;
    map.delete(key)
}

/// Do the two, as they are now, lead to each other?
pub(super) fn is_paired(map: &Connections, key: &ConntrackKey, entry: &ConntrackEntry) -> Result<bool, MapError> {
    if is_alias(entry) {
        let target = map.get(&entry_of(key, entry))?;
        return Ok(target.is_some_and(|found| is_translated(&found) && alias_of(&entry_of(key, entry), &found) == *key));
    }
    let alias = map.get(&alias_of(key, entry))?;
    Ok(alias.is_some_and(|found| is_alias(&found) && entry_of(&alias_of(key, entry), &found) == *key))
}

/// The ways that UDP flows go.
pub(super) fn datagram_ways(map: &Connections) -> Result<HashSet<Way>, MapError> {
    let mut ways = HashSet::new();
    map.for_each(|key, entry| {
        if key.protocol == UDP && is_translated(&entry) {
            ways.insert(way(&key, &entry));
        }
    })?;
    Ok(ways)
}

/// Ends UDP flows, so that their next packets are given a backend: unlike those of TCP they never end by themselves.
/// Those that go one of these ways; call it when no packet can still choose one of the backends. And those that went to
/// one of these fronts before it was there, and that nobody answered: what was answered has a backend of kube-proxy's.
pub(super) fn purge_datagrams(
    map: &Connections,
    ways: &HashSet<Way>,
    fronts: &HashSet<SocketAddr>,
) -> Result<(), MapError> {
    let (mut gone, mut ahead) = (Vec::new(), Vec::new());
    if ways.is_empty() && fronts.is_empty() {
        return Ok(());
    }
    map.for_each(|key, entry| {
        if key.protocol != UDP || is_alias(&entry) {
            return;
        }
        if is_translated(&entry) {
            if ways.contains(&way(&key, &entry)) {
                gone.push((key, entry));
            }
        } else if is_unanswered(&entry) && fronts.contains(&at(key.remote, key.remote_port)) {
            ahead.push(key);
        }
    })?;
    gone.iter().try_for_each(|(key, entry)| delete(map, key, entry))?;
    ahead.iter().try_for_each(|key| map.delete(key))
}

fn is_unanswered(entry: &ConntrackEntry) -> bool {
    entry.state == u8::from(abi::ConntrackState::Opening)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(remote: &str, pod_port: u16, remote_port: u16) -> ConntrackKey {
        let address = |text: &str| abi::Address::from(text.parse::<IpAddr>().unwrap());
        ConntrackKey {
            endpoint: 7,
            pod: address("10.0.0.10"),
            remote: address(remote),
            pod_port: pod_port.to_be(),
            remote_port: remote_port.to_be(),
            protocol: UDP,
            pad: [0; 3],
        }
    }

    fn entry(flags: u32, nat: &str) -> ConntrackEntry {
        let nat: SocketAddr = nat.parse().unwrap();
        ConntrackEntry {
            flags: u8::try_from(flags).unwrap(),
            nat: nat.ip().into(),
            nat_port: nat.port().to_be(),
            ..ConntrackEntry::default()
        }
    }

    #[test]
    fn alias_and_entry_lead_to_each_other() {
        for (alias_key, alias, entry_key, target) in [
            (
                key("10.96.0.1", 4000, 80),
                entry(abi::CONNTRACK_ALIAS, "10.0.0.20:8080"),
                key("10.0.0.20", 4000, 8080),
                entry(abi::CONNTRACK_TRANSLATED, "10.96.0.1:80"),
            ),
            (
                key("10.96.0.1", 4000, 80),
                entry(abi::CONNTRACK_ALIAS | abi::CONNTRACK_HAIRPIN, "10.0.0.10:8080"),
                key("10.96.0.1", 8080, 4000),
                entry(abi::CONNTRACK_TRANSLATED | abi::CONNTRACK_HAIRPIN, "10.96.0.1:80"),
            ),
        ] {
            assert_eq!(entry_of(&alias_key, &alias), entry_key);
            assert_eq!(alias_of(&entry_key, &target), alias_key);
            let way = way(&entry_key, &target);
            assert_eq!(way.front, "10.96.0.1:80".parse().unwrap());
            assert_eq!(way.backend, at(alias.nat, alias.nat_port));
        }
    }
}
