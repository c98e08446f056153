// SPDX-License-Identifier: Apache-2.0
//! Through a Service with real sockets: what the kernel's stack thinks of frames whose addresses were exchanged, with
//! checksums and segments left to the device.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use wardline_node::services::{Change, Front, FrontKey};
use wardline_policy::model::{ObjectName, Protocol};

use crate::wire::{
    Cluster, Family, NAMESPACE, PORT, Plugin, connection, inside, listener, on_a_cluster, run, udp_client, udp_server,
};

const CLIENT: u8 = 1;
const SERVER: u8 = 2;
/// The Service's port.
const SERVICE_PORT: u16 = 80;
/// More than any queue on the way holds.
const TRANSFER: usize = 32 << 20;
/// How long one waits for what should come.
const PATIENCE: Duration = Duration::from_secs(20);
const FEW: u8 = 8;

/// The Service's addresses. The words of the last two add up to the same as those of the server's address, so that no
/// checksum tells one from the other.
const ADDRESSES: [(Family, IpAddr); 4] = [
    (Family::V4, IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1))),
    (Family::V6, IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1))),
    (Family::V4, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3))),
    (Family::V6, IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3))),
];

fn fronts() -> [SocketAddr; 4] {
    ADDRESSES.map(|(_, address)| SocketAddr::new(address, SERVICE_PORT))
}

/// The Service has these pods behind it, for TCP and UDP over both families.
fn set_backends(cluster: &mut Cluster, hosts: &[u8]) {
    let mut fronts = BTreeMap::new();
    for (family, address) in ADDRESSES {
        let front = |backends| Front {
            backends,
            is_translated: true,
            is_address_judged: false,
            is_silent: false,
            affinity_seconds: 0,
        };
        let key = |port| FrontKey { address, port };
        let backends = hosts.iter().map(|host| SocketAddr::new(family.pod(*host), PORT));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let behind = front(backends.clone().collect());
            fronts.insert(key(Some((protocol, SERVICE_PORT))), Some(behind));
        }
        fronts.insert(key(None), Some(front([].into())));
    }
    let service = ObjectName::new(NAMESPACE, "server");
    cluster
        .life()
        .datapath
        .apply_services(&Change { service, fronts })
        .unwrap();
}

/// A client, a server and a Service in front of it.
fn two_pods(cluster: &mut Cluster) {
    cluster.pod("client", CLIENT);
    cluster.pod("server", SERVER);
    cluster.apply();
    set_backends(cluster, &[SERVER]);
}

/// Has the kernel finish checksums, and cut segments, before it hands packets to the pods: between two pods of a node
/// what is left to the device is otherwise never computed, and never looked at.
fn finish_checksums() {
    for interface in ["v-client", "v-server"] {
        run("ethtool", &format!("-K {interface} tx off"));
    }
}

/// Sends a stream whose bytes say where they belong, while the other end reads it.
fn transfer(mut from: &TcpStream, mut to: &TcpStream) {
    let chunk: Vec<u8> = (0..1 << 16).map(|i: u32| (i % 251) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..TRANSFER / chunk.len() {
                from.write_all(&chunk).unwrap();
            }
        });
        let mut got = vec![0; chunk.len()];
        for _ in 0..TRANSFER / chunk.len() {
            to.read_exact(&mut got).unwrap();
            assert!(got == chunk, "bytes were changed on the way");
        }
    });
}

/// Packets that a namespace's TCP threw away for their checksums.
fn checksum_errors(namespace: &str) -> u64 {
    inside(namespace, || {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let mut columns = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let last = columns.next_back().unwrap().split_whitespace().last().unwrap();
        last.parse().unwrap()
    })
}

fn stays_whole(plugin: Plugin) {
    on_a_cluster(plugin, |cluster| {
        two_pods(cluster);
        finish_checksums();
        let listener = listener("server");
        for front in fronts() {
            let (near, far) = connection("client", &listener, front);
            assert_eq!(near.peer_addr().unwrap(), front);
            for stream in [&near, &far] {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            transfer(&near, &far);
            transfer(&far, &near);
            near.shutdown(Shutdown::Write).unwrap();
            assert_eq!((&far).read(&mut [0; 1]).unwrap(), 0);
        }
        for pod in ["client", "server"] {
            assert_eq!(checksum_errors(pod), 0, "{pod}");
        }
    });
}

#[test]
fn a_stream_through_a_service_stays_whole() {
    stays_whole(Plugin::Ptp);
}

/// More than a packet holds, as answers of DNS may be.
const DATAGRAM: usize = 4000;

#[test]
fn datagrams_in_parts_through_a_service_stay_whole() {
    for plugin in [Plugin::Ptp, Plugin::Bridge] {
        on_a_cluster(plugin, |cluster| {
            two_pods(cluster);
            finish_checksums();
            let server = udp_server("server");
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            for front in fronts() {
                let client = udp_client("client", front);
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                for round in 0..FEW {
                    let [query, response] = [round, !round].map(|byte| vec![byte; DATAGRAM]);
                    let mut got = vec![0; 2 * DATAGRAM];
                    client.send(&query).unwrap();
                    let (bytes, from) = server.recv_from(&mut got).unwrap();
                    assert!(got[..bytes] == query, "the query to {front}");
                    server.send_to(&response, from).unwrap();
                    // Connected, it hears of nobody but the Service.
                    let bytes = client.recv(&mut got).unwrap();
                    assert!(got[..bytes] == response, "the response from {front}");
                }
            }
        });
    }
}

#[test]
fn a_stream_of_a_pod_to_itself_stays_whole() {
    for plugin in [Plugin::Ptp, Plugin::Bridge] {
        on_a_cluster(plugin, |cluster| {
            cluster.pod("client", CLIENT);
            cluster.policy("all", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
            cluster.apply();
            set_backends(cluster, &[CLIENT]);
            let listener = listener("client");
            for front in fronts() {
                let (near, far) = connection("client", &listener, front);
                // A pod that saw its own address as the source would have dropped the packet as forged.
                let seen = far.peer_addr().unwrap();
                assert_eq!(seen.ip().to_canonical(), front.ip());
                assert_eq!(seen.port(), near.local_addr().unwrap().port());
                for stream in [&near, &far] {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                }
                transfer(&near, &far);
                transfer(&far, &near);
            }
            assert_eq!(checksum_errors("client"), 0);
        });
    }
}
