// SPDX-License-Identifier: Apache-2.0
//! What `NetworkPolicy` says about one flow at one pod, as its API documentation says it. The reference: no tables, no
//! indices, nothing shared with `compile` but the model.
//!
//! ```text
//! policies that select the pod and isolate this direction --none--> NotIsolated
//!         | some
//! rules of theirs that match peer and port               --none--> DefaultDeny(those policies)
//!         | some
//! Allow(policies and rules)
//! ```
//!
//! One edge at a time: a connection between two pods passes if the egress of one and the ingress of the other allow it,
//! and each edge decides alone. A pod's own traffic and its node's are the packet program's to tell: no object proves
//! them.

use std::net::IpAddr;

use crate::model::{Direction, ObjectName, Objects, Peer, Pod, Policy, Port, PortMatch, Protocol, Rule};
use crate::tables::{Allowing, Attribution, PolicyRef};

/// A new flow as one pod's edge sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The pod at whose edge it is judged.
    pub endpoint: ObjectName,
    /// Ingress: the flow goes to the endpoint. Egress: it comes from it.
    pub direction: Direction,
    /// The other side; an IPv4 address is a V4 here, never a mapped V6.
    pub remote: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port in host order; 0 where the protocol has none.
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No policy isolates the pod in this direction: allowed. So is a pod that is not known.
    NotIsolated,
    /// Some rules allow it: all of them, of all policies.
    Allow(Attribution),
    /// No rule allows it: the policies that isolate the pod, by name.
    DefaultDeny(Vec<PolicyRef>),
}

/// Judges a flow by the objects alone.
pub fn evaluate(objects: &Objects, flow: &Flow) -> Verdict {
    let Some(endpoint) = objects.pods.get(&flow.endpoint) else {
        return Verdict::NotIsolated;
    };
    let isolating: Vec<(&Policy, &[Rule])> = objects
        .policies
        .values()
        .filter(|policy| selects(policy, &flow.endpoint, endpoint))
        .filter_map(|policy| Some((&**policy, policy.rules(flow.direction)?)))
        .collect();
    if isolating.is_empty() {
        return Verdict::NotIsolated;
    }

    let edge = Edge {
        objects,
        flow,
        endpoint,
        remote: owner(objects, flow.remote),
    };
    let policies: Vec<Allowing> = isolating
        .iter()
        .filter_map(|(policy, rules)| edge.allowing(policy, rules))
        .collect();
    if policies.is_empty() {
        Verdict::DefaultDeny(isolating.iter().map(|(policy, _)| PolicyRef::from(*policy)).collect())
    } else {
        Verdict::Allow(Attribution { policies })
    }
}

/// A policy selects pods of its own namespace only.
fn selects(policy: &Policy, name: &ObjectName, pod: &Pod) -> bool {
    policy.name.namespace == name.namespace && policy.pod_selector.matches(&pod.labels)
}

/// The pod that has this address. One that two pods claim is nobody's: an address is handed to a new pod while the
/// old one is still listed, and either guess could admit what no policy allows.
fn owner(objects: &Objects, address: IpAddr) -> Option<(&ObjectName, &Pod)> {
    let mut owners = objects.pods.iter().filter(|(_, pod)| pod.addresses.contains(&address));
    let (name, pod) = owners.next()?;
    owners.next().is_none().then_some((name, &**pod))
}

/// One flow at one pod's edge, with what is known of both sides.
struct Edge<'a> {
    objects: &'a Objects,
    flow: &'a Flow,
    endpoint: &'a Pod,
    remote: Option<(&'a ObjectName, &'a Pod)>,
}

impl Edge<'_> {
    /// The rules of one policy that allow the flow; None: it allows it by none.
    fn allowing(&self, policy: &Policy, rules: &[Rule]) -> Option<Allowing> {
        let rules: Vec<u32> = (0..)
            .zip(rules)
            .filter(|(_, rule)| self.rule_matches(policy, rule))
            .map(|(index, _)| index)
            .collect();
        (!rules.is_empty()).then(|| Allowing {
            policy: PolicyRef::from(policy),
            rules,
            log: policy.log,
        })
    }

    fn rule_matches(&self, policy: &Policy, rule: &Rule) -> bool {
        let peer = rule
            .peers
            .as_ref()
            .is_none_or(|peers| peers.iter().any(|peer| self.peer_matches(policy, peer)));
        let port = rule
            .ports
            .as_ref()
            .is_none_or(|ports| ports.iter().any(|port| self.port_matches(port)));
        peer && port
    }

    fn peer_matches(&self, policy: &Policy, peer: &Peer) -> bool {
        match peer {
            Peer::Block(block) => block.contains(&self.flow.remote),
            Peer::Pods { namespaces, pods } => self.remote.is_some_and(|(name, pod)| {
                let namespace = match namespaces {
                    None => name.namespace == policy.name.namespace,
                    // A namespace that is not known matches no selector, not even the empty one.
                    Some(selector) => self
                        .objects
                        .namespaces
                        .get(&name.namespace)
                        .is_some_and(|labels| selector.matches(labels)),
                };
                namespace && pods.matches(&pod.labels)
            }),
        }
    }

    fn port_matches(&self, wanted: &PortMatch) -> bool {
        if Protocol::from_number(self.flow.protocol) != Some(wanted.protocol) {
            return false;
        }
        match &wanted.port {
            Port::Any => true,
            Port::Exact(port) => self.flow.port == *port,
            Port::Range(first, last) => (*first..=*last).contains(&self.flow.port),
            // A name means what the pod that is connected to calls so.
            Port::Named(name) => {
                let destination = match self.flow.direction {
                    Direction::Ingress => Some(self.endpoint),
                    Direction::Egress => self.remote.map(|(_, pod)| pod),
                };
                destination.is_some_and(|pod| {
                    pod.ports
                        .iter()
                        .any(|p| p.name == *name && p.protocol == wanted.protocol && p.port == self.flow.port)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests;
