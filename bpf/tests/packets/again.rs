// SPDX-License-Identifier: Apache-2.0
//! Open connections when policy changes: judged again, once, in the direction in which they were opened.

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{DefaultDeny, Established, Midstream, Node, NotIsolated, Policy, Revalidated};
use wardline_bpf::abi::{CONNTRACK_LOCAL, ConntrackState};
use wardline_bpf::frame::flag::{ACK, FIN, SYN};
use wardline_bpf::frame::protocol::{TCP, UDP};
use wardline_bpf::frame::{tcp, udp};

use crate::row::{Row, pass, stop};
use crate::world::{ANY_UDP, CLIENT, CLIENT_TO_80, NODE, POD, POD_TO_443, STRANGER, World, port};

fn request(flags: u8) -> Vec<u8> {
    tcp(port(CLIENT, 1), port(POD, 80), flags)
}

fn answer(flags: u8) -> Vec<u8> {
    tcp(port(POD, 80), port(CLIENT, 1), flags)
}

#[track_caller]
fn assert_state(world: &World, state: ConntrackState) {
    assert_eq!(ConntrackState::try_from(world.entry().state), Ok(state));
}

fn open() -> Vec<Row> {
    vec![
        pass("SYN", Ingress, request(SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass("SYN and ACK", Egress, answer(SYN | ACK), Established),
        pass("ACK", Ingress, request(ACK), Established),
    ]
}

pub fn policy_no_longer_allows() -> Vec<Row> {
    let mut rows = open();
    rows.extend([
        stop(
            "the answer is denied in the request's direction",
            Egress,
            answer(ACK),
            DefaultDeny,
        )
        .before(|world| world.change_rule_of_80(false))
        .deny(Ingress, CLIENT, TCP, 80)
        .after(|world| assert_state(world, ConntrackState::Denied)),
        stop("the client's data", Ingress, request(ACK), DefaultDeny).deny(Ingress, CLIENT, TCP, 80),
        stop("a new attempt", Ingress, request(SYN), DefaultDeny)
            .deny(Ingress, CLIENT, TCP, 80)
            .after(|world| assert_state(world, ConntrackState::Denied)),
        stop(
            "the other direction, now open to all, revives nothing",
            Egress,
            answer(ACK),
            DefaultDeny,
        )
        .before(|world| world.set_table(Egress, 0))
        .deny(Ingress, CLIENT, TCP, 80),
        stop(
            "another change that does not allow it",
            Ingress,
            request(ACK),
            DefaultDeny,
        )
        .before(|world| world.set_table(Ingress, 100))
        .deny(Ingress, CLIENT, TCP, 80)
        .after(|world| assert_state(world, ConntrackState::Denied)),
        pass("a change that does", Ingress, request(ACK), Revalidated)
            .before(|world| world.change_rule_of_80(true))
            .after(|world| assert_state(world, ConntrackState::Open)),
        pass("and all is as before", Egress, answer(ACK), Established),
    ]);
    rows
}

pub fn policy_still_allows() -> Vec<Row> {
    let mut rows = open();
    rows.extend([
        pass("judged again, without a record", Egress, answer(ACK), Revalidated)
            .before(|world| world.set_table(Ingress, 100))
            .after(|world| assert_state(world, ConntrackState::Open)),
        pass("once", Ingress, request(ACK), Established),
        pass(
            "the other direction's policy does not matter",
            Ingress,
            request(ACK),
            Established,
        )
        .before(|world| world.set_table(Egress, 200)),
        pass(
            "what the packet says counts too",
            Ingress,
            request(FIN | ACK),
            Revalidated,
        )
        .before(|world| world.set_table(Ingress, 100)),
        pass("the other side's as well", Egress, answer(FIN | ACK), Established)
            .after(|world| assert_state(world, ConntrackState::Closing)),
    ]);
    rows
}

pub fn isolation_begins_and_ends() -> Vec<Row> {
    let stranger = |flags| tcp(port(STRANGER, 9), port(POD, 22), flags);
    vec![
        pass("before any policy", Ingress, request(SYN), NotIsolated).before(|world| world.set_table(Ingress, 0)),
        pass("from anyone", Ingress, stranger(SYN), NotIsolated),
        pass("the first policy admits the one", Ingress, request(ACK), Revalidated)
            .before(|world| world.set_table(Ingress, 100)),
        stop("and cuts the other", Ingress, stranger(ACK), DefaultDeny).deny(Ingress, STRANGER, TCP, 22),
        pass(
            "which the end of isolation brings back",
            Ingress,
            stranger(ACK),
            Revalidated,
        )
        .before(|world| world.set_table(Ingress, 0)),
    ]
}

pub fn denied_datagrams() -> Vec<Row> {
    let request = || udp(port(CLIENT, 53), port(POD, 7));
    let answer = || udp(port(POD, 7), port(CLIENT, 53));
    vec![
        pass("a datagram", Ingress, request(), Policy).event(Ingress, ANY_UDP),
        stop("denied by a change", Ingress, request(), DefaultDeny)
            .before(|world| world.change_rule_of_udp(false))
            .deny(Ingress, CLIENT, UDP, 7),
        stop("the answer of a denied flow", Egress, answer(), DefaultDeny).deny(Ingress, CLIENT, UDP, 7),
        stop("attempts do not prolong it", Ingress, request(), DefaultDeny)
            .before(|world| world.age(100))
            .deny(Ingress, CLIENT, UDP, 7),
        pass(
            "after its time the pod's datagram is a flow of its own",
            Egress,
            answer(),
            Policy,
        )
        .before(|world| world.age(100))
        .event(Egress, POD_TO_443),
    ]
}

pub fn node_keeps_its_connections() -> Vec<Row> {
    let probe = |source_port, flags| tcp(port(NODE, source_port), port(POD, 1234), flags);
    let reply = |source_port, flags| tcp(port(POD, 1234), port(NODE, source_port), flags);
    vec![
        pass("before any policy", Ingress, probe(1, SYN), NotIsolated)
            .sent_by_node()
            .before(|world| world.set_table(Ingress, 0))
            .after(|world| assert_eq!(u32::from(world.entry().flags), CONNTRACK_LOCAL)),
        pass(
            "the reply cannot prove it, the entry does",
            Egress,
            reply(1, ACK),
            Revalidated,
        )
        .before(|world| world.set_table(Ingress, 100)),
        pass(
            "forwarded, with the node's address",
            Ingress,
            probe(2, SYN),
            NotIsolated,
        )
        .before(|world| world.set_table(Ingress, 0)),
        stop("has no such proof", Egress, reply(2, ACK), DefaultDeny)
            .before(|world| world.set_table(Ingress, 100))
            .deny(Ingress, NODE, TCP, 1234),
        pass("a new one of the node", Ingress, probe(3, SYN), Node).sent_by_node(),
        pass("its reply", Egress, reply(3, SYN | ACK), Established),
        pass("the node's, in mid-stream", Ingress, probe(4, ACK), Midstream).sent_by_node(),
    ]
}
