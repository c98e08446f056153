// SPDX-License-Identifier: Apache-2.0
//! What the kernel's tables mean, read back from the kernel, and what tables mean that are compiled from nothing: without
//! ids, so that the two can be compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use libbpf_rs::{MapCore, MapFlags};
use wardline_bpf::PolicyWord;
use wardline_bpf::abi::{self, Address, CidrKey, Endpoint, Peer, PeerKey, RangeKey, Rule, RuleKey};
use wardline_policy::compile::compile;
use wardline_policy::lookup::class_of;
use wardline_policy::model::{self, Direction, Policy};
use wardline_policy::oracle::generate::{NODE, node_addresses};
use wardline_policy::tables::{Attribution, Class, PolicyRef, PortKey, ProtocolKey, TableKey, Tables};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::support::Life;
use crate::world::World;

/// By pod and direction (0: ingress); where no policy isolates, there is none.
pub type Meaning = BTreeMap<(String, u32), Option<SlotMeaning>>;

/// What one slot's word names.
#[derive(Debug, PartialEq, Eq)]
pub struct SlotMeaning {
    isolated_by: Vec<PolicyRef>,
    asks_cidrs: bool,
    /// By prefix and address, exact ones with a prefix of 128 and the LPM's with theirs; class 0 under None.
    peers: BTreeMap<Option<(bool, u32, [u32; 4])>, PeerMeaning>,
}

#[derive(Debug, PartialEq, Eq)]
struct PeerMeaning {
    flags: u32,
    rules: Rc<Rules>,
}

/// By protocol, port as packets have it, and the bits of it that count; the flags and who is named.
type Rules = BTreeMap<(u8, u16, u32), (u32, Option<Arc<Attribution>>)>;

/// Where the two differ, one slot of them; None where they mean the same.
pub fn difference(world: &World<'_>) -> Option<String> {
    let (found, wanted) = (found(world), wanted(world));
    let slots: BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
    let slot = slots.into_iter().find(|slot| found.get(slot) != wanted.get(slot))?;
    let (found, wanted) = (found.get(slot), wanted.get(slot));
    Some(format!("{slot:?} means {found:#?}, and from nothing {wanted:#?}"))
}

struct Maps {
    peers: Vec<(PeerKey, Peer)>,
    cidrs: Vec<(CidrKey, Peer)>,
    /// By table and class.
    rules: HashMap<(u32, u32), Rc<Rules>>,
}

fn found(world: &World<'_>) -> Meaning {
    let life = &world.life;
    let maps = Maps {
        peers: entries(life, "peers"),
        cidrs: entries(life, "cidrs"),
        rules: rules(life),
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
        flags: peer.flags,
        rules: maps.rules.get(&(word.table, peer.class)).cloned().unwrap_or_default(),
    };
    let mut peers = BTreeMap::from([(None, peer(Peer { class: 0, flags: 0 }))]);
    for (key, value) in maps.peers.iter().filter(|(key, _)| key.peers == word.peers) {
        peers.insert(Some((true, 128, key.address.word)), peer(*value));
    }
    let cidrs = maps.cidrs.iter().filter(|(key, _)| key.peers == word.peers);
    for (key, value) in cidrs.filter(|_| word.cidrs) {
        peers.insert(Some((false, key.prefixlen - 32, key.address.word)), peer(*value));
    }
    SlotMeaning {
        isolated_by: life.names.table(word.table).unwrap().isolated_by.clone(),
        asks_cidrs: word.cidrs,
        peers,
    }
}

fn rules(life: &Life) -> HashMap<(u32, u32), Rc<Rules>> {
    let mut all: HashMap<(u32, u32), Rules> = HashMap::new();
    let value = |rule: Rule| (rule.flags, life.names.attribution(rule.attribution));
    for (key, rule) in entries::<RuleKey, Rule>(life, "rules") {
        let bits = if key.port == 0 { 0 } else { 16 };
        let rules = all.entry((key.table, key.class)).or_default();
        rules.insert((key.protocol, key.port, bits), value(rule));
    }
    for (key, rule) in entries::<RangeKey, Rule>(life, "ranges") {
        let rules = all.entry((key.table, key.class)).or_default();
        rules.insert((key.protocol, key.port, key.prefixlen - 80), value(rule));
    }
    all.into_iter().map(|(key, rules)| (key, Rc::new(rules))).collect()
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

/// From the cluster's objects alone.
fn wanted(world: &World<'_>) -> Meaning {
    let tables = compile(&world.cluster.objects().unwrap(), NODE);
    let nodes = node_flags(world);
    let mut meaning = Meaning::new();
    for pod in world.guarded() {
        let (namespace, name) = pod.split_once('/').unwrap();
        let endpoint = tables.endpoints.get(&model::ObjectName::new(namespace, name));
        for (number, direction) in [(0, Direction::Ingress), (1, Direction::Egress)] {
            let key = endpoint.and_then(|endpoint| endpoint.table(direction));
            let slot = key.map(|key| wanted_slot(&tables, &nodes, key));
            meaning.insert((pod.clone(), number), slot);
        }
    }
    meaning
}

/// The addresses of nodes, and what is marked at them.
fn node_flags(world: &World<'_>) -> BTreeMap<IpAddr, u32> {
    let mut flags = BTreeMap::new();
    for node in &world.cluster.nodes {
        let is_this = node.metadata.name.as_deref() == Some(NODE);
        let local = if is_this { abi::PEER_LOCAL } else { 0 };
        for address in node_addresses(node) {
            *flags.entry(address).or_default() |= local | abi::PEER_NODE;
        }
    }
    flags
}

fn wanted_slot(tables: &Tables, nodes: &BTreeMap<IpAddr, u32>, key: &TableKey) -> SlotMeaning {
    let by_class: HashMap<&Class, Rc<Rules>> = tables.tables[key]
        .rules
        .iter()
        .map(|(class, rules)| (&**class, Rc::new(wanted_rules(rules))))
        .collect();
    let peer = |class: &Class, flags: u32| PeerMeaning {
        flags,
        rules: by_class.get(class).cloned().unwrap_or_default(),
    };
    let asks_cidrs = key.policies.iter().any(|policy| has_block(policy, key.direction));
    let mut peers = BTreeMap::from([(None, peer(&Class::default(), 0))]);
    for address in tables.peers.keys().chain(nodes.keys()) {
        let flags = nodes.get(address).copied().unwrap_or_default();
        let word = Address::from(*address).word;
        peers.insert(Some((true, 128, word)), peer(&class_of(tables, *address), flags));
    }
    for (cidr, class) in tables.cidrs.iter().filter(|_| asks_cidrs) {
        let mapped = if cidr.addr().is_ipv4() { 96 } else { 0 };
        let length = mapped + u32::from(cidr.prefix_len());
        let word = Address::from(cidr.network()).word;
        peers.insert(Some((false, length, word)), peer(class, 0));
    }
    SlotMeaning {
        isolated_by: key.policies.iter().map(|policy| PolicyRef::from(&**policy)).collect(),
        asks_cidrs,
        peers,
    }
}

fn wanted_rules(rules: &BTreeMap<wardline_policy::tables::RuleKey, Arc<Attribution>>) -> Rules {
    let mut wanted = Rules::new();
    for (key, attribution) in rules {
        let protocol = match key.protocol {
            ProtocolKey::Ported(protocol) => protocol.number(),
            ProtocolKey::Other => 0,
        };
        let is_logged = attribution.policies.iter().any(|policy| policy.log);
        let flags = abi::RULE_ALLOW | if is_logged { abi::RULE_LOG } else { 0 };
        let any = (protocol, 0, 0);
        let (port, asks_ranges) = match key.ports {
            PortKey::Any => (any, false),
            PortKey::Exact(port) => ((protocol, port.to_be(), 16), false),
            PortKey::Prefix { first, length } => ((protocol, first.to_be(), length.into()), true),
        };
        let rule = wanted.entry(port).or_default();
        *rule = (rule.0 | flags, Some(Arc::clone(attribution)));
        if asks_ranges {
            wanted.entry(any).or_default().0 |= abi::RULE_RANGES;
        }
    }
    wanted
}

fn has_block(policy: &Policy, direction: Direction) -> bool {
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    let mut peers = rules.iter().flatten().flat_map(|rule| rule.peers.iter().flatten());
    peers.any(|peer| matches!(peer, model::Peer::Block(_)))
}
