// SPDX-License-Identifier: Apache-2.0
//! Policies with every feature: lists absent and empty, types by default and by name, all kinds of selectors, peers and
//! ports.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Cluster, Generator, KEYS, NAME_LABEL, NAMESPACES, PORT_NAMES, PORTS, PROTOCOLS, VALUES};

/// Blocks around the addresses of pods and nodes, within each other; some are written with host bits, as API servers
/// take them.
const BLOCKS: [&str; 18] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.9/27",
    "10.0.0.8/29",
    "10.0.0.16/28",
    "10.0.0.5/32",
    "192.168.77.0/30",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "::/0",
    "fd00::/8",
    "fd00::/64",
    "fd00::9/123",
    "fd00::8/125",
    "fd00::5/128",
    "fd00:77::/120",
    "2001:db8::/32",
];

impl Generator {
    pub(super) fn add_policy(&mut self, cluster: &mut Cluster) {
        if let Some(name) = self.free_name("policy", cluster.policies.iter().map(|policy| &policy.metadata)) {
            let policy = NetworkPolicy {
                metadata: ObjectMeta {
                    generation: Some(1),
                    ..name
                },
                spec: self.chance(98).then(|| self.policy_spec()),
            };
            cluster.policies.push(policy);
        }
    }

    pub(super) fn policy_spec(&mut self) -> NetworkPolicySpec {
        let types = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        NetworkPolicySpec {
            pod_selector: match self.weighted(&[5, 45, 50]) {
                0 => None,
                1 => Some(LabelSelector::default()),
                _ => Some(self.selector()),
            },
            policy_types: match self.weighted(&[35, 5, 20, 20, 20]) {
                0 => None,
                1 => types(&[]),
                2 => types(&["Ingress"]),
                3 => types(&["Egress"]),
                _ => types(&["Ingress", "Egress"]),
            },
            ingress: self.list(20, 10, 3, |generator| NetworkPolicyIngressRule {
                from: generator.peers(),
                ports: generator.ports(),
            }),
            egress: self.list(20, 10, 3, |generator| NetworkPolicyEgressRule {
                to: generator.peers(),
                ports: generator.ports(),
            }),
        }
    }

    pub(super) fn peers(&mut self) -> Option<Vec<NetworkPolicyPeer>> {
        self.list(12, 8, 3, Self::peer)
    }

    fn peer(&mut self) -> NetworkPolicyPeer {
        let mut peer = NetworkPolicyPeer::default();
        match self.weighted(&[30, 15, 20, 35]) {
            0 => peer.pod_selector = Some(self.selector()),
            1 => peer.namespace_selector = Some(self.namespace_selector()),
            2 => {
                peer.pod_selector = Some(self.selector());
                peer.namespace_selector = Some(self.namespace_selector());
            }
            _ => peer.ip_block = Some(self.block()),
        }
        peer
    }

    /// A block, and of its strict parts some as excepts.
    fn block(&mut self) -> IPBlock {
        let cidr = self.one_of(&BLOCKS);
        let net = |text: &str| text.parse::<IpNet>().map(|net| net.trunc()).ok();
        let is_part = |part: &&str| match (net(cidr), net(part)) {
            (Some(whole), Some(part)) => whole.contains(&part) && whole != part,
            _ => false,
        };
        let parts: Vec<&str> = BLOCKS.iter().copied().filter(is_part).collect();
        let except = if parts.is_empty() {
            None
        } else {
            self.list(40, 15, 2, |generator| generator.one_of(&parts).to_owned())
        };
        IPBlock {
            cidr: cidr.to_owned(),
            except,
        }
    }

    pub(super) fn ports(&mut self) -> Option<Vec<NetworkPolicyPort>> {
        self.list(20, 10, 4, Self::port)
    }

    fn port(&mut self) -> NetworkPolicyPort {
        let (a, b) = (self.one_of(&PORTS), self.one_of(&PORTS));
        let (port, end_port) = match self.weighted(&[15, 35, 30, 20]) {
            0 => (None, None),
            1 => (Some(IntOrString::Int(a.into())), None),
            2 => (Some(IntOrString::Int(a.min(b).into())), Some(a.max(b).into())),
            _ => (Some(IntOrString::String(self.one_of(&PORT_NAMES).to_owned())), None),
        };
        NetworkPolicyPort {
            protocol: self.chance(60).then(|| self.one_of(&PROTOCOLS).to_owned()),
            port,
            end_port,
        }
    }

    pub(super) fn selector(&mut self) -> LabelSelector {
        self.selector_of(&KEYS, &VALUES)
    }

    fn namespace_selector(&mut self) -> LabelSelector {
        if self.chance(40) {
            self.selector_of(&[NAME_LABEL], &NAMESPACES)
        } else {
            self.selector_of(&KEYS, &VALUES)
        }
    }

    fn selector_of(&mut self, keys: &[&str], values: &[&str]) -> LabelSelector {
        let mut selector = LabelSelector::default();
        for key in keys {
            // What is asked of one key may be several things.
            let (is_label, requirements) = self.one_of(&[
                (true, 0),
                (true, 0),
                (true, 0),
                (false, 1),
                (false, 1),
                (false, 2),
                (true, 1),
                (false, 0),
            ]);
            if is_label {
                let labels = selector.match_labels.get_or_insert_default();
                labels.insert((*key).to_owned(), self.one_of(values).to_owned());
            }
            for _ in 0..requirements {
                let requirement = self.requirement(key, values);
                selector.match_expressions.get_or_insert_default().push(requirement);
            }
        }
        selector
    }

    fn requirement(&mut self, key: &str, values: &[&str]) -> LabelSelectorRequirement {
        let operator = self.one_of(&["In", "In", "NotIn", "Exists", "DoesNotExist"]);
        let count = 1 + self.below(2);
        let values = matches!(operator, "In" | "NotIn")
            .then(|| (0..count).map(|_| self.one_of(values).to_owned()).collect::<Vec<_>>());
        LabelSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values,
        }
    }
}
