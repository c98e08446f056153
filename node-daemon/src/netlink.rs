// SPDX-License-Identifier: Apache-2.0
//! Netlink: requests, one at a time, and notifications.

use std::io;
use std::marker::PhantomData;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

/// How often a dump is tried.
const ATTEMPTS: usize = 5;

/// A socket of the network namespace that the process is in, for messages of one family: rtnetlink, where nothing else
/// is said.
pub(crate) struct Netlink<M = RouteNetlinkMessage> {
    socket: Socket,
    sequence: u32,
    messages: PhantomData<M>,
}

impl Netlink<NetfilterMessage> {
    pub(crate) fn open_netfilter() -> io::Result<Self> {
        Self::connect(NETLINK_NETFILTER)
    }
}

impl<M: NetlinkSerializable + NetlinkDeserializable> Netlink<M> {
    fn connect(family: isize) -> io::Result<Self> {
        let mut socket = Socket::new(family)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self::over(socket))
    }

    fn over(socket: Socket) -> Self {
        Self {
            socket,
            sequence: 0,
            messages: PhantomData,
        }
    }

    /// A request that changes something, with `flags` (`NLM_F_*`) beside those of every request.
    pub(crate) fn change(&mut self, request: M, flags: u16) -> io::Result<()> {
        let answers = self.exchange([(request, flags)])?;
        answers.into_iter().try_for_each(|answer| answer.map(|_| ()))
    }

    /// Requests that the kernel does one after the other, before it does anything else for us, and its answer to each:
    /// what was asked for, or None where it has only done something. As many as their answers find room in the socket.
    pub(crate) fn exchange(
        &mut self,
        requests: impl IntoIterator<Item = (M, u16)>,
    ) -> io::Result<Vec<io::Result<Option<M>>>> {
        let first = self.sequence.wrapping_add(1);
        let mut buffer = Vec::new();
        for (request, flags) in requests {
            self.write(request, NLM_F_ACK | flags, &mut buffer);
        }
        self.socket.send(&buffer, 0)?;
        let count = self.sequence.wrapping_add(1).wrapping_sub(first) as usize;
        let mut answers: Vec<Option<M>> = (0..count).map(|_| None).collect();
        let mut done = Vec::with_capacity(count);
        while done.len() < count {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages::<M>(&datagram) {
                let message = message?;
                let place = message.header.sequence_number.wrapping_sub(first) as usize;
                let Some(answer) = answers.get_mut(place) else { continue };
                match message.payload {
                    // The last word on each request, in their order.
                    NetlinkPayload::Error(error) => {
                        let answer = answer.take();
                        done.push(error.code.map_or(Ok(answer), |_| Err(error.to_io())));
                    }
                    NetlinkPayload::InnerMessage(inner) => *answer = Some(inner),
                    _ => {}
                }
            }
        }
        Ok(done)
    }

    fn send(&mut self, request: M, flags: u16) -> io::Result<()> {
        let mut buffer = Vec::new();
        self.write(request, flags, &mut buffer);
        self.socket.send(&buffer, 0).map(|_| ())
    }

    fn write(&mut self, request: M, flags: u16, buffer: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let start = buffer.len();
        // Each begins at a multiple of four bytes.
        buffer.resize((start + message.buffer_len()).next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..]);
    }
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let netlink = Self::connect(NETLINK_ROUTE)?;
        // Without strict checking the kernel ignores the filters of a dump, the target namespace among them.
        netlink.socket.set_netlink_get_strict_chk(true)?;
        Ok(netlink)
    }

    /// A socket that receives the notifications of `groups` (`RTNLGRP_*`).
    pub(crate) fn subscribe(groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self::over(socket))
    }

    /// Waits for notifications. None is an overrun of the socket's buffer: some were missed.
    pub(crate) fn wait(&self) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let datagram = match self.socket.recv_from_full() {
            Ok((datagram, _)) => datagram,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(None),
            Err(error) => return Err(error),
        };
        // What cannot be read is not known to be of no interest.
        let messages = messages(&datagram).collect::<io::Result<Vec<_>>>();
        Ok(messages
            .ok()
            .map(|messages| messages.into_iter().filter_map(inner).collect()))
    }

    /// All answers to one dump request, asked again when something changed in the middle of them.
    pub(crate) fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..ATTEMPTS {
            let (answers, is_whole) = self.dump_once(request.clone())?;
            if is_whole {
                return Ok(answers);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "interfaces change faster than they can be read",
        ))
    }

    fn dump_once(&mut self, request: RouteNetlinkMessage) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        self.send(request, NLM_F_DUMP)?;
        let (mut answers, mut is_whole) = (Vec::new(), true);
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                is_whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok((answers, is_whole)),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }
}

/// The messages of a datagram; the first that cannot be read is the last.
fn messages<M: NetlinkDeserializable>(datagram: &[u8]) -> impl Iterator<Item = io::Result<NetlinkMessage<M>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other);
        // Messages are padded to four bytes.
        let length = message
            .as_ref()
            .map_or(0, |message| message.header.length as usize)
            .next_multiple_of(4);
        rest = match length {
            0 => &[],
            _ => rest.get(length..).unwrap_or_default(),
        };
        Some(message)
    })
}

fn inner(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<RouteNetlinkMessage> {
    match message.payload {
        NetlinkPayload::InnerMessage(inner) => Some(inner),
        _ => None,
    }
}
