// SPDX-License-Identifier: Apache-2.0
//! Brings the kernel to the desired state, so that every packet sees the old policy or the new one.
//!
//! ```text
//! names in the journal -> rules under new keys -> addresses -> words of the slots -> (grace period) -> old keys go
//!                         nobody looks yet         one store a slot changes everything a packet sees
//! ```
//!
//! Addresses change in place while all the tables in force are also wanted: each of them then has rules for every
//! class that an address can move to. Else a new generation of the peer maps is written, and each word names it
//! together with its table: docs/decisions/0004-peer-generations.md.

mod accounts;
mod attach;
mod conntrack;
mod endpoints;
mod ids;
mod load;
mod map;
mod tables;

mod peers;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};

use libbpf_rs::MapHandle;
use wardline_bpf::abi::{self, RangeKey, Rule, RuleKey};
use wardline_crds::config::{DaemonConfig, Limits};
use wardline_crds::{Enforcement, SourceAddressCheck};
use wardline_policy::model::{Direction, ObjectName};
use wardline_policy::tables::{EndpointTables, TableKey, Tables};

pub(crate) use self::accounts::add;
pub use self::accounts::{Accounts, Closed, Ledger};
pub use self::conntrack::ConntrackSweeper;
use self::endpoints::{Endpoints, EntryMaps, NewEndpoint, SlotPolicy, slot_of};
use self::ids::{Counters as IdCounters, Ids};
pub use self::load::{KeptLimit, PinPaths};
pub use self::map::MapError;
use self::map::TypedMap;
use self::peers::{PeerMaps, Peers};
use self::tables::{LoadedTable, Meanings, RuleEntries, keys_of};
use crate::index::{Desired, LogModes, Logged};
use crate::mapping::{Mapping, page_size, wait_for_programs};
use crate::names::{JournalError, Meaning, Names, PodName};

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("failed to make pins under {path}: {cause}")]
    Pins { path: PathBuf, cause: io::Error },
    #[error("failed to open packet programs: {0}")]
    Open(String),
    #[error("failed to load packet programs: {0}")]
    Load(String),
    #[error("failed to map {map}: {cause}")]
    Mapping { map: &'static str, cause: io::Error },
    #[error(transparent)]
    Map(#[from] MapError),
}

impl LoadError {
    fn open(error: libbpf_rs::Error) -> Self {
        Self::Open(format!("{error:#}"))
    }

    fn load(error: libbpf_rs::Error) -> Self {
        Self::Load(format!("{error:#}"))
    }
}

/// Why a change was refused as a whole; what was in force before still is.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{limit} is {size}, and {needed} entries are needed")]
    Full {
        limit: &'static str,
        size: u32,
        needed: usize,
    },
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Names(#[from] JournalError),
    #[error("failed to wait for packet programs: {0}")]
    Grace(io::Error),
}

/// What an apply did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Whether some slot's policy changed.
    pub changed: bool,
    pub managed: usize,
    /// Pods that could not be managed, and why.
    pub failed: BTreeMap<ObjectName, String>,
}

/// The kernel side of the node. One thread owns it.
#[derive(Debug)]
pub struct Datapath {
    endpoints: Endpoints,
    attacher: attach::Attacher,
    peer_maps: PeerMaps,
    rules: TypedMap<RuleKey, Rule>,
    ranges: TypedMap<RangeKey, Rule>,
    settings: Mapping,
    ids: Ids,
    limits: Limits,
    names: Arc<Names>,
    loaded: Loaded,
    live: Arc<RwLock<HashSet<u32>>>,
}

/// The mirror of what the kernel holds for policy.
#[derive(Debug, Default)]
struct Loaded {
    meanings: Meanings,
    tables: HashMap<TableKey, LoadedTable>,
    /// Generation of the peer maps in force; 0: nothing was written in this life.
    generation: u32,
    peers: Peers,
    /// Something in the kernel is not in this mirror.
    sweep: bool,
}

/// Handles for the threads that account and tidy.
#[derive(Debug)]
pub struct Handles {
    pub accounts: Accounts,
    pub conntrack: ConntrackSweeper,
    pub kept_limits: Vec<KeptLimit>,
}

impl Datapath {
    /// Loads programs and maps. Policies that an earlier life left in the kernel stay in force until the first
    /// [`Datapath::apply`].
    pub fn load(paths: &PinPaths, config: &DaemonConfig, names: Arc<Names>) -> Result<(Self, Handles), LoadError> {
        let (skel, kept_limits) = load::load(paths, &config.limits)?;
        let skel: &'static wardline_bpf::WardlineSkel<'static> = skel;
        let handle = |map: &libbpf_rs::Map<'_>| MapHandle::try_from(map).map_err(LoadError::load);
        let map_words = |map: &libbpf_rs::Map<'_>, name, size: usize| {
            let length = size.next_multiple_of(page_size());
            Mapping::new(std::os::fd::AsFd::as_fd(map), 0, length, true)
                .map_err(|cause| LoadError::Mapping { map: name, cause })
        };
        let ids = Ids::open(load::user_map(paths, "ids", size_of::<IdCounters>())?)?;
        let words = map_words(&skel.maps.policy_words, "policy_words", abi::MAX_SLOTS as usize * 8)?;
        let accounts = Accounts::open(
            accounts::Maps {
                settings: map_words(&skel.maps.settings, "settings", size_of::<abi::Settings>())?,
                counters: handle(&skel.maps.counters)?,
                denies: handle(&skel.maps.denies)?,
                shares: handle(&skel.maps.deny_shares)?,
                ring: handle(&skel.maps.allow_events)?,
                ledger: load::user_map(paths, "ledger", size_of::<Ledger>())?,
            },
            ids.epoch(),
        )?;
        let live = Arc::new(RwLock::new(HashSet::new()));
        let timeouts = load::timeouts(skel)?;
        let conntrack = ConntrackSweeper::new(handle(&skel.maps.conntrack)?, Arc::clone(&live), timeouts)?;
        let datapath = Self {
            endpoints: Endpoints::new(
                EntryMaps {
                    hash: TypedMap::new(handle(&skel.maps.endpoints)?)?,
                    near: TypedMap::new(handle(&skel.maps.near_endpoints)?)?,
                },
                words,
            ),
            attacher: attach::Attacher {
                ingress: &skel.progs.pod_ingress,
                egress: &skel.progs.pod_egress,
                links: paths.links.clone(),
            },
            peer_maps: PeerMaps {
                exact: TypedMap::new(handle(&skel.maps.peers)?)?,
                cidrs: TypedMap::new(handle(&skel.maps.cidrs)?)?,
            },
            rules: TypedMap::new(handle(&skel.maps.rules)?)?,
            ranges: TypedMap::new(handle(&skel.maps.ranges)?)?,
            settings: map_words(&skel.maps.settings, "settings", size_of::<abi::Settings>())?,
            ids,
            limits: config.limits.clone(),
            names,
            loaded: Loaded {
                sweep: true,
                ..Loaded::default()
            },
            live,
        };
        datapath.set_enforcement(config);
        Ok((
            datapath,
            Handles {
                accounts,
                conntrack,
                kept_limits,
            },
        ))
    }

    /// Brings the kernel to `desired`. `name` tells who a pod is, for records.
    ///
    /// # Errors
    /// The change is refused whole and what was in force stays. A pod that cannot be attached is no error of the
    /// change: it is named in the result.
    pub fn apply(&mut self, desired: &Desired, name: impl Fn(&ObjectName) -> PodName) -> Result<Applied, ApplyError> {
        self.set_log_modes(desired.log_modes);
        let result = self.apply_policy(desired, &name);
        if matches!(result, Err(ref error) if !matches!(error, ApplyError::Full { .. })) {
            // Keys of ours may be in the kernel that the mirror does not know: begin with fresh ids next time.
            self.loaded = Loaded {
                sweep: true,
                ..Loaded::default()
            };
        }
        result
    }

    /// Deletes the keys that no word names any more. Waits for running programs first; call it when nothing else is
    /// to be done.
    pub fn collect_garbage(&mut self) -> Result<(), ApplyError> {
        let in_use = self.tables_in_force();
        let occurring = self.loaded.peers.classes();
        let is_stale = |key: &TableKey, class: &u32| !in_use.contains(key) || !occurring.contains(class);
        let stale = self
            .loaded
            .tables
            .iter()
            .any(|(key, table)| !in_use.contains(key) || table.classes.keys().any(|class| is_stale(key, class)));
        // Before the first change of this life, and after one that failed, the mirror does not know what is in force.
        if self.loaded.generation == 0 || (!stale && !self.loaded.sweep) {
            return Ok(());
        }
        wait_for_programs().map_err(ApplyError::Grace)?;
        let mut tables = std::mem::take(&mut self.loaded.tables);
        for (key, table) in &mut tables {
            let classes: Vec<u32> = table
                .classes
                .keys()
                .filter(|class| is_stale(key, class))
                .copied()
                .collect();
            for class in classes {
                self.delete_class(table, class)?;
                table.classes.remove(&class);
            }
        }
        tables.retain(|key, table| {
            let keep = in_use.contains(key);
            if !keep {
                self.ids.free_table(table.id);
            }
            keep
        });
        self.loaded.tables = tables;
        if self.loaded.sweep {
            self.sweep()?;
            self.loaded.sweep = false;
        }
        self.loaded.meanings.retain(self.loaded.tables.values(), occurring);
        Ok(())
    }

    /// Lets go of the meanings of ids that nothing uses any more. Call it after [`Datapath::collect_garbage`].
    pub fn forget_names(&self) -> Result<(), JournalError> {
        let endpoints: HashSet<u32> = self.endpoints.uids().collect();
        let tables: HashSet<u32> = self.loaded.tables.values().map(|table| table.id).collect();
        if self.loaded.generation == 0 {
            return Ok(());
        }
        self.names.forget(|meaning| match meaning {
            Meaning::Endpoint { uid, .. } => endpoints.contains(uid),
            Meaning::Table { id, .. } => tables.contains(id),
            Meaning::Attribution { id, .. } => self.loaded.meanings.has_attribution(*id),
        })
    }

    /// Pods whose programs are not the first at their hook.
    pub fn bypassed(&self) -> Vec<(ObjectName, Vec<Direction>)> {
        let managed = self.endpoints.managed.iter();
        managed
            .map(|(ifindex, managed)| (managed.spec.pod.clone(), managed.attached.bypassed(*ifindex)))
            .filter(|(_, directions)| !directions.is_empty())
            .collect()
    }

    fn apply_policy(
        &mut self,
        desired: &Desired,
        name: &impl Fn(&ObjectName) -> PodName,
    ) -> Result<Applied, ApplyError> {
        let tables = &desired.tables;
        self.check_limits(desired)?;
        let wanted_peers = Peers::wanted(tables, &desired.local, &mut self.loaded.meanings, &mut self.ids);
        let in_place = self.loaded.generation != 0
            && (self.tables_in_force().iter().all(|key| tables.tables.contains_key(key))
                || wanted_peers == self.loaded.peers);

        let entries = self.plan_tables(tables);
        let plan = self.plan_endpoints(desired);
        let mut told = std::mem::take(&mut self.loaded.meanings.untold);
        told.extend(
            plan.new
                .iter()
                .map(|(_, new)| endpoints::meaning(new.uid, &new.spec, name(&new.spec.pod))),
        );
        self.ids.store()?;
        self.names.tell(told)?;

        if let Err(error) = self.write(&entries) {
            self.unwrite(&entries);
            return Err(error.into());
        }
        let moves = if in_place {
            self.move_addresses(wanted_peers)?
        } else {
            self.begin_peers(wanted_peers)?
        };
        self.set_words(tables, &moves, plan, desired)
    }

    /// The maps have twice the room, for what is in force and what replaces it.
    fn check_limits(&self, desired: &Desired) -> Result<(), ApplyError> {
        let tables = &desired.tables;
        let peers = tables.peers.len() + tables.cidrs.len() + desired.local.len();
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
        entries.rules.iter().for_each(|(key, _)| _ = self.rules.delete(key));
        entries.ranges.iter().for_each(|(key, _)| _ = self.ranges.delete(key));
    }

    /// Changes classes of addresses where they stand. Returns the moves, for slots whose policy tells the difference.
    fn move_addresses(&mut self, wanted: Peers) -> Result<HashSet<(u32, u32)>, ApplyError> {
        let moves = self.loaded.peers.moves(&wanted);
        self.peer_maps
            .update(self.loaded.generation, &self.loaded.peers, &wanted)?;
        self.loaded.peers = wanted;
        Ok(moves)
    }

    /// Writes all addresses under a new generation, which the words that follow name.
    fn begin_peers(&mut self, wanted: Peers) -> Result<HashSet<(u32, u32)>, ApplyError> {
        let generation = self.ids.next_peers();
        self.ids.store()?;
        // The generation came round: nothing of its former use may be left.
        self.peer_maps.update(generation, &Peers::default(), &wanted)?;
        self.loaded.generation = generation;
        self.loaded.peers = wanted;
        self.loaded.sweep = true;
        Ok(HashSet::new())
    }

    fn set_words(
        &mut self,
        tables: &Tables,
        moves: &HashSet<(u32, u32)>,
        plan: EndpointPlan,
        desired: &Desired,
    ) -> Result<Applied, ApplyError> {
        let mut applied = Applied::default();
        let ifindexes: Vec<u32> = self.endpoints.managed.keys().copied().collect();
        for ifindex in ifindexes {
            let Some(managed) = self.endpoints.managed.get(&ifindex) else {
                continue;
            };
            if plan.removed.contains(&ifindex) {
                continue;
            }
            let (slot, wanted) = (managed.slot, tables_of(tables, &managed.spec.pod));
            for (direction, table) in Direction::ALL.into_iter().zip(&wanted) {
                applied.changed |= self.set_slot(slot_of(slot, direction), table.as_ref(), moves);
            }
            if let Some(managed) = self.endpoints.managed.get_mut(&ifindex) {
                managed.tables = wanted;
            }
        }
        for ifindex in &plan.removed {
            self.endpoints.remove(*ifindex, &self.attacher)?;
        }
        for (ifindex, spec) in &desired.endpoints {
            self.endpoints.refresh(*ifindex, spec)?;
        }
        for (ifindex, new) in plan.new.into_iter().chain(plan.inherited) {
            for (direction, table) in Direction::ALL.into_iter().zip(&new.tables) {
                applied.changed |= self.set_slot(slot_of(new.slot, direction), table.as_ref(), moves);
            }
            let pod = new.spec.pod.clone();
            if let Err(error) = self.endpoints.put(ifindex, new, &self.attacher) {
                applied.failed.insert(pod, error.to_string());
            }
        }
        for (pod, spec) in plan.refused {
            applied.failed.insert(pod, spec);
        }
        *self.live.write().unwrap_or_else(std::sync::PoisonError::into_inner) = self.endpoints.uids().collect();
        applied.managed = self.endpoints.managed.len();
        Ok(applied)
    }

    /// Stores a slot's word if its policy changed or a class moved that it tells apart. Returns whether it did.
    fn set_slot(&self, slot: u32, table: Option<&TableKey>, moves: &HashSet<(u32, u32)>) -> bool {
        let loaded = table.and_then(|key| self.loaded.tables.get(key));
        let policy = loaded.map_or(SlotPolicy::default(), |table| SlotPolicy {
            table: table.id,
            peers: self.loaded.generation,
            cidrs: table.has_cidrs,
        });
        let word = self.endpoints.word(slot);
        let in_force = SlotPolicy {
            table: word.table,
            peers: word.peers,
            cidrs: word.cidrs,
        };
        let is_moved =
            || loaded.is_some_and(|table| moves.iter().any(|(a, b)| table.classes.get(a) != table.classes.get(b)));
        let changes = in_force != policy || is_moved();
        if changes {
            self.endpoints.set_word(slot, policy);
        }
        changes
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
            let tables = tables_of(&desired.tables, &spec.pod);
            if let Some(managed) = self.endpoints.managed.get(ifindex) {
                if managed.spec.pod == spec.pod && managed.spec.pod_uid == spec.pod_uid {
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
            if known.contains(ifindex) {
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
                    tables,
                },
            ));
        }
        plan
    }

    fn tables_in_force(&self) -> HashSet<TableKey> {
        self.endpoints
            .managed
            .values()
            .flat_map(|managed| managed.tables.iter().flatten().cloned())
            .collect()
    }

    fn delete_class(&self, table: &LoadedTable, class: u32) -> Result<(), MapError> {
        let (rules, ranges) = keys_of(table, class);
        rules.iter().try_for_each(|key| self.rules.delete(key))?;
        ranges.iter().try_for_each(|key| self.ranges.delete(key))
    }

    /// Deletes every key that the mirror does not know: of an earlier life, of a change that failed, of a former
    /// generation of peers.
    fn sweep(&self) -> Result<(), ApplyError> {
        self.peer_maps.sweep(self.loaded.generation)?;
        let tables: HashMap<u32, &LoadedTable> = self.loaded.tables.values().map(|table| (table.id, table)).collect();
        let is_live = |table, class| {
            tables
                .get(&table)
                .is_some_and(|table| table.classes.contains_key(&class))
        };
        for key in self.rules.keys().iter().filter(|key| !is_live(key.table, key.class)) {
            self.rules.delete(key)?;
        }
        for key in self.ranges.keys().iter().filter(|key| !is_live(key.table, key.class)) {
            self.ranges.delete(key)?;
        }
        let live: HashSet<u32> = self.endpoints.uids().collect();
        self.attacher.sweep(&live).map_err(ApplyError::Grace)
    }

    fn set_enforcement(&self, config: &DaemonConfig) {
        let mode = |is_enforced| {
            if is_enforced {
                abi::Enforcement::Enforce
            } else {
                abi::Enforcement::Audit
            }
        };
        self.store_setting(
            std::mem::offset_of!(abi::Settings, policy),
            mode(config.enforcement == Enforcement::Enforce).into(),
        );
        self.store_setting(
            std::mem::offset_of!(abi::Settings, source_check),
            mode(config.source_address_check == SourceAddressCheck::Enforce).into(),
        );
    }

    fn set_log_modes(&self, modes: LogModes) {
        let mode = |logged| match logged {
            Logged::Off => abi::LogMode::Off,
            Logged::All => abi::LogMode::All,
            Logged::Delegated => abi::LogMode::Delegated,
        };
        self.store_setting(std::mem::offset_of!(abi::Settings, log_allow), mode(modes.allow).into());
        self.store_setting(std::mem::offset_of!(abi::Settings, log_deny), mode(modes.deny).into());
    }

    fn store_setting(&self, offset: usize, value: u8) {
        self.settings.u8(offset).store(value, Ordering::Release);
    }
}

#[derive(Debug, Default)]
struct EndpointPlan {
    new: Vec<(u32, NewEndpoint)>,
    /// Of an earlier life of the daemon; they keep uid, slot and connections.
    inherited: Vec<(u32, NewEndpoint)>,
    removed: BTreeSet<u32>,
    refused: Vec<(ObjectName, String)>,
}

fn tables_of(tables: &Tables, pod: &ObjectName) -> [Option<TableKey>; 2] {
    let EndpointTables { ingress, egress } = tables.endpoints.get(pod).cloned().unwrap_or_default();
    [ingress, egress]
}
