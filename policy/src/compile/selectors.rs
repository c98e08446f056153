// SPDX-License-Identifier: Apache-2.0
//! The peers of the policies in use, each distinct one once.

use std::collections::HashMap;
use std::sync::Arc;

use super::endpoints::Endpoints;
use crate::model::{Direction, Peer, Policy, Port, Protocol, Rule};
use crate::tables::PeerSelector;

pub(super) struct Selectors<'a> {
    pub(super) all: Vec<Arc<PeerSelector>>,
    /// The indices of each rule's peers; None: every peer.
    by_rules: HashMap<(*const Policy, Direction), Vec<Option<Vec<usize>>>>,
    /// The ports that egress rules name.
    pub(super) named_ports: HashMap<(&'a str, Protocol), NamedPortUse>,
}

/// For which peers it matters what a named port means there.
#[derive(Default)]
pub(super) struct NamedPortUse {
    /// For any pod: a rule for every peer, or for an ipBlock, names it.
    pub(super) every_pod: bool,
    /// For the pods of these selectors.
    pub(super) selectors: Vec<usize>,
}

impl<'a> Selectors<'a> {
    pub(super) fn of(endpoints: &Endpoints<'a>) -> Self {
        let mut found = Self {
            all: Vec::new(),
            by_rules: HashMap::new(),
            named_ports: HashMap::new(),
        };
        let mut ids: HashMap<PeerSelector, usize> = HashMap::new();
        for isolation in &endpoints.tables {
            for (policy, rules) in isolation.policies.iter().zip(isolation.rules()) {
                let key = (Arc::as_ptr(policy), isolation.direction);
                if found.by_rules.contains_key(&key) {
                    continue;
                }
                let peers: Vec<_> = rules.iter().map(|rule| found.peers(&mut ids, policy, rule)).collect();
                if isolation.direction == Direction::Egress {
                    rules
                        .iter()
                        .zip(&peers)
                        .for_each(|(rule, peers)| found.note_named_ports(rule, peers.as_deref()));
                }
                found.by_rules.insert(key, peers);
            }
        }
        found
    }

    /// The indices of each rule's peers; None: every peer.
    pub(super) fn of_rules(&self, policy: &Arc<Policy>, direction: Direction) -> &[Option<Vec<usize>>] {
        self.by_rules
            .get(&(Arc::as_ptr(policy), direction))
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    fn peers(&mut self, ids: &mut HashMap<PeerSelector, usize>, policy: &Policy, rule: &Rule) -> Option<Vec<usize>> {
        let index = |peer: &Peer| {
            let own = matches!(peer, Peer::Pods { namespaces: None, .. });
            let selector = PeerSelector {
                namespace: own.then(|| Arc::clone(&policy.name.namespace)),
                peer: peer.clone(),
            };
            *ids.entry(selector).or_insert_with_key(|selector| {
                self.all.push(Arc::new(selector.clone()));
                self.all.len() - 1
            })
        };
        rule.peers.as_ref().map(|peers| peers.iter().map(index).collect())
    }

    fn note_named_ports(&mut self, rule: &'a Rule, peers: Option<&[usize]>) {
        for port in rule.ports.iter().flatten() {
            let Port::Named(name) = &port.port else { continue };
            let uses = self.named_ports.entry((name, port.protocol)).or_default();
            match peers {
                None => uses.every_pod = true,
                Some(peers) => {
                    let block = |&peer: &usize| matches!(self.all[peer].peer, Peer::Block(_));
                    uses.every_pod |= peers.iter().any(block);
                    uses.selectors.extend(peers);
                }
            }
        }
    }
}
