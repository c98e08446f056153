// SPDX-License-Identifier: Apache-2.0
//! One table: what each class of peers is allowed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::classes::Classes;
use super::endpoints::{Isolation, NamedPorts};
use super::ports::{Allowed, RuleId};
use super::selectors::Selectors;
use crate::model::{Direction, Port, PortMatch, Protocol, Rule};
use crate::tables::{Allowing, Attribution, Class, PolicyRef, PortKey, ProtocolKey, RuleKey, Table};

/// A class's rules by protocol and port.
type Entries = BTreeMap<RuleKey, Arc<Attribution>>;

/// Writes out a table for every class to which some rule of it applies.
pub(super) fn expand(isolation: &Isolation<'_>, selectors: &Selectors<'_>, classes: &Classes) -> Table {
    let mut expansion = Expansion::new(isolation, selectors);
    // Most classes come down to the same few sets of rules.
    let mut known: HashMap<(Vec<RuleId>, NamedPorts), Entries> = HashMap::new();
    let mut rules = Vec::new();
    for (matched, class) in expansion.matching(classes).into_iter().zip(&classes.all) {
        if matched.is_empty() {
            continue;
        }
        let named_ports = expansion.named_ports(&matched, &class.named_ports);
        let entries = known
            .entry((matched, named_ports))
            .or_insert_with_key(|(m, named)| expansion.entries(m, named));
        if !entries.is_empty() {
            rules.push((Arc::clone(class), entries.clone()));
        }
    }
    // The classes are sorted: collecting compares each with the next only, where inserting would search.
    Table {
        rules: rules.into_iter().collect(),
    }
}

/// How many entries [`expand`] writes out.
pub(super) fn count(isolation: &Isolation<'_>, selectors: &Selectors<'_>, classes: &Classes) -> usize {
    let expansion = Expansion::new(isolation, selectors);
    let mut known: HashMap<(Vec<RuleId>, NamedPorts), usize> = HashMap::new();
    let of_class = |(matched, class): (Vec<RuleId>, &Arc<Class>)| {
        let named_ports = expansion.named_ports(&matched, &class.named_ports);
        *known
            .entry((matched, named_ports))
            .or_insert_with_key(|(matched, named)| expansion.entry_count(matched, named))
    };
    expansion
        .matching(classes)
        .into_iter()
        .zip(&classes.all)
        .map(of_class)
        .sum()
}

/// The sets of rules that the classes match, each once; by their places among the table's.
pub(super) fn matched(isolation: &Isolation<'_>, selectors: &Selectors<'_>, classes: &Classes) -> HashSet<Vec<RuleId>> {
    Expansion::new(isolation, selectors)
        .matching(classes)
        .into_iter()
        .collect()
}

/// A rule and where it stands.
struct Placed<'a> {
    /// Index among the table's policies.
    policy: usize,
    /// Index in the policy's list.
    index: u32,
    rule: &'a Rule,
    /// Indices of selectors; None: every peer.
    peers: Option<&'a [usize]>,
}

struct Expansion<'a> {
    isolation: &'a Isolation<'a>,
    /// By [`RuleId`].
    rules: Vec<Placed<'a>>,
    attributions: HashMap<Vec<RuleId>, Arc<Attribution>>,
}

impl<'a> Expansion<'a> {
    fn new(isolation: &'a Isolation<'a>, selectors: &'a Selectors<'_>) -> Self {
        let mut placed = Vec::new();
        for (policy, rules) in isolation.rules().enumerate() {
            let peers = selectors.of_rules(isolation.policies[policy], isolation.direction);
            for ((index, rule), peers) in (0..).zip(rules).zip(peers) {
                placed.push(Placed {
                    policy,
                    index,
                    rule,
                    peers: peers.as_deref(),
                });
            }
        }
        Self {
            isolation,
            rules: placed,
            attributions: HashMap::new(),
        }
    }

    /// Of each class, the rules whose peers it is among, ascending.
    fn matching(&self, classes: &Classes) -> Vec<Vec<RuleId>> {
        let mut matched: Vec<Vec<RuleId>> = vec![Vec::new(); classes.all.len()];
        for (id, placed) in self.rules.iter().enumerate() {
            match placed.peers {
                None => matched.iter_mut().for_each(|rules| rules.push(id)),
                Some(peers) => {
                    for &class in peers.iter().flat_map(|&peer| &classes.with[peer]) {
                        if matched[class].last() != Some(&id) {
                            matched[class].push(id);
                        }
                    }
                }
            }
        }
        matched
    }

    fn ports(&self, id: RuleId) -> impl Iterator<Item = &'a PortMatch> + use<'a> {
        self.rules[id].rule.ports.iter().flatten()
    }

    /// What the named ports of these rules mean: at the endpoint for ingress, at the peer for egress.
    fn named_ports(&self, rules: &[RuleId], at_peer: &NamedPorts) -> NamedPorts {
        let meanings = match self.isolation.direction {
            Direction::Ingress => &self.isolation.named_ports,
            Direction::Egress => at_peer,
        };
        if meanings.is_empty() {
            return NamedPorts::new();
        }
        let asked: BTreeSet<(&str, Protocol)> = rules
            .iter()
            .flat_map(|&id| self.ports(id))
            .filter_map(|port| {
                if let Port::Named(name) = &port.port {
                    Some((&**name, port.protocol))
                } else {
                    None
                }
            })
            .collect();
        meanings
            .iter()
            .filter(|(name, protocol, _)| asked.contains(&(&**name, *protocol)))
            .cloned()
            .collect()
    }

    /// The entries of one set of rules.
    fn entries(&mut self, rules: &[RuleId], named_ports: &NamedPorts) -> Entries {
        let mut entries = Entries::new();
        let every_protocol = self.for_every_protocol(rules);
        if !every_protocol.is_empty() {
            let key = RuleKey {
                protocol: ProtocolKey::Other,
                ports: PortKey::Any,
            };
            entries.insert(key, self.attribution(every_protocol.clone()));
        }
        for protocol in Protocol::ALL {
            let allowed = self.allowed(rules, &every_protocol, protocol, named_ports);
            for (ports, rules) in allowed.entries() {
                entries.insert(
                    RuleKey {
                        protocol: ProtocolKey::Ported(protocol),
                        ports,
                    },
                    self.attribution(rules),
                );
            }
        }
        entries
    }

    /// How many these are.
    fn entry_count(&self, rules: &[RuleId], named_ports: &NamedPorts) -> usize {
        let every_protocol = self.for_every_protocol(rules);
        let of_protocol = |protocol| {
            let allowed = self.allowed(rules, &every_protocol, protocol, named_ports);
            allowed.entries().len()
        };
        let ported: usize = Protocol::ALL.into_iter().map(of_protocol).sum();
        ported + usize::from(!every_protocol.is_empty())
    }

    fn for_every_protocol(&self, rules: &[RuleId]) -> Vec<RuleId> {
        let is_for_every = |id: &RuleId| self.rules[*id].rule.ports.is_none();
        rules.iter().copied().filter(is_for_every).collect()
    }

    fn allowed(&self, rules: &[RuleId], any: &[RuleId], protocol: Protocol, named_ports: &NamedPorts) -> Allowed {
        let mut allowed = Allowed {
            any: any.to_vec(),
            ..Allowed::default()
        };
        for &id in rules {
            for port in self.ports(id).filter(|port| port.protocol == protocol) {
                match &port.port {
                    Port::Any => allowed.any.push(id),
                    Port::Exact(port) => allowed.exact.push((*port, id)),
                    Port::Range(first, last) => allowed.ranges.push((*first, *last, id)),
                    Port::Named(name) => {
                        let means = named_ports.iter().filter(|(n, p, _)| n == name && *p == protocol);
                        allowed.exact.extend(means.map(|(_, _, port)| (*port, id)));
                    }
                }
            }
        }
        allowed
    }

    /// The policies and rules by name. `rules` is ascending, and so are the names of a table's policies.
    fn attribution(&mut self, rules: Vec<RuleId>) -> Arc<Attribution> {
        let Self {
            isolation,
            rules: placed,
            attributions,
        } = self;
        let made = attributions.entry(rules).or_insert_with_key(|rules| {
            let by_policy = rules.chunk_by(|&a, &b| placed[a].policy == placed[b].policy);
            let policies = by_policy.map(|rules| {
                let policy = isolation.policies[placed[rules[0]].policy];
                let rules = rules.iter().map(|&id| placed[id].index).collect();
                Allowing {
                    policy: PolicyRef::from(&**policy),
                    rules,
                    log: policy.log,
                }
            });
            Arc::new(Attribution {
                policies: policies.collect(),
            })
        });
        Arc::clone(made)
    }
}
