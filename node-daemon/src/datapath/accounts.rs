// SPDX-License-Identifier: Apache-2.0
//! The kernel's side of the account: generations, counters, denied pairs, and the ledger of what was closed.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::Ordering;

use libbpf_rs::{MapCore, MapHandle};
use wardline_bpf::abi::{self, DenyEntry, DenyKey, DenyShare, Reason, Verdict};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::LoadError;
use super::ids::{Counters as IdCounters, Ids};
use super::load::{self, PinPaths};
use super::map::{MapError, PerCpuArray, TypedMap};
use crate::mapping::{Mapping, page_size, wait_for_programs};

const DIRECTIONS: usize = 2;
const VERDICTS: usize = 2;
const REASONS: usize = Reason::ALL.len();

/// Why a record is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The kernel had no room for it: the ring or the deny table was full.
    TableFull,
    /// The log's disk had no room, or not enough to spare.
    DiskFull,
    /// The log could not be written for another reason.
    WriteError,
}

impl Cause {
    pub const ALL: [Self; 3] = [Self::TableFull, Self::DiskFull, Self::WriteError];

    /// As the log and the metrics spell it.
    pub fn as_str(self, verdict: Verdict) -> &'static str {
        match (self, verdict) {
            (Self::TableFull, Verdict::Allow) => "ring-full",
            (Self::TableFull, Verdict::Deny) => "aggregates-full",
            (Self::DiskFull, _) => "disk-full",
            (Self::WriteError, _) => "write-error",
        }
    }
}

/// Records by direction, verdict and [`Cause`].
pub type Losses = [[[u64; Cause::ALL.len()]; VERDICTS]; DIRECTIONS];

/// Values of [`Ledger::told_kind`]; 0: no line is entered yet.
pub const TOLD_EVENT: u32 = 1;
pub const TOLD_GENERATION: u32 = 2;

/// What was counted and written since the maps were made; pinned, so that a restart goes on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ledger {
    /// Ring position up to which events are in `written`.
    pub ring_position: u64,
    /// The last generation whose counters are in here; meaningful once `closings` is not 0.
    pub closed_generation: u32,
    /// 1 from the first line of a life until it has ended in order, with all entered that it wrote.
    pub is_writing: u32,
    /// Generations closed.
    pub closings: u64,
    /// The last line that is entered: an event's position, or a closed generation, as `told_kind` says.
    pub told: u64,
    /// Inode of the file that was written to last; 0: none yet.
    pub file: u64,
    pub told_kind: u32,
    /// 1 when a line stands in the log, and with it what it has to say of an account before this one.
    pub is_begun: u32,
    /// By direction and [`Reason`].
    pub packets: [[u64; REASONS]; DIRECTIONS],
    /// By direction and verdict.
    pub due: [[u64; VERDICTS]; DIRECTIONS],
    pub written: [[u64; VERDICTS]; DIRECTIONS],
    /// All that is lost, told by a line or not yet.
    pub lost: Losses,
    /// Of these, those that no line tells of: they could not be written.
    pub untold: Losses,
    /// Of these, those that the next generation to be closed tells of. Set before any line of it is written, so that
    /// its lines are the same after a crash.
    pub carried: Losses,
    /// Wall time of the oldest of `untold` and of `carried`, nanoseconds since the epoch.
    pub untold_since: u64,
    pub carried_since: u64,
    /// The old file that was deleted last, and what stood in all that were: bytes, and records by disposition.
    pub deleted_file: u64,
    pub deleted_bytes: u64,
    pub deleted_records: [u64; 3],
}

impl Ledger {
    /// Records lost in a direction, by verdict.
    pub fn lost_in(&self, direction: usize) -> [u64; VERDICTS] {
        self.lost[direction].map(|causes| causes.iter().sum())
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// What one generation counted.
#[derive(Clone, Debug, Default)]
pub struct Closed {
    pub packets: [[u64; REASONS]; DIRECTIONS],
    pub due: [[u64; VERDICTS]; DIRECTIONS],
    /// Allows whose event found no room in the ring, by direction.
    pub ring_full: [u64; DIRECTIONS],
    /// Denies that found no room in the table, by direction.
    pub overflow: [u64; DIRECTIONS],
    /// In the order of their keys, so that reading again gives the same order.
    pub denies: Vec<(DenyKey, DenyEntry)>,
}

/// One thread owns it: the events thread.
#[derive(Debug)]
pub struct Accounts {
    epoch: u64,
    settings: Mapping,
    counters: PerCpuArray<abi::Counters>,
    denies: TypedMap<DenyKey, DenyEntry>,
    shares: TypedMap<u32, DenyShare>,
    ring: MapHandle,
    ledger: TypedMap<u32, Ledger>,
}

impl Accounts {
    /// Opens what [`Datapath::load`](super::Datapath::load) has pinned, in this life or a former one.
    pub fn open(paths: &PinPaths) -> Result<Self, LoadError> {
        let pinned = |name| MapHandle::from_pinned_path(paths.maps.join(name)).map_err(LoadError::load);
        let length = size_of::<abi::Settings>().next_multiple_of(page_size());
        let settings = Mapping::new(pinned("settings")?.as_fd(), 0, length, true)
            .map_err(|cause| LoadError::Mapping { map: "settings", cause })?;
        Ok(Self {
            epoch: Ids::open(load::user_map(paths, "ids", size_of::<IdCounters>())?)?.epoch(),
            settings,
            counters: PerCpuArray::new(pinned("counters")?),
            denies: TypedMap::new(pinned("denies")?)?,
            shares: TypedMap::new(pinned("deny_shares")?)?,
            ring: pinned("events")?,
            ledger: TypedMap::new(load::user_map(paths, "ledger", size_of::<Ledger>())?)?,
        })
    }

    /// Tells this life of the maps from others.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn ring(&self) -> (BorrowedFd<'_>, u32) {
        (self.ring.as_fd(), self.ring.max_entries())
    }

    /// The generation that packets count into now.
    pub fn generation(&self) -> u32 {
        self.generation_cell().load(Ordering::Acquire)
    }

    /// Begins the next generation and returns the one before, which packets that are under way may still change:
    /// [`Accounts::settle`] waits for them.
    pub fn flip(&self) -> u32 {
        let closed = self.generation();
        self.generation_cell().store(closed.wrapping_add(1), Ordering::Release);
        closed
    }

    /// When it returns, generations before the one in use no longer change.
    pub fn settle(&self) -> io::Result<()> {
        wait_for_programs()
    }

    /// What all CPUs counted in `generation`, also while it is in use.
    pub fn counted(&self, generation: u32) -> Result<abi::Counters, MapError> {
        let mut sum = abi::Counters::default();
        for counters in self.counters.get(generation & 1)? {
            add(&mut sum.packets, &counters.packets);
            add(&mut sum.due, &counters.due);
            for (sum, value) in sum.ring_full.iter_mut().zip(counters.ring_full) {
                *sum += value;
            }
        }
        Ok(sum)
    }

    /// Reads a closed generation.
    pub fn read(&self, generation: u32) -> Result<Closed, MapError> {
        let counted = self.counted(generation)?;
        let mut closed = Closed {
            packets: counted.packets,
            due: counted.due,
            ring_full: counted.ring_full,
            ..Closed::default()
        };
        for (slot, share) in self.shares(generation)? {
            closed.overflow[slot as usize % DIRECTIONS] += share.overflow;
        }
        self.denies.for_each(|key, entry| {
            if key.generation == generation {
                closed.denies.push((key, entry));
            }
        })?;
        closed
            .denies
            .sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        Ok(closed)
    }

    /// Makes room for the generation after the next.
    pub fn clear(&self, generation: u32, denies: &[(DenyKey, DenyEntry)]) -> Result<(), MapError> {
        denies.iter().try_for_each(|(key, _)| self.denies.delete(key))?;
        for (slot, _) in self.shares(generation)? {
            self.shares.set(&share_index(slot, generation), &DenyShare::default())?;
        }
        self.counters.clear(generation & 1)
    }

    pub fn ledger(&self) -> Result<Ledger, MapError> {
        Ok(self.ledger.get(&0)?.unwrap_or_default())
    }

    /// One call of the kernel: a crash leaves the ledger as it was before or as it is after.
    pub fn store_ledger(&self, ledger: &Ledger) -> Result<(), MapError> {
        self.ledger.set(&0, ledger)
    }

    /// Slots whose share of `generation` was used.
    fn shares(&self, generation: u32) -> Result<Vec<(u32, DenyShare)>, MapError> {
        let mut used = Vec::new();
        self.shares.for_each(|index, share| {
            if index & 1 == generation & 1 && share != DenyShare::default() {
                used.push((index / 2, share));
            }
        })?;
        Ok(used)
    }

    fn generation_cell(&self) -> &std::sync::atomic::AtomicU32 {
        self.settings.u32(std::mem::offset_of!(abi::Settings, generation))
    }
}

fn share_index(slot: u32, generation: u32) -> u32 {
    slot * 2 + (generation & 1)
}

pub(crate) fn add<const N: usize, const M: usize>(sums: &mut [[u64; N]; M], values: &[[u64; N]; M]) {
    for (sums, values) in sums.iter_mut().zip(values) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }
}
