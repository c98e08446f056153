// SPDX-License-Identifier: Apache-2.0
//! Control of the link under a policy that denies everything: ARP, neighbour discovery, redirects, MLD and IGMP pass,
//! and what a pod has no right to say does not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Enforcement;
use wardline_bpf::abi::Reason::{DefaultDeny, ForgedNeighbour, Malformed, Neighbour, Policy, Spoofed};
use wardline_bpf::frame::protocol::{HOP_BY_HOP, ICMP, ICMPV6, IGMP};
use wardline_bpf::frame::{arp, extended, fragment, icmp, ip, neighbour};

use crate::malformed::{IP, bad6, set};
use crate::row::{Row, pass, stop};
use crate::world::{CLIENT, CLIENT_OTHER, CLIENT6, NODE, NODE6, POD, POD6, STRANGER6, World};

/// Of the hardware address 02:00:00:00:00:01, from which all frames come.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1);
/// Somebody else's.
const OTHER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 2);
const OTHER_POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x11);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_MLD_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
/// Nothing of the packet was read.
const UNREAD: IpAddr = IpAddr::V6(NOBODY);

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
    }
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => panic!("{address} is no IPv4 address"),
    }
}

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

pub fn neighbours() -> Vec<Row> {
    let (pod, client) = (v4(POD), v4(CLIENT));
    let (pod6, client6) = (v6(POD6), v6(CLIENT6));
    vec![
        pass("ARP to the pod", Ingress, arp(client, pod), Neighbour),
        pass("ARP of the pod", Egress, arp(pod, client), Neighbour),
        pass("an ARP probe", Egress, arp(Ipv4Addr::UNSPECIFIED, pod), Neighbour),
        stop("ARP for another's address", Egress, arp(client, pod), ForgedNeighbour).deny(
            Egress,
            Ipv6Addr::UNSPECIFIED.into(),
            0,
            0,
        ),
        pass(
            "solicitation to the pod",
            Ingress,
            neighbour(client6, pod6, SOLICITATION, pod6, &[]),
            Neighbour,
        ),
        pass(
            "router advertisement to the pod",
            Ingress,
            neighbour(LINK_LOCAL, ALL_NODES, ROUTER_ADVERTISEMENT, NOBODY, &[]),
            Neighbour,
        ),
        pass(
            "its hardware address is the frame's",
            Egress,
            neighbour(pod6, client6, SOLICITATION, client6, &[1, 1, 2, 0, 0, 0, 0, 1]),
            Neighbour,
        ),
        pass(
            "with a nonce",
            Egress,
            neighbour(NOBODY, ALL_NODES, SOLICITATION, pod6, &[14, 1, 1, 2, 3, 4, 5, 6]),
            Neighbour,
        ),
        pass(
            "solicitation of the pod",
            Egress,
            neighbour(pod6, client6, SOLICITATION, client6, &[]),
            Neighbour,
        ),
        pass(
            "advertisement of the pod",
            Egress,
            neighbour(pod6, client6, ADVERTISEMENT, pod6, &[]),
            Neighbour,
        ),
        pass(
            "advertisement of its link-local",
            Egress,
            neighbour(LINK_LOCAL, ALL_NODES, ADVERTISEMENT, LINK_LOCAL, &[]),
            Neighbour,
        ),
        pass(
            "detection of a duplicate",
            Egress,
            neighbour(NOBODY, ALL_NODES, SOLICITATION, pod6, &[]),
            Neighbour,
        ),
        pass(
            "router solicitation",
            Egress,
            neighbour(NOBODY, ALL_NODES, ROUTER_SOLICITATION, NOBODY, &[]),
            Neighbour,
        ),
    ]
}

/// Each hardware address makes one, and nobody speaks of another's.
pub fn forged_link_locals() -> Vec<Row> {
    let client6 = v6(CLIENT6);
    vec![
        stop(
            "advertisement of another's link-local",
            Egress,
            neighbour(LINK_LOCAL, ALL_NODES, ADVERTISEMENT, OTHER_LINK_LOCAL, &[]),
            ForgedNeighbour,
        )
        .deny(Egress, ALL_NODES.into(), ICMPV6, 0),
        stop(
            "solicitation from another's link-local",
            Egress,
            neighbour(OTHER_LINK_LOCAL, client6, SOLICITATION, client6, &[]),
            ForgedNeighbour,
        )
        .deny(Egress, CLIENT6, ICMPV6, 0),
        stop(
            "detection of another's link-local",
            Egress,
            neighbour(NOBODY, ALL_NODES, SOLICITATION, OTHER_LINK_LOCAL, &[]),
            ForgedNeighbour,
        )
        .deny(Egress, ALL_NODES.into(), ICMPV6, 0),
    ]
}

pub fn forged_neighbours() -> Vec<Row> {
    let (pod6, client6, stranger6) = (v6(POD6), v6(CLIENT6), v6(STRANGER6));
    vec![
        stop(
            "detection of another's address",
            Egress,
            neighbour(NOBODY, ALL_NODES, SOLICITATION, client6, &[]),
            ForgedNeighbour,
        )
        .deny(Egress, ALL_NODES.into(), ICMPV6, 0),
        stop(
            "advertisement for another's address",
            Egress,
            neighbour(pod6, client6, ADVERTISEMENT, stranger6, &[]),
            ForgedNeighbour,
        )
        .deny(Egress, CLIENT6, ICMPV6, 0),
        stop(
            "advertisement from another's address",
            Egress,
            neighbour(stranger6, client6, ADVERTISEMENT, pod6, &[]),
            Spoofed,
        )
        .deny(Egress, CLIENT6, ICMPV6, 0),
        stop(
            "advertisement from no address",
            Egress,
            neighbour(NOBODY, LINK_LOCAL, ADVERTISEMENT, pod6, &[]),
            ForgedNeighbour,
        )
        .deny(Egress, LINK_LOCAL.into(), ICMPV6, 0),
        stop(
            "a pod that plays the router",
            Egress,
            neighbour(LINK_LOCAL, ALL_ROUTERS, ROUTER_ADVERTISEMENT, NOBODY, &[]),
            ForgedNeighbour,
        )
        .deny(Egress, ALL_ROUTERS.into(), ICMPV6, 0),
        stop(
            "a redirect of a pod",
            Egress,
            neighbour(LINK_LOCAL, OTHER_POD6, REDIRECT, stranger6, &[]),
            ForgedNeighbour,
        )
        .deny(Egress, OTHER_POD6.into(), ICMPV6, 0),
        stop(
            "another's hardware address",
            Egress,
            neighbour(pod6, client6, ADVERTISEMENT, pod6, &[2, 1, 2, 0, 0, 0, 0, 9]),
            ForgedNeighbour,
        )
        .deny(Egress, CLIENT6, ICMPV6, 0),
        stop(
            "another's hardware address behind a nonce",
            Egress,
            neighbour(
                pod6,
                client6,
                SOLICITATION,
                client6,
                &[14, 1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 9],
            ),
            ForgedNeighbour,
        )
        .deny(Egress, CLIENT6, ICMPV6, 0),
        stop(
            "another's hardware address in ARP",
            Egress,
            set(arp(v4(POD), v4(CLIENT)), IP + 13, 9),
            ForgedNeighbour,
        )
        .deny(Egress, UNREAD, 0, 0),
        stop(
            "where forged sources are only watched for, these are not",
            Egress,
            neighbour(stranger6, client6, ADVERTISEMENT, stranger6, &[]),
            ForgedNeighbour,
        )
        .before(watch)
        .deny(Egress, CLIENT6, ICMPV6, 0),
        stop("nor is ARP", Egress, arp(v4(CLIENT), v4(POD)), ForgedNeighbour).deny(Egress, UNREAD, 0, 0),
    ]
}

fn watch(world: &mut World) {
    world.change_settings(|settings| settings.source_check = Enforcement::Audit.into());
}

fn redirect(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => neighbour(source, destination, REDIRECT, source, &[]),
        _ => icmp(source, destination, 5, &[0; 32]),
    }
}

pub fn redirects() -> Vec<Row> {
    vec![
        pass("of the node", Ingress, redirect(NODE, POD), Neighbour).sent_by_node(),
        pass("of the node, IPv6", Ingress, redirect(NODE6, POD6), Neighbour).sent_by_node(),
        stop("in the node's name", Ingress, redirect(NODE, POD), ForgedNeighbour).deny(Ingress, NODE, ICMP, 0),
        stop(
            "in the node's name, IPv6",
            Ingress,
            redirect(NODE6, POD6),
            ForgedNeighbour,
        )
        .deny(Ingress, NODE6, ICMPV6, 0),
        stop("of a client", Ingress, redirect(CLIENT, POD), ForgedNeighbour).deny(Ingress, CLIENT, ICMP, 0),
        stop("of the pod", Egress, redirect(POD, CLIENT), ForgedNeighbour).deny(Egress, CLIENT, ICMP, 0),
    ]
}

const QUERY: u8 = 130;
const REPORT: u8 = 131;
const DONE: u8 = 132;
const REPORT_V2: u8 = 143;

/// A router alert, and padding.
fn alert() -> (u8, Vec<u8>) {
    (HOP_BY_HOP, vec![0, 0, 5, 2, 0, 0, 1, 0])
}

fn mld(source: Ipv6Addr, destination: Ipv6Addr, kind: u8) -> Vec<u8> {
    let message = icmp(source.into(), destination.into(), kind, &[0; 20]);
    set(extended(&message, &[alert()]), IP + 7, 1)
}

pub fn groups() -> Vec<Row> {
    let padded_first = set(
        extended(
            &icmp(NOBODY.into(), ALL_MLD_ROUTERS.into(), REPORT_V2, &[0; 4]),
            &[(HOP_BY_HOP, vec![0, 0, 1, 0, 5, 2, 0, 0])],
        ),
        IP + 7,
        1,
    );
    let to_pod = |message| set(message, IP + 7, 1);
    let igmp = |kind| ip(POD, GROUP.into(), IGMP, &[kind, 0, 0, 0, 224, 0, 0, 251]);
    let igmp_query = ip(CLIENT, GROUP.into(), IGMP, &[0x11, 0, 0, 0, 0, 0, 0, 0]);
    vec![
        pass(
            "a report",
            Egress,
            mld(LINK_LOCAL, ALL_MLD_ROUTERS, REPORT_V2),
            Neighbour,
        ),
        pass(
            "a report of version 1",
            Egress,
            mld(LINK_LOCAL, ALL_NODES, REPORT),
            Neighbour,
        ),
        pass(
            "before there is an address",
            Egress,
            mld(NOBODY, ALL_MLD_ROUTERS, REPORT_V2),
            Neighbour,
        ),
        pass("padding first", Egress, padded_first, Neighbour),
        pass("leaving", Egress, mld(LINK_LOCAL, ALL_ROUTERS, DONE), Neighbour),
        pass(
            "a query to the pod",
            Ingress,
            mld(LINK_LOCAL, ALL_NODES, QUERY),
            Neighbour,
        ),
        pass(
            "another's report",
            Ingress,
            mld(LINK_LOCAL, ALL_MLD_ROUTERS, REPORT_V2),
            Neighbour,
        ),
        stop(
            "a pod that plays the querier",
            Egress,
            mld(LINK_LOCAL, ALL_NODES, QUERY),
            ForgedNeighbour,
        )
        .deny(Egress, ALL_NODES.into(), ICMPV6, 0),
        pass("an IGMP report", Egress, to_ttl_1(igmp(0x22)), Neighbour),
        pass("an IGMP leave", Egress, to_ttl_1(igmp(0x17)), Neighbour),
        pass("an IGMP query to the pod", Ingress, to_ttl_1(igmp_query), Neighbour),
        stop(
            "an IGMP query of the pod",
            Egress,
            to_ttl_1(igmp(0x11)),
            ForgedNeighbour,
        )
        .deny(Egress, GROUP.into(), IGMP, 0),
        stop(
            "IGMP that leaves the link is judged like any",
            Egress,
            igmp(0x22),
            DefaultDeny,
        )
        .deny(Egress, GROUP.into(), IGMP, 0),
        pass(
            "IGMP of another kind too",
            Ingress,
            to_ttl_1(ip(CLIENT, POD, IGMP, &[0x13, 0, 0, 0, 0, 0, 0, 0])),
            Policy,
        )
        .event(Ingress, CLIENT_OTHER),
        bad6(
            "a query from beyond the link",
            to_pod(extended(&query_of_client(), &[alert()])),
            ICMPV6,
        ),
    ]
}

fn to_ttl_1(frame: Vec<u8>) -> Vec<u8> {
    set(frame, IP + 8, 1)
}

/// Queries come from link-local addresses.
fn query_of_client() -> Vec<u8> {
    icmp(CLIENT6, ALL_NODES.into(), QUERY, &[0; 20])
}

pub fn bad_group_messages() -> Vec<Row> {
    let bad = |name, frame| stop(name, Egress, frame, Malformed).deny(Egress, ALL_MLD_ROUTERS.into(), ICMPV6, 0);
    let plain = || icmp(LINK_LOCAL.into(), ALL_MLD_ROUTERS.into(), REPORT_V2, &[0; 4]);
    let no_alert = extended(&plain(), &[(HOP_BY_HOP, vec![0, 0, 1, 4, 0, 0, 0, 0])]);
    vec![
        bad("a report with another hop limit", extended(&plain(), &[alert()])),
        bad("without a hop-by-hop header", set(plain(), IP + 7, 1)),
        bad("without a router alert", set(no_alert, IP + 7, 1)),
        bad(
            "from an address of the pod that others know",
            mld(v6(POD6), ALL_MLD_ROUTERS, REPORT_V2),
        ),
        bad(
            "a report of version 1, cut short",
            set(
                extended(
                    &icmp(LINK_LOCAL.into(), ALL_MLD_ROUTERS.into(), REPORT, &[0; 16]),
                    &[alert()],
                ),
                IP + 7,
                1,
            ),
        ),
        stop(
            "neighbour discovery in a fragment",
            Ingress,
            fragment(
                &neighbour(v6(CLIENT6), v6(POD6), SOLICITATION, v6(POD6), &[0; 8]),
                1,
                0..24,
            ),
            Malformed,
        )
        .deny(Ingress, CLIENT6, ICMPV6, 0),
        stop(
            "an option of no length",
            Egress,
            neighbour(
                v6(POD6),
                v6(CLIENT6),
                SOLICITATION,
                v6(CLIENT6),
                &[1, 0, 2, 0, 0, 0, 0, 1],
            ),
            Malformed,
        )
        .deny(Egress, CLIENT6, ICMPV6, 0),
        stop(
            "an option that is cut",
            Egress,
            neighbour(v6(POD6), v6(CLIENT6), SOLICITATION, v6(CLIENT6), &[1, 1, 2, 0]),
            Malformed,
        )
        .deny(Egress, CLIENT6, ICMPV6, 0),
        stop(
            "more options than there are",
            Egress,
            neighbour(
                v6(POD6),
                v6(CLIENT6),
                SOLICITATION,
                v6(CLIENT6),
                &[14, 1, 0, 0, 0, 0, 0, 0].repeat(5),
            ),
            Malformed,
        )
        .deny(Egress, CLIENT6, ICMPV6, 0),
    ]
}
