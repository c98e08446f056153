// SPDX-License-Identifier: Apache-2.0
//! What each endpoint holds of the connection table (`struct usage` in bpf/include/abi.h): programs count what they
//! make, and each sweep says how much of it is there no more. So a count that went astray, by a race between CPUs or
//! because the daemon was killed in the middle of a sweep, is right again after the next. Also which entry it takes out.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};

use wardline_bpf::abi::{ConntrackKey, MAX_ENDPOINTS, Usage};
use zerocopy::IntoBytes;

use crate::mapping::Mapping;

/// Entries, and those among them that nobody answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) entries: u64,
    pub(super) half_open: u64,
}

impl Held {
    /// Between two countings. Of what was made while a table was read, about half was seen.
    pub(super) fn midway(self, later: Self) -> Self {
        Self {
            entries: self.entries.midpoint(later.entries),
            half_open: self.half_open.midpoint(later.half_open),
        }
    }
}

/// As the programs were loaded with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quotas {
    pub(super) connections: u32,
    pub(super) half_open: u32,
}

impl Quotas {
    /// Of a table of that many entries: a pod that floods another of the same node counts twice, and leaves half of it.
    pub(super) fn of(connections: u32) -> Self {
        Self {
            connections: (connections / 4).max(1),
            half_open: (connections / 16).max(1),
        }
    }

    /// So near to a quota that what nobody answered must go early; of what it opens itself a pod may
    /// hold half as much, and three quarters of all.
    pub(super) fn is_pressed(&self, held: Held) -> bool {
        held.half_open > u64::from(self.half_open) / 4 || held.entries >= u64::from(self.connections) / 4 * 3
    }
}

/// The array `usages`, by slot / 2.
#[derive(Debug)]
pub(super) struct Usages(pub(super) Mapping);

impl Usages {
    /// Bytes of the array.
    pub(super) const BYTES: usize = MAX_ENDPOINTS as usize * size_of::<Usage>();

    fn load(&self, index: u32, field: usize) -> u64 {
        let offset = index as usize * size_of::<Usage>() + field;
        self.0.u64(offset).load(Ordering::Relaxed)
    }

    fn store(&self, index: u32, field: usize, value: u64) {
        let offset = index as usize * size_of::<Usage>() + field;
        self.0.u64(offset).store(value, Ordering::Relaxed);
    }

    /// What programs have counted since the array was made, whether it is there still or not.
    pub(super) fn counted(&self, index: u32) -> Held {
        let opened = self.load(index, offset_of!(Usage, half_opened));
        Held {
            entries: self.load(index, offset_of!(Usage, made)),
            half_open: opened.wrapping_sub(self.load(index, offset_of!(Usage, half_closed))),
        }
    }

    /// What programs take the endpoint to hold; less than nothing, by a race, is nothing.
    pub(super) fn held(&self, index: u32) -> Held {
        let counted = self.counted(index);
        let left = |counted: u64, gone| counted.wrapping_sub(gone).cast_signed().max(0).cast_unsigned();
        Held {
            entries: left(counted.entries, self.load(index, offset_of!(Usage, gone))),
            half_open: left(counted.half_open, self.load(index, offset_of!(Usage, half_gone))),
        }
    }

    /// Of what had been counted when the table was read, this was there.
    pub(super) fn settle(&self, index: u32, counted: Held, there: Held) {
        let gone = counted.entries.wrapping_sub(there.entries);
        let half_gone = counted.half_open.wrapping_sub(there.half_open);
        self.store(index, offset_of!(Usage, gone), gone);
        self.store(index, offset_of!(Usage, half_gone), half_gone);
    }

    /// Tells programs that the entry of this key is out of the table while `take` runs, and no sign of a new flow.
    pub(super) fn swept<T>(&self, index: u32, key: &ConntrackKey, take: impl FnOnce() -> T) -> T {
        let bytes = key.as_bytes().chunks_exact(size_of::<u32>());
        for (i, word) in bytes
            .filter_map(|word| word.try_into().ok().map(u32::from_ne_bytes))
            .enumerate()
        {
            let offset = offset_of!(Usage, swept) + i * size_of::<u32>();
            self.word(index, offset).store(word, Ordering::Relaxed);
        }
        let is_swept = self.word(index, offset_of!(Usage, is_swept));
        is_swept.store(1, Ordering::SeqCst);
        let taken = take();
        is_swept.store(0, Ordering::SeqCst);
        taken
    }

    /// A daemon that was killed while it swept may have left a mark.
    pub(super) fn clear_marks(&self) {
        for index in 0..MAX_ENDPOINTS {
            self.word(index, offset_of!(Usage, is_swept))
                .store(0, Ordering::Relaxed);
        }
    }

    fn word(&self, index: u32, field: usize) -> &AtomicU32 {
        self.0.u32(index as usize * size_of::<Usage>() + field)
    }

    /// The slots are another endpoint's now, which holds nothing yet.
    pub(super) fn forget(&self, index: u32) {
        self.word(index, offset_of!(Usage, events)).store(0, Ordering::Relaxed);
        self.store(index, offset_of!(Usage, events_since), 0);
        self.settle(index, self.counted(index), Held::default());
    }
}
