// SPDX-License-Identifier: Apache-2.0
//! Policies that the API server would refuse, written past it into etcd.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::try_join_all;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use wardline_e2e::layout::ETCD;
use wardline_e2e::namespace::{TestNamespace, with_namespace};
use wardline_e2e::traffic::Protocol;

use super::{Bad, plain_client, until_counted};

const API_VERSION: &str = "networking.k8s.io/v1";
/// Often enough for a stop to show soon.
const INTERVAL: Duration = Duration::from_millis(100);

/// What the API server would refuse, and the field in which.
struct Row {
    /// Part of the names of pods and policies.
    name: &'static str,
    /// The first ingress rule.
    rule: &'static str,
    field: &'static str,
}

const ROWS: [Row; 3] = [
    Row {
        name: "operator",
        rule: r#"{"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "Near", "values": ["friend"]}]}}]}"#,
        field: "spec.ingress[0].from[0].podSelector.matchExpressions[0].operator",
    },
    Row {
        name: "port",
        rule: r#"{"ports": [{"protocol": "TCP", "port": ""}]}"#,
        field: "spec.ingress[0].ports[0].port",
    },
    Row {
        name: "protocol",
        rule: r#"{"ports": [{"protocol": "QUIC", "port": 8080}]}"#,
        field: "spec.ingress[0].ports[0].protocol",
    },
];

/// Has a good policy, which is overwritten.
fn kept(row: &Row) -> String {
    format!("kept-{}", row.name)
}

/// Has never had any but the bad policy.
fn fresh(row: &Row) -> String {
    format!("fresh-{}", row.name)
}

/// Admits `clients` to the server of the same name.
fn admits(server: &str, clients: &str) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {server}}}
spec:
  podSelector: {{matchLabels: {{app: {server}}}}}
  policyTypes: [Ingress]
  ingress: [{{from: [{{podSelector: {{matchExpressions: [{{key: app, operator: In, values: [{clients}]}}]}}}}]}}]
"
    )
}

#[tokio::test]
async fn policies_that_the_api_server_would_refuse_change_nothing_that_is_in_force() -> Result<()> {
    with_namespace("badpolicy", async |namespace: &TestNamespace| {
        for row in &ROWS {
            namespace.server(&kept(row), "node1").await?;
            namespace.server(&fresh(row), "node2").await?;
        }
        namespace.server("other", "node1").await?;
        namespace.client("friend", "node2").await?;
        namespace.client("foe", "node1").await?;
        namespace.ready().await?;
        until_counted(&namespace.lab, "NetworkPolicy", 0).await?;
        for row in &ROWS {
            namespace.apply(&admits(&kept(row), "friend")).await?;
            namespace.until_reach("foe", &kept(row), false).await?;
        }
        let open = namespace
            .hold("friend", &kept(&ROWS[0]), Protocol::Tcp, INTERVAL)
            .await?;

        let since = Timestamp::now();
        for row in &ROWS {
            overwrite(namespace, row).await?;
            create(namespace, row).await?;
        }
        check_named(namespace, since).await?;
        check_outcomes(namespace).await?;
        open.until_echoes(3).await?;
        // Everything else goes on.
        namespace.apply(&admits("other", "friend")).await?;
        namespace.until_reach("foe", "other", false).await?;
        namespace.until_reach("friend", "other", true).await?;

        let since = Timestamp::now();
        mend(namespace, since).await?;
        let fared = open.finish().await?;
        ensure!(
            fared.missing.is_empty() && fared.twice.is_empty(),
            "an open connection was disturbed: {fared:?}"
        );
        Ok(())
    })
    .await
}

/// Each is named by both nodes, with its field, in an Event of its own, and in the metrics.
async fn check_named(namespace: &TestNamespace, since: Timestamp) -> Result<()> {
    let lab = &namespace.lab;
    for row in &ROWS {
        for name in [kept(row), fresh(row)] {
            let bad = bad(namespace, &name);
            bad.until_named(lab, row.field).await?;
            let event = bad.until_event(lab, "InvalidNetworkPolicy", row.field, since).await?;
            let policy = lab.get(API_VERSION, "NetworkPolicy", &namespace.name, &name).await?;
            let regarding = event.regarding.unwrap_or_default();
            ensure!(
                regarding.uid == policy.metadata.uid && regarding.namespace == policy.metadata.namespace,
                "the Event is not on the object: {regarding:?}"
            );
            ensure!(event.type_.as_deref() == Some("Warning"), "type {:?}", event.type_);
        }
    }
    until_counted(lab, "NetworkPolicy", 2 * ROWS.len()).await?;
    // By now both nodes have been heard: two of them made one Event.
    for row in &ROWS {
        for name in [kept(row), fresh(row)] {
            let events = bad(namespace, &name).events(lab, "InvalidNetworkPolicy", since).await?;
            ensure!(
                events.len() == 1 && events[0].series.is_none(),
                "not one Event on {name}: {events:?}"
            );
        }
    }
    Ok(())
}

/// A good policy that was overwritten still admits whom it admitted; a pod that never had one is isolated.
async fn check_outcomes(namespace: &TestNamespace) -> Result<()> {
    let attempts = ROWS.iter().flat_map(|row| {
        [
            ("friend", kept(row), true),
            ("foe", kept(row), false),
            ("friend", fresh(row), false),
            ("foe", fresh(row), false),
        ]
    });
    try_join_all(attempts.map(async |(client, server, admitted)| {
        let attempt = namespace.attempt(client, &server, Protocol::Tcp).await?;
        ensure!(
            attempt.ok == admitted && (admitted || attempt.timed_out()),
            "{client} -> {server}: {attempt:?}"
        );
        Ok(())
    }))
    .await?;
    Ok(())
}

/// Updates the overwritten ones through the API, deletes the others, and waits until all is as if nothing had been.
async fn mend(namespace: &TestNamespace, since: Timestamp) -> Result<()> {
    let lab = &namespace.lab;
    for row in &ROWS {
        namespace.apply(&admits(&kept(row), "friend, foe")).await?;
        lab.delete(API_VERSION, "NetworkPolicy", &namespace.name, &fresh(row))
            .await?;
    }
    for row in &ROWS {
        namespace.until_reach("foe", &kept(row), true).await?;
        namespace.until_reach("foe", &fresh(row), true).await?;
    }
    for row in &ROWS {
        bad(namespace, &kept(row)).until_forgotten(lab).await?;
        bad(namespace, &fresh(row)).until_forgotten(lab).await?;
        let event = bad(namespace, &kept(row))
            .until_event(lab, "ValidNetworkPolicy", "", since)
            .await?;
        ensure!(event.type_.as_deref() == Some("Normal"), "type {:?}", event.type_);
    }
    until_counted(lab, "NetworkPolicy", 0).await
}

fn bad<'a>(namespace: &'a TestNamespace, name: &'a str) -> Bad<'a> {
    Bad {
        kind: "NetworkPolicy",
        namespace: &namespace.name,
        name,
    }
}

/// Puts the bad rule into the stored policy, as if the API server had taken the update.
async fn overwrite(namespace: &TestNamespace, row: &Row) -> Result<()> {
    let name = kept(row);
    let policy = namespace
        .lab
        .get(API_VERSION, "NetworkPolicy", &namespace.name, &name)
        .await?;
    let mut stored = serde_json::to_value(&policy).context("failed to encode a NetworkPolicy")?;
    let generation = policy.metadata.generation.unwrap_or_default() + 1;
    stored["metadata"]["generation"] = json!(generation);
    stored["spec"]["ingress"][0] = rule(row)?;
    store(namespace, &name, stored).await
}

/// Stores a policy that has been bad from the start.
async fn create(namespace: &TestNamespace, row: &Row) -> Result<()> {
    let name = fresh(row);
    let policy = json!({
        "apiVersion": API_VERSION,
        "kind": "NetworkPolicy",
        "metadata": {
            "name": name,
            "namespace": namespace.name,
            "uid": format!("{}-{name}", namespace.name),
            "generation": 1,
            "creationTimestamp": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        },
        "spec": {"podSelector": {"matchLabels": {"app": name}}, "policyTypes": ["Ingress"], "ingress": [rule(row)?]},
    });
    store(namespace, &name, policy).await
}

fn rule(row: &Row) -> Result<Value> {
    serde_json::from_str(row.rule).with_context(|| format!("failed to parse {}", row.rule))
}

/// Writes to etcd through its JSON gateway. The API server keeps objects in another encoding, and reads this one too.
async fn store(namespace: &TestNamespace, name: &str, mut policy: Value) -> Result<()> {
    if let Some(metadata) = policy["metadata"].as_object_mut() {
        // That is etcd's revision, and not part of what is stored.
        metadata.remove("resourceVersion");
    }
    let key = format!("/registry/networkpolicies/{}/{name}", namespace.name);
    let put = json!({"key": STANDARD.encode(&key), "value": STANDARD.encode(policy.to_string())});
    let request = http::Request::post("/v3/kv/put")
        .header("content-type", "application/json")
        .body(put.to_string().into_bytes())
        .context("failed to build a request")?;
    let put = plain_client(ETCD)?.request::<Value>(request).await;
    put.with_context(|| format!("failed to write {key} to etcd"))?;
    Ok(())
}
