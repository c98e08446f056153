// SPDX-License-Identifier: Apache-2.0
//! One table: what each class of peers is allowed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::classes::Classes;
use super::endpoints::{Isolation, NamedPorts};
use super::ports::{Allowed, RuleId};
use super::selectors::Selectors;
use crate::model::{Direction, Port, Protocol, Rule};
use crate::tables::{Allowing, Attribution, PolicyRef, PortKey, ProtocolKey, RuleKey, Table};

/// A class's rules by protocol and port.
type Entries = BTreeMap<RuleKey, Arc<Attribution>>;

/// Writes out a table for every class to which some rule of it applies.
pub(super) fn expand(isolation: &Isolation<'_>, selectors: &Selectors<'_>, classes: &Classes) -> Table {
    let mut expansion = Expansion {
        isolation,
        rules: isolation.rules().collect(),
        attributions: HashMap::new(),
    };
    // Most classes that a table tells apart at all come down to the same few sets of rules.
    let mut known: HashMap<(Vec<RuleId>, NamedPorts), Entries> = HashMap::new();
    let mut rules = BTreeMap::new();
    for (matched, class) in matching(isolation, selectors, classes).into_iter().zip(&classes.all) {
        if matched.is_empty() {
            continue;
        }
        let named_ports = expansion.named_ports(&matched, &class.named_ports);
        let entries = known
            .entry((matched, named_ports))
            .or_insert_with_key(|(m, named)| expansion.entries(m, named));
        if !entries.is_empty() {
            rules.insert(Arc::clone(class), entries.clone());
        }
    }
    Table { rules }
}

/// Of each class, the rules whose peers it is among, ascending.
fn matching(isolation: &Isolation<'_>, selectors: &Selectors<'_>, classes: &Classes) -> Vec<Vec<RuleId>> {
    let mut matched: Vec<Vec<RuleId>> = vec![Vec::new(); classes.all.len()];
    for (policy, source) in isolation.policies.iter().enumerate() {
        for (rule, peers) in (0..).zip(selectors.of_rules(source, isolation.direction)) {
            let id = RuleId { policy, rule };
            match peers {
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
    }
    matched
}

struct Expansion<'a> {
    isolation: &'a Isolation<'a>,
    /// By policy.
    rules: Vec<&'a [Rule]>,
    attributions: HashMap<Vec<RuleId>, Arc<Attribution>>,
}

impl Expansion<'_> {
    fn rule(&self, id: RuleId) -> &Rule {
        &self.rules[id.policy][id.rule as usize]
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
            .flat_map(|&id| self.rule(id).ports.iter().flatten())
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
        let every_protocol: Vec<RuleId> = rules
            .iter()
            .copied()
            .filter(|&id| self.rule(id).ports.is_none())
            .collect();
        if !every_protocol.is_empty() {
            let key = RuleKey {
                protocol: ProtocolKey::Other,
                ports: PortKey::Any,
            };
            entries.insert(key, self.attribution(every_protocol.clone()));
        }
        for protocol in Protocol::ALL {
            let mut allowed = Allowed {
                any: every_protocol.clone(),
                ..Allowed::default()
            };
            for &id in rules {
                for port in self
                    .rule(id)
                    .ports
                    .iter()
                    .flatten()
                    .filter(|port| port.protocol == protocol)
                {
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

    /// The policies and rules by name. `rules` is ascending, and so are the policies of a table.
    fn attribution(&mut self, rules: Vec<RuleId>) -> Arc<Attribution> {
        let Self {
            isolation,
            attributions,
            ..
        } = self;
        let made = attributions.entry(rules).or_insert_with_key(|rules| {
            let by_policy = rules.chunk_by(|a, b| a.policy == b.policy);
            let policies = by_policy.map(|rules| {
                let policy = isolation.policies[rules[0].policy];
                let rules = rules.iter().map(|id| id.rule).collect();
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
