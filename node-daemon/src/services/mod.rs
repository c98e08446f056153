// SPDX-License-Identifier: Apache-2.0
//! What Services mean for this node: a state machine without a Kubernetes client and without a kernel.
//!
//! ```text
//! Service, EndpointSlices, this node's place  -->  fronts: address, port, protocol -> backends
//! host ports of this node's pods, its addresses  -->  the same
//! one event  -->  the Services it touches  -->  the fronts that may have changed
//! ```
//!
//! docs/services.md says what is translated, and what is left to kube-proxy and only judged.

mod convert;
mod fronts;
mod model;
mod select;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use wardline_policy::model::ObjectName;

pub use self::convert::{host_ports, service, slice};
use self::fronts::{Claim, Of, claims, host_claims};
pub use self::model::{
    Endpoint, EndpointState, Front, FrontKey, HostPort, HostPorts, Place, Service, ServicePort, Slice, SlicePort,
};

/// The fronts of one Service that may have changed; None: there is no such front any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// For a pod's host ports a name that no Service can have, in the pod's namespace.
    pub service: ObjectName,
    pub fronts: BTreeMap<FrontKey, Option<Front>>,
}

/// All Services as this node sees them.
#[derive(Debug, Default)]
pub struct Services {
    place: Place,
    is_translating: bool,
    /// The node's own addresses.
    local: BTreeSet<IpAddr>,
    known: HashMap<ObjectName, Known>,
    /// By slice: the name of its Service.
    slices: HashMap<ObjectName, Arc<str>>,
    /// What each front's Services say of it: almost always one.
    fronts: HashMap<FrontKey, BTreeMap<ObjectName, Claim>>,
    /// Services whose fronts have to be computed anew.
    stale: BTreeSet<ObjectName>,
    /// What could not be brought in force, by the Service that changed it.
    refused: BTreeMap<ObjectName, BTreeSet<FrontKey>>,
}

/// What is known of a Service: it may be there before its slices, and they before it.
#[derive(Debug, Default)]
struct Known {
    service: Option<Service>,
    slices: BTreeMap<Arc<str>, Slice>,
    /// Instead of both, where it stands for a pod.
    host_ports: Option<HostPorts>,
    claimed: BTreeSet<FrontKey>,
}

impl Services {
    /// `is_translating` is whether `ClusterIPs` are translated here; else they are judged as other addresses are.
    pub fn new(node: &str, is_translating: bool) -> Self {
        Self {
            place: Place {
                node: node.into(),
                zone: None,
            },
            is_translating,
            ..Self::default()
        }
    }

    pub fn set_service(&mut self, name: &ObjectName, service: Option<Service>) {
        if self.service(name) != service.as_ref() {
            self.known.entry(name.clone()).or_default().service = service;
            self.stale.insert(name.clone());
        }
    }

    pub fn set_slice(&mut self, name: &ObjectName, slice: Option<Slice>) {
        if self.slice(name) == slice.as_ref() {
            return;
        }
        if let Some(former) = self.slices.remove(name) {
            let service = ObjectName::new(Arc::clone(&name.namespace), former);
            if let Some(known) = self.known.get_mut(&service) {
                known.slices.remove(&name.name);
            }
            self.stale.insert(service);
        }
        if let Some(slice) = slice {
            let service = ObjectName::new(Arc::clone(&name.namespace), Arc::clone(&slice.service));
            self.slices.insert(name.clone(), Arc::clone(&slice.service));
            let known = self.known.entry(service.clone()).or_default();
            known.slices.insert(Arc::clone(&name.name), slice);
            self.stale.insert(service);
        }
    }

    /// The ports of this node that lead to a pod of it; None: there are none any more.
    pub fn set_host_ports(&mut self, pod: &ObjectName, host_ports: Option<HostPorts>) {
        let name = host_ports_of(pod);
        let former = self.known.get(&name).and_then(|known| known.host_ports.as_ref());
        if former != host_ports.as_ref() {
            self.known.entry(name.clone()).or_default().host_ports = host_ports;
            self.stale.insert(name);
        }
    }

    /// The zone of this node.
    pub fn set_zone(&mut self, zone: Option<Arc<str>>) {
        if self.place.zone != zone {
            self.place.zone = zone;
            self.stale.extend(self.known.keys().cloned());
        }
    }

    /// The node's own addresses, which host ports are at. A `ClusterIP` among them is served on the node itself
    /// (node-local DNS) and is no front.
    pub fn set_local(&mut self, local: &BTreeSet<IpAddr>) {
        let changed: Vec<IpAddr> = self.local.symmetric_difference(local).copied().collect();
        if changed.is_empty() {
            return;
        }
        self.local.clone_from(local);
        let touched = self.fronts.iter().filter(|(key, _)| changed.contains(&key.address));
        self.stale
            .extend(touched.flat_map(|(_, claims)| claims.keys().cloned()));
        let pods = self.known.iter().filter(|(_, known)| known.host_ports.is_some());
        self.stale.extend(pods.map(|(name, _)| name.clone()));
    }

    /// Deletes what a complete list did not name; `is_listed` knows the Services that it had.
    pub fn retain_services(&mut self, is_listed: impl Fn(&ObjectName) -> bool) {
        let missed = self.known.iter().filter(|(_, known)| known.service.is_some());
        let missed: Vec<ObjectName> = missed.map(|(name, _)| name.clone()).filter(|n| !is_listed(n)).collect();
        for name in missed {
            self.set_service(&name, None);
        }
    }

    /// As [`Services::retain_services`].
    pub fn retain_slices(&mut self, is_listed: impl Fn(&ObjectName) -> bool) {
        let missed: Vec<ObjectName> = self.slices.keys().filter(|name| !is_listed(name)).cloned().collect();
        for name in missed {
            self.set_slice(&name, None);
        }
    }

    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.known.get(name)?.service.as_ref()
    }

    pub fn slice(&self, name: &ObjectName) -> Option<&Slice> {
        let service = ObjectName::new(Arc::clone(&name.namespace), Arc::clone(self.slices.get(name)?));
        self.known.get(&service)?.slices.get(&name.name)
    }

    /// A change could not be brought in force: [`Services::retry`] has it told again, as it is by then.
    pub fn refuse(&mut self, change: Change) {
        let keys = self.refused.entry(change.service).or_default();
        keys.extend(change.fronts.into_keys());
    }

    pub fn retry(&mut self) {
        self.stale.extend(self.refused.keys().cloned());
    }

    /// What may have changed since the last call, a Service at a time. The first call tells everything.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let stale = std::mem::take(&mut self.stale);
        let changes = stale.into_iter().map(|service| self.change(service));
        changes.filter(|change| !change.fronts.is_empty()).collect()
    }

    fn change(&mut self, service: ObjectName) -> Change {
        let mut touched = self.refused.remove(&service).unwrap_or_default();
        let (former, wanted) = self.recompute(&service);
        for key in former {
            touched.insert(key);
            if let Some(claims) = self.fronts.get_mut(&key) {
                claims.remove(&service);
            }
        }
        for (key, claim) in wanted {
            touched.insert(key);
            self.fronts.entry(key).or_default().insert(service.clone(), claim);
        }
        touched.extend(self.host_fronts_beside(&touched));
        let mut fronts = BTreeMap::new();
        for key in touched {
            if self.fronts.get(&key).is_some_and(BTreeMap::is_empty) {
                self.fronts.remove(&key);
            }
            fronts.insert(key, self.front(&key));
        }
        Change { service, fronts }
    }

    /// The fronts of host ports that have `NodePorts` among these beside them.
    fn host_fronts_beside(&self, touched: &BTreeSet<FrontKey>) -> Vec<FrontKey> {
        let node_ports = touched.iter().filter(|key| key.address.is_unspecified());
        let beside = node_ports.flat_map(|key| {
            let of_family = self.local.iter().filter(|ip| ip.is_ipv4() == key.address.is_ipv4());
            of_family.map(|address| FrontKey {
                address: *address,
                ..*key
            })
        });
        beside.filter(|key| self.fronts.contains_key(key)).collect()
    }

    /// What a Service or a pod claimed, and what it claims now.
    fn recompute(&mut self, service: &ObjectName) -> (BTreeSet<FrontKey>, BTreeMap<FrontKey, Claim>) {
        let Some(known) = self.known.get_mut(service) else {
            return (BTreeSet::new(), BTreeMap::new());
        };
        let of_service = known.service.as_ref();
        let of_service =
            of_service.map(|service| claims(service, known.slices.values(), &self.place, self.is_translating));
        let of_pod = known.host_ports.as_ref().map(|pod| host_claims(pod, &self.local));
        let wanted = of_service.or(of_pod).unwrap_or_default();
        let former = std::mem::replace(&mut known.claimed, wanted.keys().copied().collect());
        if known.service.is_none() && known.slices.is_empty() && known.host_ports.is_none() {
            self.known.remove(service);
        }
        (former, wanted)
    }

    /// Whose front it is, where that is one Service's.
    pub fn owner(&self, key: &FrontKey) -> Option<&ObjectName> {
        let claims = self.fronts.get(key)?;
        let mut own = claims.iter().filter(|(_, claim)| claim.of == Of::ClusterIp);
        let mut all = claims.iter();
        let (name, _) = match own.next() {
            Some(own) => own,
            None => all
                .next()
                .filter(|(_, claim)| claim.of == Of::Service && all.next().is_none())?,
        };
        Some(name)
    }

    /// What several say of one front together: the Service whose `ClusterIP` it is has it; else the backend of any of
    /// them may be taken, so all count, those of a `NodePort` at a host port among them: who translates first is not
    /// known here. One that has the cluster's word for the address is enough.
    pub fn front(&self, key: &FrontKey) -> Option<Front> {
        let claims = self.fronts.get(key)?;
        let own = claims.values().find(|claim| claim.of == Of::ClusterIp);
        let is_local = self.local.contains(&key.address);
        if let Some(own) = own.filter(|_| !is_local) {
            return Some(own.front.clone());
        }
        // Of a ClusterIP that the node itself serves, host ports alone are left.
        let all = claims
            .values()
            .filter(|claim| own.is_none() || claim.of == Of::HostPort);
        let has_host_port = claims.values().any(|claim| claim.of == Of::HostPort);
        let mut all = all.chain(has_host_port.then(|| self.node_port_claims(key)).into_iter().flatten());
        let mut front = all.next()?.front.clone();
        for other in all {
            let both: BTreeSet<SocketAddr> = front.backends.iter().chain(&*other.front.backends).copied().collect();
            front.backends = both.into_iter().collect();
            front.is_address_judged &= other.front.is_address_judged;
        }
        Some(front)
    }

    fn node_port_claims(&self, key: &FrontKey) -> impl Iterator<Item = &Claim> {
        let node_port = FrontKey {
            address: FrontKey::every_node(key.address.is_ipv4()),
            ..*key
        };
        self.fronts.get(&node_port).into_iter().flat_map(BTreeMap::values)
    }
}

/// What the host ports of a pod go by among Services, and in messages: no Service can have this name.
fn host_ports_of(pod: &ObjectName) -> ObjectName {
    ObjectName::new(&*pod.namespace, format!("{} (host ports of the Pod)", pod.name))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
