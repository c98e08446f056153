// SPDX-License-Identifier: Apache-2.0
//! The pods at their interfaces, as the kernel knows them: entry, slots and programs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use wardline_bpf::PolicyWord;
use wardline_bpf::abi::{self, Address};
use wardline_policy::model::Direction;
use wardline_policy::tables::TableKey;

use super::attach::{Arrival, AttachError, Attached, Attacher};
use super::map::{MapError, TypedMap};
use super::quotas::Usages;
use crate::index::EndpointSpec;
use crate::mapping::Mapping;
use crate::names::Names;

/// A pod that is managed.
#[derive(Debug)]
pub(super) struct Managed {
    pub(super) spec: EndpointSpec,
    pub(super) uid: u32,
    pub(super) slot: u32,
    pub(super) attached: Attached,
    /// A link and a filter may both be at one of its hooks; the entry says so.
    handing_over: bool,
}

impl Managed {
    fn entry(&self) -> abi::Endpoint {
        entry(&self.spec, self.uid, self.slot, self.handing_over)
    }
}

/// What the words of all endpoints name, those among them that this life does not manage.
#[derive(Clone, Debug, Default)]
pub(super) struct InForce {
    pub(super) tables: HashSet<u32>,
    /// Of the peer maps.
    pub(super) generations: HashSet<u32>,
    pub(super) uids: HashSet<u32>,
}

/// One slot's policy in terms of the word's fields; 0 is no table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotPolicy {
    pub(super) table: u32,
    pub(super) peers: u32,
    pub(super) cidrs: bool,
}

/// Entries by ifindex: the hash that knows them all, and the array in front of it (bpf/include/abi.h).
#[derive(Debug)]
pub(super) struct EntryMaps {
    pub(super) hash: TypedMap<u32, abi::Endpoint>,
    pub(super) near: TypedMap<u32, abi::NearEndpoint>,
}

impl EntryMaps {
    fn get(&self, ifindex: u32) -> Result<Option<abi::Endpoint>, MapError> {
        self.hash.get(&ifindex)
    }

    fn set(&self, ifindex: u32, endpoint: abi::Endpoint) -> Result<(), MapError> {
        self.hash.set(&ifindex, &endpoint)?;
        let place = ifindex % abi::NEAR_ENDPOINTS;
        let holder = self.near.get(&place)?.map_or(0, |near| near.ifindex);
        if holder == 0 || holder == ifindex {
            // An array's value is not replaced at once: packets ask the hash while it changes.
            self.near.set(&place, &abi::NearEndpoint { ifindex: 0, endpoint })?;
            self.near.set(&place, &abi::NearEndpoint { ifindex, endpoint })?;
        }
        Ok(())
    }

    fn delete(&self, ifindex: u32) -> Result<(), MapError> {
        let place = ifindex % abi::NEAR_ENDPOINTS;
        if let Some(near) = self.near.get(&place)?
            && near.ifindex == ifindex
        {
            self.near.set(&place, &abi::NearEndpoint { ifindex: 0, ..near })?;
        }
        self.hash.delete(&ifindex)
    }
}

/// Where what another version knew of an endpoint goes.
#[derive(Debug)]
pub(super) struct Inheritance<'a> {
    pub(super) words: &'a Mapping,
    pub(super) usages: &'a TypedMap<u32, abi::Usage>,
}

impl Inheritance<'_> {
    /// Takes over an endpoint under its uid. Returns whether it did, or had: its interface may be a newer one's here.
    ///
    /// Its words name tables that are not here: until it gets others nothing is allowed by them.
    pub(super) fn take(
        &self,
        entries: &EntryMaps,
        ifindex: u32,
        endpoint: abi::Endpoint,
        words: [u64; 2],
        usage: &abi::Usage,
    ) -> Result<bool, MapError> {
        let known = entries.get(ifindex)?;
        match &known {
            Some(known) if known.uid > endpoint.uid => return Ok(false),
            // Of a life that was killed when it had got so far, or of a time before.
            Some(known) if known.uid == endpoint.uid => {
                let flags = known.flags | (endpoint.flags & abi::ENDPOINT_HANDOVER);
                entries.set(ifindex, abi::Endpoint { flags, ..*known })?;
                return Ok(true);
            }
            _ => {}
        }
        let mut slots = HashSet::new();
        entries.hash.for_each(|_, entry| _ = slots.insert(entry.slot))?;
        let free = || {
            let first = std::iter::once(endpoint.slot);
            first
                .chain((0..abi::MAX_SLOTS).step_by(2))
                .find(|slot| !slots.contains(slot))
        };
        let Some(slot) = known.map(|known| known.slot).or_else(free) else {
            return Ok(false);
        };
        for (slot, word) in (slot..).zip(words) {
            self.words.u64(slot as usize * 8).store(word, Ordering::Release);
        }
        self.usages.set(&(slot / 2), usage)?;
        entries.set(ifindex, abi::Endpoint { slot, ..endpoint })?;
        Ok(true)
    }
}

#[derive(Debug)]
pub(super) struct Endpoints {
    entries: EntryMaps,
    words: Mapping,
    usages: Usages,
    slots_in_use: BTreeSet<u32>,
    pub(super) managed: BTreeMap<u32, Managed>,
    /// The interface whose turn to be handed over was last.
    handed_over: u32,
}

impl Endpoints {
    pub(super) fn new(entries: EntryMaps, words: Mapping, usages: Usages) -> Self {
        Self {
            entries,
            words,
            usages,
            slots_in_use: BTreeSet::new(),
            managed: BTreeMap::new(),
            handed_over: 0,
        }
    }

    /// What an earlier life of the daemon left at the interface, if it is still the same pod.
    pub(super) fn inherited(&self, ifindex: u32, spec: &EndpointSpec, names: &Names) -> Option<abi::Endpoint> {
        let entry = self.entries.get(ifindex).ok().flatten()?;
        let name = names.endpoint(entry.uid)?;
        let is_same = name.name.pod == spec.pod && name.pod_uid == spec.pod_uid;
        (is_same && !self.slots_in_use.contains(&entry.slot)).then_some(entry)
    }

    /// Interfaces that the kernel has an entry for.
    pub(super) fn known(&self) -> Vec<u32> {
        self.entries.hash.keys()
    }

    /// A pair of slots that nobody uses.
    pub(super) fn free_slot(&mut self, taken: &BTreeSet<u32>) -> Option<u32> {
        (0..abi::MAX_SLOTS)
            .step_by(2)
            .find(|slot| !self.slots_in_use.contains(slot) && !taken.contains(slot))
    }

    /// Puts the entry in force and the programs in place. The slots' words must be set before; [`Endpoints::settle`] comes
    /// after for those in `passing`, whose connections another version has.
    pub(super) fn put(
        &mut self,
        ifindex: u32,
        endpoint: NewEndpoint,
        passing: &HashSet<u32>,
        attacher: &Attacher,
    ) -> Result<(), EndpointError> {
        let former = self.entries.get(ifindex)?;
        if former.is_none_or(|former| former.uid != endpoint.uid) {
            self.usages.forget(endpoint.slot / 2);
        }
        let arrival = arrival(former.as_ref(), &endpoint.spec);
        let handing_over = matches!(arrival, Arrival::Known { handing_over: true, .. });
        let NewEndpoint { spec, uid, slot, .. } = endpoint;
        let mut entry = entry(&spec, uid, slot, handing_over);
        if passing.contains(&uid) {
            entry.flags |= abi::ENDPOINT_TAKEOVER;
        }
        self.entries.set(ifindex, entry)?;
        let attached = match attacher.attach(ifindex, uid, arrival) {
            Ok(attached) => attached,
            Err(error) => {
                // Programs of an earlier life may still be at the interface and need their entry.
                match former {
                    Some(former) => self.entries.set(ifindex, former)?,
                    None => self.entries.delete(ifindex)?,
                }
                return Err(error.into());
            }
        };
        // Those of an endpoint that nobody knows any more go only now, so that the pod is never without.
        if let Some(former) = former.filter(|former| former.uid != uid) {
            attacher.forget(former.uid);
        }
        self.slots_in_use.insert(slot);
        self.managed.insert(
            ifindex,
            Managed {
                spec,
                uid,
                slot,
                attached,
                handing_over,
            },
        );
        Ok(())
    }

    /// The connections of these are all here.
    pub(super) fn settle(&self, passing: &HashSet<u32>) -> Result<(), MapError> {
        let passing = self
            .managed
            .iter()
            .filter(|(_, managed)| passing.contains(&managed.uid));
        // Each of them, whatever becomes of another.
        passing
            .map(|(ifindex, managed)| self.entries.set(*ifindex, managed.entry()))
            .fold(Ok(()), Result::and)
    }

    /// Whether some pod's filters wait for links to take over from them.
    pub(super) fn has_filters(&self) -> bool {
        self.managed
            .values()
            .any(|managed| managed.attached.to_hand_over().is_some())
    }

    /// Hands one pod's next direction over to a link; the pods take turns.
    pub(super) fn hand_over(&mut self, attacher: &Attacher) -> Result<(), EndpointError> {
        let (before, after) = (..=self.handed_over, self.handed_over + 1..);
        let waits = |(ifindex, managed): (&u32, &Managed)| Some((*ifindex, managed.attached.to_hand_over()?));
        let mut turns = self.managed.range(after).chain(self.managed.range(before));
        let Some((ifindex, direction)) = turns.find_map(waits) else {
            return Ok(());
        };
        self.handed_over = ifindex;
        let Some(managed) = self.managed.get_mut(&ifindex) else {
            return Ok(());
        };
        managed.handing_over = true;
        self.entries.set(ifindex, managed.entry())?;
        match managed.attached.hand_over(attacher, managed.uid, direction) {
            // Its pod goes too.
            Err(error) if error.is_interface_gone() => return Ok(()),
            result => result?,
        }
        managed.handing_over = managed.attached.to_hand_over().is_some();
        Ok(self.entries.set(ifindex, managed.entry())?)
    }

    /// Writes a pod's entry again if what it says has changed.
    pub(super) fn refresh(&mut self, ifindex: u32, spec: &EndpointSpec) -> Result<(), MapError> {
        let Some(managed) = self.managed.get_mut(&ifindex) else {
            return Ok(());
        };
        if managed.spec != *spec {
            let entry = entry(spec, managed.uid, managed.slot, managed.handing_over);
            self.entries.set(ifindex, entry)?;
            managed.spec = spec.clone();
        }
        Ok(())
    }

    /// Takes the programs away and forgets the pod.
    pub(super) fn remove(&mut self, ifindex: u32, attacher: &Attacher) -> Result<(), MapError> {
        let slot = if let Some(managed) = self.managed.remove(&ifindex) {
            self.slots_in_use.remove(&managed.slot);
            managed.attached.detach();
            Some(managed.slot)
        } else if let Some(entry) = self.entries.get(ifindex)? {
            attacher.detach_left_over(ifindex, entry.uid);
            Some(entry.slot)
        } else {
            None
        };
        // Of what it held no sweep speaks any more, and what is near a quota would be swept without end.
        if let Some(slot) = slot {
            self.usages.forget(slot / 2);
        }
        self.entries.delete(ifindex)
    }

    fn word(&self, slot: u32) -> PolicyWord {
        PolicyWord::unpack(self.words.u64(slot as usize * 8).load(Ordering::Relaxed))
    }

    /// The one store that changes a slot's policy. The revision goes up, so the word is one that the slot never had.
    pub(super) fn set_word(&self, slot: u32, policy: SlotPolicy) {
        let revision = self.word(slot).revision.wrapping_add(1);
        let word = PolicyWord {
            table: policy.table,
            peers: policy.peers,
            cidrs: policy.cidrs,
            revision,
        };
        let Ok(word) = word.pack() else {
            unreachable!("ids are given out within the word's bits")
        };
        // Release: the map updates before it are seen by whoever sees the word.
        self.words.u64(slot as usize * 8).store(word, Ordering::Release);
    }

    pub(super) fn slot_policy(&self, slot: u32) -> SlotPolicy {
        let word = self.word(slot);
        SlotPolicy {
            table: word.table,
            peers: word.peers,
            cidrs: word.cidrs,
        }
    }

    /// Read from the kernel: it alone knows.
    pub(super) fn in_force(&self) -> Result<InForce, MapError> {
        let mut in_force = InForce::default();
        self.entries.hash.for_each(|_, entry| {
            in_force.uids.insert(entry.uid);
            for direction in Direction::ALL {
                let word = self.word(slot_of(entry.slot, direction));
                if word.table != 0 {
                    in_force.tables.insert(word.table);
                    in_force.generations.insert(word.peers);
                }
            }
        })?;
        Ok(in_force)
    }

    /// Who the kernel has entries for, as far as the journal knows them.
    pub(super) fn inherited_pods(&self, names: &Names) -> Vec<(u32, EndpointSpec)> {
        let mut pods = Vec::new();
        let found = self.entries.hash.for_each(|ifindex, entry| {
            if let Some(name) = names.endpoint(entry.uid) {
                let addresses = [entry.v4, entry.v6].into_iter().filter(|address| !address.is_none());
                let spec = EndpointSpec {
                    pod: name.name.pod.clone(),
                    pod_uid: Arc::clone(&name.pod_uid),
                    addresses: addresses.map(IpAddr::from).collect(),
                    log_denies: entry.flags & abi::ENDPOINT_LOG_DENY != 0,
                    assigned: entry.flags & abi::ENDPOINT_ASSIGNED != 0,
                };
                pods.push((ifindex, spec));
            }
        });
        if let Err(error) = found {
            tracing::warn!(%error, "failed to read the endpoints of an earlier life");
        }
        pods
    }

    /// Whether the kernel has an entry of an endpoint that this life does not manage.
    pub(super) fn has_unmanaged(&self, uids: &HashSet<u32>) -> Result<bool, MapError> {
        let mut found = false;
        self.entries.hash.for_each(|ifindex, entry| {
            found |= uids.contains(&entry.uid) && !self.managed.contains_key(&ifindex);
        })?;
        Ok(found)
    }

    pub(super) fn uids(&self) -> impl Iterator<Item = u32> + '_ {
        self.managed.values().map(|managed| managed.uid)
    }
}

/// An endpoint about to be put in force, and the tables that its slots are given before; None: they keep their words.
#[derive(Debug)]
pub(super) struct NewEndpoint {
    pub(super) spec: EndpointSpec,
    pub(super) uid: u32,
    pub(super) slot: u32,
    pub(super) tables: Option<[Option<TableKey>; 2]>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum EndpointError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Attach(#[from] AttachError),
}

pub(super) fn slot_of(slot: u32, direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => slot,
        Direction::Egress => slot + 1,
    }
}

/// How an endpoint comes to an interface that had this entry.
fn arrival(former: Option<&abi::Endpoint>, spec: &EndpointSpec) -> Arrival {
    match former {
        Some(former) => Arrival::Known {
            uid: former.uid,
            handing_over: former.flags & abi::ENDPOINT_HANDOVER != 0,
        },
        None if spec.assigned => Arrival::Starting,
        None => Arrival::Running,
    }
}

fn entry(spec: &EndpointSpec, uid: u32, slot: u32, handing_over: bool) -> abi::Endpoint {
    let address = |is_wanted: fn(&IpAddr) -> bool| {
        spec.addresses
            .iter()
            .find(|ip| is_wanted(ip))
            .map_or_else(Address::default, |ip| Address::from(*ip))
    };
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    abi::Endpoint {
        uid,
        slot,
        flags: flag(spec.log_denies, abi::ENDPOINT_LOG_DENY)
            | flag(spec.assigned, abi::ENDPOINT_ASSIGNED)
            | flag(handing_over, abi::ENDPOINT_HANDOVER),
        pad: 0,
        v4: address(IpAddr::is_ipv4),
        v6: address(IpAddr::is_ipv6),
    }
}

/// Who the endpoint is, for the journal.
pub(super) fn meaning(uid: u32, spec: &EndpointSpec, name: crate::names::PodName) -> crate::names::Meaning {
    let name = crate::names::EndpointName {
        name,
        pod_uid: Arc::clone(&spec.pod_uid),
    };
    crate::names::Meaning::Endpoint {
        uid,
        name: Arc::new(name),
    }
}
