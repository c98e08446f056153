// SPDX-License-Identifier: Apache-2.0
//! The node's own connection tracking, `nf_conntrack` in the network namespace that the process is in: entries of
//! connections to Services, as kube-proxy's rules would have made them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol, Status, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use crate::netlink::Netlink;

// include/uapi/linux/netfilter/nfnetlink_conntrack.h; the crate does not name these, or makes none of their values.
const CTA_NAT_DST: u16 = 13;
const CTA_NAT_V4_MINIP: u16 = 1;
const CTA_NAT_V4_MAXIP: u16 = 2;
const CTA_NAT_PROTO: u16 = 3;
const CTA_NAT_V6_MINIP: u16 = 4;
const CTA_NAT_V6_MAXIP: u16 = 5;
const CTA_PROTONAT_PORT_MIN: u16 = 1;
const CTA_PROTONAT_PORT_MAX: u16 = 2;
/// Flags, and the mask of those that are to be set.
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;

// include/uapi/linux/netfilter/nf_conntrack_tcp.h
const TCP_CONNTRACK_ESTABLISHED: u8 = 3;
/// No packet is out of the window: the windows of a connection in its middle are not known.
const IP_CT_TCP_FLAG_BE_LIBERAL: u8 = 8;

/// A connection that a pod of this node has to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translated {
    pub(crate) transport: Transport,
    pub(crate) client: SocketAddr,
    /// What the client sees: address and port of the Service.
    pub(crate) front: SocketAddr,
    pub(crate) backend: SocketAddr,
    /// The backend has answered.
    pub(crate) is_answered: bool,
    /// Seconds without a packet after which the entry goes; the node's own settings hold from the next packet on.
    pub(crate) timeout: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

pub(crate) struct HostConntrack(Netlink<NetfilterMessage>);

impl HostConntrack {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Netlink::open_netfilter()?))
    }

    /// From now on what the client sends to the Service goes to the backend, and what that answers comes from the
    /// Service. Takes the place of the connection between the two themselves: only one may have their addresses and
    /// ports, so no packet may pass between them meanwhile.
    pub(crate) fn translate(&mut self, connection: &Translated) -> io::Result<()> {
        let family = if connection.client.is_ipv4() {
            NetfilterProtoFamily::IPv4
        } else {
            NetfilterProtoFamily::IPv6
        };
        let request = |message| NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
        let direct = tuple(connection.transport, connection.client, connection.backend);
        let direct = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(direct)]);
        match self.0.change(request(direct), 0) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
        let new = ConntrackMessage::New(attributes(connection));
        self.0.change(request(new), NLM_F_CREATE | NLM_F_EXCL)
    }
}

fn attributes(connection: &Translated) -> Vec<ConntrackAttribute> {
    let Translated {
        transport,
        client,
        front,
        backend,
        ..
    } = *connection;
    let mut status = Status::Confirmed;
    if connection.is_answered {
        status |= Status::SeenReply | Status::Assured;
    }
    let mut attributes = vec![
        ConntrackAttribute::CtaTupleOrig(tuple(transport, client, front)),
        // Before translation; the kernel makes the backend's of it.
        ConntrackAttribute::CtaTupleReply(tuple(transport, front, client)),
        ConntrackAttribute::CtaStatus(status),
        ConntrackAttribute::CtaTimeout(connection.timeout),
        ConntrackAttribute::Other(destination(backend)),
    ];
    if transport == Transport::Tcp {
        let liberal = |kind| ProtoInfoTCP::Other(DefaultNla::new(kind, vec![IP_CT_TCP_FLAG_BE_LIBERAL; 2]));
        attributes.push(ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![
            ProtoInfoTCP::State(TCP_CONNTRACK_ESTABLISHED),
            liberal(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL),
            liberal(CTA_PROTOINFO_TCP_FLAGS_REPLY),
        ])]));
    }
    attributes
}

fn tuple(transport: Transport, source: SocketAddr, destination: SocketAddr) -> Vec<Tuple> {
    let protocol = match transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
    };
    vec![
        Tuple::Ip(vec![
            IPTuple::SourceAddress(source.ip()),
            IPTuple::DestinationAddress(destination.ip()),
        ]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(protocol),
            ProtoTuple::SourcePort(source.port()),
            ProtoTuple::DestinationPort(destination.port()),
        ]),
    ]
}

/// What the destination is translated to.
fn destination(to: SocketAddr) -> DefaultNla {
    let (address, least, most) = match to.ip() {
        IpAddr::V4(ip) => (ip.octets().to_vec(), CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP),
        IpAddr::V6(ip) => (ip.octets().to_vec(), CTA_NAT_V6_MINIP, CTA_NAT_V6_MAXIP),
    };
    let port = to.port().to_be_bytes().to_vec();
    let ports = [
        DefaultNla::new(CTA_PROTONAT_PORT_MIN, port.clone()),
        DefaultNla::new(CTA_PROTONAT_PORT_MAX, port),
    ];
    let range = [
        DefaultNla::new(least, address.clone()),
        DefaultNla::new(most, address),
        nested(CTA_NAT_PROTO, &ports),
    ];
    nested(CTA_NAT_DST, &range)
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}
