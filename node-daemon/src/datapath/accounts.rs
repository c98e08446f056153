// SPDX-License-Identifier: Apache-2.0
//! The kernel's side of the account: generations, counters, denied pairs, and the ledger of what was closed.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::Ordering;

use libbpf_rs::{MapCore, MapHandle};
use wardline_bpf::abi::{self, DenyEntry, DenyKey, DenyShare, Event, IdCounters, Ledger, Reason, Verdict};
use zerocopy::FromBytes as _;

use super::LoadError;
use super::layout::{Conversion, Conversions};
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

const _: () = assert!(Cause::TableFull as u32 == abi::LOSS_TABLE_FULL);
const _: () = assert!(Cause::DiskFull as u32 == abi::LOSS_DISK_FULL);
const _: () = assert!(Cause::WriteError as u32 == abi::LOSS_WRITE_ERROR);

impl Cause {
    pub const ALL: [Self; abi::LOSS_COUNT as usize] = [Self::TableFull, Self::DiskFull, Self::WriteError];

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

/// What one generation counted.
#[derive(Clone, Debug, Default)]
pub struct Closed {
    pub packets: [[u64; REASONS]; DIRECTIONS],
    pub due: [[u64; VERDICTS]; DIRECTIONS],
    /// Allows whose event found no room in the ring, by direction.
    pub ring_full: [u64; DIRECTIONS],
    /// Denies that found no room in the table, by direction.
    pub overflow: [u64; DIRECTIONS],
    /// In the order of their keys as the map has them, so that reading again gives the same order, to another version too.
    pub denies: Vec<(DenyKey, DenyEntry)>,
}

/// One thread owns it: the events thread.
#[derive(Debug)]
pub struct Accounts {
    epoch: u64,
    settings: Mapping,
    /// Where in the settings the generation is.
    generation: usize,
    event: Conversion,
    counters: PerCpuArray<abi::Counters>,
    denies: TypedMap<DenyKey, DenyEntry>,
    shares: TypedMap<u32, DenyShare>,
    ring: MapHandle,
    ledger: TypedMap<u32, Ledger>,
}

impl Accounts {
    /// Opens what [`Datapath::load`](super::Datapath::load) has pinned, in this life or a former one.
    pub fn open(paths: &PinPaths) -> Result<Self, LoadError> {
        let ids = TypedMap::<u32, IdCounters>::new(load::user_map(paths, "ids", size_of::<IdCounters>())?)?;
        Ok(Self {
            epoch: epoch(&ids)?,
            settings: settings(paths, size_of::<abi::Settings>())?,
            generation: std::mem::offset_of!(abi::Settings, generation),
            event: Conversion::same(size_of::<Event>()),
            counters: PerCpuArray::new(
                load::pinned(paths, "counters")?,
                Conversion::same(size_of::<abi::Counters>()),
            ),
            denies: TypedMap::new(load::pinned(paths, "denies")?)?,
            shares: TypedMap::new(load::pinned(paths, "deny_shares")?)?,
            ring: load::pinned(paths, "events")?,
            ledger: TypedMap::new(load::user_map(paths, "ledger", size_of::<Ledger>())?)?,
        })
    }

    /// Opens what another version has pinned.
    pub fn of_other_version(paths: &PinPaths) -> Result<Self, LoadError> {
        let conversions = Conversions::of(paths)?;
        let index = || Conversion::same(size_of::<u32>());
        let of = |name| conversions.of_struct(name);
        let ids = load::pinned(paths, "ids")?;
        Ok(Self {
            epoch: epoch(&TypedMap::of_other_layout(ids, index(), of("id_counters")?)?)?,
            settings: settings(paths, of("settings")?.their_size())?,
            generation: conversions.their_offset("settings", "generation")?,
            event: of("event")?,
            counters: PerCpuArray::new(load::pinned(paths, "counters")?, of("counters")?),
            denies: TypedMap::of_other_layout(load::pinned(paths, "denies")?, of("deny_key")?, of("deny_entry")?)?,
            shares: TypedMap::of_other_layout(load::pinned(paths, "deny_shares")?, index(), of("deny_share")?)?,
            ring: load::pinned(paths, "events")?,
            ledger: TypedMap::of_other_layout(load::pinned(paths, "ledger")?, index(), of("ledger")?)?,
        })
    }

    /// Tells this life of the maps from others.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bytes of an event in the ring.
    pub fn event_size(&self) -> usize {
        self.event.their_size()
    }

    /// Reads an event that has the size of one.
    pub fn event(&self, bytes: &[u8]) -> Option<Event> {
        Event::read_from_bytes(&self.event.to_ours(bytes)).ok()
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
            .sort_by_cached_key(|(key, _)| self.denies.key_bytes(key).into_owned());
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
        self.settings.u32(self.generation)
    }
}

/// When maps were made; 0 where none was.
fn epoch(ids: &TypedMap<u32, IdCounters>) -> Result<u64, MapError> {
    Ok(ids.get(&0)?.unwrap_or_default().epoch)
}

fn settings(paths: &PinPaths, size: usize) -> Result<Mapping, LoadError> {
    let settings = load::pinned(paths, "settings")?;
    Mapping::new(settings.as_fd(), 0, size.next_multiple_of(page_size()), true)
        .map_err(|cause| LoadError::Mapping { map: "settings", cause })
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
