// SPDX-License-Identifier: Apache-2.0
//! The node's own connection tracking, `nf_conntrack` in the network namespace that the process is in: entries of
//! connections to Services, as kube-proxy's rules would have made them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol, Status, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use crate::netlink::Netlink;

// include/uapi/linux/netfilter/nfnetlink_conntrack.h; the crate does not name these, or makes none of their values.
const CTA_NAT_SRC: u16 = 6;
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
/// `include/uapi/linux/netfilter/nf_conntrack_tcp.h`: no packet is out of the window, for in the middle of a connection
/// nobody knows what its windows are.
const IP_CT_TCP_FLAG_BE_LIBERAL: u8 = 8;

/// Connections in one exchange with the kernel: it has three answers for each, and a socket's buffer has room for some
/// two hundred.
const CHUNK: usize = 32;
/// How often an entry is put in the place of another. A packet of the backend that passes between the two steps makes
/// one of its own, which is taken away again.
const ATTEMPTS: usize = 10;

/// A connection that a pod of this node has to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Translated {
    pub(crate) transport: Transport,
    pub(crate) client: SocketAddr,
    /// What the client sees: address and port of the Service.
    pub(crate) front: SocketAddr,
    pub(crate) backend: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// What became of connections.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) translated: usize,
    /// The node knows nothing of them, as where it tracks none, or they were idle for longer than it keeps them.
    pub(crate) untracked: usize,
    pub(crate) refused: Vec<(Translated, io::Error)>,
}

/// What the node knows of a connection between a client and a backend.
#[derive(Clone, Debug)]
struct Tracked {
    /// Whom the backend sees: the client, or the node where that masquerades.
    source: SocketAddr,
    status: Status,
    /// Seconds.
    timeout: u32,
    mark: Option<u32>,
    tcp_state: Option<u8>,
}

pub(crate) struct HostConntrack(Netlink<NetfilterMessage>);

impl HostConntrack {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Netlink::open_netfilter()?))
    }

    /// From now on what a client sends to the Service goes to the backend, and what that answers comes from the Service:
    /// what the node knows of the connection between the two themselves becomes what it knows of this one. Only one may
    /// have their addresses and ports, so no packet of the client's may be on its way meanwhile.
    pub(crate) fn translate(&mut self, connections: &[Translated]) -> io::Result<Outcome> {
        let mut outcome = Outcome::default();
        for chunk in connections.chunks(CHUNK) {
            let tracked = self.0.exchange(chunk.iter().map(|connection| {
                let get = ConntrackMessage::Get(vec![connection.between_themselves()]);
                (connection.request(get), 0)
            }))?;
            let mut left = Vec::new();
            for (connection, answer) in chunk.iter().zip(tracked) {
                match answer {
                    Ok(Some(answer)) => left.push((*connection, Tracked::read(answer, connection))),
                    Ok(None) => outcome.untracked += 1,
                    Err(error) if is_absent(&error) => outcome.untracked += 1,
                    Err(error) => outcome.refused.push((*connection, error)),
                }
            }
            for attempt in 1..=ATTEMPTS {
                left = self.replace(left, attempt == ATTEMPTS, &mut outcome)?;
                if left.is_empty() {
                    break;
                }
            }
        }
        Ok(outcome)
    }

    /// Returns those in whose place something came; the last time, they are refused.
    fn replace(
        &mut self,
        connections: Vec<(Translated, Tracked)>,
        is_last: bool,
        outcome: &mut Outcome,
    ) -> io::Result<Vec<(Translated, Tracked)>> {
        let requests = connections.iter().flat_map(|(connection, tracked)| {
            let old = [connection.between_themselves(), connection.to_service()].map(|tuple| {
                let delete = ConntrackMessage::Delete(vec![tuple]);
                (connection.request(delete), 0)
            });
            let new = ConntrackMessage::New(tracked.attributes(connection));
            let new = (connection.request(new), NLM_F_CREATE | NLM_F_EXCL);
            old.into_iter().chain([new])
        });
        let answers = self.0.exchange(requests)?;
        let mut left = Vec::new();
        let mut answers = answers.into_iter();
        for (connection, tracked) in connections {
            let deleted = [answers.next(), answers.next()].into_iter().flatten();
            let failed = deleted.filter_map(Result::err).find(|error| !is_absent(error));
            let made = answers.next().and_then(Result::err);
            match failed.or(made) {
                None => outcome.translated += 1,
                Some(error) if error.raw_os_error() == Some(libc::EEXIST) && !is_last => {
                    left.push((connection, tracked));
                }
                Some(error) => outcome.refused.push((connection, error)),
            }
        }
        Ok(left)
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

impl Translated {
    fn request(self, message: ConntrackMessage) -> NetfilterMessage {
        let family = if self.client.is_ipv4() {
            NetfilterProtoFamily::IPv4
        } else {
            NetfilterProtoFamily::IPv6
        };
        NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
    }

    fn between_themselves(self) -> ConntrackAttribute {
        ConntrackAttribute::CtaTupleOrig(tuple(self.transport, self.client, self.backend))
    }

    fn to_service(self) -> ConntrackAttribute {
        ConntrackAttribute::CtaTupleOrig(tuple(self.transport, self.client, self.front))
    }
}

impl Tracked {
    fn read(answer: NetfilterMessage, connection: &Translated) -> Self {
        let mut tracked = Self {
            source: connection.client,
            status: Status::empty(),
            timeout: 0,
            mark: None,
            tcp_state: None,
        };
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = answer.inner else {
            return tracked;
        };
        // One that was taken up in its middle may be known the other way round, and is not masqueraded then.
        let is_opened_by_client = attributes.contains(&connection.between_themselves());
        for attribute in attributes {
            match attribute {
                ConntrackAttribute::CtaTupleReply(reply) if is_opened_by_client => {
                    tracked.source = destination(&reply).unwrap_or(tracked.source);
                }
                ConntrackAttribute::CtaStatus(status) => tracked.status = status,
                ConntrackAttribute::CtaTimeout(seconds) => tracked.timeout = seconds,
                ConntrackAttribute::CtaMark(mark) => tracked.mark = Some(mark),
                ConntrackAttribute::CtaProtoInfo(infos) => {
                    tracked.tcp_state = infos.iter().find_map(|info| match info {
                        ProtoInfo::TCP(tcp) => tcp.iter().find_map(|info| match info {
                            ProtoInfoTCP::State(state) => Some(*state),
                            _ => None,
                        }),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        tracked
    }

    fn attributes(&self, connection: &Translated) -> Vec<ConntrackAttribute> {
        let Translated {
            transport,
            client,
            front,
            backend,
        } = *connection;
        let status = self.status & (Status::SeenReply | Status::Assured);
        let mut attributes = vec![
            connection.to_service(),
            // Before translation; the kernel makes the backend's of it.
            ConntrackAttribute::CtaTupleReply(tuple(transport, front, client)),
            ConntrackAttribute::CtaStatus(status | Status::Confirmed),
            ConntrackAttribute::CtaTimeout(self.timeout),
            ConntrackAttribute::Other(translation(CTA_NAT_DST, backend)),
            // Said also where it stays what it is: else the kernel takes another port where this one is in use.
            ConntrackAttribute::Other(translation(CTA_NAT_SRC, self.source)),
        ];
        attributes.extend(self.mark.map(ConntrackAttribute::CtaMark));
        attributes.extend(self.tcp_state.map(|state| {
            let liberal = |kind| ProtoInfoTCP::Other(DefaultNla::new(kind, vec![IP_CT_TCP_FLAG_BE_LIBERAL; 2]));
            ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![
                ProtoInfoTCP::State(state),
                liberal(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL),
                liberal(CTA_PROTOINFO_TCP_FLAGS_REPLY),
            ])])
        }));
        attributes
    }
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

fn destination(tuple: &[Tuple]) -> Option<SocketAddr> {
    let ip = tuple.iter().find_map(|part| match part {
        Tuple::Ip(parts) => parts.iter().find_map(|part| match part {
            IPTuple::DestinationAddress(ip) => Some(*ip),
            _ => None,
        }),
        _ => None,
    })?;
    let port = tuple.iter().find_map(|part| match part {
        Tuple::Proto(parts) => parts.iter().find_map(|part| match part {
            ProtoTuple::DestinationPort(port) => Some(*port),
            _ => None,
        }),
        _ => None,
    })?;
    Some(SocketAddr::new(ip, port))
}

/// What source or destination are translated to.
fn translation(kind: u16, to: SocketAddr) -> DefaultNla {
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
    nested(kind, &range)
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}
