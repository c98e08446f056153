// SPDX-License-Identifier: Apache-2.0
//! A verdict as the kernel told it, in plain types: what decoders make and records are written from.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use wardline_policy::model::Direction;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Uid of the endpoint.
    pub endpoint: u32,
    /// Of the first packet: the policy's direction.
    pub direction: Direction,
    pub pod: IpAddr,
    pub remote: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    pub pod_port: u16,
    pub remote_port: u16,
    /// What the pod sent to, where the remote is the backend that this node chose for it.
    pub service: Option<SocketAddr>,
    /// Of the first packet, nanoseconds since the epoch.
    pub time: u64,
    /// Named where it tells more than the disposition.
    pub reason: Option<&'static str>,
    pub verdict: Verdict,
}

impl Observed {
    /// Whether its protocol has ports.
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, 6 | 17 | 132)
    }
}

/// The protocol's name, or its number where the log has no name for it.
pub fn protocol_name(number: u8) -> Cow<'static, str> {
    Cow::Borrowed(match number {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "icmpv6",
        132 => "sctp",
        other => return Cow::Owned(other.to_string()),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow {
        attribution: u32,
        /// Logging of allows is delegated: only the policies that ask for it are named.
        only_annotated: bool,
    },
    Deny {
        table: u32,
        /// Dropped packets.
        count: u64,
        /// Of the last one, nanoseconds since the epoch.
        last: u64,
    },
}

/// Records that were due and cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub direction: Direction,
    pub disposition: &'static str,
    pub why: &'static str,
    pub count: u64,
    /// The span in which they were due, nanoseconds since the epoch.
    pub first: u64,
    pub last: u64,
}

/// A connection of pod 5 from 10.244.1.7.
#[cfg(test)]
pub(super) fn sample(verdict: Verdict) -> Observed {
    Observed {
        endpoint: 5,
        direction: Direction::Ingress,
        pod: "10.244.0.11".parse().unwrap(),
        remote: "10.244.1.7".parse().unwrap(),
        protocol: 6,
        pod_port: 8080,
        remote_port: 55644,
        service: None,
        time: 1_781_386_171_445_836_587,
        reason: None,
        verdict,
    }
}
