// SPDX-License-Identifier: Apache-2.0
//! A pod's share of the connection table: full, swept, and miscounted; and sweeps beside traffic. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::net::SocketAddr;
use std::sync::Barrier;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use wardline_bpf::frame::{self, flag};
use wardline_crds::config::DaemonConfig;
use wardline_node::datapath::PinPaths;
use wardline_policy::model::{Direction, Objects};

use support::{Program, monotonic, on_a_node, one_pod};

const NODE: &str = "node1";
/// Of the table below a sixteenth.
const HALF_OPEN: u16 = 16;
/// Half of a pod's share of half-open connections: a sweep that counts meanwhile may be wrong by half of them.
const PORTS: std::ops::Range<u16> = 1000..9_000;
/// ns in which what nobody answers is too old under pressure, and not yet otherwise.
const A_WHILE: u64 = 10_000_000_000;

/// How long a closed connection is kept, and some more: ticks are coarse.
const CLOSED: Duration = Duration::from_secs(13);

fn segment(source_port: u16, flags: u8) -> Vec<u8> {
    let socket = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port);
    frame::tcp(socket("10.0.1.1", source_port), socket("10.0.0.1", 80), flags)
}

fn syn(source_port: u16) -> Vec<u8> {
    segment(source_port, flag::SYN)
}

/// The pod that packets go to.
fn server() -> Objects {
    one_pod("server", NODE)
}

/// A table of which a pod may fill [`HALF_OPEN`] places with connections that are opening.
fn small_table() -> DaemonConfig {
    let mut config = DaemonConfig::default();
    config.limits.connections = u32::from(HALF_OPEN) * 16;
    config
}

fn open(ingress: &Program, ports: std::ops::Range<u16>) -> usize {
    ports.filter(|port| ingress.passes(&syn(*port))).count()
}

#[test]
fn a_table_that_keeps_its_size_keeps_its_quotas() {
    on_a_node(1, |node| {
        let mut config = small_table();
        drop(node.start(&config));
        config.limits.connections *= 16;
        let mut life = node.start(&config);
        life.apply(&node.desired(&server(), NODE));
        let ingress = life.program(node.veths[0], Direction::Ingress);
        assert_eq!(
            open(&ingress, 0..1000),
            usize::from(HALF_OPEN),
            "the rest is for others"
        );
    });
}

#[test]
fn a_sweep_makes_room_and_puts_counts_right() {
    on_a_node(1, |node| {
        let config = small_table();
        let mut life = node.start(&config);
        life.apply(&node.desired(&server(), NODE));
        let ingress = life.program(node.veths[0], Direction::Ingress);

        assert!(!life.conntrack.is_pressed());
        assert_eq!(open(&ingress, 0..100), usize::from(HALF_OPEN), "the quota holds");
        assert!(life.conntrack.is_pressed());
        let swept = life.conntrack.sweep(monotonic()).unwrap();
        assert_eq!(
            (swept.entries, swept.deleted),
            (usize::from(HALF_OPEN), 0),
            "all are young"
        );
        assert_eq!(open(&ingress, 100..200), 0, "and count still");
        let swept = life.conntrack.sweep(monotonic() + A_WHILE).unwrap();
        assert_eq!(swept.deleted, usize::from(HALF_OPEN), "what nobody answered goes early");
        assert!(!life.conntrack.is_pressed());
        assert_eq!(open(&ingress, 200..204), 4, "there is room again");
        let swept = life.conntrack.sweep(monotonic() + A_WHILE).unwrap();
        assert_eq!(swept.deleted, 0, "without need nothing goes before its time");

        // As if the daemon had been killed between deleting and counting, or CPUs had raced.
        let usages = MapHandle::from_pinned_path(PinPaths::new(&node.bpffs).maps.join("usages")).unwrap();
        let mut usage = usages.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
        for field in usage.chunks_exact_mut(8).take(2) {
            let counted = u64::from_ne_bytes(field.try_into().unwrap());
            field.copy_from_slice(&(counted + 1000).to_ne_bytes());
        }
        usages.update(&0_u32.to_ne_bytes(), &usage, MapFlags::ANY).unwrap();
        assert_eq!(open(&ingress, 300..400), 0, "a thousand too many were counted");
        drop(life);
        let mut life = node.start(&config);
        let swept = life.conntrack.sweep(monotonic()).unwrap();
        let room = usize::from(HALF_OPEN) - (swept.entries - swept.deleted);
        assert_eq!(open(&ingress, 400..500), room, "one sweep puts it right");
        assert!(life.conntrack.is_pressed());
        life.apply(&node.desired(&Objects::default(), NODE));
        assert!(!life.conntrack.is_pressed(), "a pod that is gone presses nobody");
    });
}

#[test]
fn answered_questions_make_room_where_a_pod_is_near_its_quota() {
    on_a_node(1, |node| {
        let config = small_table();
        let mut life = node.start(&config);
        life.apply(&node.desired(&server(), NODE));
        let ingress = life.program(node.veths[0], Direction::Ingress);
        let egress = life.program(node.veths[0], Direction::Egress);
        let ask = |ports: std::ops::Range<u16>| {
            let socket = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port);
            ports
                .map(|port| (socket("10.0.1.1", port), socket("10.0.0.1", 53)))
                .filter(|(client, server)| {
                    ingress.passes(&frame::udp(*client, *server)) && egress.passes(&frame::udp(*server, *client))
                })
                .count()
        };

        let quota = usize::from(HALF_OPEN) * 4;
        assert_eq!(ask(1..1000), quota, "the quota holds");
        let swept = life.conntrack.sweep(monotonic() + A_WHILE).unwrap();
        assert_eq!(swept.deleted, quota, "their time is not over, but others wait");
        assert_eq!(ask(1000..1010), 10, "there is room again");
        let swept = life.conntrack.sweep(monotonic() + A_WHILE).unwrap();
        assert_eq!(swept.deleted, 0, "without need nothing goes before its time");
    });
}

#[test]
fn a_sweep_spares_connections_that_open_while_it_reads() {
    on_a_node(1, |node| {
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&server(), NODE));
        let ingress = life.program(node.veths[0], Direction::Ingress);
        for port in PORTS {
            assert!(ingress.passes(&syn(port)) && ingress.passes(&segment(port, flag::RST)));
        }
        std::thread::sleep(CLOSED);

        let both = Barrier::new(2);
        let deleted = std::thread::scope(|scope| {
            let sweeper = scope.spawn(|| {
                both.wait();
                life.conntrack.sweep(monotonic()).unwrap().deleted
            });
            both.wait();
            assert_eq!(open(&ingress, PORTS), PORTS.len(), "each opens anew");
            sweeper.join().unwrap()
        });
        assert!(deleted > 0, "the sweep met closed ones");
        let left = life.conntrack.sweep(monotonic()).unwrap();
        assert_eq!(
            (left.entries, left.deleted),
            (PORTS.len(), 0),
            "none was deleted in place of the one before it"
        );
    });
}
