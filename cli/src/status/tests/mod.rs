// SPDX-License-Identifier: Apache-2.0
//! From what the API server lists to what a person reads, and to the exit code.

mod gone;

use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::figures::Figures;
use super::look::Seen;
use super::render::{self, Look};
use super::report::{Report, report};

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

/// A Dataplane of generation 2 that has been seen.
fn dataplane(nodes: Value, conditions: &[Value]) -> Value {
    json!({
        "metadata": {"name": "default", "generation": 2}, "spec": {},
        "status": {"observedGeneration": 2, "version": "0.1.0", "nodes": nodes, "conditions": conditions,
                   "rollout": {"revision": "abc", "goodRevision": "abc"}},
    })
}

fn ready() -> Value {
    dataplane(
        json!({"desired": 1, "updated": 1, "ready": 1}),
        &[
            condition("Ready", "True", "Ready", "1 nodes are ready"),
            condition("Available", "True", "EnoughNodesReady", ""),
            condition("Stalled", "False", "AsExpected", ""),
            condition("Degraded", "False", "AsExpected", ""),
        ],
    )
}

fn logging(status: &str, message: &str) -> Value {
    json!({
        "metadata": {"name": "default", "generation": 1}, "spec": {"cluster": {"allow": {"log": true}}},
        "status": {
            "observedGeneration": 1, "nodes": {"desired": 1, "applied": 1},
            "conditions": [condition("Accepted", status, "R", message), condition("Ready", status, "R", message)],
        },
    })
}

fn node(name: &str, status: Value) -> Value {
    let mut all = json!({
        "version": "0.1.0", "revision": "abc", "endpoints": {"managed": 3},
        "kernel": {"release": "6.18.1", "attach": "tcx"}, "logging": {"appliedGeneration": 1},
        "policy": {"synced": true, "lastAppliedTime": "2026-01-01T00:01:00Z"},
        "conditions": [
            condition("Ready", "True", "InForce", ""),
            condition("Verified", "True", "SelfTestPassed", ""),
            condition("Degraded", "False", "AllWell", ""),
        ],
    });
    for (key, value) in status.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "status": all})
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A pod that has been ready since before anything was said.
fn pod(app: &str, name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "wardline-system", "labels": {"app.kubernetes.io/name": app}},
        "spec": {"nodeName": node, "containers": [{"name": app}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": app, "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": "2025-12-31T23:59:00Z"}},
            }],
        },
    })
}

/// All these objects, on nodes that are well, in the hands of operator and daemons that are.
fn seen(dataplanes: Vec<Value>, loggings: Vec<Value>, nodes: Vec<Value>) -> Seen {
    let names: Vec<&str> = nodes
        .iter()
        .map(|node| node["metadata"]["name"].as_str().unwrap())
        .collect();
    let node = |name: &&str| {
        let ready = json!({"type": "Ready", "status": "True"});
        read(json!({"metadata": {"name": name}, "status": {"conditions": [ready]}}))
    };
    let daemon = |name: &&str| read(pod("wardline-node", &format!("daemon-{name}"), name));
    let operator = read(pod("wardline-operator", "operator-1", "node1"));
    let lease = json!({"spec": {
        "holderIdentity": "operator-1", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:02:50.000000Z",
    }});
    Seen {
        now: "2026-01-01T00:03:00Z".parse::<Timestamp>().unwrap(),
        namespace: "wardline-system".into(),
        dataplanes: Some(dataplanes),
        loggings: Some(loggings),
        cluster_nodes: Ok(names.iter().map(node).collect()),
        pods: Ok(names.iter().map(daemon).chain([operator]).collect()),
        lease: Ok(Some(read(lease))),
        figures: Some(Ok(names
            .iter()
            .map(|name| ((*name).to_owned(), Ok(Figures::default())))
            .collect())),
        nodes: Some(nodes),
    }
}

/// One node, and nothing wrong.
fn well() -> Seen {
    seen(vec![ready()], vec![logging("True", "")], vec![node("node1", json!({}))])
}

fn text(report: &Report, is_wide: bool) -> String {
    let mut out = Vec::new();
    let look = Look {
        is_wide,
        has_color: false,
        now: "2026-01-01T00:03:00Z".parse().unwrap(),
    };
    render::tables(&mut out, report, look).unwrap();
    String::from_utf8(out).unwrap()
}

fn shown(dataplanes: Vec<Value>, loggings: Vec<Value>, nodes: Vec<Value>) -> (String, bool) {
    let report = report(seen(dataplanes, loggings, nodes), None);
    (text(&report, false), report.well)
}

#[test]
fn all_is_well() {
    let (text, well) = shown(vec![ready()], vec![logging("True", "")], vec![node("node1", json!({}))]);
    let expected = "\
KIND             NAME                READY   VERSION   NODES   UPDATED
Dataplane        default             True    0.1.0     1/1     1/1
NetworkLogging   default             True    -         1/1     -
Operator         wardline-operator   True    -         1/1     -

NODE    READY   VERSION   UPDATED   SYNCED    MANAGED   UNMANAGED   INVALID   LOST   LOG
node1   True    0.1.0     yes       yes, 2m   3         0           0         0      on

all is well
";
    assert_eq!((text.as_str(), well), (expected, true));
}

#[test]
fn what_is_wrong_is_told_once_each() {
    let message = "node2: 1 pods are not managed; 1 objects are invalid";
    let degraded = dataplane(
        json!({"desired": 3, "updated": 3, "ready": 3, "degraded": 1}),
        &[
            condition("Ready", "False", "NodesDegraded", message),
            condition("Available", "True", "EnoughNodesReady", ""),
            condition("Stalled", "False", "AsExpected", ""),
            condition("Degraded", "True", "NodesDegraded", message),
        ],
    );
    let bad = json!({
        "endpoints": {"managed": 2, "unmanaged": [{"namespace": "shop", "name": "db-0", "message": "no host-side veth"}]},
        "invalidObjects": [
            {"kind": "NetworkPolicy", "namespace": "shop", "name": "old", "message": "failed to read spec: bad"},
            {"kind": "NetworkLogging", "namespace": "", "name": "default", "message": "bad"},
        ],
        "conditions": [
            condition("Ready", "True", "InForce", ""),
            condition("Verified", "True", "SelfTestPassed", ""),
            condition("Degraded", "True", "UnmanagedPods", "1 pods are not managed"),
        ],
    });
    let nodes = vec![
        node("node1", json!({})),
        node("node2", bad),
        json!({"metadata": {"name": "node3"}}),
    ];
    let (text, well) = shown(vec![degraded], vec![], nodes);
    let expected = "\
KIND        NAME                READY   VERSION   NODES   UPDATED
Dataplane   default             False   0.1.0     3/3     3/3
Operator    wardline-operator   True    -         1/1     -

NODE    READY   VERSION   UPDATED   SYNCED    MANAGED   UNMANAGED   INVALID   LOST   LOG
node1   True    0.1.0     yes       yes, 2m   3         0           0         0      off
node2   True    0.1.0     yes       yes, 2m   2         1           2         0      off
node3   -       -         -         -         -         -           -         0      -

Dataplane default: Ready is False (NodesDegraded): node2: 1 pods are not managed; 1 objects are invalid
DataplaneNode node2: Degraded is True (UnmanagedPods): 1 pods are not managed
DataplaneNode node2: NetworkPolicy shop/old cannot be used: failed to read spec: bad
DataplaneNode node2: NetworkLogging default cannot be used: bad
DataplaneNode node2: Pod shop/db-0 is not managed: no host-side veth
DataplaneNode node3: its daemon has not said anything yet. Look: kubectl logs -n wardline-system daemon-node3
note: there is no NetworkLogging, so nothing is logged
6 problems
";
    assert_eq!((text.as_str(), well), (expected, false));
}

#[test]
fn every_single_fault_is_a_problem() {
    let good = || node("node1", json!({}));
    let mut unseen = ready();
    unseen["metadata"]["generation"] = json!(3);
    let unknown = vec![condition("Ready", "Unknown", "Lost", "")];
    let with = |mut conditions: Vec<Value>| {
        conditions.push(condition("Verified", "True", "SelfTestPassed", ""));
        conditions
    };
    for (what, dataplanes, loggings, nodes, expected) in [
        (
            "no Dataplane",
            vec![],
            vec![],
            vec![],
            "Dataplane default: there is none, so no node enforces anything",
        ),
        (
            "no status",
            vec![json!({"metadata": {"name": "default"}, "spec": {}})],
            vec![],
            vec![],
            "Dataplane default: the operator has not written its status yet",
        ),
        (
            "not decodable",
            vec![json!({"metadata": {"name": "default"}, "spec": {"policy": 3}})],
            vec![],
            vec![],
            "Dataplane default: failed to read spec.policy: ",
        ),
        (
            "behind",
            vec![unseen],
            vec![],
            vec![good()],
            "Dataplane default: the operator has seen generation 2, not yet 3",
        ),
        (
            "logging is refused",
            vec![ready()],
            vec![logging("False", "deny.delegate needs deny.log")],
            vec![good()],
            "NetworkLogging default: Accepted is False (R): deny.delegate needs deny.log",
        ),
        (
            "a condition is unknown",
            vec![ready()],
            vec![],
            vec![node("node1", json!({"conditions": with(unknown)}))],
            "DataplaneNode node1: Ready is Unknown (Lost)",
        ),
        (
            "a condition is missing",
            vec![ready()],
            vec![],
            vec![node("node1", json!({"conditions": with(vec![])}))],
            "DataplaneNode node1: its status has no condition Ready",
        ),
    ] {
        let (text, well) = shown(dataplanes, loggings, nodes);
        let is_told = |line: &&str| line.contains(": ") && !line.starts_with("note: ");
        let told: Vec<&str> = text.lines().filter(is_told).collect();
        assert_eq!(told.len(), 1, "{what}: {text}");
        assert!(told[0].starts_with(expected), "{what}: {text}");
        assert!(!well && text.ends_with("1 problem\n"), "{what}: {text}");
    }
}

#[test]
fn nodes_with_the_same_problem_share_a_line() {
    let bad = json!({"invalidObjects": [{"kind": "NetworkPolicy", "namespace": "a", "name": "p", "message": "bad"}]});
    for (count, expected) in [
        (2, "node0, node1"),
        (3, "node0, node1, node2"),
        (5, "node0, node1, node2 and 2 more"),
    ] {
        let nodes = (0..count)
            .map(|index| node(&format!("node{index}"), bad.clone()))
            .collect();
        let (text, _) = shown(vec![ready()], vec![logging("True", "")], nodes);
        let line = format!("DataplaneNode {expected}: NetworkPolicy a/p cannot be used: bad\n1 problem\n");
        assert!(text.ends_with(&line), "{text}");
    }
}

#[test]
fn a_cluster_without_wardline() {
    let mut seen = well();
    (seen.dataplanes, seen.loggings, seen.nodes) = (None, None, None);
    let report = report(seen, None);
    assert!(!report.well);
    let json = serde_json::to_value(&report).unwrap();
    let problem = json!({
        "kind": "Dataplane", "names": ["default"], "message": "Wardline is not installed in this cluster",
    });
    let expected = json!({
        "well": false, "objects": [], "rollout": null, "nodes": [], "problems": [problem], "notes": [],
    });
    assert_eq!(json, expected);
}
