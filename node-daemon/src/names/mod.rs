// SPDX-License-Identifier: Apache-2.0
//! What the numbers in events mean, for whoever writes records.
//!
//! The control thread tells a meaning before the kernel can use its number, the events thread asks for it later:
//! after the policy has changed, the pod has gone, or the daemon has been restarted. So meanings are kept in a
//! journal beside the pinned maps (both are gone after a reboot), and for a while after their last use.

mod journal;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use wardline_policy::model::{Direction, ObjectName};
use wardline_policy::tables::{Attribution, PolicyRef};

pub use self::journal::JournalError;
use self::journal::{Entry, EntryId, Journal};
use crate::clock::{self, Clock};
use crate::index::Workload;
use crate::services::FrontKey;

/// How long an address keeps the name of its last owner, in nanoseconds: events are read within milliseconds, denies are written
/// within the aggregation time, which is five minutes at most.
const KEEP: u64 = 6 * 60 * 1_000_000_000;
/// By how much the clocks of a node and of the API server may differ, in nanoseconds.
const CLOCKS_DIFFER: u64 = 10 * 1_000_000_000;

/// Who is at an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Party {
    Pod(PodName),
    Node { name: Arc<str> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    pub pod: ObjectName,
    pub workload: Option<Workload>,
}

/// Who came to addresses, or left them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    Joins {
        addresses: Vec<IpAddr>,
        party: Arc<Party>,
        /// When the object was made, seconds since the epoch: what happened before is not about it. 0: not known.
        created: u64,
    },
    Leaves(Vec<IpAddr>, Arc<Party>),
}

/// Who is at an address.
#[derive(Clone, Debug)]
struct Owner {
    party: Arc<Party>,
    /// Nanoseconds since the epoch.
    created: u64,
}

/// Who was.
#[derive(Clone, Debug)]
struct FormerOwner {
    owner: Owner,
    /// When, nanoseconds of the kernel's clock, which nobody sets.
    left: u64,
}

/// A pod at its interface, as the kernel numbers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointName {
    pub name: PodName,
    pub pod_uid: Arc<str>,
}

/// The policies that isolate by one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableName {
    pub direction: Direction,
    pub isolated_by: Vec<PolicyRef>,
}

/// The meanings of ids and addresses.
#[derive(Debug)]
pub struct Names {
    known: RwLock<Known>,
    journal: RwLock<Journal>,
    /// When everything decided until then was written.
    written: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Known {
    endpoints: HashMap<u32, Arc<EndpointName>>,
    tables: HashMap<u32, Arc<TableName>>,
    attributions: HashMap<u32, Arc<Attribution>>,
    addresses: HashMap<IpAddr, Owner>,
    /// Ids that the kernel no longer uses, and since when.
    retired: HashMap<EntryId, Instant>,
    former: HashMap<IpAddr, FormerOwner>,
    services: HashMap<FrontKey, ObjectName>,
    /// With when they left, as above.
    former_services: HashMap<FrontKey, (ObjectName, u64)>,
}

impl Names {
    /// Opens the journal in `directory` and reads what it holds.
    ///
    /// # Errors
    /// When the journal cannot be read or written. A torn last line is no error: its id never reached the kernel.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        let mut known = Known::default();
        let journal = Journal::open(directory, |entry| known.learn(entry))?;
        Ok(Self {
            known: RwLock::new(known),
            journal: RwLock::new(journal),
            written: Mutex::new(None),
        })
    }

    /// Makes ids known, on disk first; only then may the kernel use them.
    pub fn tell(&self, entries: Vec<Entry>) -> Result<(), JournalError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.journal
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .append(&entries)?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            known.learn(entry);
        }
        Ok(())
    }

    /// Takes in who came to which addresses and who left them, in order. Who left is remembered for a while.
    pub fn apply_moves(&self, moves: Vec<Move>) {
        let now = clock::monotonic();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let Known { addresses, former, .. } = &mut *known;
        let mut remember = |address, owner| {
            former.insert(address, FormerOwner { owner, left: now });
        };
        for change in moves {
            match change {
                Move::Joins {
                    addresses: joined,
                    party,
                    created,
                } => {
                    let created = created.saturating_mul(1_000_000_000);
                    let owner = Owner { party, created };
                    for address in joined {
                        let before = addresses.insert(address, owner.clone());
                        if let Some(before) = before.filter(|before| before.party != owner.party) {
                            remember(address, before);
                        }
                    }
                }
                Move::Leaves(left, party) => {
                    // Somebody else may have the address already.
                    for address in left {
                        if addresses.get(&address).is_some_and(|owner| owner.party == party)
                            && let Some(owner) = addresses.remove(&address)
                        {
                            remember(address, owner);
                        }
                    }
                }
            }
        }
        former.retain(|_, former| now.saturating_sub(former.left) < KEEP);
    }

    /// Takes in which Services are at these addresses and ports now. Those that were are remembered for a while.
    pub fn apply_services(&self, fronts: impl IntoIterator<Item = (FrontKey, Option<ObjectName>)>) {
        let now = clock::monotonic();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for (key, service) in fronts {
            if known.services.get(&key) == service.as_ref() {
                continue;
            }
            let former = match service {
                Some(service) => known.services.insert(key, service),
                None => known.services.remove(&key),
            };
            if let Some(former) = former {
                known.former_services.insert(key, (former, now));
            }
        }
        known
            .former_services
            .retain(|_, (_, left)| now.saturating_sub(*left) < KEEP);
    }

    pub fn service(&self, front: &FrontKey) -> Option<ObjectName> {
        self.read(|known| {
            let former = || known.former_services.get(front).map(|(service, _)| service);
            known.services.get(front).or_else(former).cloned()
        })
    }

    pub fn endpoint(&self, uid: u32) -> Option<Arc<EndpointName>> {
        self.read(|known| known.endpoints.get(&uid).cloned())
    }

    pub fn table(&self, id: u32) -> Option<Arc<TableName>> {
        self.read(|known| known.tables.get(&id).cloned())
    }

    pub fn attribution(&self, id: u32) -> Option<Arc<Attribution>> {
        self.read(|known| known.attributions.get(&id).cloned())
    }

    /// Who was at the address at `time`, nanoseconds since the epoch. None where whoever is there came later, and nobody
    /// remembers who was there before.
    pub fn party(&self, address: &IpAddr, time: u64) -> Option<Arc<Party>> {
        self.read(|known| {
            let was_made = |owner: &&Owner| owner.created <= time.saturating_add(CLOCKS_DIFFER);
            let former = known.former.get(address);
            let is_then = |former: &&FormerOwner| Clock::read().monotonic(time) < former.left;
            let then = former.filter(is_then).map(|former| &former.owner);
            let owner = then.filter(was_made).or_else(|| {
                let present = known.addresses.get(address).filter(was_made);
                // What was on its way when it left.
                present.or_else(|| former.map(|former| &former.owner).filter(was_made))
            });
            owner.map(|owner| Arc::clone(&owner.party))
        })
    }

    /// Everything that the kernel had decided at `time` is written.
    pub fn written_until(&self, time: Instant) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }

    /// Forgets the ids that neither the kernel nor a verdict that is not written yet can name: those that were not
    /// `live` at an earlier call, with everything written since. Call it when no packet can meet them any more.
    pub fn forget(&self, live: impl Fn(&Meaning) -> bool) -> Result<(), JournalError> {
        let written = *self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let (mut kept, mut retired, mut forgotten) = (Vec::new(), HashMap::new(), 0);
        for entry in known.entries() {
            if !live(&entry) {
                let since = known.retired.get(&entry.id()).copied().unwrap_or(now);
                if written.is_some_and(|written| written > since) {
                    forgotten += 1;
                    continue;
                }
                retired.insert(entry.id(), since);
            }
            kept.push(entry);
        }
        known.retired = retired;
        if forgotten == 0 {
            return Ok(());
        }
        self.journal
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .rewrite(&kept)?;
        known.endpoints.clear();
        known.tables.clear();
        known.attributions.clear();
        for entry in kept {
            known.learn(entry);
        }
        Ok(())
    }

    fn read<T>(&self, get: impl FnOnce(&Known) -> T) -> T {
        get(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Known {
    fn learn(&mut self, entry: Entry) {
        match entry {
            Entry::Endpoint { uid, name } => _ = self.endpoints.insert(uid, name),
            Entry::Table { id, name } => _ = self.tables.insert(id, name),
            Entry::Attribution { id, attribution } => _ = self.attributions.insert(id, attribution),
        }
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let endpoints = self.endpoints.iter().map(|(uid, name)| Entry::Endpoint {
            uid: *uid,
            name: Arc::clone(name),
        });
        let tables = self.tables.iter().map(|(id, name)| Entry::Table {
            id: *id,
            name: Arc::clone(name),
        });
        let attributions = self.attributions.iter().map(|(id, attribution)| Entry::Attribution {
            id: *id,
            attribution: Arc::clone(attribution),
        });
        endpoints.chain(tables).chain(attributions)
    }
}

pub use self::journal::Entry as Meaning;

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(uid: u32, pod: &str) -> Entry {
        let name = PodName {
            pod: ObjectName::new("shop", pod),
            workload: None,
        };
        Entry::Endpoint {
            uid,
            name: Arc::new(EndpointName {
                name,
                pod_uid: "u".into(),
            }),
        }
    }

    #[test]
    fn meanings_survive_a_restart_and_a_torn_line() {
        let directory = tempfile::tempdir().unwrap();
        let names = Names::open(directory.path()).unwrap();
        names.tell(vec![endpoint(1, "web"), endpoint(2, "db")]).unwrap();
        drop(names);

        let path = directory.path().join("names.jsonl");
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(br#"{"Endpoint":{"uid":3,"na"#);
        std::fs::write(&path, torn).unwrap();

        let names = Names::open(directory.path()).unwrap();
        assert_eq!(&*names.endpoint(2).unwrap().name.pod.name, "db");
        assert!(names.endpoint(3).is_none());
        names.tell(vec![endpoint(4, "cache")]).unwrap();
        drop(names);
        let names = Names::open(directory.path()).unwrap();
        assert_eq!(
            &*names.endpoint(4).unwrap().name.pod.name,
            "cache",
            "a line after the torn one is whole"
        );
    }

    #[test]
    fn ids_are_forgotten_on_disk_too_once_all_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let names = Names::open(directory.path()).unwrap();
        names.tell(vec![endpoint(1, "web"), endpoint(2, "db")]).unwrap();
        let live = |entry: &Entry| matches!(entry, Entry::Endpoint { uid: 2, .. });
        names.written_until(Instant::now());
        names.forget(live).unwrap();
        assert!(names.endpoint(1).is_some(), "verdicts about it may not be written yet");
        names.forget(live).unwrap();
        assert!(names.endpoint(1).is_some(), "still not");
        names.written_until(Instant::now());
        names.forget(live).unwrap();
        assert!(names.endpoint(1).is_none());
        let names = Names::open(directory.path()).unwrap();
        assert!(names.endpoint(1).is_none() && names.endpoint(2).is_some());
    }

    #[test]
    fn an_address_is_its_owners_of_the_time() {
        const SECOND: u64 = 1_000_000_000;
        let directory = tempfile::tempdir().unwrap();
        let names = Names::open(directory.path()).unwrap();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let node = |name: &str| Arc::new(Party::Node { name: name.into() });
        let joins = |name, created| Move::Joins {
            addresses: vec![address],
            party: node(name),
            created,
        };
        let leaves = |name| Move::Leaves(vec![address], node(name));
        let at = |time: u64| names.party(&address, time);
        let start = clock::wall();
        let seconds = start / SECOND;
        names.apply_moves(vec![joins("a", seconds - 100)]);
        assert_eq!(at(start - 105 * SECOND), Some(node("a")), "clocks differ");
        assert_eq!(at(start - 200 * SECOND), None, "it was not made yet");
        names.apply_moves(vec![leaves("a")]);
        assert_eq!(at(start), Some(node("a")));
        assert_eq!(at(clock::wall()), Some(node("a")), "on its way when it left");
        names.apply_moves(vec![joins("b", seconds)]);
        assert_eq!(at(start - SECOND), Some(node("a")));
        assert_eq!(at(clock::wall()), Some(node("b")));
        let before = clock::wall();
        names.apply_moves(vec![joins("c", seconds), leaves("b")]);
        assert_eq!(at(before), Some(node("b")));
        assert_eq!(at(clock::wall()), Some(node("c")));
    }
}
