// SPDX-License-Identifier: Apache-2.0
//! Arbitrary frames, most of them made from those of the tables and some from the answers to what passed, forwarded and
//! of the node's own sockets, through the programs under a policy that denies nearly everything, with Services. Whatever
//! they are: nothing passes that the oracle would deny, each is counted once, and the account balances. Where policy is
//! only watched, nothing is dropped but what must be.
//!
//! `WARDLINE_FUZZ_CASES` and `WARDLINE_FUZZ_SEED` make a run longer, and another one.

use std::env;
use std::net::IpAddr;

use wardline_bpf::abi::{Direction, Enforcement, Reason, SERVICE_TRANSLATE, Verdict};
use wardline_bpf::frame::protocol::{TCP, UDP};
use wardline_bpf::frame::{ethernet, extended, fragment, turned_round};
use wardline_bpf::sandbox::Sizes;
use wardline_bpf::test_run::Outcome;

use crate::node;
use crate::oracle::Oracle;
use crate::row::Origin;
use crate::services::{SERVICE, SERVICE6};
use crate::tables;
use crate::world::{CLIENT, CLIENT6, POD, POD6, SLOT, STRANGER, World, port};

const CASES: u64 = 200_000;
/// Frames after which the account is looked at.
const BATCH: u64 = 500;
/// Values that mean something somewhere in a header.
const TELLING: [u8; 20] = [
    0, 1, 2, 5, 6, 8, 17, 20, 43, 44, 51, 58, 59, 60, 64, 128, 132, 134, 143, 255,
];

/// xorshift64*: a failure is found again by its seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % sides.max(1)
    }

    pub fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).unwrap()
    }
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|error| panic!("{name}: {error}"))
    })
}

fn raw(dice: &mut Dice) -> Vec<u8> {
    let bytes: Vec<u8> = (0..dice.roll(120) + 60).map(|_| dice.byte()).collect();
    ethernet([0x0800, 0x86dd, 0x0806, 0x8100][dice.roll(4)], &bytes)
}

fn mutate(dice: &mut Dice, frame: &mut Vec<u8>) {
    let is_ipv6 = frame.len() > 60 && frame[12..14] == [0x86, 0xdd];
    let at = dice.roll(frame.len().min(110));
    match dice.roll(8) {
        0 => frame[at] ^= 1 << dice.roll(8),
        1 => frame[at] = TELLING[dice.roll(TELLING.len())],
        2 => frame[at] = dice.byte(),
        3 => frame.truncate(dice.roll(frame.len()).max(54)),
        4 => frame.extend((0..dice.roll(64)).map(|_| 0)),
        5 if is_ipv6 => {
            let kind = [0, 43, 44, 51, 60, 135][dice.roll(6)];
            let mut header = vec![0; 8];
            header[dice.roll(7) + 1] = TELLING[dice.roll(TELLING.len())];
            *frame = extended(frame, &[(kind, header)]);
        }
        6 if frame.len() > 62 => {
            let start = dice.roll(4) * 8;
            *frame = fragment(frame, u16::from(dice.byte() & 3), start..start + (dice.roll(5) + 1) * 8);
        }
        _ => {
            let from = dice.roll(frame.len());
            let value = frame[from];
            frame[at] = value;
        }
    }
}

/// What the kernel takes for a frame at all.
fn is_runnable(frame: &[u8]) -> bool {
    let header = match frame.get(12..14) {
        Some([0x08, 0x00]) => 20,
        Some([0x86, 0xdd]) => 40,
        _ => 0,
    };
    frame.len() >= 14 + header && frame.len() < 1500
}

/// What could answer the frame: addresses and ports the other way round, and other TCP flags.
fn answer(dice: &mut Dice, frame: &[u8]) -> Vec<u8> {
    let mut frame = turned_round(frame.to_vec());
    let (addresses, header, protocol) = match frame.get(12..14) {
        Some([0x08, 0x00]) => (26..34, 14 + usize::from(frame[14] & 15) * 4, frame[23]),
        Some([0x86, 0xdd]) => (22..54, 54, frame[20]),
        _ => return frame,
    };
    let bytes = addresses.len() / 2;
    frame[addresses].rotate_left(bytes);
    if matches!(protocol, 6 | 17 | 132)
        && let Some(ports) = frame.get_mut(header..header + 4)
    {
        ports.rotate_left(2);
    }
    if protocol == TCP
        && let Some(flags) = frame.get_mut(header + 13)
    {
        *flags = [0x12, 0x10, 0x11, 0x04, 0x02][dice.roll(5)];
    }
    frame
}

/// Whether the frame goes to the pod, from wherever.
fn is_to_pod(frame: &[u8]) -> bool {
    let destination: Option<IpAddr> = match frame.get(12..14) {
        Some([0x08, 0x00]) => <[u8; 4]>::try_from(&frame[30..34]).ok().map(IpAddr::from),
        Some([0x86, 0xdd]) => <[u8; 16]>::try_from(&frame[38..54]).ok().map(IpAddr::from),
        _ => None,
    };
    destination.is_some_and(|address| [POD, POD6].contains(&address))
}

/// A pod under attack, and what became of all the frames so far.
struct Attack {
    world: World,
    dice: Dice,
    corpus: Vec<(Direction, Vec<u8>)>,
    /// What answers a frame that passed, to be sent next.
    answer: Option<(Direction, Vec<u8>)>,
    sent: u64,
    passed: u64,
    back: u64,
    events: u64,
}

/// One frame, and what became of it.
struct Shot {
    direction: Direction,
    frame: Vec<u8>,
    origin: Origin,
    outcome: Outcome,
}

impl Attack {
    fn new(seed: u64) -> Self {
        let mut world = World::new(Sizes {
            conntrack: 65_536,
            denies: 900,
            ..Sizes::default()
        });
        for (service, backend) in [(SERVICE, CLIENT), (SERVICE6, CLIENT6)] {
            world.set_service(TCP, port(service, 80), SERVICE_TRANSLATE, &[port(backend, 443)]);
            world.set_service(UDP, port(service, 5353), SERVICE_TRANSLATE, &[port(backend, 53)]);
        }
        world.set_service(TCP, port(SERVICE, 81), SERVICE_TRANSLATE, &[port(STRANGER, 443)]);
        world.set_service(UDP, port(SERVICE, 53), SERVICE_TRANSLATE, &[port(POD, 53)]);
        world.set_service(0, port(SERVICE, 0), SERVICE_TRANSLATE, &[]);
        Self {
            world,
            dice: Dice(seed | 1),
            corpus: tables::frames(),
            answer: None,
            sent: 0,
            passed: 0,
            back: 0,
            events: 0,
        }
    }

    fn next(&mut self) -> (Direction, Vec<u8>) {
        let dice = &mut self.dice;
        let (mut direction, mut frame) = match self.answer.take() {
            Some(answer) if dice.roll(4) == 0 => answer,
            _ => self.corpus[dice.roll(self.corpus.len())].clone(),
        };
        if dice.roll(20) == 0 {
            frame = raw(dice);
        }
        for _ in 0..dice.roll(4) {
            mutate(dice, &mut frame);
        }
        if dice.roll(8) == 0 {
            direction = direction.opposite();
        }
        (direction, frame)
    }

    /// None: the kernel does not take it for a frame.
    fn shoot(&mut self) -> Option<Shot> {
        let (direction, frame) = self.next();
        let origin = match self.dice.roll(20) {
            0 | 1 => Origin::Node,
            2 => Origin::Pod,
            _ => Origin::Elsewhere,
        };
        let sent = origin.frame(&frame);
        let outcome = is_runnable(&frame).then(|| self.world.sandbox.run(direction, sent).ok())??;
        self.sent += 1;
        self.passed += u64::from(outcome.passed());
        self.back += u64::from(outcome.sent_back());
        if outcome.passed() {
            self.answer = Some((direction.opposite(), answer(&mut self.dice, &outcome.frame)));
        }
        if self.sent.is_multiple_of(BATCH) {
            self.check_account();
        }
        Some(Shot {
            direction,
            frame,
            origin,
            outcome,
        })
    }

    fn counted(&self, reason: Reason) -> u64 {
        let counters = self.world.sandbox.counters(self.world.settings.generation).unwrap();
        counters.packets.iter().map(|of| of[reason as usize]).sum()
    }

    fn report(&self) {
        let seen: Vec<String> = Reason::ALL
            .into_iter()
            .map(|reason| (reason, self.counted(reason)))
            .filter(|(_, packets)| *packets > 0)
            .map(|(reason, packets)| format!("{reason} {packets}"))
            .collect();
        println!("{} passed, {} sent back; {}", self.passed, self.back, seen.join(", "));
    }

    fn check_account(&mut self) {
        let world = &self.world;
        self.events += world.sandbox.take_events().unwrap().len() as u64;
        let counters = world.sandbox.counters(world.settings.generation).unwrap();
        let counted: u64 = counters.packets.as_flattened().iter().sum();
        assert_eq!(counted, self.sent, "each is counted under one reason");
        let due = |verdict: Verdict| counters.due.iter().map(|of| of[verdict as usize]).sum::<u64>();
        let lost: u64 = counters.ring_full.iter().sum();
        assert_eq!(
            due(Verdict::Allow),
            self.events + lost,
            "an event for each allow that asks for one"
        );
        let told: u64 = world
            .sandbox
            .denies()
            .unwrap()
            .iter()
            .map(|(_, entry)| entry.count)
            .sum();
        let overflow: u64 = [0, 1]
            .map(|index| {
                world
                    .sandbox
                    .deny_share(SLOT + index, world.settings.generation)
                    .unwrap()
                    .overflow
            })
            .iter()
            .sum();
        assert_eq!(due(Verdict::Deny), told + overflow, "a record for each deny");
    }
}

/// How many frames, and which.
fn size(cases: u64) -> (u64, u64) {
    let cases = number("WARDLINE_FUZZ_CASES", cases);
    let seed = number("WARDLINE_FUZZ_SEED", 0x5eed);
    println!("{cases} frames, WARDLINE_FUZZ_SEED={seed}");
    (cases, seed)
}

#[test]
fn nothing_passes_that_the_oracle_denies() {
    let (cases, seed) = size(CASES);
    let _sockets = node::listen();
    let mut attack = Attack::new(seed);
    let mut oracle = Oracle::default();
    while attack.sent < cases {
        let Some(shot) = attack.shoot() else { continue };
        let (direction, origin) = (shot.direction, shot.origin);
        // What goes to a Service is judged by where it really goes, and an answer by where it really comes from.
        let judged = match direction {
            Direction::Egress => &shot.outcome.frame,
            Direction::Ingress => &shot.frame,
        };
        let is_sound = if shot.outcome.passed() {
            oracle.permits(direction, judged, origin).is_some()
        } else {
            shot.outcome.dropped() || (direction == Direction::Egress && is_to_pod(judged))
        };
        assert!(
            is_sound,
            "seed {seed}, frame {}: {direction}, {origin:?}: {:02x?} {:?}",
            attack.sent, shot.frame, shot.outcome
        );
    }
    attack.check_account();
    attack.report();
    let passed = attack.passed;
    assert!(
        passed > cases / 20 && passed < cases,
        "neither all nor nothing: {passed}"
    );
    assert!(attack.counted(Reason::Established) > 0 && attack.back > 0);
}

#[test]
fn where_policy_is_only_watched_nothing_is_dropped() {
    let (cases, seed) = size(CASES / 4);
    let _sockets = node::listen();
    let mut attack = Attack::new(seed);
    attack.world.change_settings(|settings| {
        settings.policy = Enforcement::Audit.into();
        settings.source_check = Enforcement::Audit.into();
    });
    while attack.sent < cases {
        attack.shoot();
    }
    attack.check_account();
    attack.report();
    // What is refused is either answered or, with options say, dropped without an answer; policy has no part in it.
    let dropped = attack.sent - attack.passed - attack.back;
    let forged = attack.counted(Reason::ForgedNeighbour);
    let refused = forged..=forged + attack.counted(Reason::Refused);
    assert!(refused.contains(&dropped), "{dropped} of {refused:?}");
}
