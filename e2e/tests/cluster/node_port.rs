// SPDX-License-Identifier: Apache-2.0
//! Traffic from outside that comes by a node's port and wears the node's address is not the node.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use wardline_e2e::cluster::LabNode;
use wardline_e2e::layout::OUTSIDE;
use wardline_e2e::namespace::{PORT, TestNamespace, with_namespace};
use wardline_e2e::traffic::{Attempt, Protocol};

const DENY_INGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-ingress}
spec:
  podSelector: {}
  policyTypes: [Ingress]
";
const NODE_PORT: u16 = 31_999;
const TABLE: &str = "inet node-port-test";
const SERVERS: [(&str, &str); 2] = [("server1", "node1"), ("server2", "node2")];

/// The node's addresses, one a family.
fn addresses(node: LabNode<'_>) -> Result<[IpAddr; 2]> {
    let parse = |text: &str| text.parse().with_context(|| format!("failed to parse {text}"));
    Ok([parse(node.spec.address)?, parse(node.spec.address6)?])
}

/// What kube-proxy does for a `NodePort` Service: the pod's address instead of the node's, and the node's as the source.
fn open(node: LabNode<'_>, pod: &[IpAddr]) -> Result<()> {
    let mut rules = vec![
        format!("add table {TABLE}"),
        format!("add chain {TABLE} pre {{ type nat hook prerouting priority dstnat; }}"),
        format!("add chain {TABLE} post {{ type nat hook postrouting priority srcnat - 1; }}"),
    ];
    for (at, pod) in addresses(node)?.into_iter().zip(pod) {
        let ip = if pod.is_ipv4() { "ip" } else { "ip6" };
        let to = SocketAddr::new(*pod, PORT);
        rules.push(format!(
            "add rule {TABLE} pre {ip} daddr {at} tcp dport {NODE_PORT} dnat {ip} to {to}"
        ));
        rules.push(format!(
            "add rule {TABLE} post {ip} daddr {pod} tcp dport {PORT} ct status dnat masquerade"
        ));
    }
    node.run(&["nft", &rules.join("\n")]).map(drop)
}

fn close(node: LabNode<'_>) -> Result<()> {
    // Adding first makes it no error if it is not there.
    node.run(&["nft", &format!("add table {TABLE}; delete table {TABLE}")])
        .map(drop)
}

async fn from_outside(namespace: &TestNamespace, node: LabNode<'_>, admitted: bool) -> Result<()> {
    for address in addresses(node)? {
        let to = SocketAddr::new(address, NODE_PORT);
        let attempt = Attempt::make_in(namespace.lab.layout(), OUTSIDE.netns, to, Protocol::Tcp).await?;
        let expected = if admitted { attempt.ok } else { attempt.timed_out() };
        ensure!(expected, "outside -> {to} (admitted: {admitted}): {attempt:?}");
    }
    Ok(())
}

#[tokio::test]
async fn masqueraded_traffic_from_outside_is_not_the_node() -> Result<()> {
    with_namespace("node-port", async |namespace: &TestNamespace| {
        for node in namespace.lab.nodes() {
            close(node)?;
        }
        let tested = denied_from_outside(namespace).await;
        for node in namespace.lab.nodes() {
            close(node)?;
        }
        tested
    })
    .await
}

async fn denied_from_outside(namespace: &TestNamespace) -> Result<()> {
    for (server, node) in SERVERS {
        namespace.server(server, node).await?;
    }
    namespace.client("client", "node1").await?;
    namespace.ready().await?;
    for (server, node) in SERVERS {
        let node = namespace.lab.node(node)?;
        open(node, &namespace.ips(server).await?)?;
        from_outside(namespace, node, true).await?;
    }
    namespace.apply(DENY_INGRESS).await?;
    for (server, node) in SERVERS {
        let node = namespace.lab.node(node)?;
        namespace.until_reach("client", server, false).await?;
        from_outside(namespace, node, false).await?;
        // What the node itself sends wears the same address, and passes.
        for ip in namespace.ips(server).await? {
            let to = SocketAddr::new(ip, PORT);
            let attempt = Attempt::make_in(namespace.lab.layout(), node.spec.netns, to, Protocol::Tcp).await?;
            ensure!(attempt.ok, "{} -> {to}: {attempt:?}", node.spec.name);
        }
    }
    Ok(())
}
