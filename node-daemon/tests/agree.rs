// SPDX-License-Identifier: Apache-2.0
//! Generated clusters through the shipped programs: what the kernel decides and what the log says of it is what
//! `evaluate` says, from one cluster to the next on the same node. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::Value;
use wardline_bpf::frame;
use wardline_crds::config::DaemonConfig;
use wardline_policy::evaluate::{Flow, Verdict, evaluate};
use wardline_policy::generate::{NODE, cluster_and_flows};
use wardline_policy::model::{Direction, ObjectName, Objects};

use support::{Life, Node, on_a_node};

const CLUSTERS: usize = 100;
const FLOWS: usize = 48;

#[test]
fn the_kernel_decides_as_evaluate_does() {
    on_a_node(10, |node| {
        let mut runner = TestRunner::deterministic();
        let strategy = cluster_and_flows(FLOWS);
        let mut life = node.start(&DaemonConfig::default());
        let mut judged = BTreeMap::new();
        for case in 0..CLUSTERS {
            let (objects, flows) = strategy.new_tree(&mut runner).unwrap().current();
            if case % 25 == 24 {
                // Another life takes over what the kernel holds.
                drop(life);
                life = node.start(&DaemonConfig::default());
            }
            check(node, &mut life, case, &objects, &flows, &mut judged);
            if case % 3 == 0 {
                life.datapath.collect_garbage().unwrap();
            }
        }
        println!("flows by verdict: {judged:?}");
        for verdict in ["not isolated", "allow", "deny"] {
            assert!(judged[verdict] > 150, "too few flows are {verdict}: {judged:?}");
        }
    });
}

fn check(
    node: &Node,
    life: &mut Life,
    case: usize,
    objects: &Objects,
    flows: &[Flow],
    judged: &mut BTreeMap<&'static str, usize>,
) {
    let desired = node.desired(objects, NODE);
    life.apply(&desired);
    let at: BTreeMap<&ObjectName, u32> = desired.endpoints.iter().map(|(i, spec)| (&spec.pod, *i)).collect();
    let mut asked = HashSet::new();
    let mut expected = BTreeMap::new();
    for (i, flow) in flows.iter().enumerate() {
        // A port of its own tells each flow's record from the others'.
        let own_port = 20_000 + u16::try_from(i).unwrap();
        let (Some(ifindex), Some(frame)) = (at.get(&flow.endpoint), frame_of(objects, flow, own_port)) else {
            continue;
        };
        // Without ports two flows of a pair are one connection.
        if !asked.insert((
            flow.endpoint.clone(),
            flow.direction,
            flow.remote,
            flow.protocol,
            flow.port,
        )) {
            continue;
        }
        let verdict = evaluate(objects, flow);
        let passed = life.program(*ifindex, flow.direction).passes(&frame);
        let name = match &verdict {
            Verdict::NotIsolated => "not isolated",
            Verdict::Allow(_) => "allow",
            Verdict::DefaultDeny(_) => "deny",
        };
        assert_eq!(
            passed,
            name != "deny",
            "case {case}: {flow:?} is {verdict:?}\n{objects:#?}"
        );
        *judged.entry(name).or_default() += 1;
        if verdict != Verdict::NotIsolated {
            expected.insert((flow.endpoint.to_string(), key_of(flow, own_port)), verdict);
        }
    }
    for record in life.records() {
        let (pod, key) = key_in(&record);
        let Some(verdict) = expected.remove(&(pod, key)) else {
            panic!("case {case}: nobody asked for {record}")
        };
        assert_eq!(decided_by(&record), by(&verdict), "case {case}: {record}");
    }
    assert!(expected.is_empty(), "case {case}: no record of {expected:?}");
    let imbalance = life.log.imbalance();
    assert_eq!(imbalance, Some([[0; 2]; 2]), "case {case}");
}

/// None where the pod has no address of the family, or the protocol is the other family's.
fn frame_of(objects: &Objects, flow: &Flow, own_port: u16) -> Option<Vec<u8>> {
    let pod = objects.pods.get(&flow.endpoint)?;
    let address = *pod.addresses.iter().find(|ip| ip.is_ipv4() == flow.remote.is_ipv4())?;
    // To itself is always allowed, and not the policy's business.
    if pod.addresses.contains(&flow.remote) || flow.remote == "192.168.77.1".parse::<IpAddr>().ok()? {
        return None;
    }
    let (source, destination) = match flow.direction {
        Direction::Ingress => (flow.remote, address),
        Direction::Egress => (address, flow.remote),
    };
    let (from, to) = (
        SocketAddr::new(source, own_port),
        SocketAddr::new(destination, flow.port),
    );
    match (flow.protocol, source.is_ipv4()) {
        (6, _) => Some(frame::tcp(from, to, frame::flag::SYN)),
        (17, _) => Some(frame::udp(from, to)),
        (132, _) => Some(frame::sctp(from, to)),
        (1, true) | (58, false) => Some(frame::echo(source, destination, frame::Echo::Request, own_port)),
        (1, false) | (58, true) => None,
        (other, _) => Some(frame::ip(source, destination, other, &[0; 8])),
    }
}

type Key = (Direction, IpAddr, u8, u16, u16);

fn key_of(flow: &Flow, own_port: u16) -> Key {
    let has_ports = matches!(flow.protocol, 6 | 17 | 132);
    let (own, port) = if has_ports { (own_port, flow.port) } else { (0, 0) };
    (flow.direction, flow.remote, flow.protocol, own, port)
}

fn key_in(record: &Value) -> (String, Key) {
    let connection = &record["connection"];
    let ingress = connection["direction"] == "ingress";
    let (pod, remote) = if ingress {
        ("dest", "src_ip")
    } else {
        ("src", "dest_ip")
    };
    let protocol = match connection["protocol"].as_str().unwrap() {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" => 1,
        "icmpv6" => 58,
        number => number.parse().unwrap(),
    };
    let port = |name| u16::try_from(connection.get(name).map_or(0, |port| port.as_u64().unwrap())).unwrap();
    let text = |name: &str| record[pod][name].as_str().unwrap().to_owned();
    let direction = if ingress { Direction::Ingress } else { Direction::Egress };
    let key = (
        direction,
        connection[remote].as_str().unwrap().parse().unwrap(),
        protocol,
        port("src_port"),
        port("dest_port"),
    );
    (format!("{}/{}", text("pod_namespace"), text("pod_name")), key)
}

/// Namespace/name, generation and rules of the policies that a verdict names.
fn by(verdict: &Verdict) -> Vec<(String, i64, Vec<u32>)> {
    match verdict {
        Verdict::NotIsolated => Vec::new(),
        Verdict::Allow(attribution) => attribution
            .policies
            .iter()
            .map(|by| (by.policy.name.to_string(), by.policy.generation, by.rules.clone()))
            .collect(),
        Verdict::DefaultDeny(policies) => policies
            .iter()
            .map(|policy| (policy.name.to_string(), policy.generation, Vec::new()))
            .collect(),
    }
}

fn decided_by(record: &Value) -> Vec<(String, i64, Vec<u32>)> {
    let field = if record["disposition"] == "allow" {
        "policies"
    } else {
        "isolated_by"
    };
    record[field]
        .as_array()
        .unwrap()
        .iter()
        .map(|policy| {
            let text = |name: &str| policy[name].as_str().unwrap().to_owned();
            let rules = policy
                .get("rules")
                .map(|rules| serde_json::from_value(rules.clone()).unwrap());
            (
                format!("{}/{}", text("namespace"), text("name")),
                policy["generation"].as_i64().unwrap(),
                rules.unwrap_or_default(),
            )
        })
        .collect()
}
