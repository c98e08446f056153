// SPDX-License-Identifier: Apache-2.0
//! How long it takes to compile one node's policy in a large cluster: `cargo run --release --example compile_bench`.
//!
//! 10,000 pods in 50 namespaces, 1,000 policies, 50 of the pods on the node. Three shapes of policies: those that name
//! peers within their namespace, those that name peers across all namespaces, and all policies on the node's own pods.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use wardline_policy::compile::{Room, compile, compile_within};
use wardline_policy::model::{
    IpBlock, Labels, NamedPort, ObjectName, Objects, Operator, Peer, Pod, Policy, Port, PortMatch, Protocol,
    Requirement, Rule, Selector,
};

const NODE: &str = "node-0";
const NODES: usize = 200;
const PODS: usize = 10_000;
const POLICIES: usize = 1_000;
const NAMESPACES: usize = 50;
/// Of each namespace.
const APPS: usize = 20;
const ROUNDS: usize = 15;
/// As a Dataplane has it by default.
const ROOM: Room = Room {
    rules: 262_144,
    peers: 131_072,
    nodes: NODES,
};

#[derive(Clone, Copy)]
enum Shape {
    OwnNamespace,
    AllNamespaces,
    /// As `AllNamespaces`, in the one namespace that has all pods of the node.
    OneNamespace,
}

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "{:<16} {:>10} {:>10} {:>7} {:>7} {:>8} {:>9}",
        "policies", "median", "worst", "peers", "tables", "classes", "entries"
    );
    for (name, shape) in [
        ("own namespace", Shape::OwnNamespace),
        ("all namespaces", Shape::AllNamespaces),
        ("one namespace", Shape::OneNamespace),
    ] {
        let objects = cluster(shape)?;
        let mut times: Vec<Duration> = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let tables = compile_within(&objects, NODE, ROOM);
            times.push(start.elapsed());
            if let Err(over) = tables {
                println!("{name}: {over}");
            }
        }
        times.sort_unstable();
        let tables = compile(&objects, NODE);
        let mut classes: Vec<_> = tables.peers.values().chain(tables.cidrs.values()).collect();
        classes.sort();
        classes.dedup();
        let rules = tables.tables.values().flat_map(|table| table.rules.values());
        println!(
            "{name:<16} {:>10.2?} {:>10.2?} {:>7} {:>7} {:>8} {:>9}",
            times[ROUNDS / 2],
            times[ROUNDS - 1],
            tables.peers.len(),
            tables.tables.len(),
            classes.len(),
            rules.map(std::collections::BTreeMap::len).sum::<usize>(),
        );
    }
    Ok(())
}

fn cluster(shape: Shape) -> Result<Objects, Box<dyn Error>> {
    let mut objects = Objects::default();
    for n in 0..NAMESPACES {
        let team = ("team".to_owned(), format!("team-{}", n % 10));
        objects.namespaces.insert(namespace(n).into(), Labels::from([team]));
    }
    for n in 0..PODS {
        // The node's 50 pods are one of each namespace, or all of the first one's.
        let (home, node) = match shape {
            Shape::OneNamespace => (n / (PODS / NAMESPACES), n / (PODS / NODES)),
            _ => (n % NAMESPACES, n / NAMESPACES % NODES),
        };
        objects.pods.insert(
            ObjectName::new(namespace(home), format!("pod-{n}")),
            Arc::new(pod(n, node)?),
        );
    }
    for n in 0..POLICIES {
        let home = if matches!(shape, Shape::OneNamespace) {
            0
        } else {
            n % NAMESPACES
        };
        let policy = policy(n, ObjectName::new(namespace(home), format!("policy-{n}")), shape)?;
        objects.policies.insert(policy.name.clone(), Arc::new(policy));
    }
    Ok(objects)
}

fn namespace(n: usize) -> String {
    format!("namespace-{n}")
}

fn pod(n: usize, node: usize) -> Result<Pod, Box<dyn Error>> {
    let label = |key: &str, value: String| (key.to_owned(), value);
    let address = Ipv4Addr::from(0x0a00_0000 + u32::try_from(n)?);
    Ok(Pod {
        labels: Labels::from([
            label("app", format!("app-{}", (n + n / NAMESPACES) % APPS)),
            label("tier", format!("tier-{}", n % 3)),
            label("pod-template-hash", format!("{:08x}", n / 7)),
        ]),
        addresses: vec![IpAddr::V4(address)],
        node: format!("node-{node}").into(),
        ports: vec![NamedPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
    })
}

/// Selects one app; admits two others and a block on two ports and a range, and lets it go to one other by name.
fn policy(n: usize, name: ObjectName, shape: Shape) -> Result<Policy, Box<dyn Error>> {
    let own = matches!(shape, Shape::OwnNamespace);
    let app = |app: usize| one("app", &format!("app-{}", app % APPS));
    let peer = |app: Selector, team: usize| {
        let team = one("team", &format!("team-{}", team % 10));
        Peer::Pods {
            namespaces: (!own).then_some(if n.is_multiple_of(2) { team } else { Selector::default() }),
            pods: app,
        }
    };
    let port = |port| PortMatch {
        protocol: Protocol::Tcp,
        port,
    };
    let third_octet = u8::try_from(n % 40)?;
    let block = IpBlock {
        cidr: IpNet::V4(Ipv4Net::new(Ipv4Addr::new(10, 0, third_octet, 0), 24)?),
        except: vec![IpNet::V4(Ipv4Net::new(Ipv4Addr::new(10, 0, third_octet, 64), 26)?)],
    };
    Ok(Policy {
        name,
        generation: 1,
        log: false,
        pod_selector: app(n / NAMESPACES),
        ingress: Some(vec![
            Rule {
                peers: Some(vec![
                    peer(app(n / NAMESPACES + 1), n),
                    peer(app(n / NAMESPACES + 2), n / 3),
                    Peer::Block(block),
                ]),
                ports: Some(vec![
                    port(Port::Exact(8080)),
                    port(Port::Exact(9090)),
                    port(Port::Range(30000, 32000)),
                ]),
            },
            Rule {
                peers: None,
                ports: Some(vec![port(Port::Exact(9100))]),
            },
        ]),
        egress: Some(vec![Rule {
            peers: Some(vec![peer(app(n / NAMESPACES + 3), n / 7)]),
            ports: Some(vec![port(Port::Named("http".into()))]),
        }]),
    })
}

fn one(key: &str, value: &str) -> Selector {
    Selector {
        requirements: vec![Requirement {
            key: key.into(),
            operator: Operator::In(vec![value.into()]),
        }],
    }
}
