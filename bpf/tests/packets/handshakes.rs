// SPDX-License-Identifier: Apache-2.0
//! What is less than a whole connection of its own two sides: handshakes that nobody finishes, ends that nobody saw, and
//! segments that somebody else sends in a side's name.

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{Established, Policy};
use wardline_bpf::abi::{CONNTRACK_ANSWERED, CONNTRACK_FIN_INITIATOR, CONNTRACK_FIN_RESPONDER, ConntrackState};
use wardline_bpf::frame::flag::{ACK, FIN, RST, SYN};

use crate::connections::{assert_entry, from_pod, to_pod};
use crate::row::{Row, pass};
use crate::world::{CLIENT, CLIENT_TO_80};

/// The server answers, and who asked says no more: a forged source, say.
pub fn handshakes_that_end_in_the_middle() -> Vec<Row> {
    vec![
        pass("SYN", Ingress, to_pod(CLIENT, 1, 80, SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass("SYN and ACK", Egress, from_pod(80, CLIENT, 1, SYN | ACK), Established),
        pass("and again", Egress, from_pod(80, CLIENT, 1, SYN | ACK), Established)
            .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, CONNTRACK_ANSWERED)),
        pass(
            "a minute later, the ports are another connection's",
            Ingress,
            to_pod(CLIENT, 1, 80, SYN),
            Policy,
        )
        .before(|world| world.age(60))
        .event(Ingress, CLIENT_TO_80)
        .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, 0)),
    ]
}

/// The end of the first was not seen: its client crashed.
pub fn the_ports_of_an_open_connection_again() -> Vec<Row> {
    vec![
        pass("SYN", Ingress, to_pod(CLIENT, 1, 80, SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass("SYN and ACK", Egress, from_pod(80, CLIENT, 1, SYN | ACK), Established),
        pass("ACK", Ingress, to_pod(CLIENT, 1, 80, ACK), Established),
        pass("a new connection", Ingress, to_pod(CLIENT, 1, 80, SYN), Policy)
            .event(Ingress, CLIENT_TO_80)
            .after(|world| assert_entry(world, ConntrackState::Opening, Ingress, 0)),
        pass(
            "the server has not forgotten the old one",
            Egress,
            from_pod(80, CLIENT, 1, ACK),
            Established,
        ),
        pass(
            "which lives on, if that SYN was somebody else's",
            Ingress,
            to_pod(CLIENT, 1, 80, ACK),
            Established,
        )
        .after(|world| assert_entry(world, ConntrackState::Open, Ingress, CONNTRACK_ANSWERED)),
    ]
}

/// Somebody else sends a RST in a side's name: that side goes on all the same.
pub fn forged_resets() -> Vec<Row> {
    const OPEN: u32 = CONNTRACK_ANSWERED;
    vec![
        pass("SYN", Ingress, to_pod(CLIENT, 1, 80, SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass(
            "nobody answered: reset is reset",
            Ingress,
            to_pod(CLIENT, 1, 80, RST),
            Established,
        ),
        pass(
            "and stays so, whatever comes",
            Ingress,
            to_pod(CLIENT, 1, 80, ACK),
            Established,
        )
        .after(|world| assert_entry(world, ConntrackState::Closing, Ingress, CONNTRACK_FIN_INITIATOR)),
        pass("SYN again", Ingress, to_pod(CLIENT, 1, 80, SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass("SYN and ACK", Egress, from_pod(80, CLIENT, 1, SYN | ACK), Established),
        pass("ACK", Ingress, to_pod(CLIENT, 1, 80, ACK), Established)
            .after(|world| assert_entry(world, ConntrackState::Open, Ingress, OPEN)),
        pass("in the client's name", Ingress, to_pod(CLIENT, 1, 80, RST), Established)
            .after(|world| assert_entry(world, ConntrackState::Closing, Ingress, OPEN | CONNTRACK_FIN_INITIATOR)),
        pass("the server goes on", Egress, from_pod(80, CLIENT, 1, ACK), Established)
            .after(|world| assert_entry(world, ConntrackState::Closing, Ingress, OPEN | CONNTRACK_FIN_INITIATOR)),
        pass("and the client too", Ingress, to_pod(CLIENT, 1, 80, ACK), Established)
            .after(|world| assert_entry(world, ConntrackState::Open, Ingress, OPEN)),
        pass(
            "after a FIN of the other side it ends",
            Egress,
            from_pod(80, CLIENT, 1, FIN | ACK),
            Established,
        ),
        pass("with a true RST", Ingress, to_pod(CLIENT, 1, 80, RST), Established),
        pass("for good", Ingress, to_pod(CLIENT, 1, 80, ACK), Established).after(|world| {
            let flags = OPEN | CONNTRACK_FIN_INITIATOR | CONNTRACK_FIN_RESPONDER;
            assert_entry(world, ConntrackState::Closing, Ingress, flags);
        }),
    ]
}
