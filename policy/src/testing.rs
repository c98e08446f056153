// SPDX-License-Identifier: Apache-2.0
//! A small cluster and a short spelling of flows and verdicts, so that tests read as tables.
//!
//! ```text
//! "db < web tcp/80"            at shop/db, ingress from shop/web's first address
//! "web > 192.0.2.1 udp/53"     at shop/web, egress to an address
//! "db < ops/prom icmp"         a pod of another namespace, a protocol without ports
//!
//! "not isolated"   "allow p[0,2] q[1]"   "deny p q"
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod as PodObject};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::convert;
use crate::evaluate::{Flow, Verdict};
use crate::model::{Direction, ObjectName, Objects, Policy};
use crate::tables::PolicyRef;

/// Where all pods but `shop/far` run.
pub(crate) const NODE: &str = "n1";

/// Pods in short: namespace/name, labels, addresses, ports as `name:port/protocol`.
const PODS: &[(&str, &str, &str, &str)] = &[
    ("shop/web", "{app: web, tier: front}", "10.0.1.1 fd00:1::1", ""),
    (
        "shop/api",
        "{app: api, tier: back}",
        "10.0.1.2 fd00:1::2",
        "http:8080/TCP dns:53/UDP",
    ),
    (
        "shop/db",
        "{app: db, tier: back}",
        "10.0.1.3 fd00:1::3",
        "http:80/TCP http:81/TCP http:53/UDP",
    ),
    ("shop/bare", "{}", "10.0.1.4", "http:8000/TCP"),
    ("shop/far", "{app: web}", "10.0.2.1", ""),
    ("ops/prom", "{app: prom}", "10.0.3.1 fd00:3::1", "http:9090/TCP"),
    ("ops/web", "{app: web}", "10.0.3.2", ""),
    ("unknown/web", "{app: web}", "10.0.4.1", "http:8080/TCP"),
    ("shop/old", "{app: web}", "10.0.9.9", ""),
    ("shop/new", "{app: api}", "10.0.9.9", "http:8080/TCP"),
    ("shop/starting", "{app: db}", "", ""),
];

/// The pods above, a pod on the host network, and these policies of namespace `shop`: a map from name to spec.
pub(crate) fn cluster(policies: &str) -> Objects {
    let mut objects = Objects::default();
    for namespace in [
        "{name: shop, labels: {team: sales, kubernetes.io/metadata.name: shop}}",
        "{name: ops, labels: {team: ops, cost: low, kubernetes.io/metadata.name: ops}}",
    ] {
        let object: Namespace = serde_yaml::from_str(&format!("metadata: {namespace}")).unwrap();
        let labels = object.metadata.labels.unwrap_or_default();
        objects.namespaces.insert(object.metadata.name.unwrap().into(), labels);
    }
    for (name, labels, addresses, ports) in PODS {
        let node = if *name == "shop/far" { "n2" } else { NODE };
        objects
            .pods
            .extend(pod(name, labels, addresses, ports, &format!("nodeName: {node}")));
    }
    let host = pod(
        "shop/host",
        "{app: web}",
        "10.0.0.1",
        "",
        "nodeName: n1, hostNetwork: true",
    );
    objects.pods.extend(host);

    let specs: BTreeMap<String, NetworkPolicySpec> = serde_yaml::from_str(policies).unwrap();
    for (name, spec) in specs {
        let metadata = ObjectMeta {
            namespace: Some("shop".to_owned()),
            name: Some(name),
            generation: Some(1),
            ..ObjectMeta::default()
        };
        let policy = Policy::try_from(&NetworkPolicy {
            metadata,
            spec: Some(spec),
        })
        .unwrap();
        objects.policies.insert(policy.name.clone(), Arc::new(policy));
    }
    objects
}

fn pod(
    name: &str,
    labels: &str,
    addresses: &str,
    ports: &str,
    spec: &str,
) -> Option<(ObjectName, Arc<crate::model::Pod>)> {
    let (namespace, name) = name.split_once('/').unwrap();
    let addresses: Vec<String> = addresses
        .split_whitespace()
        .map(|ip| format!("{{ip: '{ip}'}}"))
        .collect();
    let ports: Vec<String> = ports
        .split_whitespace()
        .map(|port| {
            let (name, rest) = port.split_once(':').unwrap();
            let (port, protocol) = rest.split_once('/').unwrap();
            format!("{{name: {name}, containerPort: {port}, protocol: {protocol}}}")
        })
        .collect();
    let object: PodObject = serde_yaml::from_str(&format!(
        "{{metadata: {{namespace: {namespace}, name: {name}, labels: {labels}}}, \
           spec: {{{spec}, containers: [{{name: c, ports: [{}]}}]}}, \
           status: {{phase: Running, podIPs: [{}]}}}}",
        ports.join(", "),
        addresses.join(", ")
    ))
    .unwrap();
    convert::pod(&object).map(|(name, pod)| (name, Arc::new(pod)))
}

/// Reads a flow such as `db < web tcp/80`.
pub(crate) fn flow(objects: &Objects, text: &str) -> Flow {
    let [endpoint, arrow, remote, service] = text.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{text:?} is not a flow")
    };
    let direction = match arrow {
        "<" => Direction::Ingress,
        ">" => Direction::Egress,
        _ => panic!("{text:?} has no direction"),
    };
    let (protocol, port) = service.split_once('/').unwrap_or((service, "0"));
    let protocol = match protocol {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" => 1,
        _ => panic!("{text:?} has no protocol"),
    };
    let remote = remote
        .parse::<IpAddr>()
        .unwrap_or_else(|_| objects.pods[&name(remote)].addresses[0]);
    Flow {
        endpoint: name(endpoint),
        direction,
        remote,
        protocol,
        port: port.parse().unwrap(),
    }
}

pub(crate) fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap_or(("shop", text));
    ObjectName::new(namespace, name)
}

/// Spells a verdict such as `allow p[0,2] q[1]`.
pub(crate) fn spell(verdict: &Verdict) -> String {
    let name = |policy: &PolicyRef| policy.name.name.to_string();
    match verdict {
        Verdict::NotIsolated => "not isolated".to_owned(),
        Verdict::DefaultDeny(policies) => policies.iter().fold("deny".to_owned(), |mut text, policy| {
            write!(text, " {}", name(policy)).unwrap();
            text
        }),
        Verdict::Allow(attribution) => attribution
            .policies
            .iter()
            .fold("allow".to_owned(), |mut text, allowing| {
                let rules: Vec<String> = allowing.rules.iter().map(u32::to_string).collect();
                write!(text, " {}[{}]", name(&allowing.policy), rules.join(",")).unwrap();
                text
            }),
    }
}
