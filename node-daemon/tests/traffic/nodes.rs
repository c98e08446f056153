// SPDX-License-Identifier: Apache-2.0
//! What the objects of Nodes say: behind whose addresses there are node ports, and in which zone this node is.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};

use k8s_openapi::api::core::v1::Node;
use wardline_node::watch::{ObjectKey, Seen, convert};

use crate::wire::{Cluster, Family, PORT, Plugin, connects, inside, listener, on_a_cluster};

const CLIENT: u8 = 2;
const A: u8 = 3;
const B: u8 = 4;
const NODE_PORT: u16 = 30_080;
const CLIENT_TO_A: &str = "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: a}}}]}]}";
/// So many connections to two backends would not all go to one.
const MANY: usize = 24;

/// A Node as the watch tells of it, with its addresses on the network outside.
fn tell_node(cluster: &mut Cluster, name: &str, host: u8, zone: &str) {
    let node: Node = serde_yaml::from_str(&format!(
        "{{metadata: {{name: {name}, uid: uid-of-{name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}, \
           status: {{addresses: [{{type: InternalIP, address: '{}'}}, {{type: InternalIP, address: '{}'}}]}}}}",
        Family::V4.outside(host),
        Family::V6.outside(host),
    ))
    .unwrap();
    cluster.tell(convert::node(&ObjectKey::of(&node), Seen::Here(node)));
}

/// The backends of the Service `web`, of both families, each with what else its endpoint says.
fn tell_backends(cluster: &mut Cluster, backends: &[(u8, &str)]) {
    for (family, address_type) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let endpoint = |(host, more): &(u8, &str)| format!("{{addresses: ['{}'], {more}}}", family.pod(*host));
        let endpoints: Vec<String> = backends.iter().map(endpoint).collect();
        let slice = format!(
            "{{metadata: {{labels: {{kubernetes.io/service-name: web}}}}, addressType: {address_type},
              ports: [{{port: {PORT}}}], endpoints: [{}]}}",
            endpoints.join(", ")
        );
        cluster.slice(&format!("web-{address_type}"), &slice);
    }
}

#[test]
fn node_ports_of_any_node_are_judged_by_their_backends() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        for (name, host) in [("client", CLIENT), ("a", A), ("b", B)] {
            cluster.pod(name, host);
        }
        tell_node(cluster, "node1", 1, "here");
        tell_node(cluster, "node2", 2, "there");
        // What listens there stands for what kube-proxy makes of the port.
        let listen = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, NODE_PORT)).unwrap();
        let _proxies = (listen(), inside("outside", listen));
        cluster.policy("p", CLIENT_TO_A);
        let service = format!(
            "{{spec: {{type: NodePort, clusterIPs: [10.96.0.10, 'fd00:96::10'],
               ports: [{{port: 80, nodePort: {NODE_PORT}}}]}}}}"
        );
        for (what, service, backends, at_own_node, at_another) in [
            (
                "no Service: a pod's own node is always allowed",
                None,
                &[][..],
                true,
                false,
            ),
            ("one that the policy admits", Some(&service), &[A][..], true, true),
            ("one that it does not", Some(&service), &[B], false, false),
            ("one of each", Some(&service), &[A, B], false, false),
        ] {
            if let Some(service) = service {
                cluster.service("web", service);
            }
            let backends: Vec<(u8, &str)> = backends.iter().map(|host| (*host, "nodeName: node1")).collect();
            tell_backends(cluster, &backends);
            cluster.apply();
            for family in Family::BOTH {
                for (node, expected) in [(1, at_own_node), (2, at_another)] {
                    let to = SocketAddr::new(family.outside(node), NODE_PORT);
                    assert_eq!(connects(Some("client"), to, expected), expected, "{what}: {to}");
                }
            }
        }
    });
}

#[test]
fn a_node_uses_the_backends_that_hints_keep_for_its_zone() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        for (name, host) in [("client", CLIENT), ("a", A), ("b", B)] {
            cluster.pod(name, host);
        }
        let listeners = [("a", A), ("b", B)].map(|(name, host)| (host, listener(name)));
        for (_, listener) in &listeners {
            listener.set_nonblocking(true).unwrap();
        }
        cluster.service(
            "web",
            "{spec: {clusterIPs: [10.96.0.10, 'fd00:96::10'], ports: [{port: 80}]}}",
        );
        let hint = |zone: &str| format!("nodeName: node1, hints: {{forZones: [{{name: {zone}}}]}}");
        tell_backends(cluster, &[(A, &hint("here")), (B, &hint("there"))]);
        for (zone, expected) in [("here", A), ("there", B)] {
            tell_node(cluster, "node1", 1, zone);
            cluster.apply();
            for front in ["10.96.0.10:80", "[fd00:96::10]:80"] {
                let mut served_by = BTreeSet::new();
                for _ in 0..MANY {
                    assert!(connects(Some("client"), front.parse().unwrap(), true));
                    let accepted = listeners.iter().filter(|(_, listener)| listener.accept().is_ok());
                    served_by.extend(accepted.map(|(host, _)| *host));
                }
                assert_eq!(served_by, BTreeSet::from([expected]), "{front} from the zone {zone}");
            }
        }
    });
}
