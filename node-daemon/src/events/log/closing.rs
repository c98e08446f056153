// SPDX-License-Identifier: Apache-2.0
//! A generation that is closed: its denies and losses become lines, and its counters part of the ledger.

use std::time::Instant;

use wardline_bpf::abi::Verdict;
use wardline_policy::model::Direction;

use super::stop::PATIENCE;
use super::{Counts, DENY, Fate, LogError, PolicyLog, index};
use crate::clock::{self, Clock};
use crate::datapath::{Cause, Closed, Losses, TOLD_GENERATION, add};
use crate::events::decode;
use crate::events::observed::Lost;
use crate::events::record::{write_lost, write_verdict};
use crate::events::sequence::Sequence;

/// A generation that packets no longer count into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) generation: u32,
    /// Since when it waits to be written.
    since: Instant,
    /// Whether it was closed at `since`, and not by an earlier life.
    is_own: bool,
    /// Ring position before which all its events are, once that is known.
    end: Option<u64>,
}

impl Pending {
    /// Closed by an earlier life.
    pub(super) fn inherited(generation: u32) -> Self {
        Self {
            generation,
            since: Instant::now(),
            is_own: false,
            end: None,
        }
    }
}

/// A loss that a line of a closed generation tells.
#[derive(Clone, Copy, Debug)]
struct Loss {
    direction: Direction,
    verdict: Verdict,
    cause: Cause,
    /// Of this generation, and of what those before could not tell.
    own: u64,
    carried: u64,
}

/// What became of a closed generation.
#[derive(Debug, Default)]
struct Outcome {
    /// Denies by direction.
    written: [u64; 2],
    lost: Losses,
    untold: Losses,
    /// Something of it was written to the file.
    has_lines: bool,
}

impl PolicyLog {
    /// Closes the generation in use when its first verdict is old enough, and whatever an earlier attempt left.
    pub fn close_if_due(&mut self, now: Instant) -> Result<(), LogError> {
        self.make_space(now)?;
        if self.pending.is_some() {
            return self.finish_pending(now);
        }
        if self.first_due.is_none() {
            let due = self.accounts.counted(self.accounts.generation())?.due;
            if due.iter().flatten().any(|count| *count > 0) || self.has_untold() {
                self.first_due = Some(now);
            } else if self.backlog() == 0 {
                // Whoever keeps what the kernel's ids mean learns how far everything is written.
                self.names.written_until(now);
            }
        }
        let first = self.first_due;
        if first.is_some_and(|first| now.duration_since(first) >= self.aggregation) {
            return self.close();
        }
        self.keep_file(now)
    }

    /// Begins a new generation and writes the one before.
    pub fn close(&mut self) -> Result<(), LogError> {
        self.end(Fate::Written)?;
        self.carry()?;
        let generation = self.accounts.flip();
        self.pending = Some(Pending {
            generation,
            since: Instant::now(),
            is_own: true,
            end: None,
        });
        self.first_due = None;
        // Whatever was read so far is of the closed generation or of one before it.
        self.ahead = Counts::default();
        self.recovering = false;
        self.end(Fate::Written)
    }

    /// Writes a generation that is closed, or gives it up where that was not possible for too long.
    fn finish_pending(&mut self, now: Instant) -> Result<(), LogError> {
        let mut result = Ok(());
        if self.may_write(now) {
            if self.stop.is_some() {
                result = self.probe();
            }
            result = result.and_then(|()| self.end(Fate::Written));
        }
        let waits = self.pending.map(|pending| now.saturating_duration_since(pending.since));
        match self.fate_of_the_unwritten() {
            Some(fate) if waits.is_some_and(|waits| waits >= PATIENCE) => self.end(fate),
            _ => result,
        }
    }

    /// Brings the closed generation, if there is one, to its end.
    fn end(&mut self, fate: Fate) -> Result<(), LogError> {
        let Some(mut pending) = self.pending else {
            return Ok(());
        };
        let generation = pending.generation;
        self.accounts.settle().map_err(LogError::Settle)?;
        let end = *pending.end.get_or_insert(self.ring.end());
        self.pending = Some(pending);
        while self.ring.position() < end {
            self.take_batch(fate)?;
        }
        let closed = self.accounts.read(generation)?;
        let clock = Clock::read();
        let now = clock::wall();
        if !self.is_entered(generation) {
            let losses = self.losses(&closed);
            let outcome = match fate {
                Fate::Written => self.write_closed(generation, &closed, &losses, &clock, now)?,
                Fate::Lost(cause) => self.give_up(generation, &closed, &losses, cause, &clock),
            };
            self.enter(generation, &closed, &outcome)?;
        }
        self.accounts.clear(generation, &closed.denies)?;
        self.pending = None;
        self.began = now;
        self.imbalance = (!self.recovering).then(|| self.difference());
        if pending.is_own {
            self.names.written_until(pending.since);
        }
        Ok(())
    }

    /// Lets the generation that is closed next tell what could not be told before.
    fn carry(&mut self) -> Result<(), LogError> {
        if !self.has_untold() {
            return Ok(());
        }
        let mut ledger = self.ledger;
        for (carried, untold) in ledger.carried.iter_mut().zip(&ledger.untold) {
            add(carried, untold);
        }
        if ledger.carried_since == 0 {
            ledger.carried_since = ledger.untold_since;
        }
        (ledger.untold, ledger.untold_since) = (Losses::default(), 0);
        self.accounts.store_ledger(&ledger)?;
        self.ledger = ledger;
        Ok(())
    }

    fn has_untold(&self) -> bool {
        let counts = self.ledger.untold.iter().chain(&self.ledger.carried);
        counts.flatten().flatten().any(|count| *count > 0)
    }

    /// The losses that a closed generation tells, always in the same order.
    fn losses(&self, closed: &Closed) -> Vec<Loss> {
        let mut losses = Vec::new();
        for direction in Direction::ALL {
            for verdict in Verdict::ALL {
                for cause in Cause::ALL {
                    let own = match (cause, verdict) {
                        (Cause::TableFull, Verdict::Allow) => closed.ring_full[index(direction)],
                        (Cause::TableFull, Verdict::Deny) => closed.overflow[index(direction)],
                        _ => 0,
                    };
                    let carried = self.ledger.carried[index(direction)][verdict as usize][cause as usize];
                    if own + carried > 0 {
                        losses.push(Loss {
                            direction,
                            verdict,
                            cause,
                            own,
                            carried,
                        });
                    }
                }
            }
        }
        losses
    }

    fn write_closed(
        &mut self,
        generation: u32,
        closed: &Closed,
        losses: &[Loss],
        clock: &Clock,
        now: u64,
    ) -> Result<Outcome, LogError> {
        let mut outcome = Outcome::default();
        let chunk = self.file.chunk();
        let mut seq = String::new();
        self.begin();
        for (i, (key, entry)) in closed.denies.iter().enumerate() {
            let Ok(seen) = decode::deny(key, entry, clock) else {
                continue;
            };
            outcome.written[index(seen.direction)] += entry.count;
            let sequence = Sequence::Closing { generation, index: i };
            if self.written.has(sequence) {
                continue;
            }
            sequence.write(self.accounts.epoch(), &mut seq);
            write_verdict(&mut self.buffer, &seen, &seq, &self.names, &self.origin);
            if let Some(meters) = &mut self.meters {
                meters.add(&seen, None);
            }
            if let Some(deny_events) = &mut self.deny_events {
                deny_events.tell(&seen, &self.names, Instant::now());
            }
            if self.buffer.len() >= chunk {
                self.append_closing(generation, i)?;
            }
        }
        for (i, loss) in (closed.denies.len()..).zip(losses) {
            outcome.lost[index(loss.direction)][loss.verdict as usize][loss.cause as usize] += loss.own;
            let sequence = Sequence::Closing { generation, index: i };
            if !self.written.has(sequence) {
                sequence.write(self.accounts.epoch(), &mut seq);
                let line = self.line(loss, now);
                write_lost(&mut self.buffer, &line, &seq, &self.origin);
            }
        }
        outcome.has_lines = closed.denies.len() + losses.len() > 0;
        self.append_closing(generation, (closed.denies.len() + losses.len()).saturating_sub(1))?;
        Ok(outcome)
    }

    fn line(&self, loss: &Loss, now: u64) -> Lost {
        Lost {
            direction: loss.direction,
            disposition: loss.verdict.as_str(),
            why: loss.cause.as_str(loss.verdict),
            count: loss.own + loss.carried,
            first: if loss.carried > 0 {
                self.ledger.carried_since
            } else {
                self.began
            },
            last: now,
        }
    }

    /// Writes the buffer and remembers how far the generation is written, should the rest fail.
    fn append_closing(&mut self, generation: u32, last: usize) -> Result<(), LogError> {
        if !self.buffer.is_empty() {
            self.append()?;
            self.written.closing = Some((generation, last));
        }
        Ok(())
    }

    /// Nothing more of the generation is written: what stands in the file already is, the rest is lost.
    fn give_up(&self, generation: u32, closed: &Closed, losses: &[Loss], cause: Cause, clock: &Clock) -> Outcome {
        let mut outcome = Outcome::default();
        for (i, (key, entry)) in closed.denies.iter().enumerate() {
            let Ok(seen) = decode::deny(key, entry, clock) else {
                continue;
            };
            let direction = index(seen.direction);
            if self.written.has(Sequence::Closing { generation, index: i }) {
                outcome.written[direction] += entry.count;
            } else {
                outcome.lost[direction][DENY][cause as usize] += entry.count;
                outcome.untold[direction][DENY][cause as usize] += entry.count;
            }
        }
        for (i, loss) in (closed.denies.len()..).zip(losses) {
            let (direction, verdict, cause) = (index(loss.direction), loss.verdict as usize, loss.cause as usize);
            outcome.lost[direction][verdict][cause] += loss.own;
            if !self.written.has(Sequence::Closing { generation, index: i }) {
                outcome.untold[direction][verdict][cause] += loss.own + loss.carried;
            }
        }
        outcome
    }

    fn enter(&mut self, generation: u32, closed: &Closed, outcome: &Outcome) -> Result<(), LogError> {
        let mut ledger = self.ledger;
        add(&mut ledger.packets, &closed.packets);
        add(&mut ledger.due, &closed.due);
        for (written, count) in ledger.written.iter_mut().zip(outcome.written) {
            written[DENY] += count;
        }
        for (lost, new) in ledger.lost.iter_mut().zip(&outcome.lost) {
            add(lost, new);
        }
        for (untold, new) in ledger.untold.iter_mut().zip(&outcome.untold) {
            add(untold, new);
        }
        if ledger.untold_since == 0 && outcome.untold != Losses::default() {
            ledger.untold_since = if ledger.carried_since == 0 {
                self.began
            } else {
                ledger.carried_since
            };
        }
        if outcome.has_lines {
            (ledger.told, ledger.told_kind) = (generation.into(), TOLD_GENERATION);
        }
        (ledger.carried, ledger.carried_since) = (Losses::default(), 0);
        ledger.closed_generation = generation;
        ledger.closings += 1;
        self.accounts.store_ledger(&ledger)?;
        self.ledger = ledger;
        Ok(())
    }

    /// Whether a closed generation is in the ledger: what is left to do is to clear it.
    pub(super) fn is_entered(&self, generation: u32) -> bool {
        self.ledger.closings > 0 && self.ledger.closed_generation == generation
    }
}
