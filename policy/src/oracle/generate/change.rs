// SPDX-License-Identifier: Apache-2.0
//! One change to a cluster, as users, controllers and kubelets make them.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pod::status;
use super::{Cluster, Generator, NAMESPACES, NODE, NODE_ADDRESSES, OTHER_NODE_ADDRESSES, node};

impl Generator {
    /// Changes one thing, and says what.
    pub fn change(&mut self, cluster: &mut Cluster) -> &'static str {
        match self.weighted(&[35, 55, 7, 3]) {
            0 => self.change_policies(cluster),
            1 => self.change_pods(cluster),
            2 => self.change_namespaces(cluster),
            _ => self.change_node(cluster),
        }
    }

    fn change_policies(&mut self, cluster: &mut Cluster) -> &'static str {
        let choice = self.weighted(&[20, 12, 68]);
        if choice == 0 || cluster.policies.is_empty() {
            self.add_policy(cluster);
            return "a policy is created";
        }
        let index = self.below(cluster.policies.len());
        if choice == 1 {
            cluster.policies.remove(index);
            return "a policy is deleted";
        }
        let policy = &mut cluster.policies[index];
        policy.metadata.generation = policy.metadata.generation.map(|generation| generation + 1);
        let mut spec = policy.spec.take().unwrap_or_default();
        let what = self.edit(&mut spec);
        cluster.policies[index].spec = Some(spec);
        what
    }

    fn edit(&mut self, spec: &mut NetworkPolicySpec) -> &'static str {
        let whole = self.policy_spec();
        match self.weighted(&[15, 15, 10, 20, 20, 10, 10]) {
            0 => {
                spec.pod_selector = whole.pod_selector;
                "a policy selects others"
            }
            1 => {
                spec.policy_types = whole.policy_types;
                "a policy has other types"
            }
            2 => {
                *spec = whole;
                "a policy is replaced"
            }
            3 => {
                spec.ingress = whole.ingress;
                "a policy has other ingress rules"
            }
            4 => {
                spec.egress = whole.egress;
                "a policy has other egress rules"
            }
            5 => {
                let (from, ports) = (self.peers(), self.ports());
                if let Some(rule) = spec.ingress.iter_mut().flatten().next() {
                    rule.from = from;
                }
                if let Some(rule) = spec.egress.iter_mut().flatten().next() {
                    rule.ports = ports;
                }
                "a rule is edited"
            }
            _ => {
                spec.ingress.get_or_insert_default().pop();
                spec.egress.get_or_insert_default().pop();
                "a rule is removed"
            }
        }
    }

    fn change_pods(&mut self, cluster: &mut Cluster) -> &'static str {
        let choice = self.weighted(&[22, 12, 30, 12, 8, 8, 8]);
        if choice == 0 || cluster.pods.is_empty() {
            self.add_pod(cluster);
            return "a pod is created";
        }
        let index = self.below(cluster.pods.len());
        match choice {
            1 => {
                cluster.pods.remove(index);
                "a pod is deleted"
            }
            2 => {
                cluster.pods[index].metadata.labels = Some(self.labels());
                "a pod is labelled"
            }
            3 => self.change_address(cluster, index),
            4 => {
                let phase = self.one_of(&["Running", "Succeeded", "Failed"]);
                // Nothing follows on the end.
                if let Some(status) = &mut cluster.pods[index].status
                    && !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
                {
                    status.phase = Some(phase.to_owned());
                }
                "a pod has another phase"
            }
            5 => {
                let name = name_of(&cluster.pods.remove(index));
                let successor = self.pod(cluster, name);
                cluster.pods.push(successor);
                "a pod is replaced by another of its name"
            }
            _ => {
                let gone = cluster.pods.remove(index);
                self.add_pod(cluster);
                if let (Some(heir), Some(left)) = (cluster.pods.last_mut(), gone.status)
                    && heir.status.as_ref().is_some_and(|status| status.pod_ips.is_some())
                    && left.pod_ips.is_some()
                    && !is_on_host_network(heir)
                    && gone.spec.is_some_and(|spec| spec.host_network.is_none())
                {
                    heir.status = Some(left);
                }
                "a pod gets the address of one that goes"
            }
        }
    }

    fn change_address(&mut self, cluster: &mut Cluster, index: usize) -> &'static str {
        let addresses = self.addresses(cluster);
        let pod = &mut cluster.pods[index];
        let is_scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        if is_scheduled && !is_on_host_network(pod) {
            let phase = pod.status.take().and_then(|status| status.phase);
            pod.status = Some(status(&phase.unwrap_or_default(), addresses));
        }
        "a pod has other addresses"
    }

    fn change_namespaces(&mut self, cluster: &mut Cluster) -> &'static str {
        let name = self.one_of(&NAMESPACES);
        let known = cluster.namespaces.len();
        cluster
            .namespaces
            .retain(|namespace| namespace.metadata.name.as_deref() != Some(name));
        if cluster.namespaces.len() < known && self.chance(15) {
            return "a namespace is deleted";
        }
        let namespace = self.namespace(name);
        cluster.namespaces.push(namespace);
        "a namespace is labelled"
    }

    fn change_node(&mut self, cluster: &mut Cluster) -> &'static str {
        let (name, all): (_, &[&str]) = if self.chance(50) {
            (NODE, &NODE_ADDRESSES)
        } else {
            ("node2", &OTHER_NODE_ADDRESSES)
        };
        let count = 1 + self.below(all.len());
        cluster.nodes.retain(|node| node.metadata.name.as_deref() != Some(name));
        cluster.nodes.push(node(name, &all[..count]));
        "a node has other addresses"
    }
}

fn name_of(pod: &Pod) -> ObjectMeta {
    ObjectMeta {
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        ..ObjectMeta::default()
    }
}

fn is_on_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true))
}
