// SPDX-License-Identifier: Apache-2.0
//! The node's pods and the policies that isolate each; those with the same policies share a table.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::pods::PodIndex;
use crate::model::{Direction, NamedPort, ObjectName, Objects, Pod, Policy, Port, PortMatch, Protocol, Rule};
use crate::tables::TableKey;

/// What a named port means at a pod.
pub(super) type NamedPorts = BTreeSet<(Arc<str>, Protocol, u16)>;

/// What makes two endpoints' tables the same: direction, indices of the policies, meaning of the ports that they name.
type TableIdentity = (Direction, Vec<usize>, NamedPorts);

pub(super) struct Endpoints<'a> {
    /// The node's isolated pods, by name.
    pub(super) pods: Vec<(&'a ObjectName, EndpointIndices)>,
    pub(super) tables: Vec<Isolation<'a>>,
}

/// Indices into [`Endpoints::tables`]; None: not isolated in that direction.
#[derive(Default)]
pub(super) struct EndpointIndices {
    pub(super) ingress: Option<usize>,
    pub(super) egress: Option<usize>,
}

/// One table: the policies that isolate some endpoints in one direction.
#[derive(Clone)]
pub(super) struct Isolation<'a> {
    pub(super) direction: Direction,
    /// Sorted by name, never empty.
    pub(super) policies: Vec<&'a Arc<Policy>>,
    /// Of the endpoint, for ingress.
    pub(super) named_ports: NamedPorts,
}

impl<'a> Isolation<'a> {
    pub(super) fn key(&self) -> TableKey {
        TableKey {
            direction: self.direction,
            policies: self.policies.iter().copied().map(Arc::clone).collect(),
            named_ports: self.named_ports.clone(),
        }
    }

    /// Each policy's rules in this direction.
    pub(super) fn rules(&self) -> impl Iterator<Item = &'a [Rule]> {
        self.policies
            .iter()
            .map(|policy| policy.rules(self.direction).unwrap_or_default())
    }
}

impl<'a> Endpoints<'a> {
    pub(super) fn of(objects: &'a Objects, pods: &PodIndex<'a>, node: &str) -> Self {
        let policies: Vec<&Arc<Policy>> = objects.policies.values().collect();
        let mut by_namespace: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, policy) in policies.iter().enumerate() {
            by_namespace.entry(&policy.name.namespace).or_default().push(index);
        }
        let mut known: HashMap<TableIdentity, usize> = HashMap::new();
        let mut found = Self {
            pods: Vec::new(),
            tables: Vec::new(),
        };
        for (name, pod) in pods.pods.iter().filter(|(_, pod)| &*pod.node == node) {
            let selecting: Vec<usize> = by_namespace
                .get(&*name.namespace)
                .into_iter()
                .flatten()
                .copied()
                .filter(|&index| policies[index].pod_selector.matches(&pod.labels))
                .collect();
            let mut table = |direction| {
                let isolating: Vec<usize> = selecting
                    .iter()
                    .copied()
                    .filter(|&i| policies[i].rules(direction).is_some())
                    .collect();
                if isolating.is_empty() {
                    return None;
                }
                let isolation = Isolation {
                    direction,
                    policies: isolating.iter().map(|&index| policies[index]).collect(),
                    named_ports: NamedPorts::new(),
                };
                let named_ports = meant_by(&isolation, pod);
                let identity = (direction, isolating, named_ports.clone());
                Some(*known.entry(identity).or_insert_with(|| {
                    found.tables.push(Isolation {
                        named_ports,
                        ..isolation
                    });
                    found.tables.len() - 1
                }))
            };
            let tables = EndpointIndices {
                ingress: table(Direction::Ingress),
                egress: table(Direction::Egress),
            };
            if tables.ingress.is_some() || tables.egress.is_some() {
                found.pods.push((name, tables));
            }
        }
        found
    }

    /// The tables of one namespace alone, without who uses them.
    pub(super) fn of_namespace(&self, namespace: &str) -> Self {
        let is_of = |isolation: &&Isolation<'_>| {
            let mut policies = isolation.policies.iter();
            policies.all(|policy| &*policy.name.namespace == namespace)
        };
        Self {
            pods: Vec::new(),
            tables: self.tables.iter().filter(is_of).cloned().collect(),
        }
    }
}

/// What the named ports of ingress rules mean at the endpoint. Those of egress rules are the peers' matter.
fn meant_by(isolation: &Isolation<'_>, endpoint: &Pod) -> NamedPorts {
    if isolation.direction == Direction::Egress || endpoint.ports.is_empty() {
        return NamedPorts::new();
    }
    let named = |rule: &Rule, port: &NamedPort| {
        let matches =
            |m: &PortMatch| m.protocol == port.protocol && matches!(&m.port, Port::Named(name) if *name == port.name);
        rule.ports.iter().flatten().any(matches)
    };
    endpoint
        .ports
        .iter()
        .filter(|port| isolation.rules().flatten().any(|rule| named(rule, port)))
        .map(|port| (Arc::clone(&port.name), port.protocol, port.port))
        .collect()
}
