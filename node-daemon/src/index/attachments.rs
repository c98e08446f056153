// SPDX-License-Identifier: Apache-2.0
//! The pods that the CNI plugin announced, and the addresses that it said they have.
//!
//! ```text
//!  ADD {pod, interface, addresses} --> the pod is bound to the interface, and the addresses are its alone on this node
//!                                      |                                   |
//!                     Pod's status tells others: they are its addresses    DEL, or the pod ends: whoever else claims
//!                                                                          them in its status has them again
//! ```
//!
//! A Pod's status follows what happens on the node, so an address that was handed on is for a while in the status of
//! the pod that had it before. On this node that claim counts no more from the moment of the ADD.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use wardline_cni::protocol::{Attachment, Network, PodId};
use wardline_policy::model::{ObjectName, Pod};

use super::{EndpointSpec, Index, PodInfo};

/// What became of an ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attach {
    /// The pod is bound to this interface; the next desired state has it.
    Bound { index: u32, pod_uid: Arc<str> },
    /// What it needs is not known yet.
    NotYet(&'static str),
    /// It never will be.
    Refused(String),
}

const NOT_LISTED: &str = "the cluster's objects are not all read yet";
const NOT_SEEN: &str = "the API server has not told of this pod yet";
const NOT_SCHEDULED: &str = "the API server has not told of this pod's node yet";
const NO_INTERFACE: &str = "none of the node's veths leads to it; Wardline guards pods behind veth pairs only";

/// An announced pod.
#[derive(Clone, Debug)]
struct Attached {
    pod: ObjectName,
    pod_uid: Arc<str>,
    /// None: by an earlier life of the daemon.
    attachment: Option<Attachment>,
    addresses: Vec<IpAddr>,
    /// What the Pod's status said before: as long as it says so, or nothing, it knows less than we do. None: what it
    /// says first in this life of the daemon.
    before: Option<Vec<IpAddr>>,
}

impl Attached {
    fn is_of(&self, pod: &ObjectName, uid: &str) -> bool {
        self.pod == *pod && &*self.pod_uid == uid
    }
}

/// By ifindex of the host side.
#[derive(Debug, Default)]
pub(super) struct Attachments(BTreeMap<u32, Attached>);

impl Attachments {
    pub(super) fn contains(&self, index: u32) -> bool {
        self.0.contains_key(&index)
    }

    pub(super) fn interface_of(&self, pod: &ObjectName, uid: &str) -> Option<u32> {
        let mut found = self.0.iter().filter(|(_, attached)| attached.is_of(pod, uid));
        found.next().map(|(index, _)| *index)
    }

    fn of(&mut self, pod: &ObjectName, uid: &str) -> Option<&mut Attached> {
        self.0.values_mut().find(|attached| attached.is_of(pod, uid))
    }

    /// Removes those that `is_gone` picks, and returns the addresses that they had.
    fn remove(&mut self, mut is_gone: impl FnMut(u32, &Attached) -> bool) -> Vec<IpAddr> {
        let mut freed = Vec::new();
        self.0.retain(|index, attached| {
            let stays = !is_gone(*index, attached);
            if !stays {
                freed.append(&mut attached.addresses);
            }
            stays
        });
        freed
    }
}

impl Index {
    /// Takes in what the plugin says of a new pod.
    pub fn attach(&mut self, network: &Network) -> Attach {
        if !self.is_synced() {
            return Attach::NotYet(NOT_LISTED);
        }
        let pod = ObjectName::new(network.pod.namespace.as_str(), network.pod.name.as_str());
        let Some(told) = self.told(&pod).filter(|info| info.is_known_as(&network.pod.uid)) else {
            return Attach::NotYet(NOT_SEEN);
        };
        if told.node.is_empty() {
            return Attach::NotYet(NOT_SCHEDULED);
        }
        if told.node != self.node {
            return Attach::Refused(format!("Pod {pod} belongs to node {:?}", told.node));
        }
        if told.policy.is_none() {
            return Attach::Refused(format!("Pod {pod} has ended, or is on the host network"));
        }
        let (pod_uid, before) = (Arc::clone(&told.uid), told.addresses().to_vec());
        let Some(index) = self.interface(network) else {
            return Attach::NotYet(NO_INTERFACE);
        };
        let attached = Attached {
            pod: pod.clone(),
            pod_uid: Arc::clone(&pod_uid),
            attachment: Some(network.attachment.clone()),
            addresses: network.addresses.clone(),
            before: Some(before),
        };
        self.bind(index, attached);
        Attach::Bound { index, pod_uid }
    }

    /// Whether an ADD waits for an interface that the last scan has not found, or whose name is another one's by now:
    /// some plugins name a pod's interface the same whenever they make it. `index_of` looks a name up on the node.
    pub fn lacks_interface(&self, network: &Network, index_of: impl Fn(&str) -> Option<u32>) -> bool {
        let Some(index) = self.interface(network) else {
            return true;
        };
        let found = self.interfaces.veths.get(&index);
        found.is_none_or(|veth| index_of(&veth.name) != Some(index))
    }

    /// The interface at which the pod is, and the uid that it is known by there.
    pub fn attached_at(&self, network: &Network) -> Option<(u32, Arc<str>)> {
        let mut announced = self.attachments.0.iter();
        let announced = announced.find(|(_, attached)| attached.attachment.as_ref() == Some(&network.attachment));
        if let Some((index, attached)) = announced {
            return Some((*index, Arc::clone(&attached.pod_uid)));
        }
        // Announced to an earlier life, or adopted.
        let pod = ObjectName::new(network.pod.namespace.as_str(), network.pod.name.as_str());
        let told = self.told(&pod).filter(|info| info.is_known_as(&network.pod.uid))?;
        let mut bound = self.bound.iter();
        let (index, _) = bound.find(|(_, spec)| spec.pod == pod && spec.pod_uid == told.uid)?;
        Some((*index, Arc::clone(&told.uid)))
    }

    /// Takes back an ADD that failed. Returns whether anything changed.
    pub fn unattach(&mut self, index: u32) -> bool {
        let freed = self.attachments.remove(|at, _| at == index);
        if let Some(spec) = self.bound.remove(&index) {
            self.forget_guarded(&spec);
        }
        self.refresh(&freed);
        !freed.is_empty()
    }

    /// The pod of an attachment, by the uid of its object, if other nodes know its addresses from the announcement alone.
    pub fn announced(&self, attachment: &Attachment) -> Option<PodId> {
        let mut known = self.attachments.0.values();
        let Attached { pod, pod_uid, .. } = known.find(|attached| attached.attachment.as_ref() == Some(attachment))?;
        let told = self.told(pod)?;
        (told.uid == *pod_uid && !told.is_written).then(|| PodId {
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            uid: pod_uid.to_string(),
        })
    }

    /// The pod's containers have ended. Its interface is guarded until it is gone. Returns whether anything changed.
    pub fn detach(&mut self, attachment: &Attachment) -> bool {
        self.detach_where(|attached| attached.attachment.as_ref() == Some(attachment))
    }

    /// Detaches all but `valid`. Returns whether anything changed.
    pub fn collect(&mut self, valid: &[Attachment]) -> bool {
        self.detach_where(|attached| attached.attachment.as_ref().is_some_and(|known| !valid.contains(known)))
    }

    fn detach_where(&mut self, is_gone: impl Fn(&Attached) -> bool) -> bool {
        let freed = self.attachments.remove(|_, attached| is_gone(attached));
        self.refresh(&freed);
        !freed.is_empty()
    }

    /// A pod that an earlier life of the daemon managed at an interface; that life knew its addresses from the plugin
    /// where `spec.assigned` says so.
    pub fn inherit(&mut self, index: u32, spec: EndpointSpec) {
        if spec.assigned {
            let attached = Attached {
                pod: spec.pod.clone(),
                pod_uid: Arc::clone(&spec.pod_uid),
                attachment: None,
                addresses: spec.addresses.clone(),
                // The status may be behind still; the daemon was away, so no ADD has made it news.
                before: None,
            };
            self.attachments.0.insert(index, attached);
        }
        self.bound.insert(index, spec);
    }

    /// Interfaces that are gone take their pods' claims along.
    pub(super) fn drop_attachments_without_interface(&mut self) {
        let veths = &self.interfaces.veths;
        let freed = self.attachments.remove(|index, _| !veths.contains_key(&index));
        self.refresh(&freed);
    }

    /// The Pod's object is another one than before, or gone: claims of pods of its name that are no more go with them.
    pub(super) fn release(&mut self, name: &ObjectName) {
        let alive = self.told(name).filter(|info| info.policy.is_some());
        let alive = alive.map(|info| Arc::clone(&info.uid));
        let freed = self
            .attachments
            .remove(|_, attached| attached.pod == *name && alive.as_ref() != Some(&attached.pod_uid));
        self.refresh(&freed);
    }

    /// A list is complete: pods that an earlier life knew and the list did not name are no more.
    pub(super) fn release_unlisted(&mut self) {
        let names: Vec<ObjectName> = self
            .attachments
            .0
            .values()
            .map(|attached| attached.pod.clone())
            .collect();
        for name in names {
            self.release(&name);
        }
    }

    /// A status that tells other addresses than it did at the ADD has caught up: from now on it is what counts.
    pub(super) fn follow_status(&mut self, name: &ObjectName, told: &PodInfo) {
        let Some(attached) = self.attachments.of(name, &told.uid) else {
            return;
        };
        let status = told.addresses();
        let before = attached.before.get_or_insert_with(|| status.to_vec());
        if status.is_empty() || status == *before || status == attached.addresses {
            return;
        }
        let mut concerned = std::mem::replace(&mut attached.addresses, status.to_vec());
        concerned.extend_from_slice(status);
        self.refresh(&concerned);
    }

    /// The pod with the addresses that count here: those that the plugin told, less those that it told of others.
    pub(super) fn effective(&self, name: &ObjectName, told: &PodInfo) -> PodInfo {
        let Some(policy) = &told.policy else {
            return told.clone();
        };
        let announced = self
            .attachments
            .0
            .values()
            .find(|attached| attached.is_of(name, &told.uid));
        let addresses: Vec<IpAddr> = match announced {
            Some(attached) => attached.addresses.clone(),
            None => policy
                .addresses
                .iter()
                .copied()
                .filter(|ip| !self.is_taken(ip))
                .collect(),
        };
        if addresses == policy.addresses {
            return told.clone();
        }
        let policy = Pod {
            addresses,
            ..Pod::clone(policy)
        };
        PodInfo {
            policy: Some(Arc::new(policy)),
            ..told.clone()
        }
    }

    fn is_taken(&self, address: &IpAddr) -> bool {
        self.attachments
            .0
            .values()
            .any(|attached| attached.addresses.contains(address))
    }

    fn bind(&mut self, index: u32, attached: Attached) {
        let spec = EndpointSpec {
            pod: attached.pod.clone(),
            pod_uid: Arc::clone(&attached.pod_uid),
            addresses: attached.addresses.clone(),
            log_denies: self.log_denies.contains(&attached.pod.namespace),
            assigned: true,
        };
        let mut concerned = attached.addresses.clone();
        // A sandbox that this one replaces, and whoever was at the interface.
        let is_replaced = |at: u32, other: &Attached| at == index || other.is_of(&spec.pod, &spec.pod_uid);
        concerned.extend(self.attachments.remove(is_replaced));
        let bound = self.bound.values_mut().map(|other| &mut other.addresses);
        let announced = self.attachments.0.values_mut().map(|other| &mut other.addresses);
        for others in bound.chain(announced) {
            others.retain(|address| !attached.addresses.contains(address));
        }
        let name = attached.pod.clone();
        self.parted.remove(&name);
        self.doubtful.remove(&index);
        self.attachments.0.insert(index, attached);
        if let Some(former) = self.bound.insert(index, spec) {
            self.forget_guarded(&former);
        }
        self.refresh(&concerned);
        self.refresh_pod(&name);
    }

    /// Brings the pods that claim one of these addresses up to date.
    fn refresh(&mut self, addresses: &[IpAddr]) {
        if addresses.is_empty() {
            return;
        }
        let claims = |info: &PodInfo| info.addresses().iter().any(|address| addresses.contains(address));
        let told = self.altered.iter().chain(&self.pods);
        let concerned: Vec<ObjectName> = told
            .filter(|(_, info)| claims(info))
            .map(|(name, _)| name.clone())
            .collect();
        for name in concerned {
            self.refresh_pod(&name);
        }
    }

    fn refresh_pod(&mut self, name: &ObjectName) {
        if let Some(told) = self.told(name).cloned() {
            self.store_pod(name.clone(), told);
        }
    }

    /// The host side of the attachment: by the name that the plugin gave, else by its addresses.
    fn interface(&self, network: &Network) -> Option<u32> {
        let veths = &self.interfaces.veths;
        let named: Vec<u32> = veths
            .iter()
            .filter(|(_, veth)| network.host_interfaces.contains(&veth.name))
            .map(|(index, _)| *index)
            .collect();
        match named[..] {
            [index] => Some(index),
            _ => self.free_interface(&network.addresses).ok(),
        }
    }
}

#[cfg(test)]
mod tests;
