// SPDX-License-Identifier: Apache-2.0
//! Whole reconciliations against an API server that remembers what it was sent.

mod removal;
mod rollout;

use std::sync::Arc;
use std::time::Instant;

use kube::core::DeserializeGuard;
use serde_json::{Value, json};
use wardline_crds::Dataplane;

use super::apply::ORPHANED;
use super::reconcile;
use crate::context::{Context, lock};
use crate::controller::Done;
use crate::error::Category;
use crate::testing::{Cached, FakeApi, Sent, failure, fleet, report, rolled_out};

const FINALIZERS: [&str; 2] = ["wardline.io/nodes", "wardline.io/daemons"];

fn dataplane(spec: &Value, status: &Value) -> Arc<DeserializeGuard<Dataplane>> {
    let mut object = json!({
        "apiVersion": "wardline.io/v1alpha1", "kind": "Dataplane",
        "metadata": {"name": "default", "uid": "dp", "generation": 2, "finalizers": FINALIZERS}, "spec": spec,
    });
    if !status.is_null() {
        object["status"] = status.clone();
    }
    Arc::new(serde_json::from_value(object).unwrap())
}

fn patched_status(sent: &[Sent]) -> Value {
    sent.iter().rfind(|sent| sent.path.ends_with("/status")).unwrap().body["status"].clone()
}

fn condition(status: &Value, type_: &str) -> String {
    let found = status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == type_)
        .unwrap();
    format!(
        "{}/{}",
        found["status"].as_str().unwrap(),
        found["reason"].as_str().unwrap()
    )
}

fn condition_message(status: &Value, type_: &str) -> String {
    let mut conditions = status["conditions"].as_array().unwrap().iter();
    conditions.find(|c| c["type"] == type_).unwrap()["message"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// The operator after it, and the revision that belongs to `{}`.
async fn first_install(api: &FakeApi) -> (Arc<Context>, String) {
    let context = api.context(Cached::default().caches());
    assert_eq!(
        reconcile(dataplane(&json!({}), &Value::Null), Arc::clone(&context))
            .await
            .unwrap(),
        Done::Ok
    );
    let sent = api.take();
    (context, revision(&config_map(&sent)))
}

/// The ConfigMap among what was sent.
fn config_map(sent: &[Sent]) -> Value {
    let found = sent
        .iter()
        .find(|sent| sent.method == "PATCH" && sent.path.contains("/configmaps/"));
    found.unwrap().body.clone()
}

fn revision(config_map: &Value) -> String {
    let name = config_map["metadata"]["name"].as_str().unwrap();
    name.strip_prefix("wardline-node-").unwrap().to_owned()
}

/// A ConfigMap as it is cached.
fn cached(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "wardline-system"}})
}

#[tokio::test]
async fn the_first_time_everything_is_applied_in_order() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 0));
    let context = api.context(Cached::default().caches());
    reconcile(dataplane(&json!({}), &Value::Null), context).await.unwrap();
    let sent = api.take();
    let summaries: Vec<String> = sent.iter().map(Sent::summary).collect();
    assert_eq!(summaries.len(), 4, "{summaries:?}");
    assert!(
        summaries[0].starts_with("PATCH configmaps/wardline-node-"),
        "{summaries:?}"
    );
    assert_eq!(
        summaries[1..],
        [
            "PATCH daemonsets/wardline-node",
            "EVENT DaemonSetApplied",
            "PATCH default/status"
        ]
    );
    let volume = &sent[1].body["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"];
    assert_eq!(volume, &sent[0].body["metadata"]["name"]);
    for sent in &sent[..2] {
        assert_eq!(
            sent.body["metadata"]["ownerReferences"],
            Value::Null,
            "nobody takes it with the Dataplane"
        );
    }
}

#[tokio::test]
async fn nothing_is_sent_when_nothing_changed() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 1));
    let (context, revision) = first_install(&api).await;
    let caches = Cached {
        config_maps: vec![cached(&format!("wardline-node-{revision}"))],
        ..fleet(&[("node1", &revision)])
    };
    let context = api.context_after(caches.caches(), &context);
    reconcile(dataplane(&json!({}), &Value::Null), Arc::clone(&context))
        .await
        .unwrap();
    let sent = api.take();
    let status = patched_status(&sent);
    assert_eq!(
        sent.iter().map(Sent::summary).collect::<Vec<_>>(),
        ["PATCH default/status", "EVENT Ready"]
    );
    assert_eq!(condition(&status, "Ready"), "True/Ready");

    reconcile(dataplane(&json!({}), &status), context).await.unwrap();
    assert_eq!(api.summaries(), Vec::<String>::new());
}

/// Labels are no part of an object's generation.
#[tokio::test]
async fn a_label_that_somebody_takes_off_is_put_back() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 1));
    let (context, revision) = first_install(&api).await;
    for (missing, is_applied) in [(None, false), (Some("app.kubernetes.io/part-of"), true)] {
        let mut caches = Cached {
            config_maps: vec![cached(&format!("wardline-node-{revision}"))],
            ..fleet(&[("node1", &revision)])
        };
        if let (Some(label), Some(daemon_set)) = (missing, &mut caches.daemon_set) {
            daemon_set["metadata"]["labels"]
                .as_object_mut()
                .unwrap()
                .remove(label)
                .unwrap();
        }
        let context = api.context_after(caches.caches(), &context);
        reconcile(dataplane(&json!({}), &Value::Null), context).await.unwrap();
        let sent = api.summaries();
        assert_eq!(
            sent.contains(&"PATCH daemonsets/wardline-node".to_owned()),
            is_applied,
            "{sent:?}"
        );
    }
}

#[tokio::test]
async fn a_degraded_node_is_named() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 2));
    let (context, revision) = first_install(&api).await;
    let mut caches = fleet(&[("node1", &revision), ("node2", &revision)]);
    // The last one was left behind by a daemon that does not run there any more.
    caches.nodes.push(report("node9", &revision));
    for node in &mut caches.nodes[1..] {
        node["status"]["conditions"].as_array_mut().unwrap().push(json!({
            "type": "Degraded", "status": "True", "reason": "TableFull", "message": "rules: 262144 of 262144",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }));
    }
    let context = api.context_after(caches.caches(), &context);
    reconcile(dataplane(&json!({}), &Value::Null), context).await.unwrap();
    let sent = api.take();
    let status = patched_status(&sent);
    assert_eq!(
        status["nodes"],
        json!({"desired": 2, "updated": 2, "ready": 2, "degraded": 1})
    );
    assert_eq!(status["version"], "0.1.0");
    assert_eq!(condition(&status, "Degraded"), "True/NodesDegraded");
    assert_eq!(condition(&status, "Ready"), "False/NodesDegraded");
    let event = sent
        .iter()
        .find(|sent| sent.summary() == "EVENT NodesDegraded")
        .unwrap();
    assert_eq!(event.body["note"], "node2: TableFull: rules: 262144 of 262144");
    assert_eq!(event.body["type"], "Warning");
}

#[tokio::test]
async fn a_refused_spec_leaves_the_daemon_set_alone() {
    let api = FakeApi::default();
    let caches = || fleet(&[("node1", "old"), ("node2", "old")]).caches();
    let spec = json!({"logging": {"file": {"maxSize": "1"}}});
    let done = reconcile(dataplane(&spec, &Value::Null), api.context(caches()))
        .await
        .unwrap();
    assert_eq!(done, Done::Refused);
    let sent = api.take();
    assert_eq!(
        sent.iter().map(Sent::summary).collect::<Vec<_>>(),
        ["PATCH default/status", "EVENT InvalidDataplane"]
    );
    let status = patched_status(&sent);
    assert_eq!(condition(&status, "Degraded"), "True/InvalidDataplane");
    assert_eq!(condition(&status, "Available"), "True/Enforced");
    let message = &status["conditions"][0]["message"];
    assert!(
        message
            .as_str()
            .unwrap()
            .starts_with("failed to validate spec.logging.file.maxSize: "),
        "{message}"
    );

    reconcile(dataplane(&spec, &status), api.context(caches()))
        .await
        .unwrap();
    assert_eq!(api.summaries(), Vec::<String>::new());
}

#[tokio::test]
async fn an_object_that_does_not_decode_is_told_once_and_touches_nothing() {
    let spec = json!({"policy": {"enforcement": 7}});
    let stored = json!({
        "apiVersion": "wardline.io/v1alpha1", "kind": "Dataplane",
        "metadata": {"name": "default", "uid": "dp", "generation": 2}, "spec": spec,
    });
    let api = FakeApi::default().answer("/dataplanes/default", 200, stored);
    let caches = Cached {
        daemon_set: Some(rolled_out(1, 2)),
        ..Cached::default()
    };
    let context = api.context(caches.caches());
    for round in 0..2 {
        let done = reconcile(dataplane(&spec, &Value::Null), Arc::clone(&context))
            .await
            .unwrap();
        assert_eq!(done, Done::Refused);
        let sent = api.take();
        let summaries: Vec<String> = sent.iter().map(Sent::summary).collect();
        if round == 0 {
            assert_eq!(
                summaries,
                [
                    "GET dataplanes/default",
                    "EVENT InvalidDataplane",
                    "PATCH default/status"
                ]
            );
            let status = patched_status(&sent);
            assert_eq!(condition(&status, "Degraded"), "True/InvalidDataplane");
            let message = status["conditions"][0]["message"].as_str().unwrap();
            assert!(
                message.starts_with("failed to decode Dataplane default: spec.policy.enforcement: "),
                "{message}"
            );
        } else {
            assert_eq!(summaries, ["GET dataplanes/default", "PATCH default/status"]);
        }
    }
    // Mended, and broken again in the same way: the same Event once more.
    context.succeeded("Dataplane/default");
    reconcile(dataplane(&spec, &Value::Null), context).await.unwrap();
    // The same Event, of which it is the second.
    let sent = api.take();
    assert!(sent[1].summary().starts_with("PATCH events/default."), "{sent:?}");
    assert_eq!(sent[1].body["series"]["count"], 2);
}

#[tokio::test]
async fn a_failure_to_apply_is_told() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 403, failure(403, "no right to patch"));
    let context = api.context(Cached::default().caches());
    let error = reconcile(dataplane(&json!({}), &Value::Null), context)
        .await
        .unwrap_err();
    assert_eq!(error.category(), Category::Forbidden);
    assert_eq!(
        error.to_string(),
        "failed to apply DaemonSet wardline-system/wardline-node: no right to patch"
    );
    let status = patched_status(&api.take());
    assert_eq!(condition(&status, "Degraded"), "True/ApplyFailed");
}

#[tokio::test]
async fn an_api_server_that_is_away_is_no_fault_of_the_object() {
    for code in [409, 429, 503] {
        let api = FakeApi::default().answer("/daemonsets/wardline-node", code, failure(code, "later"));
        let context = api.context(Cached::default().caches());
        reconcile(dataplane(&json!({}), &Value::Null), context)
            .await
            .unwrap_err();
        let sent = api.summaries();
        assert_eq!(
            sent.last().unwrap(),
            "PATCH daemonsets/wardline-node",
            "{code}: {sent:?}"
        );
    }
}

#[tokio::test]
async fn config_maps_that_no_pod_mounts_are_deleted() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(2, 2));
    let caches = Cached {
        config_maps: ["old", "older", "good"]
            .map(|name| cached(&format!("wardline-node-{name}")))
            .into(),
        daemon_set: Some(rolled_out(2, 2)),
        ..fleet(&[("node1", "old"), ("node2", "old")])
    };
    let status = json!({"rollout": {"revision": "new", "goodRevision": "good"}});
    let context = api.context(caches.caches());
    let long_ago = Instant::now().checked_sub(2 * ORPHANED).unwrap();
    let done = reconcile(dataplane(&json!({}), &status), Arc::clone(&context))
        .await
        .unwrap();
    assert_eq!(done, Done::Again(ORPHANED));
    assert!(
        !api.summaries().iter().any(|sent| sent.starts_with("DELETE configmaps")),
        "not yet"
    );
    lock(&context.orphans).insert("wardline-node-older".into(), long_ago);
    reconcile(dataplane(&json!({}), &status), context).await.unwrap();
    let deleted: Vec<String> = api
        .summaries()
        .into_iter()
        .filter(|sent| sent.starts_with("DELETE configmaps"))
        .collect();
    assert_eq!(deleted, ["DELETE configmaps/wardline-node-older"]);
}

#[tokio::test]
async fn a_config_map_that_may_not_be_deleted_stops_nothing_and_is_tried_again() {
    let api = FakeApi::default()
        .answer("/daemonsets/wardline-node", 200, rolled_out(2, 1))
        .answer(
            "/configmaps/wardline-node-older",
            403,
            failure(403, "no right to delete"),
        );
    let caches = Cached {
        config_maps: vec![cached("wardline-node-older")],
        ..fleet(&[("node1", "old")])
    };
    let context = api.context(caches.caches());
    let long_ago = Instant::now().checked_sub(2 * ORPHANED).unwrap();
    lock(&context.orphans).insert("wardline-node-older".into(), long_ago);
    let done = reconcile(dataplane(&json!({}), &Value::Null), Arc::clone(&context))
        .await
        .unwrap();
    assert!(
        api.summaries()
            .contains(&"DELETE configmaps/wardline-node-older".to_owned())
    );
    assert!(matches!(done, Done::Again(_)), "{done:?}");
    let tried = lock(&context.orphans)["wardline-node-older"];
    assert!(tried > long_ago, "not with each look");
}

fn replaced(sent: &[Sent]) -> Vec<String> {
    let pods = sent
        .iter()
        .filter(|sent| sent.method == "DELETE" && sent.path.contains("/pods/"));
    pods.map(|sent| {
        let uid = sent.body["preconditions"]["uid"].as_str().unwrap();
        format!("{} {uid}", sent.summary())
    })
    .collect()
}
