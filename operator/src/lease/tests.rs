// SPDX-License-Identifier: Apache-2.0
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use super::*;
use crate::testing::{FakeApi, Reply, failure};

const PATH: &str = "/leases/wardline-operator";

fn election(api: &FakeApi) -> Election {
    Election::new(api.client(), "wardline-system", "wardline-operator", "a")
}

fn held_by(holder: &str) -> serde_json::Value {
    json!({"metadata": {"name": "wardline-operator", "resourceVersion": "7"}, "spec": {
        "holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 2,
        "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z"}})
}

#[tokio::test]
async fn the_first_one_creates_it() {
    let api = FakeApi::default().answer(PATH, 404, failure(404, "not found"));
    assert_eq!(election(&api).attempt().await.unwrap(), None);
    let sent = api.take();
    assert_eq!(
        (sent[1].method.as_str(), &sent[1].body["spec"]["holderIdentity"]),
        ("POST", &json!("a"))
    );
    assert_eq!(sent[1].body["spec"]["leaseTransitions"], 0);
}

#[tokio::test]
async fn a_lease_that_was_given_back_is_taken_with_the_version_that_was_read() {
    let api = FakeApi::default().answer(PATH, 200, held_by(""));
    assert_eq!(election(&api).attempt().await.unwrap(), None);
    let sent = api.take();
    assert_eq!(sent[1].method, "PUT");
    assert_eq!(sent[1].body["metadata"]["resourceVersion"], "7");
    assert_eq!(sent[1].body["spec"]["leaseTransitions"], 3);
}

#[tokio::test]
async fn a_lease_that_another_holds_is_left_alone() {
    let api = FakeApi::default().answer(PATH, 200, held_by("b"));
    let mut election = election(&api);
    assert_eq!(election.attempt().await.unwrap(), Some("b".into()));
    election.release().await.unwrap();
    assert!(api.take().iter().all(|sent| sent.method == "GET"));
}

#[tokio::test]
async fn ours_is_renewed_and_given_back() {
    let api = FakeApi::default().answer(PATH, 200, held_by("a"));
    let mut election = election(&api);
    assert_eq!(election.attempt().await.unwrap(), None);
    election.release().await.unwrap();
    let puts: Vec<_> = api.take().into_iter().filter(|sent| sent.method == "PUT").collect();
    assert_eq!(puts[0].body["spec"]["leaseTransitions"], 2);
    assert_eq!(puts[0].body["spec"]["acquireTime"], held_by("a")["spec"]["acquireTime"]);
    assert!(puts[1].body["spec"].get("holderIdentity").is_none());
}

fn lease(holder: Option<&str>, seconds: Option<i32>) -> Lease {
    let spec = LeaseSpec {
        holder_identity: holder.map(Into::into),
        lease_duration_seconds: seconds,
        ..LeaseSpec::default()
    };
    Lease {
        spec: Some(spec),
        ..Lease::default()
    }
}

#[test]
fn decisions() {
    let wait = || Decision::Wait("b".into());
    for (what, lease, unchanged, expected) in [
        ("none", None, 0, Decision::Create),
        ("ours", Some(lease(Some("a"), Some(15))), 0, Decision::Renew),
        (
            "ours, though old",
            Some(lease(Some("a"), Some(15))),
            99,
            Decision::Renew,
        ),
        ("released", Some(lease(None, Some(15))), 0, Decision::Take),
        (
            "released with an empty name",
            Some(lease(Some(""), Some(15))),
            0,
            Decision::Take,
        ),
        ("another's, just seen", Some(lease(Some("b"), Some(15))), 0, wait()),
        ("another's, to the second", Some(lease(Some("b"), Some(15))), 15, wait()),
        (
            "another's, run out",
            Some(lease(Some("b"), Some(15))),
            16,
            Decision::Take,
        ),
        (
            "another's, of a longer duration",
            Some(lease(Some("b"), Some(60))),
            16,
            wait(),
        ),
        (
            "another's, of no duration",
            Some(lease(Some("b"), None)),
            16,
            Decision::Take,
        ),
    ] {
        assert_eq!(
            decide(lease.as_ref(), "a", true, Duration::from_secs(unchanged)),
            expected,
            "{what}"
        );
    }
}

#[tokio::test]
async fn it_is_given_back_though_the_last_renewal_still_comes() {
    let asked = AtomicU32::new(0);
    let api = FakeApi::default().reply(PATH, move |sent| {
        match (&*sent.method, asked.fetch_add(1, Ordering::Relaxed)) {
            ("PUT", 0..3) => Reply::Json(409, failure(409, "the object has been modified")),
            _ => Reply::Json(200, held_by("a")),
        }
    });
    election(&api).release().await.unwrap();
    assert_eq!(
        api.summaries(),
        ["GET", "PUT", "GET", "PUT"].map(|method| format!("{method} leases/wardline-operator"))
    );
}

/// How long a holder holds on whose renewals end so, from the beginning of the last attempt that did not.
async fn held_for(reply: Reply) -> Duration {
    let asked = AtomicU32::new(0);
    let api = FakeApi::default().reply(PATH, move |sent| {
        match (&*sent.method, asked.fetch_add(1, Ordering::Relaxed)) {
            (_, 0..2) | ("GET", _) => Reply::Json(200, held_by("a")),
            _ => reply.clone(),
        }
    });
    let mut election = election(&api);
    let began = Instant::now();
    election.acquire().await;
    let lost = election.hold().await;
    assert!(matches!(lost, LeaseError::Expired { .. }), "{lost}");
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_stops_before_others_start() {
    for reply in [
        Reply::Reset,
        Reply::Silence,
        Reply::Json(409, failure(409, "the object has been modified")),
        Reply::Json(500, failure(500, "etcdserver: timeout")),
        Reply::RetryAfter(429, 60),
    ] {
        let held = held_for(reply.clone()).await;
        assert!(
            held >= Duration::from_secs(8) && held <= DEADLINE,
            "{reply:?}: {held:?}"
        );
    }
}

#[test]
fn what_was_ours_and_ran_out_is_left_to_others_first() {
    let ours = lease(Some("a"), Some(15));
    let decided = |seconds| decide(Some(&ours), "a", false, Duration::from_secs(seconds));
    assert_eq!((decided(30), decided(31)), (Decision::Wait("a".into()), Decision::Take));
}
