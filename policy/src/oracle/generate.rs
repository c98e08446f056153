// SPDX-License-Identifier: Apache-2.0
//! Random clusters, flows in them and changes to them, the same for the same seed.
//!
//! Few names, labels, addresses and ports, so that they meet often: pods that share an address, namespaces that nobody
//! knows, blocks within blocks, ranges that overlap. All that an API server lets through can occur, and nothing else.

mod change;
mod flow;
mod pod;
mod policy;

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Node, NodeAddress, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::Cluster;

/// The node whose pods flows are judged at.
pub const NODE: &str = "node1";
const OTHER_NODE: &str = "node2";

/// Its addresses, and one that it gets and loses.
const NODE_ADDRESSES: [&str; 3] = ["192.168.77.1", "fd00:77::1", "10.0.0.30"];
const OTHER_NODE_ADDRESSES: [&str; 2] = ["192.168.77.2", "fd00:77::2"];

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 2] = ["app", "tier"];
/// A label may have an empty value, which is not the same as not to be there.
const VALUES: [&str; 4] = ["x", "y", "z", ""];
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const PORT_NAMES: [&str; 2] = ["http", "dns"];
/// Both ends of the port space, and some that stand together.
const PORTS: [u16; 14] = [1, 2, 53, 79, 80, 81, 443, 1023, 1024, 8080, 32767, 32768, 65534, 65535];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// A source of objects. Each pod it makes has a uid of its own.
#[derive(Debug)]
pub struct Generator {
    random: Xoshiro256PlusPlus,
    made: u64,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            made: 0,
        }
    }

    /// A cluster of two nodes, with up to twelve pods in three namespaces under up to ten policies.
    pub fn cluster(&mut self) -> Cluster {
        let mut cluster = Cluster {
            nodes: vec![
                node(NODE, &NODE_ADDRESSES[..2]),
                node(OTHER_NODE, &OTHER_NODE_ADDRESSES),
            ],
            ..Cluster::default()
        };
        for name in NAMESPACES {
            if self.chance(90) {
                cluster.namespaces.push(self.namespace(name));
            }
        }
        for _ in 0..self.below(13) {
            self.add_pod(&mut cluster);
        }
        for _ in 0..=self.below(10) {
            self.add_policy(&mut cluster);
        }
        cluster
    }

    /// With the label that the API server gives each.
    fn namespace(&mut self, name: &str) -> Namespace {
        let mut labels = self.labels();
        labels.insert(NAME_LABEL.to_owned(), name.to_owned());
        Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        }
    }

    fn labels(&mut self) -> std::collections::BTreeMap<String, String> {
        let mut labels = std::collections::BTreeMap::new();
        for key in KEYS {
            if self.chance(60) {
                labels.insert(key.to_owned(), self.one_of(&VALUES).to_owned());
            }
        }
        labels
    }

    /// Any name of the kind in any namespace that is not there yet; None where all are.
    fn free_name<'a>(&mut self, prefix: &str, taken: impl Iterator<Item = &'a ObjectMeta>) -> Option<ObjectMeta> {
        let taken: Vec<&ObjectMeta> = taken.collect();
        let is_free = |metadata: &ObjectMeta| {
            let is_same = |other: &&ObjectMeta| other.namespace == metadata.namespace && other.name == metadata.name;
            !taken.iter().any(is_same)
        };
        let names = NAMESPACES.iter().flat_map(|namespace| {
            (0..6).map(move |n| ObjectMeta {
                namespace: Some((*namespace).to_owned()),
                name: Some(format!("{prefix}-{n}")),
                ..ObjectMeta::default()
            })
        });
        let free: Vec<ObjectMeta> = names.filter(is_free).collect();
        (!free.is_empty()).then(|| self.one_of(&free))
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    /// Of a list that is not empty.
    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// By weight: the index of one of them.
    fn weighted(&mut self, weights: &[usize]) -> usize {
        let mut left = self.below(weights.iter().sum());
        for (index, weight) in weights.iter().enumerate() {
            if left < *weight {
                return index;
            }
            left -= weight;
        }
        0
    }

    /// None, an empty list, or up to that many.
    fn list<T>(&mut self, absent: u32, empty: u32, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Option<Vec<T>> {
        if self.chance(absent) {
            return None;
        }
        if self.chance(empty) {
            return Some(Vec::new());
        }
        let count = 1 + self.below(most);
        Some((0..count).map(|_| one(self)).collect())
    }
}

fn node(name: &str, addresses: &[&str]) -> Node {
    let address = |address: &&str| NodeAddress {
        address: (*address).to_owned(),
        type_: "InternalIP".to_owned(),
    };
    Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        status: Some(NodeStatus {
            addresses: Some(addresses.iter().map(address).collect()),
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

/// What a node's object says of its addresses.
pub fn node_addresses(node: &Node) -> Vec<IpAddr> {
    let listed = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    listed.filter_map(|address| address.address.parse().ok()).collect()
}
