// SPDX-License-Identifier: Apache-2.0
//! Policies that are rewritten as fast as the API server takes it, between two sets that say the same of some flows.
//!
//! Verdicts are judged, by what comes through and by what the log says was denied. A datagram that a busy machine has
//! no room for is nobody's verdict, and only told.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;
use wardline_e2e::fence::Fences;
use wardline_e2e::logging;
use wardline_e2e::namespace::{TestNamespace, with_namespace_alone};
use wardline_e2e::records::Record;
use wardline_e2e::traffic::Protocol;

use crate::{lines, of_client};

/// Between messages of a flow.
const INTERVAL: Duration = Duration::from_millis(2);
const DURATION: Duration = Duration::from_secs(10);
const CLIENTS: [(&str, &str); 4] = [
    ("friend1", "node1"),
    ("friend2", "node2"),
    ("foe1", "node1"),
    ("foe2", "node2"),
];

/// Admits the friends and refuses the foes: by the names of pods, or by what is left and ranges of ports.
pub(crate) fn spec(set: usize) -> serde_json::Value {
    let ports = [
        json!([{"port": 8080}, {"port": 8080, "protocol": "UDP"}]),
        json!([{"port": 8000, "endPort": 8999}, {"protocol": "UDP", "port": 1, "endPort": 8080}]),
    ];
    let peers = [
        json!({"key": "app", "operator": "In", "values": ["friend1", "friend2"]}),
        json!({"key": "app", "operator": "NotIn", "values": ["foe1", "foe2"]}),
    ];
    json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchExpressions": [peers[set]]}}], "ports": ports[set]}],
    })
}

/// Stands beside the other in one of the sets only.
pub(crate) fn more() -> serde_json::Value {
    json!({
        "podSelector": {},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["friend1"]}]}}]}],
    })
}

pub(crate) async fn put(policies: &Api<NetworkPolicy>, name: &str, spec: serde_json::Value) -> Result<()> {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    });
    let parameters = PatchParams::apply("wardline-e2e").force();
    let patched = policies.patch(name, &parameters, &Patch::Apply(&object)).await;
    patched.with_context(|| format!("failed to apply NetworkPolicy {name}"))?;
    Ok(())
}

/// Returns how many requests changed something.
async fn rewrite(policies: &Api<NetworkPolicy>) -> Result<u32> {
    let (began, mut requests) = (Instant::now(), 0);
    while began.elapsed() < DURATION {
        put(policies, "web", spec(1)).await?;
        put(policies, "more", more()).await?;
        put(policies, "web", spec(0)).await?;
        let deleted = policies.delete("more", &DeleteParams::default()).await;
        deleted.context("failed to delete NetworkPolicy more")?;
        requests += 4;
    }
    Ok(requests)
}

/// New connections of every client, again and again: each has its verdict.
async fn connect(namespace: &TestNamespace) -> Result<u32> {
    let (began, mut attempts) = (Instant::now(), 0);
    while began.elapsed() < DURATION {
        let attempt = |client| namespace.attempt(client, "web", Protocol::Tcp);
        let made = tokio::try_join!(attempt("friend1"), attempt("friend2"), attempt("foe1"), attempt("foe2"))?;
        for admitted in [&made.0, &made.1] {
            ensure!(admitted.ok, "an admitted client was refused: {admitted:?}");
        }
        for refused in [&made.2, &made.3] {
            ensure!(refused.timed_out(), "a client was not refused: {refused:?}");
        }
        attempts += 4;
    }
    Ok(attempts)
}

#[tokio::test]
async fn flows_that_policies_agree_on_do_not_notice_that_they_are_rewritten() -> Result<()> {
    with_namespace_alone("rewritten", async |namespace: &TestNamespace| {
        let _logged = logging::on(&namespace.lab).await?;
        let fences = Fences::create(namespace).await?;
        namespace.server("web", "node1").await?;
        for (client, node) in CLIENTS {
            namespace.client(client, node).await?;
        }
        fences.ready().await?;
        // Open before there is a policy, the foes' too.
        let mut held = Vec::new();
        for (client, _) in CLIENTS {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                held.push((client, namespace.hold(client, "web", protocol, INTERVAL).await?));
            }
        }
        let policies: Api<NetworkPolicy> = Api::namespaced(namespace.lab.client().clone(), &namespace.name);
        put(&policies, "web", spec(0)).await?;
        let (refused, admitted): (Vec<_>, Vec<_>) = held.into_iter().partition(|(client, _)| client.starts_with("foe"));
        for (_, flow) in &refused {
            flow.until_stopped_beside(&admitted[0].1, 200).await?;
        }
        let before: Vec<usize> = refused.iter().map(|(_, flow)| flow.echoes()).collect();
        let (requests, attempts) = tokio::try_join!(rewrite(&policies), connect(namespace))?;
        let after: Vec<usize> = refused.iter().map(|(_, flow)| flow.echoes()).collect();
        ensure!(before == after, "echoes of refused flows: {before:?}, then {after:?}");
        let (mut messages, mut missing) = (0, 0_u64);
        for (client, flow) in admitted {
            let fared = flow.finish().await?;
            ensure!(fared.twice.is_empty(), "a flow of {client} was disturbed: {fared:?}");
            messages += fared.sent;
            missing += fared.missing.len() as u64;
        }
        check(&fences.settled_records().await?)?;
        // A machine with much to do loses datagrams; programs that are off, or rewrite wrongly, lose most.
        ensure!(
            missing * 20 <= messages,
            "{missing} of {messages} messages of flows that are admitted had no answer"
        );
        println!(
            "{requests} requests in {DURATION:?}, {messages} messages, {missing} without an answer, {attempts} attempts"
        );
        Ok(())
    })
    .await
}

/// Nothing of a friend was denied, foes were, and no record of either is missing.
fn check(records: &[Record]) -> Result<()> {
    for (client, _) in CLIENTS {
        let denied: Vec<_> = of_client(records, client)
            .into_iter()
            .filter(|record| record.disposition == "deny")
            .cloned()
            .collect();
        ensure!(
            denied.is_empty() == client.starts_with("friend"),
            "denied of {client}:\n{}",
            lines(&denied)
        );
    }
    Ok(())
}
