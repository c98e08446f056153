// SPDX-License-Identifier: Apache-2.0
//! Connections through a Service whose end nobody saw, and what others send in a side's name: what takes their place,
//! and what does not.

use std::net::{IpAddr, Ipv4Addr};

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{Established, Midstream, NotIsolated, Policy, PortTaken};
use wardline_bpf::abi::SERVICE_TRANSLATE;
use wardline_bpf::frame::flag::{ACK, RST, SYN};
use wardline_bpf::frame::protocol::TCP;

use crate::row::{Row, pass, stop};
use crate::services::{SERVICE, answer, forwarded, one_backend, open, request, returned, segment};
use crate::world::{POD, POD_TO_443, port};

const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9));

/// The backend's node went away without a word, and so did the backend from the Service.
pub fn a_new_connection_after_a_dead_backend() -> Vec<Row> {
    let mut rows = open();
    rows.extend([
        pass("the port again, an hour later", Egress, request(SYN), NotIsolated)
            .before(|world| {
                world.age(3400);
                world.set_table(Egress, 0);
                world.set_service(TCP, port(SERVICE, 80), SERVICE_TRANSLATE, &[port(ELSEWHERE, 443)]);
            })
            .becomes(segment(port(POD, 1), port(ELSEWHERE, 443), SYN)),
        pass("and once more", Egress, request(SYN), Established).becomes(segment(
            port(POD, 1),
            port(ELSEWHERE, 443),
            SYN,
        )),
    ]);
    rows
}

/// The same backend by chance: a connection of its own all the same, with a record.
pub fn a_new_connection_to_the_same_backend() -> Vec<Row> {
    let mut rows = open();
    rows.extend([
        pass("the port again", Egress, request(SYN), Policy)
            .becomes(forwarded(SYN))
            .event(Egress, POD_TO_443)
            .after(|world| world.assert_entries(2)),
        pass("SYN and ACK of that", Ingress, answer(SYN | ACK), Established).becomes(returned(SYN | ACK)),
        pass("SYN of that, again", Egress, request(SYN), Established).becomes(forwarded(SYN)),
    ]);
    rows
}

/// A last word of a connection that is long over, then the port again.
pub fn a_new_connection_after_mid_stream() -> Vec<Row> {
    vec![
        pass("mid-stream", Egress, request(ACK), Midstream)
            .before(one_backend)
            .event(Egress, POD_TO_443),
        pass("a new connection", Egress, request(SYN), Policy)
            .becomes(forwarded(SYN))
            .event(Egress, POD_TO_443),
    ]
}

/// Anybody who knows the ports may send it in the backend's name; the two sides know that it is none of theirs.
pub fn a_forged_reset_ends_nothing() -> Vec<Row> {
    let mut rows = open();
    rows.extend([
        pass("in the backend's name", Ingress, answer(RST), Established).becomes(returned(RST)),
        pass("the backend goes on", Ingress, answer(ACK), Established).becomes(returned(ACK)),
        pass("so does the pod", Egress, request(ACK), Established).becomes(forwarded(ACK)),
        pass("and an hour later", Egress, request(ACK), Established)
            .before(|world| world.age(3400))
            .becomes(forwarded(ACK)),
    ]);
    rows
}

pub fn a_forged_syn_ends_nothing() -> Vec<Row> {
    let mut rows = open();
    rows.extend([
        stop("in the backend's name", Ingress, answer(SYN), PortTaken).before(|world| world.set_table(Ingress, 0)),
        pass("the connection goes on", Egress, request(ACK), Established)
            .before(|world| world.age(2))
            .becomes(forwarded(ACK)),
        stop("straight to the backend", Egress, forwarded(SYN), PortTaken),
        pass("and goes on", Ingress, answer(ACK), Established).becomes(returned(ACK)),
    ]);
    rows
}
