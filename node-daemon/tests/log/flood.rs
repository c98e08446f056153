// SPDX-License-Identifier: Apache-2.0
//! One pod's flood against the records of another, while nobody reads; and denies that are told one by one.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use wardline_bpf::abi;
use wardline_bpf::frame::{self, flag};
use wardline_crds::config::DaemonConfig;
use wardline_policy::model::Direction;
use wardline_record::files;

use crate::support::{Life, Node, Program, on_a_node};
use crate::{CLIENTS, Count, Family, desired, written};

/// Events that the ring holds.
const RING: u64 = 95_325;
/// Denies of one direction of a pod that are told one by one in a generation.
const SHARE: u64 = 5_957;
/// Connections of one pod after which the table is emptied: fewer than it may have half open.
const ROOM: u64 = 15_000;
/// Records of the quiet pod.
const QUIET: u64 = 1_000;

/// One pod's edge, and how many packets were sent to it.
struct Edge {
    pod: usize,
    program: Program,
    sent: Count,
}

impl Edge {
    fn of(node: &Node, life: &Life, pod: usize) -> Self {
        Self {
            pod,
            program: life.program(node.veths[pod], Direction::Ingress),
            sent: Count::default(),
        }
    }

    /// New connections.
    fn open(&mut self, life: &Life, connections: u64) {
        for _ in 0..connections {
            self.packet(self.sent.allow, true);
            self.sent.allow += 1;
            if self.sent.allow.is_multiple_of(ROOM) {
                life.forget_connections();
                life.conntrack.sweep(crate::support::monotonic()).unwrap();
            }
        }
    }

    /// Denied packets, by turns to so many ports.
    fn knock(&mut self, packets: u64, ports: u64) {
        for _ in 0..packets {
            self.packet(self.sent.deny % ports, false);
            self.sent.deny += 1;
        }
    }

    fn packet(&self, number: u64, is_admitted: bool) {
        let number = usize::try_from(number).unwrap();
        let port = |n: usize| u16::try_from(n).unwrap();
        let (client, flow) = (number % CLIENTS, number / CLIENTS);
        let from = SocketAddr::new(Family::V4.client(is_admitted, client), port(1024 + flow / 60_000));
        let to = SocketAddr::new(Family::V4.server(self.pod), port(1 + flow % 60_000));
        let passes = self.program.passes(&frame::tcp(from, to, flag::SYN));
        assert_eq!(passes, is_admitted, "packet {number} from {from} to {to}");
    }
}

/// Writes all that is there.
fn settle(life: &mut Life) {
    while life.log.drain().unwrap() {}
    life.log.close().unwrap();
    assert_eq!(life.log.imbalance(), Some([[0; 2]; 2]));
}

/// Lines of a log.
fn lines(log: &Path) -> Vec<Value> {
    let parts = files::open(log).unwrap();
    let texts = parts.iter().map(|part| std::fs::read_to_string(&part.path).unwrap());
    let lines = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
}

/// Counts of the lines about one pod.
fn records_of(lines: &[Value], pod: usize) -> Count {
    let name = format!("server{pod}");
    let mut counts = Count::default();
    for line in lines.iter().filter(|line| line["dest"]["pod_name"] == name.as_str()) {
        let count = line["count"].as_u64().unwrap();
        match line["disposition"].as_str() {
            Some("allow") => counts.allow += count,
            _ => counts.deny += count,
        }
    }
    counts
}

#[test]
fn one_pods_flood_hides_nobody_elses_records() {
    on_a_node(2, |node| {
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&desired(node));
        let [mut flooded, mut quiet] = [0, 1].map(|pod| Edge::of(node, &life, pod));
        flooded.open(&life, 2 * RING);
        flooded.knock(60_000, 60_000);
        quiet.open(&life, QUIET);
        quiet.knock(QUIET, QUIET);
        settle(&mut life);
        let written = written(&node.file_options().path);
        let lines = lines(&node.file_options().path);
        let (flood, other) = (records_of(&lines, 0), records_of(&lines, 1));
        println!("{other:?} of {:?} beside {flood:?} of {:?}", quiet.sent, flooded.sent);
        assert_eq!(other, quiet.sent, "all of the quiet pod");
        assert_eq!(flood.allow + written.losses.allow, flooded.sent.allow);
        assert_eq!(flood.deny + written.losses.deny, flooded.sent.deny);
        assert!(
            (RING / 2..RING * 6 / 10).contains(&flood.allow),
            "half of the ring, and a share: {flood:?}"
        );
    });
}

#[test]
fn a_flood_goes_on_in_a_scarce_ring_as_its_events_are_read() {
    on_a_node(3, |node| {
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&desired(node));
        let [mut first, mut second, mut third] = [0, 1, 2].map(|pod| Edge::of(node, &life, pod));
        let events = |life: &Life| life.log.figures().backlog / u64::from(abi::EVENT_BYTES);
        first.open(&life, RING);
        let half = RING.div_ceil(2);
        let share = events(&life) - half;
        assert!(share.abs_diff(half / 9) < 3, "{share}");
        // Half is read, up to behind where its count began.
        while life.log.ledger().ring_position <= half * u64::from(abi::EVENT_BYTES) {
            assert!(life.log.drain().unwrap());
        }
        second.open(&life, RING);
        third.open(&life, ROOM - 1);
        let scarce = events(&life);
        assert!(scarce > half + 2 * share - 1000, "{scarce}");
        second.open(&life, 10);
        assert_eq!(events(&life), scarce, "nothing of it is read");
        first.open(&life, 10);
        assert_eq!(events(&life), scarce + 10, "what counted for it is");
        settle(&mut life);
        let sent: u64 = [first, second, third].iter().map(|edge| edge.sent.allow).sum();
        assert_eq!(written(&node.file_options().path).all().allow, sent);
    });
}

#[test]
fn denies_are_told_one_by_one_while_the_ring_has_room_to_spare() {
    let mut config = DaemonConfig::default();
    config.logging.deny_aggregation_seconds = 0;
    on_a_node(2, |node| {
        let mut life = node.start(&config);
        life.apply(&desired(node));
        let [mut edge, mut other] = [0, 1].map(|pod| Edge::of(node, &life, pod));
        let path = node.file_options().path;
        edge.knock(1000, 10);
        edge.open(&life, 100);
        while life.log.drain().unwrap() {}
        let told = lines(&path);
        assert_eq!(told.len(), 1100, "before any generation is closed");
        let denies: Vec<_> = told.iter().filter(|line| line["disposition"] == "deny").collect();
        assert_eq!(denies.len(), 1000);
        for deny in denies {
            assert_eq!(
                (&deny["count"], &deny["reason"]),
                (&1.into(), &"default-deny".into()),
                "{deny}"
            );
            assert_eq!(deny["timestamp"], deny["last_timestamp"], "{deny}");
            assert_eq!(deny["isolated_by"][0]["name"], "server", "{deny}");
            assert_eq!(deny["connection"]["src_port"], 1024, "{deny}");
        }
        settle(&mut life);
        assert_eq!(written(&path).all(), edge.sent);

        // Beyond a pod's share they are aggregated, and others are still told one by one.
        let before = written(&path).lines;
        edge.knock(2 * SHARE, 10);
        other.knock(100, 10);
        settle(&mut life);
        assert_eq!(records_of(&lines(&path), 0), edge.sent);
        assert_eq!(records_of(&lines(&path), 1), other.sent);
        assert_eq!(written(&path).lines, before + SHARE + 10 + 100);

        // Where a quarter of the ring waits they take no room from allows.
        edge.open(&life, RING / 4 + 1);
        edge.knock(100, 10);
        settle(&mut life);
        let all = written(&path);
        assert_eq!(all.lines, before + SHARE + 10 + 100 + RING / 4 + 1 + 10);
        assert_eq!(all.losses, Count::default());
    });
}
