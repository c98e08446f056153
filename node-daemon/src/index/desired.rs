// SPDX-License-Identifier: Apache-2.0
//! The state that the kernel should have, computed whole from the index.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use wardline_policy::compile::compile;
use wardline_policy::model::ObjectName;
use wardline_policy::tables::Tables;

use super::{Index, Logged, PodInfo};
use crate::interfaces::Veth;

/// One node's desired state.
#[derive(Clone, Debug)]
pub struct Desired {
    pub tables: Tables,
    /// By ifindex of the pod's host-side interface.
    pub endpoints: BTreeMap<u32, EndpointSpec>,
    /// Pods of this node that have an address but no interface that could be found, and why.
    pub unmanaged: BTreeMap<ObjectName, &'static str>,
    pub log_modes: LogModes,
    /// The node's own addresses.
    pub local: BTreeSet<IpAddr>,
}

/// A pod at its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    pub pod: ObjectName,
    pub pod_uid: Arc<str>,
    /// Those that both the interface and the pod's status have.
    pub addresses: Vec<IpAddr>,
    /// Its Namespace asks for deny records where that is delegated.
    pub log_denies: bool,
}

/// What asks for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogModes {
    pub allow: Logged,
    pub deny: Logged,
}

const NO_INTERFACE: &str = "no host-side veth has its address";
const SEVERAL_INTERFACES: &str = "several host-side veths have its address";

impl Index {
    pub fn desired(&self) -> Desired {
        let mut endpoints = BTreeMap::new();
        let mut unmanaged = BTreeMap::new();
        for (name, info) in self.pods.iter().filter(|(_, info)| info.node == self.node) {
            if info.addresses().is_empty() {
                continue;
            }
            match self.endpoint(name, info) {
                Ok((index, spec)) => _ = endpoints.insert(index, spec),
                Err(cause) => _ = unmanaged.insert(name.clone(), cause),
            }
        }
        for spec in self.departed.values() {
            if let Ok(index) = self.interface_of(&spec.addresses) {
                endpoints.entry(index).or_insert_with(|| spec.clone());
            }
        }
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
            tables: compile(&self.objects, &self.node),
            endpoints,
            unmanaged,
            log_modes,
            local: self.interfaces.local.clone(),
        }
    }

    /// The pod at its interface, or why there is none.
    pub(super) fn endpoint(&self, name: &ObjectName, info: &PodInfo) -> Result<(u32, EndpointSpec), &'static str> {
        let index = self.interface_of(info.addresses())?;
        let veth = &self.interfaces.veths[&index];
        let spec = EndpointSpec {
            pod: name.clone(),
            pod_uid: Arc::clone(&info.uid),
            addresses: info
                .addresses()
                .iter()
                .filter(|ip| veth.addresses.contains(ip))
                .copied()
                .collect(),
            log_denies: self.log_denies.contains(&name.namespace),
        };
        Ok((index, spec))
    }

    fn interface_of(&self, addresses: &[IpAddr]) -> Result<u32, &'static str> {
        let has_one = |veth: &Veth| addresses.iter().any(|ip| veth.addresses.contains(ip));
        let mut found = self
            .interfaces
            .veths
            .iter()
            .filter(|(_, veth)| has_one(veth))
            .map(|(index, _)| *index);
        match (found.next(), found.next()) {
            (Some(index), None) => Ok(index),
            (None, _) => Err(NO_INTERFACE),
            (Some(_), Some(_)) => Err(SEVERAL_INTERFACES),
        }
    }
}
