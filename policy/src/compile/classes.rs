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
use crate::model::{Peer, Pod};
use crate::tables::{Class, PeerSelector};

/// Indices of selectors, ascending, and what the named ports in use mean.
type Identity = (Vec<usize>, NamedPorts);

pub(super) struct Classes {
    /// The first is the default class.
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
        let mut found = Interned::default();
        found.class((Vec::new(), NamedPorts::new()));
        let cidr_classes = cidrs
            .prefixes
            .iter()
            .map(|prefix| (prefix.net, found.class((prefix.blocks.clone(), NamedPorts::new()))))
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
            peers.push((address, found.class((matched, named_ports))));
        }
        let (all, with) = found.finish(&selectors.all);
        Self {
            all,
            with,
            peers,
            cidrs: cidr_classes,
        }
    }
}

/// Of each pod, the pod selectors that select it, ascending.
fn selecting(pods: &PodIndex<'_>, selectors: &Selectors<'_>) -> Vec<Vec<usize>> {
    let mut selected: Vec<Vec<usize>> = vec![Vec::new(); pods.pods.len()];
    for (index, selector) in selectors.all.iter().enumerate() {
        let PeerSelector {
            namespace,
            peer: Peer::Pods {
                namespaces,
                pods: labels,
            },
        } = &**selector
        else {
            continue;
        };
        let found = match (namespace, namespaces) {
            (Some(own), _) => pods.in_namespace(own, labels),
            (None, Some(namespaces)) => pods.across(namespaces, labels),
            // Not made: a selector without namespaces has its policy's own.
            (None, None) => Vec::new(),
        };
        for pod in found {
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

/// Classes by what they match.
#[derive(Default)]
struct Interned {
    ids: HashMap<Identity, usize>,
}

impl Interned {
    fn class(&mut self, identity: Identity) -> usize {
        let next = self.ids.len();
        *self.ids.entry(identity).or_insert(next)
    }

    /// The classes by index, and of each selector those that contain it.
    fn finish(self, selectors: &[Arc<PeerSelector>]) -> (Vec<Arc<Class>>, Vec<Vec<usize>>) {
        let mut identities: Vec<(usize, Identity)> = self.ids.into_iter().map(|(key, id)| (id, key)).collect();
        identities.sort_unstable_by_key(|(id, _)| *id);
        let mut with = vec![Vec::new(); selectors.len()];
        let class = |(id, (matched, named_ports)): (usize, Identity)| {
            for &selector in &matched {
                with[selector].push(id);
            }
            let selectors = matched
                .iter()
                .map(|&selector| Arc::clone(&selectors[selector]))
                .collect();
            Arc::new(Class { selectors, named_ports })
        };
        let all = identities.into_iter().map(class).collect();
        (all, with)
    }
}
