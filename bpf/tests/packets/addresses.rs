// SPDX-License-Identifier: Apache-2.0
//! Whose packets they are: flooded frames and forged sources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Enforcement;
use wardline_bpf::abi::Reason::{DefaultDeny, NoEndpoint, NotMine, Policy, Spoofed};
use wardline_bpf::frame::flag::SYN;
use wardline_bpf::frame::protocol::{TCP, UDP};
use wardline_bpf::frame::{tcp, udp};

use crate::row::{Row, pass, stop};
use crate::world::{ANY_UDP, CLIENT, CLIENT_TO_80, CLIENT6, IFINDEX, POD, POD_TO_443, POD6, port};

const OTHER_POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 11));
const OTHER_POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x11);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
    }
}

fn to(destination: IpAddr) -> Vec<u8> {
    udp(port(CLIENT, 1), port(destination, 9))
}

pub fn whose_packets() -> Vec<Row> {
    let mut broadcast = udp(port(CLIENT, 2), port(Ipv4Addr::new(10, 0, 0, 255).into(), 9));
    broadcast[0] = 0xff;
    vec![
        stop("unicast for another pod", Ingress, to(OTHER_POD), NotMine),
        stop(
            "unicast for another pod, IPv6",
            Ingress,
            udp(port(CLIENT6, 1), port(OTHER_POD6.into(), 9)),
            NotMine,
        ),
        stop("to nobody", Ingress, to(Ipv4Addr::UNSPECIFIED.into()), NotMine),
        pass("limited broadcast", Ingress, to(Ipv4Addr::BROADCAST.into()), Policy).event(Ingress, ANY_UDP),
        pass("multicast", Ingress, to(Ipv4Addr::new(224, 0, 0, 251).into()), Policy).event(Ingress, ANY_UDP),
        pass("broadcast of the subnet", Ingress, broadcast, Policy).event(Ingress, ANY_UDP),
        pass(
            "multicast, IPv6",
            Ingress,
            udp(port(CLIENT6, 1), port(ALL_NODES.into(), 9)),
            Policy,
        )
        .event(Ingress, ANY_UDP),
        pass(
            "link-local",
            Ingress,
            udp(port(CLIENT6, 1), port(LINK_LOCAL.into(), 9)),
            Policy,
        )
        .event(Ingress, ANY_UDP),
        pass(
            "found by the hash alone",
            Ingress,
            tcp(port(CLIENT, 3), port(POD, 80), SYN),
            Policy,
        )
        .before(|world| world.sandbox.vacate_near_endpoint(IFINDEX).unwrap())
        .event(Ingress, CLIENT_TO_80),
        stop("an interface that nobody knows", Ingress, to(POD), NoEndpoint)
            .before(|world| world.sandbox.remove_endpoint(IFINDEX).unwrap()),
        stop(
            "the same, from it",
            Egress,
            udp(port(POD, 1), port(CLIENT, 53)),
            NoEndpoint,
        ),
    ]
}

pub fn sources_of_the_pod() -> Vec<Row> {
    let from = |source: IpAddr| udp(port(source, 1), port(CLIENT, 53));
    let from6 = |source: Ipv6Addr| udp(port(source.into(), 1), port(CLIENT6, 53));
    vec![
        pass("its own", Egress, from(POD), Policy).event(Egress, POD_TO_443),
        pass("its own, IPv6", Egress, from6(v6(POD6)), Policy).event(Egress, POD_TO_443),
        pass("link-local", Egress, from6(LINK_LOCAL), Policy).event(Egress, POD_TO_443),
        stop("another pod's", Egress, from(OTHER_POD), Spoofed).deny(Egress, CLIENT, UDP, 0),
        stop("another pod's, IPv6", Egress, from6(OTHER_POD6), Spoofed).deny(Egress, CLIENT6, UDP, 0),
        stop("none", Egress, from(Ipv4Addr::UNSPECIFIED.into()), Spoofed).deny(Egress, CLIENT, UDP, 0),
        stop("none, IPv6", Egress, from6(NOBODY), Spoofed).deny(Egress, CLIENT6, UDP, 0),
        stop(
            "a forged source that policy would deny too",
            Egress,
            tcp(port(OTHER_POD, 1), port(CLIENT, 1), SYN),
            Spoofed,
        )
        .deny(Egress, CLIENT, TCP, 0),
    ]
}

pub fn forged_sources_are_watched() -> Vec<Row> {
    vec![
        pass(
            "passes where policy allows it, and is counted",
            Egress,
            udp(port(OTHER_POD, 1), port(CLIENT, 53)),
            Spoofed,
        )
        .before(|world| world.change_settings(|settings| settings.source_check = Enforcement::Audit.into()))
        .event(Egress, POD_TO_443)
        .after(|world| world.assert_entries(1)),
        pass("again", Egress, udp(port(OTHER_POD, 1), port(CLIENT, 53)), Spoofed),
        stop(
            "to forge a source is no way past policy",
            Egress,
            udp(port(OTHER_POD, 1), port(CLIENT, 54)),
            DefaultDeny,
        )
        .deny(Egress, CLIENT, UDP, 54),
        stop(
            "policy is enforced all the same",
            Egress,
            udp(port(POD, 1), port(CLIENT, 54)),
            DefaultDeny,
        )
        .deny(Egress, CLIENT, UDP, 54),
    ]
}

pub fn pods_without_an_address() -> Vec<Row> {
    vec![
        stop(
            "IPv6 to a pod that has none",
            Ingress,
            udp(port(CLIENT6, 1), port(POD6, 9)),
            NotMine,
        )
        .before(|world| world.forget_ipv6()),
        stop(
            "to no address is not to it",
            Ingress,
            udp(port(CLIENT6, 1), port(NOBODY.into(), 9)),
            NotMine,
        ),
        stop(
            "from no address is not from it",
            Egress,
            udp(port(NOBODY.into(), 1), port(CLIENT6, 53)),
            Spoofed,
        )
        .deny(Egress, CLIENT6, UDP, 0),
    ]
}
