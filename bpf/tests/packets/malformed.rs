// SPDX-License-Identifier: Apache-2.0
//! Headers that are cut short or contradict themselves, and what is not handled.

use std::net::{IpAddr, Ipv6Addr};

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{Established, Ethertype, Malformed, MappedAddress, Policy, Vlan};
use wardline_bpf::frame::flag::{ACK, FIN, RST, SYN};
use wardline_bpf::frame::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};
use wardline_bpf::frame::{ETHERNET_BYTES, Echo, arp, echo, ethernet, icmp, neighbour, sctp, tcp, udp, unreachable};

use crate::harness::Handover;
use crate::row::{Row, pass, stop};
use crate::world::{ANY_UDP, CLIENT, CLIENT_TO_80, CLIENT6, POD, POD6, port};

/// Nothing of the packet was read.
const UNREAD: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// Offsets in a frame.
pub const IP: usize = ETHERNET_BYTES;
pub const L4: usize = IP + 20;
pub const L4_IPV6: usize = IP + 40;

pub fn edit(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut frame);
    frame
}

pub fn set(frame: Vec<u8>, offset: usize, byte: u8) -> Vec<u8> {
    edit(frame, |frame| frame[offset] = byte)
}

fn cut(frame: Vec<u8>, bytes: usize) -> Vec<u8> {
    edit(frame, |frame| frame.truncate(bytes))
}

/// Cuts an IPv4 or IPv6 packet and its length field alike.
pub fn shorten(frame: Vec<u8>, bytes: usize) -> Vec<u8> {
    let ipv4 = frame[IP] >> 4 == 4;
    let (field, length) = if ipv4 {
        (IP + 2, bytes - IP)
    } else {
        (IP + 4, bytes - L4_IPV6)
    };
    edit(cut(frame, bytes), |frame| {
        frame[field..field + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    })
}

fn syn() -> Vec<u8> {
    tcp(port(CLIENT, 1), port(POD, 80), SYN)
}

fn syn6() -> Vec<u8> {
    tcp(port(CLIENT6, 1), port(POD6, 80), SYN)
}

fn cut_to(bytes: usize) -> Handover {
    Handover::Cut(u32::try_from(bytes).unwrap())
}

fn unread(name: &'static str, frame: Vec<u8>, reason: wardline_bpf::abi::Reason) -> Row {
    stop(name, Ingress, frame, reason).deny(Ingress, UNREAD, 0, 0)
}

pub fn bad(name: &'static str, frame: Vec<u8>, protocol: u8) -> Row {
    stop(name, Ingress, frame, Malformed).deny(Ingress, CLIENT, protocol, 0)
}

pub fn bad6(name: &'static str, frame: Vec<u8>, protocol: u8) -> Row {
    stop(name, Ingress, frame, Malformed).deny(Ingress, CLIENT6, protocol, 0)
}

pub fn ethernet_and_arp() -> Vec<Row> {
    let request = || arp("10.0.0.20".parse().unwrap(), "10.0.0.10".parse().unwrap());
    vec![
        unread("a VLAN tag", ethernet(0x8100, &[0; 46]), Vlan),
        unread("a VLAN tag beside the frame", syn(), Vlan).by(Handover::Tag),
        unread("a service VLAN tag", ethernet(0x88a8, &[0; 46]), Vlan),
        unread(
            "an ethertype that is not handled",
            ethernet(0x88cc, &[0; 46]),
            Ethertype,
        ),
        unread(
            "a length in place of an ethertype",
            ethernet(0x0026, &[0; 46]),
            Ethertype,
        ),
        unread("ARP, cut short", cut(request(), IP + 27), Malformed),
        unread("ARP of other hardware", set(request(), IP + 1, 6), Malformed),
        unread("ARP for another protocol", set(request(), IP + 2, 0x86), Malformed),
        unread("ARP with long hardware addresses", set(request(), IP + 4, 8), Malformed),
        unread(
            "ARP with long protocol addresses",
            set(request(), IP + 5, 16),
            Malformed,
        ),
    ]
}

pub fn ipv4() -> Vec<Row> {
    let options = edit(syn(), |frame| {
        frame.splice(L4..L4, [1; 8]);
        frame[IP] = 0x47;
        frame[IP + 3] += 8;
    });
    let all_options = edit(syn(), |frame| {
        frame.splice(L4..L4, [1; 40]);
        frame[IP] = 0x4f;
        frame[IP + 3] += 40;
        frame[L4 + 41] = 2;
    });
    let with_option = |option: [u8; 4]| {
        edit(syn(), |frame| {
            frame.splice(L4..L4, option);
            frame[IP] = 0x46;
            frame[IP + 3] += 4;
        })
    };
    vec![
        unread("nothing behind Ethernet", syn(), Malformed).by(cut_to(IP)),
        unread("one byte", syn(), Malformed).by(cut_to(IP + 1)),
        unread("cut in the header", syn(), Malformed).by(cut_to(L4 - 1)),
        unread("another version", set(syn(), IP, 0x65), Malformed),
        unread("a header of less than 20 bytes", set(syn(), IP, 0x44), Malformed),
        unread("options beyond the packet", set(syn(), IP, 0x4f), Malformed),
        unread("longer than the frame", set(syn(), IP + 3, 41), Malformed),
        unread("shorter than its header", set(syn(), IP + 3, 19), Malformed),
        unread(
            "no length",
            edit(syn(), |frame| frame[IP + 2..IP + 4].fill(0)),
            Malformed,
        ),
        pass("options", Ingress, options, Policy).event(Ingress, CLIENT_TO_80),
        pass(
            "an option with data",
            Ingress,
            with_option([0x94, 4, 0, 0]),
            Established,
        ),
        bad("a loose source route", with_option([0x83, 3, 4, 0]), 0),
        bad(
            "a strict source route behind another option",
            with_option([1, 0x89, 3, 4]),
            0,
        ),
        bad("an option of no length", with_option([0x94, 0, 0x83, 3]), 0),
        pass(
            "behind the last option nothing is one",
            Ingress,
            with_option([0, 0x83, 3, 4]),
            Established,
        ),
        pass("as many options as there can be", Ingress, all_options, Policy).event(Ingress, CLIENT_TO_80),
        pass(
            "a padded frame",
            Ingress,
            edit(tcp(port(CLIENT, 3), port(POD, 80), SYN), |frame| frame.extend([0; 6])),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80),
    ]
}

pub fn ipv6() -> Vec<Row> {
    let mapped: IpAddr = IpAddr::V6("::ffff:10.0.0.20".parse().unwrap());
    vec![
        unread("cut in the header", syn6(), Malformed).by(cut_to(L4_IPV6 - 1)),
        unread("another version", set(syn6(), IP, 0x40), Malformed),
        unread("longer than the frame", set(syn6(), IP + 5, 21), Malformed),
        bad6("no payload", edit(syn6(), |frame| frame[IP + 4..IP + 6].fill(0)), TCP),
        stop(
            "a mapped source",
            Ingress,
            udp(port(mapped, 1), port(POD6, 2)),
            MappedAddress,
        )
        .deny(Ingress, CLIENT, 0, 0),
        stop(
            "a mapped destination",
            Egress,
            udp(port(POD6, 1), port(mapped, 2)),
            MappedAddress,
        )
        .deny(Egress, CLIENT, 0, 0),
        pass(
            "a padded frame",
            Ingress,
            edit(syn6(), |frame| frame.extend([0; 6])),
            Policy,
        )
        .event(Ingress, CLIENT_TO_80),
    ]
}

fn segment(flags: u8) -> Vec<u8> {
    tcp(port(CLIENT, 1), port(POD, 80), flags)
}

pub fn tcp_headers() -> Vec<Row> {
    vec![
        bad("cut in the header", shorten(syn(), L4 + 19), TCP),
        bad("no header at all", shorten(syn(), L4), TCP),
        bad("a header that the packet's length cuts", set(syn(), IP + 3, 39), TCP),
        bad("a header of less than 20 bytes", set(syn(), L4 + 12, 0x40), TCP),
        bad("options beyond the packet", set(syn(), L4 + 12, 0x60), TCP),
        bad("opened and closed at once", segment(SYN | FIN), TCP),
        bad("opened and reset at once", segment(SYN | RST | ACK), TCP),
        bad6("cut in the header, IPv6", shorten(syn6(), L4_IPV6 + 19), TCP),
        bad6("options beyond the packet, IPv6", set(syn6(), L4_IPV6 + 12, 0x60), TCP),
        stop(
            "from the pod",
            Egress,
            shorten(tcp(port(POD, 1), port(CLIENT, 443), SYN), L4 + 8),
            Malformed,
        )
        .deny(Egress, CLIENT, TCP, 0),
    ]
}

pub fn udp_and_sctp() -> Vec<Row> {
    let datagram = || udp(port(CLIENT, 1), port(POD, 53));
    vec![
        bad("UDP, cut in the header", shorten(datagram(), L4 + 7), UDP),
        bad("UDP, shorter than its header", set(datagram(), L4 + 5, 7), UDP),
        bad("UDP, longer than the packet", set(datagram(), L4 + 5, 13), UDP),
        bad6(
            "UDP over IPv6, without a length",
            set(udp(port(CLIENT6, 1), port(POD6, 53)), L4_IPV6 + 5, 0),
            UDP,
        ),
        bad(
            "SCTP, cut in the header",
            shorten(sctp(port(CLIENT, 1), port(POD, 53)), L4 + 11),
            SCTP,
        ),
        bad6(
            "SCTP over IPv6, cut",
            shorten(sctp(port(CLIENT6, 1), port(POD6, 53)), L4_IPV6 + 4),
            SCTP,
        ),
        pass(
            "UDP without data",
            Ingress,
            set(shorten(datagram(), L4 + 8), L4 + 5, 8),
            Policy,
        )
        .event(Ingress, ANY_UDP),
    ]
}

pub fn icmp_messages() -> Vec<Row> {
    vec![
        bad(
            "ICMP, cut in the header",
            shorten(echo(CLIENT, POD, Echo::Request, 1), L4 + 7),
            ICMP,
        ),
        bad6(
            "ICMPv6, cut in the header",
            shorten(echo(CLIENT6, POD6, Echo::Request, 1), L4_IPV6 + 7),
            ICMPV6,
        ),
    ]
}

pub fn neighbour_messages() -> Vec<Row> {
    let source = "fd00::20".parse().unwrap();
    let pod = "fd00::10".parse().unwrap();
    let message = |kind| neighbour(source, pod, kind, pod, &[]);
    vec![
        bad6("router solicitation, cut", shorten(message(133), L4_IPV6 + 7), ICMPV6),
        bad6("router advertisement, cut", shorten(message(134), L4_IPV6 + 15), ICMPV6),
        bad6("solicitation, cut", shorten(message(135), L4_IPV6 + 23), ICMPV6),
        bad6("advertisement, cut", shorten(message(136), L4_IPV6 + 23), ICMPV6),
        bad6("redirect, cut", shorten(message(137), L4_IPV6 + 39), ICMPV6),
        bad6("from beyond the link", set(message(135), IP + 7, 254), ICMPV6),
        bad6("a code that there is not", set(message(135), L4_IPV6 + 1, 1), ICMPV6),
    ]
}

pub fn quoted_packets() -> Vec<Row> {
    let quoted = tcp(port(POD, 80), port(CLIENT, 1), ACK);
    let quoted6 = tcp(port(POD6, 80), port(CLIENT6, 1), ACK);
    let error = || unreachable(CLIENT, POD, &quoted);
    let error6 = || unreachable(CLIENT6, POD6, &quoted6);
    let (inner, inner6) = (L4 + 8, L4_IPV6 + 8);
    let mapped: IpAddr = IpAddr::V6("::ffff:10.0.0.20".parse().unwrap());
    let quoted_mapped = tcp(port(POD6, 80), port(mapped, 1), ACK);
    vec![
        bad("nothing quoted", icmp(CLIENT, POD, 3, &[0; 4]), ICMP),
        bad("quoted header cut", shorten(error(), inner + 19), ICMP),
        bad("quoted ports cut", shorten(error(), inner + 27), ICMP),
        bad("another version quoted", set(error(), inner, 0x65), ICMP),
        bad("a short header quoted", set(error(), inner, 0x44), ICMP),
        bad("quoted options beyond the packet", set(error(), inner, 0x4f), ICMP),
        bad6("nothing quoted, IPv6", icmp(CLIENT6, POD6, 1, &[0; 4]), ICMPV6),
        bad6("quoted header cut, IPv6", shorten(error6(), inner6 + 39), ICMPV6),
        bad6("quoted ports cut, IPv6", shorten(error6(), inner6 + 47), ICMPV6),
        bad6("another version quoted, IPv6", set(error6(), inner6, 0x45), ICMPV6),
        stop(
            "a mapped address quoted",
            Ingress,
            unreachable(CLIENT6, POD6, &quoted_mapped),
            MappedAddress,
        )
        .deny(Ingress, CLIENT6, ICMPV6, 0),
    ]
}
