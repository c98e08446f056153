// SPDX-License-Identifier: Apache-2.0
//! How long Services take from the watches' events to the kernel's tables. Needs root:
//! `cargo run --release --package wardline-node --example services_bench`.
//!
//! 10,000 Services with two ports and two ready backends each, in namespaces and a bpf file system of their own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a program for developers")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use wardline_crds::config::DaemonConfig;
use wardline_node::index::{Event, Index, Update};
use wardline_node::services::{Endpoint, EndpointState, Service, ServicePort, Slice, SlicePort};
use wardline_policy::model::{ObjectName, Protocol};

use support::{Life, on_a_node};

const SERVICES: u32 = 10_000;
const PORTS: u16 = 2;
const CHANGES: u32 = 200;
const LOAD_TARGET: Duration = Duration::from_secs(1);
const CHANGE_TARGET: Duration = Duration::from_millis(10);

fn main() {
    on_a_node(0, |node| {
        let mut life = node.start(&DaemonConfig::default());
        let load = load(&mut Index::new("node1", true), &mut life);
        let counts = life.datapath.service_counts();
        drop(life);
        let mut life = node.start(&DaemonConfig::default());
        let mut index = Index::new("node1", true);
        let again = self::load(&mut index, &mut life);
        let mut changes: Vec<Duration> = (0..CHANGES).map(|n| change(&mut index, &mut life, n)).collect();
        changes.sort_unstable();
        println!(
            "{SERVICES} Services: {} fronts, {} backends",
            counts.fronts, counts.backends
        );
        let show = |what, time: Duration, target: Duration| {
            println!("{what:<48} {time:>10.2?}   target {target:?}");
        };
        show("all of them, from events to effect", load, LOAD_TARGET);
        show("the same after a restart, nothing to write", again, LOAD_TARGET);
        let (median, worst) = (changes[changes.len() / 2], changes[changes.len() - 1]);
        show("one backend of one Service, median", median, CHANGE_TARGET);
        show("one backend of one Service, worst", worst, CHANGE_TARGET);
    });
}

fn load(index: &mut Index, life: &mut Life) -> Duration {
    let events: Vec<Event> = (0..SERVICES).flat_map(|n| [service(n), slice(n, 0)]).collect();
    let began = Instant::now();
    for event in events {
        index.apply(event);
    }
    apply(index, life);
    began.elapsed()
}

fn change(index: &mut Index, life: &mut Life, round: u32) -> Duration {
    let event = slice(round * 37 % SERVICES, 1 + round);
    let began = Instant::now();
    index.apply(event);
    apply(index, life);
    began.elapsed()
}

fn apply(index: &mut Index, life: &mut Life) {
    for change in index.services().take_changes() {
        life.datapath.apply_services(&change).unwrap();
    }
}

fn name(n: u32) -> ObjectName {
    ObjectName::new(format!("team-{}", n % 50), format!("service-{n}"))
}

fn service(n: u32) -> Event {
    let port = |number| ServicePort {
        name: format!("port-{number}").into(),
        protocol: Protocol::Tcp,
        port: 80 + number,
        node_port: None,
    };
    let service = Service {
        cluster_ips: vec![Ipv4Addr::from(0x0a60_0000 + n).into()],
        ports: (0..PORTS).map(port).collect(),
        ..Service::default()
    };
    Event::Service(name(n), Update::Set(service))
}

/// `version` tells one of the two backends from those of other versions.
fn slice(n: u32, version: u32) -> Event {
    let endpoint = |address: u32| Endpoint {
        address: Ipv4Addr::from(address).into(),
        node: Some("node2".into()),
        state: EndpointState::Ready,
        zones: Vec::new(),
        nodes: Vec::new(),
    };
    let port = |number| SlicePort {
        name: format!("port-{number}").into(),
        protocol: Protocol::Tcp,
        port: 8080 + number,
    };
    let slice = Slice {
        service: name(n).name,
        ports: (0..PORTS).map(port).collect(),
        endpoints: vec![endpoint(0x0a80_0000 + n), endpoint(0x0b00_0000 + n + (version << 16))],
    };
    Event::Slice(name(n), Update::Set(slice))
}
