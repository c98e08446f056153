// SPDX-License-Identifier: Apache-2.0
//! The answer: its JSON is this, its text is made of it. Fields are spelled as those of records (docs/events.md).

use std::net::IpAddr;

use serde::Serialize;
use wardline_policy::model::{Direction, ObjectName};
use wardline_policy::tables::{Allowing, PolicyRef};

use super::reasons::Miss;

#[derive(Debug, Serialize)]
pub(super) struct Answer {
    /// Over every address family that both ends have.
    pub(super) allowed: bool,
    pub(super) from: Party,
    pub(super) to: Party,
    /// One an address family, the destination's primary one first.
    pub(super) paths: Vec<Path>,
    /// What else bears on the answer.
    pub(super) notes: Vec<String>,
}

/// One end as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Party {
    /// None: no pod has the address.
    pub(super) pod: Option<PodName>,
    pub(super) node: Option<String>,
    #[serde(skip)]
    pub(super) host_network: bool,
    #[serde(skip)]
    pub(super) addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PodName {
    pub(super) namespace: String,
    pub(super) name: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Path {
    pub(super) allowed: bool,
    pub(super) src_ip: IpAddr,
    pub(super) dest_ip: IpAddr,
    /// As records spell it.
    pub(super) protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dest_port: Option<u16>,
    /// Egress of the source, ingress of the destination.
    pub(super) edges: [Edge; 2],
}

#[derive(Debug, Serialize)]
pub(super) struct Edge {
    pub(super) direction: Direction,
    #[serde(flatten)]
    pub(super) ruling: Ruling,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub(super) enum Ruling {
    /// No pod, or one on the host network: no policy is asked.
    NoEdge,
    /// A pod always reaches itself.
    Itself,
    /// A pod and its own node always reach each other.
    Node,
    NotIsolated,
    Allow {
        policies: Vec<Allowed>,
    },
    DefaultDeny {
        isolated_by: Vec<Isolating>,
    },
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct PolicyName {
    pub(super) namespace: String,
    pub(super) name: String,
    /// None: the object has none, being of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<i64>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Allowed {
    #[serde(flatten)]
    pub(super) policy: PolicyName,
    pub(super) rules: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Isolating {
    #[serde(flatten)]
    pub(super) policy: PolicyName,
    /// Why each rule of this direction does not allow the flow.
    pub(super) misses: Vec<Miss>,
}

impl From<&PolicyRef> for PolicyName {
    fn from(policy: &PolicyRef) -> Self {
        Self {
            namespace: policy.name.namespace.to_string(),
            name: policy.name.name.to_string(),
            generation: (policy.generation != 0).then_some(policy.generation),
        }
    }
}

impl From<&Allowing> for Allowed {
    fn from(allowing: &Allowing) -> Self {
        Self {
            policy: PolicyName::from(&allowing.policy),
            rules: allowing.rules.clone(),
        }
    }
}

impl Ruling {
    pub(super) fn allows(&self) -> bool {
        !matches!(self, Self::DefaultDeny { .. })
    }
}

impl Party {
    /// The pod at whose edge policy is asked.
    pub(super) fn endpoint(&self) -> Option<ObjectName> {
        let pod = self.pod.as_ref().filter(|_| !self.host_network)?;
        Some(ObjectName::new(pod.namespace.as_str(), pod.name.as_str()))
    }
}
