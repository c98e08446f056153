// SPDX-License-Identifier: Apache-2.0
//! What asks for a record, and what becomes of it: settings, generations, and tables without room.

use std::net::Ipv4Addr;
use std::ops::Range;

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::{
    ConntrackFull, DefaultDeny, Established, ForgedNeighbour, Fragment, Malformed, NotMine, Policy, Spoofed,
};
use wardline_bpf::abi::{ENDPOINT_HANDOVER, ENDPOINT_LOG_DENY, Endpoint, Enforcement, LogMode};
use wardline_bpf::frame::flag::SYN;
use wardline_bpf::frame::protocol::{TCP, UDP};
use wardline_bpf::frame::{arp, fragment, tcp, udp};
use wardline_bpf::sandbox::Sizes;
use wardline_bpf::test_run::Frame;

use crate::row::{Row, Table, pass, stop};
use crate::world::{ANY_UDP, CLIENT, CLIENT_TO_80, IFINDEX, OUTSIDER, POD, STRANGER, World, port};

fn allowed(source_port: u16) -> Vec<u8> {
    tcp(port(CLIENT, source_port), port(POD, 80), SYN)
}

fn denied(pod_port: u16) -> Vec<u8> {
    tcp(port(STRANGER, 1), port(POD, pod_port), SYN)
}

pub fn logging_is_off() -> Vec<Row> {
    vec![
        pass("an allow", Ingress, allowed(1), Policy).before(|world| {
            world.change_settings(|settings| {
                settings.log_allow = LogMode::Off.into();
                settings.log_deny = LogMode::Off.into();
            });
        }),
        stop("a deny", Ingress, denied(80), DefaultDeny),
        stop("denies alone", Ingress, denied(80), DefaultDeny)
            .before(|world| world.change_settings(|settings| settings.log_deny = LogMode::All.into()))
            .deny(Ingress, STRANGER, TCP, 80),
        pass("not allows", Ingress, allowed(2), Policy),
        pass("a value that is no mode is off", Ingress, allowed(3), Policy)
            .before(|world| world.change_settings(|settings| settings.log_allow = 9)),
    ]
}

pub fn logging_is_delegated() -> Vec<Row> {
    vec![
        pass("a rule of a policy that asks", Ingress, allowed(1), Policy)
            .before(|world| {
                world.change_settings(|settings| {
                    settings.log_allow = LogMode::Delegated.into();
                    settings.log_deny = LogMode::Delegated.into();
                });
            })
            .event(Ingress, CLIENT_TO_80),
        pass(
            "a rule of one that does not",
            Ingress,
            udp(port(CLIENT, 2), port(POD, 2)),
            Policy,
        ),
        stop("a pod whose namespace does not ask", Ingress, denied(80), DefaultDeny),
        stop("one whose namespace does", Ingress, denied(80), DefaultDeny)
            .before(|world| world.set_endpoint(ENDPOINT_LOG_DENY))
            .deny(Ingress, STRANGER, TCP, 80),
    ]
}

pub fn a_link_takes_over_from_a_filter() -> Vec<Row> {
    vec![
        pass("what it passes does not meet the filter", Ingress, allowed(1), Policy)
            .before(|world| world.set_endpoint(ENDPOINT_HANDOVER))
            .alone()
            .event(Ingress, CLIENT_TO_80),
        pass("nor when it is established", Ingress, allowed(1), Established).alone(),
        stop("what it drops is dropped", Ingress, denied(80), DefaultDeny).deny(Ingress, STRANGER, TCP, 80),
        pass(
            "other programs see what passes afterwards",
            Ingress,
            allowed(1),
            Established,
        )
        .before(|world| world.set_endpoint(0)),
    ]
}

pub fn generations_alternate() -> Vec<Row> {
    fn next(world: &mut World) {
        world.change_settings(|settings| settings.generation += 1);
    }
    vec![
        stop("an even generation", Ingress, denied(80), DefaultDeny).deny(Ingress, STRANGER, TCP, 80),
        pass("its event", Ingress, allowed(1), Policy).event(Ingress, CLIENT_TO_80),
        stop(
            "the odd one after it has its own aggregate",
            Ingress,
            denied(80),
            DefaultDeny,
        )
        .before(next)
        .deny(Ingress, STRANGER, TCP, 80),
        pass("and its own counters", Ingress, allowed(2), Policy).event(Ingress, CLIENT_TO_80),
        stop("the next even one is not the first", Ingress, denied(80), DefaultDeny)
            .before(next)
            .deny(Ingress, STRANGER, TCP, 80),
        pass("an old flow in a new generation", Ingress, allowed(1), Established).before(next),
    ]
}

/// A page of ring holds 46 records of 88 bytes; 24 fill half of it, and then one pod has a share of three.
const PAGE: u32 = 4096;

/// Leaves the events of so many new connections.
fn open(world: &World, source_ports: Range<u16>) {
    for source_port in source_ports {
        let frame = allowed(source_port);
        let frame = Frame::forwarded(&frame, IFINDEX);
        assert!(world.sandbox.run(Ingress, frame).unwrap().passed());
    }
}

pub fn ring_is_full() -> Table {
    let rows = vec![
        pass("an allow whose event finds no room", Ingress, allowed(1), Policy)
            .before(|world| open(world, 100..146))
            .unread_events(27)
            .loses_event(Ingress),
        pass("after the reader was there", Ingress, allowed(2), Policy).event(Ingress, CLIENT_TO_80),
    ];
    Table {
        sizes: Sizes {
            ring: PAGE,
            ..Sizes::default()
        },
        rows,
    }
}

pub fn each_deny_is_told() -> Table {
    let rows = vec![
        stop("a deny", Ingress, denied(80), DefaultDeny).deny_event(Ingress),
        stop("another of the same", Ingress, denied(80), DefaultDeny).deny_event(Ingress),
        stop(
            "one of the other direction",
            Egress,
            udp(port(POD, 1), port(STRANGER, 3)),
            DefaultDeny,
        )
        .deny_event(Egress),
        pass("an allow", Ingress, allowed(1), Policy).event(Ingress, CLIENT_TO_80),
        stop(
            "the last one before a quarter of the ring is full",
            Ingress,
            denied(80),
            DefaultDeny,
        )
        .before(|world| open(world, 100..111))
        .unread_events(11)
        .deny_event(Ingress),
        stop("what comes then has an aggregate", Ingress, denied(80), DefaultDeny)
            .before(|world| open(world, 200..212))
            .unread_events(12)
            .deny(Ingress, STRANGER, TCP, 80),
        stop("after the reader was there", Ingress, denied(80), DefaultDeny).deny_event(Ingress),
        stop("beyond the pod's share", Ingress, denied(80), DefaultDeny).deny(Ingress, STRANGER, TCP, 80),
        stop(
            "of which the other direction has its own",
            Egress,
            udp(port(POD, 1), port(STRANGER, 3)),
            DefaultDeny,
        )
        .deny_event(Egress),
        stop("and the next generation another", Ingress, denied(80), DefaultDeny)
            .before(|world| world.change_settings(|settings| settings.generation += 1))
            .deny_event(Ingress),
        stop("while no denies are logged", Ingress, denied(80), DefaultDeny)
            .before(|world| world.change_settings(|settings| settings.log_deny = LogMode::Off.into())),
    ];
    Table {
        sizes: Sizes {
            ring: PAGE,
            deny_event_share: 4,
            ..Sizes::default()
        },
        rows,
    }
}

#[test]
fn each_pod_leaves_the_next_one_room_in_the_ring() {
    /// Events of a ring of 64 KiB that fill half of it.
    const HALF: u64 = 373;
    const SENT: u16 = 600;
    let mut world = World::new(Sizes {
        conntrack: 16_384,
        ..Sizes::default()
    });
    let ring_full = |world: &World| world.sandbox.counters(world.settings.generation).unwrap().ring_full[0];
    let pods: Vec<Endpoint> = (0..20).map(|number| world.pod(number)).collect();
    let flood = |pod: &Endpoint, first: u16| {
        world.sandbox.set_endpoint(IFINDEX, pod).unwrap();
        let before = ring_full(&world);
        open(&world, first..first + SENT);
        u64::from(SENT) - (ring_full(&world) - before)
    };
    let left: Vec<u64> = pods.iter().map(|pod| flood(pod, 1)).collect();
    println!("events of pods that flood one after the other: {left:?}");
    assert!(
        (HALF + 40..HALF + 43).contains(&left[0]),
        "half, and a ninth of the rest"
    );
    assert!(left[1..].is_sorted_by(|a, b| a >= b), "each a share of what is left");
    assert!(
        (30..43).contains(&left[1]) && left[19] >= 3,
        "of which there always is some"
    );
    assert_eq!(flood(&pods[1], 1000), 0, "nothing was read");
    assert_eq!(
        world.sandbox.take_events().unwrap().len() as u64,
        left.iter().sum::<u64>()
    );
    assert_eq!(flood(&pods[0], 1000), left[0], "all was read, so it goes on");
}

pub fn deny_share_is_used_up() -> Table {
    let rows = vec![
        stop("one", Ingress, denied(1), DefaultDeny).deny(Ingress, STRANGER, TCP, 1),
        stop("two", Ingress, denied(2), DefaultDeny).deny(Ingress, STRANGER, TCP, 2),
        stop("three", Ingress, denied(3), DefaultDeny).loses_deny(Ingress),
        stop("what has its aggregate goes on", Ingress, denied(2), DefaultDeny).deny(Ingress, STRANGER, TCP, 2),
        stop(
            "the other direction has its own share",
            Egress,
            udp(port(POD, 1), port(STRANGER, 3)),
            DefaultDeny,
        )
        .deny(Egress, STRANGER, UDP, 3),
        stop("the other generation too", Ingress, denied(3), DefaultDeny)
            .before(|world| world.change_settings(|settings| settings.generation += 1))
            .deny(Ingress, STRANGER, TCP, 3),
    ];
    Table {
        sizes: Sizes {
            denies: 24,
            ..Sizes::default()
        },
        rows,
    }
}

pub fn deny_table_is_full() -> Table {
    let rows = vec![
        stop("one", Ingress, denied(1), DefaultDeny).deny(Ingress, STRANGER, TCP, 1),
        stop("no room in the table", Ingress, denied(2), DefaultDeny).loses_deny(Ingress),
        stop("the one goes on", Ingress, denied(1), DefaultDeny).deny(Ingress, STRANGER, TCP, 1),
    ];
    Table {
        sizes: Sizes {
            denies: 1,
            ..Sizes::default()
        },
        rows,
    }
}

pub fn audit() -> Table {
    let later = fragment(&udp(port(STRANGER, 1), port(POD, 1)), 1, 8..12);
    let mut malformed = denied(80);
    malformed[14] = 0x65;
    let nobody = "::".parse().unwrap_or(STRANGER);
    let rows = vec![
        pass(
            "what would be denied passes, and is reported",
            Ingress,
            denied(80),
            DefaultDeny,
        )
        .before(|world| world.change_settings(|settings| settings.policy = Enforcement::Audit.into()))
        .deny(Ingress, STRANGER, TCP, 80)
        .after(|world| world.assert_entries(0)),
        pass("again", Ingress, denied(80), DefaultDeny).deny(Ingress, STRANGER, TCP, 80),
        pass(
            "what is allowed is tracked",
            Ingress,
            udp(port(OUTSIDER, 1), port(POD, 1)),
            Policy,
        )
        .event(Ingress, ANY_UDP),
        pass("a later fragment", Ingress, later, Fragment).deny(Ingress, STRANGER, UDP, 0),
        pass("a malformed packet", Ingress, malformed, Malformed).deny(Ingress, nobody, 0, 0),
        pass(
            "another pod's frame",
            Ingress,
            tcp(port(CLIENT, 1), port(CLIENT, 2), SYN),
            NotMine,
        ),
        pass("a connection without room", Ingress, allowed(1), ConntrackFull).deny(Ingress, CLIENT, TCP, 80),
        stop(
            "what is forged on the link is never let through",
            Egress,
            arp(Ipv4Addr::new(10, 0, 0, 20), Ipv4Addr::new(10, 0, 0, 1)),
            ForgedNeighbour,
        )
        .deny(Egress, nobody, 0, 0),
        stop(
            "forged sources have their own switch",
            Egress,
            udp(port(STRANGER, 1), port(CLIENT, 53)),
            Spoofed,
        )
        .deny(Egress, CLIENT, UDP, 0),
    ];
    Table {
        sizes: Sizes {
            conntrack: 1,
            ..Sizes::default()
        },
        rows,
    }
}
