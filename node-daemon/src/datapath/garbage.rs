// SPDX-License-Identifier: Apache-2.0
//! Deletes what no packet can meet any more. What is in force is read from the words themselves, so that neither a
//! change that failed nor another life of the daemon can lose it.

use std::collections::{HashMap, HashSet};

use wardline_policy::tables::TableKey;

use super::endpoints::InForce;
use super::map::MapError;
use super::tables::{LoadedTable, keys_of};
use super::{ApplyError, Datapath};
use crate::mapping::wait_for_programs;
use crate::names::{JournalError, Meaning};

impl Datapath {
    /// Deletes the keys that no word names. Waits for running programs first: call it off the way of a change.
    pub fn collect_garbage(&mut self) -> Result<(), ApplyError> {
        let in_force = self.endpoints.in_force()?;
        let stale = self.stale_classes(&in_force);
        if stale.is_empty() && !self.loaded.sweep && !self.services.has_garbage() {
            return Ok(());
        }
        wait_for_programs().map_err(ApplyError::Grace)?;
        self.services.delete_garbage()?;
        for (key, classes) in &stale {
            let Some(table) = self.loaded.tables.get_mut(key) else {
                continue;
            };
            for class in classes {
                let (rules, ranges) = keys_of(table, *class);
                rules.iter().try_for_each(|key| self.rules.delete(key))?;
                ranges.iter().try_for_each(|key| self.ranges.delete(key))?;
                table.classes.remove(class);
            }
        }
        let ids = &mut self.ids;
        self.loaded.tables.retain(|_, table| {
            let keep = in_force.tables.contains(&table.id);
            if !keep {
                ids.free_table(table.id);
            }
            keep
        });
        if self.loaded.sweep {
            self.sweep(&in_force)?;
            self.loaded.sweep = false;
        }
        self.loaded
            .meanings
            .retain(self.loaded.tables.values(), self.loaded.peers.classes());
        Ok(())
    }

    /// Lets go of the meanings of ids that nothing uses any more. Call it after [`Datapath::collect_garbage`].
    pub fn forget_names(&self) -> Result<(), ApplyError> {
        let in_force = self.endpoints.in_force()?;
        // Without the mirror it is not known which attributions the tables in force have; nor what another version counted is
        // about.
        if self.loaded.generation == 0 || !self.takeover.progress().is_done() {
            return Ok(());
        }
        let mut tables: HashSet<u32> = self.loaded.tables.values().map(|table| table.id).collect();
        // Tables of an earlier life are in force where this one does not know the pod: nor does it know their attributions.
        let knows_all = in_force.tables.is_subset(&tables);
        let is_former = |id| !knows_all && self.ids.is_former_attribution(id);
        tables.extend(in_force.tables);
        self.names
            .forget(|meaning| match meaning {
                Meaning::Endpoint { uid, .. } => in_force.uids.contains(uid),
                Meaning::Table { id, .. } => tables.contains(id),
                Meaning::Attribution { id, .. } => self.loaded.meanings.has_attribution(*id) || is_former(*id),
            })
            .map_err(JournalError::into)
    }

    /// Makes room among the peers: only the generations that words name stay.
    pub(super) fn sweep_former(&mut self) -> Result<(), ApplyError> {
        let in_force = self.endpoints.in_force()?;
        wait_for_programs().map_err(ApplyError::Grace)?;
        self.sweep_peers(&in_force)?;
        Ok(())
    }

    /// By table: the classes of those that no word names, and the classes that no address has any more.
    fn stale_classes(&self, in_force: &InForce) -> Vec<(TableKey, Vec<u32>)> {
        let occurring = self.loaded.peers.classes();
        // A word of another generation still leads to classes that the mirror knows nothing of.
        let is_settled = in_force.generations.iter().all(|id| *id == self.loaded.generation);
        let mut stale = Vec::new();
        for (key, table) in &self.loaded.tables {
            let is_named = in_force.tables.contains(&table.id);
            let of_table = table
                .classes
                .keys()
                .filter(|class| !is_named || (is_settled && !occurring.contains(class)));
            let classes: Vec<u32> = of_table.copied().collect();
            if !classes.is_empty() {
                stale.push((key.clone(), classes));
            }
        }
        stale
    }

    /// Deletes every key that is neither in force nor in the mirror: of an earlier life, of a change that failed, of a
    /// former generation of peers.
    fn sweep(&mut self, in_force: &InForce) -> Result<(), ApplyError> {
        self.sweep_peers(in_force)?;
        let tables: HashMap<u32, &LoadedTable> = self.loaded.tables.values().map(|table| (table.id, table)).collect();
        let is_live = |table: u32, class: u32| match tables.get(&table) {
            Some(table) => table.classes.contains_key(&class),
            None => in_force.tables.contains(&table),
        };
        for key in self.rules.keys().iter().filter(|key| !is_live(key.table, key.class)) {
            self.rules.delete(key)?;
        }
        for key in self.ranges.keys().iter().filter(|key| !is_live(key.table, key.class)) {
            self.ranges.delete(key)?;
        }
        self.attacher.sweep(&in_force.uids).map_err(ApplyError::Grace)
    }

    fn sweep_peers(&mut self, in_force: &InForce) -> Result<(), MapError> {
        let mut keep = in_force.generations.clone();
        keep.insert(self.loaded.generation);
        self.peer_maps.sweep(&keep)?;
        self.loaded.former.retain(|id, _| keep.contains(id));
        Ok(())
    }
}
