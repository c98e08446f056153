// SPDX-License-Identifier: Apache-2.0
//! The pod and its own node: allowed where a socket of the node is at the other end, and nowhere else.

use std::net::{IpAddr, SocketAddr};

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{DefaultDeny, Established, Midstream, Node, NotIsolated, Policy, PortTaken, Refused};
use wardline_bpf::abi::{CONNTRACK_LOCAL, Enforcement, PEER_LOCAL, Peer, SERVICE_TRANSLATE};
use wardline_bpf::frame::flag::{ACK, FIN, SYN};
use wardline_bpf::frame::protocol::{ICMP, SCTP, TCP, UDP};
use wardline_bpf::frame::{Echo, echo, icmp, ip, sctp, tcp, udp, unreachable, with_checksums};

use crate::fronts::{port_unreachable, reset_by};
use crate::row::{Row, back, pass, stop};
use crate::services::{SERVICE, datagram, segment};
use crate::world::{ANY_UDP, NODE, NODE6, PEERS, POD, POD6, STRANGER, World, port};

/// A TCP segment with four bytes of data.
fn data(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let header = tcp(source, destination, ACK)[34..].to_vec();
    ip(source.ip(), destination.ip(), TCP, &[&header[..], b"data"].concat())
}

pub fn proven_by_a_socket() -> Vec<Row> {
    let probe = |source_port| tcp(port(NODE, source_port), port(POD, 1234), SYN);
    vec![
        pass("a socket of the node", Ingress, probe(1), Node)
            .sent_by_node()
            .after(|world| world.assert_entries(1)),
        stop(
            "the node's address on forwarded traffic",
            Ingress,
            probe(2),
            DefaultDeny,
        )
        .deny(Ingress, NODE, TCP, 1234),
        stop(
            "a socket of the node with another address",
            Ingress,
            tcp(port(STRANGER, 3), port(POD, 1234), SYN),
            DefaultDeny,
        )
        .sent_by_node()
        .deny(Ingress, STRANGER, TCP, 1234),
        pass("to the node", Egress, tcp(port(POD, 4), port(NODE, 10250), SYN), Node),
        pass(
            "to the node, over IPv6",
            Egress,
            udp(port(POD6, 4), port(NODE6, 53)),
            Node,
        ),
        stop(
            "in mid-stream, forwarded",
            Ingress,
            tcp(port(NODE, 5), port(POD, 1234), ACK),
            DefaultDeny,
        )
        .deny(Ingress, NODE, TCP, 1234),
        pass(
            "in mid-stream, from a socket",
            Ingress,
            tcp(port(NODE, 5), port(POD, 1234), ACK),
            Midstream,
        )
        .sent_by_node(),
    ]
}

/// Whoever is on the link may say that an address of it is theirs.
pub fn addresses_of_the_link() -> Vec<Row> {
    let node: IpAddr = "fe80::1".parse().unwrap();
    let probe = move || udp(port(node, 1), port(POD6, 53));
    vec![
        stop("to the node", Egress, udp(port(POD6, 4), port(node, 53)), DefaultDeny)
            .before(|world| {
                let own = Peer {
                    class: 0,
                    flags: PEER_LOCAL,
                };
                world.sandbox.set_peer(PEERS, "fe80::1".parse().unwrap(), own).unwrap();
                world.change_rule_of_udp(false);
            })
            .deny(Egress, node, UDP, 53),
        pass("from a socket of it", Ingress, probe(), Node).sent_by_node(),
    ]
}

pub fn where_no_socket_is() -> Vec<Row> {
    let syn = || segment(port(POD, 1), port(NODE, 81), SYN);
    let query = || datagram(port(POD6, 1), port(NODE6, 54));
    vec![
        back(
            "is refused as by the node",
            syn(),
            Refused,
            reset_by(port(NODE, 81), port(POD, 1), ACK, [0, 2]),
        )
        .after(|world| world.assert_entries(0)),
        back("UDP, IPv6", query(), Refused, port_unreachable(NODE6, POD6, &query())),
        stop(
            "what answers nothing that the node asked",
            Egress,
            segment(port(POD, 1), port(NODE, 81), SYN | ACK),
            DefaultDeny,
        )
        .deny(Egress, NODE, TCP, 81),
        stop(
            "nor does it where the node listens",
            Egress,
            segment(port(POD, 1), port(NODE, 10_250), SYN | ACK),
            DefaultDeny,
        )
        .deny(Egress, NODE, TCP, 10_250),
        stop(
            "no one knows of sockets of SCTP",
            Egress,
            sctp(port(POD, 1), port(NODE, 81)),
            DefaultDeny,
        )
        .deny(Egress, NODE, SCTP, 81),
        pass("an echo's request", Egress, echo(POD, NODE, Echo::Request, 0), Node),
        stop(
            "a reply to no request",
            Egress,
            echo(POD, NODE, Echo::Reply, 3),
            DefaultDeny,
        )
        .deny(Egress, NODE, ICMP, 0),
        stop("a timestamp's", Egress, icmp(POD, NODE, 14, &[0; 16]), DefaultDeny).deny(Egress, NODE, ICMP, 0),
        stop(
            "an error about nothing",
            Egress,
            unreachable(POD, NODE, &tcp(port(NODE, 5555), port(POD, 80), SYN)),
            DefaultDeny,
        )
        .deny(Egress, NODE, ICMP, 0),
        pass("nothing isolates the pod", Egress, syn(), NotIsolated).before(|world| world.set_table(Egress, 0)),
        pass(
            "policy is only watched",
            Egress,
            segment(port(POD, 2), port(NODE, 81), SYN),
            Node,
        )
        .before(|world| {
            world.set_table(Egress, 200);
            world.change_settings(|settings| settings.policy = Enforcement::Audit.into());
        }),
    ]
}

/// As if the node had closed what listened at 10250, and port 81 were that.
fn its_socket_goes(world: &mut World) {
    let (mut key, entry) = world.sandbox.conntrack().unwrap()[0];
    key.remote_port = 81_u16.to_be();
    world.sandbox.set_conntrack(&key, &entry).unwrap();
}

pub fn connections_to_its_sockets() -> Vec<Row> {
    let kubelet = || port(NODE, 10_250);
    let pod = || port(POD, 1);
    vec![
        pass("SYN", Egress, tcp(pod(), kubelet(), SYN), Node)
            .after(|world| assert_eq!(u32::from(world.entry().flags) & CONNTRACK_LOCAL, CONNTRACK_LOCAL)),
        pass("its answer", Ingress, tcp(kubelet(), pod(), SYN | ACK), Established).sent_by_node(),
        pass(
            "an answer without a socket, as with a cookie",
            Ingress,
            tcp(kubelet(), pod(), SYN | ACK),
            Established,
        ),
        pass("what goes on", Egress, tcp(pod(), kubelet(), ACK), Established),
        pass("data of the socket", Ingress, data(kubelet(), pod()), Established).sent_by_node(),
        stop(
            "data of somebody who got its ports since",
            Ingress,
            data(kubelet(), pod()),
            DefaultDeny,
        )
        .deny(Ingress, NODE, TCP, 1),
        back(
            "data where nothing but a listener is",
            data(pod(), kubelet()),
            Refused,
            reset_by(kubelet(), pod(), 0, [1, 0]),
        ),
        pass("its end", Egress, tcp(pod(), kubelet(), FIN | ACK), Established),
        pass(
            "data where no socket is, which the node refuses",
            Egress,
            data(pod(), port(NODE, 81)),
            Established,
        )
        .before(its_socket_goes),
    ]
}

pub fn datagrams_to_its_sockets() -> Vec<Row> {
    let server = || port(NODE6, 53);
    vec![
        pass("a question", Egress, udp(port(POD6, 1), server()), Node),
        pass("its answer", Ingress, udp(server(), port(POD6, 1)), Established).sent_by_node(),
        pass(
            "one that somebody masqueraded is another flow",
            Ingress,
            udp(server(), port(POD6, 1)),
            Policy,
        )
        .event(Ingress, ANY_UDP)
        .after(|world| assert_eq!(u32::from(world.entry().flags) & CONNTRACK_LOCAL, 0)),
        pass("the node asks", Ingress, udp(port(NODE6, 9), port(POD6, 2)), Node).sent_by_node(),
        pass(
            "the pod answers",
            Egress,
            udp(port(POD6, 2), port(NODE6, 9)),
            Established,
        ),
    ]
}

/// Backends on the host network of the pod's own node.
pub fn services_of_its_sockets() -> Vec<Row> {
    let syn = || segment(port(POD, 1), port(SERVICE, 81), SYN);
    let question = || datagram(port(POD, 1), port(SERVICE, 53));
    let open = |flags| segment(port(POD, 2), port(SERVICE, 82), flags);
    let opened = |flags| segment(port(POD, 2), port(NODE, 10_250), flags);
    let asked = || datagram(port(POD, 1), port(NODE, 53));
    vec![
        back(
            "where no socket is",
            syn(),
            Refused,
            reset_by(port(SERVICE, 81), port(POD, 1), ACK, [0, 2]),
        )
        .before(|world| {
            world.set_service(TCP, port(SERVICE, 81), SERVICE_TRANSLATE, &[port(NODE, 81)]);
            world.set_service(TCP, port(SERVICE, 82), SERVICE_TRANSLATE, &[port(NODE, 10_250)]);
            world.set_service(UDP, port(SERVICE, 53), SERVICE_TRANSLATE, &[port(NODE, 53)]);
        })
        .after(|world| world.assert_entries(0)),
        pass("where one is", Egress, question(), Node).becomes(asked()),
        pass("again", Egress, question(), Established).becomes(asked()),
        pass(
            "its answer",
            Ingress,
            datagram(port(NODE, 53), port(POD, 1)),
            Established,
        )
        .becomes(datagram(port(SERVICE, 53), port(POD, 1)))
        .sent_by_node(),
        pass("a connection", Egress, open(SYN), Node).becomes(opened(SYN)),
        pass("goes on", Egress, open(ACK), Established).becomes(opened(ACK)),
        stop(
            "somebody got its ports since",
            Ingress,
            datagram(port(NODE, 53), port(POD, 1)),
            PortTaken,
        ),
        back(
            "and data that no socket waits for",
            with_checksums(data(port(POD, 2), port(SERVICE, 82))),
            Refused,
            reset_by(port(SERVICE, 82), port(POD, 2), 0, [1, 0]),
        ),
    ]
}
