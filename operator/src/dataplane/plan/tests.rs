// SPDX-License-Identifier: Apache-2.0
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use wardline_crds::Canary;

use super::*;

const NOW: i64 = 10_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A node whose pod is of that revision, and has been ready for so many seconds.
fn node(name: &str, revision: &str, ready: Option<i64>) -> Node {
    Node {
        name: name.into(),
        labels: BTreeMap::from([("host".into(), name.into())]),
        is_up: true,
        pod: Pod {
            name: format!("pod-{name}"),
            uid: format!("uid-{name}"),
            revision: revision.into(),
            unready_since: at(NOW - 6),
            ready_since: ready.map(|seconds| at(NOW - seconds)),
            ..Pod::default()
        },
        report: Report {
            revision: revision.into(),
            is_ready: ready.is_some(),
            ..Report::default()
        },
    }
}

fn old(name: &str) -> Node {
    node(name, "old", Some(5000))
}

fn well(name: &str) -> Node {
    node(name, "new", Some(100))
}

fn step(nodes: &[Node], pace: &RolloutSpec, way: Way) -> String {
    let plan = Plan {
        revision: "new",
        way,
        desired: i32::try_from(nodes.len()).unwrap(),
        pace,
    };
    match plan.step(nodes, at(NOW)) {
        Step::Done => "done".into(),
        Step::Wait { why, again } => match again {
            Some(again) => format!("wait {} s: {why}", again.as_secs()),
            None => format!("wait: {why}"),
        },
        Step::Replace { pods, .. } => {
            assert!(pods.iter().all(|target| target.uid == format!("uid-{}", target.node)));
            let pods: Vec<String> = pods.into_iter().map(|target| target.node).collect();
            format!("replace {}", pods.join(" "))
        }
        Step::GiveUp { node, why } => format!("give up, {node}: {why}"),
    }
}

fn waves(most: i32) -> RolloutSpec {
    RolloutSpec {
        max_unavailable: IntOrString::Int(most),
        canary: Canary {
            nodes: 0,
            ..Canary::default()
        },
        ..RolloutSpec::default()
    }
}

#[test]
fn a_canary_then_waves() {
    let pace = RolloutSpec {
        max_unavailable: IntOrString::Int(2),
        ..RolloutSpec::default()
    };
    let starting = node("a", "new", None);
    let settling = node("a", "new", Some(4));
    let leaving = Node {
        pod: Pod {
            is_leaving: true,
            ..old("a").pod
        },
        ..old("a")
    };
    for (what, nodes, expected) in [
        ("begins", vec![old("a"), old("b"), old("c"), old("d")], "replace a"),
        (
            "leaves",
            vec![leaving, old("b"), old("c"), old("d")],
            "wait: a: its pod is ending",
        ),
        (
            "starts",
            vec![starting, old("b"), old("c"), old("d")],
            "wait 294 s: a: its pod is not ready",
        ),
        (
            "settles",
            vec![settling, old("b"), old("c"), old("d")],
            "wait 6 s: a: well so far",
        ),
        ("goes on", vec![well("a"), old("b"), old("c"), old("d")], "replace b c"),
        (
            "one is there",
            vec![well("a"), well("b"), node("c", "new", Some(4)), old("d")],
            "replace d",
        ),
        (
            "the last",
            vec![well("a"), well("b"), well("c"), node("d", "new", Some(4))],
            "wait 6 s: d: well so far",
        ),
        ("all", vec![well("a"), well("b"), well("c"), well("d")], "done"),
    ] {
        assert_eq!(step(&nodes, &pace, Way::Forward), expected, "{what}");
    }
}

#[test]
fn canaries_are_chosen_by_label_and_stay_the_same() {
    let pace = |label: &str, nodes| RolloutSpec {
        canary: Canary {
            nodes,
            node_selector: BTreeMap::from([("host".to_owned(), label.to_owned())]),
        },
        ..RolloutSpec::default()
    };
    assert_eq!(step(&[old("a"), old("b")], &pace("b", 1), Way::Forward), "replace b");
    assert_eq!(
        step(&[old("a"), node("b", "new", Some(4))], &pace("b", 1), Way::Forward),
        "wait 6 s: b: well so far"
    );
    assert_eq!(step(&[old("a"), well("b")], &pace("b", 1), Way::Forward), "replace a");
    assert_eq!(
        step(&[old("a")], &pace("x", 1), Way::Forward),
        "wait: no node that is up has the labels of spec.daemon.rollout.canary.nodeSelector"
    );
    // What began on one node goes on there, though another comes first by its name now.
    let any = RolloutSpec::default();
    assert_eq!(
        step(&[old("a"), node("b", "new", Some(4)), old("c")], &any, Way::Forward),
        "wait 6 s: b: well so far"
    );
}

#[test]
fn never_more_than_may_be_unavailable() {
    let idle = node("a", "old", None);
    assert_eq!(
        step(&[idle.clone(), old("b"), old("c")], &waves(1), Way::Forward),
        "replace a"
    );
    assert_eq!(
        step(&[node("a", "new", None), old("b")], &waves(1), Way::Forward),
        "wait 294 s: a: its pod is not ready"
    );
    assert_eq!(
        step(&[old("a"), old("b"), old("c")], &waves(2), Way::Forward),
        "replace a b"
    );
    let share = RolloutSpec {
        max_unavailable: IntOrString::String("50%".into()),
        ..waves(1)
    };
    assert_eq!(
        step(&[old("a"), old("b"), old("c")], &share, Way::Forward),
        "replace a b"
    );
    // A pod that was deleted is made again by somebody else.
    let plan = Plan {
        revision: "new",
        way: Way::Forward,
        desired: 2,
        pace: &waves(1),
    };
    let why = "1 nodes have no pod yet".to_owned();
    assert_eq!(
        plan.step(&[old("b")], at(NOW)),
        Step::Wait {
            why: why.clone(),
            again: None
        }
    );
    assert_eq!(plan.step(&[well("b")], at(NOW)), Step::Wait { why, again: None });
}

#[test]
fn a_node_that_is_down_holds_up_nobody_and_gets_its_turn() {
    let down = |node| Node { is_up: false, ..node };
    assert_eq!(
        step(
            &[down(old("a")), old("b"), old("c")],
            &RolloutSpec::default(),
            Way::Forward
        ),
        "replace b"
    );
    assert_eq!(
        step(&[down(old("a")), well("b"), well("c")], &waves(1), Way::Forward),
        "done"
    );
    assert_eq!(
        step(
            &[down(node("a", "new", None)), well("b"), old("c")],
            &waves(1),
            Way::Forward
        ),
        "replace c"
    );
    assert_eq!(
        step(&[old("a"), well("b"), well("c")], &waves(1), Way::Forward),
        "replace a"
    );
}

#[test]
fn what_is_not_well_ends_it() {
    let with = |change: fn(&mut Node)| {
        let mut node = node("a", "new", Some(3));
        change(&mut node);
        vec![node, old("b")]
    };
    for (what, nodes, expected) in [
        (
            "crashes",
            with(|node| {
                node.pod.ready_since = None;
                node.pod.trouble = Some(Trouble {
                    message: "CrashLoopBackOff: exit code 1".into(),
                    may_pass: false,
                });
            }),
            "give up, a: CrashLoopBackOff: exit code 1",
        ),
        (
            "no image so far",
            with(|node| {
                node.pod.ready_since = None;
                node.pod.trouble = Some(Trouble {
                    message: "ErrImagePull".into(),
                    may_pass: true,
                });
            }),
            "wait 54 s: a: ErrImagePull",
        ),
        (
            "no image for a minute",
            with(|node| {
                node.pod.ready_since = None;
                node.pod.unready_since = at(NOW - 60);
                node.pod.trouble = Some(Trouble {
                    message: "ErrImagePull".into(),
                    may_pass: true,
                });
            }),
            "give up, a: ErrImagePull",
        ),
        (
            "never ready",
            with(|node| {
                node.pod.ready_since = None;
                node.pod.unready_since = at(NOW - 300);
            }),
            "give up, a: not well after 300 s: its pod is not ready",
        ),
        (
            "ready, and silent",
            with(|node| node.report.revision = "old".into()),
            "wait 297 s: a: its daemon has not reported yet",
        ),
        (
            "policy is not in force",
            with(|node| node.report.is_ready = false),
            "wait 297 s: a: its policies are not in force",
        ),
        (
            "not verified yet",
            with(|node| node.report.unverified = Some("Starting".into())),
            "wait 297 s: a: Starting",
        ),
        (
            "fails its own test",
            with(|node| {
                node.report.unverified = Some("SelfTestFailed: a packet passed".into());
                node.report.has_failed = true;
            }),
            "give up, a: SelfTestFailed: a packet passed",
        ),
    ] {
        assert_eq!(step(&nodes, &RolloutSpec::default(), Way::Forward), expected, "{what}");
    }
}

#[test]
fn a_daemon_that_starts_again_has_all_the_time_again() {
    let mut restarted = well("a");
    restarted.pod.ready_since = None;
    assert_eq!(
        step(&[restarted, old("b")], &RolloutSpec::default(), Way::Forward),
        "wait 294 s: a: its pod is not ready"
    );
    let mut refuses = well("a");
    refuses.report.is_ready = false;
    refuses.report.changed = at(NOW - 10);
    assert_eq!(
        step(&[refuses, old("b")], &RolloutSpec::default(), Way::Forward),
        "wait 290 s: a: its policies are not in force"
    );
}

#[test]
fn what_all_have_is_rolled_out_however_they_are() {
    let mut crashes = node("a", "new", None);
    crashes.pod.trouble = Some(Trouble {
        message: "CrashLoopBackOff".into(),
        may_pass: false,
    });
    assert_eq!(step(&[crashes.clone(), well("b")], &waves(1), Way::Standing), "done");
    // Who comes late gets it when the others are well.
    assert_eq!(
        step(&[well("a"), old("b")], &RolloutSpec::default(), Way::Standing),
        "replace b"
    );
    assert_eq!(
        step(&[crashes, old("b")], &waves(1), Way::Standing),
        "wait: a: CrashLoopBackOff"
    );
}

#[test]
fn back_to_what_was_good_goes_to_the_broken_ones_at_once() {
    let broken = |name| node(name, "bad", None);
    assert_eq!(
        step(&[broken("a"), broken("b"), old("c")], &waves(1), Way::Back),
        "replace a b"
    );
    // Others wait for them.
    let nodes = [node("a", "new", Some(3)), node("b", "bad", Some(500)), well("c")];
    assert_eq!(
        step(&nodes, &RolloutSpec::default(), Way::Back),
        "wait 7 s: a: well so far"
    );
    let nodes = [well("a"), node("b", "bad", Some(500)), well("c")];
    assert_eq!(step(&nodes, &RolloutSpec::default(), Way::Back), "replace b");
}
