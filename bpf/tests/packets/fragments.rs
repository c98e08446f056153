// SPDX-License-Identifier: Apache-2.0
//! Datagrams in parts: the first is judged, the later ones follow it, and nobody's parts crowd out another's.

use std::net::IpAddr;

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{
    DefaultDeny, Established, Fragment, Malformed, NotMine, Policy, Revalidated, Self_, Spoofed,
};
use wardline_bpf::frame::flag::{ACK, SYN};
use wardline_bpf::frame::protocol::{DESTINATION_OPTIONS, FRAGMENT, ICMP, SCTP, TCP, UDP};
use wardline_bpf::frame::{Echo, echo, extended, fragment, ip, sctp, tcp, udp};
use wardline_bpf::sandbox::Sizes;
use wardline_bpf::test_run::Frame;

use crate::malformed::{IP, edit, set};
use crate::row::{Row, Table, pass, stop};
use crate::world::{
    ANY_UDP, CLIENT, CLIENT_OTHER, CLIENT_TO_80, CLIENT6, IFINDEX, OUTSIDER, POD, POD_TO_443, POD6, STRANGER, World,
    port,
};

/// A frame with more data behind it.
pub fn long(frame: Vec<u8>) -> Vec<u8> {
    edit(frame, |frame| {
        frame.extend([0xda; 64]);
        let bytes = u16::try_from(frame.len() - IP).unwrap();
        if frame[IP] >> 4 == 4 {
            frame[IP + 2..IP + 4].copy_from_slice(&bytes.to_be_bytes());
        } else {
            frame[IP + 4..IP + 6].copy_from_slice(&(bytes - 40).to_be_bytes());
        }
    })
}

fn datagram(source: IpAddr, source_port: u16) -> Vec<u8> {
    let pod = if source.is_ipv4() { POD } else { POD6 };
    long(udp(port(source, source_port), port(pod, 53)))
}

fn segment(source: IpAddr, flags: u8) -> Vec<u8> {
    long(tcp(port(source, 1), port(POD, 80), flags))
}

fn answer() -> Vec<u8> {
    long(udp(port(POD, 53), port(CLIENT, 1)))
}

fn unknown(name: &'static str, frame: Vec<u8>, protocol: u8) -> Row {
    stop(name, Ingress, frame, Fragment).deny(Ingress, CLIENT, protocol, 0)
}

pub fn later_follow_the_first() -> Vec<Row> {
    let whole = || datagram(CLIENT, 1);
    vec![
        unknown("before its first", fragment(&whole(), 7, 16..32), UDP),
        pass("the first", Ingress, fragment(&whole(), 7, 0..16), Policy).event(Ingress, ANY_UDP),
        pass("the second", Ingress, fragment(&whole(), 7, 16..32), Established),
        pass("the last", Ingress, fragment(&whole(), 7, 32..76), Established).after(|world| world.assert_entries(1)),
        pass("the second again", Ingress, fragment(&whole(), 7, 16..32), Established),
        unknown("of another datagram", fragment(&whole(), 8, 16..32), UDP),
        unknown(
            "of another protocol",
            fragment(&long(ip(CLIENT, POD, SCTP, &[0; 12])), 7, 16..32),
            SCTP,
        ),
        stop(
            "of another sender",
            Ingress,
            fragment(&datagram(OUTSIDER, 1), 7, 16..32),
            Fragment,
        )
        .deny(Ingress, OUTSIDER, UDP, 0),
        stop("of another direction", Egress, fragment(&answer(), 7, 16..32), Fragment).deny(Egress, CLIENT, UDP, 0),
        pass("the answer's first", Egress, fragment(&answer(), 7, 0..16), Established),
        pass("the answer's last", Egress, fragment(&answer(), 7, 16..76), Established),
        pass(
            "an echo's first",
            Ingress,
            fragment(&long(echo(CLIENT, POD, Echo::Request, 5)), 9, 0..8),
            Policy,
        )
        .event(Ingress, CLIENT_OTHER),
        pass(
            "an echo's last",
            Ingress,
            fragment(&long(echo(CLIENT, POD, Echo::Request, 5)), 9, 8..72),
            Established,
        ),
        pass(
            "SCTP's first",
            Ingress,
            fragment(&long(sctp(port(CLIENT, 1), port(POD, 9))), 10, 0..16),
            Policy,
        )
        .event(Ingress, CLIENT_OTHER),
        pass(
            "SCTP's last",
            Ingress,
            fragment(&long(sctp(port(CLIENT, 1), port(POD, 9))), 10, 16..76),
            Established,
        ),
        pass(
            "to itself",
            Ingress,
            fragment(&long(udp(port(POD, 1), port(POD, 2))), 1, 0..16),
            Self_,
        )
        .sent_by_itself(),
        pass(
            "to itself, the rest",
            Ingress,
            fragment(&long(udp(port(POD, 1), port(POD, 2))), 1, 16..76),
            Self_,
        )
        .sent_by_itself(),
    ]
}

pub fn segments_in_parts() -> Vec<Row> {
    vec![
        pass("SYN", Ingress, tcp(port(CLIENT, 1), port(POD, 80), SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass(
            "a segment's first",
            Ingress,
            fragment(&segment(CLIENT, ACK), 1, 0..24),
            Established,
        ),
        pass(
            "its last says nothing of flags",
            Ingress,
            fragment(&segment(CLIENT, ACK), 1, 24..84),
            Established,
        )
        .after(|world| assert_eq!(u32::from(world.entry().flags), 0)),
        stop(
            "what would rewrite the flags",
            Ingress,
            fragment(&segment(CLIENT, ACK), 1, 8..32),
            Malformed,
        )
        .deny(Ingress, CLIENT, TCP, 80),
        stop(
            "what begins in the first",
            Ingress,
            fragment(&segment(CLIENT, ACK), 1, 16..32),
            Malformed,
        )
        .deny(Ingress, CLIENT, TCP, 80),
    ]
}

pub fn the_first_is_denied() -> Vec<Row> {
    vec![
        stop(
            "the first",
            Ingress,
            fragment(&segment(STRANGER, SYN), 7, 0..24),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, TCP, 80),
        stop(
            "the last",
            Ingress,
            fragment(&segment(STRANGER, SYN), 7, 24..84),
            Fragment,
        )
        .deny(Ingress, STRANGER, TCP, 0)
        .after(|world| world.assert_entries(0)),
        pass(
            "a datagram's first",
            Ingress,
            fragment(&datagram(CLIENT, 1), 8, 0..16),
            Policy,
        )
        .event(Ingress, ANY_UDP),
        stop(
            "policy denies it before the last",
            Ingress,
            fragment(&datagram(CLIENT, 1), 8, 16..76),
            DefaultDeny,
        )
        .before(|world| world.change_rule_of_udp(false))
        .deny(Ingress, CLIENT, UDP, 53),
        pass(
            "and allows it again",
            Ingress,
            fragment(&datagram(CLIENT, 1), 8, 16..76),
            Revalidated,
        )
        .before(|world| world.change_rule_of_udp(true)),
        stop(
            "its entry is gone",
            Ingress,
            fragment(&datagram(CLIENT, 1), 8, 16..76),
            Fragment,
        )
        .before(|world| {
            for (key, _) in world.sandbox.conntrack().unwrap() {
                world.sandbox.remove_conntrack(&key).unwrap();
            }
        })
        .deny(Ingress, CLIENT, UDP, 53),
        stop(
            "a forged first",
            Egress,
            fragment(&long(udp(port(CLIENT, 1), port(CLIENT, 53))), 1, 0..16),
            Spoofed,
        )
        .deny(Egress, CLIENT, UDP, 0),
        stop(
            "another pod's",
            Ingress,
            fragment(&long(udp(port(CLIENT, 1), port(CLIENT, 2))), 1, 0..16),
            NotMine,
        ),
    ]
}

pub fn parts_that_cannot_be() -> Vec<Row> {
    let bad = |name, frame, protocol| stop(name, Ingress, frame, Malformed).deny(Ingress, CLIENT, protocol, 0);
    let far = |frame: Vec<u8>| edit(frame, |frame| frame[IP + 6..IP + 8].copy_from_slice(&[0x1f, 0xff]));
    vec![
        bad(
            "TCP, too short for its header",
            fragment(&segment(CLIENT, SYN), 1, 0..16),
            TCP,
        ),
        bad(
            "options in the second part",
            fragment(&set(segment(CLIENT, SYN), IP + 32, 0x70), 1, 0..24),
            TCP,
        ),
        bad(
            "SCTP, too short",
            fragment(&long(sctp(port(CLIENT, 1), port(POD, 9))), 1, 0..8),
            SCTP,
        ),
        bad(
            "ICMP, empty",
            fragment(&echo(CLIENT, POD, Echo::Request, 5), 1, 0..0),
            ICMP,
        ),
        bad(
            "not of eight bytes times something",
            fragment(&datagram(CLIENT, 1), 1, 0..20),
            UDP,
        ),
        bad(
            "a later one without data",
            set(fragment(&datagram(CLIENT, 1), 1, 0..0), IP + 7, 4),
            UDP,
        ),
        bad(
            "beyond the longest packet",
            far(fragment(&datagram(CLIENT, 1), 1, 0..16)),
            UDP,
        ),
    ]
}

pub fn ipv6_parts() -> Vec<Row> {
    let whole = || datagram(CLIENT6, 1);
    let options = |frame: Vec<u8>| extended(&frame, &[(DESTINATION_OPTIONS, vec![0, 0, 1, 4, 0, 0, 0, 0])]);
    let bad = |name, frame, protocol, pod_port| {
        stop(name, Ingress, frame, Malformed).deny(Ingress, CLIENT6, protocol, pod_port)
    };
    vec![
        pass("the first", Ingress, fragment(&whole(), 7, 0..16), Policy).event(Ingress, ANY_UDP),
        pass("the last", Ingress, fragment(&whole(), 7, 16..76), Established),
        pass(
            "whatever it says of its protocol",
            Ingress,
            set(fragment(&whole(), 7, 16..76), IP + 40, TCP),
            Established,
        ),
        bad("what overlaps", fragment(&whole(), 7, 8..24), UDP, 53),
        stop("of another datagram", Ingress, fragment(&whole(), 8, 16..32), Fragment).deny(Ingress, CLIENT6, UDP, 0),
        pass(
            "a whole packet that calls itself a fragment",
            Ingress,
            fragment(&whole(), 9, 0..76),
            Established,
        ),
        pass(
            "options in the fragment",
            Ingress,
            fragment(&options(datagram(CLIENT6, 2)), 10, 0..24),
            Policy,
        )
        .event(Ingress, ANY_UDP),
        pass(
            "its last",
            Ingress,
            fragment(&options(datagram(CLIENT6, 2)), 10, 24..84),
            Established,
        ),
        bad(
            "options, and the header behind",
            fragment(&options(whole()), 11, 0..8),
            UDP,
            0,
        ),
        bad(
            "the header behind, where the frame is padded",
            edit(fragment(&options(whole()), 13, 0..8), |frame| {
                frame.extend([0, 0, 0, 0, 0, 8, 0, 0]);
            }),
            UDP,
            0,
        ),
        bad(
            "a fragment of a fragment",
            fragment(&fragment(&whole(), 12, 0..76), 12, 0..32),
            FRAGMENT,
            0,
        ),
    ]
}

/// Sixteen others of the same direction take its place.
pub fn the_oldest_gives_way() -> Vec<Row> {
    fn others(world: &mut World) {
        for id in 100..116 {
            let frame = fragment(&datagram(CLIENT, 1), id, 0..16);
            assert!(
                world
                    .sandbox
                    .run(Ingress, Frame::forwarded(&frame, IFINDEX))
                    .unwrap()
                    .passed()
            );
        }
    }
    fn denied(world: &mut World) {
        for id in 200..300 {
            let frame = fragment(&segment(STRANGER, SYN), id, 0..24);
            assert!(
                world
                    .sandbox
                    .run(Ingress, Frame::forwarded(&frame, IFINDEX))
                    .unwrap()
                    .dropped()
            );
        }
    }
    vec![
        pass("a first", Ingress, fragment(&datagram(CLIENT, 1), 7, 0..16), Policy).event(Ingress, ANY_UDP),
        pass(
            "of the other direction",
            Egress,
            fragment(&answer(), 7, 0..16),
            Established,
        ),
        unknown("after sixteen others", fragment(&datagram(CLIENT, 1), 7, 16..76), UDP).before(others),
        pass(
            "which are all known",
            Ingress,
            fragment(&datagram(CLIENT, 1), 101, 16..76),
            Established,
        ),
        pass(
            "and are not those of the other direction",
            Egress,
            fragment(&answer(), 7, 16..76),
            Established,
        ),
        pass(
            "what is denied takes no place",
            Ingress,
            fragment(&datagram(CLIENT, 1), 102, 16..76),
            Established,
        )
        .before(denied),
    ]
}

pub fn a_first_is_too_long_ago() -> Table {
    let rows = vec![
        pass("the first", Ingress, fragment(&datagram(CLIENT, 1), 7, 0..16), Policy).event(Ingress, ANY_UDP),
        unknown("its time is over", fragment(&datagram(CLIENT, 1), 7, 16..76), UDP),
        pass(
            "other packets of the flow",
            Egress,
            long(udp(port(POD, 53), port(CLIENT, 1))),
            Established,
        ),
        pass(
            "the pod's own",
            Egress,
            fragment(&long(udp(port(POD, 1), port(CLIENT, 53))), 1, 0..16),
            Policy,
        )
        .event(Egress, POD_TO_443),
    ];
    Table {
        sizes: Sizes {
            fragment_ticks: -1,
            ..Sizes::default()
        },
        rows,
    }
}
