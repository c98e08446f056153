// SPDX-License-Identifier: Apache-2.0
//! What always passes is proven, never believed of an address: a pod's own node is a socket of it.

use std::net::{IpAddr, SocketAddr};

use crate::wire::{Cluster, Family, PORT, Plugin, connects, listener, on_a_cluster, run};

/// A port of the node that leads to the pod `web`, as kube-proxy makes one for outside: the source becomes the node's.
const NODE_PORT: u16 = 30_000;
const WEB: u8 = 1;
const CLIENT: u8 = 2;
const DENY_ALL: &str = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}";

/// Node port and masquerade for both families.
fn open_node_port() {
    for family in Family::BOTH {
        let ip = family.nft();
        let (node, pod) = (family.outside(1), family.pod(WEB));
        let target = SocketAddr::new(pod, PORT);
        for command in [
            format!("add table {ip} nat"),
            format!("add chain {ip} nat pre {{ type nat hook prerouting priority dstnat; }}"),
            format!("add chain {ip} nat post {{ type nat hook postrouting priority srcnat; }}"),
            format!("add rule {ip} nat pre {ip} daddr {node} tcp dport {NODE_PORT} dnat to {target}"),
            format!("add rule {ip} nat post {ip} daddr {pod} tcp dport {PORT} ct status dnat masquerade"),
        ] {
            run("nft", &command);
        }
    }
}

const ITS_NODE: &str = "its node";
const POD: &str = "a pod";
const POD_BY_NODE: &str = "a pod by the node's port";
const OUTSIDE: &str = "outside";
const OUTSIDE_BY_NODE: &str = "outside by the node's port";

/// Those and no others get through to `web`: its node, a pod beside it, outside directly and by the node's port.
#[track_caller]
fn admits(family: Family, expected: &[&str]) {
    let web = SocketAddr::new(family.pod(WEB), PORT);
    let node_port = SocketAddr::new(family.outside(1), NODE_PORT);
    let ways = [
        (ITS_NODE, None, web),
        (POD, Some("client"), web),
        (POD_BY_NODE, Some("client"), node_port),
        (OUTSIDE, Some("outside"), web),
        (OUTSIDE_BY_NODE, Some("outside"), node_port),
    ];
    for (who, from, to) in ways {
        let expected = expected.contains(&who);
        assert_eq!(connects(from, to, expected), expected, "{who}, {family:?}");
    }
}

/// The address that masqueraded traffic wears at `web`, as the log says.
fn masqueraded_source(cluster: &mut Cluster, family: Family) -> IpAddr {
    let records = cluster.life().records();
    let denied = |record: &&serde_json::Value| {
        let source = record["connection"]["src_ip"].as_str().unwrap_or_default();
        record["disposition"] == "deny"
            && record["reason"] == "default-deny"
            && source.contains(':') == (family == Family::V6)
            && source != family.outside(2).to_string()
            && source != family.pod(CLIENT).to_string()
    };
    let record = records.iter().find(denied);
    let record = record.unwrap_or_else(|| panic!("nothing masqueraded was denied: {records:?}"));
    record["connection"]["src_ip"].as_str().unwrap().parse().unwrap()
}

fn only_the_nodes_own_sockets_are_the_node(plugin: Plugin) {
    on_a_cluster(plugin, |cluster| {
        cluster.pod("web", WEB);
        cluster.pod("client", CLIENT);
        open_node_port();
        cluster.apply();
        let _listener = listener("web");
        for family in Family::BOTH {
            admits(family, &[ITS_NODE, POD, POD_BY_NODE, OUTSIDE, OUTSIDE_BY_NODE]);
        }
        cluster.policy("web", DENY_ALL);
        cluster.apply();
        for family in Family::BOTH {
            admits(family, &[ITS_NODE]);
            let source = masqueraded_source(cluster, family);
            // What it shows is what a policy can admit, since nothing tells more.
            let whole = if source.is_ipv4() { 32 } else { 128 };
            let admit = format!(
                "{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{ipBlock: {{cidr: '{source}/{whole}'}}}}]}}]}}"
            );
            cluster.policy("web", &admit);
            cluster.apply();
            admits(family, &[ITS_NODE, POD_BY_NODE, OUTSIDE_BY_NODE]);
            cluster.policy("web", DENY_ALL);
            cluster.apply();
        }
    });
}

#[test]
fn only_the_nodes_own_sockets_are_the_node_on_routed_links() {
    only_the_nodes_own_sockets_are_the_node(Plugin::Ptp);
}

#[test]
fn only_the_nodes_own_sockets_are_the_node_on_a_bridge() {
    only_the_nodes_own_sockets_are_the_node(Plugin::Bridge);
}

fn a_pod_reaches_its_own_node_and_nothing_else(plugin: Plugin) {
    on_a_cluster(plugin, |cluster| {
        cluster.pod("web", WEB);
        cluster.pod("client", CLIENT);
        cluster.policy("web", DENY_ALL);
        cluster.apply();
        let _of_node = std::net::TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
        let _others = ["client", "outside"].map(listener);
        for family in Family::BOTH {
            for (whom, address, expected) in [
                ("its own node", family.outside(1), true),
                ("its own node by the gateway", family.pod(254), true),
                ("another machine", family.outside(2), false),
                ("a pod beside it", family.pod(CLIENT), false),
            ] {
                let reached = connects(Some("web"), SocketAddr::new(address, PORT), expected);
                assert_eq!(reached, expected, "{whom}, {family:?}");
            }
        }
    });
}

#[test]
fn a_pod_reaches_its_own_node_on_routed_links() {
    a_pod_reaches_its_own_node_and_nothing_else(Plugin::Ptp);
}

#[test]
fn a_pod_reaches_its_own_node_on_a_bridge() {
    a_pod_reaches_its_own_node_and_nothing_else(Plugin::Bridge);
}
