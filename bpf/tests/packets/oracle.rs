// SPDX-License-Identifier: Apache-2.0
//! A second opinion on single packets, for the fuzzer: a parser written from the RFCs, and the policies of
//! [`crate::world`] as a few lines. It says what must not pass; what it lets pass may still be dropped.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wardline_bpf::abi::Direction;

use crate::node::{TCP_PORTS, UDP_PORTS};
use crate::row::Origin;
use crate::services::{SERVICE, SERVICE6};
use crate::world::{CLIENT, CLIENT6, NODE, NODE6, POD, POD6};

/// Protocol, pod, remote, and their ports.
type Flow = (u8, IpAddr, IpAddr, u16, u16);

/// Direction, pod, remote, and the datagram's id.
type Datagram = (Direction, IpAddr, IpAddr, u32);

/// What is known of the flows so far.
#[derive(Debug, Default)]
pub struct Oracle {
    allowed: HashSet<Flow>,
    /// Those of them that no rule allows: what comes in on them has to be the node's.
    of_node: HashSet<Flow>,
    /// Where the data of the first fragments that passed ended, and whose they are.
    fragments: HashMap<Datagram, Vec<(usize, Flow)>>,
}

struct Fragment {
    id: u32,
    offset: usize,
    bytes: usize,
}

struct Packet<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    hop_limit: u8,
    fragment: Option<Fragment>,
    payload: &'a [u8],
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// RFC 791. None: malformed.
fn ipv4(packet: &[u8]) -> Option<Packet<'_>> {
    let header = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(be16(packet, 2)?);
    if packet[0] >> 4 != 4 || header < 20 || total < header {
        return None;
    }
    let address = |at| Some(IpAddr::V4(Ipv4Addr::from_bits(be32(packet, at)?)));
    if has_source_route(packet.get(20..header)?) {
        return None;
    }
    let flags = be16(packet, 6)?;
    let payload = packet.get(header..total)?;
    let fragment = Fragment {
        id: u32::from(be16(packet, 4)?),
        offset: usize::from(flags & 0x1fff) * 8,
        bytes: payload.len(),
    };
    Some(Packet {
        source: address(12)?,
        destination: address(16)?,
        protocol: packet[9],
        hop_limit: packet[8],
        fragment: (flags & 0x3fff != 0).then_some(fragment),
        payload,
    })
}

/// RFC 791: kinds 0 and 1 are single bytes, all others say how long they are. What contradicts itself counts as one.
fn has_source_route(mut options: &[u8]) -> bool {
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => return false,
            (1, _) => rest,
            (131 | 137, _) | (_, [] | [0 | 1, ..]) => return true,
            (_, [length, ..]) => options.get(usize::from(*length)..).unwrap_or_default(),
        };
    }
    false
}

/// RFC 8200, with all headers before the transport's.
fn ipv6(packet: &[u8]) -> Option<Packet<'_>> {
    let address = |at: usize| {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    let mut payload = packet.get(40..40 + usize::from(be16(packet, 4)?))?;
    let (mut protocol, mut fragment) = (packet[6], None);
    if packet[0] >> 4 != 6 {
        return None;
    }
    while let 0 | 43 | 44 | 51 | 60 = protocol {
        let length = usize::from(*payload.get(1)?);
        let bytes = match protocol {
            43 if payload[2..4] != [payload[2], 0] || payload[2] == 0 => return None,
            44 => 8,
            51 => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        if protocol == 44 && be16(payload, 2)? & 0xfff9 != 0 {
            let offset = usize::from(be16(payload, 2)? & 0xfff8);
            let id = be32(payload, 4)?;
            let bytes = payload.len() - 8;
            fragment = Some(Fragment { id, offset, bytes });
        }
        protocol = payload[0];
        payload = payload.get(bytes..)?;
        if fragment.as_ref().is_some_and(|fragment| fragment.offset > 0) {
            break;
        }
    }
    Some(Packet {
        source: address(8)?,
        destination: address(24)?,
        protocol,
        hop_limit: packet[7],
        fragment,
        payload,
    })
}

/// What the pod's policies say of a new flow.
fn allows(direction: Direction, remote: IpAddr, protocol: u8, port: u16) -> bool {
    let is_client = [CLIENT, CLIENT6].contains(&remote);
    let is_outside = matches!(remote, IpAddr::V4(v4) if v4.octets()[..3] == [198, 51, 100]);
    let has_ports = matches!(protocol, 6 | 17 | 132);
    match direction {
        Direction::Ingress => {
            protocol == 17
                || (protocol == 6 && port == 9000)
                || (is_client && (protocol != 6 || port == 80 || (8000..8016).contains(&port)))
                || (is_outside && protocol == 6 && port == 80)
        }
        Direction::Egress => {
            ([NODE, NODE6].contains(&remote) && is_there(remote, protocol, port))
                || (is_client && (!has_ports || matches!((protocol, port), (6, 443) | (17, 53))))
        }
    }
}

/// Where the node has a socket; to an echo's request it answers itself.
fn is_there(node: IpAddr, protocol: u8, port: u16) -> bool {
    match protocol {
        6 => TCP_PORTS.contains(&port),
        17 => UDP_PORTS.contains(&port),
        1 | 58 => node.is_ipv4() == (protocol == 1) && port > 0,
        _ => false,
    }
}

/// TCP in mid-stream to a Service has a backend already: any of those that [`crate::fuzz`] puts behind it.
fn allows_midstream(direction: Direction, remote: IpAddr, port: u16) -> bool {
    match (direction, remote, port) {
        (Direction::Egress, SERVICE, 80) => allows(direction, CLIENT, 6, 443),
        (Direction::Egress, SERVICE6, 80) => allows(direction, CLIENT6, 6, 443),
        _ => allows(direction, remote, 6, port),
    }
}

/// Where the first part of a datagram to `remote` may have gone: a flow to a Service that was open in mid-stream is not
/// translated, and one that takes its place is, or the other way round.
fn originals(remote: IpAddr) -> Vec<IpAddr> {
    match remote {
        SERVICE => vec![SERVICE, CLIENT, POD],
        SERVICE6 => vec![SERVICE6, CLIENT6],
        CLIENT => vec![CLIENT, SERVICE],
        CLIENT6 => vec![CLIENT6, SERVICE6],
        other => vec![other],
    }
}

impl Oracle {
    /// Whether a frame that passed may have: as the pod receives it from the network, or the network from the pod.
    pub fn permits(&mut self, direction: Direction, frame: &[u8], origin: Origin) -> Option<()> {
        let of_node = origin == Origin::Node;
        let packet = match be16(frame, 12)? {
            0x0806 => return permits_arp(direction, frame),
            0x0800 => ipv4(&frame[14..])?,
            0x86dd => ipv6(&frame[14..])?,
            _ => return None,
        };
        let (pod, remote) = match direction {
            Direction::Ingress => (packet.destination, packet.source),
            Direction::Egress => (packet.source, packet.destination),
        };
        if is_link_control(direction, frame, &packet, of_node) {
            return Some(());
        }
        let is_own = |pod: &IpAddr| [POD, POD6].contains(pod) || is_link_local(pod);
        if direction == Direction::Egress && !is_own(&pod) {
            return None;
        }
        if let Some(part) = packet.fragment.as_ref().filter(|part| part.offset > 0) {
            let is_behind = |(end, _): &(usize, Flow)| part.offset >= *end;
            return originals(remote)
                .iter()
                .filter_map(|remote| self.fragments.get(&(direction, pod, *remote, part.id)))
                .any(|firsts| firsts.iter().any(is_behind))
                .then_some(());
        }
        let (flow, is_new) = flow_of(direction, pod, remote, &packet)?;
        let (own, other) = match direction {
            Direction::Ingress => (flow.3, flow.4),
            Direction::Egress => (flow.4, flow.3),
        };
        let is_node = [NODE, NODE6].contains(&remote);
        let is_from_node = direction == Direction::Ingress && is_node && of_node;
        let is_to_itself = pod == remote && (direction == Direction::Egress || origin == Origin::Pod);
        let is_admitted =
            allows(direction, remote, packet.protocol, own) || (!is_new && allows_midstream(direction, remote, own));
        // No rule of the pod's egress is about the node.
        let is_by_rule = is_to_itself || (is_admitted && !(is_node && direction == Direction::Egress));
        let is_allowed = is_by_rule || is_admitted || is_from_node;
        // In mid-stream either direction may allow it; that admits nothing else, and masqueraded traffic is not the node's.
        let may_be_the_nodes = is_node && direction == Direction::Ingress;
        let passes_by = !(is_new || may_be_the_nodes) && allows_midstream(direction.opposite(), remote, other);
        let is_of_its_peer = |flow: &Flow| direction == Direction::Egress || of_node || !self.of_node.contains(flow);
        let is_known = (self.allowed.contains(&flow) && is_of_its_peer(&flow))
            || self.is_about_known(direction, &packet, pod, remote, is_of_its_peer);
        if !is_allowed && !is_known && !passes_by {
            return None;
        }
        if is_allowed && !is_known {
            let flow = opened_by(flow, &packet);
            self.allowed.insert(flow);
            if is_by_rule {
                self.of_node.remove(&flow);
            } else {
                self.of_node.insert(flow);
            }
        }
        if let Some(part) = packet.fragment {
            let firsts = self.fragments.entry((direction, pod, remote, part.id)).or_default();
            firsts.push((part.bytes, flow));
        }
        Some(())
    }

    /// An ICMP error about a packet of a flow that is allowed.
    fn is_about_known(
        &self,
        direction: Direction,
        packet: &Packet<'_>,
        pod: IpAddr,
        remote: IpAddr,
        is_of_its_peer: impl Fn(&Flow) -> bool,
    ) -> bool {
        let quoted = packet.payload.get(8..).unwrap_or_default();
        let is_error = match packet.protocol {
            1 => matches!(packet.payload.first(), Some(3 | 11 | 12)),
            58 => matches!(packet.payload.first(), Some(1..=4)),
            _ => false,
        };
        is_error
            && self.allowed.iter().any(|flow| {
                let is_to_sender = direction == Direction::Ingress || flow.2 == remote;
                flow.1 == pod && is_to_sender && is_of_its_peer(flow) && quotes(quoted, direction, flow)
            })
    }
}

/// Whether the bytes hold a packet of the flow that the receiver of an error sent: its addresses, and its ports behind
/// them.
fn quotes(bytes: &[u8], direction: Direction, (protocol, pod, remote, pod_port, remote_port): &Flow) -> bool {
    let octets = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut ends = [
        (octets(pod), pod_port.to_be_bytes()),
        (octets(remote), remote_port.to_be_bytes()),
    ];
    if direction == Direction::Egress {
        ends.reverse();
    }
    let [(source, source_port), (destination, destination_port)] = ends;
    let addresses = [source, destination].concat();
    let ports = [source_port, destination_port].concat();
    let has_ports = matches!(protocol, 6 | 17 | 132);
    (0..bytes.len()).any(|at| {
        let behind = bytes[at..].strip_prefix(&addresses[..]);
        behind.is_some_and(|behind| !has_ports || behind.windows(4).any(|at| at == ports))
    })
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80)
}

/// The flow, and whether the packet can only be its first. None: the transport header is not whole.
fn flow_of(direction: Direction, pod: IpAddr, remote: IpAddr, packet: &Packet<'_>) -> Option<(Flow, bool)> {
    let payload = packet.payload;
    let is_first = packet.fragment.is_some();
    let (source, destination, is_new) = match packet.protocol {
        6 => {
            let header = usize::from(payload.get(12)? >> 4) * 4;
            let flags = payload.get(13)?;
            if header < 20 || header > payload.len() || (flags & 2 != 0 && flags & 5 != 0) {
                return None;
            }
            (be16(payload, 0)?, be16(payload, 2)?, flags & 0x12 == 2)
        }
        17 => {
            let length = usize::from(be16(payload, 4)?);
            if payload.len() < 8 || length < 8 || (length > payload.len() && !is_first) {
                return None;
            }
            (be16(payload, 0)?, be16(payload, 2)?, true)
        }
        132 => {
            payload.get(..12)?;
            (be16(payload, 0)?, be16(payload, 2)?, true)
        }
        1 | 58 if pod.is_ipv4() == (packet.protocol == 1) => {
            payload.get(..8)?;
            let id = be16(payload, 4)?;
            match (packet.protocol, payload[0]) {
                (1, 8) | (58, 128) => (id, id.wrapping_add(1), true),
                (1, 0) | (58, 129) => (id.wrapping_add(1), id, true),
                _ => (0, 0, true),
            }
        }
        _ => (0, 0, true),
    };
    let (pod_port, remote_port) = match direction {
        Direction::Ingress => (destination, source),
        Direction::Egress => (source, destination),
    };
    Some(((packet.protocol, pod, remote, pod_port, remote_port), is_new))
}

/// An echo's reply to nothing opens what its sender's request would.
fn opened_by((protocol, pod, remote, pod_port, remote_port): Flow, packet: &Packet<'_>) -> Flow {
    match (protocol, packet.payload.first()) {
        (1, Some(0)) | (58, Some(129)) => (protocol, pod, remote, remote_port, pod_port),
        _ => (protocol, pod, remote, pod_port, remote_port),
    }
}

/// RFC 826: of the pod only about itself.
fn permits_arp(direction: Direction, frame: &[u8]) -> Option<()> {
    let sender = IpAddr::V4(Ipv4Addr::from_bits(be32(frame, 28)?));
    let is_own = sender == POD || sender.is_unspecified();
    let is_honest = frame[22..28] == frame[6..12];
    (direction == Direction::Ingress || (is_own && is_honest)).then_some(())
}

/// RFC 4291, appendix A.
fn link_local_of(hardware: &[u8]) -> IpAddr {
    let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0];
    octets[8..11].copy_from_slice(&hardware[..3]);
    octets[13..].copy_from_slice(&hardware[3..]);
    octets[8] ^= 2;
    octets.into()
}

/// Of neighbour discovery, what the pod says of itself: in its own name, of its own address, and of its own interface.
fn is_of_pod(frame: &[u8], packet: &Packet<'_>) -> bool {
    let is_own = |address: IpAddr| address == POD6 || address == link_local_of(&frame[6..12]);
    let is_nobody = packet.source == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let kind = packet.payload[0];
    let target = || {
        packet
            .payload
            .get(8..24)
            .map(|octets| IpAddr::from(<[u8; 16]>::try_from(octets).unwrap()))
    };
    let is_own_target = || target().is_some_and(is_own);
    let is_about_itself = match kind {
        133 => is_nobody || is_own(packet.source),
        135 => is_own(packet.source) || (is_nobody && is_own_target()),
        _ => is_own(packet.source) && is_own_target(),
    };
    let mut options = packet
        .payload
        .get(if kind == 133 { 8 } else { 24 }..)
        .unwrap_or_default();
    while let [option, length, hardware @ ..] = options {
        if matches!(option, 1 | 2) && hardware.get(..6) != frame.get(6..12) {
            return false;
        }
        if *length == 0 {
            return false;
        }
        options = options.get(usize::from(*length) * 8..).unwrap_or_default();
    }
    is_about_itself
}

/// RFC 4861, RFC 3810, RFC 3376: of this link, and of the pod nothing that is a router's.
fn is_link_control(direction: Direction, frame: &[u8], packet: &Packet<'_>, of_node: bool) -> bool {
    let kind = packet.payload.first().copied().unwrap_or_default();
    let egress = direction == Direction::Egress;
    match packet.protocol {
        58 if packet.fragment.is_none() => match kind {
            133 | 135 | 136 => packet.hop_limit == 255 && (!egress || is_of_pod(frame, packet)),
            134 => packet.hop_limit == 255 && !egress,
            137 => packet.hop_limit == 255 && !egress && of_node,
            130 => packet.hop_limit == 1 && !egress,
            131 | 132 | 143 => packet.hop_limit == 1,
            _ => false,
        },
        // Of one in parts, the first says what it is.
        1 => packet.fragment.as_ref().is_none_or(|part| part.offset == 0) && kind == 5 && !egress && of_node,
        2 => packet.hop_limit == 1 && packet.destination.is_multicast() && !(egress && kind == 0x11),
        _ => false,
    }
}
