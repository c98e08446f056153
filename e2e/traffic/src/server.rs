// SPDX-License-Identifier: Apache-2.0
//! The echo server: the same bytes back, on TCP and UDP, on each port.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// Serves until a listener fails.
pub(crate) fn serve(ports: &[u16]) -> io::Result<()> {
    let mut threads = Vec::new();
    for port in ports {
        // An IPv6 wildcard socket takes IPv4 too, unless the pod has no IPv6 at all.
        let tcp =
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).or_else(|_| TcpListener::bind(("0.0.0.0", *port)))?;
        let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, *port)).or_else(|_| UdpSocket::bind(("0.0.0.0", *port)))?;
        threads.push(thread::spawn(move || serve_tcp(&tcp)));
        threads.push(thread::spawn(move || serve_udp(&udp)));
        println!("{}", serde_json::json!({"event": "listening", "port": port}));
    }
    for thread in threads {
        thread
            .join()
            .map_err(|_| io::Error::other("a server thread panicked"))??;
    }
    Ok(())
}

fn serve_tcp(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        // A client that goes away ends its own thread only.
        thread::spawn(move || echo(stream));
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn serve_udp(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        // An ICMP error about an earlier answer is no reason to stop serving others.
        let _ = socket.send_to(&buffer[..length], from);
    }
}
