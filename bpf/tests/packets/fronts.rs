// SPDX-License-Identifier: Apache-2.0
//! Services with nothing behind them, with the pod itself, with a backend for each client, and those that another
//! proxy translates.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{
    DefaultDeny, Established, NoBackend, Node, NotIsolated, Policy, PortTaken, Refused, Revalidated, Self_,
};
use wardline_bpf::abi::{PEER_LOCAL, PEER_NODE, Peer, SERVICE_DROP, SERVICE_JUDGE_ADDRESS, SERVICE_TRANSLATE};
use wardline_bpf::frame::flag::{ACK, FIN, RST, SYN};
use wardline_bpf::frame::protocol::{SCTP, TCP, UDP};
use wardline_bpf::frame::{Echo, echo, icmp, sctp, tcp, turned_round, with_checksums};

use crate::own_node::data;
use crate::row::{Row, back, pass, stop};
use crate::services::{SERVICE, SERVICE6, datagram, segment};
use crate::world::{CLIENT, NODE, OUTSIDER, PEERS, POD, POD_TO_443, POD6, STRANGER, World, port};

/// IPv4: header with an identification of 0 and no fragmenting, 64 hops. IPv6: 64 hops.
fn as_answer(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[14] >> 4 == 4 {
        frame[14 + 4..][..4].copy_from_slice(&[0, 0, 0x40, 0]);
        frame[14 + 8] = 64;
    } else {
        frame[14 + 7] = 64;
    }
    turned_round(with_checksums(frame))
}

/// The RST that answers a SYN to port 80 of the Service.
fn reset(service: IpAddr, pod: IpAddr) -> Vec<u8> {
    reset_by(port(service, 80), port(pod, 1), ACK, [0, 2])
}

/// The RST of whom the pod wrote to; further flags, and its sequence and acknowledgement numbers.
pub fn reset_by(whom: SocketAddr, pod: SocketAddr, flags: u8, numbers: [u32; 2]) -> Vec<u8> {
    let mut frame = tcp(whom, pod, RST | flags);
    let header = if pod.is_ipv4() { 14 + 20 } else { 14 + 40 };
    frame[header + 4..][..8].copy_from_slice(numbers.map(u32::to_be_bytes).as_flattened());
    // No window.
    frame[header + 14..][..2].fill(0);
    as_answer(frame)
}

/// "Port unreachable", quoting the IP header and eight bytes.
pub fn port_unreachable(service: IpAddr, pod: IpAddr, about: &[u8]) -> Vec<u8> {
    let (kind, code, quoted) = if pod.is_ipv4() { (3, 3, 28) } else { (1, 4, 48) };
    let mut frame = icmp(service, pod, kind, &[&[0; 4], &about[14..][..quoted]].concat());
    let header = if pod.is_ipv4() { 14 + 20 } else { 14 + 40 };
    frame[header + 1] = code;
    as_answer(frame)
}

fn without_backends(world: &mut World) {
    for front in [SERVICE, SERVICE6] {
        for protocol in [TCP, UDP, SCTP] {
            world.set_service(protocol, port(front, 80), SERVICE_TRANSLATE, &[]);
        }
        world.set_service(0, port(front, 0), SERVICE_TRANSLATE, &[]);
    }
}

pub fn nothing_to_choose_from() -> Vec<Row> {
    let syn = |service, pod| segment(port(pod, 1), port(service, 80), SYN);
    let query = |service, pod| datagram(port(pod, 1), port(service, 80));
    let init = with_checksums(sctp(port(POD, 1), port(SERVICE, 80)));
    let unlisted = || datagram(port(POD, 1), port(SERVICE, 7));
    vec![
        back("TCP", syn(SERVICE, POD), Refused, reset(SERVICE, POD))
            .before(without_backends)
            .after(|world| world.assert_entries(0)),
        back("TCP, IPv6", syn(SERVICE6, POD6), Refused, reset(SERVICE6, POD6)),
        back(
            "UDP",
            query(SERVICE, POD),
            Refused,
            port_unreachable(SERVICE, POD, &query(SERVICE, POD)),
        ),
        back(
            "UDP, IPv6",
            query(SERVICE6, POD6),
            Refused,
            port_unreachable(SERVICE6, POD6, &query(SERVICE6, POD6)),
        ),
        back("SCTP", init.clone(), Refused, port_unreachable(SERVICE, POD, &init)),
        back(
            "a port that is not listed",
            unlisted(),
            Refused,
            port_unreachable(SERVICE, POD, &unlisted()),
        ),
        stop(
            "mid-stream is judged as what it is",
            Egress,
            segment(port(POD, 1), port(SERVICE, 80), ACK),
            DefaultDeny,
        )
        .deny(Egress, SERVICE, TCP, 80),
        stop(
            "silent, where only local backends count",
            Egress,
            syn(SERVICE, POD),
            NoBackend,
        )
        .before(|world| {
            world.set_service(TCP, port(SERVICE, 80), SERVICE_TRANSLATE | SERVICE_DROP, &[]);
        }),
        pass(
            "an echo to the address is a packet like any",
            Egress,
            echo(POD, SERVICE, Echo::Request, 1),
            NotIsolated,
        )
        .before(|world| world.set_table(Egress, 0)),
    ]
}

fn itself(world: &mut World) {
    for protocol in [TCP, UDP] {
        world.set_service(protocol, port(SERVICE, 80), SERVICE_TRANSLATE, &[port(POD, 8080)]);
        world.set_service(protocol, port(SERVICE6, 80), SERVICE_TRANSLATE, &[port(POD6, 8080)]);
    }
}

pub fn a_pod_that_reaches_itself() -> Vec<Row> {
    let request = |client, flags| segment(port(POD, client), port(SERVICE, 80), flags);
    let arrives = |client, flags| turned_round(segment(port(SERVICE, client), port(POD, 8080), flags));
    let answer = |client, flags| segment(port(POD, 8080), port(SERVICE, client), flags);
    let returns = |client, flags| turned_round(segment(port(SERVICE, 80), port(POD, client), flags));
    vec![
        back("SYN, whatever policy says", request(1, SYN), Self_, arrives(1, SYN))
            .before(itself)
            .after(|world| world.assert_entries(2)),
        back("SYN and ACK", answer(1, SYN | ACK), Established, returns(1, SYN | ACK)),
        back("ACK", request(1, ACK), Established, arrives(1, ACK)),
        back("another client", request(2, SYN), Self_, arrives(2, SYN)).after(|world| world.assert_entries(4)),
        stop(
            "from the port that it serves and the Service has",
            Egress,
            segment(port(POD, 90), port(SERVICE, 90), SYN),
            PortTaken,
        )
        .before(|world| world.set_service(TCP, port(SERVICE, 90), SERVICE_TRANSLATE, &[port(POD, 90)]))
        .after(|world| world.assert_entries(4)),
        back("its answer", answer(2, SYN | ACK), Established, returns(2, SYN | ACK)),
        back("later", request(1, ACK), Established, arrives(1, ACK)).before(|world| world.age(3)),
        back("policy changes", answer(1, ACK), Revalidated, returns(1, ACK)).before(|world| {
            world.set_table(Ingress, 100);
            world.set_table(Egress, 200);
        }),
        back("and once more", request(1, ACK), Established, arrives(1, ACK)),
        back("FIN", request(1, FIN | ACK), Established, arrives(1, FIN | ACK)),
        back("its FIN", answer(1, FIN | ACK), Established, returns(1, FIN | ACK)),
        back("the port again", request(1, SYN), Self_, arrives(1, SYN)).after(|world| world.assert_entries(4)),
        stop(
            "nobody else speaks for the Service",
            Ingress,
            segment(port(SERVICE, 1), port(POD, 8080), ACK),
            PortTaken,
        ),
        stop(
            "to neither side",
            Ingress,
            segment(port(SERVICE, 80), port(POD, 1), ACK),
            PortTaken,
        ),
        back(
            "UDP over IPv6",
            datagram(port(POD6, 1), port(SERVICE6, 80)),
            Self_,
            turned_round(datagram(port(SERVICE6, 1), port(POD6, 8080))),
        ),
        back(
            "its answer, UDP over IPv6",
            datagram(port(POD6, 8080), port(SERVICE6, 1)),
            Established,
            turned_round(datagram(port(SERVICE6, 80), port(POD6, 1))),
        ),
    ]
}

fn sticky(world: &mut World, behind: IpAddr) {
    let front = port(SERVICE, 443);
    world.set_sticky_service(TCP, front, SERVICE_TRANSLATE, &[port(behind, 443)], 100);
}

pub fn clients_stay_with_their_backend() -> Vec<Row> {
    let syn = |source| segment(port(POD, source), port(SERVICE, 443), SYN);
    let to = |source, backend| segment(port(POD, source), port(backend, 443), SYN);
    vec![
        pass("a client", Egress, syn(1), NotIsolated)
            .before(|world| {
                world.set_table(Egress, 0);
                sticky(world, CLIENT);
            })
            .becomes(to(1, CLIENT)),
        pass("stays", Egress, syn(2), NotIsolated)
            .before(|world| sticky(world, STRANGER))
            .becomes(to(2, CLIENT)),
        pass("for as long as the Service says", Egress, syn(3), NotIsolated)
            .before(|world| world.age_affinities(99))
            .becomes(to(3, CLIENT)),
        pass("from its last connection on", Egress, syn(4), NotIsolated)
            .before(|world| world.age_affinities(99))
            .becomes(to(4, CLIENT)),
        pass("and no longer", Egress, syn(5), NotIsolated)
            .before(|world| world.age_affinities(102))
            .becomes(to(5, STRANGER)),
    ]
}

/// Behind addresses that kube-proxy keeps: flags 0.
fn kept(world: &mut World, front: IpAddr, behind: &[IpAddr]) {
    let behind: Vec<_> = behind.iter().map(|address| port(*address, 443)).collect();
    world.set_service(TCP, port(front, 30_080), 0, &behind);
}

const EVERY_NODE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

pub fn services_that_another_proxy_translates() -> Vec<Row> {
    let to = |source, front, flags| tcp(port(POD, source), port(front, 30_080), flags);
    vec![
        pass("all backends are allowed", Egress, to(1, SERVICE, SYN), Policy)
            .before(|world| kept(world, SERVICE, &[CLIENT, CLIENT]))
            .event(Egress, POD_TO_443)
            .after(|world| assert!(world.has_entry(SERVICE, 1, 30_080))),
        stop("one of them is not", Egress, to(2, SERVICE, SYN), DefaultDeny)
            .before(|world| kept(world, SERVICE, &[CLIENT, STRANGER]))
            .deny(Egress, SERVICE, TCP, 30_080),
        pass("the connection that is open", Egress, to(1, SERVICE, ACK), Established),
        stop("until it is judged again", Egress, to(1, SERVICE, ACK), DefaultDeny)
            .before(|world| world.set_table(Egress, 200))
            .deny(Egress, SERVICE, TCP, 30_080),
        pass("then as a new one", Egress, to(1, SERVICE, ACK), Revalidated)
            .before(|world| kept(world, SERVICE, &[CLIENT]))
            .before(|world| world.set_table(Egress, 200)),
        stop(
            "more backends than are judged",
            Egress,
            to(3, SERVICE, SYN),
            DefaultDeny,
        )
        .before(|world| kept(world, SERVICE, &[CLIENT; 65]))
        .deny(Egress, SERVICE, TCP, 30_080),
        pass("as many as are", Egress, to(3, SERVICE, SYN), Policy)
            .before(|world| kept(world, SERVICE, &[CLIENT; 64]))
            .event(Egress, POD_TO_443),
        stop("none: judged as the address", Egress, to(4, SERVICE, SYN), DefaultDeny)
            .before(|world| kept(world, SERVICE, &[]))
            .deny(Egress, SERVICE, TCP, 30_080),
        pass("the pod's own node", Egress, to(5, NODE, SYN), Node).before(|world| {
            let flags = PEER_LOCAL | PEER_NODE;
            world.sandbox.set_peer(PEERS, NODE, Peer { class: 0, flags }).unwrap();
        }),
        stop("is no way round policy", Egress, to(6, NODE, SYN), DefaultDeny)
            .before(|world| kept(world, EVERY_NODE, &[CLIENT, STRANGER]))
            .deny(Egress, NODE, TCP, 30_080),
        pass("nor in the way of it", Egress, to(6, NODE, SYN), Policy)
            .before(|world| kept(world, EVERY_NODE, &[CLIENT]))
            .event(Egress, POD_TO_443),
        pass("a backend on the node is the node's", Egress, to(7, NODE, SYN), Node)
            .before(|world| kept(world, EVERY_NODE, &[NODE])),
        pass(
            "it is one that another proxy reaches",
            Egress,
            data(port(POD, 7), port(NODE, 30_080)),
            Revalidated,
        )
        .before(|world| world.set_table(Egress, 200)),
        pass(
            "and goes on",
            Egress,
            data(port(POD, 7), port(NODE, 30_080)),
            Established,
        ),
        stop(
            "a port of this node's address is no way round either",
            Egress,
            to(8, NODE, SYN),
            DefaultDeny,
        )
        .before(|world| kept(world, NODE, &[STRANGER]))
        .deny(Egress, NODE, TCP, 30_080),
        pass("where it leads is allowed", Egress, to(8, NODE, SYN), Policy)
            .before(|world| kept(world, NODE, &[CLIENT]))
            .event(Egress, POD_TO_443),
    ]
}

/// `externalIPs`
fn named(world: &mut World, front: SocketAddr, behind: &[IpAddr]) {
    let behind: Vec<_> = behind.iter().map(|address| port(*address, 443)).collect();
    world.set_service(TCP, front, SERVICE_JUDGE_ADDRESS, &behind);
}

pub fn addresses_that_anybody_may_name() -> Vec<Row> {
    let to = |source, address, number| tcp(port(POD, source), port(address, number), SYN);
    vec![
        stop("only the backend is allowed", Egress, to(1, OUTSIDER, 443), DefaultDeny)
            .before(|world| named(world, port(OUTSIDER, 443), &[CLIENT]))
            .deny(Egress, OUTSIDER, TCP, 443)
            .after(|world| world.assert_entries(0)),
        stop("only the address is", Egress, to(2, CLIENT, 443), DefaultDeny)
            .before(|world| named(world, port(CLIENT, 443), &[STRANGER]))
            .deny(Egress, CLIENT, TCP, 443),
        pass("both are", Egress, to(2, CLIENT, 443), Policy)
            .before(|world| named(world, port(CLIENT, 443), &[CLIENT]))
            .event(Egress, POD_TO_443),
        pass("without backends: the address is", Egress, to(3, CLIENT, 443), Policy)
            .before(|world| named(world, port(CLIENT, 443), &[]))
            .event(Egress, POD_TO_443),
        pass("the pod's own node", Egress, to(4, NODE, 30_080), Node).before(|world| {
            let flags = PEER_LOCAL | PEER_NODE;
            world.sandbox.set_peer(PEERS, NODE, Peer { class: 0, flags }).unwrap();
            named(world, port(NODE, 30_080), &[CLIENT]);
        }),
        stop("hides no NodePort", Egress, to(5, NODE, 30_080), DefaultDeny)
            .before(|world| kept(world, EVERY_NODE, &[STRANGER]))
            .deny(Egress, NODE, TCP, 30_080),
        stop("nor without backends", Egress, to(6, NODE, 30_080), DefaultDeny)
            .before(|world| named(world, port(NODE, 30_080), &[]))
            .deny(Egress, NODE, TCP, 30_080),
        pass("that is allowed as well", Egress, to(6, NODE, 30_080), Policy)
            .before(|world| named(world, port(NODE, 30_080), &[CLIENT]))
            .before(|world| kept(world, EVERY_NODE, &[CLIENT]))
            .event(Egress, POD_TO_443),
    ]
}
