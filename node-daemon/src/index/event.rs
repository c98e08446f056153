// SPDX-License-Identifier: Apache-2.0
//! What the watches tell the index: only the fields that are used.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wardline_policy::model::{Labels, ObjectName, Pod, Policy};

use crate::services::{HostPort, Service, Slice};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Pod,
    NetworkPolicy,
    Node,
    Service,
    EndpointSlice,
    NetworkLogging,
    Dataplane,
}

impl Kind {
    /// The kinds that must have been listed once before the node's state is known.
    pub const WATCHED: [Self; 7] = [
        Self::Namespace,
        Self::Pod,
        Self::NetworkPolicy,
        Self::Node,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkLogging,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkLogging => "NetworkLogging",
            Self::Dataplane => "Dataplane",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One object's news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update<T> {
    Set(T),
    Gone,
    /// It does not decode or convert, for this cause; what was in force stays.
    Invalid(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Namespace(Arc<str>, Update<NamespaceInfo>),
    Pod(ObjectName, Update<PodInfo>),
    Policy(ObjectName, Update<PolicyInfo>),
    /// A policy that cannot be used as it stands.
    PolicyRefused {
        name: ObjectName,
        /// As [`PolicyInfo::uid`].
        uid: Arc<str>,
        cause: String,
        /// What isolates its pods where no good version is in force; None where even those cannot be told.
        instead: Option<Policy>,
    },
    Node(Arc<str>, Update<NodeInfo>),
    Service(ObjectName, Update<Service>),
    Slice(ObjectName, Update<Slice>),
    Logging(Update<LoggingSpec>),
    /// The daemon's configuration does not come from here: this tells only whether the object can be used.
    Dataplane(Update<()>),
    /// A list is complete; these are the names it had, as in [`super::InvalidObject::name`].
    Listed(Kind, BTreeSet<String>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceInfo {
    pub labels: Labels,
    /// Annotated to have its pods' denies logged where that is delegated.
    pub log_denies: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyInfo {
    /// The object's uid: what was good of one that is gone says nothing of another that has its name.
    pub uid: Arc<str>,
    pub policy: Policy,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// The object's uid: a name may be used again by another pod.
    pub uid: Arc<str>,
    /// The uid that kubelet knows it by, where the object mirrors a pod that the node's own files define.
    pub static_uid: Option<Arc<str>>,
    pub node: Arc<str>,
    /// None where the pod takes no part in policy: on the host network, or finished.
    pub policy: Option<Arc<Pod>>,
    /// Ports of its node that lead to it.
    pub host_ports: Vec<HostPort>,
    /// Whether its status has the addresses that kubelet wrote; until then they are those that its node announced.
    pub is_written: bool,
    /// Seconds since the epoch; 0 where it is not known.
    pub created: u64,
    pub workload: Option<Workload>,
}

impl PodInfo {
    /// Whether kubelet means this pod by the uid.
    pub fn is_known_as(&self, uid: &str) -> bool {
        &*self.uid == uid || self.static_uid.as_deref() == Some(uid)
    }

    pub fn addresses(&self) -> &[IpAddr] {
        self.policy.as_ref().map_or(&[], |pod| &pod.addresses)
    }
}

/// The owner that a person knows a pod by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub kind: Arc<str>,
    pub name: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    pub uid: String,
    pub addresses: Vec<IpAddr>,
    /// `topology.kubernetes.io/zone`
    pub zone: Option<Arc<str>>,
}

/// A NetworkLogging as it is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggingSpec {
    pub generation: i64,
    pub allow: Logged,
    pub deny: Logged,
    /// The first deny of a pair is an Event on the pod too.
    pub deny_events: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logged {
    Off,
    All,
    Delegated,
}

impl Logged {
    pub fn from_switches(log: bool, delegate: bool) -> Self {
        match (log, delegate) {
            (false, _) => Self::Off,
            (true, false) => Self::All,
            (true, true) => Self::Delegated,
        }
    }
}
