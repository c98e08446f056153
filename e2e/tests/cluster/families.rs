// SPDX-License-Identifier: Apache-2.0
//! Both families of addresses, on both plugins: node1's pods have a link each, node2's share a bridge.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use wardline_e2e::namespace::{PORT, TestNamespace, with_namespace};
use wardline_e2e::traffic::{Attempt, Protocol};

const SERVERS_TAKE_FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: servers-take-friends}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [server1, server2]}]}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [friend1, friend2]}]}}]
      ports: [{protocol: TCP, port: 8080}, {protocol: UDP, port: 8080}]
";

const DENY_ALL: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
";

const SERVERS: [(&str, &str); 2] = [("server1", "node1"), ("server2", "node2")];

/// The addresses of a pod, after checking that it has both families.
async fn both_ips(namespace: &TestNamespace, pod: &str) -> Result<Vec<IpAddr>> {
    let ips = namespace.ips(pod).await?;
    let families: Vec<bool> = ips.iter().map(IpAddr::is_ipv6).collect();
    ensure!(families == [false, true], "{pod} has the addresses {ips:?}");
    Ok(ips)
}

#[tokio::test]
async fn policies_hold_for_both_families_on_both_plugins() -> Result<()> {
    let clients = [("friend1", true), ("friend2", true), ("foe1", false), ("foe2", false)];
    with_namespace("families", async |namespace: &TestNamespace| {
        for (server, node) in SERVERS {
            namespace.server(server, node).await?;
        }
        for (client, _) in clients {
            let node = if client.ends_with('1') { "node1" } else { "node2" };
            namespace.client(client, node).await?;
        }
        namespace.ready().await?;
        namespace.apply(SERVERS_TAKE_FRIENDS).await?;
        for (server, _) in SERVERS {
            namespace.until_reach("foe1", server, false).await?;
            namespace.until_reach("friend1", server, true).await?;
        }
        let (pods, mut attempts) = (namespace.pods(), Vec::new());
        for (server, _) in SERVERS {
            for ip in both_ips(namespace, server).await? {
                for (client, admitted) in clients {
                    for protocol in [Protocol::Tcp, Protocol::Udp] {
                        attempts.push((client, SocketAddr::new(ip, PORT), protocol, admitted));
                    }
                }
            }
        }
        let made = attempts.into_iter().map(async |(client, server, protocol, admitted)| {
            let attempt = Attempt::make(&pods, client, server, protocol).await?;
            let expected = if admitted { attempt.ok } else { attempt.timed_out() };
            ensure!(expected, "{client} -> {server} over {protocol:?}: {attempt:?}");
            Ok(())
        });
        try_join_all(made).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn under_deny_all_a_pod_is_reached_by_its_own_node_only() -> Result<()> {
    with_namespace("probes", async |namespace: &TestNamespace| {
        namespace.apply(DENY_ALL).await?;
        namespace.client("client", "node1").await?;
        for (server, node) in SERVERS {
            namespace.probed_server(server, node).await?;
        }
        // The kubelet's probes alone make the servers ready.
        namespace.ready().await?;
        for (server, home) in SERVERS {
            namespace.until_reach("client", server, false).await?;
            for ip in both_ips(namespace, server).await? {
                for node in namespace.lab.nodes() {
                    let netns = node.spec.netns;
                    let server = SocketAddr::new(ip, PORT);
                    let attempt = Attempt::make_in(namespace.lab.layout(), netns, server, Protocol::Tcp).await?;
                    let expected = if node.spec.name == home {
                        attempt.ok
                    } else {
                        attempt.timed_out()
                    };
                    ensure!(expected, "{} -> {server}: {attempt:?}", node.spec.name);
                }
            }
        }
        Ok(())
    })
    .await
}
