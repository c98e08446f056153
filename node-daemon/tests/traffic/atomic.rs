// SPDX-License-Identifier: Apache-2.0
//! Policies are rewritten, a hundred times a second where the machine keeps up, between two sets that say the same of
//! these flows in other words; not one packet may see a mix of them.
//!
//! ```text
//!   a -> server   admitted by both: datagrams, a connection that stays open, connections one after the other
//!   b -> server   denied by both at the server's ingress
//!   c -> server   denied by both at c's egress
//! ```
//!
//! What is judged are verdicts: what comes through, and what the log says was denied. Order and retransmissions are the
//! machine's, and only told.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::monotonic;
use crate::wire::{
    Cluster, Family, PORT, Plugin, connection, inside, listener, on_a_cluster, pod_event, pod_gone, retransmissions,
    servers, udp_client, udp_server,
};

const SERVER: u8 = 1;
const A: u8 = 2;
const B: u8 = 3;
const C: u8 = 4;
/// Time between two rewrites.
const BEAT: Duration = Duration::from_millis(10);
/// Packets of the test unless this variable says otherwise.
const PACKETS: u64 = 60_000;
const PACKETS_VARIABLE: &str = "WARDLINE_ATOMIC_PACKETS";
/// Rewrites of each run, and packets for each of which there is at least another one.
const REWRITES: u64 = 200;
const PACKETS_A_REWRITE: u64 = 500;
/// Between bursts of traffic, so that there is time to rewrite.
const PAUSE: Duration = Duration::from_millis(1);
/// Datagrams that are under way at once.
const WINDOW: u64 = 16;

/// The two sets, by name. Names that both have are edited in place; others come before, and go after, what they
/// stand for.
const SETS: [&[(&str, &str)]; 2] = [
    &[
        (
            "server",
            "{podSelector: {matchLabels: {app: server}}, ingress: [
                {from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [a, c, x]}]}}],
                 ports: [{protocol: UDP, port: 7000}, {port: 7000}]}]}",
        ),
        (
            "a",
            "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [
                {to: [{podSelector: {matchLabels: {app: server}}}], ports: [{protocol: UDP}, {port: 7000}]}]}",
        ),
        (
            "c",
            "{podSelector: {matchLabels: {app: c}}, policyTypes: [Egress], egress: [
                {to: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [server]}]}}]},
                {to: [{podSelector: {}}], ports: [{port: 7001, endPort: 9000}]}]}",
        ),
    ],
    &[
        (
            "server",
            "{podSelector: {matchLabels: {app: server}}, ingress: [
                {from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [b]}]}}],
                 ports: [{protocol: UDP, port: 6000, endPort: 8000}, {port: 1, endPort: 7000}]}]}",
        ),
        (
            "a",
            "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [
                {to: [{ipBlock: {cidr: 10.1.0.0/24, except: [10.1.0.3/32]}}, {ipBlock: {cidr: 'fd00:1::/64'}}]}]}",
        ),
        ("c", "{podSelector: {matchLabels: {app: c}}, policyTypes: [Egress]}"),
        (
            "server-by-address",
            "{podSelector: {matchLabels: {app: server}}, ingress: [
                {from: [{ipBlock: {cidr: 10.1.0.2/32}}, {ipBlock: {cidr: 'fd00:1::2/128'}}]}]}",
        ),
        ("all", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}"),
    ],
];

/// What the threads of the traffic share.
struct Traffic {
    stop: AtomicBool,
    /// Packets sent by admitted and refused clients, and answers to the admitted.
    packets: AtomicU64,
    /// Datagrams of refused clients, by [`B`] and [`C`].
    refused: [AtomicU64; 2],
    /// Connections that admitted clients opened.
    opened: AtomicU64,
}

impl Traffic {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, packets: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
    }
}

#[test]
fn policies_that_are_rewritten_all_the_time_never_show_a_packet_a_mix() {
    let wanted = std::env::var(PACKETS_VARIABLE).map_or(PACKETS, |text| text.parse().unwrap());
    on_a_cluster(Plugin::Ptp, |cluster| {
        for (name, host) in [("server", SERVER), ("a", A), ("b", B), ("c", C)] {
            cluster.pod(name, host);
        }
        cluster.apply();
        let tcp = listener("server");
        // Open before there is a policy, so that refused clients have open flows too.
        let held: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .zip(servers(SERVER).into_iter().cycle())
            .map(|(client, to)| connection(client, &tcp, to))
            .collect();
        let datagrams = udp_server("server");
        let clients: Vec<UdpSocket> = ["a", "a", "b", "b", "c", "c"]
            .into_iter()
            .zip(servers(SERVER).into_iter().cycle())
            .map(|(client, to)| udp_client(client, to))
            .collect();
        for client in &clients {
            assert!(answers(client, &datagrams));
        }

        rewrite(cluster, 0);
        cluster.apply();
        let [mut a, mut b, mut c]: [_; 3] = held.try_into().unwrap();
        let sent_again = || ["a", "server"].map(retransmissions);
        let before = sent_again();
        let traffic = Traffic {
            stop: AtomicBool::new(false),
            packets: AtomicU64::new(0),
            refused: Default::default(),
            opened: AtomicU64::new(0),
        };
        let began = Instant::now();
        let rewrites = std::thread::scope(|scope| {
            let traffic = &traffic;
            scope.spawn(|| answer_the_admitted(traffic, &datagrams));
            scope.spawn(|| accept_the_admitted(traffic, &tcp));
            scope.spawn(|| talk(traffic, &clients[..2]));
            scope.spawn(|| stay_connected(traffic, &mut a));
            scope.spawn(|| connect_again_and_again(traffic));
            for (i, client) in ["b", "c"].into_iter().enumerate() {
                let open = &clients[2 + 2 * i..4 + 2 * i];
                scope.spawn(move || shout(traffic, i, client, open));
                scope.spawn(move || knock(traffic, client));
            }
            for (near, far) in [&mut b, &mut c] {
                scope.spawn(|| stay_cut(traffic, near, far));
            }
            let rewrites = rewrite_all_the_time(cluster, traffic, wanted);
            traffic.stop.store(true, Ordering::Relaxed);
            rewrites
        });
        let seconds = began.elapsed().as_secs_f64();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        println!(
            "{} packets, {} connections; {rewrites} rewrites, {:.0} a second; sent again by a and the server: {before:?} before, \
             {:?} now",
            load(&traffic.packets),
            load(&traffic.opened),
            f64::from(rewrites) / seconds,
            sent_again(),
        );
        assert!(load(&traffic.opened) > 100);
        let denies = denies(cluster);
        for deny in &denies {
            // A segment that is dropped is sent again, and would not be missed.
            let names_the_admitted = is_admitted(deny.from) || is_admitted(deny.to);
            assert!(!names_the_admitted, "what both sets admit was denied: {deny:?}");
        }
        let denied = by_client(&denies);
        for (host, sent) in [B, C].into_iter().zip(&traffic.refused) {
            assert_eq!(
                denied.get(&host),
                Some(&load(sent)),
                "denied datagrams of 10.1.0.{host}: {denied:?}"
            );
        }
    });
}

fn answers(client: &UdpSocket, server: &UdpSocket) -> bool {
    let mut buffer = [0; 8];
    client.send(b"hello").unwrap();
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(&buffer[..length], from).unwrap();
    client.recv(&mut buffer).is_ok()
}

/// Tells the index of set `next`, which the other is in force before.
fn rewrite(cluster: &mut Cluster, next: usize) {
    for (name, spec) in SETS[next] {
        cluster.policy(name, spec);
    }
    for (name, _) in SETS[1 - next] {
        if SETS[next].iter().all(|(other, _)| other != name) {
            cluster.no_policy(name);
        }
    }
}

/// Rewrites until enough packets were sent, whole sets at once or a policy at a time, with a pod elsewhere that comes and
/// goes, and now and then another life of the daemon. Returns how often.
fn rewrite_all_the_time(cluster: &mut Cluster, traffic: &Traffic, wanted: u64) -> u32 {
    let mut rewrites = 0_u32;
    let mut next = Instant::now();
    let needed = REWRITES.max(wanted / PACKETS_A_REWRITE);
    while traffic.packets.load(Ordering::Relaxed) < wanted || u64::from(rewrites) < needed {
        let set = usize::from(rewrites.is_multiple_of(2));
        match rewrites / 2 % 8 {
            // The two sets by turns, policy by policy: any mix of whole policies says the same of the flows.
            6 | 7 => {
                for (name, spec) in SETS[set] {
                    cluster.policy(name, spec);
                    cluster.apply();
                }
                rewrite(cluster, set);
            }
            4 | 5 => {
                rewrite(cluster, set);
                cluster.label_namespace("shop", &format!("{{beat: '{rewrites}'}}"));
                cluster.tell(pod_event(
                    "far",
                    &format!("{{app: {}}}", ["b", "x"][set]),
                    40,
                    "node2",
                    "Running",
                ));
            }
            3 => {
                rewrite(cluster, set);
                cluster.tell(pod_gone("far"));
            }
            _ => rewrite(cluster, set),
        }
        // The daemon is killed, and learns when it is back what has changed meanwhile.
        if rewrites % 400 == 50 {
            std::thread::sleep(BEAT);
            cluster.restart();
        }
        cluster.apply();
        rewrites += 1;
        // Or there is no room for all that is to be told.
        while cluster.life().log.drain().unwrap() {}
        if rewrites.is_multiple_of(64) {
            let life = cluster.life();
            life.log.close().unwrap();
            life.datapath.collect_garbage().unwrap();
            // As the daemon does: or who knocks all the time has no room left to knock.
            life.conntrack.sweep(monotonic()).unwrap();
        }
        next += BEAT;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    rewrites
}

/// Whether it is an address of [`A`].
fn is_admitted(address: IpAddr) -> bool {
    Family::BOTH
        .map(|family| family.pod(A))
        .contains(&address.to_canonical())
}

fn answer_the_admitted(traffic: &Traffic, server: &UdpSocket) {
    server.set_read_timeout(Some(BEAT)).unwrap();
    let mut buffer = [0; 8];
    while traffic.goes_on() {
        if let Ok((length, from)) = server.recv_from(&mut buffer) {
            assert!(is_admitted(from.ip()), "a datagram of {from} came through");
            server.send_to(&buffer[..length], from).unwrap();
        }
    }
}

fn accept_the_admitted(traffic: &Traffic, server: &TcpListener) {
    server.set_nonblocking(true).unwrap();
    while traffic.goes_on() {
        match server.accept() {
            Ok((mut stream, from)) => {
                assert!(is_admitted(from.ip()), "a connection of {from} came through");
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut byte = [0];
                // This side closes first, and keeps what waits after the end.
                stream.read_exact(&mut byte).unwrap();
                stream.write_all(&byte).unwrap();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_micros(100)),
            Err(error) => panic!("failed to accept: {error}"),
        }
    }
}

/// Datagrams there and back, in both families: each must come, once, in whatever order.
fn talk(traffic: &Traffic, clients: &[UdpSocket]) {
    let mut number = 0_u64;
    let mut buffer = [0; 8];
    while traffic.goes_on() {
        for client in clients {
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            for i in 0..WINDOW {
                client.send(&(number + i).to_be_bytes()).unwrap();
            }
            let mut missing: BTreeSet<u64> = (number..number + WINDOW).collect();
            while !missing.is_empty() {
                if let Err(error) = client.recv(&mut buffer) {
                    assert!(!traffic.goes_on(), "admitted datagrams were lost: {missing:?}: {error}");
                    return;
                }
                assert!(missing.remove(&u64::from_be_bytes(buffer)), "{buffer:?} came unasked");
            }
            number += WINDOW;
            traffic.count(2 * WINDOW);
        }
        std::thread::sleep(PAUSE);
    }
}

fn stay_connected(traffic: &Traffic, (near, far): &mut (TcpStream, TcpStream)) {
    let mut byte = [0];
    for stream in [&*near, &*far] {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    while traffic.goes_on() {
        for (from, to) in [(&*near, &*far), (&*far, &*near)] {
            let (mut from, mut to) = (from, to);
            from.write_all(b"x").unwrap();
            to.read_exact(&mut byte).expect("an admitted connection goes on");
        }
        traffic.count(2);
        std::thread::sleep(PAUSE / 4);
    }
}

fn connect_again_and_again(traffic: &Traffic) {
    inside("a", || {
        let mut byte = [0];
        for server in servers(SERVER).into_iter().cycle() {
            if !traffic.goes_on() {
                return;
            }
            let stream = TcpStream::connect_timeout(&server, Duration::from_secs(5));
            let mut stream = stream.expect("an admitted connection opens");
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(b"x").unwrap();
            if let Err(error) = stream.read_exact(&mut byte) {
                assert!(!traffic.goes_on(), "an admitted connection was cut: {error}");
            }
            traffic.opened.fetch_add(1, Ordering::Relaxed);
            traffic.count(8);
            std::thread::sleep(PAUSE);
        }
    });
}

/// Datagrams that must not come: on flows that were open before the policies, and on new ones.
fn shout(traffic: &Traffic, who: usize, client: &str, open: &[UdpSocket]) {
    while traffic.goes_on() {
        for (open, server) in open.iter().zip(servers(SERVER)) {
            let new = udp_client(client, server);
            for socket in [open, &new] {
                for _ in 0..WINDOW {
                    socket.send(b"let me in").unwrap();
                }
                traffic.refused[who].fetch_add(WINDOW, Ordering::Relaxed);
                traffic.count(WINDOW);
            }
        }
        std::thread::sleep(8 * PAUSE);
    }
}

/// Connections that must not open: one SYN each.
fn knock(traffic: &Traffic, client: &str) {
    inside(client, || {
        while traffic.goes_on() {
            for server in servers(SERVER) {
                let outcome = TcpStream::connect_timeout(&server, Duration::from_millis(2));
                assert!(outcome.is_err(), "a connection of {client} opened");
                traffic.count(1);
            }
        }
    });
}

/// A connection that was open before the policies, and that they deny.
fn stay_cut(traffic: &Traffic, near: &mut TcpStream, far: &mut TcpStream) {
    near.set_nonblocking(true).unwrap();
    far.set_read_timeout(Some(BEAT)).unwrap();
    let mut byte = [0];
    while traffic.goes_on() {
        // What is not acknowledged is sent again, so the first byte would do.
        let _ = near.write(b"x");
        let got = far.read(&mut byte);
        assert!(
            got.is_err(),
            "a refused connection of {:?} goes on: {got:?}",
            near.local_addr()
        );
    }
}

/// What the log says was denied.
#[derive(Debug)]
struct Deny {
    from: IpAddr,
    to: IpAddr,
    is_datagram: bool,
    count: u64,
}

fn denies(cluster: &mut Cluster) -> Vec<Deny> {
    let mut denies = Vec::new();
    for record in cluster.life().all_records() {
        let connection = &record["connection"];
        assert!(record["disposition"] != "lost", "{record}");
        if record["disposition"] == "deny" {
            let address = |field: &str| connection[field].as_str().unwrap().parse().unwrap();
            denies.push(Deny {
                from: address("src_ip"),
                to: address("dest_ip"),
                is_datagram: connection["protocol"] == "udp" && connection["dest_port"] == PORT,
                count: record["count"].as_u64().unwrap(),
            });
        }
    }
    denies
}

/// Denied datagrams, by the last part of the client's address.
fn by_client(denies: &[Deny]) -> BTreeMap<u8, u64> {
    let mut denied = BTreeMap::new();
    for deny in denies.iter().filter(|deny| deny.is_datagram) {
        let host = match deny.from {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => v6.octets()[15],
        };
        *denied.entry(host).or_default() += deny.count;
    }
    denied
}
