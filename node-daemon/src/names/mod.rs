// SPDX-License-Identifier: Apache-2.0
//! What the numbers in events mean, for whoever writes records.
//!
//! The control thread tells a meaning before the kernel can use its number, the events thread asks for it later:
//! after the policy has changed, the pod has gone, or the daemon has been restarted. So meanings are kept in a
//! journal beside the pinned maps (both are gone after a reboot), and for a while after their last use.

mod journal;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::ops::Range;
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
/// How many of them it remembers.
const FORMER: usize = 16;
/// How long after an owner left packets to it, or of it, may be under way.
const ON_ITS_WAY: u64 = 2 * 1_000_000_000;
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

/// Who has a place, and who had it before, as long as that is remembered. Times are nanoseconds of the kernel's clock,
/// which nobody sets.
#[derive(Clone, Debug)]
struct Holders<T> {
    /// With when they came.
    present: Option<(T, u64)>,
    /// With when they came and left, the oldest first.
    former: VecDeque<(T, Range<u64>)>,
}

impl<T> Default for Holders<T> {
    fn default() -> Self {
        Self {
            present: None,
            former: VecDeque::new(),
        }
    }
}

impl<T> Holders<T> {
    /// Somebody comes, or nobody, in place of whoever is there.
    fn replace(&mut self, holder: Option<T>, now: u64) {
        let new = holder.map(|holder| (holder, now));
        if let Some((left, came)) = std::mem::replace(&mut self.present, new) {
            if self.former.len() == FORMER {
                self.former.pop_front();
            }
            self.former.push_back((left, came..now));
        }
    }

    fn present(&self) -> Option<&T> {
        self.present.as_ref().map(|(holder, _)| holder)
    }

    /// Who had it at that time, nanoseconds since the epoch. What was on its way when somebody left is still theirs, where
    /// nobody had come since. Whoever comes may have been there a little before it was known.
    fn at(&self, time: u64, is_possible: impl Fn(&T) -> bool) -> Option<&T> {
        if self.former.is_empty() {
            return self.present().filter(|holder| is_possible(holder));
        }
        let time = Clock::read().monotonic(time);
        let gone = self.former.partition_point(|(_, there)| there.end <= time);
        let then = self.former.get(gone).map(|(holder, there)| (holder, there.start));
        let then = then.or(self.present.as_ref().map(|(holder, came)| (holder, *came)));
        let then = then.filter(|(holder, _)| is_possible(holder));
        let before = gone.checked_sub(1).and_then(|last| self.former.get(last));
        let before =
            before.filter(|(holder, there)| time < there.end.saturating_add(ON_ITS_WAY) && is_possible(holder));
        match (then, before) {
            (Some((_, came)), Some((before, _))) if time < came => Some(before),
            (Some((holder, _)), _) | (None, Some((holder, _))) => Some(holder),
            (None, None) => None,
        }
    }

    /// Forgets those who left too long ago. Returns whether somebody is left.
    fn tidy(&mut self, now: u64) -> bool {
        while self
            .former
            .front()
            .is_some_and(|(_, there)| now.saturating_sub(there.end) >= KEEP)
        {
            self.former.pop_front();
        }
        self.present.is_some() || !self.former.is_empty()
    }
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
    addresses: HashMap<IpAddr, Holders<Owner>>,
    /// Ids that the kernel no longer uses, and since when.
    retired: HashMap<EntryId, Instant>,
    services: HashMap<FrontKey, Holders<ObjectName>>,
    /// When former holders of addresses and Services were looked through last.
    tidied: u64,
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
        let addresses = &mut known.addresses;
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
                        let holders = addresses.entry(address).or_default();
                        match &mut holders.present {
                            Some((present, _)) if present.party == owner.party => present.created = owner.created,
                            _ => holders.replace(Some(owner.clone()), now),
                        }
                    }
                }
                Move::Leaves(left, party) => {
                    // Somebody else may have the address already.
                    for address in left {
                        let holders = addresses.get_mut(&address);
                        let is_there =
                            |holders: &&mut Holders<Owner>| holders.present().is_some_and(|owner| owner.party == party);
                        if let Some(holders) = holders.filter(is_there) {
                            holders.replace(None, now);
                        }
                    }
                }
            }
        }
        known.tidy(now);
    }

    /// Takes in which Services are at these addresses and ports now. Those that were are remembered for a while.
    pub fn apply_services(&self, fronts: impl IntoIterator<Item = (FrontKey, Option<ObjectName>)>) {
        let now = clock::monotonic();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for (key, service) in fronts {
            let holders = known.services.entry(key).or_default();
            if holders.present() != service.as_ref() {
                holders.replace(service, now);
            }
        }
        known.tidy(now);
    }

    /// The Service that was at an address and port at `time`, nanoseconds since the epoch.
    pub fn service(&self, front: &FrontKey, time: u64) -> Option<ObjectName> {
        self.read(|known| known.services.get(front)?.at(time, |_| true).cloned())
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
        let was_made = |owner: &Owner| owner.created <= time.saturating_add(CLOCKS_DIFFER);
        self.read(|known| {
            let owner = known.addresses.get(address)?.at(time, was_made)?;
            Some(Arc::clone(&owner.party))
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
    /// Now and then, since that looks at all.
    fn tidy(&mut self, now: u64) {
        if now.saturating_sub(self.tidied) < KEEP / 6 {
            return;
        }
        self.tidied = now;
        self.addresses.retain(|_, holders| holders.tidy(now));
        self.services.retain(|_, holders| holders.tidy(now));
    }

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
        let pod = |pod: &str| {
            let pod = ObjectName::new("shop", pod);
            Arc::new(Party::Pod(PodName { pod, workload: None }))
        };
        let joins = |name, created| Move::Joins {
            addresses: vec![address],
            party: pod(name),
            created,
        };
        let leaves = |name| Move::Leaves(vec![address], pod(name));
        let at = |time: u64| names.party(&address, time);
        let start = clock::wall();
        let seconds = start / SECOND;
        names.apply_moves(vec![joins("a", seconds - 100)]);
        assert_eq!(at(start - 105 * SECOND), Some(pod("a")), "clocks differ");
        assert_eq!(at(start - 200 * SECOND), None, "it was not made yet");
        names.apply_moves(vec![leaves("a")]);
        let of_a = clock::wall();
        assert_eq!(at(start), Some(pod("a")));
        assert_eq!(at(of_a + SECOND), Some(pod("a")), "on its way when it left");
        assert_eq!(at(of_a + 3 * SECOND), None, "nobody's");
        std::thread::sleep(std::time::Duration::from_millis(20));
        names.apply_moves(vec![joins("b", seconds)]);
        assert_eq!(at(start - SECOND), Some(pod("a")));
        assert_eq!(at(of_a + SECOND / 100), Some(pod("a")), "b had not come yet");
        assert_eq!(at(clock::wall()), Some(pod("b")));
        let of_b = clock::wall();
        names.apply_moves(vec![joins("c", seconds), leaves("b")]);
        assert_eq!(at(start - SECOND), Some(pod("a")), "the one before the one before");
        assert_eq!(at(of_b), Some(pod("b")));
        assert_eq!(at(clock::wall()), Some(pod("c")));
    }

    #[test]
    fn a_front_is_its_services_of_the_time() {
        let directory = tempfile::tempdir().unwrap();
        let names = Names::open(directory.path()).unwrap();
        let front = FrontKey {
            address: "10.96.0.1".parse().unwrap(),
            port: None,
        };
        let service = |name: &str| Some(ObjectName::new("shop", name));
        let mut times = Vec::new();
        for name in ["a", "b", "c"] {
            names.apply_services([(front, service(name))]);
            times.push(clock::wall());
        }
        names.apply_services([(front, None)]);
        let found: Vec<_> = times.iter().map(|time| names.service(&front, *time)).collect();
        assert_eq!(found, ["a", "b", "c"].map(service));
        assert_eq!(names.service(&front, clock::wall() + 3_000_000_000), None);
    }

    #[test]
    fn former_holders_are_bounded_and_forgotten() {
        let mut holders = Holders::default();
        for holder in 0..100_u64 {
            holders.replace(Some(holder), holder);
        }
        assert_eq!(holders.former.len(), FORMER);
        assert!(holders.tidy(KEEP + 99) && holders.former.is_empty(), "one is there");
        holders.replace(None, 200);
        assert!(holders.tidy(KEEP) && !holders.tidy(KEEP + 200));
    }
}
