// SPDX-License-Identifier: Apache-2.0
//! What policy says of new flows: one step of the precedence after the other, both directions and families.

use wardline_bpf::PolicyWord;
use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{DefaultDeny, Established, Midstream, Node, NotIsolated, Policy, Self_};
use wardline_bpf::abi::{PEER_LOCAL, Peer};
use wardline_bpf::frame::flag::{ACK, SYN};
use wardline_bpf::frame::protocol::{SCTP, TCP, UDP};
use wardline_bpf::frame::{ip, sctp, tcp, udp};

use crate::row::{Row, pass, stop};
use crate::world::{
    ANY_UDP, ANYONE_TO_9000, CLIENT, CLIENT_OTHER, CLIENT_TO_80, CLIENT_TO_RANGE, CLIENT6, NODE, NODE6, OUTSIDER,
    OUTSIDER_TO_80, PEERS, POD, POD_TO_443, POD6, STRANGER, STRANGER6, port,
};

fn syn(source: std::net::IpAddr, source_port: u16, pod_port: u16) -> Vec<u8> {
    tcp(port(source, source_port), port(POD, pod_port), SYN)
}

pub fn precedence() -> Vec<Row> {
    vec![
        pass("to itself", Ingress, syn(POD, 1, 80), Self_).after(|world| world.assert_entries(0)),
        pass("to itself, over IPv6", Egress, udp(port(POD6, 1), port(POD6, 2)), Self_)
            .after(|world| world.assert_entries(0)),
        pass("exact port", Ingress, syn(CLIENT, 1, 80), Policy)
            .event(Ingress, CLIENT_TO_80)
            .after(|world| world.assert_entries(1)),
        pass("first port of a range", Ingress, syn(CLIENT, 2, 8000), Policy).event(Ingress, CLIENT_TO_RANGE),
        pass("last port of a range", Ingress, syn(CLIENT, 3, 8015), Policy).event(Ingress, CLIENT_TO_RANGE),
        stop("below the range", Ingress, syn(CLIENT, 4, 7999), DefaultDeny).deny(Ingress, CLIENT, TCP, 7999),
        stop("above the range", Ingress, syn(CLIENT, 4, 8016), DefaultDeny).deny(Ingress, CLIENT, TCP, 8016),
        pass("any port", Ingress, udp(port(CLIENT, 5), port(POD, 5)), Policy).event(Ingress, ANY_UDP),
        pass("any peer", Ingress, syn(STRANGER, 6, 9000), Policy).event(Ingress, ANYONE_TO_9000),
        stop("no rule for the peer", Ingress, syn(STRANGER, 7, 80), DefaultDeny).deny(Ingress, STRANGER, TCP, 80),
        stop(
            "the same again adds to its aggregate",
            Ingress,
            syn(STRANGER, 8, 80),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, TCP, 80),
        stop(
            "another source is another aggregate",
            Ingress,
            syn(OUTSIDER, 8, 81),
            DefaultDeny,
        )
        .deny(Ingress, OUTSIDER, TCP, 81),
        stop(
            "port 0 matches no exact port",
            Ingress,
            syn(STRANGER, 9, 0),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, TCP, 0),
    ]
}

pub fn egress() -> Vec<Row> {
    vec![
        pass(
            "the destination's port counts",
            Egress,
            tcp(port(POD, 1), port(CLIENT, 443), SYN),
            Policy,
        )
        .event(Egress, POD_TO_443),
        stop(
            "the source's port does not",
            Egress,
            tcp(port(POD, 443), port(CLIENT, 1), SYN),
            DefaultDeny,
        )
        .deny(Egress, CLIENT, TCP, 1),
        stop(
            "no rule for the peer",
            Egress,
            tcp(port(POD, 1), port(STRANGER, 443), SYN),
            DefaultDeny,
        )
        .deny(Egress, STRANGER, TCP, 443),
        pass("UDP over IPv6", Egress, udp(port(POD6, 1), port(CLIENT6, 53)), Policy).event(Egress, POD_TO_443),
        stop(
            "UDP to another port",
            Egress,
            udp(port(POD6, 1), port(CLIENT6, 54)),
            DefaultDeny,
        )
        .deny(Egress, CLIENT6, UDP, 54),
    ]
}

pub fn families_and_protocols() -> Vec<Row> {
    let ipv6 = |source, source_port, pod_port| tcp(port(source, source_port), port(POD6, pod_port), SYN);
    vec![
        pass("TCP over IPv6", Ingress, ipv6(CLIENT6, 1, 80), Policy).event(Ingress, CLIENT_TO_80),
        stop("TCP over IPv6, denied", Ingress, ipv6(STRANGER6, 1, 80), DefaultDeny).deny(Ingress, STRANGER6, TCP, 80),
        pass("SCTP", Ingress, sctp(port(CLIENT, 1), port(POD, 80)), Policy).event(Ingress, CLIENT_OTHER),
        stop(
            "SCTP, denied",
            Ingress,
            sctp(port(STRANGER, 1), port(POD, 80)),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, SCTP, 80),
        pass(
            "a protocol without ports",
            Ingress,
            ip(CLIENT, POD, 47, &[0; 8]),
            Policy,
        )
        .event(Ingress, CLIENT_OTHER),
        stop(
            "a protocol without ports, denied",
            Ingress,
            ip(STRANGER, POD, 47, &[0; 8]),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, 47, 0),
        pass(
            "ICMPv6 inside IPv4 is a number like any",
            Ingress,
            ip(CLIENT, POD, 58, &[0; 8]),
            Policy,
        )
        .event(Ingress, CLIENT_OTHER),
        pass(
            "ICMP inside IPv6 is a number like any",
            Ingress,
            ip(CLIENT6, POD6, 1, &[0; 8]),
            Policy,
        )
        .event(Ingress, CLIENT_OTHER),
        pass(
            "a protocol with an empty payload",
            Egress,
            ip(POD, CLIENT, 59, &[]),
            Policy,
        )
        .event(Egress, POD_TO_443),
    ]
}

pub fn cidrs_only_where_some_policy_has_them() -> Vec<Row> {
    vec![
        pass("an address of the CIDR", Ingress, syn(OUTSIDER, 1, 80), Policy).event(Ingress, OUTSIDER_TO_80),
        stop(
            "a word that has no CIDRs does not ask",
            Ingress,
            syn(OUTSIDER, 2, 80),
            DefaultDeny,
        )
        .before(|world| {
            world.set_word(
                Ingress,
                PolicyWord {
                    table: 100,
                    peers: PEERS,
                    ..PolicyWord::default()
                },
            );
        })
        .deny(Ingress, OUTSIDER, TCP, 80),
        stop("other peers know nobody", Ingress, syn(CLIENT, 3, 80), DefaultDeny)
            .before(|world| {
                let word = PolicyWord {
                    table: 100,
                    peers: PEERS + 1,
                    cidrs: true,
                    ..PolicyWord::default()
                };
                world.set_word(Ingress, word);
            })
            .deny(Ingress, CLIENT, TCP, 80),
    ]
}

pub fn own_node() -> Vec<Row> {
    let probe = |source_port| syn(NODE, source_port, 1234);
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
            syn(STRANGER, 3, 1234),
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
pub fn own_node_on_the_link() -> Vec<Row> {
    let node: std::net::IpAddr = "fe80::1".parse().unwrap();
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

pub fn not_isolated() -> Vec<Row> {
    vec![
        pass("nothing isolates it", Ingress, syn(STRANGER, 1, 22), NotIsolated)
            .before(|world| world.set_table(Ingress, 0))
            .after(|world| world.assert_entries(1)),
        stop(
            "the other direction is a matter of its own",
            Egress,
            udp(port(POD, 1), port(STRANGER, 53)),
            DefaultDeny,
        )
        .deny(Egress, STRANGER, UDP, 53),
        pass(
            "a bare SYN again belongs to its entry",
            Ingress,
            syn(STRANGER, 1, 22),
            Established,
        ),
    ]
}
