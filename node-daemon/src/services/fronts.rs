// SPDX-License-Identifier: Apache-2.0
//! The fronts of one Service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use wardline_policy::model::Protocol;

use super::model::{Front, FrontKey, Place, Service, ServicePort, Slice};
use super::select::Candidates;

/// What a Service says of an address and port. Another may say something else of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) front: Front,
    /// Kubernetes gives each of these to one Service only; an external address anybody can name.
    pub(super) is_cluster_ip: bool,
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
            claims.insert(key, claim(Front::address(), true));
        }
        for port in &service.ports {
            let candidates = Candidates::new(slices.clone(), port, cluster_ip.is_ipv4());
            let front = cluster_front(service, port, &candidates, place, is_translating);
            claims.insert(key(*cluster_ip, port.protocol, port.port), claim(front, true));
            for (address, number, told) in other_addresses(service, port, cluster_ip.is_ipv4()) {
                let front = claim(judged(&candidates, told), false);
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

fn claim(front: Front, is_cluster_ip: bool) -> Claim {
    Claim { front, is_cluster_ip }
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

/// Left to kube-proxy, which may choose any of the backends.
fn judged(candidates: &Candidates<'_>, told: Told) -> Front {
    Front {
        backends: candidates.everywhere(),
        is_translated: false,
        is_address_judged: told == Told::ByAnybody,
        is_silent: false,
        affinity_seconds: 0,
    }
}
