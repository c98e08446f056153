// SPDX-License-Identifier: Apache-2.0
//! Whole reconciliations against an API server that remembers what it was sent.

use std::sync::Arc;

use kube::core::DeserializeGuard;
use serde_json::{Value, json};
use wardline_crds::NetworkLogging;

use super::reconcile;
use crate::controller::Done;
use crate::testing::{Cached, FakeApi, Sent, pod, rolled_out};

fn logging(spec: &Value) -> Arc<DeserializeGuard<NetworkLogging>> {
    let object = json!({"metadata": {"name": "default", "uid": "nl", "generation": 3}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn node(name: &str, generation: i64) -> Value {
    json!({"metadata": {"name": name}, "status": {"logging": {"appliedGeneration": generation}}})
}

#[tokio::test]
async fn nodes_that_have_applied_it_are_counted() {
    for (generations, ready, events) in [
        ([3, 3], "True", vec!["EVENT Accepted", "EVENT Ready"]),
        ([3, 2], "False", vec!["EVENT Accepted"]),
    ] {
        let api = FakeApi::default();
        let caches = Cached {
            daemon_set: Some(rolled_out(1, 2)),
            pods: vec![pod("node1", "c"), pod("node2", "c")],
            nodes: vec![
                node("node1", generations[0]),
                node("node2", generations[1]),
                node("gone", 3),
            ],
            ..Cached::default()
        };
        let spec = json!({"cluster": {"deny": {"log": true, "delegate": true}}});
        assert_eq!(
            reconcile(logging(&spec), api.context(caches.caches())).await.unwrap(),
            Done::Ok
        );
        let sent = api.take();
        let status = &sent[0].body["status"];
        let applied = generations.iter().filter(|generation| **generation == 3).count();
        assert_eq!(status["nodes"], json!({"desired": 2, "applied": applied}));
        assert_eq!(status["delegated"], "Deny");
        assert_eq!(status["conditions"][1]["status"], ready);
        assert_eq!(sent[1..].iter().map(Sent::summary).collect::<Vec<_>>(), events);
    }
}

#[tokio::test]
async fn one_that_cannot_be_used_says_so() {
    let undecodable = json!({"cluster": {"deny": {"log": "yes"}}});
    let stored = json!({
        "apiVersion": "wardline.io/v1alpha1", "kind": "NetworkLogging",
        "metadata": {"name": "default", "uid": "nl", "generation": 3}, "spec": undecodable,
        "status": {"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    });
    for spec in [json!({"cluster": {"deny": {"delegate": true}}}), undecodable] {
        let api = FakeApi::default().answer("/networkloggings/default", 200, stored.clone());
        let done = reconcile(logging(&spec), api.context(Cached::default().caches()))
            .await
            .unwrap();
        assert_eq!(done, Done::Refused);
        let sent = api.take();
        let status = &sent.iter().find(|sent| sent.path.ends_with("/status")).unwrap().body["status"];
        assert_eq!(status["conditions"][0]["status"], "False");
        assert_eq!(status["conditions"][0]["reason"], "InvalidNetworkLogging");
        assert!(
            sent.iter().any(|sent| sent.summary() == "EVENT InvalidNetworkLogging"),
            "{sent:?}"
        );
    }
}
