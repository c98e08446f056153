// SPDX-License-Identifier: Apache-2.0
//! What Services left behind in the connection table and among clients' choices when they changed: it is tidied away,
//! so that clients get a backend, and one that is there.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use libbpf_rs::MapHandle;
use tokio::sync::Notify;
use wardline_bpf::abi::{Affinity, AffinityKey};
use wardline_policy::model::Protocol;

use super::ApplyError;
use super::map::{MapError, TypedMap};
use super::translated::{self, Connections, Way};
use crate::mapping::wait_for_programs;

/// A backend that new flows to a front are not given any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departed {
    /// Id of the front.
    pub(super) service: u32,
    /// Clients may have been given it to stay with.
    pub(super) has_affinity: bool,
    pub(super) protocol: Protocol,
    pub(super) way: Way,
}

/// What is to be tidied.
#[derive(Debug, Default)]
struct Noted {
    /// Choices of clients: the front's id, and the backend.
    choices: HashSet<(u32, SocketAddr)>,
    /// Ways of UDP flows. TCP and SCTP flows end by themselves; only UDP has none that would ever leave.
    ways: HashSet<Way>,
    /// UDP fronts that are new: what was sent there before goes to nobody, and goes on to.
    arrivals: HashSet<SocketAddr>,
}

impl Noted {
    fn len(&self) -> usize {
        self.choices.len() + self.ways.len() + self.arrivals.len()
    }

    fn extend(&mut self, other: Self) {
        self.choices.extend(other.choices);
        self.ways.extend(other.ways);
        self.arrivals.extend(other.arrivals);
    }
}

/// From the thread that changes Services to the one that tidies.
#[derive(Debug, Default)]
pub(super) struct Departures {
    noted: Mutex<Noted>,
    is_noted: Notify,
}

impl Departures {
    pub(super) fn note(&self, departed: impl Iterator<Item = Departed>) {
        let mut more = Noted::default();
        for departed in departed {
            if departed.has_affinity {
                more.choices.insert((departed.service, departed.way.backend));
            }
            if departed.protocol == Protocol::Udp {
                more.ways.insert(departed.way);
            }
        }
        self.add(more);
    }

    /// A UDP front is translated from now on.
    pub(super) fn note_arrival(&self, front: SocketAddr) {
        self.add(Noted {
            arrivals: HashSet::from([front]),
            ..Noted::default()
        });
    }

    /// Notes what nobody came to tidy so far. The two say whether the front, by id, and the UDP front have the backend.
    pub(super) fn inherit(
        &self,
        affinities: &TypedMap<AffinityKey, Affinity>,
        connections: &Connections,
        has_choice: impl Fn(u32, &SocketAddr) -> bool,
        has_way: impl Fn(&Way) -> bool,
    ) -> Result<(), MapError> {
        let mut left = Noted::default();
        affinities.for_each(|key, affinity| {
            left.choices.insert((key.service, SocketAddr::from(affinity.backend)));
        })?;
        left.choices.retain(|(service, backend)| !has_choice(*service, backend));
        left.ways = translated::datagram_ways(connections)?;
        left.ways.retain(|way| !has_way(way));
        self.add(left);
        Ok(())
    }

    fn add(&self, more: Noted) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = noted.len();
        noted.extend(more);
        if noted.len() > before {
            self.is_noted.notify_one();
        }
    }

    fn take(&self) -> Noted {
        std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tidies after changes of Services.
#[derive(Debug)]
pub struct DepartureSweeper {
    departures: Arc<Departures>,
    affinities: TypedMap<AffinityKey, Affinity>,
    connections: Connections,
}

impl DepartureSweeper {
    pub(super) fn new(
        departures: Arc<Departures>,
        affinities: MapHandle,
        connections: MapHandle,
    ) -> Result<Self, MapError> {
        Ok(Self {
            departures,
            affinities: TypedMap::new(affinities)?,
            connections: TypedMap::new(connections)?,
        })
    }

    /// Waits until there is something to do.
    pub async fn needed(&self) {
        self.departures.is_noted.notified().await;
    }

    /// # Errors
    /// What was to be done is kept for the next call.
    pub fn sweep(&self) -> Result<(), ApplyError> {
        let noted = self.departures.take();
        let result = self.forget(&noted);
        if result.is_err() {
            self.departures.add(noted);
        }
        result
    }

    fn forget(&self, noted: &Noted) -> Result<(), ApplyError> {
        self.forget_choices(&noted.choices)?;
        // A packet that began before the change may still lead to a backend that left, or be ahead of a front.
        wait_for_programs().map_err(ApplyError::Grace)?;
        self.forget_choices(&noted.choices)?;
        translated::purge_datagrams(&self.connections, &noted.ways, &noted.arrivals)?;
        Ok(())
    }

    fn forget_choices(&self, gone: &HashSet<(u32, SocketAddr)>) -> Result<(), ApplyError> {
        if gone.is_empty() {
            return Ok(());
        }
        let mut stale = Vec::new();
        self.affinities.for_each(|key, affinity| {
            if gone.contains(&(key.service, SocketAddr::from(affinity.backend))) {
                stale.push(key);
            }
        })?;
        Ok(stale.iter().try_for_each(|key| self.affinities.delete(key))?)
    }
}
