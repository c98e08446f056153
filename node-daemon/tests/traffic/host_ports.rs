// SPDX-License-Identifier: Apache-2.0
//! A port of the node that leads to a pod of it is that pod, not the node.

use std::net::{SocketAddr, TcpListener};

use wardline_node::index::{Event, Update};
use wardline_node::services::HostPort;
use wardline_policy::model::Protocol;

use crate::plugin::{ApiServer, Daemon, starting};
use crate::wire::{Cluster, Family, PORT, Plugin, connects, listener, on_a_cluster, pod_event, pod_gone, run};

const HOST_PORT: u16 = 8080;
/// Served by a process of the node.
const OF_NODE: u16 = 8081;
const WEB: u8 = 1;
const CLIENT: u8 = 2;
const GATEWAY: u8 = 254;
const DENY_ALL: &str = "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}";

fn to_app(app: &str) -> String {
    format!(
        "{{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress],
          egress: [{{to: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}], ports: [{{port: {PORT}}}]}}]}}"
    )
}

fn with_host_port(pod: Event) -> Event {
    let Event::Pod(pod, Update::Set(mut info)) = pod else {
        panic!("a pod is told");
    };
    info.host_ports = vec![HostPort {
        protocol: Protocol::Tcp,
        port: HOST_PORT,
        container_port: PORT,
        address: None,
    }];
    Event::Pod(pod, Update::Set(info))
}

/// As the plugin `portmap` does it: whatever comes to an address of the node. Masqueraded, so that on a bridge answers
/// come back by way of the node.
fn map_port() {
    for family in Family::BOTH {
        let (ip, pod) = (family.nft(), family.pod(WEB));
        let target = SocketAddr::new(pod, PORT);
        for command in [
            format!("add table {ip} portmap"),
            format!("add chain {ip} portmap pre {{ type nat hook prerouting priority dstnat; }}"),
            format!("add chain {ip} portmap post {{ type nat hook postrouting priority srcnat; }}"),
            format!("add rule {ip} portmap pre fib daddr type local tcp dport {HOST_PORT} dnat to {target}"),
            format!("add rule {ip} portmap post {ip} daddr {pod} ct status dnat masquerade"),
        ] {
            run("nft", &command);
        }
    }
}

fn unmap_port() {
    for family in Family::BOTH {
        run("nft", &format!("delete table {} portmap", family.nft()));
    }
}

/// Whether the client gets through to the node's port, at each of its addresses.
#[track_caller]
fn expect(port: u16, expected: bool) {
    for family in Family::BOTH {
        for address in [family.outside(1), family.pod(GATEWAY)] {
            let reached = connects(Some("client"), SocketAddr::new(address, port), expected);
            assert_eq!(reached, expected, "port {port} of {address}");
        }
    }
}

fn a_host_port_is_judged_as_its_pod(plugin: Plugin) {
    on_a_cluster(plugin, |cluster: &mut Cluster| {
        cluster.pod("client", CLIENT);
        cluster.wire("web", WEB);
        cluster.look();
        cluster.tell(with_host_port(pod_event("web", "{app: web}", WEB, "node1", "Running")));
        map_port();
        let _web = listener("web");
        let _of_node = TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, OF_NODE)).unwrap();
        cluster.apply();
        expect(HOST_PORT, true);
        for (policy, expected) in [
            (DENY_ALL.to_owned(), false),
            (to_app("web"), true),
            (to_app("other"), false),
        ] {
            cluster.policy("p", &policy);
            cluster.apply();
            expect(HOST_PORT, expected);
            expect(OF_NODE, true);
        }
        cluster.restart();
        expect(HOST_PORT, false);
        cluster.apply();
        expect(HOST_PORT, false);

        // The port is the node's own again.
        cluster.tell(pod_gone("web"));
        unmap_port();
        let _of_node = TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, HOST_PORT)).unwrap();
        cluster.apply();
        expect(HOST_PORT, true);
    });
}

#[test]
fn a_host_port_is_judged_as_its_pod_on_routed_links() {
    a_host_port_is_judged_as_its_pod(Plugin::Ptp);
}

#[test]
fn a_host_port_is_judged_as_its_pod_on_a_bridge() {
    a_host_port_is_judged_as_its_pod(Plugin::Bridge);
}

#[test]
fn the_host_port_of_a_pod_that_starts_is_judged_when_its_add_returns() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("client", CLIENT);
        cluster.policy("p", DENY_ALL);
        cluster.wire("web", WEB);
        let _web = listener("web");
        let daemon = Daemon::start(cluster, &ApiServer::default());
        daemon.tell(with_host_port(starting("web", "web")));
        daemon.must("ADD", "web", WEB);
        map_port();
        expect(HOST_PORT, false);
    });
}
