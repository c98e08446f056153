// SPDX-License-Identifier: Apache-2.0
//! The pod's node: a network namespace of the test's own, with sockets.

use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};

/// Where sockets of the node listen, for both families.
pub const TCP_PORTS: [u16; 2] = [10_250, 30_080];
pub const UDP_PORTS: [u16; 1] = [53];

/// Takes this thread into a namespace in which nothing is but these sockets.
pub fn listen() -> Vec<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
    let listener = |port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap().into();
    let receiver = |port| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap().into();
    TCP_PORTS
        .map(listener)
        .into_iter()
        .chain(UDP_PORTS.map(receiver))
        .collect()
}
