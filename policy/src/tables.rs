// SPDX-License-Identifier: Apache-2.0
//! What `compile` makes: the tables that one node's packet programs look up.
//!
//! ```text
//! endpoint, direction -> table ---------------------------.
//!                                                         v
//! remote address -> class (exact, then longest CIDR) -> {table, class, protocol, port} -> attribution
//! ```
//!
//! Classes, tables and attributions carry no ids, only their meaning. Whoever loads them gives equal meanings equal
//! ids, so that a new version shares with the old one whatever did not change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Direction, ObjectName, Peer, Policy, Protocol};

/// One node's policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Addresses that some pod selector matches, and their class. Others are looked up in `cidrs`.
    pub peers: BTreeMap<IpAddr, Arc<Class>>,
    /// Classes by longest prefix; an address that is in none has the default class. Safe to load with IPv4 mapped into
    /// `::ffff:0:0/96`: where an IPv6 prefix contains all of that, `0.0.0.0/0` is here too.
    pub cidrs: BTreeMap<IpNet, Arc<Class>>,
    /// All tables in use, each once.
    pub tables: BTreeMap<TableKey, Table>,
    /// The node's pods; those that no policy isolates in either direction are left out.
    pub endpoints: BTreeMap<ObjectName, EndpointTables>,
}

/// Which of the node's peer selectors an address matches, and what the named ports in use mean there.
/// The default matches none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    pub selectors: BTreeSet<Arc<PeerSelector>>,
    /// The ports that egress rules name, as far as the address's pod has them.
    pub named_ports: BTreeSet<(Arc<str>, Protocol, u16)>,
}

/// A peer of some rule; `namespace` is the policy's own where the rule means that, else None.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSelector {
    pub namespace: Option<Arc<str>>,
    pub peer: Peer,
}

/// What makes two tables the same: the policies that isolate in this direction, as they stood, and what the named
/// ports of their ingress rules mean at the endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableKey {
    pub direction: Direction,
    /// Sorted by name, never empty.
    pub policies: Vec<Arc<Policy>>,
    pub named_ports: BTreeSet<(Arc<str>, Protocol, u16)>,
}

/// The rules of a table, for each class that an address can have now (the default class included).
/// Looked up: exact port, else the range that holds it, else any port. Each is complete on its own: the entry of an
/// exact port also carries the rules of the ranges and any-port rules that allow it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub rules: BTreeMap<Arc<Class>, BTreeMap<RuleKey, Arc<Attribution>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleKey {
    pub protocol: ProtocolKey,
    pub ports: PortKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProtocolKey {
    Ported(Protocol),
    /// Every protocol that has no ports.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortKey {
    Any,
    Exact(u16),
    /// Ports that share the first `length` bits of `first`: one entry of a longest-prefix match. Prefixes of one
    /// {class, protocol} never overlap.
    Prefix {
        first: u16,
        length: u8,
    },
}

/// The tables of one pod; None: not isolated in that direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointTables {
    pub ingress: Option<TableKey>,
    pub egress: Option<TableKey>,
}

/// Who decided: every policy, and of each the rules, that allow a flow. Sorted by name, never empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attribution {
    pub policies: Vec<Allowing>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Allowing {
    pub policy: PolicyRef,
    /// Indices into its ingress or egress list, ascending.
    pub rules: Vec<u32>,
    /// Annotated to be logged where logging is delegated.
    pub log: bool,
}

/// A policy as it stood when it was compiled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyRef {
    pub name: ObjectName,
    pub generation: i64,
}

impl From<&Policy> for PolicyRef {
    fn from(policy: &Policy) -> Self {
        Self {
            name: policy.name.clone(),
            generation: policy.generation,
        }
    }
}

impl EndpointTables {
    /// None: not isolated in this direction.
    pub fn table(&self, direction: Direction) -> Option<&TableKey> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}
