// SPDX-License-Identifier: Apache-2.0
//! `status` of a cluster that a test plays; e2e/tests/cluster/status.rs has the real one.

#![allow(clippy::unwrap_used, reason = "tests")]

mod api_server;
mod shell;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api_server::{Answer, kubeconfig, list};
use serde_json::{Value, json};
use shell::wardline;

fn condition(type_: &str, status: &str, reason: &str) -> Value {
    json!({
        "type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn daemon(node: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("daemon-{node}"), "namespace": "wardline-system",
            "labels": {"app.kubernetes.io/name": "wardline-node"},
        },
        "spec": {"nodeName": node, "containers": [
            {"name": "wardline-node", "ports": [{"name": "metrics", "containerPort": 9470}]},
        ]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{
            "name": "wardline-node", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2025-12-31T00:00:00Z"}},
        }]},
    })
}

/// Two nodes, and nothing wrong; the answers to GETs of the metrics come from elsewhere.
fn well(path: &str) -> Option<Answer> {
    let path = path.split('?').next().unwrap_or(path);
    let nodes = ["node1", "node2"];
    Some(match path.rsplit('/').next().unwrap_or_default() {
        "version" => Answer::Json(json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0"})),
        "dataplanes" => list(vec![json!({
            "metadata": {"name": "default", "generation": 1}, "spec": {},
            "status": {
                "observedGeneration": 1, "version": "0.1.0", "nodes": {"desired": 2, "updated": 2, "ready": 2},
                "rollout": {"revision": "abc"},
                "conditions": [
                    condition("Ready", "True", "Ready"), condition("Available", "True", "EnoughNodesReady"),
                    condition("Stalled", "False", "AsExpected"), condition("Degraded", "False", "AsExpected"),
                ],
            },
        })]),
        "networkloggings" => list(vec![]),
        "dataplanenodes" => list(
            nodes
                .iter()
                .map(|name| {
                    json!({
                        "metadata": {"name": name}, "spec": {},
                        "status": {
                            "version": "0.1.0", "revision": "abc", "policy": {"synced": true},
                            "conditions": [
                                condition("Ready", "True", "InForce"), condition("Verified", "True", "SelfTestPassed"),
                                condition("Degraded", "False", "AllWell"),
                            ],
                        },
                    })
                })
                .collect(),
        ),
        "nodes" => list(nodes.iter().map(|name| json!({"metadata": {"name": name}})).collect()),
        "pods" => {
            let mut operator = daemon("node1");
            operator["metadata"]["name"] = json!("operator");
            operator["metadata"]["labels"]["app.kubernetes.io/name"] = json!("wardline-operator");
            list(nodes.iter().map(|node| daemon(node)).chain([operator]).collect())
        }
        "wardline-operator" => Answer::Json(json!({
            "metadata": {"name": "wardline-operator"},
            "spec": {"holderIdentity": "operator", "renewTime": "2999-01-01T00:00:00.000000Z"},
        })),
        "metrics" if path.contains("daemon-node1:9470/proxy") => metrics(),
        _ => return None,
    })
}

fn metrics() -> Answer {
    let lost = r#"wardline_log_lost_total{cause="ring-full",direction="ingress",verdict="allow"} 0"#;
    Answer::Text(format!("{lost}\nwardline_log_stopped 0\n"))
}

fn all_well(path: &str) -> Answer {
    well(path).unwrap_or_else(metrics)
}

/// What `status` says with these arguments.
fn status(answer: fn(&str) -> Answer, arguments: &str) -> (String, u8) {
    let (server, _asked) = api_server::start(answer, |_, _| {});
    let directory = tempfile::tempdir().unwrap();
    let config = kubeconfig(directory.path(), &server);
    wardline(&format!("status --kubeconfig {} {arguments}", config.display()), "")
}

#[test]
fn a_cluster_that_is_well() {
    let (text, code) = status(all_well, "");
    assert!(
        text.ends_with("note: there is no NetworkLogging, so nothing is logged\nall is well\n"),
        "{text}"
    );
    assert_eq!(code, 0);
    let (text, code) = status(all_well, "-o json");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (json["well"].as_bool(), json["nodes"][1]["lost"]["total"].as_u64(), code),
        (Some(true), Some(0), 0)
    );
}

#[test]
fn a_daemon_that_does_not_answer_is_named_and_holds_up_nobody() {
    let began = Instant::now();
    let (text, code) = status(|path| well(path).unwrap_or(Answer::Never), "");
    let line = "DataplaneNode node2: its daemon does not tell its metrics: no answer within 5 s. Look: kubectl logs -n \
                wardline-system daemon-node2\n";
    assert!(text.contains(line) && text.ends_with("1 problem\n"), "{text}");
    assert_eq!(code, 1);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    // Also where less time is given than it takes to know that.
    let (text, code) = status(|path| well(path).unwrap_or(Answer::Never), "--wait --timeout 1s");
    assert!(text.contains(line) && code == 1, "{text}");

    let refused = |path: &str| well(path).unwrap_or_else(|| Answer::Refused(503, "connection refused".into()));
    let (text, code) = status(refused, "");
    assert!(
        text.contains("node2: its daemon does not tell its metrics: connection refused."),
        "{text}"
    );
    assert_eq!(code, 1);
    let (text, code) = status(refused, "--skip-daemons");
    assert!(
        text.contains("note: what was lost is not known: no daemon was asked\n"),
        "{text}"
    );
    assert_eq!(code, 0);
}

/// What one may not ask is not known, and that is said; without the objects themselves there is no answer.
#[test]
fn rights_that_are_missing_are_told() {
    let few = |path: &str| match path.split('?').next().unwrap_or(path) {
        path if path.contains("/pods") => Answer::Refused(403, "no right to pods".into()),
        path if path.ends_with("/nodes") => Answer::Refused(403, "no right to nodes".into()),
        path if path.contains("/leases") => Answer::Refused(403, "no right to leases".into()),
        path => all_well(path),
    };
    let (text, code) = status(few, "");
    for right in ["pods", "nodes", "leases"] {
        assert!(text.contains(&format!(": no right to {right}\n")), "{text}");
    }
    assert_eq!(code, 0);
    let none = |path: &str| match path {
        path if path.contains("/dataplanes") => Answer::Refused(403, "no right".into()),
        path => all_well(path),
    };
    for arguments in ["", "--wait --timeout 60s"] {
        assert_eq!(
            status(none, arguments),
            ("failed to list dataplanes: no right".to_owned(), 2)
        );
    }
}

#[test]
fn one_waits_until_it_is_so_or_the_time_is_over() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let later = |path: &str| {
        let is_lease = path.ends_with("/leases/wardline-operator");
        if is_lease && ASKED.fetch_add(1, Ordering::Relaxed) < 3 {
            return Answer::Refused(404, "there is none".into());
        }
        all_well(path)
    };
    let (text, code) = status(later, "--wait --interval 0s --timeout 60s");
    assert!(text.ends_with("all is well\n"), "{text}");
    assert_eq!((code, ASKED.load(Ordering::Relaxed)), (0, 4));

    let never = |path: &str| match path {
        path if path.ends_with("/leases/wardline-operator") => Answer::Refused(404, "there is none".into()),
        path => all_well(path),
    };
    let (text, code) = status(never, "--wait --interval 0s --timeout 1s");
    assert!(text.contains("there is no Lease") && code == 1, "{text}");
    for condition in ["ready", "synced", "updated"] {
        assert_eq!(
            status(never, &format!("--wait={condition} --timeout 60s")).1,
            0,
            "{condition}"
        );
    }
    let down = |_: &str| Answer::Refused(500, "it is down".into());
    let (text, code) = status(down, "--wait --interval 0s --timeout 1s");
    assert!(
        text.starts_with("not within 1 s: ") && text.ends_with("it is down"),
        "{text}"
    );
    assert_eq!(code, 2);
}

#[test]
fn a_wait_whose_last_looks_fail_shows_the_one_before() {
    static LOOKS: AtomicUsize = AtomicUsize::new(0);
    let down_since = |path: &str| match path {
        path if path.contains("/dataplanes") && LOOKS.fetch_add(1, Ordering::Relaxed) > 0 => {
            Answer::Refused(500, "it is down".into())
        }
        path if path.ends_with("/leases/wardline-operator") => Answer::Refused(404, "there is none".into()),
        path => all_well(path),
    };
    let (text, code) = status(down_since, "--wait --interval 0s --timeout 1s");
    assert!(text.contains("there is no Lease") && code == 1, "{text}");
    assert!(LOOKS.load(Ordering::Relaxed) > 1);
}

#[test]
fn who_watches_on_a_pipe_is_told_of_changes_alone() {
    static LOOKED: AtomicUsize = AtomicUsize::new(0);
    let changes = |path: &str| {
        let is_lease = path.ends_with("/leases/wardline-operator");
        let looked = if is_lease {
            LOOKED.fetch_add(1, Ordering::Relaxed)
        } else {
            0
        };
        if is_lease && (3..6).contains(&looked) {
            return Answer::Refused(404, "there is none".into());
        }
        all_well(path)
    };
    let (server, _asked) = api_server::start(changes, |_, _| {});
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_wardline"))
        .args(["status", "--watch", "--interval", "0s", "-o", "json", "--kubeconfig"])
        .arg(kubeconfig(directory.path(), &server))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let well: Vec<bool> = lines
        .take(3)
        .map(|line| {
            serde_json::from_str::<Value>(&line.unwrap()).unwrap()["well"]
                .as_bool()
                .unwrap()
        })
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(well, [true, false, true]);
}
