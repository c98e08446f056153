// SPDX-License-Identifier: Apache-2.0
//! From the kernel's account to the file, each verdict once.
//!
//! ```text
//! ring:        read a batch -> write -> ledger -> give the room back
//! generation:  flip, grace period -> drain the ring -> write denies and losses -> ledger -> clear
//! ```
//!
//! After a crash each step is done again or found done: lines by their `seq`, the ledger by ring position and closed
//! generation.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wardline_bpf::abi::{self, AllowEvent, Direction as AbiDirection, Verdict as AbiVerdict};
use wardline_policy::model::Direction;
use zerocopy::FromBytes;

use super::clock::Clock;
use super::decode;
use super::file::LogFile;
use super::observed::Lost;
use super::record::{Origin, write_lost, write_verdict};
use super::ring::Ring;
use super::sequence::{Sequence, Written};
use crate::datapath::{Accounts, Closed, Ledger, MapError, add};
use crate::names::Names;
use crate::observe::Observers;

/// Records that are written at once.
const BATCH: usize = 4096;
/// Bytes after which the lines of a closed generation are written.
const CHUNK: usize = 1 << 20;

const ALLOW: usize = AbiVerdict::Allow as usize;
const DENY: usize = AbiVerdict::Deny as usize;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("failed to write policy log: {0}")]
    Write(io::Error),
    #[error("failed to wait for packet programs: {0}")]
    Settle(io::Error),
    #[error("failed to map the ring of events: {0}")]
    Ring(io::Error),
    #[error("failed to read clock: {0}")]
    Clock(nix::Error),
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Whether due = written + lost held when the last generation was closed; the difference by direction and verdict.
pub type Imbalance = [[i64; 2]; 2];

#[derive(Debug)]
pub struct PolicyLog {
    accounts: Accounts,
    ring: Ring,
    file: LogFile,
    /// Who reads along.
    observers: Arc<Observers>,
    names: Arc<Names>,
    origin: Origin,
    aggregation: Duration,
    ledger: Ledger,
    written: Written,
    /// A generation that was closed and is not written yet.
    pending: Option<u32>,
    /// When the first verdict of the generation in use was seen.
    first_due: Option<Instant>,
    /// Events read of the generation in use, by direction: written, but due only when it is closed.
    ahead: [u64; 2],
    /// Wall time at which the generation in use began.
    began: u64,
    imbalance: Option<Imbalance>,
    /// Until this life has begun a generation: before, `ahead` lacks what an earlier life read.
    recovering: bool,
    buffer: Vec<u8>,
}

impl PolicyLog {
    /// Finds out where an earlier life stopped.
    pub fn open(
        accounts: Accounts,
        file: LogFile,
        names: Arc<Names>,
        origin: Origin,
        aggregation: Duration,
    ) -> Result<Self, LogError> {
        let (fd, size) = accounts.ring();
        let ring = Ring::new(fd, size).map_err(LogError::Ring)?;
        let ledger = accounts.ledger()?;
        if ledger.ring_position > ring.position() {
            ring.advance(ledger.ring_position);
        }
        let mut written = Written::default();
        file.last_lines(|line| written.learn(line, accounts.epoch()))
            .map_err(LogError::Write)?;
        let before = accounts.generation().wrapping_sub(1);
        let is_closed = ledger.closings > 0 && ledger.closed_generation == before;
        let clock = Clock::read().map_err(LogError::Clock)?;
        let log = Self {
            began: clock.wall(super::clock::monotonic().map_err(LogError::Clock)?),
            pending: (accounts.generation() > 0 && !is_closed).then_some(before),
            accounts,
            ring,
            file,
            observers: Arc::default(),
            names,
            origin,
            aggregation,
            ledger,
            written,
            first_due: None,
            ahead: [0; 2],
            imbalance: None,
            recovering: true,
            buffer: Vec::new(),
        };
        if is_closed {
            // In the ledger already; the clearing may have been cut short.
            let closed = log.accounts.read(before)?;
            log.accounts.clear(before, &closed.denies)?;
        }
        Ok(log)
    }

    /// Hands what is written to observers too.
    pub fn hand_to(&mut self, observers: Arc<Observers>) {
        self.observers = observers;
    }

    /// Lets observers in that came since.
    pub fn admit_observers(&self) {
        self.observers.admit(self.file.position());
    }

    /// Writes what is there. Returns whether more may be.
    pub fn drain(&mut self) -> Result<bool, LogError> {
        let start = self.ring.position();
        if start == self.ring.end() {
            return Ok(false);
        }
        let clock = Clock::read().map_err(LogError::Clock)?;
        let Self {
            accounts,
            names,
            origin,
            written,
            buffer,
            ledger,
            ahead,
            ..
        } = self;
        let (mut counts, mut ahead_counts, mut events) = ([0; 2], [0; 2], 0);
        let generation = accounts.generation();
        let only_annotated = accounts.is_allow_delegated();
        let mut seq = String::new();
        buffer.clear();
        let end = self
            .ring
            .read(start, BATCH, size_of::<AllowEvent>(), |position, bytes| {
                events += 1;
                let Ok(event) = AllowEvent::read_from_bytes(bytes) else {
                    return;
                };
                let Ok(seen) = decode::allow(&event, &clock, only_annotated) else {
                    return;
                };
                let direction = index(seen.direction);
                counts[direction] += 1;
                ahead_counts[direction] += u64::from(event.generation == generation);
                let sequence = Sequence::Ring { position };
                if !written.has(sequence) {
                    sequence.write(accounts.epoch(), &mut seq);
                    write_verdict(buffer, &seen, &seq, names, origin);
                }
            })
            .map_err(LogError::Ring)?;
        self.file.append(buffer).map_err(LogError::Write)?;
        self.observers.tell(buffer);
        // Should the ledger fail, the batch is counted again and not written again.
        written.ring = Some(end);
        let mut next = *ledger;
        for (written, count) in next.written.iter_mut().zip(counts) {
            written[ALLOW] += count;
        }
        next.ring_position = end;
        accounts.store_ledger(&next)?;
        *ledger = next;
        for (ahead, count) in ahead.iter_mut().zip(ahead_counts) {
            *ahead += count;
        }
        self.ring.advance(end);
        Ok(events == BATCH)
    }

    /// Closes the generation in use when its first verdict is old enough, and whatever an earlier attempt left.
    pub fn close_if_due(&mut self, now: Instant) -> Result<(), LogError> {
        if let Some(pending) = self.pending {
            return self.write_closed(pending);
        }
        if self.first_due.is_none() {
            let due = self.accounts.counted(self.accounts.generation())?.due;
            if due.iter().flatten().any(|count| *count > 0) {
                self.first_due = Some(now);
            } else if self.backlog() == 0 {
                self.tell_written(now);
            }
        }
        if self
            .first_due
            .is_some_and(|first| now.duration_since(first) >= self.aggregation)
        {
            return self.close();
        }
        Ok(())
    }

    /// Says how far everything is written, for whoever keeps what the kernel's ids mean.
    fn tell_written(&self, until: Instant) {
        if self.pending.is_none() {
            self.names.written_until(until);
        }
    }

    /// Begins a new generation and writes the one before.
    pub fn close(&mut self) -> Result<(), LogError> {
        if let Some(pending) = self.pending {
            self.write_closed(pending)?;
        }
        let closed = self.accounts.flip();
        self.pending = Some(closed);
        self.first_due = None;
        // Whatever was read so far is of the closed generation or of one before it.
        self.ahead = [0; 2];
        self.recovering = false;
        let flipped = Instant::now();
        self.write_closed(closed)?;
        self.tell_written(flipped);
        Ok(())
    }

    fn write_closed(&mut self, generation: u32) -> Result<(), LogError> {
        self.accounts.settle().map_err(LogError::Settle)?;
        let end = self.ring.end();
        while self.ring.position() < end {
            self.drain()?;
        }
        let closed = self.accounts.read(generation)?;
        let clock = Clock::read().map_err(LogError::Clock)?;
        let now = clock.wall(super::clock::monotonic().map_err(LogError::Clock)?);
        let denies = self.write_denies(generation, &closed, &clock)?;
        let lost = self.write_losses(generation, &closed, now)?;
        self.enter(generation, &closed, denies, &lost)?;
        self.accounts.clear(generation, &closed.denies)?;
        self.pending = None;
        self.began = now;
        self.imbalance = (!self.recovering).then(|| self.difference());
        Ok(())
    }

    /// Returns the sum of the counts by direction.
    fn write_denies(&mut self, generation: u32, closed: &Closed, clock: &Clock) -> Result<[u64; 2], LogError> {
        let mut counts = [0; 2];
        let mut seq = String::new();
        self.buffer.clear();
        for (i, (key, entry)) in closed.denies.iter().enumerate() {
            let Ok(seen) = decode::deny(key, entry, clock) else {
                continue;
            };
            counts[index(seen.direction)] += entry.count;
            let sequence = Sequence::Closing { generation, index: i };
            if self.written.has(sequence) {
                continue;
            }
            sequence.write(self.accounts.epoch(), &mut seq);
            write_verdict(&mut self.buffer, &seen, &seq, &self.names, &self.origin);
            if self.buffer.len() >= CHUNK {
                self.append_closing(generation, i)?;
            }
        }
        self.append_closing(generation, closed.denies.len().saturating_sub(1))?;
        Ok(counts)
    }

    fn write_losses(&mut self, generation: u32, closed: &Closed, now: u64) -> Result<Vec<Lost>, LogError> {
        let mut lost = Vec::new();
        for direction in Direction::ALL {
            for (disposition, why, count) in [
                ("allow", "ring-full", closed.ring_full[index(direction)]),
                ("deny", "aggregates-full", closed.overflow[index(direction)]),
            ] {
                if count > 0 {
                    lost.push(Lost {
                        direction,
                        disposition,
                        why,
                        count,
                        first: self.began,
                        last: now,
                    });
                }
            }
        }
        let mut seq = String::new();
        for (i, line) in lost.iter().enumerate() {
            let sequence = Sequence::Closing {
                generation,
                index: closed.denies.len() + i,
            };
            if !self.written.has(sequence) {
                sequence.write(self.accounts.epoch(), &mut seq);
                write_lost(&mut self.buffer, line, &seq, &self.origin);
            }
        }
        self.append_closing(generation, (closed.denies.len() + lost.len()).saturating_sub(1))?;
        Ok(lost)
    }

    /// Writes the buffer and remembers how far the generation is written, should the rest fail.
    fn append_closing(&mut self, generation: u32, last: usize) -> Result<(), LogError> {
        if !self.buffer.is_empty() {
            self.file.append(&self.buffer).map_err(LogError::Write)?;
            self.observers.tell(&self.buffer);
            self.buffer.clear();
            self.written.closing = Some((generation, last));
        }
        Ok(())
    }

    fn enter(&mut self, generation: u32, closed: &Closed, denies: [u64; 2], lost: &[Lost]) -> Result<(), LogError> {
        let mut ledger = self.ledger;
        add(&mut ledger.packets, &closed.packets);
        add(&mut ledger.due, &closed.due);
        for (written, count) in ledger.written.iter_mut().zip(denies) {
            written[DENY] += count;
        }
        for line in lost {
            let verdict = if line.disposition == "allow" { ALLOW } else { DENY };
            ledger.lost[index(line.direction)][verdict] += line.count;
        }
        ledger.closed_generation = generation;
        ledger.closings += 1;
        self.accounts.store_ledger(&ledger)?;
        self.ledger = ledger;
        Ok(())
    }

    fn difference(&self) -> Imbalance {
        let mut difference = [[0; 2]; 2];
        for (direction, row) in difference.iter_mut().enumerate() {
            for (verdict, value) in row.iter_mut().enumerate() {
                let ahead = if verdict == ALLOW { self.ahead[direction] } else { 0 };
                let accounted = self.ledger.written[direction][verdict] - ahead + self.ledger.lost[direction][verdict];
                *value = self.ledger.due[direction][verdict]
                    .wrapping_sub(accounted)
                    .cast_signed();
            }
        }
        difference
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// None until a generation was closed.
    pub fn imbalance(&self) -> Option<Imbalance> {
        self.imbalance
    }

    /// Packets since the maps were made, the generation in use included.
    pub fn packets(&self) -> Result<[[u64; abi::Reason::ALL.len()]; 2], LogError> {
        let mut packets = self.ledger.packets;
        let generation = self.accounts.generation();
        if self.pending.is_none() {
            add(&mut packets, &self.accounts.counted(generation)?.packets);
        }
        Ok(packets)
    }

    pub fn rotations(&self) -> u64 {
        self.file.rotations()
    }

    /// Readable when the programs wake the reader.
    pub fn ring_fd(&self) -> BorrowedFd<'_> {
        self.accounts.ring().0
    }

    /// Bytes of the ring that are not read yet.
    pub fn backlog(&self) -> u64 {
        self.ring.end().saturating_sub(self.ring.position())
    }
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => AbiDirection::Ingress as usize,
        Direction::Egress => AbiDirection::Egress as usize,
    }
}
