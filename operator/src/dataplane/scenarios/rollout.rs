// SPDX-License-Identifier: Apache-2.0
//! How a change comes to the nodes, and is taken back.

use k8s_openapi::jiff::Timestamp;

use super::*;

/// What is rolled out, but for the times at which nodes were replaced.
fn rollout(status: &Value) -> Value {
    let mut rollout = status["rollout"].clone();
    rollout.as_object_mut().unwrap().remove("replacing");
    rollout
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
        assert_eq!(condition(&status, "Available"), "True/Enforced");
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

#[tokio::test]
async fn a_pod_that_may_not_be_deleted_is_told_until_it_can() {
    let refusing = || {
        FakeApi::default()
            .answer("/daemonsets/wardline-node", 200, rolled_out(1, 1))
            .answer("/pods/pod-node1", 403, failure(403, "no right to delete"))
    };
    let step = async |api: FakeApi, status: &Value| {
        let context = api.context(fleet(&[("node1", "old")]).caches());
        let result = reconcile(dataplane(&json!({}), status), context).await;
        (result, api.take())
    };
    let (result, sent) = step(
        refusing(),
        &json!({"rollout": {"revision": "old", "goodRevision": "old"}}),
    )
    .await;
    assert_eq!(result.unwrap_err().category(), Category::Forbidden);
    let status = patched_status(&sent);
    assert_eq!(condition(&status, "Stalled"), "True/ApplyFailed");
    assert_eq!(condition(&status, "Progressing"), "False/Halted");
    let message = condition_message(&status, "Degraded");
    assert_eq!(
        message,
        "failed to delete Pod wardline-system/pod-node1: no right to delete"
    );

    // Still: nobody is told that it is well in between.
    let (result, sent) = step(refusing(), &status).await;
    result.unwrap_err();
    let statuses = sent.iter().filter(|sent| sent.path.ends_with("/status"));
    for sent in statuses {
        assert_eq!(condition(&sent.body["status"], "Stalled"), "True/ApplyFailed");
    }
    assert!(!sent.iter().any(|sent| sent.summary() == "EVENT Recovered"), "{sent:?}");

    let allowing = FakeApi::default().answer("/daemonsets/wardline-node", 200, rolled_out(1, 1));
    let (result, sent) = step(allowing, &status).await;
    result.unwrap();
    assert_eq!(replaced(&sent), ["DELETE pods/pod-node1 node1-old"]);
    let status = patched_status(&sent);
    assert_eq!(condition(&status, "Stalled"), "False/AsExpected");
    assert_eq!(condition(&status, "Progressing"), "True/RollingOut");
}
