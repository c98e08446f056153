// SPDX-License-Identifier: Apache-2.0
//! Pods as an API server has them: an address of each family at most, one name for several ports, every phase.

use std::net::{Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Cluster, Generator, NODE, NODE_ADDRESSES, OTHER_NODE, OTHER_NODE_ADDRESSES, PORT_NAMES, PORTS, PROTOCOLS};

impl Generator {
    pub(super) fn add_pod(&mut self, cluster: &mut Cluster) {
        if let Some(name) = self.free_name("pod", cluster.pods.iter().map(|pod| &pod.metadata)) {
            let pod = self.pod(cluster, name);
            cluster.pods.push(pod);
        }
    }

    /// Another pod of that name.
    pub(super) fn pod(&mut self, cluster: &Cluster, name: ObjectMeta) -> Pod {
        self.made += 1;
        let host_network = self.chance(8);
        let node = match self.weighted(&[70, 25, 5]) {
            0 => Some(NODE),
            1 => Some(OTHER_NODE),
            _ => None,
        };
        let phase = match self.weighted(&[80, 8, 4, 4, 4]) {
            0 => "Running",
            1 => "Pending",
            2 => "Succeeded",
            3 => "Failed",
            _ => "Unknown",
        };
        let addresses = match (node, host_network) {
            (None, _) => Vec::new(),
            (Some(NODE), true) => NODE_ADDRESSES[..2].iter().map(|ip| (*ip).to_owned()).collect(),
            (Some(_), true) => OTHER_NODE_ADDRESSES.iter().map(|ip| (*ip).to_owned()).collect(),
            (Some(_), false) => self.addresses(cluster),
        };
        Pod {
            metadata: ObjectMeta {
                uid: Some(format!("uid-{}", self.made)),
                labels: self.chance(95).then(|| self.labels()),
                ..name
            },
            spec: Some(PodSpec {
                node_name: node.map(str::to_owned),
                host_network: host_network.then_some(true),
                containers: (0..=self.below(2))
                    .map(|n| self.container(format!("c{n}"), None))
                    .collect(),
                init_containers: self.chance(25).then(|| {
                    let policy = self.chance(60).then_some("Always");
                    vec![self.container("init".to_owned(), policy)]
                }),
                ..PodSpec::default()
            }),
            status: Some(status(phase, addresses)),
        }
    }

    /// One of 30 of each family: enough that most pods have their own, few enough that some share.
    pub(super) fn addresses(&mut self, cluster: &Cluster) -> Vec<String> {
        let taken: Vec<&PodIP> = cluster
            .pods
            .iter()
            .filter_map(|pod| pod.status.as_ref()?.pod_ips.as_ref())
            .flatten()
            .collect();
        let may_share = self.chance(15);
        let free = |generator: &mut Self, address: fn(u8) -> String| loop {
            let address = address(u8::try_from(generator.below(30)).unwrap_or(0));
            if may_share || !taken.iter().any(|ip| ip.ip == address) {
                return address;
            }
        };
        let v4 = |host| Ipv4Addr::new(10, 0, 0, host).to_string();
        let v6 = |host| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)).to_string();
        match self.weighted(&[25, 20, 35, 15, 5]) {
            0 => vec![free(self, v4)],
            1 => vec![free(self, v6)],
            2 => vec![free(self, v4), free(self, v6)],
            3 => vec![free(self, v6), free(self, v4)],
            _ => Vec::new(),
        }
    }

    fn container(&mut self, name: String, restart_policy: Option<&str>) -> Container {
        Container {
            name,
            ports: self.list(20, 10, 3, |generator| ContainerPort {
                name: generator.chance(85).then(|| generator.one_of(&PORT_NAMES).to_owned()),
                container_port: generator.one_of(&PORTS).into(),
                protocol: generator.chance(60).then(|| generator.one_of(&PROTOCOLS).to_owned()),
                ..ContainerPort::default()
            }),
            restart_policy: restart_policy.map(str::to_owned),
            ..Container::default()
        }
    }
}

pub(super) fn status(phase: &str, addresses: Vec<String>) -> PodStatus {
    PodStatus {
        phase: Some(phase.to_owned()),
        pod_ip: addresses.first().cloned(),
        pod_ips: (!addresses.is_empty()).then(|| addresses.into_iter().map(|ip| PodIP { ip }).collect()),
        ..PodStatus::default()
    }
}
