// SPDX-License-Identifier: Apache-2.0
//! Changes of the Dataplane come to one node after the other, and are taken back where a node is not well with them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use wardline_e2e::cluster::{Lab, SYSTEM_NAMESPACE};
use wardline_e2e::dataplane;
use wardline_e2e::images;
use wardline_e2e::layout::{CRASHING_IMAGE, OPEN_IMAGE};
use wardline_e2e::namespace::{TestNamespace, with_namespace_alone};
use wardline_e2e::progress::{step, wait_until};
use wardline_e2e::traffic::Protocol;
use wardline_e2e::wardline::is_true;

use crate::WEB_TAKES_FRIENDS;

const PATIENCE: Duration = Duration::from_mins(3);
/// How often held connections say something.
const BEAT: Duration = Duration::from_millis(100);

/// A change that no node can be well with, how it is undone, and what is said of it.
struct Bad {
    what: &'static str,
    spec: Value,
    restore: Value,
    said: &'static str,
}

fn bad() -> [Bad; 4] {
    let image = |name: &str| {
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        json!({"daemon": {"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}}})
    };
    let rollout = json!({"progressDeadlineSeconds": 30});
    let restored = json!({"progressDeadlineSeconds": null});
    [
        Bad {
            what: "an image that is not there",
            spec: json!({"daemon": {"image": {"tag": "not-there", "pullPolicy": "Never"}}}),
            restore: json!({"daemon": {"image": null}}),
            said: "ErrImageNeverPull",
        },
        Bad {
            what: "an image that crashes",
            spec: image(CRASHING_IMAGE),
            restore: json!({"daemon": {"image": null}}),
            said: "CrashLoopBackOff: exit code 127: wardline-node: applet not found",
        },
        Bad {
            what: "an image that lets everything through",
            spec: image(OPEN_IMAGE),
            restore: json!({"daemon": {"image": null}}),
            said: "SelfTestFailed: a packet of a stranger",
        },
        Bad {
            what: "a daemon that is never ready",
            // TEST-NET-3: nobody answers there.
            spec: json!({"apiServer": {"host": "203.0.113.1"}, "daemon": {"rollout": rollout}}),
            restore: json!({"apiServer": {"host": null}, "daemon": {"rollout": restored}}),
            said: "not well after 30 s",
        },
    ]
}

#[tokio::test]
async fn a_change_that_a_node_is_not_well_with_is_taken_back() -> Result<()> {
    with_namespace_alone("rollback", async |namespace: &TestNamespace| {
        namespace.server("web", "node1").await?;
        namespace.client("friend1", "node1").await?;
        namespace.client("foe2", "node2").await?;
        namespace.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.until_reach("foe2", "web", false).await?;
        let held = namespace.hold("friend1", "web", Protocol::Tcp, BEAT).await?;
        images::import_broken(namespace.lab.layout())?;
        for bad in bad() {
            step(&format!("  {}", bad.what));
            stays_shut(namespace, taken_back(namespace, bad)).await?;
        }
        held.finish().await?;
        Ok(())
    })
    .await
}

async fn taken_back(namespace: &TestNamespace, bad: Bad) -> Result<()> {
    let lab = &namespace.lab;
    let is_said = |text: &str| text.contains(bad.said);
    let before = read_status(lab).await?;
    let good = before["rollout"]["goodRevision"].clone();
    ensure!(
        good == before["rollout"]["revision"],
        "not all is well before: {before}"
    );
    let pods = daemons(lab).await?;
    let mut restore = bad.restore;
    // Where the API server is, the chart said.
    if let Some(host) = restore.pointer_mut("/apiServer/host") {
        let object = lab.get("wardline.io/v1alpha1", "Dataplane", "", "default").await?;
        *host = object.data["spec"]["apiServer"]["host"].clone();
    }
    dataplane::while_patched(lab, &bad.spec, &restore, async || {
        let status = wait_until("the change to be taken back", PATIENCE, async || {
            let status = read_status(lab).await?;
            ensure!(
                reason(&status, "Ready") == "RolledBack",
                "{}",
                message(&status, "Progressing")
            );
            Ok(Some(status))
        })
        .await?;
        let failed = &status["rollout"]["failed"];
        let said = failed["message"].as_str().unwrap_or_default();
        ensure!(is_said(said) && failed["node"] == "node1", "the status says {failed}");
        ensure!(
            status["rollout"]["revision"] == good && reason(&status, "Stalled") == "RolledBack",
            "{status}"
        );
        ensure!(is_true(&status, "Available"), "{status}");
        // Its spec is as it was written, and not tried again.
        let generation = failed["generation"].clone();
        ensure!(status["observedGeneration"] == generation, "{status}");
        let now = daemons(lab).await?;
        ensure!(
            now["node2"] == pods["node2"],
            "node2 was not touched: {pods:?}, {now:?}"
        );
        ensure!(now["node1"] != pods["node1"], "node1 was: {pods:?}, {now:?}");
        let told = events(lab, "RolledBack").await?;
        ensure!(
            told.iter().any(|note| note.contains("node1") && is_said(note)),
            "the Events say {told:?}"
        );
        namespace.until_reach("friend1", "web", true).await
    })
    .await
}

/// Whether what policy forbids is forbidden all the while.
async fn stays_shut<T>(namespace: &TestNamespace, meanwhile: impl Future<Output = Result<T>>) -> Result<T> {
    let attempts = async {
        loop {
            let attempt = namespace.attempt("foe2", "web", Protocol::Tcp).await?;
            ensure!(attempt.timed_out(), "a client was not refused: {attempt:?}");
        }
    };
    tokio::select! {
        result = meanwhile => result,
        opened = attempts => opened,
    }
}

#[tokio::test]
async fn a_node_that_is_down_holds_up_no_change_and_gets_its_turn() -> Result<()> {
    with_namespace_alone("down", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let before = daemons(lab).await?;
        let node = lab.node("node2")?;
        let kubelet = node.run(&["busybox", "pidof", "kubelet"])?;
        let stopped = node.stop(kubelet.trim())?;
        wait_until("node2 to be down", PATIENCE, async || {
            let node = lab.get("v1", "Node", "", "node2").await?;
            Ok((!is_true(&node.data["status"], "Ready")).then_some(()))
        })
        .await?;
        let (debug, info) = (
            json!({"daemon": {"logLevel": "Debug"}}),
            json!({"daemon": {"logLevel": null}}),
        );
        dataplane::while_patched(lab, &debug, &info, async || {
            let status = wait_until("node1 to have the change", PATIENCE, async || {
                let status = read_status(lab).await?;
                let progressing = reason(&status, "Progressing");
                ensure!(progressing == "RolledOut", "{}", message(&status, "Progressing"));
                Ok(Some(status))
            })
            .await?;
            ensure!(
                status["nodes"]["updated"] == 1 && reason(&status, "Ready") == "NodesNotReady",
                "{status}"
            );
            ensure!(daemons(lab).await?["node2"] == before["node2"], "node2 was not touched");
            drop(stopped);
            wait_until("node2 to have it too", PATIENCE, async || {
                let status = read_status(lab).await?;
                let is_there = status["nodes"]["updated"] == 2 && is_true(&status, "Ready");
                ensure!(is_there, "{}", message(&status, "Progressing"));
                Ok(Some(()))
            })
            .await
        })
        .await
    })
    .await
}

async fn read_status(lab: &Lab) -> Result<Value> {
    let dataplane = lab.get("wardline.io/v1alpha1", "Dataplane", "", "default").await?;
    let status = dataplane.data["status"].clone();
    let generation = dataplane.metadata.generation;
    ensure!(
        status["observedGeneration"].as_i64() == generation,
        "generation {generation:?} is not observed yet"
    );
    Ok(status)
}

fn condition<'a>(status: &'a Value, type_: &str, field: &str) -> &'a str {
    let conditions = status["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|one| one["type"] == type_));
    found.and_then(|one| one[field].as_str()).unwrap_or_default()
}

fn reason<'a>(status: &'a Value, type_: &str) -> &'a str {
    condition(status, type_, "reason")
}

fn message<'a>(status: &'a Value, type_: &str) -> &'a str {
    condition(status, type_, "message")
}

/// The uid of the daemon's pod on each node.
async fn daemons(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let pods: Api<Pod> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
    let ours = ListParams::default().labels("app.kubernetes.io/name=wardline-node");
    let pods = pods.list(&ours).await.context("failed to list the daemon's pods")?;
    let of_node = |pod: Pod| Some((pod.spec.as_ref()?.node_name.clone()?, pod.uid()?));
    Ok(pods.items.into_iter().filter_map(of_node).collect())
}

/// The notes of Events on the Dataplane.
async fn events(lab: &Lab, reason: &str) -> Result<Vec<String>> {
    let events: Api<Event> = Api::namespaced(lab.client().clone(), "default");
    let about = ListParams::default().fields(&format!("regarding.kind=Dataplane,reason={reason}"));
    let events = events.list(&about).await.context("failed to list Events")?;
    Ok(events.items.into_iter().filter_map(|event| event.note).collect())
}
