// SPDX-License-Identifier: Apache-2.0
//! When Wardline leaves, connections that its programs translated go on by the way of kube-proxy, under the node's own
//! connection tracking. Where nothing takes the place of our entry, the node would give them another backend.
//!
//! ```text
//! ours          pod -> Service  --program-->  pod -> backend                      the node knows pod -> backend
//! kube-proxy's  pod -> Service  --------------------------------rules----------->  the node knows pod -> Service -> backend
//! ```
//!
//! Both have the same addresses and ports towards the backend, so one goes before the other comes, and the pod may send
//! nothing meanwhile: of what it sends the node would make a connection of its own, with another backend or port. Nor may
//! our programs judge answers by what they know no more, and tell of them.
//!
//! ```text
//! programs                   another in their place, which drops all, for some tens of milliseconds
//! grace period               nothing that the pod has sent is on its way any more
//! entries of the node        one by one, ours in the place of the direct ones
//! programs go                (by the caller)
//! ```
//!
//! A pod that is cleaned a second time, after a kill in the middle, goes on where the first time has stopped.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;

use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use wardline_bpf::HoldSkelBuilder;
use wardline_bpf::abi::{ConntrackEntry, ConntrackKey, Endpoint};

use super::LoadError;
use super::former;
use super::layout::{Conversion, Conversions};
use super::load::{self, PinPaths};
use super::map::{MapError, TypedMap};
use super::translated::{self, Connections, TCP, UDP};
use crate::host_conntrack::{Fate, HostConntrack, Translated, Transport};
use crate::mapping::wait_for_programs;

#[derive(Debug, thiserror::Error)]
pub enum HandBackError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("failed to stop what a pod sends: {0}")]
    Hold(io::Error),
    #[error("failed to wait for packet programs: {0}")]
    Grace(io::Error),
    #[error("failed to ask for the node's connection tracking: {0}")]
    Ask(io::Error),
    #[error("{count} of them, the first is {client} -> {front} -> {backend}: {cause}")]
    Refused {
        count: usize,
        client: SocketAddr,
        front: SocketAddr,
        backend: SocketAddr,
        cause: io::Error,
    },
}

/// What one version's tables know of pods and their connections to Services.
#[derive(Debug)]
pub(super) struct Translations {
    connections: Connections,
    /// Uids, by ifindex.
    pods: BTreeMap<u32, u32>,
}

/// A pod that is left, as the tables of each version know it.
pub(super) type Known<'a> = [(&'a Translations, u32)];

impl Translations {
    pub(super) fn open(paths: &PinPaths) -> Result<Self, HandBackError> {
        let (connections, endpoints) = if paths.are_ours() {
            let connections = TypedMap::new(load::pinned(paths, "conntrack")?)?;
            (connections, TypedMap::new(load::pinned(paths, "endpoints")?)?)
        } else {
            let conversions = Conversions::of(paths)?;
            let ifindex = Conversion::same(size_of::<u32>());
            let endpoint = conversions.of_struct("endpoint")?;
            let connections = former::table(paths, &conversions, "conntrack", "conntrack_key", "conntrack_entry")?;
            let endpoints = TypedMap::of_other_layout(load::pinned(paths, "endpoints")?, ifindex, endpoint)?;
            (connections, endpoints)
        };
        let mut pods = BTreeMap::new();
        endpoints.for_each(|ifindex, endpoint: Endpoint| _ = pods.insert(ifindex, endpoint.uid))?;
        Ok(Self { connections, pods })
    }

    /// Uids of the pods, by ifindex.
    pub(super) fn pods(&self) -> impl Iterator<Item = (u32, u32)> {
        self.pods.iter().map(|(ifindex, uid)| (*ifindex, *uid))
    }
}

/// How many connections were handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandedBack {
    pub connections: usize,
    /// Of which the node's own connection tracking knows nothing: where it tracks none, or they were idle for too long.
    pub untracked: usize,
}

/// Hands a pod's connections to Services over to the node. Where it has some, `hold` puts the program that it is given in
/// the place of those that judge.
///
/// # Errors
/// The pod's programs can go all the same: then connections that were not handed over yet are lost.
pub(super) fn hand_back(
    pod: &Known<'_>,
    hold: impl FnOnce(&libbpf_rs::Program<'_>) -> io::Result<()>,
) -> Result<HandedBack, HandBackError> {
    if connections_of(pod)?.is_empty() {
        return Ok(HandedBack::default());
    }
    let mut host = HostConntrack::open().map_err(HandBackError::Ask)?;
    let mut object = MaybeUninit::uninit();
    let program = HoldSkelBuilder::default()
        .open(&mut object)
        .map_err(LoadError::open)?
        .load()
        .map_err(LoadError::load)?;
    hold(&program.progs.hold).map_err(HandBackError::Hold)?;
    wait_for_programs().map_err(HandBackError::Grace)?;
    let connections = connections_of(pod)?;
    let told: Vec<Translated> = connections.iter().map(|(connection, _)| *connection).collect();
    let fates = host.translate(&told).map_err(HandBackError::Ask)?;
    let (mut handed, mut refused) = (HandedBack::default(), Vec::new());
    for ((connection, entry), fate) in connections.iter().zip(fates) {
        match fate {
            Ok(Fate::Translated) => {
                handed.connections += 1;
                // Were the programs to come back, they would leave it to the node.
                entry.delete()?;
            }
            Ok(Fate::Untracked) => handed.untracked += 1,
            Err(cause) => refused.push((connection, cause)),
        }
    }
    let count = refused.len();
    match refused.into_iter().next() {
        None => Ok(handed),
        Some((first, cause)) => Err(HandBackError::Refused {
            count,
            client: first.client,
            front: first.front,
            backend: first.backend,
            cause,
        }),
    }
}

/// Where a connection stands.
struct Entry<'a> {
    map: &'a Connections,
    key: ConntrackKey,
    value: ConntrackEntry,
}

impl Entry<'_> {
    fn delete(&self) -> Result<(), MapError> {
        translated::delete(self.map, &self.key, &self.value)
    }
}

/// Each once, in whatever versions' tables it is. One without its alias has ended: its client has its port for another.
fn connections_of<'a>(pod: &Known<'a>) -> Result<Vec<(Translated, Entry<'a>)>, MapError> {
    let mut found = HashMap::new();
    for (tables, uid) in pod {
        let map = &tables.connections;
        let mut entries = Vec::new();
        map.for_each(|key, entry| {
            if key.endpoint == *uid {
                entries
                    .extend(connection(&key, &entry).map(|connection| (connection, Entry { map, key, value: entry })));
            }
        })?;
        for (connection, entry) in entries {
            if translated::is_paired(map, &entry.key, &entry.value)? {
                found.insert(connection, entry);
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// What the node is to track. Nothing for
/// - SCTP, of which the node would have to know more than addresses and ports: not tried;
/// - a pod that reaches itself: its server knows the client by the Service's address, which no rule of kube-proxy's gives.
fn connection(key: &ConntrackKey, entry: &ConntrackEntry) -> Option<Translated> {
    if !translated::is_translated(entry) || translated::is_hairpin(entry) {
        return None;
    }
    let transport = match key.protocol {
        TCP => Transport::Tcp,
        UDP => Transport::Udp,
        _ => return None,
    };
    let way = translated::way(key, entry);
    Some(Translated {
        transport,
        client: translated::at(key.pod, key.pod_port),
        front: way.front,
        backend: way.backend,
    })
}
