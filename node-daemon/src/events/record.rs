// SPDX-License-Identifier: Apache-2.0
//! The shape of a line in the policy log: docs/events.md. Pure: verdicts and names in, JSON out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Serialize, Serializer};
use wardline_policy::model::{self, Direction, ObjectName};
use wardline_policy::tables::{Attribution, PolicyRef};
use wardline_record::Timestamp;

use super::observed::{Lost, Observed, Verdict, protocol_name};
use crate::names::{Names, Party, PodName};
use crate::services::FrontKey;

/// What stands in every line of a node.
#[derive(Clone, Debug)]
pub struct Origin {
    pub node: Arc<str>,
    pub cluster: Option<Arc<str>>,
}

impl Origin {
    /// An empty name of the cluster is none.
    pub fn new(node: &str, cluster: &str) -> Self {
        Self {
            node: node.into(),
            cluster: (!cluster.is_empty()).then(|| cluster.into()),
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    connection: Connection,
    disposition: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policies: Vec<PolicyLine<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    isolated_by: Vec<PolicyLine<'a>>,
    src: PartyLine<'a>,
    dest: PartyLine<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<ServiceLine<'a>>,
    count: u64,
    node_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_name: Option<&'a str>,
    timestamp: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_timestamp: Option<Timestamp>,
    seq: &'a str,
}

#[derive(Serialize)]
struct Connection {
    src_ip: IpAddr,
    dest_ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dest_port: Option<u16>,
    protocol: Protocol,
    direction: Direction,
}

#[derive(Serialize)]
struct PolicyLine<'a> {
    kind: &'static str,
    namespace: &'a str,
    name: &'a str,
    generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<&'a [u32]>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum PartyLine<'a> {
    Pod {
        pod_name: &'a str,
        pod_namespace: &'a str,
        namespace: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        workload_kind: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        workload_name: Option<&'a str>,
    },
    Node {
        node_name: &'a str,
        workload_kind: &'static str,
    },
    Instance {
        instance: IpAddr,
    },
}

#[derive(Serialize)]
struct ServiceLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    ip: IpAddr,
    port: u16,
}

#[derive(Serialize)]
struct LostLine<'a> {
    disposition: &'static str,
    connection: LostConnection,
    lost: LostWhat,
    count: u64,
    node_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_name: Option<&'a str>,
    timestamp: Timestamp,
    last_timestamp: Timestamp,
    seq: &'a str,
}

#[derive(Serialize)]
struct LostConnection {
    direction: Direction,
}

#[derive(Serialize)]
struct LostWhat {
    disposition: &'static str,
    why: &'static str,
}

/// Appends the line of one verdict, line feed included.
pub fn write_verdict(line: &mut Vec<u8>, seen: &Observed, seq: &str, names: &Names, origin: &Origin) {
    let endpoint = names.endpoint(seen.endpoint);
    let remote = names.party(&seen.remote, seen.time);
    let (front, service) = find_service(seen, names, matches!(remote.as_deref(), Some(Party::Node { .. })));
    let pod = match &endpoint {
        Some(endpoint) => pod_line(&endpoint.name),
        None => PartyLine::Instance { instance: seen.pod },
    };
    let remote = match remote.as_deref() {
        Some(Party::Pod(name)) => pod_line(name),
        Some(Party::Node { name }) => PartyLine::Node {
            node_name: name,
            workload_kind: "Node",
        },
        None => PartyLine::Instance { instance: seen.remote },
    };
    let (mut allowed_by, mut table) = (None, None);
    match seen.verdict {
        Verdict::Allow { attribution, .. } => allowed_by = names.attribution(attribution),
        Verdict::Deny { table: id, .. } => table = names.table(id),
    }
    let only_annotated = matches!(
        seen.verdict,
        Verdict::Allow {
            only_annotated: true,
            ..
        }
    );
    let policies = allowed_by
        .as_deref()
        .map(|by| allowing(by, only_annotated))
        .unwrap_or_default();
    let isolated_by = table
        .as_deref()
        .map(|table| isolating(&table.isolated_by))
        .unwrap_or_default();
    let has_ports = seen.has_ports();
    let (pod_port, remote_port) = (
        has_ports.then_some(seen.pod_port),
        has_ports.then_some(seen.remote_port),
    );
    let ((src, src_ip, src_port), (dest, dest_ip, dest_port)) = match seen.direction {
        Direction::Ingress => ((remote, seen.remote, remote_port), (pod, seen.pod, pod_port)),
        Direction::Egress => ((pod, seen.pod, pod_port), (remote, seen.remote, remote_port)),
    };
    let (disposition, count, last) = match seen.verdict {
        Verdict::Allow { .. } => ("allow", 1, None),
        Verdict::Deny { count, last, .. } => ("deny", count, Some(Timestamp(last))),
    };
    emit(
        line,
        &Line {
            connection: Connection {
                src_ip,
                dest_ip,
                src_port,
                dest_port,
                protocol: Protocol(seen.protocol),
                direction: seen.direction,
            },
            disposition,
            reason: seen.reason,
            policies,
            isolated_by,
            src,
            dest,
            service: front.map(|front| ServiceLine {
                namespace: service.as_ref().map(|name| &*name.namespace),
                name: service.as_ref().map(|name| &*name.name),
                ip: front.ip(),
                port: front.port(),
            }),
            count,
            node_name: &origin.node,
            cluster_name: origin.cluster.as_deref(),
            timestamp: Timestamp(seen.time),
            last_timestamp: last,
            seq,
        },
    );
}

/// What the pod sent to, if that is a Service, and its name, if that is known: chosen a backend for here, or left to
/// another proxy, as the node ports are.
fn find_service(seen: &Observed, names: &Names, is_node: bool) -> (Option<SocketAddr>, Option<ObjectName>) {
    let known = model::Protocol::ALL
        .into_iter()
        .find(|known| known.number() == seen.protocol);
    let Some(protocol) = known else {
        return (None, None);
    };
    let named = |front: SocketAddr| {
        let key = FrontKey {
            address: front.ip(),
            port: Some((protocol, front.port())),
        };
        names.service(&key, seen.time)
    };
    if let Some(front) = seen.service {
        return (Some(front), named(front));
    }
    if seen.direction == Direction::Ingress {
        return (None, None);
    }
    let address = if is_node {
        FrontKey::every_node(seen.remote.is_ipv4())
    } else {
        seen.remote
    };
    let name = named(SocketAddr::new(address, seen.remote_port));
    let front = name.is_some().then(|| SocketAddr::new(seen.remote, seen.remote_port));
    (front, name)
}

/// Appends the line that tells of lost records.
pub fn write_lost(line: &mut Vec<u8>, lost: &Lost, seq: &str, origin: &Origin) {
    emit(
        line,
        &LostLine {
            disposition: "lost",
            connection: LostConnection {
                direction: lost.direction,
            },
            lost: LostWhat {
                disposition: lost.disposition,
                why: lost.why,
            },
            count: lost.count,
            node_name: &origin.node,
            cluster_name: origin.cluster.as_deref(),
            timestamp: Timestamp(lost.first),
            last_timestamp: Timestamp(lost.last),
            seq,
        },
    );
}

fn emit(line: &mut Vec<u8>, value: &impl Serialize) {
    let start = line.len();
    if serde_json::to_writer(&mut *line, value).is_err() {
        // Writing to memory fails only on a value that JSON cannot hold, and there is none in a record; a half line
        // must not stay all the same.
        line.truncate(start);
        return;
    }
    line.push(b'\n');
}

fn pod_line(name: &PodName) -> PartyLine<'_> {
    PartyLine::Pod {
        pod_name: &name.pod.name,
        pod_namespace: &name.pod.namespace,
        namespace: &name.pod.namespace,
        workload_kind: name.workload.as_ref().map(|w| &*w.kind),
        workload_name: name.workload.as_ref().map(|w| &*w.name),
    }
}

fn allowing(by: &Attribution, only_annotated: bool) -> Vec<PolicyLine<'_>> {
    by.policies
        .iter()
        .filter(|allowing| allowing.log || !only_annotated)
        .map(|allowing| PolicyLine {
            rules: Some(&allowing.rules),
            ..policy_line(&allowing.policy)
        })
        .collect()
}

fn isolating(policies: &[PolicyRef]) -> Vec<PolicyLine<'_>> {
    policies.iter().map(policy_line).collect()
}

fn policy_line(policy: &PolicyRef) -> PolicyLine<'_> {
    PolicyLine {
        kind: "NetworkPolicy",
        namespace: &policy.name.namespace,
        name: &policy.name.name,
        generation: policy.generation,
        rules: None,
    }
}

struct Protocol(u8);

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&protocol_name(self.0))
    }
}

#[cfg(test)]
mod tests;
