// SPDX-License-Identifier: Apache-2.0
//! What a daemon of another version left, where its maps have another layout: taken over pod by pod, in a life that works
//! beside it until the last one is (docs/decisions/0016-taking-over-another-layout.md).
//!
//! ```text
//! load:   ids, endpoints with their slots and words, Services go over       its programs judge by its maps
//! apply:  connections go over -> programs are replaced in place -> those of that moment go over too, until which ours
//!         take nothing in mid-stream for a connection of its own
//! then:   its account is written to its end, and its maps go                ours judge by ours
//! ```

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use libbpf_rs::MapHandle;
use wardline_bpf::WardlineSkel;
use wardline_bpf::abi::{
    self, Affinity, AffinityKey, Backend, BackendKey, ConntrackEntry, ConntrackKey, Endpoint, IdCounters, Service,
    ServiceKey, Usage,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::accounts::Accounts;
use super::endpoints::{Endpoints, EntryMaps, Inheritance};
use super::ids::Ids;
use super::layout::{Conversion, Conversions};
use super::load::{self, PinPaths};
use super::map::{MapError, TypedMap};
use super::{ApplyError, LoadError};
use crate::mapping::{Mapping, wait_for_programs};

/// How far other versions' maps are taken over, for all threads to see.
#[derive(Clone, Debug, Default)]
pub struct TakingOver(Arc<AtomicU8>);

/// Behind the names of directories that are removed.
const GONE: &str = "-gone";

const OURS_JUDGE: u8 = 1;
const DONE: u8 = 2;

impl TakingOver {
    /// Nothing of another version judges packets any more.
    pub fn has_all_pods(&self) -> bool {
        self.0.load(Ordering::Acquire) >= OURS_JUDGE
    }

    /// And all that it counted is written.
    pub fn is_done(&self) -> bool {
        self.0.load(Ordering::Acquire) >= DONE
    }

    fn pods_are_ours(&self) {
        self.0.fetch_max(OURS_JUDGE, Ordering::AcqRel);
    }

    pub fn done(&self) {
        self.0.fetch_max(DONE, Ordering::AcqRel);
    }
}

/// All that is taken over, until the last pod is ours.
#[derive(Debug)]
pub(super) struct Takeover {
    flows: Flows,
    /// The oldest first.
    former: Vec<Former>,
    /// Uids of the pods that other versions' programs judge, or did when this life began.
    pods: HashSet<u32>,
    progress: TakingOver,
}

impl Takeover {
    /// Takes over what does not change while others judge. `entries`, `words` and `ids` are ours.
    pub(super) fn begin(
        paths: &PinPaths,
        skel: &WardlineSkel<'_>,
        entries: &EntryMaps,
        words: &Mapping,
        ids: &mut Ids,
    ) -> Result<Self, LoadError> {
        let handle = |map: &libbpf_rs::Map<'_>| MapHandle::try_from(map).map_err(LoadError::load);
        let to = Inheritance {
            words,
            usages: &TypedMap::new(handle(&skel.maps.usages)?)?,
        };
        let former = Former::find(paths)?;
        let mut pods = HashSet::new();
        for one in &former {
            one.pass_ids(ids)?;
            pods.extend(one.pass_endpoints(entries, &to)?);
            if let Err(error) = one.pass_services(handle(&skel.maps.services)?, handle(&skel.maps.backends)?) {
                // They are written anew when the cluster is known.
                tracing::warn!(%error, "failed to take over Services from another version");
            }
        }
        let progress = TakingOver::default();
        if former.is_empty() {
            progress.done();
        }
        Ok(Self {
            flows: Flows {
                connections: TypedMap::new(handle(&skel.maps.conntrack)?)?,
                affinities: TypedMap::new(handle(&skel.maps.affinities)?)?,
            },
            former,
            pods,
            progress,
        })
    }

    /// Where others have pinned their links.
    pub(super) fn links(&self) -> Vec<PathBuf> {
        self.former.iter().map(|one| one.paths.links.clone()).collect()
    }

    /// What others counted, and where it goes when that is written.
    pub(super) fn accounts(&self) -> Result<Vec<(Accounts, PinPaths)>, LoadError> {
        let account = |one: &Former| Ok((Accounts::of_other_version(&one.paths)?, one.paths.clone()));
        self.former.iter().map(account).collect()
    }

    pub(super) fn progress(&self) -> TakingOver {
        self.progress.clone()
    }

    /// How many pods other versions' programs may still judge.
    pub(super) fn waiting(&self) -> usize {
        self.pods.len()
    }

    /// Takes over the connections of those endpoints that wait, and returns them: their programs are replaced next.
    pub(super) fn pass_flows(&mut self, of: impl Iterator<Item = u32>) -> Result<HashSet<u32>, MapError> {
        let passing: HashSet<u32> = of.filter(|uid| self.pods.contains(uid)).collect();
        if passing.is_empty() {
            return Ok(passing);
        }
        // Of an earlier time when this version judged them, or of a life that was killed in the middle of this.
        let mut known = HashMap::new();
        self.flows
            .connections
            .for_each(|key, entry| _ = known.insert(key, entry.last_seen))?;
        // The newest first: what an older version has of a connection does not take its place.
        for former in self.former.iter_mut().rev() {
            // What changes while the table is read for the first time is little to be read for the second.
            for _ in 0..2 {
                former.pass_flows(&self.flows, &known, &passing)?;
            }
            copy(&former.flows.affinities, &self.flows.affinities)?;
            known.extend(former.taken.iter().map(|(key, entry)| (*key, entry.last_seen)));
        }
        Ok(passing)
    }

    /// And those that came while programs were replaced.
    pub(super) fn pass_last_flows(&mut self, of: &HashSet<u32>) -> Result<(), ApplyError> {
        if of.is_empty() {
            return Ok(());
        }
        // At once, since an answer may wait; and what programs leave that were running still when they were replaced.
        let mut last = self.read_last_flows(of)?;
        wait_for_programs().map_err(ApplyError::Grace)?;
        last += self.read_last_flows(of)?;
        tracing::info!(
            pods = of.len(),
            last_connections = last,
            "took over pods from another version"
        );
        Ok(())
    }

    fn read_last_flows(&mut self, of: &HashSet<u32>) -> Result<usize, MapError> {
        let Self { former, flows, .. } = self;
        former.iter_mut().map(|former| former.pass_last_flows(flows, of)).sum()
    }

    /// What packets left in our maps, and what was taken over.
    pub(super) fn flows(&self) -> &Flows {
        &self.flows
    }

    /// When the last pod is ours, other versions' programs see no packets any more.
    pub(super) fn finish(&mut self, endpoints: &Endpoints) -> Result<(), ApplyError> {
        if self.former.is_empty() || endpoints.has_unmanaged(&self.pods)? {
            return Ok(());
        }
        for former in &self.former {
            former.detach_left_over().map_err(ApplyError::TakeOver)?;
        }
        wait_for_programs().map_err(ApplyError::Grace)?;
        self.former.clear();
        self.pods.clear();
        self.progress.pods_are_ours();
        Ok(())
    }
}

/// What packets themselves leave in the maps.
#[derive(Debug)]
pub(super) struct Flows {
    pub(super) connections: TypedMap<ConntrackKey, ConntrackEntry>,
    pub(super) affinities: TypedMap<AffinityKey, Affinity>,
}

/// The maps of another version.
#[derive(Debug)]
struct Former {
    paths: PinPaths,
    conversions: Conversions,
    flows: Flows,
    /// Connections that went over, as they were then.
    taken: HashMap<ConntrackKey, ConntrackEntry>,
}

impl Former {
    /// All that there are beside ours, the oldest first.
    fn find(ours: &PinPaths) -> Result<Vec<Self>, LoadError> {
        let others = ours.remove_gone().and_then(|()| ours.others());
        let others = others.map_err(|cause| LoadError::Pins {
            path: ours.version().to_owned(),
            cause,
        })?;
        others.into_iter().map(Self::open).collect()
    }

    fn open(paths: PinPaths) -> Result<Self, LoadError> {
        tracing::info!(maps = %paths.maps.display(), "taking over from another version");
        let conversions = Conversions::of(&paths)?;
        let flows = Flows {
            connections: table(&paths, &conversions, "conntrack", "conntrack_key", "conntrack_entry")?,
            affinities: table(&paths, &conversions, "affinities", "affinity_key", "affinity")?,
        };
        Ok(Self {
            paths,
            conversions,
            flows,
            taken: HashMap::new(),
        })
    }

    fn array<V>(&self, map: &str, value: Conversion) -> Result<TypedMap<u32, V>, LoadError>
    where
        V: FromBytes + IntoBytes + Immutable,
    {
        let index = Conversion::same(size_of::<u32>());
        Ok(TypedMap::of_other_layout(
            load::pinned(&self.paths, map)?,
            index,
            value,
        )?)
    }

    /// Ids that were given out there mean the same here.
    fn pass_ids(&self, ids: &mut Ids) -> Result<(), LoadError> {
        let counters: TypedMap<u32, IdCounters> = self.array("ids", self.conversions.of_struct("id_counters")?)?;
        Ok(ids.pass(&counters.get(&0)?.unwrap_or_default())?)
    }

    /// Takes over who is at which interface. Returns the uids of those whose programs are still this version's.
    fn pass_endpoints(&self, entries: &EntryMaps, to: &Inheritance<'_>) -> Result<HashSet<u32>, LoadError> {
        let endpoints: TypedMap<u32, Endpoint> = self.array("endpoints", self.conversions.of_struct("endpoint")?)?;
        let words: TypedMap<u32, u64> = self.array("policy_words", Conversion::same(size_of::<u64>()))?;
        let usages: TypedMap<u32, Usage> = self.array("usages", self.conversions.of_struct("usage")?)?;
        let mut found = Vec::new();
        endpoints.for_each(|ifindex, endpoint| found.push((ifindex, endpoint)))?;
        let mut taken = HashSet::new();
        for (ifindex, endpoint) in found {
            let word = |slot: u32| Ok::<_, MapError>(words.get(&slot)?.unwrap_or_default());
            let words = [word(endpoint.slot)?, word(endpoint.slot + 1)?];
            let usage = usages.get(&(endpoint.slot / 2))?.unwrap_or_default();
            if to.take(entries, ifindex, endpoint, words, &begun(&usage))? {
                taken.insert(endpoint.uid);
            }
        }
        Ok(taken)
    }

    /// Takes over fronts of Services and their backends.
    fn pass_services(&self, services: MapHandle, backends: MapHandle) -> Result<(), LoadError> {
        let Self { paths, conversions, .. } = self;
        let former = table::<BackendKey, Backend>(paths, conversions, "backends", "backend_key", "backend")?;
        copy(&former, &TypedMap::new(backends)?)?;
        let former = table::<ServiceKey, Service>(paths, conversions, "services", "service_key", "service")?;
        Ok(copy(&former, &TypedMap::new(services)?)?)
    }

    /// Takes over the connections of these endpoints, whose programs are about to be replaced. What was taken before is
    /// taken again where it changed.
    /// `known` tells of our own entries when they were seen last, in ticks: older ones do not take their place.
    fn pass_flows(
        &mut self,
        to: &Flows,
        known: &HashMap<ConntrackKey, u32>,
        of: &HashSet<u32>,
    ) -> Result<(), MapError> {
        let mut changed = Vec::new();
        self.flows.connections.for_each(|key, entry| {
            if of.contains(&key.endpoint) && self.taken.get(&key) != Some(&entry) {
                changed.push((key, entry));
            }
        })?;
        for (key, entry) in changed {
            if known.get(&key).is_none_or(|seen| *seen < entry.last_seen) {
                to.connections.set(&key, &entry)?;
            }
            self.taken.insert(key, entry);
        }
        Ok(())
    }

    /// Takes over what began, or changed, while programs were replaced.
    fn pass_last_flows(&mut self, to: &Flows, of: &HashSet<u32>) -> Result<usize, MapError> {
        let mut new = Vec::new();
        self.flows.connections.for_each(|key, entry| {
            if of.contains(&key.endpoint) && self.taken.get(&key) != Some(&entry) {
                new.push((key, entry));
            }
        })?;
        for (key, entry) in &new {
            let ours = to.connections.get(key)?;
            let taken = self.taken.insert(*key, *entry);
            // What no packet has changed here since gives way: a port may be used again in just that moment.
            match ours {
                None => to.connections.put_back(key, entry)?,
                Some(ours) if taken == Some(ours) || (taken.is_none() && knows_better(entry, &ours)) => {
                    to.connections.set(key, entry)?;
                }
                Some(_) => {}
            }
        }
        Ok(new.len())
    }

    /// The pods are all ours.
    fn detach_left_over(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.paths.links)? {
            super::attach::take_link(&entry?.path())?;
        }
        Ok(())
    }
}

/// A map of another version.
pub(super) fn table<K, V>(
    paths: &PinPaths,
    conversions: &Conversions,
    map: &str,
    key: &str,
    value: &str,
) -> Result<TypedMap<K, V>, LoadError>
where
    K: FromBytes + IntoBytes + Immutable,
    V: FromBytes + IntoBytes + Immutable,
{
    let (key, value) = (conversions.of_struct(key)?, conversions.of_struct(value)?);
    Ok(TypedMap::of_other_layout(load::pinned(paths, map)?, key, value)?)
}

/// Whether the other version saw more of how a connection began than ours did, which may have met only its answer; so may
/// the other, where one direction's program was replaced before the other's.
fn knows_better(theirs: &ConntrackEntry, ours: &ConntrackEntry) -> bool {
    let is_guess = |entry: &ConntrackEntry| u32::from(entry.flags) & abi::CONNTRACK_MIDSTREAM != 0;
    let is_egress = |entry: &ConntrackEntry| entry.initiator == u8::from(abi::Direction::Egress);
    !is_guess(theirs) && (is_guess(ours) || !is_egress(ours))
}

/// Copies what is not there.
fn copy<K, V>(from: &TypedMap<K, V>, to: &TypedMap<K, V>) -> Result<(), MapError>
where
    K: FromBytes + IntoBytes + Immutable,
    V: FromBytes + IntoBytes + Immutable,
{
    let mut entries = Vec::new();
    from.for_each(|key, value| entries.push((key, value)))?;
    entries.iter().try_for_each(|(key, value)| to.put_back(key, value))
}

impl PinPaths {
    /// Removes the maps of a version that is done with. First they are no version's any more, so that nobody takes over what is
    /// half gone.
    pub fn remove(&self) -> io::Result<()> {
        // Names in a bpf file system have no dots.
        let mut gone = self.version().as_os_str().to_owned();
        gone.push(GONE);
        std::fs::rename(self.version(), &gone)?;
        std::fs::remove_dir_all(gone)
    }

    /// Removes what a life left that was killed while it removed.
    fn remove_gone(&self) -> io::Result<()> {
        let Some(root) = self.version().parent() else {
            return Ok(());
        };
        for entry in std::fs::read_dir(root)? {
            let path = entry?.path();
            if path.as_os_str().as_encoded_bytes().ends_with(GONE.as_bytes()) {
                std::fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }
}

/// A usage as the next version begins with it: marks and shares of the ring are its own.
fn begun(usage: &Usage) -> Usage {
    Usage {
        swept: ConntrackKey::default(),
        is_swept: 0,
        events_since: 0,
        events: 0,
        ..*usage
    }
}
