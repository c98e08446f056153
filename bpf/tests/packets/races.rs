// SPDX-License-Identifier: Apache-2.0
//! CPUs that see one new flow to a Service at the same moment, and entries that change while they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use wardline_bpf::abi::{
    CONNTRACK_ALIAS, ConntrackEntry, ConntrackKey, ConntrackState, Direction, Peer, Reason, SERVICE_TRANSLATE, Verdict,
};
use wardline_bpf::frame::flag::{ACK, SYN};
use wardline_bpf::frame::protocol::TCP;
use wardline_bpf::frame::tcp;
use wardline_bpf::sandbox::Sizes;
use wardline_bpf::test_run::Outcome;

use crate::balance::Shared;
use crate::services::SERVICE;
use crate::world::{CLIENT, PEERS, POD, World, port};

const EGRESS: usize = Direction::Egress.index();
const SENDERS: usize = 2;

fn backends(count: u8) -> Vec<SocketAddr> {
    (1..=count)
        .map(|last| port(Ipv4Addr::new(10, 0, 3, last).into(), 443))
        .collect()
}

/// Where a packet that passed goes.
fn destination(outcome: &Outcome) -> IpAddr {
    assert!(outcome.passed(), "{outcome:?}");
    let octets: [u8; 4] = outcome.frame[30..34].try_into().unwrap();
    octets.into()
}

/// Lets threads begin something together, to within less than the time that a packet takes: no lock does.
struct Start(AtomicUsize);

impl Start {
    /// Returns when as many threads as there are senders have come for the `round`th time.
    fn wait(&self, round: usize) {
        self.0.fetch_add(1, Ordering::AcqRel);
        let mut spins = 0;
        while self.0.load(Ordering::Acquire) < round * SENDERS {
            spins += 1;
            if spins % 1000 == 0 {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

/// What becomes of each sender's packets, flow by flow; all begin each flow together.
fn send_all(world: &World, flows: u16) -> Vec<Vec<Outcome>> {
    let shared = Shared(&world.sandbox);
    let start = Start(AtomicUsize::new(0));
    let send = || {
        (1..=flows)
            .map(|flow| {
                let frame = tcp(port(POD, flow), port(SERVICE, 80), SYN);
                start.wait(flow.into());
                shared.run(Direction::Egress, &frame)
            })
            .collect()
    };
    thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    })
}

fn have_one_backend_and_one_event(flows: u16, backends: &[SocketAddr]) {
    let mut world = World::new(Sizes {
        conntrack: 131_072,
        ring: 8 << 20,
        ..Sizes::default()
    });
    world.set_service(TCP, port(SERVICE, 80), SERVICE_TRANSLATE, backends);
    for backend in backends {
        world
            .sandbox
            .set_peer(PEERS, backend.ip(), Peer { class: 1, flags: 0 })
            .unwrap();
    }
    let seen = send_all(&world, flows);

    let mut entries = BTreeMap::new();
    let mut aliases = BTreeMap::new();
    for (key, entry) in world.sandbox.conntrack().unwrap() {
        let is_alias = u32::from(entry.flags) & CONNTRACK_ALIAS != 0;
        let (of, leads_to) = if is_alias {
            (&mut aliases, entry.nat)
        } else {
            (&mut entries, key.remote)
        };
        let former = of.insert(u16::from_be(key.pod_port), IpAddr::from(leads_to));
        assert_eq!(former, None, "two of flow {}", u16::from_be(key.pod_port));
    }
    assert_eq!(entries, aliases);
    for flow in 1..=flows {
        let chosen: BTreeSet<IpAddr> = seen.iter().map(|of| destination(&of[usize::from(flow) - 1])).collect();
        assert_eq!(chosen, BTreeSet::from([entries[&flow]]), "flow {flow}");
    }

    let counters = world.sandbox.counters(world.settings.generation).unwrap();
    let packets = counters.packets[EGRESS];
    let others = (SENDERS as u64 - 1) * u64::from(flows);
    assert_eq!(packets[Reason::Policy as usize], u64::from(flows));
    assert_eq!(packets[Reason::Established as usize], others);
    assert_eq!(counters.due[EGRESS][Verdict::Allow as usize], u64::from(flows));
    assert_eq!(world.sandbox.take_events().unwrap().len(), usize::from(flows));
}

/// Each CPU picks one, and only one may have it.
#[test]
fn a_flow_that_cpus_open_at_once_has_one_backend_and_one_event() {
    have_one_backend_and_one_event(10_000, &backends(2));
}

/// Both pick the same, and of what one has written half the other writes the rest.
#[test]
fn a_flow_that_cpus_open_at_once_to_one_backend_has_one_event() {
    have_one_backend_and_one_event(30_000, &backends(1));
}

/// A preallocated hash hands the element of an entry that is replaced to the next entry at once, whoever reads it still.
#[test]
fn no_packet_is_stopped_by_the_entry_of_another_flow() {
    const ROUNDS: u32 = 8;
    const REPEATS: u32 = 1_000_000;
    let world = World::new(Sizes::default());
    let shared = Shared(&world.sandbox);
    let to_pod = |flags| tcp(port(CLIENT, 1), port(POD, 80), flags);
    shared.run(Direction::Ingress, &to_pod(SYN));
    shared.run(Direction::Egress, &tcp(port(POD, 80), port(CLIENT, 1), SYN | ACK));
    shared.run(Direction::Ingress, &to_pod(ACK));
    let [(key, entry)] = world.sandbox.conntrack().unwrap()[..] else {
        panic!("one flow has one entry");
    };
    let another_key = ConntrackKey {
        remote_port: 2_u16.to_be(),
        ..key
    };
    let denied = ConntrackEntry {
        state: ConntrackState::Denied.into(),
        ..entry
    };

    let is_over = AtomicBool::new(false);
    let replaced = thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            let mut times = 0;
            while !is_over.load(Ordering::Relaxed) {
                shared.0.set_conntrack(&key, &entry).unwrap();
                shared.0.set_conntrack(&another_key, &denied).unwrap();
                times += 1;
            }
            times
        });
        for _ in 0..ROUNDS {
            shared.send(&to_pod(ACK), REPEATS);
        }
        is_over.store(true, Ordering::Relaxed);
        replacing.join().unwrap()
    });
    println!("the entry was replaced {replaced} times");

    let counters = world.sandbox.counters(world.settings.generation).unwrap();
    let seen: BTreeMap<_, _> = Reason::ALL
        .into_iter()
        .map(|reason| (reason, counters.packets[Direction::Ingress.index()][reason as usize]))
        .filter(|(_, packets)| *packets > 0)
        .collect();
    let established = u64::from(ROUNDS * REPEATS) + 1;
    assert_eq!(
        seen,
        BTreeMap::from([(Reason::Policy, 1), (Reason::Established, established)])
    );
    assert_eq!(world.sandbox.denies().unwrap(), []);
}
