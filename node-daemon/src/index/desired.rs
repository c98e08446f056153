// SPDX-License-Identifier: Apache-2.0
//! The state that the kernel should have, computed whole from the index.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use wardline_policy::model::ObjectName;
use wardline_policy::tables::{EndpointTables, Tables};

use super::{Index, Logged, PodInfo, guarded_name, is_claimed_by_others};
use crate::interfaces::Veth;

/// One node's desired state.
#[derive(Clone, Debug)]
pub struct Desired {
    pub tables: Tables,
    /// By ifindex of the pod's host-side interface.
    pub endpoints: BTreeMap<u32, EndpointSpec>,
    /// Those of `endpoints` whose Pod has ended or is gone, and the name that `tables` has for them. None: an earlier life
    /// of the daemon knew their labels, this one does not.
    pub ended: BTreeMap<u32, Option<ObjectName>>,
    /// Pods of this node that have an address but no interface that could be found, and why.
    pub unmanaged: BTreeMap<ObjectName, &'static str>,
    pub log_modes: LogModes,
    /// The node's own addresses.
    pub local: BTreeSet<IpAddr>,
    /// The addresses of all Nodes, as their statuses say.
    pub nodes: BTreeSet<IpAddr>,
}

impl Desired {
    /// The tables of an endpoint. None: whatever is in force for it stays.
    pub fn tables_of(&self, ifindex: u32, endpoint: &EndpointSpec) -> Option<EndpointTables> {
        let wanted = self.endpoints.get(&ifindex)?;
        if !wanted.is_same_pod(endpoint) {
            return None;
        }
        let name = match self.ended.get(&ifindex) {
            None => &wanted.pod,
            Some(name) => name.as_ref()?,
        };
        Some(self.tables.endpoints.get(name).cloned().unwrap_or_default())
    }
}

/// A pod at its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    pub pod: ObjectName,
    pub pod_uid: Arc<str>,
    /// Of the pod's status, or as the CNI plugin told them.
    pub addresses: Vec<IpAddr>,
    /// Its Namespace asks for deny records where that is delegated.
    pub log_denies: bool,
    /// The CNI plugin told its addresses.
    pub assigned: bool,
}

impl EndpointSpec {
    pub fn is_same_pod(&self, other: &Self) -> bool {
        self.pod == other.pod && self.pod_uid == other.pod_uid
    }
}

/// What asks for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogModes {
    pub allow: Logged,
    pub deny: Logged,
}

const NO_INTERFACE: &str = "no host-side veth has its address";
const SEVERAL_INTERFACES: &str = "several host-side veths have its address";
const PARTED: &str = "the interface that it had is gone";
const CONTESTED: &str = "another pod of the node claims its address";

impl Index {
    pub fn desired(&mut self) -> Desired {
        let unmanaged = self.bind_pods();
        let log_modes = self.logging.map_or(
            LogModes {
                allow: Logged::Off,
                deny: Logged::Off,
            },
            |logging| LogModes {
                allow: logging.allow,
                deny: logging.deny,
            },
        );
        Desired {
            tables: self.compile_in_room(),
            endpoints: self.bound.clone(),
            ended: self.ended(),
            unmanaged,
            log_modes,
            local: self.interfaces.local.clone(),
            nodes: self.node_addresses(),
        }
    }

    pub(super) fn node_addresses(&self) -> BTreeSet<IpAddr> {
        let addresses = self.nodes.values().flat_map(|node| &node.addresses);
        addresses.copied().collect()
    }

    fn ended(&self) -> BTreeMap<u32, Option<ObjectName>> {
        let is_alive = |spec: &EndpointSpec| {
            self.told(&spec.pod)
                .is_some_and(|info| info.uid == spec.pod_uid && info.policy.is_some())
        };
        let ended = self.bound.iter().filter(|(_, spec)| !is_alive(spec));
        ended
            .map(|(index, spec)| {
                let name = guarded_name(&spec.pod, &spec.pod_uid);
                (*index, self.objects.pods.contains_key(&name).then_some(name))
            })
            .collect()
    }

    /// Finds the interfaces of pods that have none yet, and brings what is known of the others up to date. Returns the
    /// pods without one, and why.
    ///
    /// A pod keeps the interface that it was found at until that is gone: what addresses a pod gives itself later, or
    /// takes away, moves neither its own programs nor another pod's.
    fn bind_pods(&mut self) -> BTreeMap<ObjectName, &'static str> {
        let mut unmanaged = BTreeMap::new();
        let mut at: BTreeMap<(ObjectName, Arc<str>), u32> = self
            .bound
            .iter()
            .map(|(i, spec)| ((spec.pod.clone(), Arc::clone(&spec.pod_uid)), *i))
            .collect();
        // A pod whose sandbox was made anew has two for a moment: the plugin knows which.
        for ((pod, uid), index) in &mut at {
            *index = self.attachments.interface_of(pod, uid).unwrap_or(*index);
        }
        let mut claims = Vec::new();
        let local = self
            .pods
            .iter()
            .filter(|(_, info)| info.node == self.node && !info.addresses().is_empty());
        for (name, info) in local {
            let bound = at.get(&(name.clone(), Arc::clone(&info.uid))).copied();
            match bound.map_or_else(|| self.interface_for(name, info), Ok) {
                Ok(index) => {
                    let veth = self.interfaces.veths.get(&index);
                    let is_doubtful = veth.is_some_and(|veth| !veth.has_all(info.addresses()))
                        || is_claimed_by_others(&self.claimed, index, &info.uid);
                    if bound.is_none() && is_doubtful {
                        self.doubtful.insert(index);
                    }
                    let spec = EndpointSpec {
                        pod: name.clone(),
                        pod_uid: Arc::clone(&info.uid),
                        addresses: info.addresses().to_vec(),
                        log_denies: self.log_denies.contains(&name.namespace),
                        assigned: self.attachments.contains(index),
                    };
                    self.bound.insert(index, spec);
                }
                Err(cause) => {
                    claims.push((info.addresses().to_vec(), Arc::clone(&info.uid)));
                    unmanaged.insert(name.clone(), cause);
                }
            }
        }
        for (addresses, uid) in claims {
            for index in self.interfaces_with(&addresses) {
                self.claimed.entry(index).or_default().insert(Arc::clone(&uid));
            }
        }
        unmanaged
    }

    /// The interface of a pod that has none yet.
    fn interface_for(&self, name: &ObjectName, info: &PodInfo) -> Result<u32, &'static str> {
        if self.parted.contains_key(name) {
            return Err(PARTED);
        }
        // Which of two it is cannot be told from the address: the one that ends will let go of it.
        let claims = |(other, pod): (&ObjectName, &PodInfo)| {
            other != name
                && pod.node == self.node
                && !self.parted.contains_key(other)
                && pod.addresses().iter().any(|address| info.addresses().contains(address))
        };
        if self.pods.iter().any(claims) {
            return Err(CONTESTED);
        }
        self.free_interface(info.addresses())
    }

    /// Interfaces with one of the addresses that are nobody's yet.
    fn interfaces_with(&self, addresses: &[IpAddr]) -> Vec<u32> {
        let veths = self.interfaces.veths.iter();
        let free = veths.filter(|(index, _)| !self.bound.contains_key(index));
        let with = free.filter(|(_, veth)| addresses.iter().any(|ip| veth.addresses.contains(ip)));
        with.map(|(index, _)| *index).collect()
    }

    /// The interface with one of the addresses that is nobody's yet.
    pub(super) fn free_interface(&self, addresses: &[IpAddr]) -> Result<u32, &'static str> {
        let has_one = |veth: &Veth| addresses.iter().any(|ip| veth.addresses.contains(ip));
        // A pod that is on its way out had one of them: what it has of the other family is not this pod's.
        let is_anothers = |veth: &Veth| {
            [true, false].into_iter().any(|is_v4| {
                let mut own = addresses.iter().filter(|ip| ip.is_ipv4() == is_v4).peekable();
                let has_family = veth.addresses.iter().any(|ip| ip.is_ipv4() == is_v4);
                has_family && own.peek().is_some() && !own.any(|ip| veth.addresses.contains(ip))
            })
        };
        let free = self
            .interfaces
            .veths
            .iter()
            .filter(|(index, _)| !self.bound.contains_key(index));
        let fits = free.filter(|(_, veth)| has_one(veth) && !is_anothers(veth));
        let mut found = fits.map(|(index, _)| *index);
        match (found.next(), found.next()) {
            (Some(index), None) => Ok(index),
            (None, _) => Err(NO_INTERFACE),
            (Some(_), Some(_)) => Err(SEVERAL_INTERFACES),
        }
    }
}
