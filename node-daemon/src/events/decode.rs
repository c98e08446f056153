// SPDX-License-Identifier: Apache-2.0
//! From the kernel's structs to plain types.

use std::net::{IpAddr, SocketAddr};

use wardline_bpf::UnknownValue;
use wardline_bpf::abi::{self, Address, DenyEntry, DenyKey, Event, Reason};
use wardline_policy::model::Direction;

use super::observed::{Observed, Verdict};
use crate::clock::Clock;

/// Field `reason` of an allowed record: only what tells more than the policies do.
fn allow_reason(reason: Reason) -> Option<&'static str> {
    matches!(reason, Reason::Midstream | Reason::Spoofed).then(|| reason.as_str())
}

/// As records spell it. A newer version may have counted under one that is not known here.
fn name(reason: Result<Reason, UnknownValue>) -> &'static str {
    reason.map_or("unknown", Reason::as_str)
}

pub(super) fn event(event: &Event, clock: &Clock) -> Result<Observed, UnknownValue> {
    let (time, reason) = (clock.wall(event.time), Reason::try_from(event.reason));
    let (reason, verdict) = match abi::Verdict::try_from(event.verdict)? {
        abi::Verdict::Allow => {
            let verdict = Verdict::Allow {
                attribution: event.decided_by,
                only_annotated: event.log_mode == u8::from(abi::LogMode::Delegated),
            };
            (reason.ok().and_then(allow_reason), verdict)
        }
        abi::Verdict::Deny => {
            let verdict = Verdict::Deny {
                table: event.decided_by,
                count: 1,
                last: time,
            };
            (Some(name(reason)), verdict)
        }
    };
    Ok(Observed {
        endpoint: event.endpoint,
        direction: direction(event.direction)?,
        pod: IpAddr::from(event.pod),
        remote: IpAddr::from(event.remote),
        protocol: event.protocol,
        pod_port: u16::from_be(event.pod_port),
        remote_port: u16::from_be(event.remote_port),
        service: service(event.service, event.service_port),
        time,
        reason,
        verdict,
    })
}

pub(super) fn deny(key: &DenyKey, entry: &DenyEntry, clock: &Clock) -> Result<Observed, UnknownValue> {
    let direction = direction(key.direction)?;
    let (source_port, port) = (u16::from_be(entry.source_port), u16::from_be(key.port));
    let (pod_port, remote_port) = match direction {
        Direction::Ingress => (port, source_port),
        Direction::Egress => (source_port, port),
    };
    Ok(Observed {
        endpoint: key.endpoint,
        direction,
        pod: IpAddr::from(entry.pod),
        remote: IpAddr::from(key.remote),
        protocol: key.protocol,
        pod_port,
        remote_port,
        service: service(entry.service, entry.service_port),
        time: clock.wall(entry.first),
        reason: Some(name(Reason::try_from(key.reason))),
        // The packet path reads a coarse clock for the last one, which may lie behind the first by a tick.
        verdict: Verdict::Deny {
            table: key.table,
            count: entry.count,
            last: clock.wall(entry.last.max(entry.first)),
        },
    })
}

fn service(address: Address, port: u16) -> Option<SocketAddr> {
    (!address.is_none()).then(|| SocketAddr::new(address.into(), u16::from_be(port)))
}

fn direction(value: u8) -> Result<Direction, UnknownValue> {
    Ok(match abi::Direction::try_from(value)? {
        abi::Direction::Egress => Direction::Egress,
        abi::Direction::Ingress => Direction::Ingress,
    })
}
