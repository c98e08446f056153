// SPDX-License-Identifier: Apache-2.0
//! The life of a connection: opened, answered, closed, forgotten, found in mid-stream.

use std::net::IpAddr;

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{ConntrackFull, DefaultDeny, Established, Midstream, NotIsolated, Policy};
use wardline_bpf::abi::{
    CONNTRACK_ANSWERED, CONNTRACK_FIN_INITIATOR, CONNTRACK_FIN_RESPONDER, CONNTRACK_MIDSTREAM, ConntrackState,
    Direction, ENDPOINT_TAKEOVER,
};
use wardline_bpf::frame::flag::{ACK, FIN, RST, SYN};
use wardline_bpf::frame::protocol::{TCP, UDP};
use wardline_bpf::frame::{tcp, udp};
use wardline_bpf::sandbox::Sizes;

use crate::row::{Row, Table, pass, stop};
use crate::world::{ANY_UDP, CLIENT, CLIENT_TO_80, POD, POD_TO_443, STRANGER, World, port};

pub fn to_pod(source: IpAddr, source_port: u16, pod_port: u16, flags: u8) -> Vec<u8> {
    tcp(port(source, source_port), port(POD, pod_port), flags)
}

pub fn from_pod(pod_port: u16, remote: IpAddr, remote_port: u16, flags: u8) -> Vec<u8> {
    tcp(port(POD, pod_port), port(remote, remote_port), flags)
}

#[track_caller]
pub fn assert_entry(world: &World, state: ConntrackState, initiator: Direction, flags: u32) {
    let entry = world.entry();
    assert_eq!(ConntrackState::try_from(entry.state), Ok(state), "{entry:?}");
    assert_eq!(Direction::try_from(entry.initiator), Ok(initiator), "{entry:?}");
    assert_eq!(u32::from(entry.flags), flags, "{entry:?}");
}

pub fn handshake_and_close() -> Vec<Row> {
    const BOTH: u32 = CONNTRACK_ANSWERED | CONNTRACK_FIN_INITIATOR | CONNTRACK_FIN_RESPONDER;
    vec![
        pass("SYN", Ingress, to_pod(CLIENT, 1, 80, SYN), Policy)
            .event(Ingress, CLIENT_TO_80)
            .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, 0)),
        pass("SYN again", Ingress, to_pod(CLIENT, 1, 80, SYN), Established)
            .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, 0)),
        pass("SYN and ACK", Egress, from_pod(80, CLIENT, 1, SYN | ACK), Established)
            .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, CONNTRACK_ANSWERED)),
        pass("SYN once more", Ingress, to_pod(CLIENT, 1, 80, SYN), Established)
            .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, CONNTRACK_ANSWERED)),
        pass("ACK", Ingress, to_pod(CLIENT, 1, 80, ACK), Established)
            .after(|world| assert_entry(world, ConntrackState::Open, Ingress, CONNTRACK_ANSWERED)),
        pass(
            "FIN of the client",
            Ingress,
            to_pod(CLIENT, 1, 80, FIN | ACK),
            Established,
        )
        .after(|world| {
            assert_entry(
                world,
                ConntrackState::Open,
                Ingress,
                CONNTRACK_ANSWERED | CONNTRACK_FIN_INITIATOR,
            );
        }),
        pass(
            "data of the server, still",
            Egress,
            from_pod(80, CLIENT, 1, ACK),
            Established,
        ),
        pass(
            "FIN of the server",
            Egress,
            from_pod(80, CLIENT, 1, FIN | ACK),
            Established,
        )
        .after(|world| assert_entry(world, ConntrackState::Closing, Ingress, BOTH)),
        pass("the last ACK", Ingress, to_pod(CLIENT, 1, 80, ACK), Established)
            .after(|world| assert_entry(world, ConntrackState::Closing, Ingress, BOTH)),
    ]
}

pub fn resets_and_port_reuse() -> Vec<Row> {
    vec![
        pass("SYN", Ingress, to_pod(CLIENT, 1, 80, SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass("refused", Egress, from_pod(80, CLIENT, 1, RST | ACK), Established).after(|world| {
            assert_entry(
                world,
                ConntrackState::Closing,
                Ingress,
                CONNTRACK_ANSWERED | CONNTRACK_FIN_RESPONDER,
            );
        }),
        pass("the same ports again", Ingress, to_pod(CLIENT, 1, 80, SYN), Policy)
            .event(Ingress, CLIENT_TO_80)
            .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, 0)),
        pass("reset by the client", Ingress, to_pod(CLIENT, 1, 80, RST), Established)
            .after(|world| assert_entry(world, ConntrackState::Closing, Ingress, CONNTRACK_FIN_INITIATOR)),
        stop(
            "the same ports from the other side",
            Egress,
            from_pod(80, CLIENT, 1, SYN),
            DefaultDeny,
        )
        .deny(Egress, CLIENT, TCP, 1)
        .after(|world| assert_entry(world, ConntrackState::Closing, Ingress, CONNTRACK_FIN_INITIATOR)),
    ]
}

pub fn both_sides_open() -> Vec<Row> {
    vec![
        pass("the pod opens", Egress, from_pod(80, CLIENT, 443, SYN), Policy).event(Egress, POD_TO_443),
        pass(
            "and so does its peer, with the same ports",
            Ingress,
            to_pod(CLIENT, 443, 80, SYN),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80)
        .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, 0)),
        pass(
            "the pod answers",
            Egress,
            from_pod(80, CLIENT, 443, SYN | ACK),
            Established,
        )
        .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, CONNTRACK_ANSWERED)),
        pass(
            "and so does its peer, again",
            Ingress,
            to_pod(CLIENT, 443, 80, SYN | ACK),
            Established,
        )
        .after(|world| assert_entry(world, ConntrackState::Open, Ingress, CONNTRACK_ANSWERED)),
        stop(
            "who may not open one takes over no live one",
            Egress,
            from_pod(80, CLIENT, 443, SYN),
            DefaultDeny,
        )
        .before(|world| world.change_rule_of_443(false))
        .deny(Egress, CLIENT, TCP, 443)
        .after(|world| assert_entry(world, ConntrackState::Open, Ingress, CONNTRACK_ANSWERED)),
    ]
}

pub fn entries_expire() -> Vec<Row> {
    vec![
        pass("a datagram", Egress, udp(port(POD, 1), port(CLIENT, 53)), Policy).event(Egress, POD_TO_443),
        pass(
            "its answer in time",
            Ingress,
            udp(port(CLIENT, 53), port(POD, 1)),
            Established,
        )
        .before(|world| world.age(27))
        .after(|world| assert_entry(world, ConntrackState::Open, Egress, CONNTRACK_ANSWERED)),
        pass(
            "it goes on: no mere question and answer",
            Egress,
            udp(port(POD, 1), port(CLIENT, 53)),
            Established,
        )
        .before(|world| world.age(27))
        .after(|world| assert_entry(world, ConntrackState::Stream, Egress, CONNTRACK_ANSWERED)),
        pass(
            "a stream lasts longer",
            Ingress,
            udp(port(CLIENT, 53), port(POD, 1)),
            Established,
        )
        .before(|world| world.age(166)),
        pass(
            "too late: a flow of its own",
            Ingress,
            udp(port(CLIENT, 53), port(POD, 1)),
            Policy,
        )
        .before(|world| world.age(170))
        .event(Ingress, ANY_UDP)
        .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, 0)),
        stop(
            "an expired flow does not carry its answer",
            Egress,
            udp(port(POD, 1), port(CLIENT, 99)),
            DefaultDeny,
        )
        .deny(Egress, CLIENT, UDP, 99),
        pass(
            "a time ahead of this CPU's is not the past",
            Ingress,
            udp(port(CLIENT, 53), port(POD, 1)),
            Established,
        )
        .before(|world| world.age(2_u32.wrapping_neg())),
    ]
}

pub fn questions_expire() -> Vec<Row> {
    vec![
        pass("a question", Ingress, udp(port(CLIENT, 40), port(POD, 53)), Policy).event(Ingress, ANY_UDP),
        pass("its answer", Egress, udp(port(POD, 53), port(CLIENT, 40)), Established)
            .after(|world| assert_entry(world, ConntrackState::Open, Ingress, CONNTRACK_ANSWERED)),
        pass(
            "the next with the same ports is another one",
            Ingress,
            udp(port(CLIENT, 40), port(POD, 53)),
            Policy,
        )
        .before(|world| world.age(30))
        .event(Ingress, ANY_UDP)
        .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, 0)),
    ]
}

pub fn mid_stream() -> Vec<Row> {
    vec![
        pass(
            "allowed in its own direction",
            Ingress,
            to_pod(CLIENT, 1, 80, ACK),
            Midstream,
        )
        .event(Ingress, CLIENT_TO_80)
        .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, CONNTRACK_MIDSTREAM)),
        pass("its answer", Egress, from_pod(80, CLIENT, 1, ACK), Established).after(|world| {
            assert_entry(
                world,
                ConntrackState::Opening,
                Ingress,
                CONNTRACK_MIDSTREAM | CONNTRACK_ANSWERED,
            );
        }),
        pass("and it goes on", Ingress, to_pod(CLIENT, 1, 80, ACK), Established)
            .after(|world| assert_eq!(world.state_of(1), Some(ConntrackState::Open))),
        pass(
            "allowed in the other direction only: anybody can send that",
            Egress,
            from_pod(80, CLIENT, 2, ACK),
            Midstream,
        )
        .after(|world| world.assert_entries(1)),
        pass(
            "whoever has such a connection answers",
            Ingress,
            to_pod(CLIENT, 2, 80, ACK),
            Midstream,
        )
        .event(Ingress, CLIENT_TO_80)
        .after(|world| world.assert_entries(2)),
        pass(
            "and the first side is known",
            Egress,
            from_pod(80, CLIENT, 2, ACK),
            Established,
        )
        .after(|world| assert_eq!(world.state_of(2), Some(ConntrackState::Opening))),
        pass(
            "a SYN and ACK without its SYN",
            Ingress,
            to_pod(CLIENT, 443, 3, SYN | ACK),
            Midstream,
        ),
        pass(
            "which the pod confirms",
            Egress,
            from_pod(3, CLIENT, 443, ACK),
            Midstream,
        )
        .event(Egress, POD_TO_443),
        pass("a last word", Ingress, to_pod(CLIENT, 4, 80, RST), Midstream).after(|world| world.assert_entries(3)),
        pass(
            "a new connection with ports that were found in mid-stream",
            Ingress,
            to_pod(CLIENT, 2, 80, SYN),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80),
        pass("without isolation", Egress, from_pod(7, STRANGER, 7, ACK), Midstream)
            .before(|world| world.set_table(Egress, 0)),
    ]
}

/// Another version has the newest connections still.
pub fn mid_stream_in_a_takeover() -> Vec<Row> {
    vec![
        pass(
            "passes, and is told there",
            Ingress,
            to_pod(CLIENT, 1, 80, ACK),
            Midstream,
        )
        .before(|world| world.set_endpoint(ENDPOINT_TAKEOVER))
        .after(|world| world.assert_entries(0)),
        pass("its answer too", Egress, from_pod(80, CLIENT, 1, ACK), Midstream).after(|world| world.assert_entries(0)),
        stop("policy holds", Ingress, to_pod(STRANGER, 1, 80, ACK), DefaultDeny).deny(Ingress, STRANGER, TCP, 80),
        pass(
            "what opens a connection is ours",
            Ingress,
            to_pod(CLIENT, 2, 80, SYN),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80)
        .after(|world| world.assert_entries(1)),
        pass("when all have come", Ingress, to_pod(CLIENT, 1, 80, ACK), Midstream)
            .before(|world| world.set_endpoint(0))
            .event(Ingress, CLIENT_TO_80)
            .after(|world| world.assert_entries(2)),
    ]
}

pub fn mid_stream_denied() -> Vec<Row> {
    vec![
        stop(
            "denied in both directions",
            Ingress,
            to_pod(STRANGER, 1, 80, ACK),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, TCP, 80)
        .after(|world| world.assert_entries(0)),
        stop(
            "the other way round",
            Egress,
            from_pod(80, STRANGER, 1, FIN | ACK),
            DefaultDeny,
        )
        .deny(Egress, STRANGER, TCP, 1)
        .after(|world| world.assert_entries(0)),
    ]
}

pub fn conntrack_is_full() -> Table {
    let rows = vec![
        pass("one", Ingress, to_pod(CLIENT, 1, 80, SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass("two", Ingress, to_pod(CLIENT, 2, 80, SYN), Policy).event(Ingress, CLIENT_TO_80),
        stop("no room", Ingress, to_pod(CLIENT, 3, 80, SYN), ConntrackFull).deny(Ingress, CLIENT, TCP, 80),
        pass(
            "who has an entry goes on",
            Ingress,
            to_pod(CLIENT, 1, 80, ACK),
            Established,
        ),
        pass("and may be replaced", Ingress, to_pod(CLIENT, 1, 80, RST), Established),
        pass("as it is here", Ingress, to_pod(CLIENT, 1, 80, SYN), Policy).event(Ingress, CLIENT_TO_80),
        stop(
            "no room, without isolation: no record",
            Ingress,
            to_pod(STRANGER, 4, 22, SYN),
            ConntrackFull,
        )
        .before(|world| world.set_table(Ingress, 0)),
        pass("room again", Ingress, to_pod(STRANGER, 4, 22, SYN), NotIsolated).before(|world| {
            let (key, _) = world.sandbox.conntrack().unwrap()[0];
            world.sandbox.remove_conntrack(&key).unwrap();
        }),
    ];
    Table {
        sizes: Sizes {
            conntrack: 2,
            ..Sizes::default()
        },
        rows,
    }
}
