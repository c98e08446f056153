// SPDX-License-Identifier: Apache-2.0
//! Echoes by their identifier, and errors that follow the flow that they are about.

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{DefaultDeny, Established, ExtensionHeader, NotIsolated, Policy, Related, Revalidated};
use wardline_bpf::frame::flag::{ACK, SYN};
use wardline_bpf::frame::protocol::{DESTINATION_OPTIONS, ICMP, ICMPV6, TCP};
use wardline_bpf::frame::{ETHERNET_BYTES, Echo, echo, extended, fragment, icmp, tcp, udp, unreachable};

use crate::row::{Row, pass, stop};
use crate::world::{
    ANY_UDP, CLIENT, CLIENT_OTHER, CLIENT_TO_80, CLIENT6, POD, POD_TO_443, POD6, STRANGER, STRANGER6, port,
};

pub fn echoes() -> Vec<Row> {
    vec![
        pass("request", Ingress, echo(CLIENT, POD, Echo::Request, 5), Policy).event(Ingress, CLIENT_OTHER),
        pass("reply", Egress, echo(POD, CLIENT, Echo::Reply, 5), Established),
        pass(
            "request again",
            Ingress,
            echo(CLIENT, POD, Echo::Request, 5),
            Established,
        ),
        pass(
            "another identifier",
            Ingress,
            echo(CLIENT, POD, Echo::Request, 6),
            Policy,
        )
        .event(Ingress, CLIENT_OTHER),
        stop(
            "request of a stranger",
            Ingress,
            echo(STRANGER, POD, Echo::Request, 5),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, ICMP, 0),
        pass(
            "request of the pod, IPv6",
            Egress,
            echo(POD6, CLIENT6, Echo::Request, 5),
            Policy,
        )
        .event(Egress, POD_TO_443),
        pass("its reply", Ingress, echo(CLIENT6, POD6, Echo::Reply, 5), Established),
        stop(
            "request of a stranger, IPv6",
            Ingress,
            echo(STRANGER6, POD6, Echo::Request, 5),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER6, ICMPV6, 0),
        pass("another message", Ingress, icmp(CLIENT, POD, 13, &[0; 16]), Policy).event(Ingress, CLIENT_OTHER),
    ]
}

/// Both sides may ask with the same identifier; neither's admits the other's.
pub fn echoes_without_an_identifier() -> Vec<Row> {
    vec![
        pass(
            "the pod asks",
            Egress,
            echo(POD, STRANGER, Echo::Request, 0),
            NotIsolated,
        )
        .before(|world| world.set_table(Egress, 0)),
        stop(
            "the other side asks",
            Ingress,
            echo(STRANGER, POD, Echo::Request, 0),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, ICMP, 0),
        pass("and answers", Ingress, echo(STRANGER, POD, Echo::Reply, 0), Established),
        pass(
            "the pod asks with the last one",
            Egress,
            echo(POD, STRANGER, Echo::Request, u16::MAX),
            NotIsolated,
        ),
        pass(
            "which is another flow",
            Egress,
            echo(POD, STRANGER, Echo::Request, 1),
            NotIsolated,
        )
        .after(|world| world.assert_entries(3)),
        stop(
            "a message that has none",
            Ingress,
            icmp(STRANGER, POD, 13, &[0; 16]),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, ICMP, 0),
    ]
}

pub fn stray_replies() -> Vec<Row> {
    vec![
        pass(
            "a reply to nothing is its sender's flow",
            Egress,
            echo(POD, CLIENT, Echo::Reply, 9),
            Policy,
        )
        .event(Egress, POD_TO_443)
        .after(|world| world.assert_entries(1)),
        pass(
            "the same again finds it in its place",
            Egress,
            echo(POD, CLIENT, Echo::Reply, 9),
            Established,
        )
        .after(|world| world.assert_entries(1)),
        stop(
            "and admits no request",
            Ingress,
            echo(STRANGER, POD, Echo::Request, 9),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, ICMP, 0),
        stop(
            "a stranger's reply",
            Ingress,
            echo(STRANGER, POD, Echo::Reply, 9),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, ICMP, 0),
    ]
}

pub fn errors_follow_their_flow() -> Vec<Row> {
    let request = |flags| tcp(port(CLIENT, 1), port(POD, 80), flags);
    let answer = |flags| tcp(port(POD, 80), port(CLIENT, 1), flags);
    let query = || udp(port(POD6, 7), port(CLIENT6, 53));
    vec![
        pass("SYN", Ingress, request(SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass(
            "a router on the way cannot deliver the answer",
            Ingress,
            unreachable(STRANGER, POD, &answer(ACK)),
            Related,
        ),
        pass(
            "the pod refuses",
            Egress,
            unreachable(POD, CLIENT, &request(SYN)),
            Related,
        ),
        pass("a query over IPv6", Egress, query(), Policy).event(Egress, POD_TO_443),
        pass(
            "cannot be delivered",
            Ingress,
            unreachable(STRANGER6, POD6, &query()),
            Related,
        ),
        pass("an echo", Egress, echo(POD, CLIENT, Echo::Request, 3), Policy).event(Egress, POD_TO_443),
        pass(
            "goes nowhere",
            Ingress,
            unreachable(STRANGER, POD, &echo(POD, CLIENT, Echo::Request, 3)),
            Related,
        ),
        pass("an echo's reply", Ingress, echo(CLIENT, POD, Echo::Request, 4), Policy).event(Ingress, CLIENT_OTHER),
        pass(
            "goes nowhere either",
            Ingress,
            unreachable(STRANGER, POD, &echo(POD, CLIENT, Echo::Reply, 4)),
            Related,
        ),
        pass(
            "policy changes and still allows the flow",
            Ingress,
            unreachable(STRANGER, POD, &answer(ACK)),
            Related,
        )
        .before(|world| world.set_table(Ingress, 100)),
        stop(
            "policy denies the flow now",
            Ingress,
            unreachable(STRANGER, POD, &answer(ACK)),
            DefaultDeny,
        )
        .before(|world| world.change_rule_of_80(false))
        .deny(Ingress, STRANGER, ICMP, 0),
        stop("the flow notices", Ingress, request(ACK), DefaultDeny).deny(Ingress, CLIENT, TCP, 80),
        stop(
            "and errors about it go with it",
            Egress,
            unreachable(POD, CLIENT, &request(ACK)),
            DefaultDeny,
        )
        .deny(Egress, CLIENT, ICMP, 0),
    ]
}

/// An error about one peer's packet goes to that peer, or it is a message to somebody else.
pub fn errors_to_somebody_else() -> Vec<Row> {
    let request = || tcp(port(CLIENT, 1), port(POD, 80), ACK);
    let request6 = || udp(port(CLIENT6, 1), port(POD6, 7));
    let answer = || tcp(port(POD, 80), port(CLIENT, 1), ACK);
    vec![
        pass("SYN", Ingress, tcp(port(CLIENT, 1), port(POD, 80), SYN), Policy).event(Ingress, CLIENT_TO_80),
        stop(
            "of the pod, to a stranger",
            Egress,
            unreachable(POD, STRANGER, &request()),
            DefaultDeny,
        )
        .deny(Egress, STRANGER, ICMP, 0),
        pass(
            "to whom it is about",
            Egress,
            unreachable(POD, CLIENT, &request()),
            Related,
        ),
        pass("a datagram over IPv6", Ingress, request6(), Policy).event(Ingress, ANY_UDP),
        stop(
            "of the pod, to a stranger, IPv6",
            Egress,
            unreachable(POD6, STRANGER6, &request6()),
            DefaultDeny,
        )
        .deny(Egress, STRANGER6, ICMPV6, 0),
        stop(
            "to the pod's multicast group",
            Ingress,
            unreachable(STRANGER, "224.0.0.1".parse().unwrap(), &answer()),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, ICMP, 0),
    ]
}

/// What path MTU discovery needs passes under a policy that denies all else, whatever shape the packet had.
pub fn packets_that_are_too_big() -> Vec<Row> {
    let query = || udp(port(POD, 7), port(CLIENT, 53));
    let query6 = || udp(port(POD6, 7), port(CLIENT6, 53));
    let too_big = |source, quoted: &[u8]| {
        let (kind, pod) = if quoted[ETHERNET_BYTES] >> 4 == 4 {
            (3, POD)
        } else {
            (2, POD6)
        };
        let rest = [&[0, 0, 5, 0], &quoted[ETHERNET_BYTES..]].concat();
        icmp(source, pod, kind, &rest)
    };
    let options = || (DESTINATION_OPTIONS, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    vec![
        pass("a query", Egress, query(), Policy).event(Egress, POD_TO_443),
        pass("is too big for a router", Ingress, too_big(STRANGER, &query()), Related),
        pass(
            "the first part of it",
            Ingress,
            too_big(STRANGER, &fragment(&query(), 1, 0..8)),
            Related,
        ),
        pass("a query over IPv6", Egress, query6(), Policy).event(Egress, POD_TO_443),
        pass("is too big too", Ingress, too_big(STRANGER6, &query6()), Related),
        pass(
            "behind options",
            Ingress,
            too_big(STRANGER6, &extended(&query6(), &[options()])),
            Related,
        ),
        pass(
            "the first part of it, IPv6",
            Ingress,
            too_big(STRANGER6, &fragment(&query6(), 1, 0..8)),
            Related,
        ),
        stop(
            "a later part names no flow",
            Ingress,
            too_big(STRANGER6, &fragment(&query6(), 1, 8..12)),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER6, ICMPV6, 0),
        stop(
            "options without an end",
            Ingress,
            too_big(STRANGER6, &extended(&query6(), &vec![options(); 7])),
            ExtensionHeader,
        )
        .deny(Ingress, STRANGER6, ICMPV6, 0),
    ]
}

pub fn errors_without_a_flow() -> Vec<Row> {
    let unknown = || tcp(port(POD, 1), port(CLIENT, 2), ACK);
    let fragment = || {
        let mut quoted = udp(port(POD, 1), port(CLIENT, 53));
        quoted[14 + 7] = 1;
        quoted
    };
    vec![
        pass(
            "judged as what it is, and no entry",
            Ingress,
            unreachable(CLIENT, POD, &unknown()),
            Policy,
        )
        .after(|world| world.assert_entries(0)),
        stop(
            "from a stranger",
            Ingress,
            unreachable(STRANGER, POD, &unknown()),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, ICMP, 0),
        pass(
            "about a packet of no ports",
            Ingress,
            unreachable(CLIENT6, POD6, &echo(POD6, CLIENT6, Echo::Reply, 1)),
            Policy,
        ),
        pass("a datagram", Egress, udp(port(POD, 1), port(CLIENT, 53)), Policy).event(Egress, POD_TO_443),
        stop(
            "a later fragment of it names no flow",
            Ingress,
            unreachable(STRANGER, POD, &fragment()),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, ICMP, 0),
        stop(
            "its time is over",
            Ingress,
            unreachable(STRANGER, POD, &udp(port(POD, 1), port(CLIENT, 53))),
            DefaultDeny,
        )
        .before(|world| world.age(40))
        .deny(Ingress, STRANGER, ICMP, 0),
        pass(
            "without isolation",
            Ingress,
            unreachable(STRANGER, POD, &unknown()),
            NotIsolated,
        )
        .before(|world| world.set_table(Ingress, 0)),
        pass(
            "a datagram to the pod",
            Ingress,
            udp(port(STRANGER, 1), port(POD, 2)),
            NotIsolated,
        ),
        pass(
            "whose answer the stranger refuses",
            Ingress,
            unreachable(STRANGER, POD, &udp(port(POD, 2), port(STRANGER, 1))),
            Related,
        )
        .before(|world| world.set_table(Ingress, 100)),
        pass(
            "allowed by the rule for any peer",
            Ingress,
            udp(port(STRANGER, 1), port(POD, 2)),
            Revalidated,
        ),
    ]
}
