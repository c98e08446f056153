// SPDX-License-Identifier: Apache-2.0
//! A packet and all that it does: told by the row, compared with what the kernel's maps show.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use wardline_bpf::abi::{self, Address, Counters, DenyEntry, Direction, Reason, Verdict};
use wardline_bpf::frame::protocol::{SCTP, TCP, UDP};
use wardline_bpf::sandbox::Sizes;
use wardline_bpf::test_run::Frame;

use crate::harness::{self, Handover};
use crate::node;
use crate::world::{IFINDEX, SLOT, UID, World, table_of};

/// What a deny leaves in the table: the aggregate's key beside pod and generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deny {
    pub direction: Direction,
    pub table: u32,
    pub remote: IpAddr,
    pub protocol: u8,
    pub port: u16,
    pub reason: Reason,
    pub generation: u32,
}

/// What an allow leaves in the ring, and a deny where each is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub direction: Direction,
    pub verdict: Verdict,
    /// Attribution or table.
    pub decided_by: u32,
    pub reason: Reason,
    pub generation: u32,
    pub remote: IpAddr,
    pub pod_port: u16,
    pub remote_port: u16,
    pub service: Option<SocketAddr>,
}

/// A due allow that the ring had no room for, or a due deny that no aggregate took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Losses {
    pub ring_full: [u64; 2],
    pub overflow: [u64; 2],
}

/// Where a packet comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Elsewhere,
    /// A socket of this node made it.
    Node,
    /// It came in through the pod's own interface.
    Pod,
}

impl Origin {
    pub fn frame(self, bytes: &[u8]) -> Frame<'_> {
        match self {
            Self::Elsewhere => Frame::forwarded(bytes, IFINDEX),
            Self::Node => Frame::of_node(bytes, IFINDEX),
            Self::Pod => Frame::of_pod(bytes, IFINDEX),
        }
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    Through,
    /// Through, past what else is on the hook.
    Alone,
    Back,
    Nowhere,
}

pub struct Row {
    pub name: &'static str,
    pub direction: Direction,
    pub frame: Vec<u8>,
    becomes: Option<Vec<u8>>,
    comes: Comes,
    pub reason: Reason,
    origin: Origin,
    handover: Option<Handover>,
    unread_events: usize,
    before: Vec<fn(&mut World)>,
    after: Vec<fn(&World)>,
    event: Option<(Direction, Verdict, u32)>,
    deny: Option<(Direction, IpAddr, u8, u16)>,
    lost: Losses,
}

/// A packet that goes on, and leaves no record.
pub fn pass(name: &'static str, direction: Direction, frame: Vec<u8>, reason: Reason) -> Row {
    Row {
        name,
        direction,
        frame,
        becomes: None,
        comes: Comes::Through,
        reason,
        origin: Origin::Elsewhere,
        handover: None,
        unread_events: 0,
        before: Vec::new(),
        after: Vec::new(),
        event: None,
        deny: None,
        lost: Losses::default(),
    }
}

/// A packet that ends here, and leaves no record.
pub fn stop(name: &'static str, direction: Direction, frame: Vec<u8>, reason: Reason) -> Row {
    Row {
        comes: Comes::Nowhere,
        ..pass(name, direction, frame, reason)
    }
}

/// A packet that goes back to the pod as another one, and leaves no record.
pub fn back(name: &'static str, frame: Vec<u8>, reason: Reason, becomes: Vec<u8>) -> Row {
    Row {
        comes: Comes::Back,
        ..pass(name, Direction::Egress, frame, reason).becomes(becomes)
    }
}

impl Row {
    /// It is rewritten; without this, what passes stays as it is.
    pub fn becomes(mut self, frame: Vec<u8>) -> Self {
        self.becomes = Some(frame);
        self
    }

    /// What happens before the packet comes.
    pub fn before(mut self, change: fn(&mut World)) -> Self {
        self.before.push(change);
        self
    }

    /// What is looked at afterwards.
    pub fn after(mut self, look: fn(&World)) -> Self {
        self.after.push(look);
        self
    }

    /// Made by a socket of this node, not forwarded.
    pub fn sent_by_node(mut self) -> Self {
        self.origin = Origin::Node;
        self
    }

    /// Sent by the pod itself, and come back.
    pub fn sent_by_itself(mut self) -> Self {
        self.origin = Origin::Pod;
        self
    }

    /// No other program on the hook sees it.
    pub fn alone(mut self) -> Self {
        self.comes = Comes::Alone;
        self
    }

    /// Reaches the program by way of another one.
    pub fn by(mut self, handover: Handover) -> Self {
        self.handover = Some(handover);
        self
    }

    /// What comes before has left that many events.
    pub fn unread_events(mut self, events: usize) -> Self {
        self.unread_events = events;
        self
    }

    /// Leaves an event with this attribution, judged in this direction.
    pub fn event(mut self, direction: Direction, attribution: u32) -> Self {
        self.event = Some((direction, Verdict::Allow, attribution));
        self
    }

    /// Leaves an event of a deny, judged in this direction.
    pub fn deny_event(mut self, direction: Direction) -> Self {
        self.event = Some((direction, Verdict::Deny, table_of(direction)));
        self
    }

    /// Adds one to the aggregate of {direction, remote address, protocol, destination port}.
    pub fn deny(mut self, direction: Direction, remote: IpAddr, protocol: u8, port: u16) -> Self {
        self.deny = Some((direction, remote, protocol, port));
        self
    }

    pub fn loses_event(mut self, direction: Direction) -> Self {
        self.lost.ring_full[direction.index()] = 1;
        self
    }

    pub fn loses_deny(mut self, direction: Direction) -> Self {
        self.lost.overflow[direction.index()] = 1;
        self
    }

    fn check(&self, world: &mut World) {
        let name = self.name;
        for change in &self.before {
            change(world);
        }
        let before = Seen::now(world);
        let frame = self.origin.frame(&self.frame);
        let outcome = match self.handover {
            Some(handover) => harness::run(&world.sandbox, self.direction, frame, handover),
            None => world
                .sandbox
                .run(self.direction, frame)
                .unwrap_or_else(|error| panic!("{name}: {error}")),
        };
        let after = Seen::now(world);

        let generation = world.settings.generation;
        let (open, closed) = (before.counters(generation), before.counters(generation + 1));
        let counted: Vec<_> = Direction::ALL
            .into_iter()
            .flat_map(|direction| Reason::ALL.map(|reason| (direction, reason)))
            .filter(|&(direction, reason)| {
                packets(after.counters(generation), direction, reason) != packets(open, direction, reason)
            })
            .collect();
        assert_eq!(
            counted,
            [(self.direction, self.reason)],
            "{name}: what it is counted under"
        );
        assert_eq!(
            after.counters(generation),
            &self.expected_counters(open),
            "{name}: counters"
        );
        assert_eq!(
            after.counters(generation + 1),
            closed,
            "{name}: counters of the other generation"
        );
        assert_eq!(outcome.passed(), self.comes == Comes::Through, "{name}: passes");
        assert_eq!(outcome.passed_alone(), self.comes == Comes::Alone, "{name}: alone");
        assert_eq!(outcome.dropped(), self.comes == Comes::Nowhere, "{name}: dropped");
        assert_eq!(outcome.sent_back(), self.comes == Comes::Back, "{name}: sent back");
        if self.comes != Comes::Nowhere && self.handover.is_none() {
            let expected = self.becomes.as_ref().unwrap_or(&self.frame);
            assert_eq!(
                &outcome.frame, expected,
                "{name}: left {:02x?}, right {expected:02x?}",
                outcome.frame
            );
        }

        let events: Vec<_> = world.sandbox.take_events().unwrap().iter().map(event).collect();
        let events = &events[self.unread_events..];
        for event in events {
            assert_eq!(
                world.has_entry(event.remote, event.pod_port, event.remote_port),
                event.verdict == Verdict::Allow,
                "{name}: an entry for {event:?}"
            );
        }
        assert_eq!(
            events,
            Vec::from_iter(self.expected_event(generation, events)),
            "{name}: events"
        );
        let mut denies = before.denies.clone();
        if let Some(deny) = self.expected_deny(generation) {
            *denies.entry(deny).or_default() += 1;
        }
        assert_eq!(after.denies, denies, "{name}: deny table");
        let expected = [0, 1].map(|index| before.overflow[index] + self.lost.overflow[index]);
        assert_eq!(after.overflow, expected, "{name}: overflow");
        for look in &self.after {
            look(world);
        }
    }

    fn expected_counters(&self, before: &Counters) -> Counters {
        let mut counters = *before;
        counters.packets[self.direction.index()][self.reason as usize] += 1;
        let lost_deny = Direction::ALL
            .into_iter()
            .find(|direction| self.lost.overflow[direction.index()] > 0);
        if let Some((direction, verdict, _)) = self.event {
            counters.due[direction.index()][verdict as usize] += 1;
        }
        if let Some(direction) = self.deny.map(|(direction, ..)| direction).or(lost_deny) {
            counters.due[direction.index()][Verdict::Deny as usize] += 1;
        }
        for index in [0, 1] {
            counters.due[index][Verdict::Allow as usize] += self.lost.ring_full[index];
            counters.ring_full[index] += self.lost.ring_full[index];
        }
        counters
    }

    /// The row names direction, verdict and what decided; addresses and ports are those of an entry that was made, or of none.
    fn expected_event(&self, generation: u32, seen: &[Event]) -> Option<Event> {
        let (direction, verdict, decided_by) = self.event?;
        let seen = seen.first()?;
        Some(Event {
            direction,
            verdict,
            decided_by,
            reason: self.reason,
            generation,
            service: self.service(SocketAddr::new(seen.remote, seen.remote_port)),
            ..*seen
        })
    }

    /// What the packet was sent to, where that is not what its flow goes to: a Service of ours.
    fn service(&self, remote: SocketAddr) -> Option<SocketAddr> {
        let is_from_pod = self.direction == Direction::Egress;
        destination(&self.frame).filter(|sent_to| is_from_pod && *sent_to != remote)
    }

    fn expected_deny(&self, generation: u32) -> Option<Deny> {
        let (direction, remote, protocol, port) = self.deny?;
        let table = table_of(direction);
        Some(Deny {
            direction,
            table,
            remote,
            protocol,
            port,
            reason: self.reason,
            generation,
        })
    }
}

fn packets(counters: &Counters, direction: Direction, reason: Reason) -> u64 {
    counters.packets[direction.index()][reason as usize]
}

fn event(event: &abi::Event) -> Event {
    assert_eq!(event.endpoint, UID);
    assert!(event.time > 0);
    Event {
        direction: Direction::try_from(event.direction).unwrap(),
        verdict: Verdict::try_from(event.verdict).unwrap(),
        decided_by: event.decided_by,
        reason: Reason::try_from(event.reason).unwrap(),
        generation: event.generation,
        service: service(event.service, event.service_port),
        remote: event.remote.into(),
        pod_port: u16::from_be(event.pod_port),
        remote_port: u16::from_be(event.remote_port),
    }
}

/// Where a frame with ports goes, as long as nothing stands between its IP header and them.
fn destination(frame: &[u8]) -> Option<SocketAddr> {
    let (protocol, address, ports): (u8, IpAddr, usize) = match frame.get(12..14)? {
        [0x08, 0x00] => (
            *frame.get(23)?,
            <[u8; 4]>::try_from(frame.get(30..34)?).ok()?.into(),
            34,
        ),
        [0x86, 0xdd] => (
            *frame.get(20)?,
            <[u8; 16]>::try_from(frame.get(38..54)?).ok()?.into(),
            54,
        ),
        _ => return None,
    };
    let port = <[u8; 2]>::try_from(frame.get(ports + 2..ports + 4)?).ok()?;
    matches!(protocol, TCP | UDP | SCTP).then(|| SocketAddr::new(address, u16::from_be_bytes(port)))
}

fn service(address: Address, port: u16) -> Option<SocketAddr> {
    (!address.is_none()).then(|| SocketAddr::new(address.into(), u16::from_be(port)))
}

/// All that a packet may move.
struct Seen {
    counters: [Counters; 2],
    denies: BTreeMap<Deny, u64>,
    overflow: [u64; 2],
}

impl Seen {
    fn now(world: &World) -> Self {
        let denies = world.sandbox.denies().unwrap();
        let counted = |entry: &DenyEntry| {
            assert!(entry.count > 0 && entry.first > 0, "{entry:?}");
            entry.count
        };
        let generation = world.settings.generation;
        Self {
            counters: [0, 1].map(|parity| world.sandbox.counters(parity).unwrap()),
            denies: denies
                .iter()
                .map(|(key, entry)| {
                    assert_eq!(key.endpoint, UID);
                    let deny = Deny {
                        direction: Direction::try_from(key.direction).unwrap(),
                        table: key.table,
                        remote: key.remote.into(),
                        protocol: key.protocol,
                        port: u16::from_be(key.port),
                        reason: Reason::try_from(key.reason).unwrap(),
                        generation: key.generation,
                    };
                    (deny, counted(entry))
                })
                .collect(),
            overflow: [0, 1].map(|index| world.sandbox.deny_share(SLOT + index, generation).unwrap().overflow),
        }
    }

    fn counters(&self, generation: u32) -> &Counters {
        &self.counters[(generation & 1) as usize]
    }
}

/// A world and the packets sent into it, in order.
pub struct Table {
    pub sizes: Sizes,
    pub rows: Vec<Row>,
}

impl From<Vec<Row>> for Table {
    fn from(rows: Vec<Row>) -> Self {
        Self {
            sizes: Sizes::default(),
            rows,
        }
    }
}

impl Table {
    /// Sends them all, one after the other, into one world.
    pub fn run(self) {
        let _sockets = node::listen();
        let mut world = World::new(self.sizes);
        assert!(!self.rows.is_empty());
        for row in &self.rows {
            row.check(&mut world);
        }
    }
}
