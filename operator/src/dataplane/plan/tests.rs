// SPDX-License-Identifier: Apache-2.0
mod removal;

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
        pod: Pod {
            name: format!("pod-{name}"),
            uid: format!("uid-{name}"),
            revision: revision.into(),
            created: at(NOW - ready.unwrap_or(6)),
            unready_since: at(NOW - 6),
            ready_since: ready.map(|seconds| at(NOW - seconds)),
            ..Pod::default()
        },
        report: Some(Report {
            revision: revision.into(),
            is_ready: ready.is_some(),
            ..Report::default()
        }),
        ..Node::default()
    }
}

fn old(name: &str) -> Node {
    node(name, "old", Some(5000))
}

fn well(name: &str) -> Node {
    node(name, "new", Some(100))
}

/// Nodes, and what is remembered of them.
#[derive(Clone, Copy)]
struct Case<'a> {
    nodes: &'a [Node],
    /// Of these nodes the pod was deleted, so many seconds ago; `old` where it is still that one.
    replacing: &'a [(&'a str, i64)],
    excused: &'a [&'a str],
    /// Nodes that have no pod.
    bare: &'a [&'a str],
    has_good: bool,
}

impl Case<'_> {
    fn decide(&self, pace: &RolloutSpec, way: Way) -> Decision {
        let existing = self.nodes.iter().map(|node| node.name.clone());
        let existing = existing
            .chain(self.bare.iter().map(|name| (*name).to_owned()))
            .collect();
        let replacing: Vec<ReplacedDaemon> = self
            .replacing
            .iter()
            .map(|(name, ago)| ReplacedDaemon {
                node: (*name).into(),
                pod: format!("former-{name}"),
                since: Time(at(NOW - ago)),
            })
            .collect();
        let excused: Vec<String> = self.excused.iter().map(|name| (*name).to_owned()).collect();
        let plan = Plan {
            revision: "new",
            way,
            desired: i32::try_from(self.nodes.len() + self.bare.len()).unwrap(),
            pace,
            existing: &existing,
            replacing: &replacing,
            excused: &excused,
            has_good: self.has_good,
            failed: None,
        };
        plan.decide(self.nodes, at(NOW))
    }

    fn step(&self, pace: &RolloutSpec, way: Way) -> String {
        match self.decide(pace, way).step {
            Step::Done => "done".into(),
            Step::Wait { why, again } => match again {
                Some(again) => format!("wait {} s: {why}", again.as_secs()),
                None => format!("wait: {why}"),
            },
            Step::Replace { pods, .. } => {
                assert!(pods.iter().all(|target| target.uid.ends_with(&target.node)));
                let pods: Vec<String> = pods.into_iter().map(|target| target.node).collect();
                format!("replace {}", pods.join(" "))
            }
            Step::GiveUp { node, why } => format!("give up, {node}: {why}"),
            Step::Stuck { why } => format!("stuck: {why}"),
        }
    }
}

fn case(nodes: &[Node]) -> Case<'_> {
    Case {
        nodes,
        replacing: &[],
        excused: &[],
        bare: &[],
        has_good: true,
    }
}

fn step(nodes: &[Node], pace: &RolloutSpec, way: Way) -> String {
    case(nodes).step(pace, way)
}

fn names(decision: &Decision) -> (Vec<&str>, Vec<&str>) {
    let replacing = decision.replacing.iter().map(|entry| &*entry.node).collect();
    (replacing, decision.excused.iter().map(|name| &**name).collect())
}

/// Not ready, and `trouble` why.
fn troubled(name: &str, revision: &str, message: &str, may_pass: bool, seconds: i64) -> Node {
    let mut node = node(name, revision, None);
    node.pod.trouble = Some(Trouble {
        message: message.into(),
        may_pass,
        since: at(NOW - seconds),
    });
    node
}

fn down(mut node: Node, seconds: i64) -> Node {
    node.down_since = Some(at(NOW - seconds));
    node
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
            leaving_since: Some(at(NOW - 5)),
            ..old("a").pod
        },
        ..old("a")
    };
    for (what, nodes, expected) in [
        ("begins", vec![old("a"), old("b"), old("c"), old("d")], "replace a"),
        (
            "leaves",
            vec![leaving, old("b"), old("c"), old("d")],
            "wait 295 s: a: its pod is ending",
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
        "stuck: no node that is up has the labels of spec.daemon.rollout.canary.nodeSelector"
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
    for nodes in [[old("b")], [well("b")]] {
        let case = Case {
            bare: &["a"],
            ..case(&nodes)
        };
        assert_eq!(case.step(&waves(1), Way::Forward), "wait: 1 nodes have no pod yet");
    }
}

#[test]
fn a_node_that_is_down_holds_up_nobody_and_gets_its_turn() {
    let any = RolloutSpec::default();
    assert_eq!(
        step(&[down(old("a"), 60), old("b"), old("c")], &any, Way::Forward),
        "replace b"
    );
    assert_eq!(
        step(&[down(old("a"), 60), well("b"), well("c")], &waves(1), Way::Forward),
        "done"
    );
    assert_eq!(
        step(&[old("a"), well("b"), well("c")], &waves(1), Way::Forward),
        "replace a"
    );
    // It had the revision for long.
    let mut dead = down(node("a", "new", None), 60);
    dead.pod.created = at(NOW - 5000);
    assert_eq!(step(&[dead, well("b"), old("c")], &waves(1), Way::Forward), "replace c");
    // It was down for long when its pod was made.
    let dead = down(node("a", "new", None), 5000);
    assert_eq!(step(&[dead, well("b"), old("c")], &waves(1), Way::Forward), "replace c");
}

#[test]
fn a_node_that_goes_down_with_it_keeps_its_place_and_ends_it() {
    let any = RolloutSpec::default();
    for (seconds, expected) in [
        (60, "wait 240 s: a: its kubelet does not answer"),
        (300, "give up, a: its kubelet does not answer"),
    ] {
        let mut dead = down(node("a", "new", None), seconds);
        dead.pod.created = at(NOW - seconds - 40);
        assert_eq!(step(&[dead, old("b"), old("c")], &any, Way::Forward), expected);
    }
}

#[test]
fn what_no_node_is_well_with_is_not_done() {
    let nodes = [down(old("a"), 60), down(old("b"), 60)];
    assert_eq!(
        step(&nodes, &waves(1), Way::Forward),
        "wait: no node is well with it yet"
    );
    assert_eq!(step(&[], &waves(1), Way::Forward), "done");
}

#[test]
fn a_node_keeps_its_place_while_it_has_no_pod() {
    let any = RolloutSpec {
        max_unavailable: IntOrString::Int(2),
        ..RolloutSpec::default()
    };
    let nodes = [old("b"), old("c")];
    let of = |ago: i64| -> String {
        let replacing = [("a", ago)];
        Case {
            replacing: &replacing,
            bare: &["a"],
            ..case(&nodes)
        }
        .step(&any, Way::Forward)
    };
    // The canary is on its way, and nobody takes its place.
    assert_eq!(of(10), "wait 290 s: 1 nodes have no pod yet");
    assert_eq!(of(300), "give up, a: no pod was made for it within 300 s");
    // A node that is gone is waited for by nobody.
    let gone = Case {
        replacing: &[("a", 10)],
        ..case(&nodes)
    };
    assert_eq!(gone.step(&any, Way::Forward), "replace b");
    assert_eq!(names(&gone.decide(&any, Way::Forward)).0, ["b"]);
    // Nor is it before its new pod has a node that can run it.
    let unscheduled = [
        troubled("a", "new", "Unschedulable: Insufficient cpu", true, 20),
        old("b"),
    ];
    let case = Case {
        replacing: &[("a", 30)],
        ..case(&unscheduled)
    };
    assert_eq!(
        case.step(&any, Way::Forward),
        "wait 40 s: a: Unschedulable: Insufficient cpu"
    );
}

#[test]
fn what_was_decided_is_done_again_until_it_came_to_pass() {
    let mut due = old("a");
    due.pod.uid = "former-a".into();
    let nodes = [due, old("b")];
    let case = Case {
        replacing: &[("a", 10)],
        ..case(&nodes)
    };
    assert_eq!(case.step(&waves(1), Way::Forward), "replace a");
    let decision = case.decide(&waves(1), Way::Forward);
    assert_eq!(decision.replacing[0].since, Time(at(NOW - 10)));
}

#[test]
fn nodes_that_were_not_well_before_get_it_first_and_take_nothing_back() {
    let any = RolloutSpec::default();
    let sick = troubled("b", "old", "CrashLoopBackOff", false, 1000);
    let before = [old("a"), sick, old("c")];
    let decision = case(&before).decide(&any, Way::Forward);
    assert_eq!(case(&before).step(&any, Way::Forward), "replace b");
    assert_eq!(names(&decision), (vec!["b"], vec!["b"]));
    // It helps: the canary is proven.
    let helped = [old("a"), well("b"), old("c")];
    let then = Case {
        excused: &["b"],
        ..case(&helped)
    };
    assert_eq!(then.step(&any, Way::Forward), "replace a");
    assert_eq!(
        names(&then.decide(&any, Way::Forward)),
        (vec!["a"], vec!["b"]),
        "a was well"
    );
    // It does not: another node is the canary, and can take it back.
    let still = troubled("b", "new", "CrashLoopBackOff", false, 50);
    let nodes = [old("a"), still.clone(), old("c")];
    let then = Case {
        replacing: &[("b", 60)],
        excused: &["b"],
        ..case(&nodes)
    };
    assert_eq!(then.step(&any, Way::Forward), "replace a");
    assert_eq!(names(&then.decide(&any, Way::Forward)), (vec!["a"], vec!["b"]));
    let nodes = [
        troubled("a", "new", "CrashLoopBackOff", false, 50),
        still.clone(),
        old("c"),
    ];
    let then = Case {
        replacing: &[("a", 60)],
        excused: &["b"],
        ..case(&nodes)
    };
    assert_eq!(then.step(&any, Way::Forward), "give up, a: CrashLoopBackOff");
    // All others have it.
    let nodes = [well("a"), still, well("c")];
    let then = Case {
        excused: &["b"],
        ..case(&nodes)
    };
    assert_eq!(then.step(&any, Way::Forward), "done");
}

#[test]
fn a_node_that_has_just_joined_takes_nothing_back() {
    let mut joined = troubled("z", "new", "ImagePullBackOff", true, 70);
    joined.created = at(NOW - 100);
    joined.pod.created = at(NOW - 90);
    let nodes = [well("a"), old("b"), joined.clone()];
    assert_eq!(step(&nodes, &RolloutSpec::default(), Way::Forward), "replace b");
    // Where nothing is good yet, all are new.
    let first = Case {
        has_good: false,
        ..case(&nodes)
    };
    assert_eq!(
        first.step(&RolloutSpec::default(), Way::Forward),
        "give up, z: ImagePullBackOff"
    );
}

#[test]
fn one_that_is_well_now_and_then_is_not_well() {
    let nodes = [node("a", "new", Some(4)), old("b")];
    let of = |ago: i64| -> String {
        let replacing = [("a", ago)];
        Case {
            replacing: &replacing,
            ..case(&nodes)
        }
        .step(&RolloutSpec::default(), Way::Forward)
    };
    assert_eq!(of(100), "wait 6 s: a: well so far");
    assert_eq!(of(310), "give up, a: not well for 10 s on end");
    // It is well since its daemon says so, not since its pod is ready.
    let mut late = well("a");
    late.report.as_mut().unwrap().changed = at(NOW - 3);
    assert_eq!(
        step(&[late, old("b")], &RolloutSpec::default(), Way::Forward),
        "wait 7 s: a: well so far"
    );
}

#[test]
fn a_pod_that_does_not_end_ends_it() {
    let mut leaving = old("a");
    leaving.pod.leaving_since = Some(at(NOW - 5));
    leaving.pod.uid = "former-a".into();
    let nodes = [leaving, old("b")];
    let of = |ago: i64, way| -> String {
        let replacing = [("a", ago)];
        Case {
            replacing: &replacing,
            ..case(&nodes)
        }
        .step(&waves(1), way)
    };
    assert_eq!(of(100, Way::Forward), "wait 200 s: a: its pod is ending");
    assert_eq!(of(300, Way::Forward), "give up, a: its pod does not end");
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
                    since: at(NOW),
                });
            }),
            "give up, a: CrashLoopBackOff: exit code 1",
        ),
        (
            "no image so far",
            with(|node| {
                node.pod.ready_since = None;
                // However long it was pulled before.
                node.pod.unready_since = at(NOW - 200);
                node.pod.trouble = Some(Trouble {
                    message: "ErrImagePull".into(),
                    may_pass: true,
                    since: at(NOW - 6),
                });
            }),
            "wait 54 s: a: ErrImagePull",
        ),
        (
            "no image for a minute",
            with(|node| {
                node.pod.ready_since = None;
                node.pod.trouble = Some(Trouble {
                    message: "ErrImagePull".into(),
                    may_pass: true,
                    since: at(NOW - 60),
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
            with(|node| node.report.as_mut().unwrap().revision = "old".into()),
            "wait 297 s: a: its daemon has not reported yet",
        ),
        (
            "policy is not in force",
            with(|node| node.report.as_mut().unwrap().is_ready = false),
            "wait 297 s: a: its policies are not in force",
        ),
        (
            "not verified yet",
            with(|node| node.report.as_mut().unwrap().unverified = Some("Starting".into())),
            "wait 297 s: a: Starting",
        ),
        (
            "fails its own test, and takes nothing over",
            with(|node| {
                node.pod.ready_since = None;
                node.report.as_mut().unwrap().unverified = Some("SelfTestFailed: a packet passed".into());
                node.report.as_mut().unwrap().has_failed = true;
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
    let report = refuses.report.as_mut().unwrap();
    report.is_ready = false;
    report.changed = at(NOW - 10);
    assert_eq!(
        step(&[refuses, old("b")], &RolloutSpec::default(), Way::Forward),
        "wait 290 s: a: its policies are not in force"
    );
}

#[test]
fn what_all_have_is_rolled_out_however_they_are() {
    let crashes = troubled("a", "new", "CrashLoopBackOff", false, 100);
    assert_eq!(step(&[crashes.clone(), well("b")], &waves(1), Way::Standing), "done");
    let mut restarted = well("a");
    restarted.pod.ready_since = None;
    assert_eq!(step(&[restarted, well("b")], &waves(1), Way::Standing), "done");
    // Who comes late gets it, and a node that does not work with it already holds up nobody.
    let any = RolloutSpec::default();
    assert_eq!(step(&[well("a"), old("b")], &any, Way::Standing), "replace b");
    assert_eq!(step(&[crashes, old("b")], &waves(1), Way::Standing), "replace b");
    // Nor is it done while the other revision still runs somewhere.
    let mut leaving = old("b");
    leaving.pod.leaving_since = Some(at(NOW - 5));
    assert_eq!(
        step(&[well("a"), leaving], &any, Way::Standing),
        "wait 295 s: b: its pod is ending"
    );
}

#[test]
fn back_to_what_was_good_goes_to_the_broken_ones_at_once() {
    let broken = |name| node(name, "bad", None);
    assert_eq!(
        step(&[broken("a"), broken("b"), old("c")], &waves(1), Way::Back),
        "replace a b c"
    );
    // Others wait for them.
    let nodes = [node("a", "new", Some(3)), node("b", "bad", Some(500)), well("c")];
    let then = Case {
        replacing: &[("a", 5)],
        ..case(&nodes)
    };
    assert_eq!(
        then.step(&RolloutSpec::default(), Way::Back),
        "wait 7 s: a: well so far"
    );
    let nodes = [well("a"), node("b", "bad", Some(500)), well("c")];
    assert_eq!(step(&nodes, &RolloutSpec::default(), Way::Back), "replace b");
}

#[test]
fn a_node_that_does_not_work_with_what_was_good_either_keeps_nobody_from_going_back() {
    let crashes = troubled("a", "new", "CrashLoopBackOff", false, 100);
    let nodes = [crashes.clone(), node("b", "bad", Some(500)), well("c")];
    let then = Case {
        replacing: &[("a", 110)],
        ..case(&nodes)
    };
    assert_eq!(then.step(&waves(1), Way::Back), "replace b");
    let nodes = [crashes, well("b"), well("c")];
    let then = Case {
        replacing: &[("a", 110)],
        ..case(&nodes)
    };
    assert_eq!(then.step(&waves(1), Way::Back), "done");
    assert_eq!(names(&then.decide(&waves(1), Way::Back)).0, Vec::<&str>::new());
    // Nor is it gone back once more when a daemon starts anew later.
    assert_eq!(step(&[node("a", "new", None), well("b")], &waves(1), Way::Back), "done");
}

#[test]
fn it_is_not_done_while_somebody_waits_for_a_turn() {
    // One that has what was good starts anew, and takes up the only place.
    let nodes = [node("a", "new", Some(3)), node("b", "bad", Some(500))];
    assert_eq!(
        step(&nodes, &RolloutSpec::default(), Way::Back),
        "wait 7 s: b: waits for its turn"
    );
    // A pod that somebody else has deleted, and that does not end, holds up nobody for longer than the deadline.
    let mut leaving = old("a");
    for (seconds, expected) in [(100, "wait 200 s: a: its pod is ending"), (300, "replace b")] {
        leaving.pod.leaving_since = Some(at(NOW - seconds));
        let nodes = [leaving.clone(), node("b", "bad", Some(500))];
        assert_eq!(step(&nodes, &waves(1), Way::Back), expected);
        assert_eq!(step(&nodes, &waves(1), Way::Forward), expected);
    }
}

#[test]
fn clocks_of_nodes_that_are_fast_or_slow_fail_nobody() {
    let any = RolloutSpec::default();
    let mut fast = well("a");
    fast.pod.ready_since = Some(at(NOW + 1000));
    fast.report.as_mut().unwrap().changed = at(NOW + 1000);
    assert_eq!(step(&[fast, old("b")], &any, Way::Forward), "replace b");
    let mut slow = node("a", "new", Some(4));
    slow.pod.ready_since = Some(at(NOW - 5000));
    assert_eq!(step(&[slow, old("b")], &any, Way::Forward), "wait 6 s: a: well so far");
}

#[test]
fn the_node_that_it_was_given_up_for_is_first_on_the_way_back() {
    let nodes = [node("a", "bad", Some(500)), node("b", "bad", Some(500))];
    let (existing, pace) = (BTreeSet::from(["a".to_owned(), "b".to_owned()]), waves(1));
    let plan = Plan {
        revision: "new",
        way: Way::Back,
        desired: 2,
        pace: &pace,
        existing: &existing,
        replacing: &[],
        excused: &[],
        has_good: true,
        failed: Some("b"),
    };
    assert!(matches!(plan.decide(&nodes, at(NOW)).step, Step::Replace { pods, .. } if pods[0].node == "b"));
}
