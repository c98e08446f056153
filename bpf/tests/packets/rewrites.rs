// SPDX-License-Identifier: Apache-2.0
//! What a translation writes, byte by byte: packets that are rewritten field by field rather than at once, and
//! checksums, whatever they are made of.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use libbpf_rs::ProgramMut;
use wardline_bpf::abi::Direction::{self, Egress, Ingress};
use wardline_bpf::abi::Reason::{Established, NotIsolated};
use wardline_bpf::abi::SERVICE_TRANSLATE;
use wardline_bpf::frame::flag::{ACK, SYN};
use wardline_bpf::frame::protocol::{DESTINATION_OPTIONS, TCP, UDP};
use wardline_bpf::frame::{extended, ip, with_checksums};
use wardline_bpf::sandbox::Sizes;
use wardline_bpf::test_run::{self, Frame, Outcome};

use crate::fuzz::Dice;
use crate::malformed::{IP, edit};
use crate::row::{Row, pass};
use crate::services::{SERVICE, SERVICE6, datagram, segment};
use crate::world::{CLIENT, CLIENT6, IFINDEX, POD, POD6, World, port};

/// Its words add up to the same as those of [`SERVICE`]: no checksum tells the two apart.
const ALIKE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 97));

fn serve(world: &mut World) {
    world.set_table(Egress, 0);
    for (front, behind) in [(SERVICE, CLIENT), (SERVICE6, CLIENT6)] {
        world.set_service(TCP, port(front, 80), SERVICE_TRANSLATE, &[port(behind, 443)]);
        world.set_service(UDP, port(front, 53), SERVICE_TRANSLATE, &[port(behind, 5353)]);
    }
    world.set_service(TCP, port(SERVICE, 81), SERVICE_TRANSLATE, &[port(ALIKE, 443)]);
    world.set_service(UDP, port(SERVICE, 81), SERVICE_TRANSLATE, &[port(ALIKE, 5353)]);
}

/// An IPv4 frame with four bytes of options that say nothing.
fn with_options(frame: Vec<u8>) -> Vec<u8> {
    with_checksums(edit(frame, |frame| {
        frame.splice(IP + 20..IP + 20, [1, 1, 1, 0]);
        frame[IP] = 0x46;
        frame[IP + 3] += 4;
    }))
}

fn with_extension_header(frame: &[u8]) -> Vec<u8> {
    extended(frame, &[(DESTINATION_OPTIONS, vec![0, 0, 1, 4, 0, 0, 0, 0])])
}

fn without_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[IP + 20 + 6..][..2].fill(0);
    frame
}

pub fn field_by_field() -> Vec<Row> {
    let tcp = |from, to, flags| with_options(segment(from, to, flags));
    let udp6 = |from, to| with_extension_header(&datagram(from, to));
    vec![
        pass(
            "options, TCP",
            Egress,
            tcp(port(POD, 1), port(SERVICE, 80), SYN),
            NotIsolated,
        )
        .before(serve)
        .becomes(tcp(port(POD, 1), port(CLIENT, 443), SYN)),
        pass(
            "options, its answer",
            Ingress,
            tcp(port(CLIENT, 443), port(POD, 1), SYN | ACK),
            Established,
        )
        .becomes(tcp(port(SERVICE, 80), port(POD, 1), SYN | ACK)),
        pass(
            "an extension header, UDP",
            Egress,
            udp6(port(POD6, 1), port(SERVICE6, 53)),
            NotIsolated,
        )
        .becomes(udp6(port(POD6, 1), port(CLIENT6, 5353))),
        pass(
            "an extension header, its answer",
            Ingress,
            udp6(port(CLIENT6, 5353), port(POD6, 1)),
            Established,
        )
        .becomes(udp6(port(SERVICE6, 53), port(POD6, 1))),
        pass(
            "addresses that no checksum tells apart, TCP",
            Egress,
            segment(port(POD, 2), port(SERVICE, 81), SYN),
            NotIsolated,
        )
        .becomes(segment(port(POD, 2), port(ALIKE, 443), SYN)),
        pass(
            "addresses that no checksum tells apart, its answer",
            Ingress,
            segment(port(ALIKE, 443), port(POD, 2), SYN | ACK),
            Established,
        )
        .becomes(segment(port(SERVICE, 81), port(POD, 2), SYN | ACK)),
        pass(
            "addresses that no checksum tells apart, UDP",
            Egress,
            datagram(port(POD, 2), port(SERVICE, 81)),
            NotIsolated,
        )
        .becomes(datagram(port(POD, 2), port(ALIKE, 5353))),
        pass(
            "the same without a checksum",
            Egress,
            without_checksum(datagram(port(POD, 2), port(SERVICE, 81))),
            Established,
        )
        .becomes(without_checksum(datagram(port(POD, 2), port(ALIKE, 5353)))),
    ]
}

/// The same data in a datagram from and to other places: what makes the checksum 0 in `zero`, so that it is sent as
/// 0xffff.
fn with_data_of(zero: &[u8], frame: &[u8]) -> Vec<u8> {
    const DATA: usize = IP + 28;
    const CHECKSUM: usize = IP + 26;
    let blank = with_checksums(edit(zero.to_vec(), |frame| frame[DATA..DATA + 2].fill(0)));
    let data = &blank[CHECKSUM..CHECKSUM + 2];
    let fill = |frame: &[u8]| {
        with_checksums(edit(frame.to_vec(), |frame| {
            frame[DATA..DATA + 2].copy_from_slice(data);
        }))
    };
    assert_eq!(fill(zero)[CHECKSUM..CHECKSUM + 2], [0xff, 0xff]);
    fill(frame)
}

pub fn datagrams_whose_checksum_would_be_zero() -> Vec<Row> {
    let sent = datagram(port(POD, 1), port(SERVICE, 53));
    let forwarded = datagram(port(POD, 1), port(CLIENT, 5353));
    let answer = datagram(port(CLIENT, 5353), port(POD, 1));
    let returned = datagram(port(SERVICE, 53), port(POD, 1));
    vec![
        pass("when it is sent", Egress, with_data_of(&sent, &sent), NotIsolated)
            .before(serve)
            .becomes(with_data_of(&sent, &forwarded)),
        pass(
            "when it is forwarded",
            Egress,
            with_data_of(&forwarded, &sent),
            Established,
        )
        .becomes(with_data_of(&forwarded, &forwarded)),
        pass(
            "when it is answered",
            Ingress,
            with_data_of(&answer, &answer),
            Established,
        )
        .becomes(with_data_of(&answer, &returned)),
        pass(
            "when the answer comes from the Service",
            Ingress,
            with_data_of(&returned, &answer),
            Established,
        )
        .becomes(with_data_of(&returned, &returned)),
    ]
}

/// A packet with checksums whose bytes beside addresses and ports are those of `data`.
fn packet(protocol: u8, from: SocketAddr, to: SocketAddr, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut payload = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    if protocol == TCP {
        payload.extend(&data[..8]);
        payload.extend([0x50, flags, data[8], data[9], 0, 0, 0, 0]);
    } else {
        payload.extend(u16::try_from(8 + data.len() - 10).unwrap().to_be_bytes());
        payload.extend([0, 0]);
    }
    payload.extend(&data[10..]);
    with_checksums(ip(from.ip(), to.ip(), protocol, &payload))
}

fn any_address(dice: &mut Dice, like: IpAddr) -> IpAddr {
    let mut bytes: [u8; 16] = std::array::from_fn(|_| dice.byte());
    match like {
        IpAddr::V4(_) => Ipv4Addr::new(10 + bytes[0] % 64, bytes[1], bytes[2], bytes[3]).into(),
        IpAddr::V6(_) => {
            bytes[0] = 0x20;
            bytes.into()
        }
    }
}

fn any_port(dice: &mut Dice) -> u16 {
    u16::try_from(1 + dice.roll(65535)).unwrap()
}

/// How a frame is run.
type Run = fn(&ProgramMut<'_>, Frame<'_>) -> libbpf_rs::Result<Outcome>;

#[track_caller]
fn becomes(world: &World, direction: Direction, run: Run, sent: &[u8], expected: &[u8]) {
    let outcome = run(world.sandbox.program(direction), Frame::forwarded(sent, IFINDEX));
    let outcome = outcome.unwrap_or_else(|error| panic!("{sent:02x?}: {error}"));
    assert!(outcome.passed(), "{sent:02x?} did not pass");
    assert_eq!(
        outcome.frame, expected,
        "of {sent:02x?} became {:02x?}, not {expected:02x?}",
        outcome.frame
    );
}

/// Flows of both protocols and families, each a request and its answer.
fn translate_anything(run: Run) {
    const FLOWS: usize = 3000;
    let mut world = World::new(Sizes::default());
    world.set_table(Egress, 0);
    let mut dice = Dice(0x5eed);
    for flow in 0..FLOWS {
        let protocol = [TCP, UDP][flow & 1];
        let pod = [POD, POD6][flow >> 1 & 1];
        let client = port(pod, any_port(&mut dice));
        let [service, backend] = [(); 2].map(|()| port(any_address(&mut dice, pod), any_port(&mut dice)));
        world.set_service(protocol, service, SERVICE_TRANSLATE, &[backend]);
        let length = 10 + dice.roll(20);
        let mut data = || -> Vec<u8> { (0..length).map(|_| dice.byte()).collect() };
        let (request, answer) = (data(), data());
        let sent = |to| packet(protocol, client, to, SYN, &request);
        becomes(&world, Egress, run, &sent(service), &sent(backend));
        let answered = |from| packet(protocol, from, client, SYN | ACK, &answer);
        becomes(&world, Ingress, run, &answered(backend), &answered(service));
        world.forget(|_| true);
    }
}

#[test]
fn checksums_are_true_whatever_they_are_made_of() {
    translate_anything(|program, frame| test_run::run(program, frame, 1));
}

#[test]
fn the_sum_that_a_device_took_stays_true() {
    translate_anything(test_run::run_summed);
}
