// SPDX-License-Identifier: Apache-2.0
//! Flows to a Service: translated to a backend that policy judges, and back. Every frame is compared byte by byte with
//! one whose checksums were computed from nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{
    DefaultDeny, Established, Midstream, NoBackend, NotIsolated, Policy, PortTaken, Revalidated,
};
use wardline_bpf::abi::SERVICE_TRANSLATE;
use wardline_bpf::frame::flag::{ACK, FIN, RST, SYN};
use wardline_bpf::frame::protocol::{SCTP, TCP, UDP};
use wardline_bpf::frame::{sctp, tcp, udp, with_checksums};

use crate::row::{Row, pass, stop};
use crate::world::{CLIENT, CLIENT6, POD, POD_TO_443, POD6, STRANGER, World, port};

/// Addresses of Services.
pub const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
pub const SERVICE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1));

/// Frames with checksums.
pub fn segment(source: SocketAddr, destination: SocketAddr, flags: u8) -> Vec<u8> {
    with_checksums(tcp(source, destination, flags))
}

pub fn datagram(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    with_checksums(udp(source, destination))
}

/// What the pod sends to the Service from its port 1, and what the network sees of it.
pub fn request(flags: u8) -> Vec<u8> {
    segment(port(POD, 1), port(SERVICE, 80), flags)
}

pub fn forwarded(flags: u8) -> Vec<u8> {
    segment(port(POD, 1), port(CLIENT, 443), flags)
}

pub fn answer(flags: u8) -> Vec<u8> {
    segment(port(CLIENT, 443), port(POD, 1), flags)
}

pub fn returned(flags: u8) -> Vec<u8> {
    segment(port(SERVICE, 80), port(POD, 1), flags)
}

/// The pod may open connections to the client's port 443, and not to the stranger's.
pub fn one_backend(world: &mut World) {
    world.set_service(TCP, port(SERVICE, 80), SERVICE_TRANSLATE, &[port(CLIENT, 443)]);
}

fn a_forbidden_backend(world: &mut World) {
    world.set_service(TCP, port(SERVICE, 80), SERVICE_TRANSLATE, &[port(STRANGER, 443)]);
}

/// Opens a connection from the pod's port 1 to the Service.
pub fn open() -> Vec<Row> {
    vec![
        pass("SYN", Egress, request(SYN), Policy)
            .before(one_backend)
            .becomes(forwarded(SYN))
            .event(Egress, POD_TO_443)
            .after(|world| world.assert_entries(2)),
        pass("SYN again", Egress, request(SYN), Established).becomes(forwarded(SYN)),
        pass("SYN and ACK", Ingress, answer(SYN | ACK), Established).becomes(returned(SYN | ACK)),
        pass("ACK", Egress, request(ACK), Established).becomes(forwarded(ACK)),
    ]
}

pub fn a_connection_through_a_service() -> Vec<Row> {
    let mut rows = open();
    rows.extend([
        pass("data, later", Egress, request(ACK), Established)
            .becomes(forwarded(ACK))
            .before(|world| world.age(3)),
        pass("data in the same tick", Egress, request(ACK), Established).becomes(forwarded(ACK)),
        pass("its answer", Ingress, answer(ACK), Established).becomes(returned(ACK)),
        pass("the Service has other backends now", Egress, request(ACK), Established)
            .before(a_forbidden_backend)
            .becomes(forwarded(ACK)),
        pass("FIN", Egress, request(FIN | ACK), Established).becomes(forwarded(FIN | ACK)),
        pass("its FIN", Ingress, answer(FIN | ACK), Established).becomes(returned(FIN | ACK)),
        pass("last ACK", Egress, request(ACK), Established).becomes(forwarded(ACK)),
        stop(
            "the port again, for a backend that is picked anew",
            Egress,
            request(SYN),
            DefaultDeny,
        )
        .deny(Egress, STRANGER, TCP, 443),
        pass("and one that is allowed", Egress, request(SYN), Policy)
            .before(one_backend)
            .becomes(forwarded(SYN))
            .event(Egress, POD_TO_443)
            .after(|world| world.assert_entries(2)),
        pass("reset", Ingress, answer(RST), Established).becomes(returned(RST)),
    ]);
    rows
}

/// The record is about the backend, and a person looks for what the pod asked for.
fn the_deny_names_the_service(world: &World) {
    let denies = world.sandbox.denies().unwrap();
    let services: Vec<_> = denies
        .iter()
        .map(|(_, entry)| (IpAddr::from(entry.service), u16::from_be(entry.service_port)))
        .collect();
    assert_eq!(services, [(SERVICE, 80)]);
}

pub fn policy_judges_the_backend() -> Vec<Row> {
    let mut rows = vec![
        stop("a backend that is not allowed", Egress, request(SYN), DefaultDeny)
            .before(a_forbidden_backend)
            .deny(Egress, STRANGER, TCP, 443)
            .after(|world| world.assert_entries(0))
            .after(the_deny_names_the_service),
    ];
    rows.extend(open());
    rows.extend([
        pass("policy changes and still allows it", Egress, request(ACK), Revalidated)
            .before(|world| world.change_rule_of_443(true))
            .becomes(forwarded(ACK)),
        pass("once", Egress, request(ACK), Established).becomes(forwarded(ACK)),
        pass("found out by the answer", Ingress, answer(ACK), Revalidated)
            .before(|world| world.change_rule_of_443(true))
            .becomes(returned(ACK)),
        stop("it is denied now", Egress, request(ACK), DefaultDeny)
            .before(|world| world.change_rule_of_443(false))
            .deny(Egress, CLIENT, TCP, 443),
        stop("the answer", Ingress, answer(ACK), DefaultDeny).deny(Egress, CLIENT, TCP, 443),
        stop("another attempt", Egress, request(SYN), DefaultDeny).deny(Egress, CLIENT, TCP, 443),
        pass("allowed again", Ingress, answer(ACK), Revalidated)
            .before(|world| world.change_rule_of_443(true))
            .becomes(returned(ACK)),
        pass("both ways", Egress, request(ACK), Established).becomes(forwarded(ACK)),
    ]);
    rows
}

pub fn other_families_and_protocols() -> Vec<Row> {
    let no_checksum = |mut frame: Vec<u8>| {
        frame[14 + 20 + 6..][..2].fill(0);
        frame
    };
    vec![
        pass(
            "TCP over IPv6",
            Egress,
            segment(port(POD6, 1), port(SERVICE6, 80), SYN),
            Policy,
        )
        .before(|world| {
            for (front, behind) in [(SERVICE, CLIENT), (SERVICE6, CLIENT6)] {
                world.set_service(TCP, port(front, 80), SERVICE_TRANSLATE, &[port(behind, 443)]);
                world.set_service(UDP, port(front, 5353), SERVICE_TRANSLATE, &[port(behind, 53)]);
                world.set_service(SCTP, port(front, 36412), SERVICE_TRANSLATE, &[port(behind, 36412)]);
            }
        })
        .becomes(segment(port(POD6, 1), port(CLIENT6, 443), SYN))
        .event(Egress, POD_TO_443),
        pass(
            "its answer",
            Ingress,
            segment(port(CLIENT6, 443), port(POD6, 1), SYN | ACK),
            Established,
        )
        .becomes(segment(port(SERVICE6, 80), port(POD6, 1), SYN | ACK)),
        pass("UDP", Egress, datagram(port(POD, 1), port(SERVICE, 5353)), Policy)
            .becomes(datagram(port(POD, 1), port(CLIENT, 53)))
            .event(Egress, POD_TO_443),
        pass(
            "its answer, UDP",
            Ingress,
            datagram(port(CLIENT, 53), port(POD, 1)),
            Established,
        )
        .becomes(datagram(port(SERVICE, 5353), port(POD, 1))),
        pass(
            "UDP over IPv6",
            Egress,
            datagram(port(POD6, 1), port(SERVICE6, 5353)),
            Policy,
        )
        .becomes(datagram(port(POD6, 1), port(CLIENT6, 53)))
        .event(Egress, POD_TO_443),
        pass(
            "its answer, UDP over IPv6",
            Ingress,
            datagram(port(CLIENT6, 53), port(POD6, 1)),
            Established,
        )
        .becomes(datagram(port(SERVICE6, 5353), port(POD6, 1))),
        pass(
            "UDP without a checksum",
            Egress,
            no_checksum(datagram(port(POD, 1), port(SERVICE, 5353))),
            Established,
        )
        .becomes(no_checksum(datagram(port(POD, 1), port(CLIENT, 53)))),
        pass(
            "SCTP",
            Egress,
            with_checksums(sctp(port(POD, 1), port(SERVICE, 36412))),
            NotIsolated,
        )
        .before(|world| world.set_table(Egress, 0))
        .becomes(with_checksums(sctp(port(POD, 1), port(CLIENT, 36412)))),
        pass(
            "SCTP over IPv6",
            Egress,
            sctp(port(POD6, 1), port(SERVICE6, 36412)),
            NotIsolated,
        )
        .becomes(sctp(port(POD6, 1), port(CLIENT6, 36412))),
        pass(
            "its answer, SCTP",
            Ingress,
            with_checksums(sctp(port(CLIENT, 36412), port(POD, 1))),
            Established,
        )
        .becomes(with_checksums(sctp(port(SERVICE, 36412), port(POD, 1)))),
        stop(
            "SCTP whose port would change",
            Egress,
            sctp(port(POD, 2), port(SERVICE, 36412)),
            NoBackend,
        )
        .before(|world| world.set_service(SCTP, port(SERVICE, 36412), SERVICE_TRANSLATE, &[port(CLIENT, 1)])),
    ]
}

pub fn mid_stream_gets_no_backend() -> Vec<Row> {
    vec![
        pass(
            "judged by the backends, and left alone",
            Egress,
            request(ACK),
            Midstream,
        )
        .before(one_backend)
        .event(Egress, POD_TO_443)
        .after(|world| world.assert_entries(1)),
        pass("and so is the next", Egress, request(ACK), Established),
        stop(
            "with a backend that is not allowed",
            Egress,
            segment(port(POD, 2), port(SERVICE, 80), ACK),
            DefaultDeny,
        )
        .before(a_forbidden_backend)
        .deny(Egress, SERVICE, TCP, 80),
        stop(
            "first seen by an answer",
            Ingress,
            segment(port(SERVICE, 80), port(POD, 3), ACK),
            DefaultDeny,
        )
        .deny(Ingress, SERVICE, TCP, 3),
        pass(
            "first seen by an answer that the backend may give",
            Ingress,
            segment(port(SERVICE, 80), port(POD, 3), ACK),
            Midstream,
        )
        .before(one_backend)
        .after(|world| world.assert_entries(1)),
        stop(
            "with one of several that is not allowed: which of them it has is not known",
            Egress,
            segment(port(POD, 4), port(SERVICE, 80), ACK),
            DefaultDeny,
        )
        .before(|world| several_backends(world, &[CLIENT, STRANGER]))
        .deny(Egress, SERVICE, TCP, 80),
        stop(
            "with more of them than are asked",
            Egress,
            segment(port(POD, 4), port(SERVICE, 80), ACK),
            DefaultDeny,
        )
        .before(|world| several_backends(world, &[CLIENT; 65]))
        .deny(Egress, SERVICE, TCP, 80),
        pass(
            "of a pod that is isolated in this direction alone",
            Egress,
            segment(port(POD, 4), port(SERVICE, 80), ACK),
            Midstream,
        )
        .before(|world| world.set_table(Ingress, 0))
        .after(|world| world.assert_entries(1)),
    ]
}

fn several_backends(world: &mut World, behind: &[IpAddr]) {
    let behind: Vec<_> = behind.iter().map(|address| port(*address, 443)).collect();
    world.set_service(TCP, port(SERVICE, 80), SERVICE_TRANSLATE, &behind);
}

/// Another backend, in no policy's mind.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9));

fn set_dns(world: &mut World, backend: IpAddr) {
    world.set_service(UDP, port(SERVICE, 53), SERVICE_TRANSLATE, &[port(backend, 53)]);
}

pub fn entries_end_together() -> Vec<Row> {
    let query = || datagram(port(POD, 1), port(SERVICE, 53));
    let to = |backend| datagram(port(POD, 1), port(backend, 53));
    let response = || datagram(port(CLIENT, 53), port(POD, 1));
    let returned = || datagram(port(SERVICE, 53), port(POD, 1));
    vec![
        pass("a query", Egress, query(), NotIsolated)
            .before(|world| {
                world.set_table(Egress, 0);
                set_dns(world, CLIENT);
            })
            .becomes(to(CLIENT)),
        pass(
            "without its alias another backend is picked",
            Egress,
            query(),
            NotIsolated,
        )
        .before(|world| {
            set_dns(world, ELSEWHERE);
            world.forget(|key| IpAddr::from(key.remote) == SERVICE);
        })
        .becomes(to(ELSEWHERE))
        .after(|world| world.assert_entries(3)),
        pass("an alias without its entry leads nowhere", Egress, query(), NotIsolated)
            .before(|world| {
                set_dns(world, CLIENT);
                world.forget(|key| IpAddr::from(key.remote) != SERVICE);
                world.age(2);
            })
            .becomes(to(CLIENT))
            .after(|world| world.assert_entries(2)),
        pass("its time is over", Egress, query(), NotIsolated)
            .before(|world| {
                world.age(40);
                set_dns(world, ELSEWHERE);
            })
            .becomes(to(ELSEWHERE)),
        pass("a query with an answer", Egress, query(), NotIsolated)
            .before(|world| {
                world.forget(|_| true);
                set_dns(world, CLIENT);
            })
            .becomes(to(CLIENT)),
        pass("the answer", Ingress, response(), Established).becomes(returned()),
        pass("another one, later", Ingress, response(), Established)
            .before(|world| world.age(20))
            .becomes(returned()),
        pass("answers keep the flow", Ingress, response(), Established)
            .before(|world| world.age(150))
            .becomes(returned()),
        pass("for the pod too", Egress, query(), Established)
            .before(|world| {
                world.age(150);
                set_dns(world, ELSEWHERE);
            })
            .becomes(to(CLIENT)),
    ]
}

pub fn ports_that_are_taken() -> Vec<Row> {
    let direct = |flags| segment(port(POD, 1), port(CLIENT, 443), flags);
    vec![
        pass("straight to the backend", Egress, direct(SYN), Policy).event(Egress, POD_TO_443),
        stop(
            "and from the same port through the Service",
            Egress,
            request(SYN),
            PortTaken,
        )
        .before(one_backend)
        .after(|world| world.assert_entries(1)),
        pass("without it", Egress, request(SYN), Policy)
            .before(|world| world.forget(|_| true))
            .becomes(forwarded(SYN))
            .event(Egress, POD_TO_443),
        stop(
            "the connection through the Service keeps its port",
            Egress,
            direct(SYN),
            PortTaken,
        ),
        stop(
            "also from another Service",
            Egress,
            segment(port(POD, 1), port(SERVICE, 81), SYN),
            PortTaken,
        )
        .before(|world| world.set_service(TCP, port(SERVICE, 81), SERVICE_TRANSLATE, &[port(CLIENT, 443)])),
        pass("and goes on", Ingress, answer(SYN | ACK), Established).becomes(returned(SYN | ACK)),
        pass("until it is reset", Egress, request(RST), Established).becomes(forwarded(RST)),
        pass(
            "now another Service has it",
            Egress,
            segment(port(POD, 1), port(SERVICE, 81), SYN),
            Policy,
        )
        .becomes(forwarded(SYN))
        .event(Egress, POD_TO_443),
        stop(
            "which the old one's client cannot have",
            Egress,
            request(SYN),
            PortTaken,
        ),
        pass("whose answers are its own", Ingress, answer(SYN | ACK), Established).becomes(segment(
            port(SERVICE, 81),
            port(POD, 1),
            SYN | ACK,
        )),
    ]
}
