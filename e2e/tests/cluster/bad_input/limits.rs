// SPDX-License-Identifier: Apache-2.0
//! Policies that need more of a table than a namespace may take.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use wardline_e2e::cluster::Lab;
use wardline_e2e::namespace::{TestNamespace, with_namespace_alone};
use wardline_e2e::progress::wait_until;
use wardline_e2e::traffic::{Held, Protocol};
use wardline_e2e::wardline::is_true;

use super::{Bad, PATIENCE, condition, node_status};
use crate::WEB_TAKES_FRIENDS;

/// Often enough for a stop to show soon.
const INTERVAL: Duration = Duration::from_millis(100);
/// Ports that a rule lists: every other one, so that no range holds two.
const PORTS: u64 = 1400;
/// Exceptions of one policy: more than a namespace's share, and it has to fit into a request to etcd.
const EXCEPTIONS: u64 = 60_000;

/// A limit, and the rules of policies that together need just more than that, and each more than a namespace's share.
struct Row {
    limit: &'static str,
    rules: fn(u64) -> Vec<Value>,
}

const ROWS: [Row; 2] = [
    Row {
        limit: "rules",
        rules: addresses_times_ports,
    },
    Row {
        limit: "peers",
        rules: exceptions,
    },
];

/// One policy: addresses in a class each, times ports.
fn addresses_times_ports(limit: u64) -> Vec<Value> {
    let peers: Vec<Value> = (0..=limit / PORTS)
        .map(|n| json!({"ipBlock": {"cidr": format!("198.18.{}.{}/32", n / 256, n % 256)}}))
        .collect();
    let ports: Vec<Value> = (0..PORTS)
        .map(|n| json!({"protocol": "TCP", "port": 10_000 + 2 * n}))
        .collect();
    vec![json!({"from": peers, "ports": ports})]
}

/// Several policies, each a block less every other of some of its addresses.
fn exceptions(limit: u64) -> Vec<Value> {
    let excepted: Vec<String> = (0..=limit)
        .map(|n| 2 * n)
        .map(|n| format!("100.{}.{}.{}/32", 64 + (n >> 16), (n >> 8) & 255, n & 255))
        .collect();
    // In equal parts: a small last one would fit once the others gave way.
    let parts = excepted
        .len()
        .div_ceil(usize::try_from(EXCEPTIONS).unwrap_or(usize::MAX));
    excepted
        .chunks(excepted.len().div_ceil(parts))
        .map(|except| json!({"from": [{"ipBlock": {"cidr": "100.64.0.0/10", "except": except}}]}))
        .collect()
}

#[tokio::test]
async fn policies_that_would_overflow_a_table_give_way_alone() -> Result<()> {
    with_namespace_alone("overflow", async |namespace: &TestNamespace| {
        for server in ["web", "other"] {
            namespace.server(server, "node1").await?;
        }
        for client in ["friend2", "foe2"] {
            namespace.client(client, "node2").await?;
        }
        namespace.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.until_reach("foe2", "web", false).await?;
        let open = namespace.hold("friend2", "web", Protocol::Tcp, INTERVAL).await?;
        for row in &ROWS {
            overflow(namespace, row, &open).await?;
        }
        let fared = open.finish().await?;
        ensure!(
            fared.missing.is_empty() && fared.twice.is_empty(),
            "an open connection was disturbed: {fared:?}"
        );
        Ok(())
    })
    .await
}

async fn overflow(namespace: &TestNamespace, row: &Row, open: &Held) -> Result<()> {
    let lab = &namespace.lab;
    let dataplane = lab.get("wardline.io/v1alpha1", "Dataplane", "", "default").await?;
    let limit = dataplane.data["spec"]["limits"][row.limit].as_u64();
    let limit = limit.with_context(|| format!("failed to read spec.limits.{} of Dataplane default", row.limit))?;

    let policies: Api<NetworkPolicy> = Api::namespaced(lab.client().clone(), &namespace.name);
    let rules = (row.rules)(limit);
    // That they admit foe2 as well must not show.
    let admits = json!({"from": [{"podSelector": {"matchLabels": {"app": "foe2"}}}]});
    for (n, rule) in rules.iter().enumerate() {
        create(&policies, &name(row, n), &[&admits, rule]).await?;
    }
    for n in 0..rules.len() {
        until_named(namespace, row, &name(row, n), limit).await?;
    }
    let refused = namespace.attempt("foe2", "web", Protocol::Tcp).await?;
    ensure!(refused.timed_out(), "a part of the policy is in force: {refused:?}");
    let admitted = namespace.attempt("friend2", "web", Protocol::Tcp).await?;
    ensure!(admitted.ok, "what was in force is so no more: {admitted:?}");
    open.until_echoes(3).await?;
    // Everything else goes on.
    namespace.apply(NOBODY_TO_OTHER).await?;
    namespace.until_reach("foe2", "other", false).await?;
    delete(&policies, "nobody-to-other").await?;
    namespace.until_reach("foe2", "other", true).await?;

    for n in 0..rules.len() {
        delete(&policies, &name(row, n)).await?;
    }
    until_recovered(lab).await?;
    let refused = namespace.attempt("foe2", "web", Protocol::Tcp).await?;
    ensure!(refused.timed_out(), "{refused:?}");
    Ok(())
}

const NOBODY_TO_OTHER: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody-to-other}
spec: {podSelector: {matchLabels: {app: other}}, policyTypes: [Ingress]}
";

async fn delete(policies: &Api<NetworkPolicy>, name: &str) -> Result<()> {
    let deleted = policies.delete(name, &DeleteParams::default()).await;
    deleted.with_context(|| format!("failed to delete NetworkPolicy {name}"))?;
    Ok(())
}

fn name(row: &Row, n: usize) -> String {
    format!("many-{}-{n}", row.limit)
}

/// Created, not applied: nobody needs to know who owns each of the many fields.
async fn create(policies: &Api<NetworkPolicy>, name: &str, rules: &[&Value]) -> Result<()> {
    let policy = json!({
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": rules},
    });
    let policy = serde_json::from_value(policy).context("failed to build a NetworkPolicy")?;
    let created = policies.create(&PostParams::default(), &policy).await;
    created.with_context(|| format!("failed to create NetworkPolicy {name}"))?;
    Ok(())
}

/// Waits until the policy's node names it, the limit that stands in its way and its size, and refuses nothing else.
async fn until_named(namespace: &TestNamespace, row: &Row, policy: &str, limit: u64) -> Result<()> {
    let lab = &namespace.lab;
    let node = lab.node("node1")?;
    let bad = Bad {
        kind: "NetworkPolicy",
        namespace: &namespace.name,
        name: policy,
    };
    let beginning = format!("limits.{} is {limit}, a namespace may take {}", row.limit, limit / 4);
    let what = format!("DataplaneNode node1 to name {policy} for limits.{}", row.limit);
    wait_until(&what, PATIENCE, async || {
        let message = bad.named_by(node, lab).await?.context("it is not named")?;
        ensure!(message.starts_with(&beginning), "it says {message}");
        let status = node_status(lab, node).await?;
        ensure!(is_true(&status, "Ready"), "node1 is not Ready: {status}");
        let [degraded, reason, message] = condition(&status, "Degraded");
        ensure!(
            [degraded, reason] == ["True", "InvalidObjects"],
            "Degraded is {degraded} {reason}: {message}"
        );
        Ok(Some(()))
    })
    .await?;
    let refused = node.metrics().await?.sum("wardline_change_refused", &[]);
    ensure!(refused == Some(0.0), "wardline_change_refused is {refused:?}");
    // The other node runs none of the policies' pods.
    let other = bad.named_by(lab.node("node2")?, lab).await?;
    ensure!(other.is_none(), "node2 names it: {other:?}");
    Ok(())
}

async fn until_recovered(lab: &Lab) -> Result<()> {
    let node = lab.node("node1")?;
    wait_until("node1 to recover", PATIENCE, async || {
        let status = node_status(lab, node).await?;
        let degraded = condition(&status, "Degraded");
        ensure!(degraded[0] == "False", "Degraded is {degraded:?}");
        let refused = node.metrics().await?.sum("wardline_change_refused", &[]);
        ensure!(refused == Some(0.0), "wardline_change_refused is {refused:?}");
        Ok(is_true(&status, "Ready").then_some(()))
    })
    .await
}
