// SPDX-License-Identifier: Apache-2.0
//! IPv6 extension headers: what lies behind them is found, to a depth, and what they could hide is dropped.

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{DefaultDeny, Established, ExtensionHeader, Malformed, NotMine, Policy};
use wardline_bpf::frame::flag::{ACK, SYN};
use wardline_bpf::frame::protocol::{AUTHENTICATION, DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING, TCP};
use wardline_bpf::frame::{Echo, echo, extended, ip, tcp, udp};

use crate::malformed::{IP, L4_IPV6, set};
use crate::row::{Row, pass, stop};
use crate::world::{ANY_UDP, CLIENT_OTHER, CLIENT_TO_80, CLIENT6, POD6, STRANGER6, port};

fn syn(source_port: u16) -> Vec<u8> {
    tcp(port(CLIENT6, source_port), port(POD6, 80), SYN)
}

/// Nothing but padding.
fn padding(kind: u8, bytes: usize) -> (u8, Vec<u8>) {
    let mut header = vec![
        0,
        u8::try_from(bytes / 8 - 1).unwrap(),
        1,
        u8::try_from(bytes.min(254) - 4).unwrap(),
    ];
    header.resize(bytes, 0);
    (kind, header)
}

fn options() -> (u8, Vec<u8>) {
    padding(DESTINATION_OPTIONS, 8)
}

fn routing(kind: u8, segments_left: u8) -> (u8, Vec<u8>) {
    (ROUTING, vec![0, 0, kind, segments_left, 0, 0, 0, 0])
}

/// Twelve bytes of header and as many of its check value.
fn authentication() -> (u8, Vec<u8>) {
    (AUTHENTICATION, [vec![0, 4], vec![0; 22]].concat())
}

pub fn headers_are_walked() -> Vec<Row> {
    let behind = |source_port, headers: &[(u8, Vec<u8>)]| extended(&syn(source_port), headers);
    vec![
        pass(
            "hop-by-hop options",
            Ingress,
            behind(1, &[padding(HOP_BY_HOP, 8)]),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80),
        pass(
            "destination options",
            Ingress,
            behind(2, &[padding(DESTINATION_OPTIONS, 16)]),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80),
        pass(
            "a routing header at its end",
            Ingress,
            behind(3, &[routing(4, 0)]),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80),
        pass(
            "an authentication header",
            Ingress,
            behind(4, &[authentication()]),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80),
        pass(
            "six of them",
            Ingress,
            behind(
                5,
                &[
                    padding(HOP_BY_HOP, 8),
                    options(),
                    routing(2, 0),
                    options(),
                    authentication(),
                    options(),
                ],
            ),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80),
        pass(
            "256 bytes of them",
            Ingress,
            behind(6, &[padding(DESTINATION_OPTIONS, 256)]),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80),
        pass(
            "the answer",
            Egress,
            extended(&tcp(port(POD6, 80), port(CLIENT6, 6), SYN | ACK), &[options()]),
            Established,
        ),
        pass(
            "a datagram",
            Ingress,
            extended(&udp(port(CLIENT6, 1), port(POD6, 2)), &[options()]),
            Policy,
        )
        .event(Ingress, ANY_UDP),
        pass(
            "an echo",
            Ingress,
            extended(&echo(CLIENT6, POD6, Echo::Request, 1), &[options()]),
            Policy,
        )
        .event(Ingress, CLIENT_OTHER),
        pass(
            "nothing behind them",
            Ingress,
            extended(&ip(CLIENT6, POD6, 59, &[]), &[options()]),
            Policy,
        )
        .event(Ingress, CLIENT_OTHER),
        stop(
            "they are no way past policy",
            Ingress,
            extended(&tcp(port(STRANGER6, 1), port(POD6, 80), SYN), &[options()]),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER6, TCP, 80),
        stop(
            "another pod's",
            Ingress,
            extended(&tcp(port(CLIENT6, 1), port(CLIENT6, 80), SYN), &[routing(0, 1)]),
            NotMine,
        ),
    ]
}

pub fn headers_that_are_not_walked() -> Vec<Row> {
    let dropped = |name, headers: &[(u8, Vec<u8>)], first| {
        stop(name, Ingress, extended(&syn(1), headers), ExtensionHeader).deny(Ingress, CLIENT6, first, 0)
    };
    vec![
        dropped("seven of them", &vec![options(); 7], DESTINATION_OPTIONS),
        dropped(
            "264 bytes of them",
            &[padding(DESTINATION_OPTIONS, 264)],
            DESTINATION_OPTIONS,
        ),
        dropped("a routing header of type 0", &[routing(0, 0)], ROUTING),
        dropped("segments left", &[routing(4, 1)], ROUTING),
        dropped("a mobility header", &[padding(135, 8)], 135),
        dropped("host identity", &[padding(139, 8)], 139),
        dropped("shim6", &[padding(140, 8)], 140),
        dropped(
            "one of these behind another",
            &[options(), padding(135, 8)],
            DESTINATION_OPTIONS,
        ),
    ]
}

pub fn headers_that_contradict() -> Vec<Row> {
    let bad = |name, frame, first| stop(name, Ingress, frame, Malformed).deny(Ingress, CLIENT6, first, 0);
    let lone = |kind| ip(CLIENT6, POD6, kind, &[6, 0, 1, 4, 0, 0, 0]);
    vec![
        bad(
            "hop-by-hop options behind others",
            extended(&syn(1), &[options(), padding(HOP_BY_HOP, 8)]),
            60,
        ),
        bad("cut in the header", lone(DESTINATION_OPTIONS), 60),
        bad(
            "longer than the packet",
            set(extended(&syn(1), &[options()]), L4_IPV6 + 1, 9),
            60,
        ),
        bad(
            "the transport header is not there",
            extended(&ip(CLIENT6, POD6, TCP, &[]), &[options()]),
            TCP,
        ),
        bad(
            "the packet ends in the transport header",
            set(extended(&syn(1), &[options()]), IP + 5, 27),
            TCP,
        ),
    ]
}
