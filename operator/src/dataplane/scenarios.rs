// SPDX-License-Identifier: Apache-2.0
//! Whole reconciliations against an API server that remembers what it was sent.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
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
    // Mended, and broken again in the same way: the same Event once more.
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

/// A Dataplane that somebody has deleted, as it is held by those finalizers.
fn deleted(finalizers: &[&str]) -> Arc<DeserializeGuard<Dataplane>> {
    let object = json!({
        "apiVersion": "wardline.io/v1alpha1", "kind": "Dataplane",
        "metadata": {"name": "default", "uid": "dp", "generation": 3, "resourceVersion": "7", "finalizers": finalizers,
            "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {}, "status": {"rollout": {"revision": "good", "goodRevision": "good"}},
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

fn finalizers_set(sent: &[Sent]) -> Option<Value> {
    let set = sent.iter().find(|sent| sent.path.ends_with("/dataplanes/default"))?;
    assert_eq!(
        set.body["metadata"]["uid"], "dp",
        "of that object and no other of its name"
    );
    Some(set.body["metadata"]["finalizers"].clone())
}

#[tokio::test]
async fn it_is_held_before_anything_comes_to_the_nodes() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 0));
    let object = || {
        let mut object = dataplane(&json!({}), &Value::Null);
        if let Ok(dataplane) = &mut Arc::get_mut(&mut object).unwrap().0 {
            dataplane.metadata.finalizers = Some(vec!["example.com/other".into()]);
        }
        object
    };
    reconcile(object(), api.context(Cached::default().caches()))
        .await
        .unwrap();
    let sent = api.take();
    assert_eq!(sent[0].summary(), "PATCH dataplanes/default");
    let expected = json!(["example.com/other", "wardline.io/nodes", "wardline.io/daemons"]);
    assert_eq!(finalizers_set(&sent), Some(expected));
    // Where the copy is an old one, nothing is done by it.
    let api = FakeApi::default().answer("/dataplanes/default", 409, failure(409, "the object has been modified"));
    let done = reconcile(object(), api.context(Cached::default().caches()))
        .await
        .unwrap();
    assert_eq!(
        (done, api.summaries()),
        (Done::Ok, vec!["PATCH dataplanes/default".to_owned()])
    );
}

/// A DaemonSet whose pods are of that revision.
fn daemon_set_of(revision: &str, nodes: i32) -> Value {
    let mut daemon_set = rolled_out(2, nodes);
    daemon_set["spec"] = json!({"selector": {}, "template": {
        "metadata": {"labels": {"wardline.io/revision": revision}},
        "spec": {"containers": [{"name": "wardline-node", "image": "r.example/node:v1"}], "nodeSelector": {"pool": "a"}},
    }});
    daemon_set
}

#[tokio::test]
async fn nodes_are_cleaned_one_by_one_before_it_goes() {
    // Somebody's first look: the daemons still run.
    let api = FakeApi::default()
        .answer("/configmaps/wardline-node-good", 404, failure(404, "not found"))
        .answer("/daemonsets/wardline-node", 200, daemon_set_of("good", 2));
    let context = api.context(fleet(&[("node1", "good"), ("node2", "good")]).caches());
    reconcile(deleted(&FINALIZERS), context).await.unwrap();
    let sent = api.take();
    let applied = sent
        .iter()
        .find(|sent| sent.method == "PATCH" && sent.path.contains("/daemonsets/"))
        .unwrap();
    let template = &applied.body["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["wardline.io/revision"], "removal");
    assert_eq!(template["spec"]["containers"][0]["args"][0], "cleanup");
    assert_eq!(
        template["spec"]["nodeSelector"],
        Value::Null,
        "wherever a daemon was once"
    );
    let status = patched_status(&sent);
    assert_eq!(condition(&status, "Ready"), "False/Removing");
    assert_eq!(condition(&status, "Available"), "False/Removing");
    assert_eq!(finalizers_set(&sent), None);

    // Then node by node, and nothing is applied twice.
    let step = async |first: &str, second: &str| {
        let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, daemon_set_of("removal", 2));
        let context = api.context(fleet(&[("node1", first), ("node2", second)]).caches());
        reconcile(deleted(&FINALIZERS), context).await.unwrap();
        let sent = api.take();
        assert!(
            !sent
                .iter()
                .any(|sent| sent.method == "PATCH" && sent.path.contains("/daemonsets/")),
            "{sent:?}"
        );
        (replaced(&sent), finalizers_set(&sent))
    };
    assert_eq!(
        step("good", "good").await,
        (vec!["DELETE pods/pod-node1 node1-good".into()], None)
    );
    assert_eq!(
        step("removal", "good").await,
        (vec!["DELETE pods/pod-node2 node2-good".into()], None)
    );
    let left = Some(json!(["wardline.io/daemons"]));
    assert_eq!(step("removal", "removal").await, (Vec::new(), left));
}

#[tokio::test]
async fn a_node_whose_pod_has_no_place_yet_is_not_clean() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, daemon_set_of("removal", 2));
    let mut caches = fleet(&[("node1", "removal"), ("node2", "removal")]);
    caches.pods[1]["spec"] = json!({"containers": [], "affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node2"]}]},
        ]},
    }}});
    caches.pods[1]["status"] =
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "Too many pods"}]});
    reconcile(deleted(&FINALIZERS), api.context(caches.caches()))
        .await
        .unwrap();
    let sent = api.take();
    assert_eq!(finalizers_set(&sent), None);
    let message = condition_message(&patched_status(&sent), "Progressing");
    assert_eq!(message, "1 of 2 nodes are clean; node2: Unschedulable: Too many pods");
}

#[tokio::test]
async fn the_daemons_objects_go_when_its_pods_are_gone() {
    let held = ["wardline.io/daemons", "example.com/other"];
    let api = FakeApi::default();
    let mut caches = fleet(&[("node1", "removal")]);
    caches.config_maps = vec![cached("wardline-node-good")];
    reconcile(deleted(&held), api.context(caches.caches())).await.unwrap();
    let sent = api.take();
    assert_eq!(sent[0].summary(), "DELETE daemonsets/wardline-node");
    assert_eq!(sent[0].body["propagationPolicy"], "Background");
    assert_eq!(finalizers_set(&sent), None, "a pod is still there");

    let caches = Cached {
        config_maps: vec![cached("wardline-node-good")],
        nodes: vec![report("node1", "removal")],
        ..Cached::default()
    };
    reconcile(deleted(&held), api.context(caches.caches())).await.unwrap();
    let sent = api.take();
    let summaries: Vec<String> = sent.iter().map(Sent::summary).collect();
    let expected = [
        "DELETE daemonsets/wardline-node",
        "DELETE configmaps/wardline-node-good",
        "DELETE dataplanenodes/node1",
        "PATCH dataplanes/default",
        "EVENT Removed",
    ];
    assert_eq!(summaries, expected);
    assert_eq!(finalizers_set(&sent), Some(json!(["example.com/other"])));
    // What others hold is theirs.
    reconcile(deleted(&held[1..]), api.context(Cached::default().caches()))
        .await
        .unwrap();
    assert_eq!(api.summaries(), Vec::<String>::new());
}

#[tokio::test]
async fn where_no_daemon_ever_spoke_there_is_nothing_to_clean() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 404, failure(404, "not found"));
    reconcile(deleted(&FINALIZERS), api.context(Cached::default().caches()))
        .await
        .unwrap();
    assert_eq!(finalizers_set(&api.take()), Some(json!(["wardline.io/daemons"])));
}

#[tokio::test]
async fn an_object_that_does_not_decode_is_removed_too() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, daemon_set_of("removal", 1));
    let object = json!({
        "apiVersion": "wardline.io/v1alpha1", "kind": "Dataplane", "spec": {"policy": {"enforcement": 7}},
        "metadata": {"name": "default", "uid": "dp", "finalizers": FINALIZERS, "deletionTimestamp": "2026-01-01T00:00:00Z"},
    });
    let object = Arc::new(serde_json::from_value(object).unwrap());
    let context = api.context(fleet(&[("node1", "removal")]).caches());
    reconcile(object, context).await.unwrap();
    assert_eq!(finalizers_set(&api.take()), Some(json!(["wardline.io/daemons"])));
}

/// What is rolled out, but for the times at which nodes were replaced.
fn rollout(status: &Value) -> Value {
    let mut rollout = status["rollout"].clone();
    rollout.as_object_mut().unwrap().remove("replacing");
    rollout
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

#[tokio::test]
async fn a_change_goes_on_node_by_node_as_they_are_well() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 3));
    let (context, new) = first_install(&api).await;
    let status = json!({"rollout": {"revision": "old", "goodRevision": "old"}});
    let step = async |revisions: [&str; 3], ready: bool| {
        let [a, b, c] = revisions;
        let mut caches = fleet(&[("node1", a), ("node2", b), ("node3", c)]);
        if !ready {
            // Just made.
            caches.pods[0]["metadata"]["creationTimestamp"] = Timestamp::now().to_string().into();
            caches.pods[0]["status"]["conditions"][0]["status"] = "False".into();
        }
        let context = api.context_after(caches.caches(), &context);
        *lock(&context.rollout) = None;
        let done = reconcile(dataplane(&json!({}), &status), context).await.unwrap();
        let sent = api.take();
        (replaced(&sent), patched_status(&sent), done)
    };
    let (pods, status, _) = step(["old", "old", "old"], true).await;
    assert_eq!(pods, ["DELETE pods/pod-node1 node1-old"]);
    assert_eq!(condition(&status, "Progressing"), "True/RollingOut");
    assert_eq!(status["nodes"]["updated"], 0);
    let (pods, status, done) = step([&new, "old", "old"], false).await;
    assert_eq!(pods, Vec::<String>::new());
    assert_eq!(
        status["conditions"][3]["message"],
        "1 of 3 nodes are updated; node1: its pod is not ready"
    );
    assert!(matches!(done, Done::Again(after) if after.as_secs() > 290), "{done:?}");
    let (pods, ..) = step([&new, "old", "old"], true).await;
    assert_eq!(pods, ["DELETE pods/pod-node2 node2-old"]);
    let (pods, status, _) = step([&new, &new, &new], true).await;
    assert_eq!(pods, Vec::<String>::new());
    assert_eq!(condition(&status, "Ready"), "True/Ready");
    assert_eq!(status["rollout"], json!({"revision": new, "goodRevision": new}));
}

#[tokio::test]
async fn a_change_that_a_node_is_not_well_with_is_taken_back_and_not_tried_again() {
    // The revision that is good, as it was once applied.
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 2));
    reconcile(
        dataplane(&json!({}), &Value::Null),
        api.context(Cached::default().caches()),
    )
    .await
    .unwrap();
    let good = config_map(&api.take());
    let (good_name, good_revision) = (good["metadata"]["name"].clone(), revision(&good));
    let path: &'static str = format!("/configmaps/{}", good_name.as_str().unwrap()).leak();
    let api = api.answer(path, 200, good);

    let spec = json!({"daemon": {"image": {"tag": "broken"}}});
    let before = json!({"rollout": {"revision": good_revision, "goodRevision": good_revision}});
    reconcile(
        dataplane(&spec, &before),
        api.context(fleet(&[("node1", &good_revision), ("node2", &good_revision)]).caches()),
    )
    .await
    .unwrap();
    let bad = revision(&config_map(&api.take()));
    let crashing = || {
        let mut caches = fleet(&[("node1", &bad), ("node2", &good_revision)]);
        caches.pods[0]["status"] = json!({"containerStatuses": [{
            "name": "wardline-node", "image": "", "imageID": "", "ready": false, "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}},
            "lastState": {"terminated": {"exitCode": 1, "message": "failed to load"}},
        }]});
        caches
    };
    let context = api.context(crashing().caches());
    reconcile(dataplane(&spec, &before), Arc::clone(&context))
        .await
        .unwrap();
    let sent = api.take();
    let summaries: Vec<String> = sent.iter().map(Sent::summary).collect();
    let marked = summaries
        .iter()
        .position(|sent| sent == "PATCH default/status")
        .unwrap();
    let applied: Vec<(usize, &Value)> = sent
        .iter()
        .enumerate()
        .filter(|(_, sent)| sent.path.ends_with("/daemonsets/wardline-node"))
        .map(|(at, sent)| {
            (
                at,
                &sent.body["spec"]["template"]["metadata"]["labels"]["wardline.io/revision"],
            )
        })
        .collect();
    assert_eq!(applied.len(), 2, "{summaries:?}");
    assert!(
        applied[0].0 < marked && marked < applied[1].0,
        "it is marked first: {summaries:?}"
    );
    assert_eq!((applied[0].1, applied[1].1), (&json!(bad), &json!(good_revision)));
    assert_eq!(replaced(&sent), [format!("DELETE pods/pod-node1 node1-{bad}")]);
    assert!(summaries.contains(&"EVENT RolledBack".to_owned()), "{summaries:?}");
    let status = patched_status(&sent);
    assert_eq!(condition(&status, "Ready"), "False/RollingBack");
    let failed = json!({"generation": 2, "revision": bad, "node": "node1",
        "message": "CrashLoopBackOff: exit code 1: failed to load"});
    assert_eq!(
        rollout(&status),
        json!({"revision": good_revision, "goodRevision": good_revision, "failed": failed})
    );

    // A copy of the object that is older than what was written changes nothing, nor does another leader.
    let well = || fleet(&[("node1", &good_revision), ("node2", &good_revision)]).caches();
    for (known, context) in [
        (&before, api.context_after(well(), &context)),
        (&status, api.context(well())),
    ] {
        reconcile(dataplane(&spec, known), context).await.unwrap();
        let sent = api.take();
        assert_eq!(replaced(&sent), Vec::<String>::new());
        let status = patched_status(&sent);
        assert_eq!(condition(&status, "Ready"), "False/RolledBack");
        assert_eq!(condition(&status, "Stalled"), "True/RolledBack");
        assert_eq!(condition(&status, "Available"), "True/EnoughNodesReady");
        let templates = sent
            .iter()
            .filter(|sent| sent.path.ends_with("/daemonsets/wardline-node"));
        for sent in templates {
            let label = &sent.body["spec"]["template"]["metadata"]["labels"]["wardline.io/revision"];
            assert_eq!(label, &json!(good_revision));
        }
    }

    // Another change is another matter.
    let other = json!({"daemon": {"image": {"tag": "mended"}}});
    let mut object = dataplane(&other, &status);
    if let Ok(dataplane) = &mut Arc::get_mut(&mut object).unwrap().0 {
        dataplane.metadata.generation = Some(3);
    }
    reconcile(object, api.context(well())).await.unwrap();
    let sent = api.take();
    assert_eq!(
        replaced(&sent),
        [format!("DELETE pods/pod-node1 node1-{good_revision}")]
    );
    let status = patched_status(&sent);
    assert_eq!(status["rollout"]["failed"], Value::Null);
    assert_eq!(condition(&status, "Ready"), "False/RollingOut");
}

#[tokio::test]
async fn what_is_tried_again_is_judged_by_new_pods_where_the_old_ones_are_not_well() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 3));
    let (context, revision) = first_install(&api).await;
    let mut caches = fleet(&[("node1", &revision), ("node2", &revision), ("node3", "good")]);
    caches.pods[1]["status"]["conditions"][0]["status"] = "False".into();
    let failed = json!({"generation": 1, "revision": revision, "node": "node2", "message": "not well after 30 s"});
    let status = json!({"rollout": {"revision": "good", "goodRevision": "good", "failed": failed}});
    let context = api.context_after(caches.caches(), &context);
    *lock(&context.rollout) = None;
    reconcile(dataplane(&json!({}), &status), context).await.unwrap();
    let sent = api.take();
    assert_eq!(replaced(&sent), [format!("DELETE pods/pod-node2 node2-{revision}")]);
    assert_eq!(patched_status(&sent)["rollout"]["failed"], Value::Null);
}

#[tokio::test]
async fn where_there_is_nothing_to_go_back_to_it_is_told() {
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 1));
    let (context, revision) = first_install(&api).await;
    let mut caches = fleet(&[("node1", &revision)]);
    caches.nodes[0]["status"]["conditions"][1] = json!({"type": "Verified", "status": "False",
        "reason": "SelfTestFailed", "message": "a packet was let through", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let context = api.context_after(caches.caches(), &context);
    reconcile(dataplane(&json!({}), &Value::Null), context).await.unwrap();
    let sent = api.take();
    assert_eq!(replaced(&sent), Vec::<String>::new());
    let status = patched_status(&sent);
    assert_eq!(condition(&status, "Stalled"), "True/RolloutStuck");
    assert_eq!(
        condition_message(&status, "Ready"),
        "node1: SelfTestFailed: a packet was let through; there is no other revision that all nodes were well with"
    );
}

#[tokio::test]
async fn nobody_is_replaced_before_the_template_is_known() {
    let mut unseen = rolled_out(2, 2);
    unseen["status"]["observedGeneration"] = 1.into();
    let api = FakeApi::default().answer("/daemonsets/wardline-node", 200, unseen);
    let caches = fleet(&[("node1", "old"), ("node2", "old")]).caches();
    reconcile(dataplane(&json!({}), &Value::Null), api.context(caches))
        .await
        .unwrap();
    assert_eq!(replaced(&api.take()), Vec::<String>::new());
}
