// SPDX-License-Identifier: Apache-2.0
//! Peer classes: each distinct set of selectors that some address matches, once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::cidrs::Cidrs;
use super::endpoints::NamedPorts;
use super::pods::PodIndex;
use super::selectors::Selectors;
use crate::model::Pod;
use crate::tables::Class;

/// Indices of selectors, ascending, and what the named ports in use mean.
type Identity = (Vec<usize>, NamedPorts);

pub(super) struct Classes {
    /// Sorted, so that the default class is the first.
    pub(super) all: Vec<Arc<Class>>,
    /// Of each selector, the classes that contain it, ascending.
    pub(super) with: Vec<Vec<usize>>,
    /// Addresses and their class, sorted.
    pub(super) peers: Vec<(IpAddr, usize)>,
    /// Prefixes and their class, sorted.
    pub(super) cidrs: Vec<(IpNet, usize)>,
}

impl Classes {
    pub(super) fn new(pods: &PodIndex<'_>, selectors: &Selectors<'_>, cidrs: &Cidrs) -> Self {
        let mut ids = Ids::default();
        ids.of((Vec::new(), NamedPorts::new()));
        let mut by_prefix: Vec<(IpNet, usize)> = cidrs
            .prefixes
            .iter()
            .map(|prefix| (prefix.net, ids.of((prefix.blocks.clone(), NamedPorts::new()))))
            .collect();

        let selected = selecting(pods, selectors);
        let mut peers = Vec::new();
        for (address, pod) in pods.owned_addresses() {
            let named_ports = named_ports(pods.pods[pod].1, &selected[pod], selectors);
            if selected[pod].is_empty() && named_ports.is_empty() {
                continue;
            }
            let mut matched = [&selected[pod], cidrs.blocks_at(address)].concat();
            matched.sort_unstable();
            peers.push((address, ids.of((matched, named_ports))));
        }

        let (sorted, rank) = ids.sorted();
        let classes = by_prefix
            .iter_mut()
            .map(|(_, class)| class)
            .chain(peers.iter_mut().map(|(_, class)| class));
        for class in classes {
            *class = rank[*class];
        }
        let mut with = vec![Vec::new(); selectors.all.len()];
        for (class, (matched, _)) in sorted.iter().enumerate() {
            for &selector in matched {
                with[selector].push(class);
            }
        }
        let class = |(matched, named_ports): Identity| {
            let selectors = matched
                .iter()
                .map(|&selector| Arc::clone(&selectors.all[selector]))
                .collect();
            Arc::new(Class { selectors, named_ports })
        };
        Self {
            all: sorted.into_iter().map(class).collect(),
            with,
            peers,
            cidrs: by_prefix,
        }
    }
}

/// Of each pod, the pod selectors that select it, ascending.
fn selecting(pods: &PodIndex<'_>, selectors: &Selectors<'_>) -> Vec<Vec<usize>> {
    let mut selected: Vec<Vec<usize>> = vec![Vec::new(); pods.pods.len()];
    for (index, selector) in selectors.all.iter().enumerate() {
        for pod in pods.selected(selector) {
            selected[pod].push(index);
        }
    }
    selected
}

/// What the ports that egress rules name mean at a pod, where some rule can ask for it there.
fn named_ports(pod: &Pod, selected: &[usize], selectors: &Selectors<'_>) -> NamedPorts {
    if selectors.named_ports.is_empty() {
        return NamedPorts::new();
    }
    let asked = |name: &str, protocol| {
        selectors.named_ports.get(&(name, protocol)).is_some_and(|uses| {
            uses.every_pod
                || uses
                    .selectors
                    .iter()
                    .any(|selector| selected.binary_search(selector).is_ok())
        })
    };
    pod.ports
        .iter()
        .filter(|port| asked(&port.name, port.protocol))
        .map(|port| (Arc::clone(&port.name), port.protocol, port.port))
        .collect()
}

/// Classes in the order in which they were found.
#[derive(Default)]
struct Ids(HashMap<Identity, usize>);

impl Ids {
    fn of(&mut self, identity: Identity) -> usize {
        let next = self.0.len();
        *self.0.entry(identity).or_insert(next)
    }

    /// The classes sorted, which they are by their selectors' indices, and where each went.
    fn sorted(self) -> (Vec<Identity>, Vec<usize>) {
        let mut found: Vec<(Identity, usize)> = self.0.into_iter().collect();
        found.sort_unstable();
        let mut rank = vec![0; found.len()];
        for (sorted, (_, id)) in found.iter().enumerate() {
            rank[*id] = sorted;
        }
        (found.into_iter().map(|(identity, _)| identity).collect(), rank)
    }
}
