// SPDX-License-Identifier: Apache-2.0
//! The peers of the policies in use, each distinct one once.

use std::collections::HashMap;
use std::sync::Arc;

use super::endpoints::Endpoints;
use crate::model::{Direction, Peer, Policy, Port, Protocol, Rule};
use crate::tables::PeerSelector;

pub(super) struct Selectors<'a> {
    /// Sorted: indices compare as what they stand for.
    pub(super) all: Vec<Arc<PeerSelector>>,
    by_policy: HashMap<PolicyDirection, Peers>,
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

type PolicyDirection = (*const Policy, Direction);

/// Of each rule, the indices of its selectors; None: every peer.
type Peers = Vec<Option<Vec<usize>>>;

/// What is to be a [`PeerSelector`], borrowed; compares as that does.
type Borrowed<'a> = (Option<&'a Arc<str>>, &'a Peer);

impl<'a> Selectors<'a> {
    pub(super) fn of(endpoints: &Endpoints<'a>) -> Self {
        let mut in_use: HashMap<PolicyDirection, (&Policy, &[Rule])> = HashMap::new();
        for isolation in &endpoints.tables {
            for (policy, rules) in isolation.policies.iter().zip(isolation.rules()) {
                in_use.insert((Arc::as_ptr(policy), isolation.direction), (policy, rules));
            }
        }
        let mut ids = Ids::default();
        let mut by_policy: HashMap<PolicyDirection, Peers> = in_use
            .iter()
            .map(|(key, (policy, rules))| (*key, ids.of_rules(policy, rules)))
            .collect();
        let (all, rank) = ids.sorted();
        for selector in by_policy.values_mut().flatten().flatten().flatten() {
            *selector = rank[*selector];
        }

        let mut named_ports = HashMap::new();
        for (key, (_, rules)) in in_use
            .iter()
            .filter(|((_, direction), _)| *direction == Direction::Egress)
        {
            for (rule, peers) in rules.iter().zip(&by_policy[key]) {
                note_named_ports(&mut named_ports, &all, rule, peers.as_deref());
            }
        }
        Self {
            all,
            by_policy,
            named_ports,
        }
    }

    /// Of each rule, the indices of its selectors; None: every peer.
    pub(super) fn of_rules(&self, policy: &Arc<Policy>, direction: Direction) -> &[Option<Vec<usize>>] {
        self.by_policy
            .get(&(Arc::as_ptr(policy), direction))
            .map(Vec::as_slice)
            .unwrap_or_default()
    }
}

/// Selectors in the order in which they were found.
#[derive(Default)]
struct Ids<'a>(HashMap<Borrowed<'a>, usize>);

impl<'a> Ids<'a> {
    fn of_rules(&mut self, policy: &'a Policy, rules: &'a [Rule]) -> Peers {
        let mut id = |peer: &'a Peer| {
            let own = matches!(peer, Peer::Pods { namespaces: None, .. });
            let next = self.0.len();
            *self
                .0
                .entry((own.then_some(&policy.name.namespace), peer))
                .or_insert(next)
        };
        rules
            .iter()
            .map(|rule| rule.peers.as_ref().map(|peers| peers.iter().map(&mut id).collect()))
            .collect()
    }

    /// The selectors sorted, and where each went.
    fn sorted(self) -> (Vec<Arc<PeerSelector>>, Vec<usize>) {
        let mut found: Vec<(Borrowed<'_>, usize)> = self.0.into_iter().collect();
        found.sort_unstable();
        let mut rank = vec![0; found.len()];
        let place = |(sorted, ((namespace, peer), id)): (usize, (Borrowed<'_>, usize))| {
            rank[id] = sorted;
            Arc::new(PeerSelector {
                namespace: namespace.cloned(),
                peer: peer.clone(),
            })
        };
        let all = found.into_iter().enumerate().map(place).collect();
        (all, rank)
    }
}

fn note_named_ports<'a>(
    named_ports: &mut HashMap<(&'a str, Protocol), NamedPortUse>,
    all: &[Arc<PeerSelector>],
    rule: &'a Rule,
    peers: Option<&[usize]>,
) {
    for port in rule.ports.iter().flatten() {
        let Port::Named(name) = &port.port else { continue };
        let uses = named_ports.entry((name, port.protocol)).or_default();
        match peers {
            None => uses.every_pod = true,
            Some(peers) => {
                uses.every_pod |= peers.iter().any(|&peer| matches!(all[peer].peer, Peer::Block(_)));
                uses.selectors.extend(peers);
            }
        }
    }
}
