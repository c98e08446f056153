// SPDX-License-Identifier: Apache-2.0
//! Requests to rtnetlink, one at a time.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// How often a dump is tried.
const ATTEMPTS: usize = 5;

/// A rtnetlink socket of the network namespace that the process is in.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without strict checking the kernel ignores the filters of a dump, the target namespace among them.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// A socket that receives the notifications of `groups` (`RTNLGRP_*`).
    pub(super) fn subscribe(groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self { socket, sequence: 0 })
    }

    /// Waits for a notification. An overrun of the socket's buffer counts as one: what was missed is found by the
    /// scan that follows.
    pub(super) fn wait(&self) -> io::Result<()> {
        match self.socket.recv_from_full() {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All answers to one dump request, asked again when something changed in the middle of them.
    pub(super) fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
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
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;

        let (mut answers, mut is_whole) = (Vec::new(), true);
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                // Messages are padded to four bytes.
                let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
                if length == 0 {
                    return Err(io::Error::other("a netlink message of length 0"));
                }
                rest = &rest[length..];
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
