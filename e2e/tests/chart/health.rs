// SPDX-License-Identifier: Apache-2.0
//! What Argo CD is told of our objects.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use wardline_e2e::chart::health;

use crate::layout;

/// Conditions, each `TYPE=STATUS` or `TYPE=STATUS:REASON`, whose message is their type.
fn object(kind: &str, generation: i64, observed: i64, conditions: &str) -> Value {
    let conditions: Vec<Value> = conditions
        .split_whitespace()
        .filter_map(|condition| {
            let (type_, rest) = condition.split_once('=')?;
            let (status, reason) = rest.split_once(':').unwrap_or((rest, "Because"));
            Some(json!({"type": type_, "status": status, "reason": reason, "message": type_}))
        })
        .collect();
    json!({
        "apiVersion": "wardline.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": "default", "generation": generation},
        "status": {"observedGeneration": observed, "conditions": conditions},
    })
}

const GOOD: &str = "Ready=True Available=True Stalled=False Progressing=False Degraded=False";
/// Kind, observed generation, conditions; and what is made of them.
const ROWS: [(&str, i64, &str, &str, &str); 16] = [
    ("Dataplane", 2, GOOD, "Healthy", "Ready"),
    (
        "Dataplane",
        1,
        GOOD,
        "Progressing",
        "the operator has not looked at it yet",
    ),
    (
        "Dataplane",
        2,
        "",
        "Progressing",
        "the operator has not looked at it yet",
    ),
    (
        "Dataplane",
        2,
        "Ready=False Available=False Stalled=False Progressing=True Degraded=False",
        "Progressing",
        "Progressing",
    ),
    // A node says so while others are still to come.
    (
        "Dataplane",
        2,
        "Ready=False Available=True Stalled=False Progressing=True Degraded=True",
        "Progressing",
        "Progressing",
    ),
    (
        "Dataplane",
        2,
        "Ready=False Available=True Stalled=False Progressing=False Degraded=True",
        "Degraded",
        "Degraded",
    ),
    (
        "Dataplane",
        2,
        "Ready=False Available=True Stalled=True Progressing=False Degraded=True",
        "Degraded",
        "Stalled",
    ),
    (
        "Dataplane",
        2,
        "Ready=False Available=True Stalled=False Progressing=False Degraded=False",
        "Progressing",
        "Ready",
    ),
    ("NetworkLogging", 2, "Accepted=True Ready=True", "Healthy", "Ready"),
    ("NetworkLogging", 2, "Accepted=True Ready=False", "Progressing", "Ready"),
    (
        "NetworkLogging",
        2,
        "Accepted=False Ready=False",
        "Degraded",
        "Accepted",
    ),
    (
        "NetworkLogging",
        1,
        "Accepted=True Ready=True",
        "Progressing",
        "the operator has not looked at it yet",
    ),
    (
        "DataplaneNode",
        2,
        "Ready=True Verified=True Degraded=False",
        "Healthy",
        "Ready",
    ),
    (
        "DataplaneNode",
        2,
        "Ready=False Verified=False:Starting Degraded=False",
        "Progressing",
        "Ready",
    ),
    (
        "DataplaneNode",
        2,
        "Ready=True Verified=False:SelfTestFailed Degraded=False",
        "Degraded",
        "Verified",
    ),
    (
        "DataplaneNode",
        2,
        "Ready=True Verified=True Degraded=True",
        "Degraded",
        "Degraded",
    ),
];

#[test]
fn argo_cd_is_told_how_objects_are() -> Result<()> {
    for (kind, observed, conditions, status, message) in ROWS {
        let found = health::of(layout()?, &object(kind, 2, observed, conditions))?;
        ensure!(
            (found.status.as_str(), found.message.as_str()) == (status, message),
            "{kind} {conditions}: {found:?}"
        );
    }
    let mut leaving = object("Dataplane", 2, 2, GOOD);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    ensure!(health::of(layout()?, &leaving)?.status == "Progressing");
    let unread = json!({"kind": "Dataplane", "metadata": {"generation": 1}});
    ensure!(health::of(layout()?, &unread)?.status == "Progressing");
    Ok(())
}
