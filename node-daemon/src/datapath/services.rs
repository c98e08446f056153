// SPDX-License-Identifier: Apache-2.0
//! Fronts of Services and their backends in the kernel.
//!
//! ```text
//! backends of a new list, under a fresh id  ->  the front names it (one update)  ->  (grace period)  ->  the old list goes
//! nobody looks yet                              every new flow sees all of it
//! ```
//!
//! Fronts with the same backends share a list. The mirror of what the kernel holds is read from it at the start, so a
//! restart writes what is different and leaves the rest alone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use libbpf_rs::{MapCore, MapHandle};
use wardline_bpf::abi::{self, Address, ServiceKey};
use wardline_policy::model::Protocol;

use super::backend_lists::{BackendLists, LetGo, count};
use super::departures::{Departed, Departures};
use super::former::Flows;
use super::ids::Ids;
use super::map::{MapError, TypedMap};
use super::shares::{Need, Shares, full};
use super::translated::Way;
use super::{ApplyError, Datapath};
use crate::mapping::wait_for_programs;
use crate::services::{Change, Front, FrontKey};

/// How much there is in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounts {
    pub fronts: usize,
    /// Entries of all lists.
    pub backends: usize,
}

#[derive(Debug)]
pub(super) struct Services {
    fronts: TypedMap<ServiceKey, abi::Service>,
    lists: BackendLists,
    /// Entries that the tables have room for.
    room: ServiceCounts,
    loaded: HashMap<FrontKey, abi::Service>,
    departures: Arc<Departures>,
    shares: Shares,
}

impl Services {
    /// Takes over what an earlier life left.
    pub(super) fn open(fronts: MapHandle, backends: MapHandle, departures: Arc<Departures>) -> Result<Self, MapError> {
        let size = fronts.max_entries() as usize;
        let fronts = TypedMap::new(fronts)?;
        let loaded = adopt(&fronts)?;
        let lists = BackendLists::open(backends, loaded.values().map(|service| service.list))?;
        Ok(Self {
            fronts,
            room: ServiceCounts {
                fronts: size,
                backends: lists.room(),
            },
            lists,
            loaded,
            departures,
            shares: Shares::default(),
        })
    }

    /// Has what leads to backends that left in an earlier life, or another version, tidied away.
    pub(super) fn note_left(&self, flows: &Flows) -> Result<(), MapError> {
        let translated = || self.loaded.iter().filter(|(_, front)| is_translated(front));
        let lists: HashMap<u32, u32> = translated().map(|(_, front)| (front.id, front.list)).collect();
        let has = |list: u32, backend: &SocketAddr| self.lists.backends(list).binary_search(backend).is_ok();
        let has_choice = |id, backend: &SocketAddr| lists.get(&id).is_some_and(|list| has(*list, backend));
        let has_way = |way: &Way| {
            let key = FrontKey {
                address: way.front.ip(),
                port: Some((Protocol::Udp, way.front.port())),
            };
            let front = self.loaded.get(&key).filter(|front| is_translated(front));
            front.is_some_and(|front| has(front.list, &way.backend))
        };
        self.departures
            .inherit(&flows.affinities, &flows.connections, has_choice, has_way)
    }

    pub(super) fn counts(&self) -> ServiceCounts {
        ServiceCounts {
            fronts: self.loaded.len(),
            backends: self.lists.in_use(),
        }
    }

    pub(super) fn has_garbage(&self) -> bool {
        self.lists.has_garbage()
    }

    /// As [`BackendLists::delete_garbage`].
    pub(super) fn delete_garbage(&mut self) -> Result<(), MapError> {
        self.lists.delete_garbage()
    }

    /// Whether all that a change adds fits, and within what its namespace may hold.
    fn check_room(&self, change: &Change) -> Result<(), ApplyError> {
        let need = self.need(change);
        self.shares.check(&change.service.namespace, need, self.room)?;
        let gone = change
            .fronts
            .iter()
            .filter(|(key, front)| front.is_none() && self.loaded.contains_key(key));
        let fronts = (self.loaded.len() + need.added.fronts).saturating_sub(gone.count());
        if fronts > self.room.fronts {
            return Err(full(
                "the table of Service addresses and ports",
                self.room.fronts,
                fronts,
            ));
        }
        let backends = self.lists.in_use() + need.added.backends;
        if backends > self.room.backends {
            return Err(full("the table of Service backends", self.room.backends, backends));
        }
        Ok(())
    }

    /// What a change adds to the tables, and what of its namespace's it takes out.
    fn need(&self, change: &Change) -> Need {
        let namespace = &change.service.namespace;
        let (mut need, mut let_go) = (Need::default(), HashMap::new());
        let mut wanted = HashSet::new();
        for (key, front) in &change.fronts {
            let former = self.loaded.get(key);
            if let Some(former) = former {
                *let_go.entry(former.list).or_insert(0) += 1;
            }
            match front {
                Some(front) => {
                    need.added.fronts += usize::from(former.is_none());
                    wanted.insert(&*front.backends);
                }
                None => need.released.fronts += usize::from(self.shares.has_front(namespace, key)),
            }
        }
        let added = wanted.iter().filter(|list| !self.lists.has(list));
        need.added.backends = added.map(|list| list.len()).sum();
        let freed = let_go.iter().filter(|(id, fronts)| {
            let is_last = self.lists.users(**id) == **fronts && !wanted.contains(self.lists.backends(**id));
            is_last && self.shares.has_list(namespace, **id)
        });
        need.released.backends = freed.map(|(id, _)| self.lists.backends(*id).len()).sum();
        need
    }

    /// Brings the fronts of one Service to what is wanted. What is there stays until its own one update.
    fn apply(&mut self, change: &Change, ids: &mut Ids) -> Result<(), MapError> {
        let (gone, wanted): (Vec<_>, Vec<_>) = change.fronts.iter().partition(|(_, front)| front.is_none());
        for (key, _) in gone {
            self.remove(key)?;
        }
        // An address itself sorts first, and comes last: until all its ports are there, none of them may be refused.
        for (key, front) in wanted.into_iter().rev() {
            if let Some(front) = front {
                self.set(key, front, ids)?;
                self.charge(&change.service.namespace, key);
            }
        }
        Ok(())
    }

    fn charge(&mut self, namespace: &Arc<str>, key: &FrontKey) {
        let Some(front) = self.loaded.get(key) else {
            return;
        };
        self.shares.charge_front(namespace, key);
        if front.list != 0 {
            let backends = self.lists.backends(front.list).len();
            self.shares.charge_list(namespace, front.list, backends);
        }
    }

    fn set(&mut self, key: &FrontKey, front: &Front, ids: &mut Ids) -> Result<(), MapError> {
        let former = self.loaded.get(key).copied();
        if former.is_some_and(|former| self.is_equal(&former, front)) {
            return Ok(());
        }
        let id = former.map_or_else(|| ids.next_service(), |former| former.id);
        let list = self.lists.take(&front.backends, ids)?;
        let service = abi::Service {
            id,
            list,
            count: count(&front.backends),
            ..in_kernel(front)
        };
        let written = ids.store().and_then(|()| self.fronts.set(&service_key(key), &service));
        if let Err(error) = written {
            self.let_go(list);
            return Err(error);
        }
        self.loaded.insert(*key, service);
        let was_translated = former.as_ref().is_some_and(is_translated);
        if let Some((Protocol::Udp, port)) = key.port
            && front.is_translated
            && !was_translated
        {
            self.departures.note_arrival(SocketAddr::new(key.address, port));
        }
        if let Some(former) = former {
            // Another proxy's from now on: it has none of ours.
            let kept = if front.is_translated { &*front.backends } else { &[] };
            self.release(key, &former, kept);
        }
        Ok(())
    }

    fn remove(&mut self, key: &FrontKey) -> Result<(), MapError> {
        let Some(former) = self.loaded.get(key).copied() else {
            return Ok(());
        };
        self.fronts.delete(&service_key(key))?;
        self.loaded.remove(key);
        self.shares.free_front(key);
        self.release(key, &former, &[]);
        Ok(())
    }

    fn is_equal(&self, former: &abi::Service, front: &Front) -> bool {
        let wanted = in_kernel(front);
        (former.flags, former.affinity) == (wanted.flags, wanted.affinity)
            && former.count == count(&front.backends)
            && *self.lists.backends(former.list) == *front.backends
    }

    /// A front has let go of its former list, and goes on with the backends `kept`.
    fn release(&mut self, key: &FrontKey, former: &abi::Service, kept: &[SocketAddr]) {
        let Some(backends) = self.let_go(former.list) else {
            return;
        };
        if is_translated(former) {
            let kept: HashSet<&SocketAddr> = kept.iter().collect();
            let left = backends.iter().filter(|backend| !kept.contains(backend));
            self.departures
                .note(left.map(|backend| departed(key, former, *backend)));
        }
    }

    /// Returns the backends of a list that has one user less; None for the empty one.
    fn let_go(&mut self, id: u32) -> Option<Arc<[SocketAddr]>> {
        let LetGo { backends, is_garbage } = self.lists.let_go(id)?;
        if is_garbage {
            self.shares.free_list(id);
        }
        Some(backends)
    }
}

/// The fronts that an earlier life left; what cannot be read goes.
fn adopt(fronts: &TypedMap<ServiceKey, abi::Service>) -> Result<HashMap<FrontKey, abi::Service>, MapError> {
    let (mut loaded, mut unreadable) = (HashMap::new(), Vec::new());
    fronts.for_each(|key, service| match front_key(&key) {
        Some(front) => _ = loaded.insert(front, service),
        None => unreadable.push(key),
    })?;
    unreadable.iter().try_for_each(|key| fronts.delete(key))?;
    Ok(loaded)
}

fn is_translated(front: &abi::Service) -> bool {
    front.flags & abi::SERVICE_TRANSLATE != 0
}

fn departed(key: &FrontKey, former: &abi::Service, backend: SocketAddr) -> Departed {
    let (protocol, port) = key.port.unwrap_or((Protocol::Tcp, 0));
    Departed {
        service: former.id,
        has_affinity: former.affinity != 0,
        protocol,
        way: Way {
            front: SocketAddr::new(key.address, port),
            backend,
        },
    }
}

impl Datapath {
    /// Brings the fronts of one Service in force.
    ///
    /// # Errors
    /// When a table has no room, nothing of the change is in force. When the kernel refuses an update, what came before
    /// it is. Either way what was in force stays, and no other Service is touched.
    pub fn apply_services(&mut self, change: &Change) -> Result<(), ApplyError> {
        if self.services.check_room(change).is_err() && self.services.has_garbage() {
            wait_for_programs().map_err(ApplyError::Grace)?;
            self.services.delete_garbage()?;
        }
        self.services.check_room(change)?;
        Ok(self.services.apply(change, &mut self.ids)?)
    }

    /// Takes away the fronts that an earlier life left and nobody wants. Call it once everything wanted is in force.
    pub fn retain_services(&mut self, is_wanted: impl Fn(&FrontKey) -> bool) -> Result<(), ApplyError> {
        let fronts = self.services.loaded.keys();
        let unwanted: BTreeSet<FrontKey> = fronts.filter(|key| !is_wanted(key)).copied().collect();
        unwanted.iter().try_for_each(|key| self.services.remove(key))?;
        Ok(())
    }

    pub fn service_counts(&self) -> ServiceCounts {
        self.services.counts()
    }
}

/// The parts that do not depend on ids.
fn in_kernel(front: &Front) -> abi::Service {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    abi::Service {
        flags: flag(front.is_translated, abi::SERVICE_TRANSLATE)
            | flag(front.is_silent, abi::SERVICE_DROP)
            | flag(front.is_address_judged, abi::SERVICE_JUDGE_ADDRESS),
        affinity: ticks(front.affinity_seconds),
        ..abi::Service::default()
    }
}

/// Rounded up, so that no affinity is shorter than asked for.
fn ticks(seconds: u32) -> u32 {
    let nanoseconds = u64::from(seconds) * 1_000_000_000;
    u32::try_from(nanoseconds.div_ceil(1 << abi::TICK_SHIFT)).unwrap_or(u32::MAX)
}

fn service_key(key: &FrontKey) -> ServiceKey {
    let (protocol, port) = key.port.map_or((0, 0), |(protocol, port)| (protocol.number(), port));
    ServiceKey {
        address: Address::from(key.address),
        port: port.to_be(),
        protocol,
        pad: 0,
    }
}

/// None for what no daemon of this layout writes.
fn front_key(key: &ServiceKey) -> Option<FrontKey> {
    let port = match (key.protocol, u16::from_be(key.port)) {
        (0, 0) => None,
        (number, port) => Some((Protocol::from_number(number)?, port)),
    };
    Some(FrontKey {
        address: IpAddr::from(key.address),
        port,
    })
}
