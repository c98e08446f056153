// SPDX-License-Identifier: Apache-2.0
//! Flows where verdicts change: at the edges of blocks and ranges, to what rules name, to oneself and one's node.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Cluster, Generator, NODE, NODE_ADDRESSES, OTHER_NODE_ADDRESSES, PORTS, PROTOCOLS, node_addresses};
use crate::oracle::naive::{Answer, judge};
use crate::oracle::{Direction, Flow};

/// How often a flow is drawn again at most.
const DRAWS: usize = 8;

const OUTSIDE: [&str; 9] = [
    "192.0.2.1",
    "192.0.2.127",
    "192.0.2.128",
    "203.0.113.9",
    "11.0.0.1",
    "2001:db8::1",
    "2001:db9::",
    "fd12::1",
    "2606::1",
];

impl Generator {
    /// A flow at a pod of [`NODE`] that takes part in policy and has an address; None where there is no such pod.
    ///
    /// What is rare comes as often as what is not: most flows that fall on something common are drawn again.
    pub fn flow(&mut self, cluster: &Cluster) -> Option<Flow> {
        let mut flow = self.any_flow(cluster)?;
        for _ in 0..DRAWS {
            let kept = match judge(cluster, &flow) {
                Answer::Always => 20,
                Answer::NotIsolated => 15,
                Answer::Denied(_) => 40,
                Answer::Allowed(_) => 100,
            };
            if self.chance(kept) {
                break;
            }
            flow = self.any_flow(cluster).unwrap_or(flow);
        }
        Some(flow)
    }

    fn any_flow(&mut self, cluster: &Cluster) -> Option<Flow> {
        let here: Vec<&Pod> = cluster.pods.iter().filter(|pod| is_judged_here(pod)).collect();
        if here.is_empty() {
            return None;
        }
        let pod = self.one_of(&here);
        let own = pod_addresses(pod);
        let direction = self.one_of(&[Direction::Ingress, Direction::Egress]);
        let aim = self.aim(cluster, pod, direction);
        let mut remote = self.remote(cluster, &own, &aim);
        for _ in 0..8 {
            if own.iter().any(|ip| ip.is_ipv4() == remote.is_ipv4()) {
                break;
            }
            remote = self.remote(cluster, &own, &aim);
        }
        if !own.iter().any(|ip| ip.is_ipv4() == remote.is_ipv4()) {
            return None;
        }
        let (protocol, port) = self.service(cluster, direction, remote, &aim);
        let is_node = cluster
            .nodes
            .iter()
            .any(|node| node.metadata.name.as_deref() == Some(NODE) && node_addresses(node).contains(&remote));
        // There is no asking whether a node has a socket of another protocol.
        let may_be_found = direction == Direction::Ingress || (matches!(protocol, 6 | 17) && port > 0);
        Some(Flow {
            pod: full_name(pod),
            direction,
            remote,
            protocol,
            port,
            with_node: is_node && may_be_found && self.chance(50),
        })
    }

    /// What some rule that may be about the pod admits; empty half of the time.
    fn aim(&mut self, cluster: &Cluster, pod: &Pod, direction: Direction) -> Aim {
        let rules: Vec<Aim> = cluster
            .policies
            .iter()
            .filter(|policy| policy.metadata.namespace == pod.metadata.namespace)
            .flat_map(|policy| aims(policy, direction))
            .collect();
        if rules.is_empty() || self.chance(30) {
            return Aim::default();
        }
        self.one_of(&rules)
    }

    fn remote(&mut self, cluster: &Cluster, own: &[IpAddr], aim: &Aim) -> IpAddr {
        let blocks: Vec<&String> = aim
            .peers
            .iter()
            .filter_map(|peer| peer.ip_block.as_ref())
            .flat_map(|block| std::iter::once(&block.cidr).chain(block.except.iter().flatten()))
            .collect();
        let edge = if blocks.is_empty() || self.chance(40) {
            None
        } else {
            let block = self.one_of(&blocks);
            self.edge(block)
        };
        if let Some(edge) = edge {
            return edge;
        }
        let mut pods: Vec<IpAddr> = cluster.pods.iter().flat_map(pod_addresses).collect();
        pods.retain(|ip| !own.contains(ip));
        let nodes = NODE_ADDRESSES.iter().chain(&OTHER_NODE_ADDRESSES);
        let candidates: Vec<IpAddr> = match self.weighted(&[70, 4, 8, 18]) {
            0 if !pods.is_empty() => pods,
            1 => own.to_vec(),
            2 => nodes.filter_map(|ip| ip.parse().ok()).collect(),
            _ => OUTSIDE.iter().filter_map(|ip| ip.parse().ok()).collect(),
        };
        self.one_of(&candidates)
    }

    /// The first or last address of a block, or the one beside it.
    fn edge(&mut self, block: &str) -> Option<IpAddr> {
        let net: IpNet = block.parse().ok()?;
        let edges = [
            Some(net.network()),
            Some(net.broadcast()),
            beside(net.network(), false),
            beside(net.broadcast(), true),
        ];
        let edges: Vec<IpAddr> = edges.into_iter().flatten().filter(is_ordinary).collect();
        (!edges.is_empty()).then(|| self.one_of(&edges))
    }

    /// Protocol number and port.
    fn service(&mut self, cluster: &Cluster, direction: Direction, remote: IpAddr, aim: &Aim) -> (u8, u16) {
        // Protocols without ports have one flow between two addresses: either end would be the other's answer.
        let without_ports = match (direction, remote) {
            (Direction::Ingress, _) if self.chance(30) => 47,
            (Direction::Egress, _) if self.chance(30) => 50,
            (_, IpAddr::V4(_)) => 1,
            (_, IpAddr::V6(_)) => 58,
        };
        if self.chance(10) {
            return (without_ports, 0);
        }
        if !aim.ports.is_empty() && self.chance(85) {
            let port = self.one_of(&aim.ports);
            let protocol = number(port.protocol.as_deref());
            return (protocol, self.port_near(cluster, &port));
        }
        let protocol = number(Some(PROTOCOLS[self.weighted(&[60, 25, 15])]));
        (protocol, self.some_port())
    }

    fn port_near(&mut self, cluster: &Cluster, wanted: &NetworkPolicyPort) -> u16 {
        let name = match &wanted.port {
            None => return self.some_port(),
            Some(IntOrString::Int(port)) => {
                let edge = self.one_of(&[*port, wanted.end_port.unwrap_or(*port)]);
                let port = edge + self.one_of(&[0, 0, 0, 1, -1]);
                return u16::try_from(port.max(1)).unwrap_or(u16::MAX);
            }
            Some(IntOrString::String(name)) => name,
        };
        let named: Vec<i32> = cluster
            .pods
            .iter()
            .filter_map(|pod| pod.spec.as_ref())
            .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
            .flat_map(|container| container.ports.iter().flatten())
            .filter(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port)
            .collect();
        if named.is_empty() {
            return self.some_port();
        }
        u16::try_from(self.one_of(&named)).unwrap_or(u16::MAX)
    }

    fn some_port(&mut self) -> u16 {
        if self.chance(80) {
            self.one_of(&PORTS)
        } else {
            u16::try_from(1 + self.below(65535)).unwrap_or(u16::MAX)
        }
    }
}

/// What a rule admits, of either direction.
#[derive(Clone, Debug, Default)]
struct Aim {
    peers: Vec<NetworkPolicyPeer>,
    ports: Vec<NetworkPolicyPort>,
}

fn aims(policy: &NetworkPolicy, direction: Direction) -> Vec<Aim> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let aim = |peers: &Option<Vec<_>>, ports: &Option<Vec<_>>| Aim {
        peers: peers.clone().unwrap_or_default(),
        ports: ports.clone().unwrap_or_default(),
    };
    match direction {
        Direction::Ingress => spec
            .ingress
            .iter()
            .flatten()
            .map(|rule| aim(&rule.from, &rule.ports))
            .collect(),
        Direction::Egress => spec
            .egress
            .iter()
            .flatten()
            .map(|rule| aim(&rule.to, &rule.ports))
            .collect(),
    }
}

fn beside(address: IpAddr, above: bool) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(v4) if above => v4.to_bits().checked_add(1).map(std::net::Ipv4Addr::from_bits)?.into(),
        IpAddr::V4(v4) => v4.to_bits().checked_sub(1).map(std::net::Ipv4Addr::from_bits)?.into(),
        IpAddr::V6(v6) if above => v6.to_bits().checked_add(1).map(std::net::Ipv6Addr::from_bits)?.into(),
        IpAddr::V6(v6) => v6.to_bits().checked_sub(1).map(std::net::Ipv6Addr::from_bits)?.into(),
    })
}

/// Neither the unspecified address nor one that several stations have.
fn is_ordinary(address: &IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !is_broadcast && !address.is_loopback()
}

fn is_judged_here(pod: &Pod) -> bool {
    let is_finished = |phase: &str| matches!(phase, "Succeeded" | "Failed");
    let status = pod.status.as_ref();
    let spec = pod.spec.as_ref();
    spec.is_some_and(|spec| spec.node_name.as_deref() == Some(NODE) && spec.host_network != Some(true))
        && !status
            .and_then(|status| status.phase.as_deref())
            .is_some_and(is_finished)
        && !pod_addresses(pod).is_empty()
}

pub(super) fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    let listed = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    listed.filter_map(|ip| ip.ip.parse().ok()).collect()
}

fn full_name(pod: &Pod) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}

fn number(protocol: Option<&str>) -> u8 {
    match protocol {
        Some("UDP") => 17,
        Some("SCTP") => 132,
        _ => 6,
    }
}
