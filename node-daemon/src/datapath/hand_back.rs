// SPDX-License-Identifier: Apache-2.0
//! When Wardline leaves, connections that its programs translated go on by the way of kube-proxy, under the node's own
//! connection tracking. Where nothing takes the place of our entry, the node would give them another backend.
//!
//! ```text
//! ours          pod -> Service  --program-->  pod -> backend                      the node knows pod -> backend
//! kube-proxy's  pod -> Service  --------------------------------rules----------->  the node knows pod -> Service -> backend
//! ```
//!
//! Both have the same addresses and ports towards the backend, so one goes before the other comes, and no packet may be
//! on its way meanwhile: of either it would make a connection of its own.
//!
//! ```text
//! endpoint's entry goes      its packets are dropped, for some tens of milliseconds
//! grace period               none is on its way any more
//! entries of the node        one by one, ours in the place of the direct ones
//! programs go                (by the caller)
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use wardline_bpf::abi::{self, ConntrackEntry, ConntrackKey, ConntrackState, Endpoint};

use super::LoadError;
use super::former;
use super::layout::{Conversion, Conversions};
use super::load::{self, PinPaths};
use super::map::{MapError, TypedMap};
use super::translated::{self, Connections};
use crate::host_conntrack::{HostConntrack, Translated, Transport};
use crate::mapping::wait_for_programs;

/// IANA's numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Seconds, as the kernel's own settings are where nobody changed them (`net.netfilter.nf_conntrack_*_timeout_*`).
const OPEN_TIMEOUT: u32 = 432_000;
const CLOSING_TIMEOUT: u32 = 120;
const UDP_TIMEOUT: u32 = 30;
const UDP_STREAM_TIMEOUT: u32 = 120;

#[derive(Debug, thiserror::Error)]
pub enum HandBackError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("failed to stop a pod's packets: {0}")]
    Hold(libbpf_rs::Error),
    #[error("failed to wait for packet programs: {0}")]
    Grace(io::Error),
    #[error("failed to ask for the node's connection tracking: {0}")]
    Open(io::Error),
    #[error("failed to track {client} -> {front} -> {backend}: {cause}")]
    Track {
        client: SocketAddr,
        front: SocketAddr,
        backend: SocketAddr,
        cause: io::Error,
    },
}

/// The tables of one version, whose programs are about to go.
#[derive(Debug)]
pub(super) struct Translations {
    connections: Connections,
    endpoints: TypedMap<u32, Endpoint>,
    near_endpoints: MapHandle,
    /// Uids, by ifindex.
    pods: BTreeMap<u32, u32>,
}

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
        Ok(Self {
            connections,
            endpoints,
            near_endpoints: load::pinned(paths, "near_endpoints")?,
            pods,
        })
    }

    /// Uids of the endpoints, by ifindex.
    pub(super) fn pods(&self) -> impl Iterator<Item = (u32, u32)> {
        self.pods.iter().map(|(ifindex, uid)| (*ifindex, *uid))
    }

    /// Hands an endpoint's connections to Services over to the node, and returns how many. Of one that has some, packets
    /// are dropped from then on, until its programs go; of one that has none, they never are.
    ///
    /// # Errors
    /// The programs can go all the same: then connections that were not handed over yet are lost.
    pub(super) fn hand_back(&self, ifindex: u32, uid: u32) -> Result<usize, HandBackError> {
        if self.connections_of(uid)?.is_empty() {
            return Ok(0);
        }
        let mut host = HostConntrack::open().map_err(HandBackError::Open)?;
        self.hold(ifindex)?;
        wait_for_programs().map_err(HandBackError::Grace)?;
        let connections = self.connections_of(uid)?;
        for connection in &connections {
            host.translate(connection).map_err(|cause| HandBackError::Track {
                client: connection.client,
                front: connection.front,
                backend: connection.backend,
                cause,
            })?;
        }
        Ok(connections.len())
    }

    /// Makes the endpoint unknown, whose packets are dropped then (`REASON_NO_ENDPOINT`).
    fn hold(&self, ifindex: u32) -> Result<(), HandBackError> {
        // An empty place is all zero, in any layout.
        let place = (ifindex % abi::NEAR_ENDPOINTS).to_ne_bytes();
        let empty = vec![0; self.near_endpoints.value_size() as usize];
        self.near_endpoints
            .update(&place, &empty, MapFlags::ANY)
            .map_err(HandBackError::Hold)?;
        Ok(self.endpoints.delete(&ifindex)?)
    }

    fn connections_of(&self, uid: u32) -> Result<Vec<Translated>, MapError> {
        let mut found = Vec::new();
        self.connections.for_each(|key, entry| {
            if key.endpoint == uid {
                found.extend(connection(&key, &entry));
            }
        })?;
        Ok(found)
    }
}

/// What the node is to track. Nothing for
/// - a handshake that is not over: the client's next attempt is given a backend by kube-proxy;
/// - SCTP: the node would have to know its tags, which nobody has kept;
/// - a pod that reaches itself: its server knows the client by the Service's address, which no rule of kube-proxy's gives.
fn connection(key: &ConntrackKey, entry: &ConntrackEntry) -> Option<Translated> {
    let is = |state: ConntrackState| entry.state == u8::from(state);
    if !translated::is_translated(entry) || translated::is_hairpin(entry) || is(ConntrackState::Denied) {
        return None;
    }
    let (transport, timeout) = match key.protocol {
        TCP if is(ConntrackState::Open) => (Transport::Tcp, OPEN_TIMEOUT),
        TCP if is(ConntrackState::Closing) => (Transport::Tcp, CLOSING_TIMEOUT),
        UDP if is(ConntrackState::Stream) => (Transport::Udp, UDP_STREAM_TIMEOUT),
        UDP => (Transport::Udp, UDP_TIMEOUT),
        _ => return None,
    };
    let way = translated::way(key, entry);
    Some(Translated {
        transport,
        client: translated::at(key.pod, key.pod_port),
        front: way.front,
        backend: way.backend,
        is_answered: !is(ConntrackState::Opening),
        timeout,
    })
}
