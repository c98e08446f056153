// SPDX-License-Identifier: Apache-2.0
//! The question, and its answer: each edge judged by the reference, once an address family that both ends have.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use wardline_policy::evaluate::{Flow, Verdict, evaluate};
use wardline_policy::model::{Direction, ObjectName};

use super::answer::{Allowed, Answer, Edge, Isolating, Party, Path, PodName, PolicyName, Ruling};
use super::inventory::{Inventory, Place, PlaceKind};
use super::reasons::misses;
use crate::args::{EvalArgs, PartyArg, ProtocolArg, ServiceArg};

#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) from: PartyArg,
    pub(super) to: PartyArg,
    pub(super) service: What,
}

/// What is asked for at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Port(ServiceArg),
    Protocol(ProtocolArg),
}

impl From<&EvalArgs> for Question {
    fn from(args: &EvalArgs) -> Self {
        // The command line has exactly one of them.
        let service = args
            .port
            .map(What::Port)
            .or(args.protocol.map(What::Protocol))
            .unwrap_or(What::Protocol(ProtocolArg::Icmp));
        Self {
            from: args.from.clone(),
            to: args.to.clone(),
            service,
        }
    }
}

/// Answers by the objects alone.
pub(super) fn answer(inventory: &Inventory, question: &Question) -> anyhow::Result<Answer> {
    let from = resolve(inventory, &question.from).context("failed to resolve --from")?;
    let to = resolve(inventory, &question.to).context("failed to resolve --to")?;
    let mut paths = Vec::new();
    for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let of = |party: &Party| party.addresses.iter().copied().find(family);
        if let (Some(source), Some(destination)) = (of(&from), of(&to)) {
            paths.push(path(inventory, question.service, (&from, source), (&to, destination)));
        }
    }
    if paths.is_empty() {
        bail!(
            "failed to find a way: {} and {} have no addresses of the same family",
            question.from,
            question.to
        );
    }
    paths.sort_by_key(|path| to.addresses.first() != Some(&path.dest_ip));
    let mut notes = contested(inventory, &paths);
    notes.extend(doubts(inventory, &from, &to));
    Ok(Answer {
        allowed: paths.iter().all(|path| path.allowed),
        from,
        to,
        paths,
        notes,
    })
}

fn resolve(inventory: &Inventory, party: &PartyArg) -> anyhow::Result<Party> {
    match party {
        PartyArg::Pod(name) => {
            let place = inventory
                .places
                .get(name)
                .with_context(|| format!("there is no pod {name}"))?;
            if place.kind == PlaceKind::Finished {
                bail!("pod {name} has finished: its address may be another's by now");
            }
            if place.addresses.is_empty() {
                bail!("pod {name} has no address: status.podIPs is empty");
            }
            Ok(found(name, place, place.addresses.clone()))
        }
        PartyArg::Address(address) => match inventory.owners(address)[..] {
            [(name, place)] => Ok(found(name, place, vec![*address])),
            _ => Ok(Party {
                pod: None,
                node: inventory.node_of(address),
                host_network: false,
                addresses: vec![*address],
            }),
        },
    }
}

fn found(name: &ObjectName, place: &Place, addresses: Vec<IpAddr>) -> Party {
    Party {
        pod: Some(PodName {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
        }),
        node: place.node.clone(),
        host_network: place.kind == PlaceKind::HostNetwork,
        addresses,
    }
}

impl Inventory {
    /// Pods with edges of their own that claim the address.
    fn owners(&self, address: &IpAddr) -> Vec<(&ObjectName, &Place)> {
        let claims = |place: &Place| place.kind == PlaceKind::Endpoint && place.addresses.contains(address);
        self.places.iter().filter(|(_, place)| claims(place)).collect()
    }

    fn node_of(&self, address: &IpAddr) -> Option<String> {
        let mut nodes = self.nodes.iter().filter(|(_, addresses)| addresses.contains(address));
        nodes.next().map(|(name, _)| name.clone())
    }
}

/// One end and the address that it has on this path.
type End<'a> = (&'a Party, IpAddr);

fn path(inventory: &Inventory, what: What, from: End<'_>, to: End<'_>) -> Path {
    let (number, port) = match what {
        What::Port(service) => (service.protocol.number(), service.port),
        What::Protocol(ProtocolArg::Number(number)) => (number, 0),
        What::Protocol(ProtocolArg::Icmp) => (if to.1.is_ipv4() { ICMP } else { ICMPV6 }, 0),
    };
    let edge = |direction, (local, _): End<'_>, (remote, remote_address): End<'_>| {
        let Some(endpoint) = local.endpoint() else {
            return Edge {
                direction,
                ruling: Ruling::NoEdge,
            };
        };
        if remote.endpoint().as_ref() == Some(&endpoint) {
            return Edge {
                direction,
                ruling: Ruling::Itself,
            };
        }
        let flow = Flow {
            endpoint,
            direction,
            remote: remote_address,
            protocol: number,
            port,
        };
        Edge {
            direction,
            ruling: rule(inventory, &flow, local, remote),
        }
    };
    let edges = [edge(Direction::Egress, from, to), edge(Direction::Ingress, to, from)];
    Path {
        allowed: edges.iter().all(|edge| edge.ruling.allows()),
        src_ip: from.1,
        dest_ip: to.1,
        protocol: protocol_name(number),
        dest_port: (port != 0).then_some(port),
        edges,
    }
}

/// In the order of docs/packet.md, section 4: isolated at all, then the node, then the rules.
fn rule(inventory: &Inventory, flow: &Flow, local: &Party, remote: &Party) -> Ruling {
    let verdict = evaluate(&inventory.objects, flow);
    if verdict == Verdict::NotIsolated {
        return Ruling::NotIsolated;
    }
    // To the node's address is to the node. From it is only what a socket of the node sent: a pod on the host network
    // does, an address proves nothing.
    let is_node = remote.node.is_some()
        && remote.node == local.node
        && match flow.direction {
            Direction::Egress => remote.host_network || remote.pod.is_none(),
            Direction::Ingress => remote.host_network,
        };
    match verdict {
        _ if is_node => Ruling::Node,
        Verdict::NotIsolated => Ruling::NotIsolated,
        Verdict::Allow(attribution) => Ruling::Allow {
            policies: attribution.policies.iter().map(Allowed::from).collect(),
        },
        Verdict::DefaultDeny(policies) => Ruling::DefaultDeny {
            isolated_by: policies
                .iter()
                .map(|policy| Isolating {
                    policy: PolicyName::from(policy),
                    misses: misses(&inventory.objects, flow, &policy.name),
                })
                .collect(),
        },
    }
}

/// Addresses that several pods claim, as a new pod's and a leaving one's for a moment.
fn contested(inventory: &Inventory, paths: &[Path]) -> Vec<String> {
    let mut notes = Vec::new();
    for address in paths.iter().flat_map(|path| [path.src_ip, path.dest_ip]) {
        let owners = inventory.owners(&address);
        if owners.len() > 1 {
            let names: Vec<String> = owners.iter().map(|(name, _)| name.to_string()).collect();
            notes.push(format!(
                "{address} is claimed by pods {}: it is nobody's, and no podSelector matches it",
                names.join(" and ")
            ));
        }
    }
    notes.dedup();
    notes
}

/// What makes the answer less than certain.
fn doubts(inventory: &Inventory, from: &Party, to: &Party) -> Vec<String> {
    let mut notes = Vec::new();
    let namespaces = [from, to].map(|party| party.endpoint().map(|name| name.namespace));
    let mut told: Vec<&str> = Vec::new();
    for namespace in namespaces.iter().flatten() {
        if !told.contains(&&**namespace) {
            told.push(namespace);
            notes.extend(inventory.refused.get(&**namespace).into_iter().flatten().cloned());
        }
    }
    if !inventory.assumed.is_empty() {
        let names: Vec<&str> = inventory.assumed.iter().map(AsRef::as_ref).collect();
        notes.push(format!(
            "the files do not describe these namespaces, which are taken to have no labels but their name: {}",
            names.join(", ")
        ));
    }
    if let (None, Some(node), true) = (&from.pod, &from.node, from.node == to.node && to.endpoint().is_some()) {
        notes.push(format!(
            "what a process of {node} itself sends always reaches the pods of {node}; the answer is for packets that only \
             carry its address, such as masqueraded ones"
        ));
    }
    notes
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

fn protocol_name(number: u8) -> String {
    match number {
        ICMP => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}
