// SPDX-License-Identifier: Apache-2.0
//! From API objects to the model. None is an object that makes no front: it is not there as far as the model goes.
//! Errors name the field; what they refuse, the API server refuses as well, so they mean an object that got past it.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use wardline_policy::model::Protocol;

use super::model::{Endpoint, EndpointState, HostPort, Service, ServicePort, Slice, SlicePort};

/// Another proxy serves the Service.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// `timeoutSeconds` where an object leaves it out.
const AFFINITY_SECONDS: i32 = 10_800;
const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// Services that another proxy serves, headless ones and `ExternalName` make no front.
pub fn service(service: core::Service) -> Result<Option<Service>, String> {
    let labels = service.metadata.labels.unwrap_or_default();
    let spec = service.spec.unwrap_or_default();
    if labels.contains_key(PROXY_NAME) || spec.type_.as_deref() == Some("ExternalName") {
        return Ok(None);
    }
    let cluster_ips = cluster_ips(&spec)?;
    if cluster_ips.is_empty() {
        return Ok(None);
    }
    let balancers = service.status.unwrap_or_default().load_balancer.unwrap_or_default();
    // Proxy: the balancer must see the traffic, so the address is not the cluster's to answer (KEP-1860).
    let ingresses = balancers.ingress.iter().flatten();
    let balancer_ips = ingresses
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref());
    let external_ips = spec.external_ips.iter().flatten().map(String::as_str);
    Ok(Some(Service {
        cluster_ips,
        balancer_ips: other_addresses("status.loadBalancer.ingress", balancer_ips)?,
        external_ips: other_addresses("spec.externalIPs", external_ips)?,
        ports: spec
            .ports
            .iter()
            .flatten()
            .map(service_port)
            .collect::<Result<_, _>>()?,
        affinity_seconds: affinity(&spec)?,
        is_local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
    }))
}

/// Empty for a headless Service.
fn cluster_ips(spec: &core::ServiceSpec) -> Result<Vec<IpAddr>, String> {
    let one = spec.cluster_ip.as_slice();
    let all = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty()).unwrap_or(one);
    all.iter()
        .filter(|ip| !ip.is_empty() && *ip != "None")
        .map(|ip| address("spec.clusterIPs", ip))
        .collect()
}

fn service_port(found: &core::ServicePort) -> Result<ServicePort, String> {
    let node_port = found.node_port.filter(|port| *port != 0);
    Ok(ServicePort {
        name: found.name.as_deref().unwrap_or_default().into(),
        protocol: protocol("spec.ports.protocol", found.protocol.as_deref())?,
        port: port("spec.ports.port", found.port)?,
        node_port: node_port
            .map(|number| port("spec.ports.nodePort", number))
            .transpose()?,
    })
}

fn affinity(spec: &core::ServiceSpec) -> Result<u32, String> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return Ok(0);
    }
    let config = spec.session_affinity_config.as_ref();
    let timeout = config
        .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
        .unwrap_or(AFFINITY_SECONDS);
    if !(1..=MAX_AFFINITY_SECONDS).contains(&timeout) {
        return Err(format!(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: {timeout} is not in 1..={MAX_AFFINITY_SECONDS}"
        ));
    }
    Ok(timeout.unsigned_abs())
}

/// Slices of no Service, of a headless one, and those that hold names instead of addresses have no backends.
pub fn slice(slice: discovery::EndpointSlice) -> Result<Option<Slice>, String> {
    let labels = slice.metadata.labels.unwrap_or_default();
    let is_v4 = match slice.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        "FQDN" => return Ok(None),
        other => return Err(format!("addressType: {other} is none of IPv4, IPv6 and FQDN")),
    };
    let Some(service) = labels.get(SERVICE_NAME).filter(|_| !labels.contains_key(HEADLESS)) else {
        return Ok(None);
    };
    let ports = slice.ports.unwrap_or_default();
    // No number is every port, which no Service can ask for.
    let numbered = ports.iter().filter_map(|found| Some((found, found.port?)));
    Ok(Some(Slice {
        service: service.as_str().into(),
        ports: numbered
            .map(|(found, number)| {
                Ok(SlicePort {
                    name: found.name.as_deref().unwrap_or_default().into(),
                    protocol: protocol("ports.protocol", found.protocol.as_deref())?,
                    port: port("ports.port", number)?,
                })
            })
            .collect::<Result<_, String>>()?,
        endpoints: slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|found| endpoint(found, is_v4).transpose())
            .collect::<Result<_, _>>()?,
    }))
}

/// The node's ports that lead to a pod with a network of its own. An init container that is restarted always is one
/// that serves (KEP-753). What the API server would have refused leads nowhere and is left out.
pub fn host_ports(spec: &core::PodSpec) -> Vec<HostPort> {
    let is_sidecar = |container: &&core::Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(host_port).collect()
}

fn host_port(found: &core::ContainerPort) -> Option<HostPort> {
    let address = found.host_ip.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
    Some(HostPort {
        protocol: protocol("protocol", found.protocol.as_deref()).ok()?,
        port: port("hostPort", found.host_port?).ok()?,
        container_port: port("containerPort", found.container_port).ok()?,
        address: address.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_unspecified()),
    })
}

/// The first address of an endpoint stands for it; the others mean the same (API documentation of `EndpointSlice`).
fn endpoint(found: &discovery::Endpoint, is_v4: bool) -> Result<Option<Endpoint>, String> {
    let Some(text) = found.addresses.first() else {
        return Err("endpoints.addresses: is empty".to_owned());
    };
    let address = address("endpoints.addresses", text)?;
    if address.is_ipv4() != is_v4 {
        return Err(format!(
            "endpoints.addresses: {address} is not of the slice's addressType"
        ));
    }
    // What is not said is taken for true, but for terminating.
    let conditions = found.conditions.clone().unwrap_or_default();
    let state = if conditions.ready.unwrap_or(true) {
        EndpointState::Ready
    } else if conditions.serving.unwrap_or(true) && conditions.terminating.unwrap_or(false) {
        EndpointState::Terminating
    } else {
        return Ok(None);
    };
    let hints = found.hints.clone().unwrap_or_default();
    let zones = hints.for_zones.iter().flatten().map(|zone| Arc::from(&*zone.name));
    let nodes = hints.for_nodes.iter().flatten().map(|node| Arc::from(&*node.name));
    Ok(Some(Endpoint {
        address,
        node: found.node_name.as_deref().map(Arc::from),
        state,
        zones: zones.collect(),
        nodes: nodes.collect(),
    }))
}

/// Where a Service answers beside its `ClusterIP`. The API server takes addresses here that no pod's packet goes to by
/// way of a Service: these make no front, and the rest of the Service is as good as without them.
fn other_addresses<'a>(field: &str, texts: impl Iterator<Item = &'a str>) -> Result<Vec<IpAddr>, String> {
    let parsed = texts.map(|text| Ok(parse(field, text)?.to_canonical()));
    parsed
        .filter(|address| !address.as_ref().is_ok_and(is_special))
        .collect()
}

fn address(field: &str, text: &str) -> Result<IpAddr, String> {
    let address = parse(field, text)?;
    if is_special(&address) || address != address.to_canonical() {
        return Err(format!("{field}: {address} can be no Service's"));
    }
    Ok(address)
}

fn parse(field: &str, text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("{field}: {text:?} is not an IP address"))
}

fn is_special(address: &IpAddr) -> bool {
    address.is_unspecified() || address.is_loopback() || address.is_multicast()
}

fn port(field: &str, number: i32) -> Result<u16, String> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{field}: {number} is not in 1..=65535"))
}

fn protocol(field: &str, name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{field}: {other} is none of TCP, UDP and SCTP")),
    }
}
