// SPDX-License-Identifier: Apache-2.0
//! A pod that does what it can to be taken for others and to use up what all share, while others go on talking.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{self, TryRecvError};

use wardline_bpf::frame::{self, flag};
use wardline_crds::SourceAddressCheck;
use wardline_crds::config::DaemonConfig;
use wardline_policy::model::Direction;

use crate::flows::Server;
use crate::wire::{Cluster, Family, PORT, Plugin, retransmissions, with_config};

const SERVER: u8 = 1;
const CLIENT: u8 = 2;
const HOSTILE: u8 = 3;
/// Of Services, which no pod is.
const SERVICES: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
const FROM_CLIENT: &str =
    "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}";
/// Isolates it, so that its denies are recorded.
const HOSTILE_MAY: &str = "{podSelector: {matchLabels: {app: hostile}}, policyTypes: [Egress], egress: [{}]}";

/// Packets by which kernels talk of multicast groups, now and then.
const CHATTER: u64 = 16;

/// Runs `attack` while flows between two other pods are open: they go on all the while, and new ones open.
fn while_others_talk(attack: impl FnOnce(&mut Cluster) + Send) {
    let config = DaemonConfig {
        source_address_check: SourceAddressCheck::Enforce,
        ..DaemonConfig::default()
    };
    with_config(Plugin::Ptp, config, |cluster| {
        for (name, host) in [("server", SERVER), ("client", CLIENT), ("hostile", HOSTILE)] {
            cluster.pod(name, host);
        }
        cluster.policy("server", FROM_CLIENT);
        cluster.policy("hostile", HOSTILE_MAY);
        cluster.apply();
        let server = Server::start("server", SERVER);
        let mut flows = server.open("client");
        flows.talk(&server, true);
        let before = retransmissions("client");
        std::thread::scope(|scope| {
            // Goes when the attack is over, also by a panic.
            let (attacked, over) = mpsc::channel::<()>();
            let (flows, server) = (&mut flows, &server);
            scope.spawn(move || {
                let mut rounds = 0;
                while over.try_recv() != Err(TryRecvError::Disconnected) {
                    flows.talk(server, true);
                    server.admits("client", true);
                    rounds += 1;
                }
                println!("old flows went on and new ones opened, {rounds} times");
            });
            attack(cluster);
            drop(attacked);
        });
        flows.talk(&server, true);
        server.admits("client", true);
        server.open("client").talk(&server, true);
        assert_eq!(retransmissions("client"), before, "segments of others were lost");
    });
}

/// Denied packets that the log tells of, by reason; nothing is told as lost.
fn denied(cluster: &mut Cluster) -> BTreeMap<String, u64> {
    let mut denied = BTreeMap::new();
    for record in cluster.life().records() {
        assert!(record["disposition"] != "lost", "{record}");
        if record["disposition"] == "deny" {
            let reason = record["reason"].as_str().unwrap().to_owned();
            *denied.entry(reason).or_default() += record["count"].as_u64().unwrap();
        }
    }
    denied
}

/// Addresses that are not the hostile pod's: another pod's, its node's, a Service's, one outside, and those of nobody.
fn stolen(family: Family) -> Vec<IpAddr> {
    let mut stolen = vec![
        family.pod(CLIENT),
        family.pod(SERVER),
        family.pod(254),
        family.outside(1),
        family.outside(2),
    ];
    let more: &[&str] = match family {
        Family::V4 => &[SERVICES[0], "127.0.0.1", "255.255.255.255", "224.0.0.1", "0.0.0.0"],
        Family::V6 => &[SERVICES[1], "::1", "ff02::1"],
    };
    stolen.extend(more.iter().map(|text| text.parse::<IpAddr>().unwrap()));
    stolen
}

#[test]
fn stolen_addresses_get_nowhere() {
    while_others_talk(|cluster| {
        let hostile = cluster.program("hostile", Direction::Egress);
        let mut sent = 0;
        for family in Family::BOTH {
            let server = SocketAddr::new(family.pod(SERVER), PORT);
            for source in stolen(family) {
                let from = SocketAddr::new(source, 40_000);
                let mut frames: Vec<_> = [flag::SYN, flag::ACK, flag::RST, flag::SYN | flag::ACK]
                    .into_iter()
                    .map(|flags| frame::tcp(from, server, flags))
                    .collect();
                frames.push(frame::udp(from, server));
                frames.push(frame::echo(source, server.ip(), frame::Echo::Request, 7));
                for frame in frames {
                    assert!(!hostile.passes(&frame), "a packet of {source} got through");
                    sent += 1;
                }
            }
        }
        assert_eq!(denied(cluster), BTreeMap::from([("spoofed".to_owned(), sent)]));
    });
}

#[test]
fn a_scan_of_all_ports_is_counted_and_hides_nobody_elses_denies() {
    while_others_talk(|cluster| {
        let server = cluster.program("server", Direction::Ingress);
        let from = SocketAddr::new(Family::V4.pod(HOSTILE), 40_000);
        for port in 1..=u16::MAX {
            let frame = frame::tcp(from, SocketAddr::new(Family::V4.pod(SERVER), port), flag::SYN);
            assert!(!server.passes(&frame), "port {port} is open");
        }
        // Another pod's denies find room beside them.
        cluster.policy("client", "{podSelector: {matchLabels: {app: client}}}");
        cluster.apply();
        let client = cluster.program("client", Direction::Ingress);
        assert!(!client.passes(&frame::tcp(
            from,
            SocketAddr::new(Family::V4.pod(CLIENT), PORT),
            flag::SYN
        )));
        let records = cluster.life().records();
        let count = |disposition: &str| -> u64 {
            let of_kind = records.iter().filter(|record| record["disposition"] == disposition);
            of_kind.map(|record| record["count"].as_u64().unwrap()).sum()
        };
        // What finds no room in the table is told as lost, to the last packet.
        let (sent, told) = (u64::from(u16::MAX) + 1, count("deny") + count("lost"));
        assert!((sent..sent + CHATTER).contains(&told), "{told} of {sent} are told");
        assert!(count("deny") > 1000, "nothing was written of the scan");
        let others = records.iter().filter(|record| record["dest"]["pod_name"] == "client");
        assert_eq!(others.count(), 1);
        assert_eq!(cluster.life().log.imbalance(), Some([[0; 2]; 2]));
        cluster.no_policy("client");
        cluster.apply();
    });
}

/// Packets in pieces that hide their headers, and behind chains of headers, none of which is a whole honest packet.
fn crafted(family: Family) -> Vec<Vec<u8>> {
    const DESTINATION_OPTIONS: u8 = 60;
    const ROUTING: u8 = 43;
    let from = SocketAddr::new(family.pod(HOSTILE), 40_000);
    let server = SocketAddr::new(family.pod(SERVER), PORT);
    let whole = frame::tcp(from, server, flag::SYN);
    let mut frames = vec![
        // Too short to show the flags; then what would show them, over what went before or after it.
        frame::fragment(&whole, 1, 0..8),
        frame::fragment(&whole, 2, 8..16),
        frame::fragment(&whole, 2, 8..20),
        frame::fragment(&whole, 3, 16..20),
        // Nothing in it at all.
        frame::fragment(&whole, 4, 0..0),
    ];
    if family == Family::V6 {
        let options = (DESTINATION_OPTIONS, vec![0, 0, 1, 4, 0, 0, 0, 0]);
        frames.push(frame::extended(&whole, &vec![options; 40]));
        frames.push(frame::extended(&whole, &[(ROUTING, vec![0; 8])]));
    }
    frames
}

#[test]
fn crafted_packets_are_dropped_and_counted() {
    while_others_talk(|cluster| {
        let hostile = cluster.program("hostile", Direction::Egress);
        let mut sent = 0;
        for family in Family::BOTH {
            for frame in crafted(family) {
                for _ in 0..100 {
                    assert!(!hostile.passes(&frame), "{family:?}: {frame:02x?}");
                    sent += 1;
                }
            }
        }
        let denied = denied(cluster);
        assert_eq!(denied.values().sum::<u64>(), sent, "{denied:?}");
    });
}

/// Connections that nobody answers, from as many ports to as many others.
const HALF_OPEN: (u16, u16) = (50_000, 20);

/// The ports of a million flows.
fn half_open() -> impl Iterator<Item = (u16, u16)> {
    let (from, to) = HALF_OPEN;
    (1..=to).flat_map(move |to| (1..=from).map(move |from| (from, PORT + to)))
}

#[test]
fn a_flood_of_half_open_connections_fills_its_own_share_only() {
    while_others_talk(|cluster| {
        let hostile = cluster.program("hostile", Direction::Egress);
        let (mut passed, mut dropped) = (0, 0);
        for (from, to) in half_open() {
            let from = SocketAddr::new(Family::V4.pod(HOSTILE), from);
            let to = SocketAddr::new(Family::V4.outside(2), to);
            if hostile.passes(&frame::tcp(from, to, flag::SYN)) {
                passed += 1;
            } else {
                dropped += 1;
            }
        }
        println!("{passed} passed, {dropped} did not");
        assert_eq!(passed + dropped, 1_000_000);
        assert!(passed > 0 && dropped > 900_000, "{passed} passed, {dropped} did not");
        assert_eq!(
            denied(cluster),
            BTreeMap::from([("half-open-quota".to_owned(), dropped)])
        );
        assert_eq!(cluster.life().log.imbalance(), Some([[0; 2]; 2]));
    });
}

/// Datagrams to a pod that admits them and answers none, which count for both pods.
#[test]
fn a_flood_at_another_pod_leaves_room_there_for_others() {
    while_others_talk(|cluster| {
        cluster.no_policy("server");
        cluster.no_policy("hostile");
        cluster.apply();
        let hostile = cluster.program("hostile", Direction::Egress);
        let server = cluster.program("server", Direction::Ingress);
        let arrived = half_open()
            .map(|(from, to)| {
                let from = SocketAddr::new(Family::V4.pod(HOSTILE), from);
                frame::udp(from, SocketAddr::new(Family::V4.pod(SERVER), to))
            })
            .filter(|frame| hostile.passes(frame) && server.passes(frame))
            .count();
        assert!(arrived > 0 && arrived < 100_000, "{arrived} arrived");
    });
}
