// SPDX-License-Identifier: Apache-2.0
//! Policies that need more than a table holds.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use wardline_e2e::cluster::Lab;
use wardline_e2e::namespace::{TestNamespace, with_namespace};
use wardline_e2e::progress::wait_until;
use wardline_e2e::traffic::Protocol;
use wardline_e2e::wardline::is_true;

use super::{PATIENCE, condition, node_status};
use crate::WEB_TAKES_FRIENDS;

/// Often enough for a stop to show soon.
const INTERVAL: Duration = Duration::from_millis(100);
/// Ports that a rule of the policy lists: every other one, so that no range holds two.
const PORTS: u64 = 1400;

#[tokio::test]
async fn a_rule_table_that_would_overflow_is_refused_whole() -> Result<()> {
    with_namespace("overflow", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        namespace.server("web", "node1").await?;
        for client in ["friend2", "foe2"] {
            namespace.client(client, "node2").await?;
        }
        namespace.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.until_reach("foe2", "web", false).await?;
        let open = namespace.hold("friend2", "web", Protocol::Tcp, INTERVAL).await?;
        let dataplane = lab.get("wardline.io/v1alpha1", "Dataplane", "", "default").await?;
        let limit = dataplane.data["spec"]["limits"]["rules"].as_u64();
        let limit = limit.context("failed to read spec.limits.rules of Dataplane default")?;

        let policies: Api<NetworkPolicy> = Api::namespaced(lab.client().clone(), &namespace.name);
        let policy = serde_json::from_value(too_large(limit)).context("failed to build a NetworkPolicy")?;
        policies
            .create(&PostParams::default(), &policy)
            .await
            .context("failed to create NetworkPolicy too-large")?;
        until_refused(lab, limit).await?;
        // The first rule of the policy admits this one; it is not in force, and what was, is.
        let refused = namespace.attempt("foe2", "web", Protocol::Tcp).await?;
        ensure!(refused.timed_out(), "a part of the policy is in force: {refused:?}");
        let admitted = namespace.attempt("friend2", "web", Protocol::Tcp).await?;
        ensure!(admitted.ok, "what was in force is so no more: {admitted:?}");
        open.until_echoes(3).await?;
        // The other node runs none of the policy's pods.
        let other = node_status(lab, lab.node("node2")?).await?;
        ensure!(is_true(&other, "Ready"), "node2 is not Ready: {other}");

        policies
            .delete("too-large", &DeleteParams::default())
            .await
            .context("failed to delete NetworkPolicy too-large")?;
        until_recovered(lab).await?;
        let refused = namespace.attempt("foe2", "web", Protocol::Tcp).await?;
        ensure!(refused.timed_out(), "{refused:?}");
        let fared = open.finish().await?;
        ensure!(
            fared.missing.is_empty() && fared.twice.is_empty(),
            "an open connection was disturbed: {fared:?}"
        );
        Ok(())
    })
    .await
}

/// A policy that needs just more than `limit` rules: addresses in one class each, times ports.
fn too_large(limit: u64) -> Value {
    let addresses = limit / PORTS + 1;
    let peers: Vec<Value> = (0..addresses)
        .map(|n| json!({"ipBlock": {"cidr": format!("198.18.{}.{}/32", n / 256, n % 256)}}))
        .collect();
    let ports: Vec<Value> = (0..PORTS)
        .map(|n| json!({"protocol": "TCP", "port": 10_000 + 2 * n}))
        .collect();
    json!({
        "metadata": {"name": "too-large"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": "foe2"}}}]},
                {"from": peers, "ports": ports},
            ],
        },
    })
}

/// Waits until the node says that it refuses the change, which limit stands in its way, its size and what is needed.
async fn until_refused(lab: &Lab, limit: u64) -> Result<()> {
    let node = lab.node("node1")?;
    let beginning = format!("limits.rules is {limit}, and ");
    wait_until("DataplaneNode node1 to name limits.rules", PATIENCE, async || {
        let status = node_status(lab, node).await?;
        let ready = condition(&status, "Ready");
        let [degraded, reason, message] = condition(&status, "Degraded");
        ensure!(ready[..2] == ["False", "ChangeRefused"], "Ready is {ready:?}");
        ensure!(
            [degraded, reason] == ["True", "ChangeRefused"],
            "Degraded is {degraded} {reason}: {message}"
        );
        let rest = message.split_once(&beginning).map(|(_, rest)| rest);
        let needed = rest.and_then(|rest| rest.split_once(" entries are needed"));
        let needed: u64 = needed.with_context(|| format!("it says {message}"))?.0.parse()?;
        ensure!(needed > limit, "it says {message}");
        Ok(Some(()))
    })
    .await?;
    let refused = node.metrics().await?.sum("wardline_change_refused", &[]);
    ensure!(refused == Some(1.0), "wardline_change_refused is {refused:?}");
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
