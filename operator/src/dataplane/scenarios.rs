// SPDX-License-Identifier: Apache-2.0
//! Whole reconciliations against an API server that remembers what it was sent.

use std::sync::Arc;

use kube::core::DeserializeGuard;
use serde_json::{Value, json};
use wardline_crds::Dataplane;

use super::reconcile;
use crate::context::Context;
use crate::controller::Done;
use crate::error::Category;
use crate::testing::{Cached, FakeApi, Sent, failure, pod, rolled_out};

fn dataplane(spec: &Value, status: &Value) -> Arc<DeserializeGuard<Dataplane>> {
    let mut object = json!({
        "apiVersion": "wardline.io/v1alpha1", "kind": "Dataplane",
        "metadata": {"name": "default", "uid": "dp", "generation": 2}, "spec": spec,
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

/// The DaemonSet that the API server returns, and the name of the ConfigMap that belongs to `{}`.
async fn first_install(api: &FakeApi) -> (Arc<Context>, String) {
    let context = api.context(Cached::default().caches());
    assert_eq!(
        reconcile(dataplane(&json!({}), &Value::Null), Arc::clone(&context))
            .await
            .unwrap(),
        Done::Ok
    );
    let sent = api.take();
    let config = sent.iter().find(|sent| sent.path.contains("/configmaps/")).unwrap();
    (context, config.body["metadata"]["name"].as_str().unwrap().to_owned())
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
    assert_eq!(sent[0].body["metadata"]["ownerReferences"][0]["uid"], "dp");
}

#[tokio::test]
async fn nothing_is_sent_when_nothing_changed() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 1));
    let (context, config) = first_install(&api).await;
    let caches = Cached {
        daemon_set: Some(rolled_out(1, 1)),
        pods: vec![pod("wardline-node-x", "node1", &config)],
        config_maps: vec![json!({"metadata": {"name": config, "namespace": "wardline-system"}})],
        ..Cached::default()
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

#[tokio::test]
async fn a_degraded_node_is_named() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 2));
    let node = |name: &str, status: &str| {
        json!({"metadata": {"name": name}, "status": {"version": "0.1.0", "conditions": [{
            "type": "Degraded", "status": status, "reason": "TableFull", "message": "rules: 262144 of 262144",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    let caches = Cached {
        daemon_set: Some(rolled_out(1, 2)),
        pods: vec![pod("a", "node1", "c"), pod("b", "node2", "c")],
        // The last one was left behind by a daemon that does not run there any more.
        nodes: vec![node("node1", "False"), node("node2", "True"), node("node9", "True")],
        ..Cached::default()
    };
    reconcile(dataplane(&json!({}), &Value::Null), api.context(caches.caches()))
        .await
        .unwrap();
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
    let caches = || {
        Cached {
            daemon_set: Some(rolled_out(1, 2)),
            ..Cached::default()
        }
        .caches()
    };
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
    assert_eq!(condition(&status, "Available"), "True/EnoughNodesReady");
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
    // Mended, and broken again in the same way.
    context.succeeded("Dataplane/default");
    reconcile(dataplane(&spec, &Value::Null), context).await.unwrap();
    // The same Event, of which it is the second.
    let sent = api.take();
    assert!(sent[1].summary().starts_with("PATCH events/default."), "{sent:?}");
    assert_eq!(sent[1].body["series"]["count"], 2);
}

#[tokio::test]
async fn a_failure_to_apply_is_told_and_retried() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 403, failure(403, "no right to patch"));
    let context = api.context(Cached::default().caches());
    let error = reconcile(dataplane(&json!({}), &Value::Null), Arc::clone(&context))
        .await
        .unwrap_err();
    assert_eq!(error.category(), Category::Forbidden);
    assert_eq!(
        error.to_string(),
        "failed to apply DaemonSet wardline-system/wardline-node: no right to patch"
    );
    let status = patched_status(&api.take());
    assert_eq!(condition(&status, "Degraded"), "True/ApplyFailed");
    let waits: Vec<u64> = (0..4).map(|_| context.backoff("Dataplane/default").as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8]);
    context.succeeded("Dataplane/default");
    assert_eq!(context.backoff("Dataplane/default").as_secs(), 1);
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
    let config_map = |name: &str| json!({"metadata": {"name": name, "namespace": "wardline-system"}});
    let caches = Cached {
        daemon_set: Some(rolled_out(2, 2)),
        pods: vec![pod("a", "node1", "wardline-node-old")],
        config_maps: vec![config_map("wardline-node-old"), config_map("wardline-node-older")],
        ..Cached::default()
    };
    reconcile(dataplane(&json!({}), &Value::Null), api.context(caches.caches()))
        .await
        .unwrap();
    let deleted: Vec<String> = api
        .summaries()
        .into_iter()
        .filter(|sent| sent.starts_with("DELETE"))
        .collect();
    assert_eq!(deleted, ["DELETE configmaps/wardline-node-older"]);
}

#[tokio::test]
async fn one_that_is_being_deleted_is_left_to_the_garbage_collector() {
    let api = FakeApi::default();
    let object = json!({
        "metadata": {"name": "default", "uid": "dp", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {},
    });
    let object = Arc::new(serde_json::from_value(object).unwrap());
    assert_eq!(
        reconcile(object, api.context(Cached::default().caches()))
            .await
            .unwrap(),
        Done::Ok
    );
    assert_eq!(api.summaries(), Vec::<String>::new());
}
