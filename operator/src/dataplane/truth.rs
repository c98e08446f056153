// SPDX-License-Identifier: Apache-2.0
//! For tests: what every status of a Dataplane has to hold, whatever step it was written in. Each status that a scenario
//! sends is held to it, and so are those of random clusters (`update_status::tests`).

use serde_json::Value;

const TYPES: [&str; 5] = ["Available", "Degraded", "Progressing", "Ready", "Stalled"];

/// What tools that know of conditions alone make of a status: `kubectl wait`, Flux, Argo CD, Helm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    InProgress,
    Failed,
    Current,
}

/// The rules of kstatus for kinds that it does not know (sigs.k8s.io/cli-utils, pkg/kstatus): an older observedGeneration
/// is in progress; then Reconciling, Stalled and Ready are asked, in this order. An object that is deleted is Terminating,
/// whatever it says.
pub(crate) fn kstatus(status: &Value, generation: i64) -> Seen {
    if status["observedGeneration"].as_i64() != Some(generation) {
        return Seen::InProgress;
    }
    let is_true = |type_| find(status, type_).is_some_and(|found| found["status"] == "True");
    match (is_true("Reconciling"), is_true("Stalled"), is_true("Ready")) {
        (true, ..) | (false, false, false) => Seen::InProgress,
        (false, true, _) => Seen::Failed,
        (false, false, true) => Seen::Current,
    }
}

pub(crate) fn find<'a>(status: &'a Value, type_: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|one| one["type"] == type_)
}

/// Panics where a status contradicts itself.
pub(crate) fn check(status: &Value) {
    let conditions = status["conditions"].as_array().unwrap();
    let mut types: Vec<&str> = conditions.iter().map(|one| one["type"].as_str().unwrap()).collect();
    types.sort_unstable();
    // What does not decode has a verdict alone.
    let is_whole = types == TYPES;
    assert!(is_whole || types == ["Degraded", "Ready", "Stalled"], "{status:#}");
    let generation = &status["observedGeneration"];
    for one in conditions {
        assert!(
            one["observedGeneration"] == *generation,
            "speaks of another generation: {one}"
        );
        assert!(!one["reason"].as_str().unwrap().is_empty(), "{one}");
    }
    let is = |type_: &str, expected: &str| find(status, type_).is_some_and(|one| one["status"] == expected);
    let reason = |type_: &str| find(status, type_).map_or("", |one| one["reason"].as_str().unwrap());
    if is("Stalled", "True") {
        assert!(is("Ready", "False"), "stalled, and ready: {status:#}");
        assert!(!is("Progressing", "True"), "stalled, and on its way: {status:#}");
    }
    if is("Ready", "True") {
        assert!(is("Progressing", "False"), "ready, and half way: {status:#}");
        assert!(is("Degraded", "False"), "ready, and degraded: {status:#}");
        assert!(is("Available", "True"), "ready, and not available: {status:#}");
        let nodes = &status["nodes"];
        let desired = &nodes["desired"];
        assert!(
            *desired != 0 && nodes["updated"] == *desired && nodes["ready"] == *desired,
            "{status:#}"
        );
        assert!(status["rollout"]["failed"].is_null(), "{status:#}");
    }
    if reason("Ready") == "Removing" {
        assert!(is("Ready", "False") && is("Available", "False"), "{status:#}");
    }
    let expected = match (is("Stalled", "True"), is("Ready", "True")) {
        (true, _) => Seen::Failed,
        (false, true) => Seen::Current,
        (false, false) => Seen::InProgress,
    };
    let generation = generation.as_i64().unwrap();
    assert_eq!(kstatus(status, generation), expected, "{status:#}");
    assert_eq!(kstatus(status, generation + 1), Seen::InProgress, "not yet looked at");
}
