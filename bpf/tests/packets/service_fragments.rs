// SPDX-License-Identifier: Apache-2.0
//! Datagrams in parts, to and from a Service: each part goes the way of its first, and comes from where that came from.

use std::net::{IpAddr, SocketAddr};

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{Established, Fragment, NotIsolated, Self_};
use wardline_bpf::abi::SERVICE_TRANSLATE;
use wardline_bpf::frame::protocol::UDP;
use wardline_bpf::frame::{fragment, turned_round, udp, with_checksums};
use wardline_bpf::test_run::Frame;

use crate::fragments::long;
use crate::row::{Row, back, pass, stop};
use crate::services::{SERVICE, SERVICE6};
use crate::world::{CLIENT, CLIENT6, IFINDEX, POD, POD6, STRANGER, STRANGER6, World, port};

/// Those that a pod of one family talks to.
struct Parties {
    pod: IpAddr,
    service: IpAddr,
    backend: IpAddr,
}

const V4: Parties = Parties {
    pod: POD,
    service: SERVICE,
    backend: CLIENT,
};
const V6: Parties = Parties {
    pod: POD6,
    service: SERVICE6,
    backend: CLIENT6,
};

fn datagram(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    with_checksums(long(udp(source, destination)))
}

fn first(whole: &[u8], id: u16) -> Vec<u8> {
    fragment(whole, id, 0..16)
}

fn second(whole: &[u8], id: u16) -> Vec<u8> {
    fragment(whole, id, 16..40)
}

fn last(whole: &[u8], id: u16) -> Vec<u8> {
    fragment(whole, id, 40..76)
}

fn serve(world: &mut World) {
    world.set_table(Egress, 0);
    for of in [V4, V6] {
        world.set_service(UDP, port(of.service, 53), SERVICE_TRANSLATE, &[port(of.backend, 5353)]);
        world.set_service(UDP, port(of.service, 54), SERVICE_TRANSLATE, &[]);
    }
}

/// New flows get another backend.
fn serve_elsewhere(world: &mut World) {
    for (service, backend) in [(SERVICE, STRANGER), (SERVICE6, STRANGER6)] {
        world.set_service(UDP, port(service, 53), SERVICE_TRANSLATE, &[port(backend, 5353)]);
    }
}

/// The first part of a datagram to a port that nothing is behind.
fn ask_nobody(world: &mut World) {
    for of in [V4, V6] {
        let first = first(&datagram(port(of.pod, 1), port(of.service, 54)), 4);
        let outcome = world.sandbox.run(Egress, Frame::forwarded(&first, IFINDEX)).unwrap();
        assert!(!outcome.passed(), "{outcome:?}");
    }
}

fn in_parts(of: &Parties) -> Vec<Row> {
    let query = datagram(port(of.pod, 1), port(of.service, 53));
    let forwarded = datagram(port(of.pod, 1), port(of.backend, 5353));
    let response = datagram(port(of.backend, 5353), port(of.pod, 1));
    let returned = datagram(port(of.service, 53), port(of.pod, 1));
    let nowhere = datagram(port(of.pod, 1), port(of.service, 54));
    vec![
        stop("before its first", Egress, last(&query, 1), Fragment).before(serve),
        pass("a query's first", Egress, first(&query, 1), NotIsolated).becomes(first(&forwarded, 1)),
        pass(
            "its second, after other backends came",
            Egress,
            second(&query, 1),
            Established,
        )
        .before(serve_elsewhere)
        .becomes(second(&forwarded, 1)),
        pass("its last, in another tick", Egress, last(&query, 1), Established)
            .before(|world| world.age(3))
            .becomes(last(&forwarded, 1))
            .after(|world| world.assert_entries(2)),
        stop("of another query", Egress, last(&query, 2), Fragment),
        stop("before the response's first", Ingress, second(&response, 9), Fragment).deny(Ingress, of.backend, UDP, 0),
        pass("the response's first", Ingress, first(&response, 9), Established).becomes(first(&returned, 9)),
        pass("its second", Ingress, second(&response, 9), Established).becomes(second(&returned, 9)),
        pass("its last", Ingress, last(&response, 9), Established).becomes(last(&returned, 9)),
        pass("another query's first", Egress, first(&query, 3), Established).becomes(first(&forwarded, 3)),
        stop(
            "what opens nothing is given no backend",
            Egress,
            last(&query, 3),
            Fragment,
        )
        .before(|world| world.forget(|_| true))
        .after(|world| world.assert_entries(0)),
        stop("the rest of what was refused", Egress, last(&nowhere, 4), Fragment).before(ask_nobody),
    ]
}

pub fn datagrams_in_parts() -> Vec<Row> {
    in_parts(&V4)
}

pub fn datagrams_in_parts_over_ipv6() -> Vec<Row> {
    in_parts(&V6)
}

pub fn datagrams_in_parts_to_itself() -> Vec<Row> {
    let query = datagram(port(POD, 1), port(SERVICE, 53));
    let arrives = datagram(port(SERVICE, 1), port(POD, 8080));
    let response = datagram(port(POD, 8080), port(SERVICE, 1));
    let returns = datagram(port(SERVICE, 53), port(POD, 1));
    vec![
        back(
            "a query's first",
            first(&query, 1),
            Self_,
            turned_round(first(&arrives, 1)),
        )
        .before(|world| world.set_service(UDP, port(SERVICE, 53), SERVICE_TRANSLATE, &[port(POD, 8080)])),
        back(
            "its last",
            last(&query, 1),
            Established,
            turned_round(last(&arrives, 1)),
        ),
        back(
            "the response's first",
            first(&response, 2),
            Established,
            turned_round(first(&returns, 2)),
        ),
        back(
            "the response's last",
            last(&response, 2),
            Established,
            turned_round(last(&returns, 2)),
        ),
    ]
}
