// SPDX-License-Identifier: Apache-2.0
//! What the API's documentation says about one flow, read off its objects: loops and comparisons, slow and plain.
//!
//! Written from the comments of `k8s.io/api/networking/v1/types.go`, quoted where a line follows one, and
//! <https://kubernetes.io/docs/concepts/services-networking/network-policies/>. Where they are silent, docs/policy.md
//! says what is meant.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Cluster, Direction, Flow};

/// Whether a flow passes, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A pod to itself, its node to it, it to its node: whatever policies say.
    Always,
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// The policies that have a rule for it, by name.
    Allowed(Vec<By>),
    /// No rule allows it: all policies that isolate the pod in this direction, by name.
    Denied(Vec<By>),
}

impl Answer {
    pub fn passes(&self) -> bool {
        !matches!(self, Self::Denied(_))
    }

    /// The policies that decided.
    pub fn by(&self) -> &[By] {
        match self {
            Self::Always | Self::NotIsolated => &[],
            Self::Allowed(by) | Self::Denied(by) => by,
        }
    }
}

/// A policy and those of its rules that allow; none where it denies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct By {
    /// `namespace/name`.
    pub policy: String,
    pub generation: i64,
    pub rules: Vec<u32>,
}

/// Judges a flow. A pod that is not there is not isolated.
pub fn judge(cluster: &Cluster, flow: &Flow) -> Answer {
    let Some(pod) = cluster.pods.iter().find(|pod| full_name(&pod.metadata) == flow.pod) else {
        return Answer::NotIsolated;
    };
    let is_always_allowed = is_always_allowed(cluster, pod, flow);
    // What goes to the node is the work of a rule, if one allows it: that is told.
    if is_always_allowed && flow.direction == Direction::Ingress {
        return Answer::Always;
    }
    let mut isolating = Vec::new();
    let mut allowing = Vec::new();
    for policy in &cluster.policies {
        if !selects(policy, pod) || !is_about(policy, flow.direction) {
            continue;
        }
        let by = |rules| By {
            policy: full_name(&policy.metadata),
            generation: policy.metadata.generation.unwrap_or(0),
            rules,
        };
        isolating.push(by(Vec::new()));
        // "The traffic must match both ports and from."
        let mut rules = Vec::new();
        for (index, rule) in (0..).zip(rules_of(policy, flow.direction)) {
            if has_peer(cluster, policy, rule.peers, flow) && has_port(cluster, pod, rule.ports, flow) {
                rules.push(index);
            }
        }
        if !rules.is_empty() {
            allowing.push(by(rules));
        }
    }
    isolating.sort();
    allowing.sort();
    if isolating.is_empty() {
        Answer::NotIsolated
    } else if is_always_allowed && (allowing.is_empty() || is_to_itself(pod, flow)) {
        Answer::Always
    } else if allowing.is_empty() {
        Answer::Denied(isolating)
    } else {
        Answer::Allowed(allowing)
    }
}

/// "Traffic is allowed [...] if the traffic source is the pod's local node", and the concept page: "Traffic to and from
/// the node where a Pod is running is always allowed, regardless of the IP address of the Pod or the node", and a pod
/// cannot block access to itself.
fn is_always_allowed(cluster: &Cluster, pod: &Pod, flow: &Flow) -> bool {
    if is_to_itself(pod, flow) {
        return true;
    }
    let its_node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    for node in &cluster.nodes {
        if node.metadata.name.as_deref() != its_node {
            continue;
        }
        for address in node.status.iter().flat_map(|status| status.addresses.iter().flatten()) {
            if address.address.parse() == Ok(flow.remote) {
                // To an echo request the node itself answers.
                return flow.with_node || (flow.direction == Direction::Egress && matches!(flow.protocol, 1 | 58));
            }
        }
    }
    false
}

fn is_to_itself(pod: &Pod, flow: &Flow) -> bool {
    addresses(pod).contains(&flow.remote)
}

/// "podSelector selects the pods to which this NetworkPolicy object applies", in its own namespace. Pods on the host
/// network are beyond it.
fn selects(policy: &NetworkPolicy, pod: &Pod) -> bool {
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
    policy.metadata.namespace == pod.metadata.namespace
        && !is_on_host_network(pod)
        // "If it is not specified, it defaults to an empty selector."
        && selector.is_none_or(|selector| matches(selector, &pod.metadata))
}

/// "If this field is not specified, it will default based on the existence of ingress or egress rules; policies that
/// contain an egress section are assumed to affect egress, and all policies [...] are assumed to affect ingress."
fn is_about(policy: &NetworkPolicy, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else {
        return direction == Direction::Ingress;
    };
    let types = spec.policy_types.clone().unwrap_or_default();
    match direction {
        Direction::Ingress => types.is_empty() || types.iter().any(|name| name == "Ingress"),
        Direction::Egress if types.is_empty() => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        Direction::Egress => types.iter().any(|name| name == "Egress"),
    }
}

/// A rule of either direction; absent lists are empty ones.
struct Rule<'a> {
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

fn rules_of(policy: &NetworkPolicy, direction: Direction) -> Vec<Rule<'_>> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let ingress = spec.ingress.iter().flatten().map(|rule| Rule {
        peers: rule.from.as_deref().unwrap_or_default(),
        ports: rule.ports.as_deref().unwrap_or_default(),
    });
    let egress = spec.egress.iter().flatten().map(|rule| Rule {
        peers: rule.to.as_deref().unwrap_or_default(),
        ports: rule.ports.as_deref().unwrap_or_default(),
    });
    match direction {
        Direction::Ingress => ingress.collect(),
        Direction::Egress => egress.collect(),
    }
}

/// "If this field is empty or missing, this rule matches all sources [...] traffic matches at least one item."
fn has_peer(cluster: &Cluster, policy: &NetworkPolicy, peers: &[NetworkPolicyPeer], flow: &Flow) -> bool {
    peers.is_empty() || peers.iter().any(|peer| is_peer(cluster, policy, peer, flow.remote))
}

fn is_peer(cluster: &Cluster, policy: &NetworkPolicy, peer: &NetworkPolicyPeer, remote: IpAddr) -> bool {
    // "If this field is set then neither of the other fields can be."
    if let Some(block) = &peer.ip_block {
        return is_in_block(block, remote);
    }
    let Some(pod) = pod_at(cluster, remote) else {
        return false;
    };
    let is_in_namespace = match &peer.namespace_selector {
        // "Otherwise it selects the pods matching podSelector in the policy's own namespace."
        None => pod.metadata.namespace == policy.metadata.namespace,
        Some(selector) => cluster.namespaces.iter().any(|namespace| {
            namespace.metadata.name == pod.metadata.namespace && matches(selector, &namespace.metadata)
        }),
    };
    // "Otherwise it selects all pods in the namespaces selected by namespaceSelector."
    let selector = peer.pod_selector.as_ref();
    is_in_namespace && selector.is_none_or(|selector| matches(selector, &pod.metadata))
}

/// The pod with this address, if it is one pod's alone. Finished pods have none any more, and those on the host network
/// have their node's.
fn pod_at(cluster: &Cluster, address: IpAddr) -> Option<&Pod> {
    let mut found = None;
    for pod in &cluster.pods {
        if is_on_host_network(pod) || is_finished(pod) || !addresses(pod).contains(&address) {
            continue;
        }
        if found.is_some() {
            return None;
        }
        found = Some(pod);
    }
    found
}

/// "If this field is empty or missing, this rule matches all ports [...] traffic matches at least one port."
fn has_port(cluster: &Cluster, pod: &Pod, ports: &[NetworkPolicyPort], flow: &Flow) -> bool {
    // "a numerical or named port on a pod": the pod that the flow goes to.
    let destination = match flow.direction {
        Direction::Ingress => Some(pod),
        Direction::Egress => pod_at(cluster, flow.remote),
    };
    ports.is_empty() || ports.iter().any(|port| is_port(port, destination, flow))
}

fn is_port(wanted: &NetworkPolicyPort, destination: Option<&Pod>, flow: &Flow) -> bool {
    // "If not specified, this field defaults to TCP."
    if protocol_number(wanted.protocol.as_deref()) != Some(flow.protocol) {
        return false;
    }
    match (&wanted.port, wanted.end_port) {
        // "If this field is not provided, this matches all port names and numbers."
        (None, _) => true,
        (Some(IntOrString::Int(port)), None) => *port == i32::from(flow.port),
        // "the range of ports from port to endPort if set, inclusive".
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&i32::from(flow.port)),
        (Some(IntOrString::String(name)), _) => destination.is_some_and(|pod| has_named_port(pod, name, flow)),
    }
}

/// The containers that run for as long as the pod does: sidecars are init containers that are restarted always.
fn has_named_port(pod: &Pod, name: &str, flow: &Flow) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let is_it = |container: &Container| {
        container.ports.iter().flatten().any(|port| {
            port.name.as_deref() == Some(name)
                && port.container_port == i32::from(flow.port)
                && protocol_number(port.protocol.as_deref()) == Some(flow.protocol)
        })
    };
    spec.containers.iter().any(is_it)
        || spec
            .init_containers
            .iter()
            .flatten()
            .any(|container| container.restart_policy.as_deref() == Some("Always") && is_it(container))
}

fn protocol_number(name: Option<&str>) -> Option<u8> {
    match name {
        None | Some("TCP") => Some(6),
        Some("UDP") => Some(17),
        Some("SCTP") => Some(132),
        Some(_) => None,
    }
}

/// "except is a slice of CIDRs that should not be included within an `IPBlock`."
fn is_in_block(block: &IPBlock, address: IpAddr) -> bool {
    is_in_cidr(&block.cidr, address) && !block.except.iter().flatten().any(|except| is_in_cidr(except, address))
}

fn is_in_cidr(cidr: &str, address: IpAddr) -> bool {
    let Some((network, length)) = cidr.split_once('/') else {
        return false;
    };
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    // The bits behind the prefix are shifted out; all of them are, where there is no prefix.
    match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(32 - length).unwrap_or(0) == 0,
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(128 - length).unwrap_or(0) == 0,
        _ => false,
    }
}

/// "The result of `matchLabels` and `matchExpressions` are `ANDed`. An empty label selector matches all objects."
fn matches(selector: &LabelSelector, object: &ObjectMeta) -> bool {
    let value = |key: &str| object.labels.as_ref().and_then(|labels| labels.get(key));
    for (key, wanted) in selector.match_labels.iter().flatten() {
        if value(key) != Some(wanted) {
            return false;
        }
    }
    selector
        .match_expressions
        .iter()
        .flatten()
        .all(|requirement| is_met(requirement, value(&requirement.key)))
}

fn is_met(requirement: &LabelSelectorRequirement, value: Option<&String>) -> bool {
    let is_listed = value.is_some_and(|value| requirement.values.iter().flatten().any(|wanted| wanted == value));
    match requirement.operator.as_str() {
        "In" => is_listed,
        // An object without the label is not in the set.
        "NotIn" => !is_listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

fn is_on_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true))
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Succeeded") || phase == Some("Failed")
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    listed.chain(&status.pod_ip).filter_map(|ip| ip.parse().ok()).collect()
}

fn full_name(metadata: &ObjectMeta) -> String {
    format!(
        "{}/{}",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default()
    )
}
