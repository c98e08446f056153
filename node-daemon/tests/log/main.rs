// SPDX-License-Identifier: Apache-2.0
//! The policy log on disks that are full, read-only or taken away, and through kills: whatever happens, the counts of
//! records and losses sum up to what was sent, and nothing is written twice. The real programs, fed frame by frame. Needs
//! root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod disk;
mod doubts;
mod exact;
mod flood;
mod kills;
mod names;
mod steps;
#[path = "../support/mod.rs"]
mod support;
mod switches;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use wardline_bpf::frame::{self, flag};
use wardline_node::index::Desired;
use wardline_policy::model::{
    Direction, Labels, ObjectName, Objects, Operator, Peer, Pod, Policy, Requirement, Rule, Selector,
};
use wardline_record::{Record, files};

use support::{Life, Node, Program};

const NODE: &str = "node1";
/// Remote pods of each kind.
const CLIENTS: usize = 10;

/// Records or packets by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    allow: u64,
    deny: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn address(self, net: u8, host: usize) -> IpAddr {
        let host = u8::try_from(host).unwrap();
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, net, host).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, net.into(), host.into()).into(),
        }
    }

    /// Of a pod of the node.
    fn server(self, number: usize) -> IpAddr {
        self.address(0, number + 1)
    }

    /// Of a remote pod that the policy admits, or of one that it does not.
    fn client(self, is_admitted: bool, number: usize) -> IpAddr {
        self.address(if is_admitted { 1 } else { 2 }, number + 1)
    }
}

/// A node with as many pods as interfaces, which admit one kind of remote pods in both directions, and another not.
fn desired(node: &Node) -> Desired {
    node.desired(&objects(node.veths.len()), NODE)
}

/// What that node's cluster has.
fn objects(servers: usize) -> Objects {
    let mut objects = Objects::default();
    objects.namespaces.insert("shop".into(), Labels::new());
    let both = |address: &dyn Fn(Family) -> IpAddr| vec![address(Family::V4), address(Family::V6)];
    let servers = (0..servers).map(|i| ("server", i, both(&|family| family.server(i)), NODE));
    let clients = [("a", true), ("b", false)].into_iter().flat_map(|(app, is_admitted)| {
        (0..CLIENTS).map(move |i| (app, i, both(&|family| family.client(is_admitted, i)), "node2"))
    });
    for (app, number, addresses, of) in servers.chain(clients) {
        let name = ObjectName::new("shop", format!("{app}{number}"));
        objects.pods.insert(name, Arc::new(pod(app, addresses, of)));
    }
    let app = |name: &str| Selector {
        requirements: vec![Requirement {
            key: "app".into(),
            operator: Operator::In([Arc::from(name)].into()),
        }],
    };
    let rule = Rule {
        peers: Some(vec![Peer::Pods {
            namespaces: None,
            pods: app("a"),
        }]),
        ports: None,
    };
    let name = ObjectName::new("shop", "server");
    let policy = Policy {
        name: name.clone(),
        generation: 1,
        log: false,
        pod_selector: app("server"),
        ingress: Some(vec![rule.clone()]),
        egress: Some(vec![rule]),
    };
    objects.policies.insert(name, Arc::new(policy));
    objects
}

fn pod(app: &str, addresses: Vec<IpAddr>, node: &str) -> Pod {
    Pod {
        labels: Labels::from([("app".to_owned(), app.to_owned())]),
        addresses,
        node: node.into(),
        ports: Vec::new(),
    }
}

/// The edges of the pods, and what was sent to them.
struct Traffic {
    pods: Vec<Program>,
    sent: Count,
}

impl Traffic {
    fn of(node: &Node, life: &Life) -> Self {
        let pods = node
            .veths
            .iter()
            .map(|ifindex| life.program(*ifindex, Direction::Ingress));
        Self {
            pods: pods.collect(),
            sent: Count::default(),
        }
    }

    /// Sends to the pods by turns, each packet of a connection of its own, and sees that it is judged.
    fn send(&mut self, allow: u64, deny: u64) {
        for _ in 0..allow {
            self.packet(self.sent.allow, true);
            self.sent.allow += 1;
        }
        for _ in 0..deny {
            self.packet(self.sent.deny, false);
            self.sent.deny += 1;
        }
    }

    fn packet(&self, number: u64, is_admitted: bool) {
        let number = usize::try_from(number).unwrap();
        let pod = number % self.pods.len();
        let port = u16::try_from(number / self.pods.len() + 1).unwrap();
        let from = SocketAddr::new(Family::V4.client(is_admitted, 0), 40_000);
        let frame = frame::tcp(from, SocketAddr::new(Family::V4.server(pod), port), flag::SYN);
        assert_eq!(
            self.pods[pod].passes(&frame),
            is_admitted,
            "packet {number} from {from}"
        );
    }
}

/// What stands in all files of a log.
#[derive(Debug, Default)]
struct Written {
    records: Count,
    losses: Count,
    /// Causes of the losses.
    why: BTreeSet<String>,
    lines: u64,
    bytes: u64,
}

/// A line, which holds what its schema says, and nothing else: no name that is missing, and nothing of what pods sent.
fn parse(line: &str) -> Value {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let record: Record = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    match &record {
        Record::Allow(allow) => assert!(!allow.policies.is_empty() && allow.last_timestamp.is_none(), "{line}"),
        Record::Deny(deny) => {
            let names_them = deny.reason.as_deref() != Some("default-deny") || !deny.isolated_by.is_empty();
            assert!(names_them && deny.last_timestamp.is_some(), "{line}");
        }
        Record::Lost(_) => {}
    }
    assert_eq!(serde_json::to_value(record).unwrap(), value, "{line}");
    value
}

/// Reads all files; each line must be whole, and about something else.
fn written(log: &Path) -> Written {
    let mut written = Written::default();
    let mut sequences = BTreeSet::new();
    for part in files::open(log).unwrap() {
        let text = std::fs::read_to_string(&part.path).unwrap();
        assert!(
            text.is_empty() || text.ends_with('\n'),
            "{} is torn",
            part.path.display()
        );
        written.bytes += text.len() as u64;
        for line in text.lines() {
            let line = parse(line);
            let seq = line["seq"].as_str().unwrap().to_owned();
            assert!(sequences.insert(seq), "twice: {line}");
            written.lines += 1;
            let (counts, disposition) = match line["disposition"].as_str().unwrap() {
                "lost" => {
                    written.why.insert(line["lost"]["why"].as_str().unwrap().to_owned());
                    (&mut written.losses, &line["lost"]["disposition"])
                }
                _ => (&mut written.records, &line["disposition"]),
            };
            let count = line["count"].as_u64().unwrap();
            match disposition.as_str().unwrap() {
                "allow" => counts.allow += count,
                "deny" => counts.deny += count,
                other => panic!("{other}: {line}"),
            }
        }
    }
    written
}

impl Written {
    fn all(&self) -> Count {
        Count {
            allow: self.records.allow + self.losses.allow,
            deny: self.records.deny + self.losses.deny,
        }
    }
}
