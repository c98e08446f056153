// SPDX-License-Identifier: Apache-2.0
//! Frames to run the programs over, from the Ethernet header on. The family follows from the addresses. Checksums are
//! zero, since most programs do not look at them, until [`with_checksums`] computes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

/// IANA protocol numbers.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IGMP: u8 = 2;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
}

/// TCP flags.
pub mod flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// Ethertypes.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
}

/// Bytes before the IP header.
pub const ETHERNET_BYTES: usize = 14;

/// The same frame on its way back: the stations change places.
#[must_use]
pub fn turned_round(mut frame: Vec<u8>) -> Vec<u8> {
    let (destination, rest) = frame.split_at_mut(6);
    destination.swap_with_slice(&mut rest[..6]);
    frame
}

/// The same frame with the IP header's checksum and that of TCP, UDP, ICMP or `ICMPv6`, each computed over the whole
/// packet. Extension headers are not known here.
#[must_use]
pub fn with_checksums(mut frame: Vec<u8>) -> Vec<u8> {
    let is_ipv4 = frame[ETHERNET_BYTES] >> 4 == 4;
    let packet = &mut frame[ETHERNET_BYTES..];
    let (header, addresses, number) = if is_ipv4 {
        (usize::from(packet[0] & 15) * 4, 12..20, packet[9])
    } else {
        (40, 8..40, packet[6])
    };
    if is_ipv4 {
        packet[10..12].fill(0);
        let checksum = checksum(&packet[..header]);
        packet[10..12].copy_from_slice(&checksum);
    }
    let field = match number {
        protocol::TCP => header + 16,
        protocol::UDP => header + 6,
        protocol::ICMP | protocol::ICMPV6 => header + 2,
        _ => return frame,
    };
    packet[field..field + 2].fill(0);
    let mut summed = Vec::new();
    if number != protocol::ICMP {
        summed.extend(&packet[addresses]);
        summed.extend(length(packet.len() - header));
        summed.extend([0, number]);
    }
    summed.extend(&packet[header..]);
    let checksum = match checksum(&summed) {
        [0, 0] if number == protocol::UDP => [0xff, 0xff],
        checksum => checksum,
    };
    packet[field..field + 2].copy_from_slice(&checksum);
    frame
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    [high, low]
}

/// A frame between two stations.
pub fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IP packet around a payload of any protocol. The payload must be shorter than 64 KiB, and addresses of two
/// families are taken as IPv6.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, protocol, payload),
        _ => ipv6(to_ipv6(source), to_ipv6(destination), protocol, payload),
    }
}

fn to_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(length(20 + payload.len()));
    packet.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    ethernet(ethertype::IPV4, &packet)
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length(payload.len()));
    // Neighbour discovery is refused with any other hop limit.
    packet.extend([protocol, 255]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    ethernet(ethertype::IPV6, &packet)
}

fn ports(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat()
}

/// A TCP segment without data.
pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Vec<u8> {
    let mut segment = ports(source, destination);
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    ip(source.ip(), destination.ip(), protocol::TCP, &segment)
}

/// A datagram with four bytes of data.
pub fn udp(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut datagram = ports(source, destination);
    datagram.extend([0, 12, 0, 0, b'd', b'a', b't', b'a']);
    ip(source.ip(), destination.ip(), protocol::UDP, &datagram)
}

/// An SCTP packet that is only the common header.
pub fn sctp(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut packet = ports(source, destination);
    packet.extend([0; 8]);
    ip(source.ip(), destination.ip(), protocol::SCTP, &packet)
}

/// An ICMP or `ICMPv6` message, by the family.
pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, rest: &[u8]) -> Vec<u8> {
    let number = if source.is_ipv4() {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(rest);
    ip(source, destination, number, &message)
}

/// What an echo message asks or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    Request,
    Reply,
}

pub fn echo(source: IpAddr, destination: IpAddr, echo: Echo, id: u16) -> Vec<u8> {
    let kind = match (echo, source.is_ipv4()) {
        (Echo::Request, true) => 8,
        (Echo::Reply, true) => 0,
        (Echo::Request, false) => 128,
        (Echo::Reply, false) => 129,
    };
    icmp(source, destination, kind, &[id.to_be_bytes(), [0, 1]].concat())
}

/// "Destination unreachable" about the packet in `quoted`, a whole frame.
pub fn unreachable(source: IpAddr, destination: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let kind = if source.is_ipv4() { 3 } else { 1 };
    let packet = quoted.get(ETHERNET_BYTES..).unwrap_or_default();
    icmp(source, destination, kind, &[&[0; 4], packet].concat())
}

/// An ARP request.
pub fn arp(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1, 0x02, 0, 0, 0, 0, 1];
    message.extend(sender.octets());
    message.extend([0; 6]);
    message.extend(target.octets());
    ethernet(ethertype::ARP, &message)
}

/// A neighbour discovery message (types 133 to 137) about a target, with options. A redirect has a destination too.
pub fn neighbour(source: Ipv6Addr, destination: Ipv6Addr, kind: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let mut rest = vec![0; 4];
    match kind {
        133 => {}
        134 => rest.extend([0; 8]),
        137 => rest.extend([target.octets(), destination.octets()].concat()),
        _ => rest.extend(target.octets()),
    }
    rest.extend(options);
    icmp(source.into(), destination.into(), kind, &rest)
}

/// A part of a packet: the frame that carries these bytes of the IP payload of a whole frame. The last one ends where
/// the payload does, and says so.
pub fn fragment(whole: &[u8], id: u16, range: Range<usize>) -> Vec<u8> {
    let is_ipv4 = whole.get(ETHERNET_BYTES).is_some_and(|byte| byte >> 4 == 4);
    let header = ETHERNET_BYTES + if is_ipv4 { 20 } else { 40 };
    let (head, payload) = whole.split_at(header.min(whole.len()));
    let more = u16::from(range.end < payload.len());
    let offset = u16::try_from(range.start / 8).unwrap_or(u16::MAX);
    let part = payload.get(range).unwrap_or_default();
    let mut frame = head.to_vec();
    if is_ipv4 {
        frame[ETHERNET_BYTES + 2..][..2].copy_from_slice(&length(20 + part.len()));
        frame[ETHERNET_BYTES + 4..][..2].copy_from_slice(&id.to_be_bytes());
        frame[ETHERNET_BYTES + 6..][..2].copy_from_slice(&(more << 13 | offset).to_be_bytes());
        frame.extend(part);
        return frame;
    }
    let mut header = vec![0, 0];
    header.extend((offset << 3 | more).to_be_bytes());
    header.extend(u32::from(id).to_be_bytes());
    frame[ETHERNET_BYTES + 4..][..2].copy_from_slice(&length(part.len()));
    frame.extend(part);
    extended(&frame, &[(protocol::FRAGMENT, header)])
}

/// An IPv6 frame with these extension headers behind the IPv6 header, in their order; the first byte of each is
/// filled in.
pub fn extended(frame: &[u8], headers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    const NEXT: usize = ETHERNET_BYTES + 6;
    const PAYLOAD: usize = ETHERNET_BYTES + 40;
    let mut frame = frame.to_vec();
    for (kind, header) in headers.iter().rev() {
        let mut header = header.clone();
        header[0] = std::mem::replace(&mut frame[NEXT], *kind);
        frame.splice(PAYLOAD..PAYLOAD, header);
    }
    let payload = length(frame.len() - PAYLOAD);
    frame[ETHERNET_BYTES + 4..][..2].copy_from_slice(&payload);
    frame
}
