// SPDX-License-Identifier: Apache-2.0
//! What always passes is proven, never believed of an address: a pod's own node is a socket of it, and the pod itself is
//! what comes out of its interface.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use wardline_bpf::frame;

use crate::wire::{Cluster, Family, PORT, Plugin, SILENCE, connects, inside, listener, on_a_cluster, run, udp_server};

/// A port of the node that leads to the pod `web`, as kube-proxy makes one for outside: the source becomes the node's.
const NODE_PORT: u16 = 30_000;
const WEB: u8 = 1;
const CLIENT: u8 = 2;
const DENY_ALL: &str = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}";

/// Node port and masquerade for both families and protocols.
fn open_node_port() {
    for family in Family::BOTH {
        let ip = family.nft();
        let (node, pod) = (family.outside(1), family.pod(WEB));
        let target = SocketAddr::new(pod, PORT);
        for command in [
            format!("add table {ip} nat"),
            format!("add chain {ip} nat pre {{ type nat hook prerouting priority dstnat; }}"),
            format!("add chain {ip} nat post {{ type nat hook postrouting priority srcnat; }}"),
            format!(
                "add rule {ip} nat pre {ip} daddr {node} meta l4proto {{ tcp, udp }} th dport {NODE_PORT} dnat to {target}"
            ),
            format!("add rule {ip} nat post {ip} daddr {pod} th dport {PORT} ct status dnat masquerade"),
        ] {
            run("nft", &command);
        }
    }
}

const ITS_NODE: &str = "its node";
const POD: &str = "a pod";
const POD_BY_NODE: &str = "a pod by the node's port";
const OUTSIDE: &str = "outside";
const OUTSIDE_BY_NODE: &str = "outside by the node's port";

/// Those and no others get through to `web`: its node, a pod beside it, outside directly and by the node's port.
#[track_caller]
fn admits(family: Family, expected: &[&str]) {
    let web = SocketAddr::new(family.pod(WEB), PORT);
    let node_port = SocketAddr::new(family.outside(1), NODE_PORT);
    let ways = [
        (ITS_NODE, None, web),
        (POD, Some("client"), web),
        (POD_BY_NODE, Some("client"), node_port),
        (OUTSIDE, Some("outside"), web),
        (OUTSIDE_BY_NODE, Some("outside"), node_port),
    ];
    for (who, from, to) in ways {
        let expected = expected.contains(&who);
        assert_eq!(connects(from, to, expected), expected, "{who}, {family:?}");
    }
}

/// The address that masqueraded traffic wears at `web`, as the log says.
fn masqueraded_source(cluster: &mut Cluster, family: Family) -> IpAddr {
    let records = cluster.life().records();
    let denied = |record: &&serde_json::Value| {
        let source = record["connection"]["src_ip"].as_str().unwrap_or_default();
        record["disposition"] == "deny"
            && record["reason"] == "default-deny"
            && source.contains(':') == (family == Family::V6)
            && source != family.outside(2).to_string()
            && source != family.pod(CLIENT).to_string()
    };
    let record = records.iter().find(denied);
    let record = record.unwrap_or_else(|| panic!("nothing masqueraded was denied: {records:?}"));
    record["connection"]["src_ip"].as_str().unwrap().parse().unwrap()
}

fn only_the_nodes_own_sockets_are_the_node(plugin: Plugin) {
    on_a_cluster(plugin, |cluster| {
        cluster.pod("web", WEB);
        cluster.pod("client", CLIENT);
        open_node_port();
        cluster.apply();
        let _listener = listener("web");
        for family in Family::BOTH {
            admits(family, &[ITS_NODE, POD, POD_BY_NODE, OUTSIDE, OUTSIDE_BY_NODE]);
        }
        cluster.policy("web", DENY_ALL);
        cluster.apply();
        for family in Family::BOTH {
            admits(family, &[ITS_NODE]);
            let source = masqueraded_source(cluster, family);
            // What it shows is what a policy can admit, since nothing tells more.
            let whole = if source.is_ipv4() { 32 } else { 128 };
            let admit = format!(
                "{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{ipBlock: {{cidr: '{source}/{whole}'}}}}]}}]}}"
            );
            cluster.policy("web", &admit);
            cluster.apply();
            admits(family, &[ITS_NODE, POD_BY_NODE, OUTSIDE_BY_NODE]);
            cluster.policy("web", DENY_ALL);
            cluster.apply();
        }
    });
}

#[test]
fn only_the_nodes_own_sockets_are_the_node_on_routed_links() {
    only_the_nodes_own_sockets_are_the_node(Plugin::Ptp);
}

#[test]
fn only_the_nodes_own_sockets_are_the_node_on_a_bridge() {
    only_the_nodes_own_sockets_are_the_node(Plugin::Bridge);
}

fn a_pod_reaches_its_own_node_and_nothing_else(plugin: Plugin) {
    on_a_cluster(plugin, |cluster| {
        cluster.pod("web", WEB);
        cluster.pod("client", CLIENT);
        cluster.policy("web", DENY_ALL);
        cluster.apply();
        let _of_node = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
        let _others = ["client", "outside"].map(listener);
        for family in Family::BOTH {
            for (whom, address, expected) in [
                ("its own node", family.outside(1), true),
                ("its own node by the gateway", family.pod(254), true),
                ("another machine", family.outside(2), false),
                ("a pod beside it", family.pod(CLIENT), false),
            ] {
                let reached = connects(Some("web"), SocketAddr::new(address, PORT), expected);
                assert_eq!(reached, expected, "{whom}, {family:?}");
            }
        }
    });
}

#[test]
fn a_pod_reaches_its_own_node_on_routed_links() {
    a_pod_reaches_its_own_node_and_nothing_else(Plugin::Ptp);
}

#[test]
fn a_pod_reaches_its_own_node_on_a_bridge() {
    a_pod_reaches_its_own_node_and_nothing_else(Plugin::Bridge);
}

/// The port is free on this machine, and a node that masquerades keeps it.
fn outside(family: Family, port: u16) -> UdpSocket {
    inside("outside", || {
        let socket = UdpSocket::bind((family.outside(2), port)).unwrap();
        socket.connect((family.outside(1), NODE_PORT)).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket
    })
}

fn hears_nothing(socket: &UdpSocket) -> bool {
    match socket.recv(&mut [0; 16]) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
            true
        }
    }
}

/// Somebody outside has come by the node's port, and the pod knows how the node calls him: what it sends to that address
/// and port the node would send on to him.
fn a_pod_cannot_answer_whom_its_node_masquerades(plugin: Plugin) {
    on_a_cluster(plugin, |cluster| {
        cluster.pod("web", WEB);
        open_node_port();
        cluster.apply();
        let web = udp_server("web");
        web.set_read_timeout(Some(SILENCE)).unwrap();
        let mut as_seen = Vec::new();
        for (family, port) in Family::BOTH.into_iter().zip(6000..) {
            let friend = outside(family, port);
            friend.send(b"question").unwrap();
            let (_, from) = web.recv_from(&mut [0; 16]).unwrap();
            assert_eq!(from.port(), port);
            web.send_to(b"answer", from).unwrap();
            assert!(!hears_nothing(&friend), "nothing keeps them apart yet");
            as_seen.push((family, from));
        }
        cluster.policy("web", DENY_ALL);
        cluster.apply();
        for (family, mut node) in as_seen {
            for (port, has_socket) in [(6100, false), (6200, true)] {
                let socket = has_socket.then(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
                node.set_port(port);
                let accomplice = outside(family, port);
                accomplice.send(b"here I am").unwrap();
                assert!(hears_nothing(&web));
                for _ in 0..3 {
                    // Where the node has no socket the pod is told so.
                    let _ = web.send_to(b"secret", node);
                }
                // What a socket of the node could take is for the node, as far as can be seen here.
                assert!(has_socket || hears_nothing(&accomplice), "{family:?}");
                accomplice.send(b"order").unwrap();
                let _ = web.send_to(b"secret", node);
                accomplice.send(b"order").unwrap();
                let heard = loop {
                    match web.recv(&mut [0; 16]) {
                        // A refusal.
                        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                        heard => break heard,
                    }
                };
                assert!(heard.is_err(), "{family:?}, with a socket of the node: {has_socket}");
                drop(socket);
            }
        }
    });
}

#[test]
fn a_pod_cannot_answer_whom_its_node_masquerades_on_routed_links() {
    a_pod_cannot_answer_whom_its_node_masquerades(Plugin::Ptp);
}

#[test]
fn a_pod_cannot_answer_whom_its_node_masquerades_on_a_bridge() {
    a_pod_cannot_answer_whom_its_node_masquerades(Plugin::Bridge);
}

/// `IPPROTO_RAW`: the packet brings its own header.
const RAW: i32 = 255;

/// A whole IP packet, with whatever source it has.
fn send_raw(namespace: &str, packet: &[u8], to: IpAddr) {
    let to = SocketAddr::new(to, 0);
    inside(namespace, || {
        let raw = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(RAW))).unwrap();
        raw.send_to(packet, &SockAddr::from(to)).unwrap();
    });
}

/// Sources are only watched by default: to forge one must still be no way past policy.
fn nobody_is_the_pod_but_itself(plugin: Plugin) {
    on_a_cluster(plugin, |cluster| {
        cluster.pod("web", WEB);
        cluster.pod("client", CLIENT);
        cluster.policy("web", DENY_ALL);
        cluster.apply();
        let web = udp_server("web");
        web.set_read_timeout(Some(SILENCE)).unwrap();
        for family in Family::BOTH {
            let itself = SocketAddr::new(family.pod(WEB), PORT);
            let packet = frame::with_checksums(frame::udp(itself, itself)).split_off(14);
            for from in ["client", "outside"] {
                send_raw(from, &packet, itself.ip());
                assert!(hears_nothing(&web), "{family:?}, from {from}");
            }
            web.send_to(b"to myself", itself).unwrap();
            assert!(!hears_nothing(&web));
        }
        let records = cluster.life().records();
        let forged = |record: &&serde_json::Value| {
            record["reason"] == "default-deny" && record["connection"]["src_ip"] == Family::V6.pod(WEB).to_string()
        };
        assert!(records.iter().any(|record| forged(&record)), "{records:?}");
    });
}

#[test]
fn nobody_is_the_pod_but_itself_on_routed_links() {
    nobody_is_the_pod_but_itself(Plugin::Ptp);
}

#[test]
fn nobody_is_the_pod_but_itself_on_a_bridge() {
    nobody_is_the_pod_but_itself(Plugin::Bridge);
}
