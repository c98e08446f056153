// SPDX-License-Identifier: Apache-2.0
//! Something stands in the place of a node's policy log: that is told wherever one would look, no verdict changes, and
//! the log goes on by itself. Meanwhile its lines go to the daemon's standard output too.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, LogParams};
use serde_json::json;
use wardline_e2e::cluster::{Lab, LabNode, SYSTEM_NAMESPACE};
use wardline_e2e::namespace::{TestNamespace, with_namespace_alone};
use wardline_e2e::progress::wait_until;
use wardline_e2e::traffic::Protocol;
use wardline_e2e::{dataplane, logging, wardline};

use crate::bad_input::condition;
use crate::daemon::check_balance;
use crate::{WEB_TAKES_FRIENDS, of_client};

const LOG: &str = "/var/log/network/policy_action.log";
/// Named as a file that was rotated, so that its records are found.
const MOVED: &str = "/var/log/network/policy_action-2026-01-01T00-00-00.000000.log";
/// A DataplaneNode is written at most every ten seconds, and the operator looks at most once a second.
const PATIENCE: Duration = Duration::from_mins(1);
const ATTEMPTS: usize = 5;

#[tokio::test]
async fn a_log_that_cannot_be_written_is_told_and_goes_on_by_itself() -> Result<()> {
    with_namespace_alone("stopped", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let copied = json!({"logging": {"stdout": true}});
        let alone = json!({"logging": {"stdout": false}});
        dataplane::while_patched(lab, &copied, &alone, async || {
            wardline::wait_ready(lab).await?;
            Box::pin(taken(namespace)).await
        })
        .await
    })
    .await
}

async fn taken(namespace: &TestNamespace) -> Result<()> {
    let lab = &namespace.lab;
    let _logged = logging::on(lab).await?;
    namespace.server("web", "node1").await?;
    namespace.client("friend1", "node1").await?;
    namespace.client("foe1", "node1").await?;
    namespace.ready().await?;
    namespace.apply(WEB_TAKES_FRIENDS).await?;
    namespace.until_reach("foe1", "web", false).await?;
    let node = lab.node("node1")?;
    attempt(namespace).await?;
    namespace
        .records_until("records of friend1", |records| {
            of_client(records, "friend1").len() == ATTEMPTS
        })
        .await?;

    node.run(&["busybox", "mv", LOG, MOVED])?;
    node.run(&["busybox", "mkdir", LOG])?;
    let told = while_taken(namespace, node).await;
    node.run(&["busybox", "rmdir", LOG])?;
    told?;
    until_stopped(lab, node, false).await?;
    let records = namespace
        .records_until("records of friend1", |records| {
            of_client(records, "friend1").len() >= 2 * ATTEMPTS
        })
        .await?;
    let records = of_client(&records, "friend1");
    ensure!(records.len() == 2 * ATTEMPTS, "{} records", records.len());
    check_balance(node).await?;

    let wanted: Vec<&str> = records.iter().map(|record| record.line.as_str()).collect();
    wait_until("all records in the daemon's standard output", PATIENCE, async || {
        let printed = output(lab, node).await?;
        let is_printed = |line: &&str| printed.lines().any(|printed| printed == *line);
        Ok(wanted.iter().all(is_printed).then_some(()))
    })
    .await
}

async fn while_taken(namespace: &TestNamespace, node: LabNode<'_>) -> Result<()> {
    attempt(namespace).await?;
    until_stopped(&namespace.lab, node, true).await?;
    let refused = namespace.attempt("foe1", "web", Protocol::Tcp).await?;
    ensure!(refused.timed_out(), "foe1 was not refused by silence: {refused:?}");
    Ok(())
}

/// Connections of a client that is admitted.
async fn attempt(namespace: &TestNamespace) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let attempt = namespace.attempt("friend1", "web", Protocol::Tcp).await?;
        ensure!(attempt.ok, "friend1 was refused: {attempt:?}");
    }
    Ok(())
}

/// Waits until metric, node and Dataplane say that the node's log is not written, or that it is.
async fn until_stopped(lab: &Lab, node: LabNode<'_>, stopped: bool) -> Result<()> {
    wait_until("wardline_log_stopped", PATIENCE, async || {
        let metric = node.metrics().await?.sum("wardline_log_stopped", &[]);
        Ok((metric == Some(f64::from(u8::from(stopped)))).then_some(()))
    })
    .await?;
    for (kind, name, expected) in [
        (
            "DataplaneNode",
            node.spec.name,
            ["PolicyLogStopped", "it is a directory"],
        ),
        ("Dataplane", "default", ["NodesDegraded", node.spec.name]),
    ] {
        wait_until(&format!("{kind} {name} to say it: {stopped}"), PATIENCE, async || {
            let object = lab.get("wardline.io/v1alpha1", kind, "", name).await?;
            let [status, reason, message] = condition(&object.data["status"], "Degraded");
            ensure!(
                status != "True" || (reason == expected[0] && message.contains(expected[1])),
                "{reason}: {message}"
            );
            Ok(((status == "True") == stopped).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// What a node's daemon has printed since it started.
async fn output(lab: &Lab, node: LabNode<'_>) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
    let selected = ListParams::default()
        .labels("app.kubernetes.io/name=wardline-node")
        .fields(&format!("spec.nodeName={}", node.spec.name));
    let listed = pods.list(&selected).await.context("failed to list the daemons")?;
    let pod = listed.items.first().and_then(|pod| pod.metadata.name.as_deref());
    let pod = pod.with_context(|| format!("failed to find the daemon of {}", node.spec.name))?;
    let printed = pods.logs(pod, &LogParams::default()).await;
    printed.with_context(|| format!("failed to read what {pod} has printed"))
}
