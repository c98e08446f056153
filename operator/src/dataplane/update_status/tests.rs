// SPDX-License-Identifier: Apache-2.0
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use wardline_crds::{DataplaneSpec, ReplacedDaemon, RolloutSpec, condition};

use super::super::plan::{Node, Plan, Trouble, Way};
use super::super::truth;
use super::*;
use crate::nodes::Report;

fn rollout(current: bool, desired: i32, ready: i32) -> Rollout {
    Rollout {
        current,
        desired,
        ready,
        ..Rollout::default()
    }
}

/// A node that is well with a revision.
fn node(revision: &str) -> Node {
    let mut node = Node {
        report: Some(Report {
            is_ready: true,
            revision: revision.into(),
            ..Report::default()
        }),
        ..Node::default()
    };
    node.pod.revision = revision.into();
    node.pod.ready_since = Some(Timestamp::UNIX_EPOCH);
    node
}

/// So many nodes with what the spec asks for, and so many with another revision; of all, so many are well.
fn machines(new: usize, old: usize, well: usize) -> Vec<Node> {
    let mut nodes = [vec![node("new"); new], vec![node("old"); old]].concat();
    for (n, node) in nodes.iter_mut().enumerate() {
        node.name = format!("node{}", n + 1);
    }
    for node in &mut nodes[well..] {
        node.pod.ready_since = None;
    }
    nodes
}

fn summary(status: &DataplaneStatus) -> String {
    let words: Vec<String> = status
        .conditions
        .iter()
        .map(|c| format!("{}={}/{}", c.type_, c.status, c.reason))
        .collect();
    let DataplaneNodeCounts {
        desired,
        updated,
        ready,
        ..
    } = status.nodes;
    format!("{desired} {updated} {ready} {}", words.join(" "))
}

fn dataplane() -> Dataplane {
    let mut dataplane = Dataplane::new("default", DataplaneSpec::default());
    dataplane.metadata.generation = Some(4);
    dataplane
}

fn at(step: Step) -> Progress {
    Progress {
        rollout: RolloutStatus::default(),
        built: "new".into(),
        step,
    }
}

fn give_up() -> Step {
    Step::GiveUp {
        node: "node2".into(),
        why: "it crashes".into(),
    }
}

fn back(step: Step) -> Progress {
    let mut progress = at(step);
    progress.rollout.failed = Some(FailedRollout {
        generation: 4,
        revision: "new".into(),
        node: "node2".into(),
        message: "it crashes".into(),
    });
    progress
}

#[test]
#[rustfmt::skip]
fn a_rollout_step_by_step() {
    let refused = Outcome::Refused("failed to validate".into());
    let failed = Outcome::Failed("failed to apply".into());
    let removing = Outcome::Removing("node1: it is being cleaned".into());
    let applied = Outcome::Applied;
    let wait = || Step::waiting("node1: its pod is not ready");
    let replacing = |nodes: &[&str], mut progress: Progress| {
        let entry = |node: &&str| ReplacedDaemon { node: (*node).into(), pod: String::new(), since: Time(Timestamp::UNIX_EPOCH) };
        progress.rollout.replacing = nodes.iter().map(entry).collect();
        progress
    };
    for (what, outcome, progress, set, machines, expected) in [
        ("just applied", &applied, at(wait()), rollout(false, 0, 0), vec![],
         "0 0 0 Ready=False/RollingOut Available=False/NoNodes Stalled=False/AsExpected Progressing=True/RollingOut Degraded=False/AsExpected"),
        ("pods start", &applied, at(wait()), rollout(true, 3, 1), machines(3, 0, 1),
         "3 3 1 Ready=False/RollingOut Available=False/NotEnforced Stalled=False/AsExpected Progressing=True/RollingOut Degraded=False/AsExpected"),
        ("all ready", &applied, at(Step::Done), rollout(true, 3, 3), machines(3, 0, 3),
         "3 3 3 Ready=True/Ready Available=True/Enforced Stalled=False/AsExpected Progressing=False/RolledOut Degraded=False/AsExpected"),
        ("a daemon crashes", &applied, at(Step::Done), rollout(true, 3, 2), machines(3, 0, 2),
         "3 3 2 Ready=False/NodesNotReady Available=False/NotEnforced Stalled=False/AsExpected Progressing=False/RolledOut Degraded=False/AsExpected"),
        ("a change, not seen yet", &applied, at(wait()), rollout(false, 3, 3), machines(0, 3, 3),
         "3 0 3 Ready=False/RollingOut Available=True/Enforced Stalled=False/AsExpected Progressing=True/RollingOut Degraded=False/AsExpected"),
        ("a change, half way", &applied, replacing(&["node3"], at(wait())), rollout(true, 3, 2), machines(2, 1, 2),
         "3 2 2 Ready=False/RollingOut Available=True/Enforced Stalled=False/AsExpected Progressing=True/RollingOut Degraded=False/AsExpected"),
        ("on the way back", &applied, replacing(&["node3"], back(wait())), rollout(true, 3, 2), machines(0, 3, 2),
         "3 0 2 Ready=False/RollingBack Available=True/Enforced Stalled=False/AsExpected Progressing=True/RollingBack Degraded=True/RolledBack"),
        ("back", &applied, back(Step::Done), rollout(true, 3, 3), machines(0, 3, 3),
         "3 0 3 Ready=False/RolledBack Available=True/Enforced Stalled=True/RolledBack Progressing=False/RolledBack Degraded=True/RolledBack"),
        ("nothing to go back to", &applied, at(give_up()), rollout(true, 3, 0), machines(3, 0, 0),
         "3 3 0 Ready=False/RolloutStuck Available=False/NotEnforced Stalled=True/RolloutStuck Progressing=False/RolloutStuck Degraded=True/RolloutStuck"),
        ("no node matches", &applied, at(Step::Done), rollout(true, 0, 0), vec![],
         "0 0 0 Ready=False/NoNodes Available=False/NoNodes Stalled=False/AsExpected Progressing=False/RolledOut Degraded=False/AsExpected"),
        ("refused, the old one is in force", &refused, at(Step::Done), rollout(true, 3, 3), machines(3, 0, 3),
         "3 3 3 Ready=False/InvalidDataplane Available=True/Enforced Stalled=True/InvalidDataplane Progressing=False/RolledOut Degraded=True/InvalidDataplane"),
        ("the API server refuses half way", &failed, at(wait()), rollout(true, 3, 3), machines(2, 1, 3),
         "3 2 3 Ready=False/ApplyFailed Available=True/Enforced Stalled=True/ApplyFailed Progressing=False/Halted Degraded=True/ApplyFailed"),
        ("the API server refuses", &failed, at(Step::Done), rollout(true, 3, 3), machines(3, 0, 3),
         "3 3 3 Ready=False/ApplyFailed Available=True/Enforced Stalled=True/ApplyFailed Progressing=False/RolledOut Degraded=True/ApplyFailed"),
        ("it is removed", &removing, at(wait()), rollout(true, 3, 3), machines(0, 3, 3),
         "3 0 3 Ready=False/Removing Available=False/Removing Stalled=False/AsExpected Progressing=True/Removing Degraded=False/AsExpected"),
        ("and cannot be", &removing, at(Step::Stuck { why: "no spec".into() }), rollout(true, 0, 0), vec![],
         "0 0 0 Ready=False/Removing Available=False/Removing Stalled=True/RemovalStuck Progressing=False/RemovalStuck Degraded=True/RemovalStuck"),
    ] {
        let existing = (1..=3).map(|n| format!("node{n}")).collect();
        let observed = Observed { rollout: Some(set), machines: Some(machines), existing, ..Observed::default() };
        let status = compute(&dataplane(), outcome, &progress, &observed, Timestamp::UNIX_EPOCH);
        assert_eq!(summary(&status), expected, "{what}");
        assert_eq!(status.observed_generation, 4);
        truth::check(&serde_json::to_value(status).unwrap());
    }
}

/// Pods may be ready all the same.
#[test]
fn what_a_daemon_says_of_its_node_counts() {
    type Change = fn(&mut Node);
    let cases: [(&str, Change, &str, &str); 6] = [
        (
            "programs do not judge as they should",
            |node| {
                let report = node.report.as_mut().unwrap();
                (report.unverified, report.has_failed) = (Some("SelfTestFailed: x".into()), true);
            },
            "1 of 2 nodes are well; node2: SelfTestFailed: x",
            "False/NotEnforced",
        ),
        (
            "policies are not in force",
            |node| node.report.as_mut().unwrap().is_ready = false,
            "1 of 2 nodes are well; node2: its policies are not in force",
            "False/NotEnforced",
        ),
        (
            "nobody ever said anything",
            |node| node.report = None,
            "1 of 2 nodes are well; node2: its daemon has not reported yet",
            "False/NotEnforced",
        ),
        (
            "its word is of the daemon before",
            |node| node.report.as_mut().unwrap().revision = "old".into(),
            "1 of 2 nodes are well; node2: its daemon has not reported yet",
            "True/Enforced",
        ),
        (
            "it has missed the change",
            |node| node.pod.revision = "old".into(),
            "1 of 2 nodes are well; node2: it has another revision",
            "True/Enforced",
        ),
        (
            "its kubelet has just gone",
            |node| node.down_since = Some(Timestamp::UNIX_EPOCH),
            "1 of 2 nodes are well; node2: its kubelet does not answer",
            "True/Enforced",
        ),
    ];
    for (what, change, message, expected) in cases {
        let mut machines = machines(2, 0, 2);
        change(&mut machines[1]);
        let observed = Observed {
            rollout: Some(rollout(true, 2, 2)),
            machines: Some(machines),
            ..Observed::default()
        };
        let progress = at(Step::Done);
        let status = compute(
            &dataplane(),
            &Outcome::Applied,
            &progress,
            &observed,
            Timestamp::UNIX_EPOCH,
        );
        let ready = condition::find(&status.conditions, "Ready").unwrap();
        assert_eq!((&*ready.status, &*ready.message), ("False", message), "{what}");
        let available = condition::find(&status.conditions, "Available").unwrap();
        assert_eq!(format!("{}/{}", available.status, available.reason), expected, "{what}");
    }
}

#[test]
fn who_was_not_well_before_left_nothing_in_force() {
    let mut progress = at(Step::waiting("node2: its pod is not ready"));
    progress.rollout.replacing = vec![ReplacedDaemon {
        node: "node2".into(),
        pod: String::new(),
        since: Time(Timestamp::UNIX_EPOCH),
    }];
    let observed = Observed {
        rollout: Some(rollout(true, 2, 1)),
        machines: Some(machines(2, 0, 1)),
        ..Observed::default()
    };
    let mut is_available = |excused: &[&str]| {
        progress.rollout.excused = excused.iter().map(|node| (*node).to_owned()).collect();
        available(&Outcome::Applied, &progress, &observed).0
    };
    assert_eq!(
        (is_available(&[]), is_available(&["node2"])),
        (Status::True, Status::False)
    );
}

#[test]
fn nothing_new_gives_the_same_status() {
    let observed = Observed {
        rollout: Some(rollout(true, 2, 2)),
        machines: Some(machines(2, 0, 2)),
        ..Observed::default()
    };
    let later = Timestamp::UNIX_EPOCH + k8s_openapi::jiff::SignedDuration::from_secs(60);
    let mut dataplane = dataplane();
    let mut compute = |now| {
        let progress = at(Step::Done);
        let status = compute(&dataplane, &Outcome::Applied, &progress, &observed, now);
        dataplane.status = Some(status.clone());
        status
    };
    assert_eq!(compute(Timestamp::UNIX_EPOCH), compute(later));
}

/// How one node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its daemon has the revision that is wanted, and is well.
    Well,
    /// It has another, and is well with that.
    Outdated,
    NotReady,
    Crashing,
    Unverified,
    NotInForce,
    /// What is said of it was said by the daemon before.
    Silent,
    Leaving,
    Down,
    Bare,
}

impl State {
    const ALL: [Self; 10] = [
        Self::Well,
        Self::Outdated,
        Self::NotReady,
        Self::Crashing,
        Self::Unverified,
        Self::NotInForce,
        Self::Silent,
        Self::Leaving,
        Self::Down,
        Self::Bare,
    ];

    /// Whether a daemon is there that enforces.
    fn enforces(self) -> bool {
        matches!(self, Self::Well | Self::Outdated | Self::Silent)
    }

    fn node(self, name: &str) -> Option<Node> {
        let mut found = node(if self == Self::Outdated { "old" } else { "new" });
        name.clone_into(&mut found.name);
        found.pod.unready_since = now();
        let report = found.report.as_mut()?;
        match self {
            Self::Well | Self::Outdated => {}
            Self::NotReady => found.pod.ready_since = None,
            Self::Crashing => {
                found.pod.ready_since = None;
                found.pod.trouble = Some(Trouble {
                    message: "CrashLoopBackOff".into(),
                    may_pass: false,
                    since: now(),
                });
            }
            Self::Unverified => {
                report.unverified = Some("SelfTestFailed".into());
                report.has_failed = true;
            }
            Self::NotInForce => report.is_ready = false,
            Self::Silent => report.revision = "old".into(),
            // Kubelets take a pod that ends for one that is not ready.
            Self::Leaving => {
                found.pod.ready_since = None;
                found.pod.leaving_since = Some(now());
            }
            Self::Down => found.down_since = Some(now()),
            Self::Bare => return None,
        }
        Some(found)
    }
}

fn now() -> Timestamp {
    Timestamp::from_second(100_000).unwrap()
}

/// Where a rollout is, and what is remembered of it.
#[derive(Debug, Clone, Copy)]
struct Course {
    way: Way,
    /// Whether the DaemonSet's controller has seen it.
    seen: bool,
    /// Whether node1 was replaced by it, and whether it was well before.
    replaced: Option<bool>,
}

fn courses() -> Vec<Course> {
    let mut courses = Vec::new();
    for way in [Way::Forward, Way::Standing, Way::Back, Way::Away] {
        for seen in [true, false] {
            for replaced in [None, Some(true), Some(false)] {
                courses.push(Course { way, seen, replaced });
            }
        }
    }
    courses
}

/// The status that is written of three nodes, by the plan's own decision, and the rollout that belongs to it.
fn status_of(states: [State; 3], course: Course) -> DataplaneStatus {
    let names = ["node1", "node2", "node3"];
    let nodes: Vec<Node> = std::iter::zip(states, names)
        .filter_map(|(state, name)| state.node(name))
        .collect();
    let existing = names.map(str::to_owned).into();
    let entry = ReplacedDaemon {
        node: "node1".into(),
        pod: "former".into(),
        since: Time(now()),
    };
    let replacing: Vec<ReplacedDaemon> = course.replaced.iter().map(|_| entry.clone()).collect();
    let excused: Vec<String> = course
        .replaced
        .iter()
        .filter(|well| !**well)
        .map(|_| "node1".to_owned())
        .collect();
    let plan = Plan {
        revision: "new",
        way: course.way,
        desired: 3,
        pace: &RolloutSpec::default(),
        existing: &existing,
        replacing: &replacing,
        excused: &excused,
        has_good: true,
        failed: None,
    };
    let mut progress = match course.way {
        Way::Back => back(Step::Done),
        _ => at(Step::Done),
    };
    progress.step = Step::waiting("the DaemonSet's controller has not seen the change yet");
    (progress.rollout.replacing, progress.rollout.excused) = (replacing.clone(), excused.clone());
    if course.seen {
        let decision = plan.decide(&nodes, now());
        progress.step = decision.step;
        (progress.rollout.replacing, progress.rollout.excused) = (decision.replacing, decision.excused);
    }
    let ready = nodes.iter().filter(|node| node.pod.ready_since.is_some()).count();
    let observed = Observed {
        rollout: Some(rollout(course.seen, 3, i32::try_from(ready).unwrap())),
        machines: Some(nodes),
        existing,
        ..Observed::default()
    };
    let outcome = match course.way {
        Way::Away => Outcome::Removing("it is being cleaned".into()),
        _ => Outcome::Applied,
    };
    compute(&dataplane(), &outcome, &progress, &observed, now())
}

/// Every combination of three nodes and courses: what is written is what is.
#[test]
fn every_status_tells_the_truth() {
    let all = State::ALL;
    let pairs = all.iter().flat_map(|a| all.map(|b| [*a, b]));
    let clusters = pairs.flat_map(|[a, b]| all.map(|c| [a, b, c]));
    let (mut ready, mut available) = (0, 0);
    for states in clusters {
        for course in courses() {
            let status = status_of(states, course);
            let what = || format!("{states:?}, {course:?}: {}", summary(&status));
            truth::check(&serde_json::to_value(&status).unwrap());
            let is_true = |type_| condition::is_true(&status.conditions, type_);

            let goes_on = course.seen && matches!(course.way, Way::Forward | Way::Standing);
            let all_well = states.iter().all(|state| *state == State::Well);
            assert_eq!(is_true("Ready"), goes_on && all_well, "{}", what());
            ready += i32::from(is_true("Ready"));

            let RolloutStatus { replacing, excused, .. } = &status.rollout;
            let is_kept =
                |name: &str| replacing.iter().any(|one| one.node == name) && !excused.contains(&name.to_owned());
            let mut due =
                std::iter::zip(states, ["node1", "node2", "node3"]).filter(|(state, _)| *state != State::Down);
            let some = due.clone().count() > 0;
            let enforced = some && due.all(|(state, name)| state.enforces() || is_kept(name));
            assert_eq!(is_true("Available"), course.way != Way::Away && enforced, "{}", what());
            available += i32::from(is_true("Available"));
        }
    }
    assert!(ready > 0 && available > ready, "{ready} ready, {available} available");
}
