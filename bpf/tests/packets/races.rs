// SPDX-License-Identifier: Apache-2.0
//! CPUs that see one new flow to a Service at the same moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Barrier;
use std::thread;

use wardline_bpf::abi::{CONNTRACK_ALIAS, Direction, Peer, Reason, SERVICE_TRANSLATE, Verdict};
use wardline_bpf::frame::flag::SYN;
use wardline_bpf::frame::protocol::TCP;
use wardline_bpf::frame::tcp;
use wardline_bpf::sandbox::Sizes;

use crate::balance::Shared;
use crate::services::SERVICE;
use crate::world::{PEERS, POD, World, port};

const EGRESS: usize = Direction::Egress.index();
const SENDERS: usize = 4;
const FLOWS: u16 = 4000;

/// Few enough that two CPUs often pick the same.
fn backends() -> Vec<SocketAddr> {
    (1..=3)
        .map(|last| port(Ipv4Addr::new(10, 0, 3, last).into(), 443))
        .collect()
}

/// Where the frame goes.
fn destination(frame: &[u8]) -> IpAddr {
    let octets: [u8; 4] = frame[30..34].try_into().unwrap();
    octets.into()
}

/// Each sender's destinations, flow by flow; all begin each flow together.
fn send_all(world: &World) -> Vec<Vec<IpAddr>> {
    let shared = Shared(&world.sandbox);
    let together = Barrier::new(SENDERS);
    let send = || {
        (1..=FLOWS)
            .map(|flow| {
                let frame = tcp(port(POD, flow), port(SERVICE, 80), SYN);
                together.wait();
                let outcome = shared.run(Direction::Egress, &frame);
                assert!(outcome.passed(), "{outcome:?}");
                destination(&outcome.frame)
            })
            .collect()
    };
    thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    })
}

#[test]
fn a_flow_that_several_cpus_open_at_once_has_one_backend_and_one_event() {
    let mut world = World::new(Sizes {
        conntrack: 16_384,
        ring: 1 << 20,
        ..Sizes::default()
    });
    world.set_service(TCP, port(SERVICE, 80), SERVICE_TRANSLATE, &backends());
    for backend in backends() {
        world
            .sandbox
            .set_peer(PEERS, backend.ip(), Peer { class: 1, flags: 0 })
            .unwrap();
    }
    let seen = send_all(&world);

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
    for flow in 1..=FLOWS {
        let chosen: BTreeSet<IpAddr> = seen.iter().map(|of| of[usize::from(flow) - 1]).collect();
        assert_eq!(chosen, BTreeSet::from([entries[&flow]]), "flow {flow}");
    }

    let counters = world.sandbox.counters(world.settings.generation).unwrap();
    let packets = counters.packets[EGRESS];
    let others = (SENDERS as u64 - 1) * u64::from(FLOWS);
    assert_eq!(packets[Reason::Policy as usize], u64::from(FLOWS));
    assert_eq!(packets[Reason::Established as usize], others);
    assert_eq!(counters.due[EGRESS][Verdict::Allow as usize], u64::from(FLOWS));
    assert_eq!(world.sandbox.take_events().unwrap().len(), usize::from(FLOWS));
}
