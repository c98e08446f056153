// SPDX-License-Identifier: Apache-2.0
//! ICMP errors about flows to a Service: each side is told about the packet that it sent. The checksum of the quoted
//! segment stays what it was: what is quoted is cut short as a rule, so that nobody can verify it.

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{DefaultDeny, NotIsolated, Related, Self_};
use wardline_bpf::abi::SERVICE_TRANSLATE;
use wardline_bpf::frame::flag::{ACK, SYN};
use wardline_bpf::frame::protocol::{ICMP, TCP, UDP};
use wardline_bpf::frame::{turned_round, unreachable, with_checksums};

use crate::row::{Row, back, pass, stop};
use crate::services::{SERVICE, SERVICE6, datagram, one_backend, segment};
use crate::world::{CLIENT, CLIENT6, POD, POD6, STRANGER, STRANGER6, port};

/// Where the checksum of TCP or UDP is in a frame.
fn checksum_at(frame: &[u8]) -> usize {
    let (header, protocol) = if frame[14] >> 4 == 4 {
        (14 + 20, frame[14 + 9])
    } else {
        (14 + 40, frame[14 + 6])
    };
    header + if protocol == TCP { 16 } else { 6 }
}

/// `frame` as it is quoted after its addresses were exchanged: with the checksum of `sent`.
pub fn as_quoted(mut frame: Vec<u8>, sent: &[u8]) -> Vec<u8> {
    let at = checksum_at(&frame);
    frame[at..at + 2].copy_from_slice(&sent[at..at + 2]);
    frame
}

pub fn errors_about_a_service() -> Vec<Row> {
    let request = || segment(port(POD, 1), port(SERVICE, 80), ACK);
    let forwarded = || segment(port(POD, 1), port(CLIENT, 443), ACK);
    let answer = || segment(port(CLIENT, 443), port(POD, 1), ACK);
    let returned = || segment(port(SERVICE, 80), port(POD, 1), ACK);
    let error = |from, to, about: &[u8]| with_checksums(unreachable(from, to, about));
    vec![
        pass(
            "a connection",
            Egress,
            segment(port(POD, 1), port(SERVICE, 80), SYN),
            NotIsolated,
        )
        .before(|world| {
            world.set_table(Egress, 0);
            one_backend(world);
        })
        .becomes(segment(port(POD, 1), port(CLIENT, 443), SYN)),
        pass(
            "a router on the way",
            Ingress,
            error(STRANGER, POD, &forwarded()),
            Related,
        )
        .becomes(error(STRANGER, POD, &as_quoted(request(), &forwarded()))),
        pass("the backend", Ingress, error(CLIENT, POD, &forwarded()), Related).becomes(error(
            SERVICE,
            POD,
            &as_quoted(request(), &forwarded()),
        )),
        pass(
            "the pod, about an answer",
            Egress,
            error(POD, SERVICE, &returned()),
            Related,
        )
        .becomes(error(POD, CLIENT, &as_quoted(answer(), &returned()))),
        stop(
            "about what never was on the wire",
            Ingress,
            error(STRANGER, POD, &request()),
            DefaultDeny,
        )
        .deny(Ingress, STRANGER, ICMP, 0),
    ]
}

pub fn errors_about_a_service_over_ipv6() -> Vec<Row> {
    let query = || datagram(port(POD6, 1), port(SERVICE6, 80));
    let forwarded = || datagram(port(POD6, 1), port(CLIENT6, 53));
    let response = || datagram(port(CLIENT6, 53), port(POD6, 1));
    let returned = || datagram(port(SERVICE6, 80), port(POD6, 1));
    let error = |from, to, about: &[u8]| with_checksums(unreachable(from, to, about));
    vec![
        pass("a query", Egress, query(), NotIsolated)
            .before(|world| {
                world.set_table(Egress, 0);
                world.set_service(UDP, port(SERVICE6, 80), SERVICE_TRANSLATE, &[port(CLIENT6, 53)]);
            })
            .becomes(forwarded()),
        pass(
            "a router on the way",
            Ingress,
            error(STRANGER6, POD6, &forwarded()),
            Related,
        )
        .becomes(error(STRANGER6, POD6, &as_quoted(query(), &forwarded()))),
        pass("the backend", Ingress, error(CLIENT6, POD6, &forwarded()), Related).becomes(error(
            SERVICE6,
            POD6,
            &as_quoted(query(), &forwarded()),
        )),
        pass(
            "the pod, whose socket is closed by now",
            Egress,
            error(POD6, SERVICE6, &returned()),
            Related,
        )
        .becomes(error(POD6, CLIENT6, &as_quoted(response(), &returned()))),
    ]
}

pub fn errors_of_a_pod_that_reaches_itself() -> Vec<Row> {
    let query = || datagram(port(POD, 1), port(SERVICE, 80));
    let arrives = || datagram(port(SERVICE, 1), port(POD, 8080));
    let response = || datagram(port(POD, 8080), port(SERVICE, 1));
    let returns = || datagram(port(SERVICE, 80), port(POD, 1));
    let error = |from, to, about: &[u8]| with_checksums(unreachable(from, to, about));
    vec![
        back("a query", query(), Self_, turned_round(arrives()))
            .before(|world| world.set_service(UDP, port(SERVICE, 80), SERVICE_TRANSLATE, &[port(POD, 8080)])),
        back(
            "nobody listens",
            error(POD, SERVICE, &arrives()),
            Related,
            turned_round(error(SERVICE, POD, &as_quoted(query(), &arrives()))),
        ),
        back(
            "nobody waits for the response",
            error(POD, SERVICE, &returns()),
            Related,
            turned_round(error(SERVICE, POD, &as_quoted(response(), &returns()))),
        ),
    ]
}
