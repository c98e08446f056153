// SPDX-License-Identifier: Apache-2.0
//! The packets of a flow, and how records call them.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use wardline_bpf::frame::{self, flag, protocol};
use wardline_policy::oracle::naive::By;
use wardline_policy::oracle::{Direction, Flow};

/// A flow from a port of its own, which tells it from all others.
#[derive(Clone, Debug)]
pub struct Connection {
    pub flow: Flow,
    /// The pod's.
    pub address: IpAddr,
    pub own_port: u16,
}

/// Which packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Opening,
    Answer,
    Later,
    LaterAnswer,
}

impl Part {
    pub fn is_answer(self) -> bool {
        matches!(self, Self::Answer | Self::LaterAnswer)
    }
}

impl Connection {
    pub fn has_ports(&self) -> bool {
        matches!(self.flow.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
    }

    /// Two flows without ports or identifiers between the same addresses are one.
    pub fn is_one_of_a_kind(&self) -> bool {
        !self.has_ports() && !matches!(self.flow.protocol, protocol::ICMP | protocol::ICMPV6)
    }

    pub fn frame(&self, part: Part) -> Vec<u8> {
        let (from, to) = match self.flow.direction {
            Direction::Ingress => (self.flow.remote, self.address),
            Direction::Egress => (self.address, self.flow.remote),
        };
        let (from, to) = (
            SocketAddr::new(from, self.own_port),
            SocketAddr::new(to, self.flow.port),
        );
        let (from, to) = if part.is_answer() { (to, from) } else { (from, to) };
        let (flags, echo) = match part {
            Part::Opening => (flag::SYN, frame::Echo::Request),
            Part::Answer => (flag::SYN | flag::ACK, frame::Echo::Reply),
            Part::Later => (flag::ACK, frame::Echo::Request),
            Part::LaterAnswer => (flag::ACK, frame::Echo::Reply),
        };
        match self.flow.protocol {
            protocol::TCP => frame::tcp(from, to, flags),
            protocol::UDP => frame::udp(from, to),
            protocol::SCTP => frame::sctp(from, to),
            protocol::ICMP | protocol::ICMPV6 => frame::echo(from.ip(), to.ip(), echo, self.own_port),
            other => frame::ip(from.ip(), to.ip(), other, &[0; 8]),
        }
    }

    pub fn key(&self) -> Key {
        let (own_port, port) = if self.has_ports() {
            (self.own_port, self.flow.port)
        } else {
            (0, 0)
        };
        Key {
            pod: self.flow.pod.clone(),
            direction: self.flow.direction,
            remote: self.flow.remote,
            protocol: self.flow.protocol,
            own_port,
            port,
        }
    }
}

/// What tells a record from the others of a test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub pod: String,
    pub direction: Direction,
    pub remote: IpAddr,
    pub protocol: u8,
    pub own_port: u16,
    pub port: u16,
}

impl Key {
    pub fn of(record: &Value) -> Self {
        let connection = &record["connection"];
        let is_ingress = connection["direction"] == "ingress";
        let (pod, remote) = if is_ingress {
            ("dest", "src_ip")
        } else {
            ("src", "dest_ip")
        };
        let protocol = match connection["protocol"].as_str().unwrap() {
            "tcp" => protocol::TCP,
            "udp" => protocol::UDP,
            "sctp" => protocol::SCTP,
            "icmp" => protocol::ICMP,
            "icmpv6" => protocol::ICMPV6,
            number => number.parse().unwrap(),
        };
        let port = |name| u16::try_from(connection.get(name).map_or(0, |port| port.as_u64().unwrap())).unwrap();
        let text = |name: &str| record[pod][name].as_str().unwrap();
        Self {
            pod: format!("{}/{}", text("pod_namespace"), text("pod_name")),
            direction: if is_ingress {
                Direction::Ingress
            } else {
                Direction::Egress
            },
            remote: connection[remote].as_str().unwrap().parse().unwrap(),
            protocol,
            own_port: port("src_port"),
            port: port("dest_port"),
        }
    }
}

/// The policies that a record names.
pub fn decided_by(record: &Value) -> Vec<By> {
    let field = if record["disposition"] == "allow" {
        "policies"
    } else {
        "isolated_by"
    };
    let policy = |policy: &Value| {
        let text = |name: &str| policy[name].as_str().unwrap().to_owned();
        let rules = policy.get("rules").cloned().map(serde_json::from_value);
        By {
            policy: format!("{}/{}", text("namespace"), text("name")),
            generation: policy["generation"].as_i64().unwrap(),
            rules: rules.transpose().unwrap().unwrap_or_default(),
        }
    };
    record[field].as_array().unwrap().iter().map(policy).collect()
}
