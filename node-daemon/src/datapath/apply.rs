// SPDX-License-Identifier: Apache-2.0
//! From a desired state to stores in the kernel, in an order in which no packet sees a mix.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::PoisonError;

use wardline_bpf::abi;
use wardline_policy::model::{Direction, ObjectName};
use wardline_policy::tables::{EndpointTables, TableKey, Tables};

use super::endpoints::{self, NewEndpoint, SlotPolicy, slot_of};
use super::map::MapError;
use super::peers::{Moves, Peers};
use super::tables::{LoadedTable, RuleEntries};
use super::{Applied, ApplyError, Datapath, Loaded};
use crate::index::Desired;
use crate::names::PodName;

/// Former generations of the peer maps that may wait for being tidied.
const FORMER: usize = 16;

#[derive(Debug, Default)]
struct EndpointPlan {
    new: Vec<(u32, NewEndpoint)>,
    /// Of an earlier life of the daemon; they keep uid, slot and connections.
    inherited: Vec<(u32, NewEndpoint)>,
    removed: BTreeSet<u32>,
    refused: Vec<(ObjectName, String)>,
    /// Uids of those that stay as an earlier life of the daemon left them.
    left: Vec<u32>,
}

impl EndpointPlan {
    fn uids(&self) -> impl Iterator<Item = u32> + '_ {
        let put = self.new.iter().chain(&self.inherited);
        put.map(|(_, endpoint)| endpoint.uid).chain(self.left.iter().copied())
    }
}

impl Datapath {
    /// Brings the kernel to `desired`. `name` tells who a pod is, for records.
    ///
    /// # Errors
    /// The change is refused whole and what was in force stays; new pods are guarded by what selects them, without
    /// rules where those are not in force. A pod that cannot be attached is no error of the change: it is named in
    /// the result.
    pub fn apply(&mut self, desired: &Desired, name: impl Fn(&ObjectName) -> PodName) -> Result<Applied, ApplyError> {
        self.set_log_modes(desired.log_modes);
        let mut result = self.apply_policy(desired, &name);
        if matches!(&result, Err(ApplyError::Map(error)) if error.is_full()) {
            // What is not in force any more may be what takes the room.
            self.forget_mirror();
            self.collect_garbage()?;
            result = self.apply_policy(desired, &name);
        }
        if let Err(error) = &result {
            if !matches!(error, ApplyError::Full { .. }) {
                self.forget_mirror();
            }
            self.guard_new(desired, &name)?;
        }
        result
    }

    /// Keys of ours may be in the kernel that the mirror does not know: the next change begins with fresh ids.
    fn forget_mirror(&mut self) {
        self.loaded = Loaded {
            sweep: true,
            ..Loaded::default()
        };
    }

    fn apply_policy(
        &mut self,
        desired: &Desired,
        name: &impl Fn(&ObjectName) -> PodName,
    ) -> Result<Applied, ApplyError> {
        let tables = &desired.tables;
        self.check_limits(desired)?;
        let wanted = Peers::wanted(desired, &mut self.loaded.meanings, &mut self.ids);
        let in_place = self.loaded.generation != 0
            && (wanted == self.loaded.peers || (self.are_all_kept(desired) && self.are_all_wanted(tables)?));
        let entries = self.plan_tables(tables);
        let plan = self.plan_endpoints(desired);
        self.tell(&plan, name)?;
        if let Err(error) = self.write(&entries) {
            self.unwrite(&entries);
            return Err(error.into());
        }
        let moves = if in_place {
            self.move_addresses(wanted)?
        } else {
            self.begin_peers(wanted)?
        };
        let changed = self.set_words(desired, &moves);
        let mut applied = self.put_endpoints(desired, plan, |datapath, slot, table| {
            datapath.set_slot(slot, table, &moves)
        })?;
        applied.changed |= changed;
        Ok(applied)
    }

    /// The maps have twice the room, for what is in force and what replaces it.
    fn check_limits(&self, desired: &Desired) -> Result<(), ApplyError> {
        let tables = &desired.tables;
        let nodes = desired.nodes.union(&desired.local).count();
        let peers = tables.peers.len() + tables.cidrs.len() + nodes;
        if peers > self.limits.peers as usize {
            return Err(ApplyError::Full {
                limit: "limits.peers",
                size: self.limits.peers,
                needed: peers,
            });
        }
        let rules = tables
            .tables
            .values()
            .flat_map(|table| table.rules.values())
            .map(BTreeMap::len)
            .sum();
        if rules > self.limits.rules as usize {
            return Err(ApplyError::Full {
                limit: "limits.rules",
                size: self.limits.rules,
                needed: rules,
            });
        }
        Ok(())
    }

    /// Whether every table that some word names is wanted, under the generation in force: then each has rules for
    /// every class that an address can move to, and addresses may change where they stand.
    fn are_all_wanted(&self, tables: &Tables) -> Result<bool, MapError> {
        let in_force = self.endpoints.in_force()?;
        let wanted: HashSet<u32> = tables
            .tables
            .keys()
            .filter_map(|key| self.loaded.tables.get(key))
            .map(|table| table.id)
            .collect();
        Ok(in_force.tables.is_subset(&wanted) && in_force.generations.iter().all(|id| *id == self.loaded.generation))
    }

    /// Whether each pod that is isolated stays under its table, and no word but for its revision is to change: an address
    /// that moves before a pod's table does would meet that pod's old policy with its new class.
    fn are_all_kept(&self, desired: &Desired) -> bool {
        let is_kept = |slot: u32, key: Option<&TableKey>| {
            let in_force = self.endpoints.slot_policy(slot).table;
            let wanted = key.and_then(|key| self.loaded.tables.get(key));
            in_force == 0 || wanted.is_some_and(|table| table.id == in_force)
        };
        self.endpoints.managed.iter().all(|(ifindex, managed)| {
            let wanted = desired.tables_of(*ifindex, &managed.spec).map(by_direction);
            wanted.is_none_or(|wanted| {
                let slots = Direction::ALL.map(|direction| slot_of(managed.slot, direction));
                slots
                    .into_iter()
                    .zip(&wanted)
                    .all(|(slot, key)| is_kept(slot, key.as_ref()))
            })
        })
    }

    /// The entries that the wanted tables lack in the kernel.
    fn plan_tables(&mut self, tables: &Tables) -> RuleEntries {
        let mut entries = RuleEntries::default();
        for (key, table) in &tables.tables {
            let Loaded {
                meanings,
                tables: loaded,
                ..
            } = &mut self.loaded;
            let loaded = loaded
                .entry(key.clone())
                .or_insert_with(|| meanings.table(key, &mut self.ids));
            let more = meanings.extend(loaded, table, &mut self.ids);
            entries.rules.extend(more.rules);
            entries.ranges.extend(more.ranges);
        }
        entries
    }

    fn plan_endpoints(&mut self, desired: &Desired) -> EndpointPlan {
        let mut plan = EndpointPlan::default();
        let known: BTreeSet<u32> = self
            .endpoints
            .managed
            .keys()
            .copied()
            .chain(self.endpoints.known())
            .collect();
        let mut taken = BTreeSet::new();
        let mut unmet = Vec::new();
        for (ifindex, spec) in &desired.endpoints {
            let tables = desired.tables_of(*ifindex, spec).map(by_direction);
            if let Some(managed) = self.endpoints.managed.get(ifindex) {
                if managed.spec.is_same_pod(spec) {
                    continue;
                }
            } else if let Some(entry) = self.endpoints.inherited(*ifindex, spec, &self.names) {
                taken.insert(entry.slot);
                let new = NewEndpoint {
                    spec: spec.clone(),
                    uid: entry.uid,
                    slot: entry.slot,
                    tables,
                };
                plan.inherited.push((*ifindex, new));
                continue;
            }
            // Without what is in force for it nobody knows what should be.
            let Some(tables) = tables else { continue };
            if self.endpoints.managed.contains_key(ifindex) {
                plan.removed.insert(*ifindex);
            }
            unmet.push((*ifindex, spec.clone(), tables));
        }
        plan.removed
            .extend(known.iter().filter(|ifindex| !desired.endpoints.contains_key(ifindex)));
        for (ifindex, spec, tables) in unmet {
            let Some(slot) = self.endpoints.free_slot(&taken) else {
                plan.refused.push((
                    spec.pod.clone(),
                    format!("all {} endpoints are in use", abi::MAX_ENDPOINTS),
                ));
                continue;
            };
            taken.insert(slot);
            plan.new.push((
                ifindex,
                NewEndpoint {
                    spec,
                    uid: self.ids.next_endpoint(),
                    slot,
                    tables: Some(tables),
                },
            ));
        }
        plan
    }

    /// Makes all new ids known before the kernel can use them.
    fn tell(&mut self, plan: &EndpointPlan, name: &impl Fn(&ObjectName) -> PodName) -> Result<(), ApplyError> {
        let mut told = std::mem::take(&mut self.loaded.meanings.untold);
        let new = plan
            .new
            .iter()
            .map(|(_, new)| endpoints::meaning(new.uid, &new.spec, name(&new.spec.pod)));
        told.extend(new);
        self.ids.store()?;
        self.names.tell(told)?;
        Ok(())
    }

    fn write(&self, entries: &RuleEntries) -> Result<(), MapError> {
        entries
            .rules
            .iter()
            .try_for_each(|(key, rule)| self.rules.set(key, rule))?;
        entries
            .ranges
            .iter()
            .try_for_each(|(key, rule)| self.ranges.set(key, rule))
    }

    /// No word names these entries yet, so that they can go at once; one that stays is swept later.
    fn unwrite(&self, entries: &RuleEntries) {
        for (key, _) in &entries.rules {
            let _ = self.rules.delete(key);
        }
        for (key, _) in &entries.ranges {
            let _ = self.ranges.delete(key);
        }
    }

    /// Changes classes of addresses where they stand. Returns the moves, for slots whose policy tells the difference.
    fn move_addresses(&mut self, wanted: Peers) -> Result<Moves, ApplyError> {
        let moves = self.loaded.peers.moves(&wanted);
        self.peer_maps
            .update(self.loaded.generation, &self.loaded.peers, &wanted)?;
        self.loaded.peers = wanted;
        Ok(moves)
    }

    /// Writes all addresses under a new generation, which the words that follow name.
    fn begin_peers(&mut self, wanted: Peers) -> Result<Moves, ApplyError> {
        let former: usize = self.loaded.former.values().sum();
        let room = 2 * self.limits.peers as usize;
        if self.loaded.former.len() >= FORMER || former + self.loaded.peers.len() + wanted.len() > room {
            self.sweep_former()?;
        }
        let in_force = self.endpoints.in_force()?.generations;
        let is_used = |id: u32| in_force.contains(&id) || self.loaded.former.contains_key(&id);
        let generation = self.ids.next_peers(is_used);
        self.ids.store()?;
        self.peer_maps.update(generation, &Peers::default(), &wanted)?;
        if self.loaded.generation != 0 {
            self.loaded
                .former
                .insert(self.loaded.generation, self.loaded.peers.len());
        }
        self.loaded.generation = generation;
        self.loaded.peers = wanted;
        self.loaded.sweep = true;
        Ok(Moves::default())
    }

    /// The stores that change what packets see: one a slot.
    fn set_words(&mut self, desired: &Desired, moves: &Moves) -> bool {
        let mut changed = false;
        for (ifindex, managed) in &self.endpoints.managed {
            let Some(wanted) = desired.tables_of(*ifindex, &managed.spec) else {
                continue;
            };
            for (direction, table) in Direction::ALL.into_iter().zip(&by_direction(wanted)) {
                changed |= self.set_slot(slot_of(managed.slot, direction), table.as_ref(), moves);
            }
        }
        changed
    }

    /// Stores a slot's word if its policy changed or something moved that it tells apart. Returns whether it did.
    fn set_slot(&self, slot: u32, table: Option<&TableKey>, moves: &Moves) -> bool {
        let loaded = table.and_then(|key| self.loaded.tables.get(key));
        let policy = loaded.map_or(SlotPolicy::default(), |table| self.slot_policy(table));
        let is_moved = || {
            let tells_apart = |table: &LoadedTable, (a, b): &(u32, u32)| table.classes.get(a) != table.classes.get(b);
            loaded.is_some_and(|table| moves.nodes || moves.classes.iter().any(|pair| tells_apart(table, pair)))
        };
        let changes = self.endpoints.slot_policy(slot) != policy || is_moved();
        if changes {
            self.endpoints.set_word(slot, policy);
        }
        changes
    }

    fn slot_policy(&self, table: &LoadedTable) -> SlotPolicy {
        SlotPolicy {
            table: table.id,
            peers: self.loaded.generation,
            cidrs: table.has_cidrs,
        }
    }

    /// Takes away who is gone, and puts in place who is new; `set_slot` gives a slot its policy before.
    fn put_endpoints(
        &mut self,
        desired: &Desired,
        plan: EndpointPlan,
        mut set_slot: impl FnMut(&Self, u32, Option<&TableKey>) -> bool,
    ) -> Result<Applied, ApplyError> {
        let mut applied = Applied::default();
        for ifindex in &plan.removed {
            self.endpoints.remove(*ifindex, &self.attacher)?;
        }
        for (ifindex, spec) in &desired.endpoints {
            self.endpoints.refresh(*ifindex, spec)?;
        }
        // Known as live before their first packet, or a sweep takes their first connections for left over.
        self.publish_live(self.endpoints.uids().chain(plan.uids()).collect());
        let inherited = plan.inherited.iter().map(|(_, new)| new.uid);
        let passing = self.takeover.pass_flows(inherited)?;
        for (ifindex, new) in plan.new.into_iter().chain(plan.inherited) {
            for (direction, table) in Direction::ALL.into_iter().zip(new.tables.iter().flatten()) {
                applied.changed |= set_slot(self, slot_of(new.slot, direction), table.as_ref());
            }
            let pod = new.spec.pod.clone();
            if let Err(error) = self.endpoints.put(ifindex, new, &passing, &self.attacher) {
                applied.failed.insert(pod, error.to_string());
            }
        }
        let last = self.takeover.pass_last_flows(&passing);
        self.endpoints.settle(&passing)?;
        last?;
        if !passing.is_empty() {
            self.services.note_left(self.takeover.flows())?;
        }
        self.takeover.finish(&self.endpoints)?;
        applied.failed.extend(plan.refused);
        applied.managed = self.endpoints.managed.len();
        Ok(applied)
    }

    /// A change was refused: pods that are new must not start open all the same. They get their tables where those are
    /// in force as they stand, else one without rules.
    fn guard_new(&mut self, desired: &Desired, name: &impl Fn(&ObjectName) -> PodName) -> Result<(), ApplyError> {
        let mut plan = self.plan_endpoints(desired);
        // What an earlier life put in force for them still is, and so are their connections.
        plan.left = plan.inherited.drain(..).map(|(_, endpoint)| endpoint.uid).collect();
        let in_force = self.endpoints.in_force()?;
        let mut guards = BTreeMap::new();
        for key in plan
            .new
            .iter()
            .flat_map(|(_, new)| new.tables.iter().flatten().flatten())
        {
            let usable = self
                .loaded
                .tables
                .get(key)
                .filter(|table| in_force.tables.contains(&table.id))
                .cloned();
            let guard = usable.unwrap_or_else(|| self.loaded.meanings.table(key, &mut self.ids));
            guards.insert(key.clone(), guard);
        }
        self.tell(&plan, name)?;
        let peers = if self.loaded.generation == 0 {
            in_force.generations.into_iter().max().unwrap_or(0)
        } else {
            self.loaded.generation
        };
        self.put_endpoints(desired, plan, |datapath, slot, table| {
            let guard = table.and_then(|key| guards.get(key));
            let policy = guard.map_or(SlotPolicy::default(), |table| SlotPolicy {
                peers,
                ..datapath.slot_policy(table)
            });
            datapath.endpoints.set_word(slot, policy);
            true
        })
        .map(drop)
    }

    fn publish_live(&self, live: HashSet<u32>) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Some(live);
    }
}

fn by_direction(EndpointTables { ingress, egress }: EndpointTables) -> [Option<TableKey>; 2] {
    [ingress, egress]
}
