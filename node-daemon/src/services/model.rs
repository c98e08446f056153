// SPDX-License-Identifier: Apache-2.0
//! Services and `EndpointSlices`, reduced to what decides where a flow goes, and the fronts that come of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use wardline_policy::model::Protocol;

/// A Service that has a `ClusterIP`. Ports are in host byte order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// One a family.
    pub cluster_ips: Vec<IpAddr>,
    /// Told by the controller of its load balancer.
    pub balancer_ips: Vec<IpAddr>,
    /// `externalIPs`: whoever may write a Service may name any address here.
    pub external_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    /// Seconds for which a client stays with its backend; 0: no affinity.
    pub affinity_seconds: u32,
    /// `internalTrafficPolicy: Local`
    pub is_local_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where the Service has one port without a name.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// An `EndpointSlice` of a Service in the same namespace. Endpoints that take no traffic are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub service: Arc<str>,
    pub ports: Vec<SlicePort>,
    /// All of one family.
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub node: Option<Arc<str>>,
    pub state: EndpointState,
    /// `hints.forZones`
    pub zones: Vec<Arc<str>>,
    /// `hints.forNodes`
    pub nodes: Vec<Arc<str>>,
}

/// From the conditions of an endpoint that takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointState {
    /// On its way out and still serving: used where nothing is ready (KEP-1669).
    Terminating,
    Ready,
}

/// Ports of this node that lead to a pod of it (`hostPort`), as the CNI plugin `portmap` makes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// The pod's.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<HostPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub protocol: Protocol,
    pub port: u16,
    /// The pod's port behind it.
    pub container_port: u16,
    /// `hostIP`; None: each address of the node.
    pub address: Option<IpAddr>,
}

/// Where this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub node: Arc<str>,
    /// `topology.kubernetes.io/zone`
    pub zone: Option<Arc<str>>,
}

/// What a packet to a Service shows. The unspecified address of a family stands for every node's: `NodePorts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontKey {
    pub address: IpAddr,
    /// None: the address itself, there where an address is translated, so that other ports are refused.
    pub port: Option<(Protocol, u16)>,
}

impl FrontKey {
    /// The address that stands for every node's.
    pub fn every_node(is_v4: bool) -> IpAddr {
        if is_v4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        }
    }
}

/// What becomes of such a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// Sorted, so that equal sets are equal lists.
    pub backends: Arc<[SocketAddr]>,
    /// Ours to translate. Else kube-proxy's, and policy judges all backends.
    pub is_translated: bool,
    /// Policy judges the address itself, too: it may be somebody else's, and is where nobody translates it.
    pub is_address_judged: bool,
    /// Without a backend it is dropped, not refused: there are some, but none on this node.
    pub is_silent: bool,
    pub affinity_seconds: u32,
}

impl Front {
    /// The front of an address itself.
    pub(super) fn address() -> Self {
        Self {
            backends: Arc::from([]),
            is_translated: true,
            is_address_judged: false,
            is_silent: false,
            affinity_seconds: 0,
        }
    }
}
