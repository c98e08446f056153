// SPDX-License-Identifier: Apache-2.0
//! What the cluster says, as one synchronous state machine: events go in, the node's desired state comes out.
//! It holds no Kubernetes client and touches no kernel, so its tests need neither.

mod attachments;
mod desired;
mod event;
mod policies;
mod shares;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use wardline_policy::compile::Room;
use wardline_policy::model::{ObjectName, Objects, Pod};

pub use self::attachments::Attach;
use self::attachments::Attachments;
pub use self::desired::{Desired, EndpointSpec, LogModes};
pub use self::event::{
    Event, Kind, Logged, LoggingSpec, NamespaceInfo, NodeInfo, PodInfo, PolicyInfo, Update, Workload,
};
use self::policies::Told;
use crate::interfaces::Interfaces;
use crate::names::{Move, Party, PodName};
use crate::services::{HostPorts, Services};

/// An object that is not in force as it stands in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InvalidObject {
    pub kind: Kind,
    /// `namespace/name`, or the name of a cluster-scoped object.
    pub name: String,
    pub cause: String,
}

/// The cluster as this node knows it.
#[derive(Debug, Default)]
pub struct Index {
    node: Arc<str>,
    /// Its policies are those in force.
    objects: Objects,
    /// As the API server tells them.
    policies: BTreeMap<ObjectName, Told>,
    /// Policies that are not in force as they are, for want of room, and why.
    too_large: BTreeMap<ObjectName, String>,
    /// Policies of which no version is in force, but what isolates their pods.
    stand_ins: BTreeSet<ObjectName>,
    /// Of the tables; None: as much as is asked for.
    room: Option<Room>,
    pods: BTreeMap<ObjectName, PodInfo>,
    /// As the API server tells them: those of `pods` that have other addresses here.
    altered: BTreeMap<ObjectName, PodInfo>,
    attachments: Attachments,
    nodes: BTreeMap<Arc<str>, NodeInfo>,
    /// Namespaces whose denies are logged where that is delegated.
    log_denies: BTreeSet<Arc<str>>,
    logging: Option<LoggingSpec>,
    invalid: BTreeMap<(Kind, String), String>,
    interfaces: Interfaces,
    services: Services,
    /// By ifindex: the pods of this node at their interfaces, those that ended while the interface is still there
    /// among them.
    bound: BTreeMap<u32, EndpointSpec>,
    /// Pods of this node whose interface went before they did: uid, and the addresses that they had. Those may be another
    /// pod's by now, and count no more for the one that had them.
    parted: BTreeMap<ObjectName, (Arc<str>, Vec<IpAddr>)>,
    /// Interfaces that pods were found at by some of their addresses only, and that have not shown the others since, or
    /// that others have claimed too.
    doubtful: BTreeSet<u32>,
    /// Interfaces with addresses of pods that were found at none, as where two claim one: uids of these pods.
    claimed: BTreeMap<u32, BTreeSet<Arc<str>>>,
    /// Who came to addresses and left them since they were taken last.
    moves: Vec<Move>,
    synced: BTreeSet<Kind>,
}

impl Index {
    /// `translates_services`: whether `ClusterIPs` are translated on this node.
    pub fn new(node: &str, translates_services: bool) -> Self {
        Self {
            node: node.into(),
            services: Services::new(node, translates_services),
            ..Self::default()
        }
    }

    pub fn set_room(&mut self, room: Room) {
        self.room = Some(room);
    }

    /// Whether every kind was listed once: before that nothing may be concluded from an object's absence.
    pub fn is_synced(&self) -> bool {
        Kind::WATCHED.iter().all(|kind| self.synced.contains(kind))
    }

    pub fn invalid_objects(&self) -> impl Iterator<Item = InvalidObject> + '_ {
        let invalid = self.invalid.iter().map(|((kind, name), cause)| InvalidObject {
            kind: *kind,
            name: name.clone(),
            cause: cause.clone(),
        });
        let too_large = self.too_large.iter().map(|(name, cause)| InvalidObject {
            kind: Kind::NetworkPolicy,
            name: name.to_string(),
            cause: cause.clone(),
        });
        let is_named = |object: &InvalidObject| self.invalid.contains_key(&(object.kind, object.name.clone()));
        invalid.chain(too_large.filter(move |object| !is_named(object)))
    }

    /// The NetworkLogging generation in force; None without an object.
    pub fn logging(&self) -> Option<LoggingSpec> {
        self.logging
    }

    /// What Services mean for this node, and what of it has changed.
    pub fn services(&mut self) -> &mut Services {
        &mut self.services
    }

    pub fn pod(&self, name: &ObjectName) -> Option<&PodInfo> {
        self.pods.get(name)
    }

    /// Returns whether they are others than before.
    pub fn set_interfaces(&mut self, interfaces: Interfaces) -> bool {
        if self.interfaces == interfaces {
            return false;
        }
        self.services.set_local(&interfaces.local);
        self.interfaces = interfaces;
        let gone: Vec<(u32, EndpointSpec)> = {
            let veths = &self.interfaces.veths;
            self.bound
                .extract_if(.., |index, _| !veths.contains_key(index))
                .collect()
        };
        let doubtful = std::mem::take(&mut self.doubtful);
        for (index, spec) in gone {
            // Its sandbox was made anew, and only now is the former one taken away.
            if self.is_bound(&spec.pod, &spec.pod_uid) {
                continue;
            }
            // That was somebody else's, and its own may have come since.
            if doubtful.contains(&index) {
                self.forget_guarded(&spec);
                continue;
            }
            match self.told(&spec.pod) {
                Some(pod) if pod.uid == spec.pod_uid && pod.policy.is_some() => {
                    let addresses = pod.addresses().to_vec();
                    self.parted.insert(spec.pod.clone(), (spec.pod_uid, addresses));
                    self.objects.pods.remove(&spec.pod);
                }
                _ => self.forget_guarded(&spec),
            }
        }
        self.doubtful = doubtful;
        let Self {
            bound,
            interfaces,
            claimed,
            ..
        } = self;
        claimed.retain(|index, _| interfaces.veths.contains_key(index));
        self.doubtful.retain(|index| {
            let veth = interfaces.veths.get(index).zip(bound.get(index));
            veth.is_some_and(|(veth, spec)| {
                !veth.has_all(&spec.addresses) || is_claimed_by_others(claimed, *index, &spec.pod_uid)
            })
        });
        self.drop_attachments_without_interface();
        true
    }

    fn is_bound(&self, pod: &ObjectName, uid: &str) -> bool {
        self.bound
            .values()
            .any(|spec| spec.pod == *pod && &*spec.pod_uid == uid)
    }

    /// The pod is at this interface no more, so what guarded it after its end goes too.
    fn forget_guarded(&mut self, spec: &EndpointSpec) {
        if !self.is_bound(&spec.pod, &spec.pod_uid) {
            self.objects.pods.remove(&guarded_name(&spec.pod, &spec.pod_uid));
        }
    }

    /// Takes one event in and says whether it can change what is desired of policy: kubelet writes a pod's status many
    /// times. What Services mean, [`Index::services`] tells. An object that does not decode or convert leaves its last good version in force.
    pub fn apply(&mut self, event: Event) -> bool {
        if self.is_known(&event) {
            return false;
        }
        match event {
            Event::Namespace(name, update) => {
                self.note(Kind::Namespace, &name, &update);
                self.apply_namespace(name, update);
            }
            Event::Pod(name, update) => {
                self.note(Kind::Pod, &name.to_string(), &update);
                self.apply_pod(name, update);
            }
            Event::Policy(name, update) => {
                self.note(Kind::NetworkPolicy, &name.to_string(), &update);
                match update {
                    Update::Set(told) => self.set_policy(name, told),
                    Update::Gone => self.remove_policy(&name),
                    Update::Invalid(_) => {}
                }
            }
            Event::PolicyRefused {
                name,
                uid,
                cause,
                instead,
            } => {
                self.note::<()>(Kind::NetworkPolicy, &name.to_string(), &Update::Invalid(cause));
                self.refuse_policy(name, uid, instead);
            }
            Event::Node(name, update) => {
                self.note(Kind::Node, &name, &update);
                match update {
                    Update::Set(node) => self.set_node(name, Some(node)),
                    Update::Gone => self.set_node(name, None),
                    Update::Invalid(_) => {}
                }
            }
            Event::Service(name, update) => {
                self.note(Kind::Service, &name.to_string(), &update);
                match update {
                    Update::Set(service) => self.services.set_service(&name, Some(service)),
                    Update::Gone => self.services.set_service(&name, None),
                    Update::Invalid(_) => {}
                }
                return false;
            }
            Event::Slice(name, update) => {
                self.note(Kind::EndpointSlice, &name.to_string(), &update);
                match update {
                    Update::Set(slice) => self.services.set_slice(&name, Some(slice)),
                    Update::Gone => self.services.set_slice(&name, None),
                    Update::Invalid(_) => {}
                }
                return false;
            }
            Event::Logging(update) => {
                self.note(Kind::NetworkLogging, "default", &update);
                match update {
                    Update::Set(logging) => self.logging = Some(logging),
                    Update::Gone => self.logging = None,
                    Update::Invalid(_) => {}
                }
            }
            Event::Dataplane(update) => self.note(Kind::Dataplane, "default", &update),
            Event::Listed(kind, names) => self.listed(kind, &names),
        }
        true
    }

    /// Whether the event says of a valid object what is known already.
    fn is_known(&self, event: &Event) -> bool {
        let is_valid = |kind, name: String| !self.invalid.contains_key(&(kind, name));
        match event {
            Event::Pod(name, Update::Set(pod)) => self.told(name) == Some(pod) && is_valid(Kind::Pod, name.to_string()),
            Event::Node(name, Update::Set(node)) => {
                self.nodes.get(name) == Some(node) && is_valid(Kind::Node, name.to_string())
            }
            _ => false,
        }
    }

    fn note<T>(&mut self, kind: Kind, name: &str, update: &Update<T>) {
        match update {
            Update::Invalid(cause) => _ = self.invalid.insert((kind, name.to_owned()), cause.clone()),
            Update::Set(_) | Update::Gone => _ = self.invalid.remove(&(kind, name.to_owned())),
        }
    }

    fn apply_namespace(&mut self, name: Arc<str>, update: Update<NamespaceInfo>) {
        match update {
            Update::Set(namespace) => {
                if namespace.log_denies {
                    self.log_denies.insert(name.clone());
                } else {
                    self.log_denies.remove(&name);
                }
                self.objects.namespaces.insert(name, namespace.labels);
            }
            Update::Gone => {
                self.log_denies.remove(&name);
                self.objects.namespaces.remove(&name);
            }
            Update::Invalid(_) => {}
        }
    }

    fn apply_pod(&mut self, name: ObjectName, update: Update<PodInfo>) {
        match update {
            Update::Set(told) => {
                self.follow_status(&name, &told);
                self.store_pod(name.clone(), told);
                self.release(&name);
            }
            Update::Gone => self.remove_pod(name),
            Update::Invalid(_) => {}
        }
    }

    /// A pod as the API server tells it.
    fn told(&self, name: &ObjectName) -> Option<&PodInfo> {
        self.altered.get(name).or_else(|| self.pods.get(name))
    }

    fn store_pod(&mut self, name: ObjectName, told: PodInfo) {
        let pod = self.effective(&name, &told);
        if self.pods.get(&name).is_some_and(|old| old.uid != pod.uid) {
            self.depart(&name);
        }
        // Addresses that left with the interface count again when the API server tells of others.
        let is_other = |(uid, addresses): &(Arc<str>, Vec<IpAddr>)| *uid != told.uid || *addresses != told.addresses();
        if self.parted.get(&name).is_some_and(is_other) {
            self.parted.remove(&name);
        }
        match &pod.policy {
            Some(_) if self.parted.contains_key(&name) => {}
            Some(policy) => _ = self.objects.pods.insert(name.clone(), Arc::clone(policy)),
            None => self.depart(&name),
        }
        if pod == told {
            self.altered.remove(&name);
        } else {
            self.altered.insert(name.clone(), told);
        }
        self.set_pod(name, Some(pod));
    }

    fn remove_pod(&mut self, name: ObjectName) {
        self.depart(&name);
        self.altered.remove(&name);
        self.set_pod(name.clone(), None);
        self.release(&name);
    }

    fn set_pod(&mut self, name: ObjectName, pod: Option<PodInfo>) {
        let party = |info: &PodInfo| {
            let name = PodName {
                pod: name.clone(),
                workload: info.workload.clone(),
            };
            (info.addresses().to_vec(), Arc::new(Party::Pod(name)))
        };
        let joins = pod.as_ref().map(party);
        let leaves = self.pods.get(&name).map(party);
        self.note_moves(leaves, joins, pod.as_ref().map_or(0, |pod| pod.created));
        let host_ports = pod.as_ref().and_then(|pod| self.host_ports(pod));
        self.services.set_host_ports(&name, host_ports);
        if let Some(pod) = pod {
            self.pods.insert(name, pod);
        } else {
            self.parted.remove(&name);
            self.pods.remove(&name);
        }
    }

    /// The ports of this node that lead to a pod: not to one of another node, nor to one that has ended. On the host
    /// network they are the pod's own.
    fn host_ports(&self, pod: &PodInfo) -> Option<HostPorts> {
        let is_here = pod.node == self.node && pod.policy.is_some() && !pod.host_ports.is_empty();
        is_here.then(|| HostPorts {
            addresses: pod.addresses().to_vec(),
            ports: pod.host_ports.clone(),
        })
    }

    fn set_node(&mut self, name: Arc<str>, node: Option<NodeInfo>) {
        if name == self.node {
            self.services.set_zone(node.as_ref().and_then(|node| node.zone.clone()));
        }
        let party = |info: &NodeInfo| {
            (
                info.addresses.clone(),
                Arc::new(Party::Node {
                    name: Arc::clone(&name),
                }),
            )
        };
        let joins = node.as_ref().map(party);
        let leaves = self.nodes.get(&name).map(party);
        self.note_moves(leaves, joins, 0);
        match node {
            Some(node) => _ = self.nodes.insert(name, node),
            None => _ = self.nodes.remove(&name),
        }
    }

    fn note_moves(
        &mut self,
        leaves: Option<(Vec<IpAddr>, Arc<Party>)>,
        joins: Option<(Vec<IpAddr>, Arc<Party>)>,
        created: u64,
    ) {
        if leaves == joins {
            return;
        }
        self.moves
            .extend(leaves.map(|(addresses, party)| Move::Leaves(addresses, party)));
        self.moves.extend(joins.map(|(addresses, party)| Move::Joins {
            addresses,
            party,
            created,
        }));
    }

    /// Who came to addresses and left them since the last call.
    pub fn take_moves(&mut self) -> Vec<Move> {
        std::mem::take(&mut self.moves)
    }

    /// A pod takes part no more. While its interface is there, its containers may run on, and what selects its labels
    /// goes on guarding it, whoever has its name by then; as a peer it is gone at once.
    fn depart(&mut self, name: &ObjectName) {
        let Some(pod) = self.objects.pods.remove(name) else {
            return;
        };
        let Some(info) = self.pods.get(name) else { return };
        if self.is_bound(name, &info.uid) {
            let label_only = Pod {
                addresses: Vec::new(),
                ..Pod::clone(&pod)
            };
            self.objects
                .pods
                .insert(guarded_name(name, &info.uid), Arc::new(label_only));
        }
    }

    /// A list ended: what it did not name is gone, also if the deletion itself was missed.
    fn listed(&mut self, kind: Kind, names: &BTreeSet<String>) {
        let gone = |name: &String| !names.contains(name);
        match kind {
            Kind::Namespace => {
                self.objects.namespaces.retain(|name, _| names.contains(&**name));
                self.log_denies.retain(|name| names.contains(&**name));
            }
            Kind::Pod => {
                let missed: Vec<ObjectName> = self
                    .pods
                    .keys()
                    .filter(|name| gone(&name.to_string()))
                    .cloned()
                    .collect();
                for name in missed {
                    self.remove_pod(name);
                }
                self.release_unlisted();
            }
            Kind::NetworkPolicy => {
                let missed = self.policies.keys().filter(|name| gone(&name.to_string()));
                for name in missed.cloned().collect::<Vec<_>>() {
                    self.remove_policy(&name);
                }
            }
            Kind::Node => {
                let missed: Vec<Arc<str>> = self
                    .nodes
                    .keys()
                    .filter(|name| !names.contains(&***name))
                    .cloned()
                    .collect();
                for name in missed {
                    self.set_node(name, None);
                }
            }
            Kind::Service => self.services.retain_services(|name| names.contains(&name.to_string())),
            Kind::EndpointSlice => self.services.retain_slices(|name| names.contains(&name.to_string())),
            Kind::NetworkLogging => {
                if names.is_empty() {
                    self.logging = None;
                }
            }
            Kind::Dataplane => {}
        }
        self.invalid.retain(|(k, name), _| *k != kind || !gone(name));
        self.synced.insert(kind);
    }
}

/// Whether another pod has claimed the interface too.
fn is_claimed_by_others(claimed: &BTreeMap<u32, BTreeSet<Arc<str>>>, index: u32, uid: &str) -> bool {
    claimed
        .get(&index)
        .is_some_and(|claimed| claimed.iter().any(|other| **other != *uid))
}

/// What a pod that has ended is guarded under: a name that no Pod can have, so that none takes its place.
fn guarded_name(pod: &ObjectName, uid: &str) -> ObjectName {
    ObjectName::new(&*pod.namespace, format!("{}/{uid}", pod.name))
}

#[cfg(test)]
mod tests;
