// SPDX-License-Identifier: Apache-2.0
//! Programs of pods that start are filters first. Links take over from them while packets flow, and each packet is
//! judged once.
//!
//! ```text
//!   friends -> server, or its Service   admitted, and each datagram is answered
//!   foes    -> the same                 dropped at the server
//! ```

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use wardline_bpf::abi::Reason;
use wardline_policy::model::Direction;

use crate::wire::{Cluster, Family, PORT, Plugin, on_a_cluster, pod_event, servers, udp_client, udp_server};

const SERVER: u8 = 1;
const FRIENDS: [(&str, u8); 3] = [("friend1", 11), ("friend2", 12), ("friend3", 13)];
const FOES: [(&str, u8); 3] = [("foe1", 21), ("foe2", 22), ("foe3", 23)];
const FROM_FRIENDS: &str =
    "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}";
const SERVICE: &str = "10.96.0.10";
/// Longer than any answer takes that was not dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two datagrams that nobody answers.
const PAUSE: Duration = Duration::from_micros(200);
/// Before and after the handovers.
const A_WHILE: Duration = Duration::from_millis(50);

/// What the threads of the traffic share.
#[derive(Default)]
struct Traffic {
    stop: AtomicBool,
    /// Datagrams of friends, each answered.
    answered: AtomicU64,
    /// Datagrams of foes.
    refused: AtomicU64,
}

impl Traffic {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn ask(&self, friend: &UdpSocket) {
        friend.set_read_timeout(Some(PATIENCE)).unwrap();
        for number in (0_u32..).take_while(|_| self.goes_on()) {
            friend.send(&number.to_be_bytes()).unwrap();
            let mut answer = [0; 4];
            friend
                .recv(&mut answer)
                .expect("an admitted datagram and its answer get through");
            assert_eq!(u32::from_be_bytes(answer), number);
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn knock(&self, foe: &UdpSocket) {
        while self.goes_on() {
            foe.send(b"open").unwrap();
            self.refused.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
    }

    /// Answers until it is told to stop and all is quiet.
    fn answer(&self, server: &UdpSocket) {
        server.set_read_timeout(Some(PAUSE * 50)).unwrap();
        let mut datagram = [0; 4];
        loop {
            match server.recv_from(&mut datagram) {
                Ok((_, from)) => {
                    let is_friend = FRIENDS.iter().any(|(_, host)| is(from.ip(), *host));
                    assert!(is_friend, "a datagram of {from} got through");
                    server.send_to(&datagram, from).unwrap();
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    if !self.goes_on() {
                        return;
                    }
                }
            }
        }
    }
}

fn is(address: IpAddr, host: u8) -> bool {
    Family::BOTH
        .iter()
        .any(|family| family.pod(host) == address.to_canonical())
}

/// Everything in force as when ADDs wait for it.
fn start_pods(cluster: &mut Cluster) {
    for (name, host) in [("server", SERVER)].into_iter().chain(FRIENDS).chain(FOES) {
        cluster.pod(name, host);
        let app = name.trim_end_matches(|c: char| c.is_ascii_digit());
        cluster.tell(pod_event(name, &format!("{{app: {app}}}"), host, "node1", "Running"));
    }
    cluster.policy("from-friends", FROM_FRIENDS);
    cluster.service(
        "web",
        &format!("{{spec: {{clusterIPs: ['{SERVICE}'], ports: [{{port: {PORT}, protocol: UDP}}]}}}}"),
    );
    let endpoint = Family::V4.pod(SERVER);
    cluster.slice(
        "web-1",
        &format!(
            "{{metadata: {{labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4,
              ports: [{{port: {PORT}, protocol: UDP}}], endpoints: [{{addresses: ['{endpoint}'], nodeName: node1}}]}}"
        ),
    );
    cluster.start();
}

/// Packets that were judged, by direction; those by which kernels talk of the link left out.
fn judged(cluster: &mut Cluster) -> [u64; 2] {
    let packets = cluster.life().log.packets().unwrap();
    Direction::ALL.map(|direction| {
        let of_direction = &packets[direction.index()];
        of_direction.iter().sum::<u64>() - of_direction[Reason::Neighbour as usize]
    })
}

#[test]
fn links_take_over_from_filters_and_each_packet_is_judged_once() {
    for plugin in [Plugin::Ptp, Plugin::Bridge] {
        on_a_cluster(plugin, |cluster| {
            start_pods(cluster);
            let server = udp_server("server");
            let [v4, v6] = servers(SERVER);
            let to = [v4, v6, SocketAddr::new(SERVICE.parse().unwrap(), PORT)];
            let sockets = |pods: [(&str, u8); 3]| {
                let pairs = pods.into_iter().zip(to);
                pairs.map(|((name, _), to)| udp_client(name, to)).collect::<Vec<_>>()
            };
            let (friends, foes) = (sockets(FRIENDS), sockets(FOES));
            let traffic = Traffic::default();
            std::thread::scope(|scope| {
                scope.spawn(|| traffic.answer(&server));
                for friend in &friends {
                    scope.spawn(|| traffic.ask(friend));
                }
                for foe in &foes {
                    scope.spawn(|| traffic.knock(foe));
                }
                std::thread::sleep(A_WHILE);
                while cluster.life().datapath.has_filters() {
                    cluster.life().datapath.hand_over().unwrap();
                }
                std::thread::sleep(A_WHILE);
                traffic.stop.store(true, Ordering::Relaxed);
            });
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let (answered, refused) = (count(&traffic.answered), count(&traffic.refused));
            assert!(answered > 100 && refused > 100, "{answered} {refused}");
            println!("{answered} datagrams answered, {refused} refused");
            // Each at the pod that sends it and at the pod that it is for.
            assert_eq!(judged(cluster), [2 * answered + refused; 2]);
        });
    }
}
