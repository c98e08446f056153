// SPDX-License-Identifier: Apache-2.0
//! First denies as Events on their pods, where `NetworkLogging` asks for it: docs/events.md.
//!
//! ```text
//! policy log thread: a deny --Limits--> first of its pair? --queue--> writer: Event NetworkPolicyDeny
//! ```
//!
//! The log never waits: what does not fit into the queue is counted and comes again with the pair's next record.

mod limits;
mod writer;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;
use wardline_policy::model::{Direction, ObjectName};
use wardline_policy::tables::PolicyRef;

use self::limits::{Admission, Limits, Pair};
pub use self::writer::EventWriter;
use crate::events::{Observed, Verdict, protocol_name};
use crate::metrics::Metrics;
use crate::names::{Names, Party};

/// Events that wait to be written: more than the limits let through at once.
const WAITING: usize = 64;
/// Policies that are named.
const NAMED: usize = 5;

/// An Event, to be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Denied {
    pod: ObjectName,
    pod_uid: Arc<str>,
    note: String,
}

/// The log thread's end.
#[derive(Debug)]
pub struct DenyEvents {
    is_on: Arc<AtomicBool>,
    limits: Limits,
    queue: mpsc::Sender<Denied>,
    metrics: Arc<Metrics>,
}

/// The log's end and the writer's. Off until the writer learns that it is on.
pub fn deny_events(metrics: &Arc<Metrics>, client: kube::Client, node: &str) -> (DenyEvents, EventWriter) {
    let (queue, waiting) = mpsc::channel(WAITING);
    let is_on = Arc::<AtomicBool>::default();
    let events = DenyEvents {
        is_on: Arc::clone(&is_on),
        limits: Limits::new(),
        queue,
        metrics: Arc::clone(metrics),
    };
    (
        events,
        EventWriter::new(is_on, waiting, client, node, Arc::clone(metrics)),
    )
}

impl DenyEvents {
    /// Takes in a deny that has a record.
    pub fn tell(&mut self, seen: &Observed, names: &Names, now: Instant) {
        let Verdict::Deny { table, .. } = seen.verdict else {
            return;
        };
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let pair = Pair {
            endpoint: seen.endpoint,
            direction: seen.direction,
            remote: seen.remote,
        };
        if self.limits.knows(&pair, now) {
            return;
        }
        // Without its name there is no pod to put an Event on.
        let Some(endpoint) = names.endpoint(seen.endpoint) else {
            return;
        };
        if self.limits.admit(&pair, now) == Admission::Limited {
            self.metrics.deny_event("limited");
            return;
        }
        let isolated_by = names.table(table).map(|table| table.isolated_by.clone());
        let denied = Denied {
            pod: endpoint.name.pod.clone(),
            pod_uid: Arc::clone(&endpoint.pod_uid),
            note: note(
                seen,
                names.party(&seen.remote, seen.time).as_deref(),
                &isolated_by.unwrap_or_default(),
            ),
        };
        match self.queue.try_send(denied) {
            Ok(()) => self.limits.told(pair),
            Err(_) => self.metrics.deny_event("dropped"),
        }
    }
}

/// `ingress from shop/web-5d9 (10.244.1.7) to tcp/8080 was denied: default-deny; isolated by NetworkPolicy shop/db`
fn note(seen: &Observed, remote: Option<&Party>, isolated_by: &[PolicyRef]) -> String {
    let peer = peer(remote, seen.remote);
    let protocol = protocol_name(seen.protocol);
    let (port, between) = match seen.direction {
        Direction::Ingress => (seen.pod_port, format!("ingress from {peer}")),
        Direction::Egress => (seen.remote_port, format!("egress to {peer}")),
    };
    let what = if seen.has_ports() {
        format!("{protocol}/{port}")
    } else {
        protocol.into_owned()
    };
    let reason = seen.reason.unwrap_or("denied");
    let mut names: Vec<String> = isolated_by
        .iter()
        .take(NAMED)
        .map(|policy| format!("NetworkPolicy {}", policy.name))
        .collect();
    if isolated_by.len() > NAMED {
        names.push(format!("{} more", isolated_by.len() - NAMED));
    }
    let because = if names.is_empty() {
        String::new()
    } else {
        format!("; isolated by {}", names.join(", "))
    };
    format!("{between}, {what}, was denied: {reason}{because}")
}

fn peer(remote: Option<&Party>, address: IpAddr) -> String {
    match remote {
        Some(Party::Pod(name)) => format!("{} ({address})", name.pod),
        Some(Party::Node { name }) => format!("node {name} ({address})"),
        None => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::PodName;

    fn seen(direction: Direction, protocol: u8) -> Observed {
        Observed {
            endpoint: 5,
            direction,
            pod: "10.244.0.11".parse().unwrap(),
            remote: "10.244.1.7".parse().unwrap(),
            protocol,
            pod_port: 8080,
            remote_port: 55644,
            time: 0,
            reason: Some("default-deny"),
            service: None,
            verdict: Verdict::Deny {
                table: 9,
                count: 3,
                last: 0,
            },
        }
    }

    #[test]
    fn notes_name_peer_port_and_policies() {
        let web = Party::Pod(PodName {
            pod: ObjectName::new("shop", "web"),
            workload: None,
        });
        let node = Party::Node { name: "node2".into() };
        let policies: Vec<PolicyRef> = (0..7)
            .map(|i| PolicyRef {
                name: ObjectName::new("shop", format!("p{i}")),
                generation: 1,
            })
            .collect();
        for (direction, protocol, remote, policies, expected) in [
            (
                Direction::Ingress,
                6,
                Some(&web),
                &policies[..1],
                "ingress from shop/web (10.244.1.7), tcp/8080, was denied: default-deny; isolated by NetworkPolicy shop/p0",
            ),
            (
                Direction::Egress,
                17,
                Some(&node),
                &policies[..2],
                "egress to node node2 (10.244.1.7), udp/55644, was denied: default-deny; isolated by NetworkPolicy shop/p0, \
                 NetworkPolicy shop/p1",
            ),
            (
                Direction::Ingress,
                1,
                None,
                &policies[..0],
                "ingress from 10.244.1.7, icmp, was denied: default-deny",
            ),
        ] {
            assert_eq!(note(&seen(direction, protocol), remote, policies), expected);
        }
        let many = note(&seen(Direction::Ingress, 6), None, &policies);
        assert!(many.ends_with("NetworkPolicy shop/p4, 2 more"), "{many}");
    }
}
