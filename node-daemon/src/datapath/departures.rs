// SPDX-License-Identifier: Apache-2.0
//! Backends that left a Service: what still leads to them is tidied away, so that clients get another one.

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Departed {
    /// Id of the front.
    pub(super) service: u32,
    /// Clients may have been given it to stay with.
    pub(super) has_affinity: bool,
    pub(super) protocol: Protocol,
    pub(super) way: Way,
}

/// From the thread that changes Services to the one that tidies.
#[derive(Debug, Default)]
pub(super) struct Departures {
    noted: Mutex<HashSet<Departed>>,
    is_noted: Notify,
}

impl Departures {
    /// TCP and SCTP flows end by themselves; only UDP has none that would ever leave.
    pub(super) fn note(&self, departed: impl Iterator<Item = Departed>) {
        let matters = departed.filter(|departed| departed.has_affinity || departed.protocol == Protocol::Udp);
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = noted.len();
        noted.extend(matters);
        if noted.len() > before {
            self.is_noted.notify_one();
        }
    }

    fn take(&self) -> HashSet<Departed> {
        std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tidies after backends that left.
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
        let departed = self.departures.take();
        let result = self.forget(&departed);
        if result.is_err() {
            self.departures.note(departed.into_iter());
        }
        result
    }

    fn forget(&self, departed: &HashSet<Departed>) -> Result<(), ApplyError> {
        self.forget_affinities(departed)?;
        // A packet that began before the front let go of the backend may still lead to it.
        wait_for_programs().map_err(ApplyError::Grace)?;
        self.forget_affinities(departed)?;
        let datagrams = departed.iter().filter(|departed| departed.protocol == Protocol::Udp);
        let ways = datagrams.map(|departed| departed.way).collect();
        translated::purge_datagrams(&self.connections, &ways)?;
        Ok(())
    }

    fn forget_affinities(&self, departed: &HashSet<Departed>) -> Result<(), ApplyError> {
        let with_affinity = departed.iter().filter(|departed| departed.has_affinity);
        let gone: HashSet<(u32, SocketAddr)> = with_affinity.map(|d| (d.service, d.way.backend)).collect();
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
