// SPDX-License-Identifier: Apache-2.0
//! A controller, an API server that fails in one way or another, and a cluster in which some node changes every second.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tokio::sync::watch;
use wardline_crds::Dataplane;

use super::*;
use crate::dataplane;
use crate::testing::{Cached, FakeApi, Reply, Sent, collection, failure, rolled_out};

const DAEMON_SET: &str = "/daemonsets/wardline-node";

fn stored() -> Value {
    json!({
        "apiVersion": "wardline.io/v1alpha1", "kind": "Dataplane", "spec": {},
        "metadata": {"name": "default", "uid": "dp", "generation": 1, "resourceVersion": "1",
            "finalizers": ["wardline.io/nodes", "wardline.io/daemons"]},
    })
}

/// What the controller sends within that time.
async fn sent_within(api: &FakeApi, time: Duration) -> Vec<Sent> {
    let api = api.clone().reply("/dataplanes", collection(vec![stored()]));
    let (changes, changed) = watch::channel(0);
    let context = api.context(Cached::default().caches().with_changes(changed));
    let stop = CancellationToken::new();
    let controller = Guarded::<Dataplane>::new(&context);
    let run = tokio::spawn(controller.run(context, stop.clone(), dataplane::reconcile));
    let end = tokio::time::Instant::now() + time;
    let mut second = 0;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1)).await;
        second += 1;
        changes.send_replace(second);
    }
    let sent = api.take();
    stop.cancel();
    drop(changes);
    run.abort();
    sent
}

fn attempts(sent: &[Sent]) -> Vec<&Sent> {
    sent.iter()
        .filter(|sent| sent.method == "PATCH" && sent.path.ends_with(DAEMON_SET))
        .collect()
}

/// Ten minutes, with six hundred signals.
#[tokio::test(start_paused = true)]
async fn what_fails_is_tried_again_at_the_pace_of_its_kind() {
    for (what, reply, expected) in [
        ("forbidden", Reply::Json(403, failure(403, "no right to patch")), 7..=9),
        (
            "rejected",
            Reply::Json(422, failure(422, "spec.template: Invalid value")),
            7..=9,
        ),
        (
            "a fault of the server",
            Reply::Json(500, failure(500, "etcdserver: timeout")),
            20..=48,
        ),
        ("away", Reply::Json(503, failure(503, "apiserver not ready")), 20..=48),
        ("busy", Reply::RetryAfter(429, 1), 20..=48),
        ("busy for long", Reply::RetryAfter(429, 60), 8..=11),
        ("broken connections", Reply::Reset, 20..=48),
        ("no answers", Reply::Silence, 9..=16),
        (
            "conflicts",
            Reply::Json(409, failure(409, "the object has been modified")),
            60..=135,
        ),
    ] {
        let api = FakeApi::default().reply(DAEMON_SET, move |_| reply.clone());
        let sent = sent_within(&api, Duration::from_mins(10)).await;
        let count = attempts(&sent).len();
        assert!(expected.contains(&count), "{what}: {count} attempts");
        // Besides: the ConfigMap each time, for the copy in the cache never comes; and the status, where it says why.
        assert!(sent.len() <= 4 * count + 10, "{what}: {} requests", sent.len());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_before_the_server_wants_it() {
    let api = FakeApi::default().reply(DAEMON_SET, |_| Reply::RetryAfter(429, 60));
    let sent = sent_within(&api, Duration::from_mins(10)).await;
    let refused = attempts(&sent);
    for attempt in &refused {
        let since = |sent: &Sent| sent.at.duration_since(attempt.at);
        let early = sent
            .iter()
            .find(|sent| sent.at > attempt.at && since(sent) < Duration::from_mins(1));
        assert!(early.is_none(), "{early:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_passes_by_itself_is_done_soon_afterwards() {
    for (what, reply, within) in [
        (
            "a conflict",
            Reply::Json(409, failure(409, "the object has been modified")),
            1,
        ),
        ("away", Reply::Json(503, failure(503, "apiserver not ready")), 8),
        ("a broken connection", Reply::Reset, 8),
        ("an answer that is lost", Reply::Silence, 100),
    ] {
        let asked = AtomicU32::new(0);
        let api = FakeApi::default().reply(DAEMON_SET, move |_| match asked.fetch_add(1, Ordering::Relaxed) {
            0..3 => reply.clone(),
            _ => Reply::Json(200, rolled_out(1, 0)),
        });
        let began = tokio::time::Instant::now();
        let sent = sent_within(&api, Duration::from_mins(3)).await;
        let done = attempts(&sent)
            .into_iter()
            .nth(3)
            .map(|sent| sent.at.duration_since(began));
        assert!(
            done.is_some_and(|done| done <= Duration::from_secs(within)),
            "{what}: {done:?}"
        );
        assert!(sent.iter().any(|sent| sent.path.ends_with("/status")), "{what}");
    }
}

/// An object that does not decode is not read again for each change around it.
#[tokio::test(start_paused = true)]
async fn what_does_not_decode_is_read_once_a_version() {
    let serve = |object: &Value| {
        let api = FakeApi::default().answer("/dataplanes/default", 200, object.clone());
        api.reply("/dataplanes", collection(vec![object.clone()]))
    };
    let mut broken = stored();
    broken["spec"] = json!({"policy": {"enforcement": 7}});
    let sent = sent_within(&serve(&broken), Duration::from_secs(1)).await;
    let told = sent.iter().find(|sent| sent.path.ends_with("/status")).unwrap();
    broken["status"] = told.body["status"].clone();
    broken["metadata"]["resourceVersion"] = "2".into();
    let sent = sent_within(&serve(&broken), Duration::from_mins(10)).await;
    let of_object: Vec<String> = sent
        .iter()
        .map(Sent::summary)
        .filter(|sent| sent.contains("default"))
        .collect();
    assert_eq!(of_object, ["GET dataplanes/default"]);
}
