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

/// Connections in one exchange with the kernel: it has four answers for each, and a socket's buffer has room for some
/// two hundred.
const CHUNK: usize = 24;
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

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Translated,
    /// The node knows nothing of it, as where it tracks none, or it was idle for longer than the node keeps it.
    Untracked,
}

/// What the node knows of a connection between a client and a backend, and keeps: labels, helpers and counters go.
#[derive(Clone, Debug)]
struct Tracked {
    /// Whom the backend sees: the client, or the node where that masquerades.
    source: SocketAddr,
    /// Who answers: the backend, or whom the node sends on to for it.
    target: SocketAddr,
    status: Status,
    /// Seconds.
    timeout: u32,
    mark: Option<u32>,
    tcp: Option<Tcp>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tcp {
    state: u8,
    /// Of both sides, `IP_CT_TCP_FLAG_*`.
    flags: [u8; 2],
}

pub(crate) struct HostConntrack(Netlink<NetfilterMessage>);

impl HostConntrack {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Netlink::open_netfilter()?))
    }

    /// From now on what a client sends to the Service goes to the backend, and what that answers comes from the Service:
    /// what the node knows of the connection between the two themselves becomes what it knows of this one. Only one may
    /// have their addresses and ports, so no packet of the client's may be on its way meanwhile.
    ///
    /// Returns what became of each. An error is that of the whole, some of which may be done.
    pub(crate) fn translate(&mut self, connections: &[Translated]) -> io::Result<Vec<io::Result<Fate>>> {
        let mut fates = Vec::with_capacity(connections.len());
        for chunk in connections.chunks(CHUNK) {
            let tracked = self.0.exchange(chunk.iter().map(|connection| {
                let get = ConntrackMessage::Get(vec![connection.between_themselves()]);
                (connection.request(get), 0)
            }))?;
            let (start, mut left) = (fates.len(), Vec::new());
            for (place, answer) in tracked.into_iter().enumerate() {
                fates.push(match answer {
                    Err(error) if !is_absent(&error) => Err(error),
                    Err(_) | Ok(None) => Ok(Fate::Untracked),
                    Ok(Some(answer)) => {
                        left.push((place, Tracked::read(answer, &chunk[place])));
                        Ok(Fate::Translated)
                    }
                });
            }
            for _ in 0..ATTEMPTS {
                let made = self.replace(left.iter().map(|(place, tracked)| (&chunk[*place], tracked)))?;
                let mut again = Vec::new();
                for ((place, tracked), made) in left.into_iter().zip(made) {
                    if made
                        .as_ref()
                        .is_err_and(|error| error.raw_os_error() == Some(libc::EEXIST))
                    {
                        again.push((place, tracked));
                    }
                    fates[start + place] = made.map(|()| Fate::Translated);
                }
                left = again;
                if left.is_empty() {
                    break;
                }
            }
        }
        Ok(fates)
    }

    fn replace<'a>(
        &mut self,
        connections: impl Iterator<Item = (&'a Translated, &'a Tracked)>,
    ) -> io::Result<Vec<io::Result<()>>> {
        let requests = connections.flat_map(|(connection, tracked)| {
            let answers = tuple(connection.transport, tracked.target, tracked.source);
            // What stands in the way last, and what a packet of the backend may have made meanwhile.
            let old = [
                connection.to_service(),
                ConntrackAttribute::CtaTupleOrig(answers),
                connection.between_themselves(),
            ];
            let old = old.map(|tuple| (connection.request(ConntrackMessage::Delete(vec![tuple])), 0));
            let new = ConntrackMessage::New(tracked.attributes(connection));
            let new = (connection.request(new), NLM_F_CREATE | NLM_F_EXCL);
            old.into_iter().chain([new])
        });
        let mut answers = self.0.exchange(requests)?.into_iter();
        let mut made = Vec::new();
        while let (Some(front), Some(back), Some(direct), Some(new)) =
            (answers.next(), answers.next(), answers.next(), answers.next())
        {
            let deleted = [front, back, direct].into_iter().filter_map(Result::err);
            let failed = deleted.filter(|error| !is_absent(error)).last();
            made.push(failed.map_or(new.map(|_| ()), Err));
        }
        Ok(made)
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
            target: connection.backend,
            status: Status::empty(),
            timeout: 0,
            mark: None,
            tcp: None,
        };
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = answer.inner else {
            return tracked;
        };
        // One that was taken up in its middle may be known the other way round, and is not masqueraded then.
        let is_opened_by_client = attributes.contains(&connection.between_themselves());
        for attribute in attributes {
            match attribute {
                ConntrackAttribute::CtaTupleReply(reply) if is_opened_by_client => {
                    if let Some([source, destination]) = ends(&reply) {
                        (tracked.target, tracked.source) = (source, destination);
                    }
                }
                ConntrackAttribute::CtaStatus(status) => tracked.status = status,
                ConntrackAttribute::CtaTimeout(seconds) => tracked.timeout = seconds,
                ConntrackAttribute::CtaMark(mark) => tracked.mark = Some(mark),
                ConntrackAttribute::CtaProtoInfo(infos) => {
                    tracked.tcp = infos.iter().find_map(|info| match info {
                        ProtoInfo::TCP(tcp) => Some(Tcp::read(tcp)),
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
            ..
        } = *connection;
        let status = self.status & (Status::SeenReply | Status::Assured);
        let mut attributes = vec![
            connection.to_service(),
            // Before translation; the kernel makes the backend's of it.
            ConntrackAttribute::CtaTupleReply(tuple(transport, front, client)),
            ConntrackAttribute::CtaStatus(status | Status::Confirmed),
            // A fraction of a second is told as none.
            ConntrackAttribute::CtaTimeout(self.timeout.max(1)),
            ConntrackAttribute::Other(translation(CTA_NAT_DST, self.target)),
            // Said also where it stays what it is: else the kernel takes another port where this one is in use.
            ConntrackAttribute::Other(translation(CTA_NAT_SRC, self.source)),
        ];
        attributes.extend(self.mark.map(ConntrackAttribute::CtaMark));
        let tcp = self.tcp.map(|tcp| ProtoInfo::TCP(tcp.attributes()));
        attributes.extend(tcp.map(|tcp| ConntrackAttribute::CtaProtoInfo(vec![tcp])));
        attributes
    }
}

impl Tcp {
    fn read(attributes: &[ProtoInfoTCP]) -> Self {
        let mut tcp = Self::default();
        for attribute in attributes {
            match attribute {
                ProtoInfoTCP::State(state) => tcp.state = *state,
                ProtoInfoTCP::OriginalFlags(flags) => tcp.flags[0] = flags.flags,
                ProtoInfoTCP::ReplyFlags(flags) => tcp.flags[1] = flags.flags,
                _ => {}
            }
        }
        tcp
    }

    fn attributes(self) -> Vec<ProtoInfoTCP> {
        let [original, reply] = self.flags.map(|flags| vec![flags | IP_CT_TCP_FLAG_BE_LIBERAL; 2]);
        vec![
            ProtoInfoTCP::State(self.state),
            ProtoInfoTCP::Other(DefaultNla::new(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, original)),
            ProtoInfoTCP::Other(DefaultNla::new(CTA_PROTOINFO_TCP_FLAGS_REPLY, reply)),
        ]
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

/// Source and destination.
fn ends(tuple: &[Tuple]) -> Option<[SocketAddr; 2]> {
    let (mut ips, mut ports) = ([None; 2], [None; 2]);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(ip) => ips[0] = Some(*ip),
                IPTuple::DestinationAddress(ip) => ips[1] = Some(*ip),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::SourcePort(port) => ports[0] = Some(*port),
                ProtoTuple::DestinationPort(port) => ports[1] = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    let end = |side: usize| Some(SocketAddr::new(ips[side]?, ports[side]?));
    Some([end(0)?, end(1)?])
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
