// SPDX-License-Identifier: Apache-2.0
//! The end of a Dataplane, step by step.

use super::*;
use crate::testing::report;

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
    // Where there is no right to hold it, nothing is done, and it says so.
    let api = FakeApi::default().answer("/dataplanes/default", 403, failure(403, "no right to patch"));
    reconcile(object(), api.context(Cached::default().caches()))
        .await
        .unwrap_err();
    let status = patched_status(&api.take());
    assert_eq!(condition(&status, "Stalled"), "True/ApplyFailed");
    assert_eq!(
        condition_message(&status, "Degraded"),
        "failed to set the finalizers of Dataplane default: no right to patch"
    );
}

#[tokio::test]
async fn a_removal_that_is_refused_says_why_it_is_stuck() {
    let refused = |path| {
        FakeApi::default()
            .answer(path, 403, failure(403, "no right to"))
            .answer("/daemonsets/wardline-node", 200, daemon_set_of("removal", 1))
    };
    for (path, finalizers, revision, what) in [
        (
            "/pods/pod-node1",
            &FINALIZERS[..],
            "good",
            "delete Pod wardline-system/pod-node1",
        ),
        (
            "/dataplanes/default",
            &FINALIZERS[..],
            "removal",
            "set the finalizers of Dataplane default",
        ),
        (
            "/daemonsets/wardline-node",
            &FINALIZERS[1..],
            "removal",
            "delete DaemonSet wardline-node",
        ),
    ] {
        let api = refused(path);
        let context = api.context(fleet(&[("node1", revision)]).caches());
        let error = reconcile(deleted(finalizers), context).await.unwrap_err();
        assert_eq!(error.category(), Category::Forbidden, "{what}");
        let status = patched_status(&api.take());
        assert_eq!(condition(&status, "Stalled"), "True/RemovalStuck", "{what}");
        assert_eq!(
            condition_message(&status, "Degraded"),
            format!("failed to {what}: no right to")
        );
    }
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
