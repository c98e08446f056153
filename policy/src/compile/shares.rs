// SPDX-License-Identifier: Apache-2.0
//! Whether a node's tables have room for what its policies ask for, and whose policies give way where they have not.
//!
//! ```text
//! blocks, matches, rules of one namespace, as if alone > its share   --> that namespace
//! blocks, rules of all                                 > the table   --> the namespace that takes most
//! ```
//!
//! A namespace is measured alone, so that nobody's policies take another over its share. Rules are only counted where a
//! bound on them leaves it open, and nothing is written out before it is known to fit: what a policy comes to can be
//! millions of times its size. An entry names all rules that allow its ports, so one that names very many counts for
//! more than one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::cidrs::Cidrs;
use super::classes::Classes;
use super::endpoints::{Endpoints, Isolation, NamedPorts};
use super::pods::PodIndex;
use super::ports::most_prefixes;
use super::rules;
use super::selectors::Selectors;
use crate::model::{Direction, IpBlock, Peer, Policy, Port, Protocol, Rule};
use crate::tables::PeerSelector;

/// A namespace may take one of so many shares of a table.
pub const SHARES: usize = 4;

/// A bound so many times above what there is room for is not counted out: that would take too long.
const WORTH_COUNTING: usize = 32;

/// Rules that an entry names; where there are more on average, those count.
const NAMED: usize = 16;

/// Entries that a node's tables have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Compiled rules, `limits.rules`.
    pub rules: usize,
    /// Addresses and blocks, `limits.peers`.
    pub peers: usize,
    /// Of `peers`, taken by nodes' addresses.
    pub nodes: usize,
}

/// A namespace whose policies have to give way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    pub namespace: Arc<str>,
    /// The field of a Dataplane's spec, and its value.
    pub limit: &'static str,
    pub size: usize,
    /// About how many entries are asked for: by the namespace, or where that is within its share, by all.
    pub needed: usize,
    /// About how many of them go where the namespace's policies give way.
    pub held: usize,
    pub is_share: bool,
}

impl Over {
    /// How many of those that are needed there is no room for.
    pub fn excess(&self) -> usize {
        let room = if self.is_share { share_of(self.size) } else { self.size };
        self.needed.saturating_sub(room)
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            limit,
            size,
            needed,
            is_share,
            ..
        } = self;
        if *is_share {
            let share = share_of(*size);
            write!(
                f,
                "{limit} is {size}, a namespace may take {share} of it, and the policies of {namespace} need about {needed}"
            )
        } else {
            write!(
                f,
                "{limit} is {size}, and {needed} entries are needed, most of them by namespace {namespace}"
            )
        }
    }
}

fn share_of(size: usize) -> usize {
    (size / SHARES).max(1)
}

/// Looks at the blocks alone, before anything is made of them.
pub(super) fn check_blocks(endpoints: &Endpoints<'_>, selectors: &Selectors<'_>, peers: usize) -> Result<(), Over> {
    let all = selectors.all.iter().filter_map(|selector| block(&selector.peer));
    let all: usize = all.map(|block| 1 + block.except.len()).sum();
    // So few that they can neither be too many nor lie too deep within one another.
    if all <= share_of(peers) && all * all / 4 <= WORTH_COUNTING * peers {
        return Ok(());
    }
    let mut blocks: BTreeMap<&Arc<str>, BTreeSet<&IpBlock>> = BTreeMap::new();
    for isolation in &endpoints.tables {
        let rules = isolation.rules().flatten();
        let peers = rules.flat_map(|rule| rule.peers.iter().flatten());
        let blocks = blocks.entry(namespace_of(isolation)).or_default();
        blocks.extend(peers.filter_map(block));
    }
    let needed = |(namespace, blocks)| {
        let Prefixes { prefixes, held } = Prefixes::of(&blocks);
        let needed = if held > WORTH_COUNTING * peers { held } else { prefixes };
        (needed, namespace)
    };
    let largest = blocks.into_iter().map(needed).max();
    match largest.filter(|(needed, _)| *needed > share_of(peers)) {
        None => Ok(()),
        Some((needed, namespace)) => Err(Over {
            namespace: Arc::clone(namespace),
            limit: "limits.peers",
            size: peers,
            needed,
            held: needed,
            is_share: true,
        }),
    }
}

fn block(peer: &Peer) -> Option<&IpBlock> {
    match peer {
        Peer::Block(block) => Some(block),
        Peer::Pods { .. } => None,
    }
}

/// What blocks come to.
struct Prefixes {
    prefixes: usize,
    /// Each with all the blocks around it.
    held: usize,
}

impl Prefixes {
    fn of(blocks: &BTreeSet<&IpBlock>) -> Self {
        let edges = blocks.iter().flat_map(|block| block.except.iter().chain([&block.cidr]));
        let nets: BTreeSet<&IpNet> = edges.collect();
        // What a net contains follows it.
        let nets: Vec<&IpNet> = nets.into_iter().collect();
        let within = |block: &&IpBlock| {
            let first = nets.partition_point(|net| **net < block.cidr);
            let end = nets.partition_point(|net| net.network() <= block.cidr.broadcast());
            end.saturating_sub(first)
        };
        Self {
            held: blocks.iter().map(within).sum(),
            prefixes: nets.len(),
        }
    }
}

/// Looks at how often selectors match pods: each time is remembered while classes are made, so it is memory that is
/// bounded here, and not entries.
pub(super) fn check_matches(
    pods: &PodIndex<'_>,
    endpoints: &Endpoints<'_>,
    selectors: &Selectors<'_>,
    peers: usize,
) -> Result<(), Over> {
    let share = WORTH_COUNTING * share_of(peers);
    let of_pods = |selector: &&Arc<PeerSelector>| block(&selector.peer).is_none();
    if selectors.all.iter().filter(of_pods).count() * pods.pods.len() <= share {
        return Ok(());
    }
    let matches: Vec<usize> = selectors
        .all
        .iter()
        .map(|selector| pods.selected(selector).len())
        .collect();
    let mut asked: BTreeMap<&Arc<str>, BTreeSet<usize>> = BTreeMap::new();
    for isolation in &endpoints.tables {
        let asked = asked.entry(namespace_of(isolation)).or_default();
        for_each_rule(isolation, selectors, |_, peers| {
            asked.extend(peers.into_iter().flatten());
        });
    }
    let held = |(namespace, asked): (_, BTreeSet<usize>)| {
        let matches: usize = asked.into_iter().map(|selector| matches[selector]).sum();
        (matches.div_ceil(WORTH_COUNTING), namespace)
    };
    let held: Vec<(usize, &Arc<str>)> = asked.into_iter().map(held).collect();
    let all: usize = held.iter().map(|(held, _)| held).sum();
    let Some((most, namespace)) = held.into_iter().max() else {
        return Ok(());
    };
    let is_share = most > share_of(peers);
    if !is_share && all <= peers {
        return Ok(());
    }
    Err(Over {
        namespace: Arc::clone(namespace),
        limit: "limits.peers",
        size: peers,
        needed: if is_share { most } else { all },
        held: most,
        is_share,
    })
}

/// Looks at blocks and addresses together. Blocks give way; where addresses alone are too many, that is not for them to
/// mend.
pub(super) fn check_peers(endpoints: &Endpoints<'_>, classes: &Classes, room: Room) -> Result<(), Over> {
    let addresses = classes.peers.len() + room.nodes;
    let needed = addresses + classes.cidrs.len();
    if needed <= room.peers || addresses > room.peers {
        return Ok(());
    }
    let mut taken: BTreeMap<&Arc<str>, BTreeSet<&IpNet>> = BTreeMap::new();
    for isolation in &endpoints.tables {
        let peers = isolation.rules().flatten().flat_map(|rule| rule.peers.iter().flatten());
        let nets = peers
            .filter_map(block)
            .flat_map(|block| block.except.iter().chain([&block.cidr]));
        taken.entry(namespace_of(isolation)).or_default().extend(nets);
    }
    let largest = taken.into_iter().max_by_key(|(_, nets)| nets.len());
    largest.map_or(Ok(()), |(namespace, nets)| {
        Err(Over {
            namespace: Arc::clone(namespace),
            limit: "limits.peers",
            size: room.peers,
            needed,
            held: nets.len(),
            is_share: false,
        })
    })
}

/// Looks at the rules that would be written out.
pub(super) fn check_rules(
    pods: &PodIndex<'_>,
    endpoints: &Endpoints<'_>,
    selectors: &Selectors<'_>,
    classes: &Classes,
    rules: usize,
) -> Result<(), Over> {
    let mut bounds: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
    for isolation in &endpoints.tables {
        *bounds.entry(namespace_of(isolation)).or_default() += bound(isolation, selectors, classes) * weight(isolation);
    }
    let over = |namespace: &Arc<str>, needed, held: usize, is_share| Over {
        namespace: Arc::clone(namespace),
        limit: "limits.rules",
        size: rules,
        needed,
        held: held.min(needed),
        is_share,
    };
    let share = share_of(rules);
    let mut largest = None;
    for (namespace, _) in bounds.iter().filter(|(_, bound)| **bound > share) {
        let alone = endpoints.of_namespace(namespace);
        let selectors = Selectors::of(&alone);
        let classes = Classes::new(pods, &selectors, &Cidrs::new(&selectors));
        let needed = needed(&alone, &selectors, &classes, share);
        if needed > share {
            largest = largest.max(Some((needed, *namespace)));
        }
    }
    if let Some((needed, namespace)) = largest {
        return Err(over(namespace, needed, needed, true));
    }
    if bounds.values().sum::<usize>() <= rules {
        return Ok(());
    }
    let needed = needed(endpoints, selectors, classes, rules);
    if needed <= rules {
        return Ok(());
    }
    match who_takes_most(&bounds, endpoints, selectors, classes) {
        Some((namespace, held)) => Err(over(namespace, needed, held, false)),
        None => Ok(()),
    }
}

/// Rules of all tables, or what bounds them where that is far above the room for them.
fn needed(endpoints: &Endpoints<'_>, selectors: &Selectors<'_>, classes: &Classes, room: usize) -> usize {
    let tables = &endpoints.tables;
    let bound = tables.iter().map(|table| bound(table, selectors, classes)).sum();
    if bound > WORTH_COUNTING * room {
        return bound;
    }
    let named: usize = tables.iter().map(|table| named(table, selectors, classes)).sum();
    if named.div_ceil(NAMED) > room {
        return named.div_ceil(NAMED);
    }
    tables.iter().map(|table| rules::count(table, selectors, classes)).sum()
}

/// No fewer entries than a table has: rules that say the same are counted each.
fn bound(isolation: &Isolation<'_>, selectors: &Selectors<'_>, classes: &Classes) -> usize {
    let meanings = Meanings::of(isolation, classes);
    let mut bound = 0;
    for_each_rule(isolation, selectors, |rule, peers| {
        let peers = match peers {
            None => classes.all.len(),
            Some(peers) => peers.iter().map(|&peer| classes.with[peer].len()).sum(),
        };
        bound += peers * ports(rule, &meanings);
    });
    bound
}

/// For how many entries each of a table counts at most, for what it names.
fn weight(isolation: &Isolation<'_>) -> usize {
    let rules: usize = isolation.rules().map(<[Rule]>::len).sum();
    rules.div_ceil(NAMED).max(1)
}

/// No fewer rules than a table's entries name; what classes have in common is written once.
fn named(isolation: &Isolation<'_>, selectors: &Selectors<'_>, classes: &Classes) -> usize {
    if weight(isolation) == 1 {
        return 0;
    }
    let meanings = Meanings::of(isolation, classes);
    let mut entries = Vec::new();
    for_each_rule(isolation, selectors, |rule, _| entries.push(ports(rule, &meanings)));
    let sets = rules::matched(isolation, selectors, classes);
    let named = |rules: &Vec<usize>| rules.len() * rules.iter().map(|&rule| entries[rule]).sum::<usize>();
    sets.iter().map(named).sum()
}

/// Entries for one class, at most.
fn ports(rule: &Rule, meanings: &Meanings<'_>) -> usize {
    // Each protocol, and those without ports.
    const EVERY: usize = 4;
    let Some(ports) = &rule.ports else { return EVERY };
    let entries = ports.iter().map(|port| match &port.port {
        Port::Range(first, last) => most_prefixes(*first, *last),
        // A name that means nothing costs no entry, but it is looked at for each class.
        Port::Named(name) => meanings.numbers(name, port.protocol).max(1),
        Port::Any | Port::Exact(_) => 1,
    });
    entries.sum()
}

/// How many numbers a name of a port stands for at one pod, at most: containers may each have one of their own.
struct Meanings<'a>(BTreeMap<(&'a str, Protocol), usize>);

impl<'a> Meanings<'a> {
    fn of(isolation: &'a Isolation<'_>, classes: &'a Classes) -> Self {
        let mut most = BTreeMap::new();
        let ports = isolation.rules().flatten().flat_map(|rule| rule.ports.iter().flatten());
        if !ports.map(|port| &port.port).any(|port| matches!(port, Port::Named(_))) {
            return Self(most);
        }
        let mut see = |ports: &'a NamedPorts| {
            // Sorted: what has one name and protocol stands together.
            let same = |a: &&(Arc<str>, Protocol, u16), b: &&(Arc<str>, Protocol, u16)| (&a.0, a.1) == (&b.0, b.1);
            let ports: Vec<_> = ports.iter().collect();
            for numbers in ports.chunk_by(same) {
                let (name, protocol, _) = numbers[0];
                let most = most.entry((&**name, *protocol)).or_insert(0);
                *most = numbers.len().max(*most);
            }
        };
        match isolation.direction {
            Direction::Ingress => see(&isolation.named_ports),
            Direction::Egress => classes.all.iter().for_each(|class| see(&class.named_ports)),
        }
        Self(most)
    }

    fn numbers(&self, name: &str, protocol: Protocol) -> usize {
        self.0.get(&(name, protocol)).copied().unwrap_or_default()
    }
}

/// What a namespace's policies take, and make others take.
#[derive(Default)]
struct Asks {
    /// Entries of its own, with those for others' classes.
    bound: usize,
    /// Of rules for every peer, for each class: entries, and for how many they count.
    every: usize,
    weighed: usize,
    /// Classes that it brings.
    brought: BTreeSet<usize>,
}

/// Rules for every peer are written out for each class, whoever brings it. What one namespace's rules come to by another's
/// classes is counted once: for the one of the two that has more of them. Who takes the most is who it is.
fn who_takes_most<'a>(
    bounds: &BTreeMap<&'a Arc<str>, usize>,
    endpoints: &Endpoints<'_>,
    selectors: &Selectors<'_>,
    classes: &Classes,
) -> Option<(&'a Arc<str>, usize)> {
    let mut asks: BTreeMap<&Arc<str>, Asks> = BTreeMap::new();
    for (namespace, bound) in bounds {
        asks.entry(*namespace).or_default().bound = *bound;
    }
    for isolation in &endpoints.tables {
        let Some(asks) = asks.get_mut(namespace_of(isolation)) else {
            continue;
        };
        let meanings = Meanings::of(isolation, classes);
        for_each_rule(isolation, selectors, |rule, peers| match peers {
            None => {
                let ports = ports(rule, &meanings);
                asks.every += ports;
                asks.weighed += ports * weight(isolation);
            }
            Some(peers) => asks.brought.extend(peers.iter().flat_map(|&peer| &classes.with[peer])),
        });
    }
    let takes = |namespace: &&'a Arc<str>| {
        let own = &asks[*namespace];
        let others_classes = classes.all.len().saturating_sub(own.brought.len() + 1);
        let alone = own.bound.saturating_sub(own.weighed * others_classes);
        let others = asks.iter().filter(|(other, _)| *other != namespace);
        let shared = others.map(|(_, other)| {
            let (brought, theirs) = (own.brought.len(), other.brought.len());
            let by_rules = if own.every >= theirs { own.weighed * theirs } else { 0 };
            let by_classes = if brought > other.every {
                other.weighed * brought
            } else {
                0
            };
            by_rules + by_classes
        });
        (*namespace, alone + shared.sum::<usize>())
    };
    bounds.keys().map(takes).max_by_key(|(_, taken)| *taken)
}

/// Each rule, and the indices of its selectors.
fn for_each_rule<'a>(
    isolation: &Isolation<'a>,
    selectors: &Selectors<'_>,
    mut see: impl FnMut(&'a Rule, Option<&[usize]>),
) {
    for (policy, rules) in isolation.policies.iter().zip(isolation.rules()) {
        let peers = selectors.of_rules(policy, isolation.direction);
        for (rule, peers) in rules.iter().zip(peers) {
            see(rule, peers.as_deref());
        }
    }
}

/// A pod's policies are all of its own namespace.
fn namespace_of<'a>(isolation: &Isolation<'a>) -> &'a Arc<str> {
    let policies: &[&'a Arc<Policy>] = &isolation.policies;
    &policies[0].name.namespace
}

#[cfg(test)]
mod tests;
