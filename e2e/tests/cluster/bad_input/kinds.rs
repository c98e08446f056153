// SPDX-License-Identifier: Apache-2.0
//! Whatever kind of object a node cannot use, the operator tells it at the object itself.
//!
//! The API server lets few such objects through, so here the word is put into a node's mouth: what is tested is the
//! operator, and its right to look at objects of each kind. Meanwhile the node tells of nothing else: no other test may
//! need that.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use wardline_e2e::namespace::{TestNamespace, with_namespace_alone};
use wardline_e2e::progress::wait_until;

use super::{Bad, PATIENCE};

const CAUSE: &str = "a test says so";
const NODE: &str = "node1";
const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: odd}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: odd}
addressType: IPv4
endpoints: []
";

#[tokio::test]
async fn what_a_node_cannot_use_is_told_at_objects_of_each_kind() -> Result<()> {
    with_namespace_alone("kinds", async |namespace: &TestNamespace| {
        let since = Timestamp::now();
        namespace.apply(OBJECTS).await?;
        namespace.client("odd", NODE).await?;
        let within = |kind, name| Bad {
            kind,
            namespace: &namespace.name,
            name,
        };
        let of_the_cluster = |kind, name| Bad {
            kind,
            namespace: "",
            name,
        };
        let all = [
            ("discovery.k8s.io/v1", within("EndpointSlice", "odd")),
            ("v1", within("Pod", "odd")),
            ("v1", within("Service", "odd")),
            ("v1", of_the_cluster("Namespace", &namespace.name)),
            ("v1", of_the_cluster("Node", "node2")),
        ];
        let told = told(namespace, &all, since).await;
        say(namespace, &[]).await?;
        told
    })
    .await
}

async fn told(namespace: &TestNamespace, all: &[(&str, Bad<'_>)], since: Timestamp) -> Result<()> {
    let lab = &namespace.lab;
    for (version, bad) in all {
        let reason = format!("Invalid{}", bad.kind);
        let event = wait_until(&format!("an Event {reason} on {bad:?}"), PATIENCE, async || {
            // The daemon may have written over it.
            say(namespace, all).await?;
            Ok(bad.events(lab, &reason, since).await?.pop())
        })
        .await?;
        let object = lab.get(version, bad.kind, bad.namespace, bad.name).await?;
        let regarding = event.regarding.context("the Event regards nothing")?;
        ensure!(
            regarding.uid == object.metadata.uid && event.note == Some(format!("{NODE}: {CAUSE}")),
            "the Event is not on {bad:?}: {regarding:?}"
        );
    }
    Ok(())
}

/// Lets the node name these.
async fn say(namespace: &TestNamespace, all: &[(&str, Bad<'_>)]) -> Result<()> {
    let objects: Vec<_> = all
        .iter()
        .map(|(_, bad)| json!({"kind": bad.kind, "namespace": bad.namespace, "name": bad.name, "message": CAUSE}))
        .collect();
    let request = http::Request::patch(format!("/apis/wardline.io/v1alpha1/dataplanenodes/{NODE}/status"))
        .header("content-type", "application/merge-patch+json")
        .body(serde_json::to_vec(&json!({"status": {"invalidObjects": objects}}))?)?;
    namespace.lab.client().request_text(request).await?;
    Ok(())
}
