// SPDX-License-Identifier: Apache-2.0
//! What the kernel's tables mean, read back from the kernel: without ids, so that two of them can be compared.

use std::collections::BTreeMap;

use libbpf_rs::{MapCore, MapFlags};
use wardline_bpf::PolicyWord;
use wardline_bpf::abi::{self, CidrKey, Endpoint, Peer, PeerKey, RangeKey, Rule, RuleKey};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::support::Life;
use crate::world::World;

/// By pod and direction (0: ingress).
pub type Meaning = BTreeMap<(String, u32), Option<SlotMeaning>>;

/// What one slot's word names; where no policy isolates, there is none.
#[derive(Debug, PartialEq, Eq)]
pub struct SlotMeaning {
    isolated_by: String,
    asks_cidrs: bool,
    /// By prefix and address, exact ones with a prefix of 128 and the LPM's with theirs; class 0 under None.
    peers: BTreeMap<Option<(bool, u32, [u32; 4])>, PeerMeaning>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct PeerMeaning {
    is_local: bool,
    /// By protocol, port and the bits of it that count; the flags and who is named.
    rules: BTreeMap<(u8, u16, u32), (u32, String)>,
}

struct Maps {
    peers: Vec<(PeerKey, Peer)>,
    cidrs: Vec<(CidrKey, Peer)>,
    rules: Vec<(RuleKey, Rule)>,
    ranges: Vec<(RangeKey, Rule)>,
}

pub fn meaning(world: &World<'_>) -> Meaning {
    let life = &world.life;
    let maps = Maps {
        peers: entries(life, "peers"),
        cidrs: entries(life, "cidrs"),
        rules: entries(life, "rules"),
        ranges: entries(life, "ranges"),
    };
    let endpoints: Vec<(u32, Endpoint)> = entries(life, "endpoints");
    let words = life.map("policy_words");
    let mut meaning = Meaning::new();
    for (_, endpoint) in endpoints {
        let pod = life.names.endpoint(endpoint.uid).unwrap().name.pod.to_string();
        for direction in [0, 1] {
            let slot = endpoint.slot + direction;
            let word = words.lookup(slot.as_bytes(), MapFlags::ANY).unwrap().unwrap();
            let word = PolicyWord::unpack(u64::read_from_bytes(&word).unwrap());
            let slot = (word.table != 0).then(|| slot_meaning(life, &maps, word));
            meaning.insert((pod.clone(), direction), slot);
        }
    }
    meaning
}

fn slot_meaning(life: &Life, maps: &Maps, word: PolicyWord) -> SlotMeaning {
    let peer = |peer: Peer| PeerMeaning {
        is_local: peer.flags & abi::PEER_LOCAL != 0,
        rules: rules(life, maps, word.table, peer.class),
    };
    let mut peers = BTreeMap::from([(None, peer(Peer { class: 0, flags: 0 }))]);
    for (key, value) in maps.peers.iter().filter(|(key, _)| key.peers == word.peers) {
        peers.insert(Some((true, 128, key.address.word)), peer(*value));
    }
    for (key, value) in maps
        .cidrs
        .iter()
        .filter(|(key, _)| key.peers == word.peers && word.cidrs)
    {
        peers.insert(Some((false, key.prefixlen - 32, key.address.word)), peer(*value));
    }
    SlotMeaning {
        isolated_by: format!("{:?}", life.names.table(word.table).unwrap().isolated_by),
        asks_cidrs: word.cidrs,
        peers,
    }
}

fn rules(life: &Life, maps: &Maps, table: u32, class: u32) -> BTreeMap<(u8, u16, u32), (u32, String)> {
    let value = |rule: &Rule| {
        let by = life.names.attribution(rule.attribution);
        (rule.flags, by.map(|by| format!("{by:?}")).unwrap_or_default())
    };
    let exact = maps
        .rules
        .iter()
        .filter(|(key, _)| key.table == table && key.class == class);
    let exact = exact.map(|(key, rule)| {
        let bits = if key.port == 0 { 0 } else { 16 };
        ((key.protocol, key.port, bits), value(rule))
    });
    let ranges = maps
        .ranges
        .iter()
        .filter(|(key, _)| key.table == table && key.class == class);
    let ranges = ranges.map(|(key, rule)| ((key.protocol, key.port, key.prefixlen - 80), value(rule)));
    exact.chain(ranges).collect()
}

fn entries<K: FromBytes + Immutable, V: FromBytes + IntoBytes>(life: &Life, name: &str) -> Vec<(K, V)> {
    let map = life.map(name);
    map.keys()
        .map(|key| {
            let value = map.lookup(&key, MapFlags::ANY).unwrap().unwrap();
            (K::read_from_bytes(&key).unwrap(), V::read_from_bytes(&value).unwrap())
        })
        .collect()
}
