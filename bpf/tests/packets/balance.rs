// SPDX-License-Identifier: Apache-2.0
//! The account balances while CPUs race: records + told losses = counters, in each generation.

use std::thread;

use wardline_bpf::abi::{Counters, Direction, Reason, Verdict};
use wardline_bpf::frame::{flag, tcp};
use wardline_bpf::sandbox::{Sandbox, Sizes};
use wardline_bpf::test_run::{self, Frame, Outcome};

use crate::world::{CLIENT, IFINDEX, POD, SLOT, STRANGER, World, port};

const INGRESS: usize = Direction::Ingress.index();
const SENDERS: u64 = 4;

/// The programs, for several threads at once.
pub struct Shared<'a>(pub &'a Sandbox);

// SAFETY: the threads run a program or write into a map. Both read a file descriptor and call the kernel; nothing of the
// sandbox itself changes while they do.
#[allow(unsafe_code, reason = "libbpf's handles are not marked as fit for sharing")]
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    pub fn run(&self, direction: Direction, frame: &[u8]) -> Outcome {
        self.0.run(direction, Frame::forwarded(frame, IFINDEX)).unwrap()
    }

    pub fn send(&self, frame: &[u8], times: u32) {
        let program = self.0.program(Direction::Ingress);
        test_run::run(program, Frame::forwarded(frame, IFINDEX), times).unwrap();
    }
}

fn due(counters: &Counters, verdict: Verdict) -> u64 {
    counters.due[INGRESS][verdict as usize]
}

#[test]
fn every_denied_packet_is_in_an_aggregate_or_told_as_lost() {
    deny(false);
}

#[test]
fn every_denied_packet_that_is_to_be_told_alone_is_in_the_ring_too() {
    deny(true);
}

/// Denies packets from all sides, and counts what they left.
fn deny(each: bool) {
    const PORTS: u16 = 150;
    const REPEATS: u32 = 40;
    let mut world = World::new(Sizes {
        denies: 720,
        deny_event_share: if each { 2000 } else { 0 },
        ..Sizes::default()
    });
    let generations = [world.settings.generation, world.settings.generation + 1];
    // Once in each, so that both halves of the counters and of the shares are used.
    for (index, generation) in generations.into_iter().enumerate() {
        let shared = Shared(&world.sandbox);
        thread::scope(|scope| {
            for _ in 0..SENDERS {
                scope.spawn(|| {
                    for pod_port in 1..=PORTS {
                        shared.send(
                            &tcp(port(STRANGER, 1), port(POD, pod_port + 10_000), flag::SYN),
                            REPEATS,
                        );
                    }
                });
            }
        });
        if index == 0 {
            world.change_settings(|settings| settings.generation = generations[1]);
        }
        let counted: u64 = (world.sandbox.denies().unwrap().iter())
            .filter(|(key, _)| key.generation == generation)
            .map(|(_, entry)| entry.count)
            .sum();
        let told = world.sandbox.take_events().unwrap().len() as u64;
        let lost = world.sandbox.deny_share(SLOT, generation).unwrap().overflow;
        let sent = SENDERS * u64::from(PORTS) * u64::from(REPEATS);
        let counters = world.sandbox.counters(generation).unwrap();
        assert_eq!(
            told + counted + lost,
            sent,
            "{told} told, {counted} counted, {lost} lost"
        );
        assert_eq!(told > 0, each, "{told} told");
        assert_eq!(due(&counters, Verdict::Deny), sent);
        assert_eq!(counters.packets[INGRESS][Reason::DefaultDeny as usize], sent);
        assert!(
            counted > 0 && lost > 0,
            "{counted} counted, {lost} lost: the tables are sized to show both"
        );
    }
}

#[test]
fn every_connection_has_one_entry_and_one_event_or_is_told_as_lost() {
    const CONNECTIONS: u16 = 2000;
    let world = World::new(Sizes {
        conntrack: 4096,
        ring: 64 << 10,
        ..Sizes::default()
    });
    let shared = Shared(&world.sandbox);
    thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| {
                for source_port in 1..=CONNECTIONS {
                    shared.send(&tcp(port(CLIENT, source_port), port(POD, 80), flag::SYN), 1);
                }
            });
        }
    });
    let counters = world.sandbox.counters(world.settings.generation).unwrap();
    let events = world.sandbox.take_events().unwrap().len() as u64;
    let lost = counters.ring_full[INGRESS];
    world.assert_entries(usize::from(CONNECTIONS));
    assert_eq!(due(&counters, Verdict::Allow), u64::from(CONNECTIONS));
    assert_eq!(
        counters.packets[INGRESS][Reason::Policy as usize],
        u64::from(CONNECTIONS)
    );
    assert_eq!(
        counters.packets[INGRESS][Reason::Established as usize],
        (SENDERS - 1) * u64::from(CONNECTIONS)
    );
    assert_eq!(events + lost, u64::from(CONNECTIONS), "{events} events, {lost} lost");
    assert!(
        events > 0 && lost > 0,
        "{events} events, {lost} lost: the ring is sized to show both"
    );
}
