// SPDX-License-Identifier: Apache-2.0
//! What each namespace holds of the tables of Services: half of a table at most, so that none takes the room of all.
//!
//! A front, and a list of backends that several fronts may name, is charged to the namespace whose Service brought it,
//! for as long as it is there. What an earlier life left is charged when its Service is told again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::ApplyError;
use super::services::ServiceCounts;
use crate::services::FrontKey;

#[derive(Debug, Default)]
pub(super) struct Shares {
    held: HashMap<Arc<str>, ServiceCounts>,
    fronts: HashMap<FrontKey, Arc<str>>,
    /// By id, with how many backends are in it.
    lists: HashMap<u32, (Arc<str>, usize)>,
}

/// By how much a change makes the tables fuller and emptier.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    pub(super) added: ServiceCounts,
    pub(super) released: ServiceCounts,
}

impl Need {
    fn of(self, held: ServiceCounts) -> ServiceCounts {
        ServiceCounts {
            fronts: (held.fronts + self.added.fronts).saturating_sub(self.released.fronts),
            backends: (held.backends + self.added.backends).saturating_sub(self.released.backends),
        }
    }
}

impl Shares {
    /// Whether what a Service of the namespace needs is within its half of tables of that size. One that adds nothing
    /// to a table is not asked about it.
    pub(super) fn check(&self, namespace: &str, need: Need, size: ServiceCounts) -> Result<(), ApplyError> {
        let needed = need.of(self.held.get(namespace).copied().unwrap_or_default());
        if need.added.fronts > 0 && needed.fronts > size.fronts / 2 {
            return Err(full(
                "a namespace's half of the table of Service addresses and ports",
                size.fronts / 2,
                needed.fronts,
            ));
        }
        if need.added.backends > 0 && needed.backends > size.backends / 2 {
            return Err(full(
                "a namespace's half of the table of Service backends",
                size.backends / 2,
                needed.backends,
            ));
        }
        Ok(())
    }

    pub(super) fn charge_front(&mut self, namespace: &Arc<str>, key: &FrontKey) {
        if let Entry::Vacant(place) = self.fronts.entry(*key) {
            place.insert(Arc::clone(namespace));
            self.held.entry(Arc::clone(namespace)).or_default().fronts += 1;
        }
    }

    pub(super) fn charge_list(&mut self, namespace: &Arc<str>, id: u32, backends: usize) {
        if let Entry::Vacant(place) = self.lists.entry(id) {
            place.insert((Arc::clone(namespace), backends));
            self.held.entry(Arc::clone(namespace)).or_default().backends += backends;
        }
    }

    pub(super) fn free_front(&mut self, key: &FrontKey) {
        if let Some(namespace) = self.fronts.remove(key) {
            self.take_back(&namespace, ServiceCounts { fronts: 1, backends: 0 });
        }
    }

    pub(super) fn free_list(&mut self, id: u32) {
        if let Some((namespace, backends)) = self.lists.remove(&id) {
            self.take_back(&namespace, ServiceCounts { fronts: 0, backends });
        }
    }

    fn take_back(&mut self, namespace: &str, freed: ServiceCounts) {
        let Some(held) = self.held.get_mut(namespace) else {
            return;
        };
        held.fronts -= freed.fronts;
        held.backends -= freed.backends;
        if *held == ServiceCounts::default() {
            self.held.remove(namespace);
        }
    }

    /// Whether the list is charged to the namespace.
    pub(super) fn has_list(&self, namespace: &str, id: u32) -> bool {
        self.lists.get(&id).is_some_and(|(owner, _)| **owner == *namespace)
    }

    /// As [`Shares::has_list`], of a front.
    pub(super) fn has_front(&self, namespace: &str, key: &FrontKey) -> bool {
        self.fronts.get(key).is_some_and(|owner| **owner == *namespace)
    }
}

pub(super) fn full(limit: &'static str, size: usize, needed: usize) -> ApplyError {
    ApplyError::Full {
        limit,
        size: u32::try_from(size).unwrap_or(u32::MAX),
        needed,
    }
}
