// SPDX-License-Identifier: Apache-2.0
//! What nobody writes into a status, for whoever would is gone; and what is known besides.

use std::collections::BTreeMap;

use serde_json::json;

use super::{condition, pod, read, text, well};
use crate::status::figures::Figures;
use crate::status::look::Seen;
use crate::status::report::{Losses, report};

/// What is so, how it differs from a cluster that is well, and the line that tells it, or how that begins.
type Case = (&'static str, fn(&mut Seen), &'static str);

#[track_caller]
fn is_the_one_problem((what, change, expected): Case) {
    let mut seen = well();
    change(&mut seen);
    let report = report(seen, None);
    let text = text(&report, false);
    assert_eq!(report.problems.len(), 1, "{what}: {text}");
    assert!(text.lines().any(|line| line.starts_with(expected)), "{what}: {text}");
}

#[test]
fn an_operator_that_is_gone_is_told_with_what_to_do() {
    let changes: [Case; 4] = [
        (
            "an expired lease",
            |seen| seen.now = "2026-01-01T00:03:11Z".parse().unwrap(),
            "Operator wardline-operator: no operator works: operator-1 has not renewed Lease wardline-operator since \
             2026-01-01T00:02:50Z. Nothing is rolled out, and statuses are old; policies stay in force. Look: kubectl get \
             pods -n wardline-system -l app.kubernetes.io/name=wardline-operator",
        ),
        (
            "no lease",
            |seen| seen.lease = Ok(None),
            "Operator wardline-operator: no operator has ever worked here: there is no Lease wardline-operator. Nothing",
        ),
        (
            "a lease that was given back",
            |seen| seen.lease = Ok(Some(read(json!({"spec": {"holderIdentity": ""}})))),
            "Operator wardline-operator: no operator works: nobody holds Lease wardline-operator. Nothing",
        ),
        (
            "no operator's pod",
            |seen| _ = seen.pods.as_mut().unwrap().pop(),
            "Operator wardline-operator: it has no pod. Look: kubectl describe deployment -n wardline-system \
             wardline-operator",
        ),
    ];
    for case in changes {
        is_the_one_problem(case);
    }
}

#[test]
fn who_is_gone_from_a_node_is_told_with_what_to_do() {
    let changes: [Case; 9] = [
        (
            "no daemon's pod",
            |seen| _ = seen.pods.as_mut().unwrap().remove(0),
            "DataplaneNode node1: no daemon runs there: what was enforced stays so, changes and new pods wait. Look: \
             kubectl describe daemonset -n wardline-system wardline-node",
        ),
        (
            "a daemon that crashes",
            |seen| {
                let mut crashing = pod("wardline-node", "d", "node1");
                crashing["status"]["conditions"][0]["status"] = json!("False");
                crashing["status"]["containerStatuses"][0]["restartCount"] = json!(3);
                crashing["status"]["containerStatuses"][0]["state"] =
                    json!({"waiting": {"reason": "CrashLoopBackOff"}});
                crashing["status"]["containerStatuses"][0]["lastState"] =
                    json!({"terminated": {"exitCode": 1, "message": "starting\nwardline-node: no BTF\n"}});
                seen.pods.as_mut().unwrap()[0] = read(crashing);
            },
            "DataplaneNode node1: its daemon is not ready: CrashLoopBackOff, restarted 3 times, ended with exit code 1: \
             wardline-node: no BTF. Look: kubectl logs -n wardline-system d, and with --previous",
        ),
        (
            "a daemon that does not answer",
            |seen| {
                let answer = Err("no answer within 5 s".to_owned());
                seen.figures = Some(Ok(BTreeMap::from([("node1".to_owned(), answer)])));
            },
            "DataplaneNode node1: its daemon does not tell its metrics: no answer within 5 s. Look: kubectl logs -n \
             wardline-system daemon-node1",
        ),
        (
            "a report of a daemon that ended",
            |seen| {
                let mut restarted = pod("wardline-node", "d", "node1");
                restarted["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] =
                    json!("2026-01-01T00:00:30Z");
                seen.pods.as_mut().unwrap()[0] = read(restarted);
            },
            "DataplaneNode node1: what it says is of a daemon that ended: the one that runs since 2026-01-01T00:00:30Z has \
             not written it. Look whether it reaches the API server: kubectl logs -n wardline-system d",
        ),
        (
            "no DataplaneNode",
            |seen| seen.nodes = Some(vec![]),
            "DataplaneNode node1: its daemon has not said anything yet. Look: kubectl logs -n wardline-system daemon-node1",
        ),
        (
            "no DataplaneNode, and the nodes are not known",
            |seen| {
                (seen.nodes, seen.cluster_nodes) = (Some(vec![]), Err("nodes is forbidden".to_owned()));
                (seen.pods, seen.figures) = (Err("pods is forbidden".to_owned()), None);
            },
            "Dataplane default: 1 of 1 nodes have no DataplaneNode yet",
        ),
        (
            "a node that is down",
            |seen| {
                let unknown = json!({
                    "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
                    "lastTransitionTime": "2026-01-01T00:02:00Z",
                });
                seen.cluster_nodes = Ok(vec![read(
                    json!({"metadata": {"name": "node1"}, "status": {"conditions": [unknown]}}),
                )]);
            },
            "DataplaneNode node1: the node is not ready since 2026-01-01T00:02:00Z (NodeStatusUnknown). Look: kubectl \
             describe node node1",
        ),
        (
            "a log that has just stopped",
            |seen| {
                let figures = Figures {
                    is_log_stopped: true,
                    ..Figures::default()
                };
                seen.figures = Some(Ok(BTreeMap::from([("node1".to_owned(), Ok(figures))])));
            },
            "DataplaneNode node1: its policy log cannot be written; its DataplaneNode will say why",
        ),
        (
            "a change that was taken back",
            |seen| {
                let status = &mut seen.dataplanes.as_mut().unwrap()[0]["status"];
                status["conditions"][2] = condition("Stalled", "True", "RolledBack", "node1: it crashes");
            },
            "Dataplane default: Stalled is True (RolledBack): node1: it crashes",
        ),
    ];
    for case in changes {
        is_the_one_problem(case);
    }
}

#[test]
fn what_is_known_besides_is_a_note() {
    let changes: [Case; 6] = [
        (
            "records were lost",
            |seen| {
                let lost = [("ring-full", 3), ("disk-full", 9)].map(|(cause, count)| (cause.to_owned(), count));
                let figures = Figures {
                    lost: lost.into(),
                    ..Figures::default()
                };
                seen.figures = Some(Ok(BTreeMap::from([("node1".to_owned(), Ok(figures))])));
            },
            "note: node1: records were lost since it booted: 9 disk-full, 3 ring-full",
        ),
        (
            "no right to metrics",
            |seen| seen.figures = Some(Err("pods/proxy is forbidden".into())),
            "note: what was lost is not known: pods/proxy is forbidden",
        ),
        (
            "no right to the lease",
            |seen| seen.lease = Err("leases is forbidden".into()),
            "note: it is not known whether an operator works: leases is forbidden",
        ),
        (
            "nodes that are excused",
            |seen| seen.dataplanes.as_mut().unwrap()[0]["status"]["rollout"]["excused"] = json!(["node1"]),
            "note: excused of the rollout, for they were not well before: node1",
        ),
        (
            "a rollout that goes on",
            |seen| {
                seen.dataplanes.as_mut().unwrap()[0]["status"]["rollout"]["replacing"] =
                    json!([{"node": "node1", "pod": "uid", "since": "2026-01-01T00:02:00Z"}]);
            },
            "note: revision abc comes to node1 (since 2026-01-01T00:02:00Z)",
        ),
        (
            "a node that is left out",
            |seen| {
                seen.dataplanes.as_mut().unwrap()[0]["spec"] = json!({"daemon": {"nodeSelector": {"a": "b"}}});
                seen.pods.as_mut().unwrap().remove(0);
            },
            "note: node1: the Dataplane leaves it out, so nothing of its DataplaneNode is kept true",
        ),
    ];
    for (what, change, expected) in changes {
        let mut seen = well();
        change(&mut seen);
        let report = report(seen, None);
        let text = text(&report, false);
        assert!(report.well, "{what}: {text}");
        assert!(text.lines().any(|line| line == expected), "{what}: {text}");
    }
}

#[test]
fn losses_while_one_watches_are_a_problem() {
    let lost = |count| {
        let figures = Figures {
            lost: BTreeMap::from([("ring-full".to_owned(), count)]),
            ..Figures::default()
        };
        let mut seen = well();
        seen.figures = Some(Ok(BTreeMap::from([("node1".to_owned(), Ok(figures))])));
        seen
    };
    let before = Losses::from([("node1".to_owned(), 4)]);
    assert!(report(lost(4), Some(&before)).well);
    let report = report(lost(7), Some(&before));
    let text = text(&report, false);
    let line = "DataplaneNode node1: records are being lost: 7 ring-full since the node booted";
    assert!(
        text.lines().any(|shown| shown == line) && text.contains(" 7 (+3) "),
        "{text}"
    );
}

#[test]
fn wide_tells_of_kernel_revision_and_pod() {
    let text = text(&report(well(), None), true);
    let row = text.lines().find(|line| line.starts_with("node1")).unwrap();
    assert!(
        row.ends_with("on    abc        6.18.1   tcx      daemon-node1   0"),
        "{text}"
    );
}
