// SPDX-License-Identifier: Apache-2.0
//! The fronts of one Service, and those of a pod's host ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use wardline_policy::model::Protocol;

use super::model::{Front, FrontKey, HostPort, HostPorts, Place, Service, ServicePort, Slice};
use super::select::Candidates;

/// What a Service or a pod says of an address and port. Another may say something else of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) front: Front,
    pub(super) of: Of,
}

/// What an address is to who claims it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// Kubernetes gives each of these to one Service only.
    ClusterIp,
    /// An external address, which anybody can name, or every node's.
    Service,
    /// This node's, at a port that leads to a pod.
    HostPort,
}

/// `is_translating` is whether `ClusterIPs` are ours at all.
pub(super) fn claims<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    place: &Place,
    is_translating: bool,
) -> BTreeMap<FrontKey, Claim> {
    let mut claims = BTreeMap::new();
    for cluster_ip in &service.cluster_ips {
        if is_translating {
            let key = FrontKey {
                address: *cluster_ip,
                port: None,
            };
            claims.insert(key, claim(Front::address(), Of::ClusterIp));
        }
        for port in &service.ports {
            let candidates = Candidates::new(slices.clone(), port, cluster_ip.is_ipv4());
            let front = cluster_front(service, port, &candidates, place, is_translating);
            claims.insert(key(*cluster_ip, port.protocol, port.port), claim(front, Of::ClusterIp));
            for (address, number, told) in other_addresses(service, port, cluster_ip.is_ipv4()) {
                let front = claim(judged(candidates.all(), told), Of::Service);
                claims.entry(key(address, port.protocol, number)).or_insert(front);
            }
        }
    }
    claims
}

fn key(address: IpAddr, protocol: Protocol, port: u16) -> FrontKey {
    FrontKey {
        address,
        port: Some((protocol, port)),
    }
}

fn claim(front: Front, of: Of) -> Claim {
    Claim { front, of }
}

/// The host ports of one pod, at the addresses of this node that packets of pods come to. An address that is not the
/// node's leads nowhere, and whoever may write pods can name any.
pub(super) fn host_claims(pod: &HostPorts, local: &BTreeSet<IpAddr>) -> BTreeMap<FrontKey, Claim> {
    let mut backends: BTreeMap<FrontKey, BTreeSet<SocketAddr>> = BTreeMap::new();
    for port in &pod.ports {
        for address in local.iter().filter(|address| is_at(port, address)) {
            let of_family = pod.addresses.iter().filter(|ip| ip.is_ipv4() == address.is_ipv4());
            for ip in of_family {
                let behind = backends.entry(key(*address, port.protocol, port.port)).or_default();
                behind.insert(SocketAddr::new(*ip, port.container_port));
            }
        }
    }
    let front =
        |behind: BTreeSet<SocketAddr>| claim(judged(behind.into_iter().collect(), Told::ByCluster), Of::HostPort);
    backends.into_iter().map(|(key, behind)| (key, front(behind))).collect()
}

/// Loopback is each pod's own, and a link's address is never taken for the node.
fn is_at(port: &HostPort, address: &IpAddr) -> bool {
    let is_on_link = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !address.is_loopback() && !is_on_link && port.address.is_none_or(|only| only == *address)
}

/// Whose word it is that an address is a Service's (docs/decisions/0011-addresses-that-anybody-may-name.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// The API server's, which keeps a range of ports for Services, or a controller's.
    ByCluster,
    /// That of whoever wrote the Service.
    ByAnybody,
}

/// Where the Service answers beside its `ClusterIP`, in one family. What is told by the cluster comes first.
fn other_addresses(service: &Service, port: &ServicePort, is_v4: bool) -> impl Iterator<Item = (IpAddr, u16, Told)> {
    let every_node = |number| (FrontKey::every_node(is_v4), number, Told::ByCluster);
    let node_port = port.node_port.map(every_node);
    let balancers = service.balancer_ips.iter().map(|ip| (*ip, port.port, Told::ByCluster));
    let external = service.external_ips.iter().map(|ip| (*ip, port.port, Told::ByAnybody));
    let addresses = balancers.chain(external).filter(move |(ip, ..)| ip.is_ipv4() == is_v4);
    node_port.into_iter().chain(addresses)
}

fn cluster_front(
    service: &Service,
    port: &ServicePort,
    candidates: &Candidates<'_>,
    place: &Place,
    is_translating: bool,
) -> Front {
    let chosen = if service.is_local_only {
        candidates.local(place)
    } else {
        candidates.nearest(place)
    };
    // SCTP's checksum covers the ports, and no helper of the kernel brings it up to date.
    let keeps_port = port.protocol != Protocol::Sctp || chosen.iter().all(|backend| backend.port() == port.port);
    let is_translated = is_translating && keeps_port;
    let backends = if is_translated || service.is_local_only {
        chosen
    } else {
        candidates.everywhere()
    };
    Front {
        is_silent: backends.is_empty() && !candidates.is_empty(),
        is_translated,
        is_address_judged: false,
        affinity_seconds: if is_translated { service.affinity_seconds } else { 0 },
        backends,
    }
}

/// Left to others, who may choose any of the backends.
fn judged(backends: Arc<[SocketAddr]>, told: Told) -> Front {
    Front {
        backends,
        is_translated: false,
        is_address_judged: told == Told::ByAnybody,
        is_silent: false,
        affinity_seconds: 0,
    }
}
