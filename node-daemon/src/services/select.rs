// SPDX-License-Identifier: Apache-2.0
//! Which endpoints a node uses, as Kubernetes' own proxy chooses them (k8s.io/kubernetes `pkg/proxy/topology.go`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::model::{Endpoint, EndpointState, Place, ServicePort, Slice};

/// The endpoints behind one port of a Service, in one family.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates<'a> {
    endpoints: BTreeMap<SocketAddr, &'a Endpoint>,
}

impl<'a> Candidates<'a> {
    /// A slice's port is the Service's by name and protocol; its number may differ from slice to slice, where
    /// `targetPort` is a name that means another number in each pod.
    pub(super) fn new(slices: impl Iterator<Item = &'a Slice>, port: &ServicePort, is_v4: bool) -> Self {
        let mut endpoints: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
        for slice in slices {
            let is_same = |found: &&super::model::SlicePort| found.name == port.name && found.protocol == port.protocol;
            for found in slice.ports.iter().filter(is_same) {
                for endpoint in slice.endpoints.iter().filter(|e| e.address.is_ipv4() == is_v4) {
                    let address = SocketAddr::new(endpoint.address, found.port);
                    let known = endpoints.entry(address).or_insert(endpoint);
                    // Twice: on its way between slices, or the address of a pod that goes is another's already.
                    if known.state < endpoint.state {
                        *known = endpoint;
                    }
                }
            }
        }
        Self { endpoints }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// All that some node may use: one where none is ready takes those that terminate
    /// (`externalTrafficPolicy: Local`), whatever is ready on others.
    pub(super) fn all(&self) -> Arc<[SocketAddr]> {
        self.endpoints.keys().copied().collect()
    }

    /// All that are used where it does not matter which node it is.
    pub(super) fn everywhere(&self) -> Arc<[SocketAddr]> {
        self.usable(|_| true)
    }

    /// Those on this node.
    pub(super) fn local(&self, place: &Place) -> Arc<[SocketAddr]> {
        self.usable(|endpoint| endpoint.node.as_ref() == Some(&place.node))
    }

    /// Those that this node should use: the ones that hints keep for it or for its zone, if every ready endpoint has
    /// such hints and one of them is for here; else all.
    pub(super) fn nearest(&self, place: &Place) -> Arc<[SocketAddr]> {
        let is_for_node = |endpoint: &Endpoint| endpoint.nodes.contains(&place.node);
        let is_for_zone = |endpoint: &Endpoint| place.zone.as_ref().is_some_and(|zone| endpoint.zones.contains(zone));
        if self.is_hinted(|endpoint| !endpoint.nodes.is_empty(), is_for_node) {
            self.usable(is_for_node)
        } else if self.is_hinted(|endpoint| !endpoint.zones.is_empty(), is_for_zone) {
            self.usable(is_for_zone)
        } else {
            self.everywhere()
        }
    }

    fn is_hinted(&self, has_hints: impl Fn(&Endpoint) -> bool, is_here: impl Fn(&Endpoint) -> bool) -> bool {
        let mut ready = self.endpoints.values().filter(|e| e.state == EndpointState::Ready);
        ready.clone().all(|endpoint| has_hints(endpoint)) && ready.any(|endpoint| is_here(endpoint))
    }

    /// The ready ones, or those that terminate where none is.
    fn usable(&self, is_wanted: impl Fn(&Endpoint) -> bool) -> Arc<[SocketAddr]> {
        let wanted = self.endpoints.iter().filter(|(_, endpoint)| is_wanted(endpoint));
        let in_state = |state| {
            let found = wanted.clone().filter(move |(_, endpoint)| endpoint.state == state);
            found.map(|(address, _)| *address).collect::<Arc<[_]>>()
        };
        let ready = in_state(EndpointState::Ready);
        if ready.is_empty() {
            in_state(EndpointState::Terminating)
        } else {
            ready
        }
    }
}
