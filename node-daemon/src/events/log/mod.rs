// SPDX-License-Identifier: Apache-2.0
//! From the kernel's account to the file, each verdict once.
//!
//! ```text
//! ring:        read a batch -> write -> ledger -> give the room back
//! generation:  flip, grace period -> drain the ring -> write denies and losses -> ledger -> clear
//! ```
//!
//! After a crash each step is done again or found done: lines by their `seq`, the ledger by ring position and closed
//! generation. While the file cannot be written the same steps go without "write" for what is too old or too much to be
//! kept: it is entered as lost, and told when there is room again (`stop`).

mod closing;
mod doubts;
mod stop;
mod succession;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wardline_bpf::abi::{self, Direction as AbiDirection, Verdict as AbiVerdict};
use wardline_policy::model::Direction;

use self::closing::Pending;
use self::doubts::{Doubt, Found};
use self::stop::Stop;
pub use self::succession::Succession;
use super::decode;
use super::file::{FileError, LogFile};
use super::meters::Meters;
use super::record::{Origin, write_verdict};
use super::ring::Ring;
use super::sequence::{Sequence, Written};
use super::stdout::Stdout;
use crate::clock::{self, Clock};
use crate::datapath::{Accounts, Cause, Ledger, MapError, TOLD_EVENT, TOLD_GENERATION, add};
use crate::deny_events::DenyEvents;
use crate::metrics::LogFigures;
use crate::names::Names;
use crate::observe::Observers;

/// Records that are read at once.
const BATCH: usize = 4096;

const DENY: usize = AbiVerdict::Deny as usize;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("failed to wait for packet programs: {0}")]
    Settle(io::Error),
    #[error("failed to map the ring of events: {0}")]
    Ring(io::Error),
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
    deny_events: Option<DenyEvents>,
    meters: Option<Meters>,
    names: Arc<Names>,
    origin: Origin,
    aggregation: Duration,
    ledger: Ledger,
    written: Written,
    /// What no line tells of yet.
    doubts: Vec<Doubt>,
    /// A generation that was closed and is not written yet.
    pending: Option<Pending>,
    /// When the first verdict of the generation in use was seen.
    first_due: Option<Instant>,
    /// Events read of the generation in use: written, but due only when it is closed.
    ahead: Counts,
    /// Wall time at which the generation in use began.
    began: u64,
    imbalance: Option<Imbalance>,
    /// Until this life has begun a generation: before, `ahead` lacks what an earlier life read.
    recovering: bool,
    buffer: Vec<u8>,
    /// Why the file cannot be written.
    stop: Option<Stop>,
    write_errors: u64,
    /// When old files may be deleted again, after it failed.
    delete_at: Instant,
    stdout: Option<Stdout>,
}

/// By direction and verdict.
type Counts = [[u64; 2]; 2];

/// What becomes of verdicts that are taken from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Written,
    Lost(Cause),
}

/// Events that were read and are not in the ledger yet.
#[derive(Debug, Default)]
struct Batch {
    /// Position behind the last one.
    end: u64,
    events: usize,
    /// More events would have been too many.
    is_full: bool,
    written: Counts,
    lost: Counts,
    /// Those of the generation in use.
    ahead: Counts,
}

impl PolicyLog {
    /// Finds out where an earlier life stopped. A file that cannot be written is no error: see [`PolicyLog::stopped`].
    pub fn open(
        accounts: Accounts,
        file: LogFile,
        names: Arc<Names>,
        origin: Origin,
        aggregation: Duration,
    ) -> Result<Self, LogError> {
        let past = Past::of(&accounts, &file, aggregation)?;
        let mut log = Self {
            began: clock::wall(),
            pending: past.pending,
            accounts,
            ring: past.ring,
            file,
            observers: Arc::default(),
            deny_events: None,
            meters: None,
            names,
            origin,
            aggregation,
            ledger: past.ledger,
            written: past.written,
            doubts: past.doubts,
            first_due: None,
            ahead: Counts::default(),
            imbalance: None,
            recovering: true,
            buffer: Vec::new(),
            stop: None,
            write_errors: 0,
            delete_at: Instant::now(),
            stdout: None,
        };
        // Told at once if it cannot be written, not only when there is something to write.
        let _ = log.probe();
        Ok(log)
    }

    /// Goes on with another account.
    fn go_on_with(&mut self, accounts: Accounts, past: Past) {
        self.accounts = accounts;
        self.ring = past.ring;
        self.ledger = past.ledger;
        self.written = past.written;
        self.doubts = past.doubts;
        self.pending = past.pending;
        self.first_due = None;
        self.ahead = Counts::default();
        self.began = clock::wall();
        self.imbalance = None;
        self.recovering = true;
    }

    /// Hands what is written to observers too.
    pub fn hand_to(&mut self, observers: Arc<Observers>) {
        self.observers = observers;
    }

    /// Tells first denies there too.
    pub fn tell_denies_to(&mut self, deny_events: DenyEvents) {
        self.deny_events = Some(deny_events);
    }

    /// Measures what is written.
    pub fn measure_with(&mut self, meters: Meters) {
        self.meters = Some(meters);
    }

    /// Lets observers in that came since.
    pub fn admit_observers(&self) {
        self.observers.admit(self.file.position());
    }

    /// Lets lines that are written go to standard output as well.
    pub fn copy_to(&mut self, stdout: Stdout) {
        self.stdout = Some(stdout);
    }

    /// Writes what is there, or makes room for what comes. Returns whether more may be there.
    pub fn drain(&mut self) -> Result<bool, LogError> {
        if self.may_write(Instant::now()) {
            self.take_batch(Fate::Written)
        } else {
            self.shed()
        }
    }

    fn take_batch(&mut self, fate: Fate) -> Result<bool, LogError> {
        let start = self.ring.position();
        if start == self.ring.end() {
            return Ok(false);
        }
        let batch = self.read_batch(start, fate)?;
        self.append()?;
        // Should the ledger fail, the batch is counted again and not written again.
        if fate == Fate::Written {
            self.written.ring = Some(batch.end);
        }
        self.enter_batch(&batch, fate)?;
        self.ring.advance(batch.end);
        Ok(batch.is_full)
    }

    fn read_batch(&mut self, start: u64, fate: Fate) -> Result<Batch, LogError> {
        let clock = Clock::read();
        let chunk = self.file.chunk();
        self.begin();
        let Self {
            accounts,
            deny_events,
            meters,
            names,
            origin,
            written,
            buffer,
            ..
        } = self;
        let mut batch = Batch::default();
        let generation = accounts.generation();
        let mut seq = String::new();
        let end = self.ring.read(start, accounts.event_size(), |position, bytes| {
            batch.events += 1;
            let seen = accounts.event(bytes).and_then(|event| {
                let seen = decode::event(&event, &clock).ok()?;
                Some((seen, event))
            });
            if let Some((seen, event)) = seen {
                let (direction, verdict) = (index(seen.direction), usize::from(event.verdict));
                batch.ahead[direction][verdict] += u64::from(event.generation == generation);
                let sequence = Sequence::Ring { position };
                if written.has(sequence) {
                    batch.written[direction][verdict] += 1;
                } else if fate == Fate::Written {
                    batch.written[direction][verdict] += 1;
                    sequence.write(accounts.epoch(), &mut seq);
                    write_verdict(buffer, &seen, &seq, names, origin);
                    if let Some(meters) = meters {
                        meters.add(&seen, Some(event.time));
                    }
                    if let (DENY, Some(deny_events)) = (verdict, deny_events.as_mut()) {
                        deny_events.tell(&seen, names, Instant::now());
                    }
                } else {
                    batch.lost[direction][verdict] += 1;
                }
            }
            batch.is_full = batch.events == BATCH || buffer.len() >= chunk;
            !batch.is_full
        });
        batch.end = end.map_err(LogError::Ring)?;
        Ok(batch)
    }

    fn enter_batch(&mut self, batch: &Batch, fate: Fate) -> Result<(), LogError> {
        let mut ledger = self.ledger;
        add(&mut ledger.written, &batch.written);
        if batch.written != Counts::default() {
            (ledger.told, ledger.told_kind) = (batch.end, TOLD_EVENT);
        }
        if let Fate::Lost(cause) = fate {
            self.lose(&mut ledger, cause, &batch.lost);
        }
        ledger.ring_position = batch.end;
        self.accounts.store_ledger(&ledger)?;
        self.ledger = ledger;
        add(&mut self.ahead, &batch.ahead);
        Ok(())
    }

    /// Enters records as lost, for a line to tell of them later.
    fn lose(&self, ledger: &mut Ledger, cause: Cause, counts: &Counts) {
        if *counts == Counts::default() {
            return;
        }
        for (direction, counts) in counts.iter().enumerate() {
            for (verdict, count) in counts.iter().enumerate() {
                ledger.lost[direction][verdict][cause as usize] += count;
                ledger.untold[direction][verdict][cause as usize] += count;
            }
        }
        if ledger.untold_since == 0 {
            ledger.untold_since = self.began;
        }
    }

    /// Nothing is to be written yet.
    fn begin(&mut self) {
        self.buffer.clear();
        if let Some(meters) = &mut self.meters {
            meters.forget();
        }
    }

    /// Writes the buffer.
    fn append(&mut self) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if !self.doubts.is_empty() {
            let lines = self.doubtful_lines();
            self.buffer.splice(0..0, lines);
        }
        let is_first = self.ledger.is_writing == 0;
        if let Err(error) = self.file.make_room(self.buffer.len()) {
            return Err(self.stop_for(error));
        }
        self.mark_writing(true)?;
        if let Err(error) = self.file.append(&self.buffer) {
            if is_first && !self.file.is_torn() {
                self.mark_writing(false)?;
            }
            return Err(self.stop_for(error));
        }
        self.stop = None;
        self.doubts.clear();
        // Stored with what these lines are entered as.
        self.ledger.is_begun = 1;
        self.observers.tell(&self.buffer);
        if let Some(stdout) = &self.stdout {
            stdout.offer(&self.buffer);
        }
        if let Some(meters) = &mut self.meters {
            meters.written(&self.names);
        }
        self.buffer.clear();
        Ok(())
    }

    /// Notes whether lines may stand in the file that are not entered, and in which.
    fn mark_writing(&mut self, is_writing: bool) -> Result<(), LogError> {
        let file = self.file.position().inode;
        if self.ledger.is_writing != u32::from(is_writing) || self.ledger.file != file {
            let ledger = Ledger {
                is_writing: is_writing.into(),
                file,
                ..self.ledger
            };
            self.accounts.store_ledger(&ledger)?;
            self.ledger = ledger;
        }
        Ok(())
    }

    fn difference(&self) -> Imbalance {
        let mut difference = [[0; 2]; 2];
        for (direction, row) in difference.iter_mut().enumerate() {
            let lost = self.ledger.lost[direction].map(|causes| causes.iter().sum::<u64>());
            for (verdict, value) in row.iter_mut().enumerate() {
                let written = self.ledger.written[direction][verdict] + lost[verdict];
                let accounted = written - self.ahead[direction][verdict];
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
        let pending = self.pending.map(|pending| pending.generation);
        let pending = pending.filter(|generation| !self.is_entered(*generation));
        for generation in pending.into_iter().chain([self.accounts.generation()]) {
            add(&mut packets, &self.accounts.counted(generation)?.packets);
        }
        Ok(packets)
    }

    /// What the metrics show beside the ledger.
    pub fn figures(&self) -> LogFigures {
        LogFigures {
            imbalance: self.imbalance,
            rotations: self.file.rotations(),
            write_errors: self.write_errors,
            is_stopped: self.stop.is_some(),
            left_out: self.stdout.as_ref().map_or(0, Stdout::left_out),
            backlog: self.backlog(),
        }
    }

    /// Writes what is left, before the daemon ends.
    pub fn finish(mut self) -> Result<(), LogError> {
        // What comes meanwhile is for the next life: it may come without end.
        let end = self.ring.end();
        let drained = loop {
            match self.drain() {
                Ok(true) if self.ring.position() < end => {}
                // Of a generation that is closed a part may be in the file.
                Ok(_) if self.pending.is_none() && self.stop.is_none() => break self.mark_writing(false),
                result => break result.map(drop),
            }
        };
        if let Some(stdout) = self.stdout.take() {
            stdout.finish();
        }
        drained
    }

    /// Readable when the programs wake the reader.
    pub fn ring_fd(&self) -> BorrowedFd<'_> {
        self.accounts.ring().0
    }

    /// Bytes of the ring that are not read yet.
    pub fn backlog(&self) -> u64 {
        self.ring.end().saturating_sub(self.ring.position())
    }

    /// Half of the ring is not read yet.
    pub fn is_filling(&self) -> bool {
        self.backlog() > u64::from(self.accounts.ring().1) / 2
    }
}

/// Where an earlier life stopped.
struct Past {
    ring: Ring,
    ledger: Ledger,
    written: Written,
    doubts: Vec<Doubt>,
    pending: Option<Pending>,
}

impl Past {
    fn of(accounts: &Accounts, file: &LogFile, aggregation: Duration) -> Result<Self, LogError> {
        let (fd, size) = accounts.ring();
        let ring = Ring::new(fd, size).map_err(LogError::Ring)?;
        let ledger = accounts.ledger()?;
        if ledger.ring_position > ring.position() {
            ring.advance(ledger.ring_position);
        }
        let before = accounts.generation().wrapping_sub(1);
        let is_closed = ledger.closings > 0 && ledger.closed_generation == before;
        let pending = (accounts.generation() > 0 && !is_closed).then(|| Pending::inherited(before));
        let mut written = Written::default();
        // Where no closed generation waits, its lines are looked for only if the last ones are.
        let is_enough = |written: &Written| is_closed && ledger.told_kind != TOLD_GENERATION && written.ring.is_some();
        let learned = file.last_lines(|line| written.learn(line, accounts.epoch()) && !is_enough(&written));
        if let Err(error) = &learned {
            tracing::error!(%error, "failed to find out what an earlier life wrote last");
        }
        let found = Found {
            written: &written,
            is_past_read: learned.is_ok(),
            is_read: learned.is_ok() && (ledger.file == 0 || file.has(ledger.file)),
            ledger: &ledger,
            epoch: accounts.epoch(),
            is_all_entered: ring.position() == ring.end() && (is_closed || accounts.generation() == 0),
            aggregation,
        };
        let doubts = found.doubts();
        if !doubts.is_empty() {
            tracing::warn!(?doubts, "something about earlier records is not known; the log tells");
        }
        if is_closed {
            // In the ledger already; the clearing may have been cut short.
            let closed = accounts.read(before)?;
            accounts.clear(before, &closed.denies)?;
        }
        Ok(Self {
            ring,
            ledger,
            written,
            doubts,
            pending,
        })
    }
}

pub(super) fn index(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => AbiDirection::Ingress as usize,
        Direction::Egress => AbiDirection::Egress as usize,
    }
}
