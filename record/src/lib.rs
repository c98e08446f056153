// SPDX-License-Identifier: Apache-2.0
//! The policy log for whoever reads it: docs/events.md, docs/observe.md.
//!
//! ```text
//! node daemon: events/record.rs --borrowed, in one pass--> line --serde--> Record --filter--> shown
//!
//! files: the log and what was rotated, in time order     history: their last lines, from the end
//! stream: the daemon's socket, on which it hands out what it has just written
//! ```
//!
//! The daemon writes its lines from what it holds, and its tests read each of them back into these types: a field that
//! one side does not know fails there. Readers ignore fields that they do not know, so that an older `wardline` reads
//! the log of a newer daemon.

// The comments on types and fields are the descriptions of the JSON Schema: plain text, not markdown.
#![allow(clippy::doc_markdown)]

pub mod files;
pub mod filter;
pub mod history;
#[cfg(test)]
mod samples;
pub mod stream;
mod timestamp;

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use timestamp::Timestamp;

/// One line of the policy log.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "disposition", rename_all = "lowercase")]
pub enum Record {
    /// One connection that policies allowed.
    Allow(Verdict),
    /// Packets that policies denied, alike in all but their source port.
    Deny(Verdict),
    /// Records that were due and could not be kept.
    Lost(Loss),
}

/// What was decided about a connection, and why.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub connection: Connection,
    /// Why, in one word, where it tells more than the disposition: docs/events.md lists them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The policies that allowed it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Policy>,
    /// The policies that isolate the pod in this direction, of which none allows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolated_by: Vec<Policy>,
    pub src: Party,
    pub dest: Party,
    /// The Service that the client asked for, where its own node is the one that judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// An allow: 1. A deny: packets dropped.
    pub count: u64,
    /// The node whose daemon wrote the line.
    pub node_name: String,
    /// The cluster, where the Dataplane names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    /// Of the first packet.
    pub timestamp: Timestamp,
    /// Of the last packet; denies only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_timestamp: Option<Timestamp>,
    /// Which verdict the line is about; unique on its node.
    pub seq: String,
}

/// A Service as a client sees it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Left out where the Service is gone, as is its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the client sent to; dest_ip is then the backend, where this node chose it.
    pub ip: IpAddr,
    pub port: u16,
}

/// Records that were due and could not be kept.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    pub connection: LossConnection,
    pub lost: LossCause,
    /// Records lost; 0 where nobody knows how many.
    pub count: u64,
    /// The node whose daemon wrote the line.
    pub node_name: String,
    /// The cluster, where the Dataplane names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    /// From when on they were due.
    pub timestamp: Timestamp,
    /// Until when they were due.
    pub last_timestamp: Timestamp,
    /// Which loss the line is about; unique on its node.
    pub seq: String,
}

/// Addresses of the connection's first packet, as it had them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub src_ip: IpAddr,
    pub dest_ip: IpAddr,
    /// Only for tcp, udp and sctp; of a deny, that of its first packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
    /// Only for tcp, udp and sctp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest_port: Option<u16>,
    /// tcp, udp, sctp, icmp, icmpv6, or the protocol's number.
    pub protocol: String,
    pub direction: Direction,
}

/// All that is known of the connections whose records are lost.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct LossConnection {
    pub direction: Direction,
}

/// What was lost, and why.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct LossCause {
    /// Records of what: allow or deny.
    pub disposition: String,
    /// Why, in one word: docs/events.md lists them.
    pub why: String,
}

/// Whose policy decided: ingress that of dest, egress that of src.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Ingress,
    Egress,
}

/// A policy as it was when it decided.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// NetworkPolicy.
    pub kind: String,
    pub namespace: String,
    pub name: String,
    /// Its metadata.generation.
    pub generation: i64,
    /// The rules that allowed it: indices into spec.ingress or spec.egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<u32>>,
}

/// One end of a connection.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(untagged)]
pub enum Party {
    /// A pod, and the workload that a person knows it by, where it has one.
    Pod {
        pod_name: String,
        pod_namespace: String,
        namespace: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workload_kind: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workload_name: Option<String>,
    },
    /// A node; workload_kind is Node.
    Node { node_name: String, workload_kind: String },
    /// Neither: its address.
    Instance { instance: IpAddr },
}

/// The JSON Schema of a line: docs/policy-log.schema.json. It leaves room for fields that a newer daemon adds.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Record)
}

impl Record {
    /// The node whose daemon wrote the line.
    pub fn node(&self) -> &str {
        match self {
            Self::Allow(verdict) | Self::Deny(verdict) => &verdict.node_name,
            Self::Lost(loss) => &loss.node_name,
        }
    }

    pub fn direction(&self) -> Direction {
        match self {
            Self::Allow(verdict) | Self::Deny(verdict) => verdict.connection.direction,
            Self::Lost(loss) => loss.connection.direction,
        }
    }

    /// Time of the first packet.
    pub fn first(&self) -> Timestamp {
        match self {
            Self::Allow(verdict) | Self::Deny(verdict) => verdict.timestamp,
            Self::Lost(loss) => loss.timestamp,
        }
    }

    /// Time of the last packet.
    pub fn last(&self) -> Timestamp {
        match self {
            Self::Allow(verdict) | Self::Deny(verdict) => verdict.last_timestamp.unwrap_or(verdict.timestamp),
            Self::Lost(loss) => loss.last_timestamp,
        }
    }

    /// Unique on its node.
    pub fn seq(&self) -> &str {
        match self {
            Self::Allow(verdict) | Self::Deny(verdict) => &verdict.seq,
            Self::Lost(loss) => &loss.seq,
        }
    }

    /// Connections allowed, packets denied, or records lost.
    pub fn count(&self) -> u64 {
        match self {
            Self::Allow(verdict) | Self::Deny(verdict) => verdict.count,
            Self::Lost(loss) => loss.count,
        }
    }
}

impl Verdict {
    /// The policies that decided: those that allowed it, or those that isolate the pod.
    pub fn deciding(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().chain(&self.isolated_by)
    }
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}
