// SPDX-License-Identifier: Apache-2.0
//! The pod and its own node: allowed where a socket of the node is at the other end, and nowhere else.

use std::net::{IpAddr, SocketAddr};

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{
    DefaultDeny, Established, Midstream, Node, NotIsolated, Policy, PortTaken, Refused, Related, Revalidated,
};
use wardline_bpf::abi::{
    CONNTRACK_LOCAL, ConntrackState, Enforcement, PEER_LOCAL, Peer, RULE_ALLOW, Rule, SERVICE_TRANSLATE,
};
use wardline_bpf::frame::flag::{ACK, FIN, SYN};
use wardline_bpf::frame::protocol::{ICMP, SCTP, TCP, UDP};
use wardline_bpf::frame::{
    ETHERNET_BYTES, Echo, echo, fragment, icmp, ip, sctp, tcp, udp, unreachable, with_checksums,
};

use crate::fronts::{port_unreachable, reset_by};
use crate::row::{Row, back, pass, stop};
use crate::services::{SERVICE, datagram, segment};
use crate::world::{ANY_UDP, EGRESS_TABLE, NODE, NODE6, PEERS, POD, POD_TO_443, POD6, STRANGER, World, port};

/// Of a frame: Ethernet's and IPv6's, in bytes.
const IPV6_HEADERS: usize = ETHERNET_BYTES + 40;

/// A TCP segment with four bytes of data.
pub fn data(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let header = tcp(source, destination, ACK)[34..].to_vec();
    ip(source.ip(), destination.ip(), TCP, &[&header[..], b"data"].concat())
}

fn is_local(world: &World) -> bool {
    u32::from(world.entry().flags) & CONNTRACK_LOCAL != 0
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
            DefaultDeny,
        )
        .before(|world| {
            world.forget(|_| true);
            world.set_table(Egress, 200);
            world.change_settings(|settings| settings.policy = Enforcement::Audit.into());
        })
        .deny(Egress, NODE, TCP, 81)
        .after(|world| world.assert_entries(0)),
    ]
}

/// What is known of the pod's flow, of one to that port too.
fn as_if_to_port(world: &World, remote_port: u16) {
    let (mut key, entry) = world.sandbox.conntrack().unwrap()[0];
    key.remote_port = remote_port.to_be();
    world.sandbox.set_conntrack(&key, &entry).unwrap();
}

/// As if the node had closed what listened at 10250, and port 81 were that.
fn its_socket_goes(world: &mut World) {
    as_if_to_port(world, 81);
}

pub fn connections_to_its_sockets() -> Vec<Row> {
    let kubelet = || port(NODE, 10_250);
    let pod = || port(POD, 1);
    vec![
        pass("SYN", Egress, tcp(pod(), kubelet(), SYN), Node).after(|world| assert!(is_local(world))),
        pass("its answer", Ingress, tcp(kubelet(), pod(), SYN | ACK), Established).sent_by_node(),
        stop(
            "one that was forwarded",
            Ingress,
            tcp(kubelet(), pod(), SYN | ACK),
            DefaultDeny,
        )
        .deny(Ingress, NODE, TCP, 1),
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
        back(
            "data where no socket is",
            data(pod(), port(NODE, 81)),
            Refused,
            reset_by(port(NODE, 81), pod(), 0, [1, 0]),
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
        .after(|world| assert!(!is_local(world))),
        pass("the node asks", Ingress, udp(port(NODE6, 9), port(POD6, 2)), Node).sent_by_node(),
        pass(
            "the pod answers",
            Egress,
            udp(port(POD6, 2), port(NODE6, 9)),
            Established,
        ),
    ]
}

/// A connection that a cookie stands for has no socket until its answer comes, which may carry data.
pub fn cookies_of_its_sockets() -> Vec<Row> {
    let (pod, kubelet) = (|| port(POD, 1), || port(NODE, 10_250));
    vec![
        pass("SYN", Egress, tcp(pod(), kubelet(), SYN), Node),
        back(
            "data before there is an answer",
            data(pod(), kubelet()),
            Refused,
            reset_by(kubelet(), pod(), 0, [1, 0]),
        ),
        pass("the cookie", Ingress, tcp(kubelet(), pod(), SYN | ACK), Established).sent_by_node(),
        pass("the answer", Egress, data(pod(), kubelet()), Established),
        back(
            "and what comes where no socket was made",
            data(pod(), kubelet()),
            Refused,
            reset_by(kubelet(), pod(), 0, [1, 0]),
        ),
    ]
}

/// What was opened when nothing isolated the pod passes for the node's only with proof, from then on.
pub fn flows_that_are_judged_again() -> Vec<Row> {
    let (pod, server) = (|| port(POD6, 1), || port(NODE6, 53));
    vec![
        pass("a question", Egress, udp(pod(), server()), NotIsolated).before(|world| world.set_table(Egress, 0)),
        pass("again", Egress, udp(pod(), server()), Revalidated)
            .before(|world| world.set_table(Egress, 200))
            .after(|world| assert!(is_local(world))),
        pass("its answer", Ingress, udp(server(), pod()), Established).sent_by_node(),
        pass("policy changes once more", Ingress, udp(server(), pod()), Revalidated)
            .sent_by_node()
            .before(|world| world.set_table(Egress, 200))
            .after(|world| assert!(is_local(world))),
        pass(
            "what was forwarded is another flow",
            Ingress,
            udp(server(), pod()),
            Policy,
        )
        .before(|world| world.set_table(Egress, 200))
        .event(Ingress, ANY_UDP)
        .after(|world| assert!(!is_local(world))),
    ]
}

/// As if the node's socket at port 53 had been at 54, and were gone.
fn it_was_at_another_port(world: &mut World) {
    as_if_to_port(world, 54);
    world.forget(|key| key.remote_port == 53_u16.to_be());
}

/// A server of the node that starts again: nothing is denied for good.
pub fn datagrams_to_a_socket_that_goes() -> Vec<Row> {
    let datagram = |server| datagram(port(POD6, 1), port(NODE6, server));
    let refusal = || port_unreachable(NODE6, POD6, &datagram(54));
    vec![
        pass("a question", Egress, datagram(53), Node),
        back("the socket is gone", datagram(54), Refused, refusal()).before(it_was_at_another_port),
        back("policy changes meanwhile", datagram(54), Refused, refusal())
            .before(|world| world.set_table(Egress, 200))
            .after(|world| assert_eq!(world.state_of(54), Some(ConntrackState::Opening))),
        pass("a rule allows it, whatever is there", Egress, datagram(54), Revalidated)
            .before(|world| {
                let rule = Rule {
                    attribution: POD_TO_443,
                    flags: RULE_ALLOW,
                };
                world.rule(EGRESS_TABLE, 0, UDP, 54, rule);
                world.set_table(Egress, EGRESS_TABLE);
            })
            .after(|world| assert!(!is_local(world))),
    ]
}

/// A connection in mid-stream is nobody's until a packet of the node comes: then it is the node's.
pub fn guesses_that_the_node_confirms() -> Vec<Row> {
    let (pod, node) = (|| port(POD, 1234), || port(NODE, 5));
    vec![
        pass("in mid-stream", Egress, data(pod(), node()), Midstream).before(|world| world.set_table(Egress, 0)),
        pass(
            "policy comes, and the node speaks",
            Ingress,
            data(node(), pod()),
            Revalidated,
        )
        .sent_by_node()
        .before(|world| world.set_table(Egress, 200))
        .after(|world| {
            assert_eq!(world.entry().initiator, Ingress.into());
            assert!(is_local(world));
        }),
        pass("the pod answers", Egress, data(pod(), node()), Established),
        stop("somebody got its ports", Ingress, data(node(), pod()), DefaultDeny).deny(Ingress, NODE, TCP, 1234),
    ]
}

/// Datagrams that the node puts together and cuts into one part come in through no interface, whoever sent them.
pub fn parts_that_are_whole() -> Vec<Row> {
    let (pod, kubelet) = (|| port(POD6, 1), || port(NODE6, 10_250));
    let part = |whole: Vec<u8>| fragment(&whole, 7, 0..whole.len() - IPV6_HEADERS);
    vec![
        pass("SYN", Egress, tcp(pod(), kubelet(), SYN), Node),
        pass("its answer", Ingress, tcp(kubelet(), pod(), SYN | ACK), Established).sent_by_node(),
        stop(
            "forwarded data",
            Ingress,
            part(segment(kubelet(), pod(), ACK)),
            DefaultDeny,
        )
        .sent_by_node()
        .deny(Ingress, NODE6, TCP, 1),
        pass("the node's data", Ingress, segment(kubelet(), pod(), ACK), Established).sent_by_node(),
        stop(
            "policy changes, and none of them proves anything",
            Ingress,
            part(segment(kubelet(), pod(), ACK)),
            DefaultDeny,
        )
        .sent_by_node()
        .before(|world| world.set_table(Egress, 200))
        .deny(Ingress, NODE6, TCP, 1),
        pass(
            "what the node sends proves it",
            Ingress,
            segment(kubelet(), pod(), ACK),
            Revalidated,
        )
        .sent_by_node(),
    ]
}

pub fn echoes_and_errors_of_the_node() -> Vec<Row> {
    let question = || udp(port(POD, 1), port(NODE, 53));
    vec![
        pass("an echo's request", Egress, echo(POD, NODE, Echo::Request, 7), Node),
        stop(
            "a reply that was forwarded",
            Ingress,
            echo(NODE, POD, Echo::Reply, 7),
            DefaultDeny,
        )
        .deny(Ingress, NODE, ICMP, 0),
        pass("the node's", Ingress, echo(NODE, POD, Echo::Reply, 7), Established).sent_by_node(),
        pass("a question", Egress, question(), Node).before(|world| world.change_rule_of_udp(false)),
        stop(
            "somebody reports an error of it",
            Ingress,
            unreachable(STRANGER, POD, &question()),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, ICMP, 0),
        stop(
            "in the node's name",
            Ingress,
            unreachable(NODE, POD, &question()),
            DefaultDeny,
        )
        .deny(Ingress, NODE, ICMP, 0),
        pass("the node does", Ingress, unreachable(NODE, POD, &question()), Related).sent_by_node(),
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
