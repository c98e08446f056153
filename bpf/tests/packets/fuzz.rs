// SPDX-License-Identifier: Apache-2.0
//! Arbitrary frames, most of them made from those of the tables, through the programs under a policy that denies
//! nearly everything. Whatever they are: nothing passes that the oracle would deny, each is counted once, and the
//! account balances.
//!
//! `WARDLINE_FUZZ_CASES` and `WARDLINE_FUZZ_SEED` make a run longer, and another one.

use std::env;

use wardline_bpf::abi::{Reason, Verdict};
use wardline_bpf::frame::{ethernet, extended, fragment};
use wardline_bpf::sandbox::Sizes;
use wardline_bpf::test_run::Frame;

use crate::oracle::Oracle;
use crate::tables;
use crate::world::{IFINDEX, SLOT, World};

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

fn check_account(world: &World, sent: u64, events: &mut u64) {
    *events += world.sandbox.take_events().unwrap().len() as u64;
    let counters = world.sandbox.counters(world.settings.generation).unwrap();
    let counted: u64 = counters.packets.as_flattened().iter().sum();
    assert_eq!(counted, sent, "each is counted under one reason");
    let due = |verdict: Verdict| counters.due.iter().map(|of| of[verdict as usize]).sum::<u64>();
    let lost: u64 = counters.ring_full.iter().sum();
    assert_eq!(
        due(Verdict::Allow),
        *events + lost,
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

#[test]
fn nothing_passes_that_the_oracle_denies() {
    let cases = number("WARDLINE_FUZZ_CASES", CASES);
    let seed = number("WARDLINE_FUZZ_SEED", 0x5eed);
    println!("{cases} frames, WARDLINE_FUZZ_SEED={seed}");
    let corpus = tables::frames();
    let world = World::new(Sizes {
        conntrack: 65_536,
        denies: 256,
        deny_share: 100,
        ..Sizes::default()
    });
    let mut dice = Dice(seed | 1);
    let (mut oracle, mut events) = (Oracle::default(), 0);
    let (mut sent, mut passed) = (0_u64, 0_u64);
    while sent < cases {
        let (mut direction, mut frame) = corpus[dice.roll(corpus.len())].clone();
        if dice.roll(20) == 0 {
            frame = raw(&mut dice);
        }
        for _ in 0..dice.roll(4) {
            mutate(&mut dice, &mut frame);
        }
        if dice.roll(8) == 0 {
            direction = direction.opposite();
        }
        if !is_runnable(&frame) {
            continue;
        }
        let Ok(outcome) = world.sandbox.run(direction, Frame::forwarded(&frame, IFINDEX)) else {
            continue;
        };
        sent += 1;
        if outcome.passed() {
            passed += 1;
            let verdict = oracle.permits(direction, &frame, false);
            assert!(
                verdict.is_some(),
                "seed {seed}, frame {sent}: passed {direction}: {frame:02x?}"
            );
        }
        if sent % BATCH == 0 {
            check_account(&world, sent, &mut events);
        }
    }
    check_account(&world, sent, &mut events);
    let counters = world.sandbox.counters(world.settings.generation).unwrap();
    let seen: Vec<String> = Reason::ALL
        .into_iter()
        .map(|reason| {
            (
                reason,
                counters.packets.iter().map(|of| of[reason as usize]).sum::<u64>(),
            )
        })
        .filter(|(_, packets)| *packets > 0)
        .map(|(reason, packets)| format!("{reason} {packets}"))
        .collect();
    println!("{passed} passed; {}", seen.join(", "));
    assert!(
        passed > cases / 20 && passed < cases,
        "neither all nor nothing: {passed}"
    );
}
