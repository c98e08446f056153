// SPDX-License-Identifier: Apache-2.0
//! Connections that are opened and reset at once, from raw frames: more of them than two stacks could shake hands on.
//!
//! Each is a SYN and then an RST of the same ports. To what watches packets it is a connection like another; nobody
//! needs to answer, so the network may drop them behind the watcher.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

use crate::load::report;

/// Source ports are taken in turn, so that one has rested for a while when its turn comes again.
const PORTS: u16 = 16_384;
const FIRST_PORTS: [u16; 2] = [16_384, 32_768];
/// How often the pace is kept.
const SLICE: Duration = Duration::from_millis(1);

const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// What is opened, and how fast.
#[derive(Clone, Copy)]
pub(crate) struct Flood {
    pub(crate) from: Ipv4Addr,
    /// Connections a second.
    pub(crate) rate: u32,
    /// How many destination ports are taken in turn, from the server's on.
    pub(crate) ports: u16,
    /// Nothing resets them.
    pub(crate) half_open: bool,
}

/// Opens, and unless told otherwise resets, connections for `duration`, and until each port was tried; prints what
/// [`crate::load::crr`] prints.
///
/// Slower than the rate if the machine is; the report says how many there were. Half of them come from each of two
/// threads, so that a sender is not held to one CPU.
pub(crate) fn flood(flood: Flood, server: SocketAddr, duration: Duration) -> io::Result<()> {
    let SocketAddr::V4(server) = server else {
        return Err(io::Error::other("the server's address is not IPv4"));
    };
    let start = Instant::now();
    let half = |first| thread::spawn(move || flood.half(first, server, duration));
    let mut opened = 0;
    for sender in FIRST_PORTS.map(half) {
        opened += sender.join().map_err(|_| io::Error::other("a sender panicked"))??;
    }
    report(opened, start.elapsed());
    Ok(())
}

impl Flood {
    fn half(self, first: u16, server: SocketAddrV4, duration: Duration) -> io::Result<u64> {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
        let (start, mut opened) = (Instant::now(), 0_u64);
        let is_over = |opened| start.elapsed() >= duration && opened >= u64::from(self.ports);
        while !is_over(opened) {
            let due = start.elapsed().as_micros() * u128::from(self.rate / 2) / 1_000_000;
            while u128::from(opened) < due && !is_over(opened) {
                let (port, to) = self.ports_of(opened, first, server);
                let flags: &[u8] = if self.half_open { &[SYN] } else { &[SYN, RST] };
                for flags in flags {
                    let bytes = segment(self.from, port, to, *flags);
                    sendto(&raw, &bytes, SendFlags::empty(), &SocketAddr::V4(to))?;
                }
                opened += 1;
            }
            thread::sleep(SLICE);
        }
        Ok(opened)
    }

    /// All destinations from one source port, then from the next.
    fn ports_of(self, number: u64, first: u16, server: SocketAddrV4) -> (u16, SocketAddrV4) {
        let within = |number: u64, limit: u16| u16::try_from(number % u64::from(limit)).unwrap_or(0);
        let ports = self.ports.max(1);
        let to = server.port().wrapping_add(within(number, ports));
        let from = first + within(number / u64::from(ports), PORTS);
        (from, SocketAddrV4::new(*server.ip(), to))
    }
}

/// An IPv4 header and a TCP header without options. The kernel fills in the length and checksum of the first; that of
/// the second stays zero, as no stack will look at it.
fn segment(from: Ipv4Addr, port: u16, to: SocketAddrV4, flags: u8) -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[0] = 0x45;
    bytes[8] = 64;
    bytes[9] = 6;
    bytes[12..16].copy_from_slice(&from.octets());
    bytes[16..20].copy_from_slice(&to.ip().octets());
    bytes[20..22].copy_from_slice(&port.to_be_bytes());
    bytes[22..24].copy_from_slice(&to.port().to_be_bytes());
    bytes[32] = 5 << 4;
    bytes[33] = flags;
    bytes
}

#[cfg(test)]
mod tests {
    use super::{Flood, SYN, segment};

    #[test]
    fn a_segment_has_addresses_ports_and_flags_where_they_belong() {
        let bytes = segment([10, 0, 0, 1].into(), 0x1234, "10.0.0.2:80".parse().unwrap(), SYN);
        assert_eq!(bytes[..1], [0x45]);
        assert_eq!(bytes[12..24], [10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34, 0, 80]);
        assert_eq!(bytes[32..34], [0x50, 0x02]);
    }

    #[test]
    fn destinations_are_taken_in_turn_and_then_the_source_moves_on() {
        let flood = Flood {
            from: [10, 0, 0, 1].into(),
            rate: 1,
            ports: 3,
            half_open: true,
        };
        let server = "10.0.0.2:80".parse().unwrap();
        let taken: Vec<_> = (0..5)
            .map(|number| flood.ports_of(number, 1000, server))
            .map(|(from, to)| (from, to.port()))
            .collect();
        assert_eq!(taken, [(1000, 80), (1000, 81), (1000, 82), (1001, 80), (1001, 81)]);
    }
}
