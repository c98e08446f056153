// SPDX-License-Identifier: Apache-2.0
//! Packets byte by byte, whatever they claim, and a look at which packets arrive.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, eth, ipproto, recv, sendto, socket};
use serde_json::json;

use crate::client::{say, send_each, until_stdin_ends};

const ETHERNET_BYTES: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// How often a watcher says what it has seen, and looks whether it should end.
const TELL: Duration = Duration::from_millis(50);

/// An IP packet as it goes out, from its IP header on. Of IPv4 the kernel fills in the length and the checksum of that
/// header, of IPv6 nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    bytes: Vec<u8>,
    to: IpAddr,
}

impl FromStr for Packet {
    type Err = String;

    /// From hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digit = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(digit).collect();
        let bytes = bytes.ok_or("failed to parse a packet: it is not in hexadecimal digits")?;
        let to = destination(&bytes).ok_or("failed to parse a packet: it has no whole IP header")?;
        Ok(Self { bytes, to })
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::V4(Ipv4Addr::from(array(packet, 16)?))),
        6 => Some(IpAddr::V6(Ipv6Addr::from(array::<16>(packet, 24)?))),
        _ => None,
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Sends all packets in turn, `times` times or until the standard input ends, with `interval` between rounds. Prints
/// `{"event":"done","sent":…}`.
pub(crate) fn send(packets: &[Packet], times: Option<u64>, interval: Duration) -> io::Result<()> {
    let sockets = [
        socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?,
        socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::RAW))?,
    ];
    let round = || packets.iter().try_for_each(|packet| packet.send(&sockets));
    let rounds = if let Some(times) = times {
        for _ in 0..times {
            round()?;
            thread::sleep(interval);
        }
        times
    } else {
        send_each(interval, |_| round())?
    };
    say(&json!({"event": "done", "sent": rounds * packets.len() as u64}));
    Ok(())
}

impl Packet {
    fn send(&self, [ipv4, ipv6]: &[OwnedFd; 2]) -> io::Result<()> {
        let raw = if self.to.is_ipv4() { ipv4 } else { ipv6 };
        // A port would be taken for the number of a protocol.
        sendto(raw, &self.bytes, SendFlags::empty(), &SocketAddr::new(self.to, 0))?;
        Ok(())
    }
}

/// What came from one address.
#[derive(Default)]
struct Seen {
    packets: u64,
    /// When the last came, in microseconds since 1970.
    last_us: u64,
    /// Of the packets, how many were told.
    told: u64,
}

/// Prints `{"event":"seen","from":…,"packets":…,"last_us":…}` for each address that TCP or UDP packets to `port` claim
/// to come from, again and again while they come. Ends with the standard input, and then prints `{"event":"done"}`.
///
/// It sees frames as they come out of the wire, before the stack of this network namespace judges them.
pub(crate) fn watch(port: u16) -> io::Result<()> {
    let wire = socket(AddressFamily::PACKET, SocketType::RAW, Some(eth::ALL))?;
    set_socket_timeout(&wire, Timeout::Recv, Some(TELL))?;
    let ended = until_stdin_ends();
    say(&json!({"event": "watching"}));
    let (mut seen, mut told) = (BTreeMap::<IpAddr, Seen>::new(), Instant::now());
    let mut buffer = [0; 2048];
    loop {
        match recv(&wire, &mut buffer, RecvFlags::empty()) {
            Ok((_, length)) => {
                if let Some(from) = source(&buffer[..length.min(buffer.len())], port) {
                    let seen = seen.entry(from).or_default();
                    seen.packets += 1;
                    seen.last_us = now_us();
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_over = ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected);
        if is_over || told.elapsed() >= TELL {
            tell(&mut seen);
            told = Instant::now();
        }
        if is_over {
            say(&json!({"event": "done"}));
            return Ok(());
        }
    }
}

fn tell(seen: &mut BTreeMap<IpAddr, Seen>) {
    for (from, seen) in seen.iter_mut().filter(|(_, seen)| seen.told != seen.packets) {
        seen.told = seen.packets;
        say(&json!({"event": "seen", "from": from, "packets": seen.packets, "last_us": seen.last_us}));
    }
}

/// The source address of a frame that is TCP or UDP to the port; options are read past, extension headers are not.
fn source(frame: &[u8], port: u16) -> Option<IpAddr> {
    let packet = frame.get(ETHERNET_BYTES..)?;
    let (from, protocol, header) = match packet.first()? >> 4 {
        4 => {
            let from = Ipv4Addr::from(array(packet, 12)?);
            (IpAddr::V4(from), *packet.get(9)?, usize::from(packet[0] & 0xf) * 4)
        }
        6 => (IpAddr::V6(Ipv6Addr::from(array::<16>(packet, 8)?)), *packet.get(6)?, 40),
        _ => return None,
    };
    let is_to_port = array(packet, header + 2)? == port.to_be_bytes();
    (matches!(protocol, TCP | UDP) && is_to_port).then_some(from)
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::{ETHERNET_BYTES, Packet, source};

    /// From port 1000 to port 9, with nothing in it.
    const DATAGRAM: &str = "03e8000900080000";

    fn ipv4() -> String {
        format!("4500001c0001400040110000{}{}{DATAGRAM}", "0a000001", "0a000002")
    }

    fn ipv6() -> String {
        let (source, destination) = (format!("fd00{:0>28}", 1), format!("fd00{:0>28}", 2));
        format!("6000000000081140{source}{destination}{DATAGRAM}")
    }

    #[test]
    fn a_packet_knows_where_it_goes() {
        for (text, to) in [(ipv4(), "10.0.0.2"), (ipv6(), "fd00::2")] {
            let packet: Packet = text.parse().unwrap();
            assert_eq!(packet.to, to.parse::<std::net::IpAddr>().unwrap());
        }
        assert!("45".parse::<Packet>().is_err());
        assert!("no digits".parse::<Packet>().is_err());
    }

    #[test]
    fn frames_to_the_port_are_told_by_their_source() {
        for (text, from) in [(ipv4(), "10.0.0.1"), (ipv6(), "fd00::1")] {
            let packet: Packet = text.parse().unwrap();
            let frame = [vec![0; ETHERNET_BYTES], packet.bytes].concat();
            assert_eq!(source(&frame, 9), Some(from.parse().unwrap()));
            assert_eq!(source(&frame, 10), None);
            assert_eq!(source(&frame[..ETHERNET_BYTES + 20], 9), None);
        }
    }
}
