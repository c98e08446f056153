// SPDX-License-Identifier: Apache-2.0
//! What policy says of new flows: one step of the precedence after the other, both directions and families.

use wardline_bpf::PolicyWord;
use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{DefaultDeny, Established, NotIsolated, Policy, Self_};
use wardline_bpf::frame::flag::SYN;
use wardline_bpf::frame::protocol::{SCTP, TCP, UDP};
use wardline_bpf::frame::{ip, sctp, tcp, udp};

use crate::row::{Row, pass, stop};
use crate::world::{
    ANY_UDP, ANYONE_TO_9000, CLIENT, CLIENT_OTHER, CLIENT_TO_80, CLIENT_TO_RANGE, CLIENT6, OUTSIDER, OUTSIDER_TO_80,
    PEERS, POD, POD_TO_443, POD6, STRANGER, STRANGER6, port,
};

fn syn(source: std::net::IpAddr, source_port: u16, pod_port: u16) -> Vec<u8> {
    tcp(port(source, source_port), port(POD, pod_port), SYN)
}

pub fn precedence() -> Vec<Row> {
    vec![
        pass("to itself", Ingress, syn(POD, 1, 80), Self_)
            .sent_by_itself()
            .after(|world| world.assert_entries(0)),
        stop("in its name, from elsewhere", Ingress, syn(POD, 1, 80), DefaultDeny).deny(Ingress, POD, TCP, 80),
        stop("in its name, from the node", Ingress, syn(POD, 2, 80), DefaultDeny)
            .sent_by_node()
            .deny(Ingress, POD, TCP, 80),
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
