// SPDX-License-Identifier: Apache-2.0
//! CPUs that see one new flow to a Service at the same moment, and entries that change while they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use wardline_bpf::abi::{
    CONNTRACK_ALIAS, CONNTRACK_LOCAL, ConntrackEntry, ConntrackKey, ConntrackState, Direction, Peer, RULE_ALLOW,
    Reason, Rule, SERVICE_TRANSLATE, Verdict,
};
use wardline_bpf::frame::flag::SYN;
use wardline_bpf::frame::protocol::{TCP, UDP};
use wardline_bpf::frame::{tcp, udp};
use wardline_bpf::sandbox::Sizes;
use wardline_bpf::test_run::Outcome;

use crate::balance::Shared;
use crate::services::SERVICE;
use crate::world::{CLIENT, EGRESS_TABLE, PEERS, POD, POD_TO_443, World, port};

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

/// Ends what another thread does, also where its own panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many of that many answers of a server are stopped while the entries of their flow, and of three others that `change`
/// makes of it, are replaced all the time.
fn stopped(sizes: Sizes, answers: u32, change: fn(&mut ConntrackEntry)) -> u64 {
    const SERVER: u16 = 54;
    let mut world = World::new(sizes);
    let rule = Rule {
        attribution: POD_TO_443,
        flags: RULE_ALLOW,
    };
    world.rule(EGRESS_TABLE, 1, UDP, SERVER, rule);
    world.set_table(Direction::Ingress, 200);
    let shared = Shared(&world.sandbox);
    let answer = udp(port(CLIENT, SERVER), port(POD, 1));
    shared.run(Direction::Egress, &udp(port(POD, 1), port(CLIENT, SERVER)));
    shared.run(Direction::Ingress, &answer);
    let [(key, mut entry)] = world.sandbox.conntrack().unwrap()[..] else {
        panic!("one flow has one entry");
    };
    // It is put back as old as it is now, and must not expire on a slow machine.
    entry.state = ConntrackState::Stream.into();
    let mut other = entry;
    change(&mut other);

    let is_over = AtomicBool::new(false);
    let replaced = thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            let mut times = 0;
            while !is_over.load(Ordering::Relaxed) {
                for pod_port in 1..=4_u16 {
                    let pod_port = pod_port.to_be();
                    let next = if pod_port == key.pod_port { &entry } else { &other };
                    shared.0.set_conntrack(&ConntrackKey { pod_port, ..key }, next).unwrap();
                }
                times += 1;
            }
            times
        });
        let ends = Ends(&is_over);
        shared.send(&answer, answers);
        drop(ends);
        replacing.join().unwrap()
    });
    println!("the entry was replaced {replaced} times");

    let counters = world.sandbox.counters(world.settings.generation).unwrap();
    let passed = counters.packets[Direction::Ingress.index()][Reason::Established as usize];
    u64::from(answers) + 1 - passed
}

/// A preallocated hash hands the element of an entry that is replaced to the next entry at once, whoever reads it still.
fn is_never_stopped_by(change: fn(&mut ConntrackEntry)) {
    assert_eq!(stopped(Sizes::default(), 4_000_000, change), 0);
}

#[test]
fn no_packet_is_stopped_by_the_entry_of_a_denied_flow() {
    is_never_stopped_by(|entry| entry.state = ConntrackState::Denied.into());
}

#[test]
fn no_packet_is_stopped_by_the_entry_of_a_flow_with_the_node() {
    is_never_stopped_by(|entry| entry.flags |= u8::try_from(CONNTRACK_LOCAL).unwrap());
}

#[test]
fn no_packet_is_stopped_by_the_alias_of_a_service() {
    is_never_stopped_by(|entry| entry.flags |= u8::try_from(CONNTRACK_ALIAS).unwrap());
}

#[test]
fn no_packet_is_stopped_by_the_entry_of_a_flow_that_is_over() {
    is_never_stopped_by(|entry| entry.last_seen = entry.last_seen.wrapping_sub(10_000));
}

/// An entry that is replaced goes to the front of its bucket, so that who is past that finds neither. To miss it twice
/// takes more than any cluster does; but this does more.
#[test]
fn hardly_a_packet_misses_an_entry_that_is_replaced() {
    // In about half of the tables the flow shares its bucket with another.
    const TABLES: u32 = 4;
    let few_buckets = || Sizes {
        conntrack: 4,
        ..Sizes::default()
    };
    let stopped: u64 = (0..TABLES)
        .map(|_| stopped(few_buckets(), 4_000_000 / TABLES, |_| ()))
        .sum();
    assert!(stopped < 5, "{stopped} packets");
}
