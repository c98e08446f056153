// SPDX-License-Identifier: Apache-2.0
//! Where ids come from: counters in a pinned map, so that a restart goes on where the last life ended.

use libbpf_rs::MapHandle;
use wardline_bpf::abi::{self, IdCounters};

use super::map::{MapError, TypedMap};
use crate::clock;

#[derive(Debug)]
pub(super) struct Ids {
    counters: IdCounters,
    stored: IdCounters,
    map: TypedMap<u32, IdCounters>,
    tables_in_use: std::collections::HashSet<u32>,
    /// The last attribution of an earlier life.
    former_attribution: u32,
}

impl Ids {
    pub(super) fn open(handle: MapHandle) -> Result<Self, MapError> {
        let map = TypedMap::<u32, IdCounters>::new(handle)?;
        let mut counters = map.get(&0)?.unwrap_or_default();
        if counters.epoch == 0 {
            counters.epoch = clock::wall();
            map.set(&0, &counters)?;
        }
        Ok(Self {
            counters,
            stored: counters,
            map,
            tables_in_use: std::collections::HashSet::new(),
            former_attribution: counters.attribution,
        })
    }

    /// What other maps gave out is not given out here again: a pod and its connections keep their ids, and names what they
    /// mean.
    pub(super) fn pass(&mut self, others: &IdCounters) -> Result<(), MapError> {
        let counters = &mut self.counters;
        for (own, other) in [
            (&mut counters.endpoint, others.endpoint),
            (&mut counters.table, others.table),
            (&mut counters.class, others.class),
            (&mut counters.attribution, others.attribution),
            (&mut counters.peers, others.peers),
            (&mut counters.service, others.service),
        ] {
            *own = (*own).max(other);
        }
        self.former_attribution = counters.attribution;
        self.store()
    }

    /// Tables of an earlier life that are in force; their ids are given to no others.
    pub(super) fn hold_tables(&mut self, tables: impl IntoIterator<Item = u32>) {
        self.tables_in_use.extend(tables);
    }

    /// Whether an earlier life gave out this attribution.
    pub(super) fn is_former_attribution(&self, id: u32) -> bool {
        id <= self.former_attribution
    }

    pub(super) fn next_endpoint(&mut self) -> u32 {
        self.counters.endpoint += 1;
        self.counters.endpoint
    }

    pub(super) fn next_class(&mut self) -> u32 {
        self.counters.class += 1;
        self.counters.class
    }

    pub(super) fn next_attribution(&mut self) -> u32 {
        self.counters.attribution += 1;
        self.counters.attribution
    }

    /// Table ids have to fit into the policy word, so they come round; those in use are passed over.
    pub(super) fn next_table(&mut self) -> u32 {
        loop {
            self.counters.table = (self.counters.table + 1) & ((1 << abi::WORD_TABLE_BITS) - 1);
            if self.counters.table != 0 && self.tables_in_use.insert(self.counters.table) {
                return self.counters.table;
            }
        }
    }

    pub(super) fn free_table(&mut self, id: u32) {
        self.tables_in_use.remove(&id);
    }

    /// Fronts of Services and lists of backends count together.
    pub(super) fn next_service(&mut self) -> u32 {
        self.counters.service += 1;
        self.counters.service
    }

    /// A generation of the peer maps. They come round soon, so those that may still be there are passed over.
    pub(super) fn next_peers(&mut self, is_used: impl Fn(u32) -> bool) -> u32 {
        loop {
            self.counters.peers = (self.counters.peers + 1) & ((1 << abi::WORD_PEERS_BITS) - 1);
            if self.counters.peers != 0 && !is_used(self.counters.peers) {
                return self.counters.peers;
            }
        }
    }

    /// Must be called before ids that were given out are used.
    pub(super) fn store(&mut self) -> Result<(), MapError> {
        if self.stored != self.counters {
            self.map.set(&0, &self.counters)?;
            self.stored = self.counters;
        }
        Ok(())
    }
}
