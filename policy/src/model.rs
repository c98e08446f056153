// SPDX-License-Identifier: Apache-2.0
//! The objects as policy sees them: only what decides about a flow, already validated.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything that a verdict on one node can depend on.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Labels of each namespace.
    pub namespaces: BTreeMap<Arc<str>, Labels>,
    /// Pods of the whole cluster that may send or receive: not the finished ones, not those on the host network.
    pub pods: BTreeMap<ObjectName, Arc<Pod>>,
    pub policies: BTreeMap<ObjectName, Arc<Policy>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    /// Name of the Node that it runs on.
    pub node: Arc<str>,
    /// Named container ports; a name may stand for several.
    pub ports: Vec<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// A protocol with ports, as `NetworkPolicy` knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol's number in an IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// None for every protocol that `NetworkPolicy` gives no ports.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.number() == number)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Its place in [`Direction::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A validated `NetworkPolicy`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Policy {
    pub name: ObjectName,
    pub generation: i64,
    /// Annotated to be logged where logging is delegated.
    pub log: bool,
    pub pod_selector: Selector,
    /// None: does not isolate in this direction. An empty list isolates and allows nothing.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

impl Policy {
    /// The rules that allow in this direction; None: the policy does not isolate in it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// What isolates the same pods and allows nothing.
    #[must_use]
    pub fn without_rules(&self) -> Self {
        Self {
            ingress: self.ingress.as_ref().map(|_| Vec::new()),
            egress: self.egress.as_ref().map(|_| Vec::new()),
            ..self.clone()
        }
    }

    /// Peers times ports, over all rules: how large it is next to others.
    pub fn size(&self) -> usize {
        let peer = |peer: &Peer| match peer {
            Peer::Pods { .. } => 1,
            Peer::Block(block) => 1 + block.except.len(),
        };
        let rules = Direction::ALL.iter().filter_map(|direction| self.rules(*direction));
        let sizes = rules.flatten().map(|rule| {
            let peers = rule.peers.as_ref().map_or(1, |peers| peers.iter().map(peer).sum());
            peers * rule.ports.as_ref().map_or(1, Vec::len)
        });
        sizes.sum()
    }
}

/// One entry of `spec.ingress` or `spec.egress`; its index is the one that records name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// None: every peer. Never an empty list.
    pub peers: Option<Vec<Peer>>,
    /// None: every port of every protocol. Never an empty list.
    pub ports: Option<Vec<PortMatch>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// `namespaces` None: the policy's own namespace. `pods` matches within them.
    Pods {
        namespaces: Option<Selector>,
        pods: Selector,
    },
    Block(IpBlock),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// Without host bits.
    pub cidr: IpNet,
    pub except: Vec<IpNet>,
}

impl IpBlock {
    pub fn contains(&self, address: &IpAddr) -> bool {
        self.cidr.contains(address) && !self.except.iter().any(|e| e.contains(address))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    pub protocol: Protocol,
    pub port: Port,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    Any,
    Exact(u16),
    /// First and last, both included.
    Range(u16, u16),
    /// A container port's name: of the selected pod for ingress, of the peer for egress.
    Named(Arc<str>),
}

/// A `LabelSelector`; empty matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Sorted, without duplicates: matchLabels are `In` with one value.
    pub requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    pub key: Arc<str>,
    pub operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// Sorted values.
    In(Vec<Arc<str>>),
    NotIn(Vec<Arc<str>>),
    Exists,
    DoesNotExist,
}

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| {
            let value = labels.get(&*r.key).map(String::as_str);
            match &r.operator {
                Operator::In(values) => value.is_some_and(|v| values.iter().any(|x| &**x == v)),
                Operator::NotIn(values) => !value.is_some_and(|v| values.iter().any(|x| &**x == v)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}
