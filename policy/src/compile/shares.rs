// SPDX-License-Identifier: Apache-2.0
//! Whether a node's tables have room for what its policies ask for, and whose policies give way where they have not.
//!
//! ```text
//! blocks, rules of one namespace, as if it were alone  > its share   --> that namespace
//! rules of all                                         > the table   --> the namespace that takes most
//! ```
//!
//! A namespace is measured alone, so that nobody's policies take another over its share. Rules are only counted where a
//! bound on them leaves it open, and nothing is written out before it is known to fit: what a policy comes to can be
//! millions of times its size.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::cidrs::Cidrs;
use super::classes::Classes;
use super::endpoints::{Endpoints, Isolation};
use super::pods::PodIndex;
use super::ports::prefixes;
use super::rules;
use super::selectors::Selectors;
use crate::model::{IpBlock, Peer, Policy, Port, Rule};

/// A namespace may take one of so many shares of a table.
pub const SHARES: usize = 4;

/// A bound so many times above what there is room for is not counted out: that would take too long.
const WORTH_COUNTING: usize = 32;

/// Entries that a node's tables have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Compiled rules, `limits.rules`.
    pub rules: usize,
    /// Addresses and blocks, `limits.peers`.
    pub peers: usize,
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
        *bounds.entry(namespace_of(isolation)).or_default() += bound(isolation, selectors, classes);
    }
    let over = |namespace: &Arc<str>, needed, is_share| Over {
        namespace: Arc::clone(namespace),
        limit: "limits.rules",
        size: rules,
        needed,
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
        return Err(over(namespace, needed, true));
    }
    if bounds.values().sum::<usize>() <= rules {
        return Ok(());
    }
    let needed = needed(endpoints, selectors, classes, rules);
    if needed <= rules {
        return Ok(());
    }
    match who_takes_most(&bounds, endpoints, selectors, classes) {
        Some(namespace) => Err(over(namespace, needed, false)),
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
    tables.iter().map(|table| rules::count(table, selectors, classes)).sum()
}

/// At least about as many entries as a table has: rules that say the same are counted each.
fn bound(isolation: &Isolation<'_>, selectors: &Selectors<'_>, classes: &Classes) -> usize {
    let mut bound = 0;
    for_each_rule(isolation, selectors, |rule, peers| {
        let peers = match peers {
            None => classes.all.len(),
            Some(peers) => peers.iter().map(|&peer| classes.with[peer].len()).sum(),
        };
        bound += peers * ports(rule);
    });
    bound
}

/// Entries for one class.
fn ports(rule: &Rule) -> usize {
    // Each protocol, and those without ports.
    const EVERY: usize = 4;
    let Some(ports) = &rule.ports else { return EVERY };
    let entries = ports.iter().map(|port| match port.port {
        Port::Range(first, last) => prefixes(first, last).len(),
        Port::Any | Port::Exact(_) | Port::Named(_) => 1,
    });
    entries.sum()
}

/// Rules for every peer are written out for each class, so whoever brings classes makes others' tables larger too, and
/// whoever has many such rules makes each class dearer. Both are counted for it, and who brings the most is who it is.
fn who_takes_most<'a>(
    bounds: &BTreeMap<&'a Arc<str>, usize>,
    endpoints: &Endpoints<'_>,
    selectors: &Selectors<'_>,
    classes: &Classes,
) -> Option<&'a Arc<str>> {
    let mut for_every_peer: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
    let mut brought: BTreeMap<&Arc<str>, BTreeSet<usize>> = BTreeMap::new();
    for isolation in &endpoints.tables {
        let namespace = namespace_of(isolation);
        let (every, brought) = (
            for_every_peer.entry(namespace).or_default(),
            brought.entry(namespace).or_default(),
        );
        for_each_rule(isolation, selectors, |rule, peers| match peers {
            None => *every += ports(rule),
            Some(peers) => brought.extend(peers.iter().flat_map(|&peer| &classes.with[peer])),
        });
    }
    let all: usize = for_every_peer.values().sum();
    let takes = |(namespace, bound): &(&&'a Arc<str>, &usize)| {
        let others = all - for_every_peer.get(**namespace).copied().unwrap_or_default();
        let brought = brought.get(**namespace).map_or(0, BTreeSet::len);
        **bound + brought * others
    };
    bounds.iter().max_by_key(takes).map(|(namespace, _)| *namespace)
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
mod tests {
    use super::*;
    use crate::compile::{compile, compile_within};
    use crate::model::{Labels, ObjectName, Objects, Pod, PortMatch, Protocol, Selector};

    const NODE: &str = "n1";
    /// Shares of 10 rules and of 20 peers.
    const ROOM: Room = Room { rules: 40, peers: 80 };

    /// A policy: its namespace, how many blocks its rule is for (0: every peer), and how many ports.
    type Row = (&'static str, u8, u16);

    /// Namespace, limit and its size, what is needed, and whether that is of the namespace's share.
    type Expected = Option<(&'static str, (&'static str, usize), usize, bool)>;

    fn rule(network: u8, blocks: u8, ports: u16) -> Rule {
        let block = |n| {
            let cidr = format!("198.18.{network}.{n}/32").parse().unwrap();
            Peer::Block(IpBlock { cidr, except: vec![] })
        };
        // Every other port, so that they are no range.
        let port = |n| PortMatch {
            protocol: Protocol::Tcp,
            port: Port::Exact(2 * n),
        };
        Rule {
            peers: (blocks > 0).then(|| (0..blocks).map(block).collect()),
            ports: Some((0..ports).map(port).collect()),
        }
    }

    /// Each namespace has a pod that its policies isolate; no two policies have a block in common.
    fn objects(rows: &[Row]) -> Objects {
        let mut objects = Objects::default();
        for (n, (namespace, blocks, ports)) in (0..).zip(rows) {
            objects.namespaces.insert((*namespace).into(), Labels::new());
            let pod = Pod {
                labels: Labels::new(),
                addresses: vec![],
                node: NODE.into(),
                ports: vec![],
            };
            objects.pods.insert(ObjectName::new(*namespace, "pod"), pod.into());
            let name = ObjectName::new(*namespace, format!("p{n}"));
            let policy = Policy {
                name: name.clone(),
                generation: 1,
                log: false,
                pod_selector: Selector::default(),
                ingress: Some(vec![rule(n, *blocks, *ports)]),
                egress: None,
            };
            objects.policies.insert(name, policy.into());
        }
        objects
    }

    #[test]
    fn who_asks_for_too_much_is_told() {
        let rules = ("limits.rules", ROOM.rules);
        let peers = ("limits.peers", ROOM.peers);
        let table: [(&str, &[Row], Expected); 8] = [
            ("nobody", &[("a", 5, 2), ("b", 0, 3)], None),
            ("one policy", &[("a", 4, 3), ("b", 0, 1)], Some(("a", rules, 12, true))),
            (
                "several of one namespace",
                &[("a", 4, 2), ("a", 0, 3), ("b", 0, 1)],
                Some(("a", rules, 5 * 3, true)),
            ),
            (
                "far too much, and not counted out",
                &[("a", 16, 100), ("b", 4, 3)],
                Some(("a", rules, 1600, true)),
            ),
            ("blocks", &[("a", 21, 1), ("b", 0, 1)], Some(("a", peers, 21, true))),
            (
                "what others' blocks make of a rule is not its namespace's",
                &[("a", 9, 1), ("b", 0, 2)],
                None,
            ),
            (
                "all together, by who brings peers",
                &[("a", 0, 3), ("b", 0, 3), ("c", 0, 3), ("d", 9, 1)],
                Some(("d", rules, 99, false)),
            ),
            (
                "all together, by who has rules for every peer",
                &[("a", 3, 1), ("b", 3, 1), ("c", 3, 1), ("d", 0, 9)],
                Some(("d", rules, 99, false)),
            ),
        ];
        for (why, rows, expected) in table {
            let objects = objects(rows);
            let found = compile_within(&objects, NODE, ROOM);
            let expected = expected.map(|(namespace, (limit, size), needed, is_share)| Over {
                namespace: namespace.into(),
                limit,
                size,
                needed,
                is_share,
            });
            assert_eq!(found.as_ref().err(), expected.as_ref(), "{why}");
            if let Ok(tables) = found {
                assert_eq!(tables, compile(&objects, NODE), "{why}");
            }
        }
    }

    #[test]
    fn blocks_are_counted_with_those_around_them() {
        let block = |cidr: &str, except: &[&str]| IpBlock {
            cidr: cidr.parse().unwrap(),
            except: except.iter().map(|net| net.parse().unwrap()).collect(),
        };
        for (why, blocks, expected) in [
            ("apart", vec![block("10.0.0.0/8", &[]), block("fd00::/8", &[])], (2, 2)),
            (
                "its exceptions",
                vec![block("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.0/16"])],
                (3, 3),
            ),
            (
                "within one another",
                vec![
                    block("::/0", &[]),
                    block("0.0.0.0/0", &["10.1.0.0/16"]),
                    block("10.1.0.0/16", &["10.1.0.0/24"]),
                    block("10.1.0.0/24", &[]),
                ],
                // IPv6: 1; the one around all of IPv4: 3; then 2, and 1.
                (4, 7),
            ),
        ] {
            let Prefixes { prefixes, held } = Prefixes::of(&blocks.iter().collect());
            assert_eq!((prefixes, held), expected, "{why}");
        }
    }

    #[test]
    fn what_is_counted_is_what_is_written() {
        let mut objects = objects(&[("a", 3, 2), ("a", 2, 5), ("a", 0, 2), ("b", 0, 1)]);
        let policy = objects.policies.values_mut().next().unwrap();
        let mut ranged = Policy::clone(policy);
        for (blocks, first, last) in [(1, 1, 6), (0, 4, 90)] {
            let udp = PortMatch {
                protocol: Protocol::Udp,
                port: Port::Range(first, last),
            };
            let ranges = Rule {
                ports: Some(vec![udp]),
                ..rule(0, blocks, 1)
            };
            let everything = Rule {
                peers: None,
                ports: None,
            };
            ranged.ingress.as_mut().unwrap().extend([ranges, everything]);
        }
        *policy = ranged.into();
        let pods = PodIndex::new(&objects);
        let endpoints = Endpoints::of(&objects, &pods, NODE);
        let selectors = Selectors::of(&endpoints);
        let classes = Classes::new(&pods, &selectors, &Cidrs::new(&selectors));
        for table in &endpoints.tables {
            let written: usize = rules::expand(table, &selectors, &classes)
                .rules
                .values()
                .map(BTreeMap::len)
                .sum();
            assert_eq!(rules::count(table, &selectors, &classes), written);
            assert!(bound(table, &selectors, &classes) >= written);
        }
    }
}
