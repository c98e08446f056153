// SPDX-License-Identifier: Apache-2.0
//! Shares of the connection table: whoever floods fills its own, and no other's.

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{ConnectionQuota, Established, HalfOpenQuota, Midstream, Policy};
use wardline_bpf::abi::{Endpoint, Reason, Verdict};
use wardline_bpf::frame::flag::{ACK, RST, SYN};
use wardline_bpf::frame::protocol::{TCP, UDP};
use wardline_bpf::frame::{tcp, udp};
use wardline_bpf::sandbox::Sizes;
use wardline_bpf::test_run::Frame;

use crate::harness::{self, Side};
use crate::row::{Table, pass, stop};
use crate::services::{SERVICE, one_backend, segment};
use crate::world::{ANY_UDP, CLIENT, CLIENT_TO_80, IFINDEX, POD, POD_TO_443, SLOT, STRANGER, UID, World, port};

fn to_pod(source_port: u16, flags: u8) -> Vec<u8> {
    tcp(port(CLIENT, source_port), port(POD, 80), flags)
}

fn from_pod(remote_port: u16, flags: u8) -> Vec<u8> {
    tcp(port(POD, 80), port(CLIENT, remote_port), flags)
}

pub fn connections_of_one_pod() -> Table {
    let rows = vec![
        pass("one", Ingress, to_pod(1, SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass("two", Ingress, to_pod(2, SYN), Policy).event(Ingress, CLIENT_TO_80),
        stop("one too many", Ingress, to_pod(3, SYN), ConnectionQuota).deny(Ingress, CLIENT, TCP, 80),
        stop(
            "a datagram too",
            Ingress,
            udp(port(CLIENT, 3), port(POD, 3)),
            ConnectionQuota,
        )
        .deny(Ingress, CLIENT, UDP, 3),
        pass("who has an entry goes on", Egress, from_pod(1, SYN | ACK), Established),
        pass("and closes it", Egress, from_pod(2, RST), Established),
        pass("one in its place", Ingress, to_pod(2, SYN), Policy).event(Ingress, CLIENT_TO_80),
    ];
    Table {
        sizes: Sizes {
            connection_quota: 2,
            ..Sizes::default()
        },
        rows,
    }
}

pub fn half_open_connections_of_one_pod() -> Table {
    let rows = vec![
        pass("one", Ingress, to_pod(1, SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass("a datagram", Ingress, udp(port(CLIENT, 2), port(POD, 2)), Policy).event(Ingress, ANY_UDP),
        stop("one too many", Ingress, to_pod(3, SYN), HalfOpenQuota).deny(Ingress, CLIENT, TCP, 80),
        pass("the first is answered", Egress, from_pod(1, SYN | ACK), Established),
        stop("which any SYN is", Ingress, to_pod(3, SYN), HalfOpenQuota).deny(Ingress, CLIENT, TCP, 80),
        pass("its client goes on", Ingress, to_pod(1, ACK), Established),
        pass("now it has room", Ingress, to_pod(3, SYN), Policy).event(Ingress, CLIENT_TO_80),
        stop("and is full again", Ingress, to_pod(4, SYN), HalfOpenQuota).deny(Ingress, CLIENT, TCP, 80),
        pass("an answered one ends", Ingress, to_pod(1, RST), Established),
        pass("and may come back", Ingress, to_pod(1, SYN), Policy).event(Ingress, CLIENT_TO_80),
        pass(
            "the datagram is answered",
            Egress,
            udp(port(POD, 2), port(CLIENT, 2)),
            Established,
        ),
        stop("three are not", Ingress, to_pod(4, SYN), HalfOpenQuota).deny(Ingress, CLIENT, TCP, 80),
        pass("refused", Egress, from_pod(3, RST | ACK), Established),
        pass("room again", Ingress, to_pod(4, SYN), Policy).event(Ingress, CLIENT_TO_80),
    ];
    Table {
        sizes: Sizes {
            half_open_quota: 2,
            ..Sizes::default()
        },
        rows,
    }
}

/// What a pod opens has half of the room.
pub fn half_open_connections_that_a_pod_opens() -> Table {
    let from = |source_port| tcp(port(POD, source_port), port(CLIENT, 443), SYN);
    let rows = vec![
        pass("one", Egress, from(1), Policy).event(Egress, POD_TO_443),
        stop("one too many", Egress, from(2), HalfOpenQuota).deny(Egress, CLIENT, TCP, 443),
        pass("others find room", Ingress, to_pod(1, SYN), Policy).event(Ingress, CLIENT_TO_80),
        stop("as much again", Ingress, to_pod(2, SYN), HalfOpenQuota).deny(Ingress, CLIENT, TCP, 80),
    ];
    Table {
        sizes: Sizes {
            half_open_quota: 2,
            ..Sizes::default()
        },
        rows,
    }
}

/// What a pod opens has three quarters of the room, answered or not.
pub fn connections_that_a_pod_opens() -> Table {
    let from = |source_port| tcp(port(POD, source_port), port(CLIENT, 443), SYN);
    let rows = vec![
        pass("one", Egress, from(1), Policy).event(Egress, POD_TO_443),
        pass("two", Egress, from(2), Policy).event(Egress, POD_TO_443),
        pass("three", Egress, from(3), Policy).event(Egress, POD_TO_443),
        stop("one too many", Egress, from(4), ConnectionQuota).deny(Egress, CLIENT, TCP, 443),
        pass("others find room", Ingress, to_pod(1, SYN), Policy).event(Ingress, CLIENT_TO_80),
        stop("all of it", Ingress, to_pod(2, SYN), ConnectionQuota).deny(Ingress, CLIENT, TCP, 80),
    ];
    Table {
        sizes: Sizes {
            connection_quota: 4,
            ..Sizes::default()
        },
        rows,
    }
}

/// To a pod that may send anywhere, from somebody who may send it nothing.
pub fn strays_of_a_stranger() -> Table {
    let stray = |source_port| tcp(port(STRANGER, source_port), port(POD, 80), ACK);
    let reset = |remote_port| tcp(port(POD, 80), port(STRANGER, remote_port), RST);
    let rows = vec![
        pass("one", Ingress, stray(1), Midstream).before(|world| world.set_table(Egress, 0)),
        pass("the pod knows of none", Egress, reset(1), Midstream),
        pass("two", Ingress, stray(2), Midstream),
        pass("nor of that", Egress, reset(2), Midstream).after(|world| world.assert_entries(0)),
        pass("a client", Ingress, to_pod(1, SYN), Policy).event(Ingress, CLIENT_TO_80),
    ];
    Table {
        sizes: Sizes {
            connection_quota: 1,
            ..Sizes::default()
        },
        rows,
    }
}

/// Each takes two entries: the backend's and the Service's.
pub fn connections_through_a_service() -> Table {
    let to_service = |source_port| segment(port(POD, source_port), port(SERVICE, 80), SYN);
    let to_backend = |source_port| segment(port(POD, source_port), port(CLIENT, 443), SYN);
    let rows = vec![
        pass("one", Egress, to_service(1), Policy)
            .before(one_backend)
            .becomes(to_backend(1))
            .event(Egress, POD_TO_443),
        pass("two", Egress, to_service(2), Policy)
            .becomes(to_backend(2))
            .event(Egress, POD_TO_443),
        stop("one too many", Egress, to_service(3), ConnectionQuota).deny(Egress, SERVICE, TCP, 80),
    ];
    Table {
        sizes: Sizes {
            connection_quota: 3,
            ..Sizes::default()
        },
        rows,
    }
}

/// Another pod at the same interface, with the same policies.
fn become_another_pod(world: &World) {
    const OTHER_SLOT: u32 = SLOT + 2;
    let endpoint = Endpoint {
        uid: UID + 1,
        slot: OTHER_SLOT,
        v4: POD.into(),
        ..Endpoint::default()
    };
    for direction in [Ingress, Egress] {
        let table = crate::world::table_of(direction);
        let word = wardline_bpf::PolicyWord {
            table,
            peers: crate::world::PEERS,
            cidrs: true,
            revision: 1,
        };
        let slot = OTHER_SLOT + u32::from(u8::from(direction));
        world.sandbox.set_word(slot, word.pack().unwrap()).unwrap();
    }
    world.sandbox.set_endpoint(IFINDEX, &endpoint).unwrap();
}

#[test]
fn a_million_half_open_connections_leave_room_for_others() {
    const FLOOD: u32 = 1_000_000;
    const QUOTA: u32 = 16_384;
    let world = World::new(Sizes {
        conntrack: 262_144,
        connection_quota: 65_536,
        half_open_quota: QUOTA,
        ..Sizes::default()
    });
    let send = |direction, frame: &[u8]| {
        world
            .sandbox
            .run(direction, Frame::forwarded(frame, IFINDEX))
            .unwrap()
            .passed()
    };
    assert!(send(Ingress, &to_pod(1, SYN)) && send(Egress, &from_pod(1, SYN | ACK)) && send(Ingress, &to_pod(1, ACK)));

    let syn = tcp(port(STRANGER, 1), port(POD, 9000), SYN);
    let answer = tcp(port(POD, 9000), port(STRANGER, 1), SYN | ACK);
    let flood = |side, frame: &[u8], flows| {
        harness::flood(&world.sandbox, side, Frame::forwarded(frame, IFINDEX), flows);
    };
    flood(Side::Client, &syn, FLOOD);
    // A listening port answers what gets through to it, and that makes no connection of it either.
    flood(Side::Server, &answer, QUOTA);
    flood(Side::Client, &syn, FLOOD);
    let counters = world.sandbox.counters(world.settings.generation).unwrap();
    let counted = |reason: Reason| counters.packets[Ingress.index()][reason as usize];
    assert_eq!(
        counted(Policy),
        u64::from(QUOTA) + 1,
        "the flood's share, and the connection before it"
    );
    assert_eq!(
        counted(HalfOpenQuota),
        u64::from(FLOOD - QUOTA) * 2,
        "the rest is dropped, and counted"
    );
    assert_eq!(counted(Established), u64::from(QUOTA) + 1, "SYNs that come again");
    let denies = world.sandbox.denies().unwrap();
    let told: u64 = denies.iter().map(|(_, entry)| entry.count).sum();
    let lost = world
        .sandbox
        .deny_share(SLOT, world.settings.generation)
        .unwrap()
        .overflow;
    assert_eq!(told + lost, counters.due[Ingress.index()][Verdict::Deny as usize]);

    assert!(send(Ingress, &to_pod(1, ACK)), "an open connection goes on");
    assert!(
        !send(Ingress, &to_pod(2, SYN)),
        "the pod itself has no room for another"
    );
    become_another_pod(&world);
    for source_port in 1..2000 {
        assert!(
            send(Ingress, &to_pod(source_port, SYN)),
            "another pod has: {source_port}"
        );
    }
}
