// SPDX-License-Identifier: Apache-2.0
//! Open flows of both protocols and families between two pods, and whether they still talk.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::wire::{PORT, SILENCE, connection, connects, listener, servers, udp_client, udp_server};

/// Longer than a few retransmissions of what was dropped before.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pod that serves.
pub struct Server {
    host: u8,
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Server {
    pub fn start(pod: &str, host: u8) -> Self {
        let (tcp, udp) = (listener(pod), udp_server(pod));
        udp.set_nonblocking(true).unwrap();
        Self { host, tcp, udp }
    }

    /// Opens one flow of each protocol and family, and sees each talk.
    pub fn open(&self, client: &str) -> Flows {
        let flows = Flows {
            tcp: servers(self.host).map(|to| connection(client, &self.tcp, to)).into(),
            udp: servers(self.host).map(|to| udp_client(client, to)).into(),
        };
        for (near, far) in &flows.tcp {
            near.set_nonblocking(true).unwrap();
            far.set_nonblocking(true).unwrap();
        }
        for socket in &flows.udp {
            socket.set_nonblocking(true).unwrap();
        }
        flows
    }

    /// New connections open, in both families, or in none.
    #[track_caller]
    pub fn admits(&self, client: &str, expected: bool) {
        let admitted = servers(self.host).map(|to| connects(Some(client), to, expected));
        assert_eq!(
            admitted, [expected; 2],
            "new connections of {client} over IPv4 and IPv6"
        );
        // Nobody asks for these.
        self.tcp.set_nonblocking(true).unwrap();
        while self.tcp.accept().is_ok() {}
        self.tcp.set_nonblocking(false).unwrap();
    }
}

pub struct Flows {
    tcp: Vec<(TcpStream, TcpStream)>,
    udp: Vec<UdpSocket>,
}

impl Flows {
    /// Whether what the client says arrives: on all flows soon, or, within a time of silence, on none.
    #[track_caller]
    pub fn talk(&mut self, server: &Server, expected: bool) {
        let began = Instant::now();
        let mut heard = [false; 4];
        let limit = if expected { PATIENCE } else { SILENCE };
        for (near, _) in &mut self.tcp {
            let _ = near.write(b"t");
        }
        while began.elapsed() < limit && heard != [true; 4] {
            for socket in &self.udp {
                let _ = socket.send(b"u");
            }
            std::thread::sleep(Duration::from_millis(5));
            self.listen(server, &mut heard);
        }
        assert_eq!(heard, [expected; 4], "heard of TCP and UDP over IPv4 and IPv6");
    }

    fn listen(&mut self, server: &Server, heard: &mut [bool; 4]) {
        let mut byte = [0];
        let [tcp4, tcp6, udp4, udp6] = heard;
        for ((_, far), heard) in self.tcp.iter_mut().zip([tcp4, tcp6]) {
            match far.read(&mut byte) {
                Ok(length) => *heard |= length > 0,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "a connection broke: {error}"),
            }
        }
        let ports: Vec<u16> = self.udp.iter().map(|s| s.local_addr().unwrap().port()).collect();
        while let Ok((_, from)) = server.udp.recv_from(&mut byte) {
            let is = |client: &UdpSocket, port| same(client.local_addr().unwrap(), from) && port == from.port();
            *udp4 |= is(&self.udp[0], ports[0]);
            *udp6 |= is(&self.udp[1], ports[1]);
        }
    }
}

fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip().to_canonical() && a.port() != PORT
}
