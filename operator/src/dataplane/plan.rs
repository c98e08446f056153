// SPDX-License-Identifier: Apache-2.0
//! Which node gets the revision next, and whether it goes on at all. Pure: what there is, and the time, in; one step out.
//!
//! ```text
//! forward   to what was nowhere yet: canaries first, then the others; given up where a node fails
//! back      to what was good, where that was given up: first to those that do not work
//! standing  all have it, but who comes late
//!
//! never more than maxUnavailable of the nodes are without a daemon that is well
//! well      the pod is ready for minReadySeconds, and the daemon says: this revision, policy in force, verified
//! failed    it crashes, does not start, does not verify, or is not well by the deadline: give up
//! down      its kubelet does not answer: waited for by nobody, and its turn when it is back
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use wardline_crds::RolloutSpec;

use super::dereference::share;
use crate::nodes::Report;

/// How long a container that cannot be started is tried again: a registry may be away for a moment.
const START_PATIENCE: Duration = Duration::from_mins(1);
/// How many nodes a message names; the rest is a number.
const NAMED: usize = 3;

/// A node that has a pod of the daemon.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    /// Whether its kubelet answers.
    pub(super) is_up: bool,
    pub(super) pod: Pod,
    /// What its daemon says.
    pub(super) report: Report,
}

/// The daemon's pod on a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) revision: String,
    pub(super) is_leaving: bool,
    pub(super) ready_since: Option<Timestamp>,
    /// Since when it is not, where it is not.
    pub(super) unready_since: Timestamp,
    pub(super) trouble: Option<Trouble>,
}

/// Why the daemon's container does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) message: String,
    /// Whether it may pass by itself.
    pub(super) may_pass: bool,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Each node that is up is well with the revision.
    Done,
    /// Nothing, until something changes, or until then.
    Wait { why: String, again: Option<Duration> },
    /// Deletes pods, so that the DaemonSet's controller makes new ones.
    Replace { pods: Vec<Target>, why: String },
    /// A node is not well with the revision.
    GiveUp { node: String, why: String },
}

impl Step {
    pub(super) fn waiting(why: &str) -> Self {
        Self::Wait {
            why: why.to_owned(),
            again: None,
        }
    }
}

/// A pod to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) node: String,
    pub(super) pod: String,
    /// Of that pod and no other of its name.
    pub(super) uid: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    /// Another revision runs there.
    Outdated,
    /// The pod is being deleted.
    Leaving,
    /// Nobody knows.
    Down,
    Failed(String),
    Starting(String),
    /// Well, but for that long only so far.
    Settling(Duration),
    Well,
}

/// Where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Forward,
    Back,
    Standing,
}

/// What is to be rolled out, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) revision: &'a str,
    pub(super) way: Way,
    /// Nodes that should run the daemon.
    pub(super) desired: i32,
    pub(super) pace: &'a RolloutSpec,
}

impl Plan<'_> {
    /// `nodes` in the order in which they get it.
    pub(super) fn step(&self, nodes: &[Node], now: Timestamp) -> Step {
        let states: Vec<(&Node, Health)> = nodes.iter().map(|node| (node, self.health(node, now))).collect();
        let failed = states.iter().find_map(|(node, health)| match health {
            Health::Failed(why) => Some((node, why)),
            _ => None,
        });
        if let Some((node, why)) = failed.filter(|_| self.way == Way::Forward) {
            return Step::GiveUp {
                node: node.name.clone(),
                why: why.clone(),
            };
        }
        let outdated = || states.iter().filter(|(_, health)| *health == Health::Outdated);
        let known = i32::try_from(nodes.len()).unwrap_or(i32::MAX);
        let missing = (self.desired - known).max(0);
        let again = states
            .iter()
            .filter_map(|(node, health)| self.again(node, health, now))
            .min();
        if outdated().next().is_none() {
            // How nodes are that have had it for long is no matter of the rollout.
            if self.way == Way::Standing {
                return Step::Done;
            }
            let waiting: Vec<String> = states
                .iter()
                .filter_map(|(node, health)| waits_for(node, health))
                .collect();
            return match (waiting.is_empty(), missing) {
                (true, 0) => Step::Done,
                (true, _) => Step::Wait {
                    why: format!("{missing} nodes have no pod yet"),
                    again,
                },
                (false, _) => Step::Wait {
                    why: listed(&waiting),
                    again,
                },
            };
        }
        let candidates: Vec<&Node> = match self.canaries(&states) {
            Ok(Some(canaries)) => outdated()
                .map(|(node, _)| *node)
                .filter(|node| canaries.contains(&*node.name))
                .collect(),
            Ok(None) => outdated().map(|(node, _)| *node).collect(),
            Err(why) => return Step::Wait { why, again },
        };
        // One that serves nobody costs nobody anything.
        let (idle, serving): (Vec<&Node>, Vec<&Node>) =
            candidates.into_iter().partition(|node| node.pod.ready_since.is_none());
        let unavailable = states.iter().filter(|(node, health)| match health {
            Health::Outdated => node.pod.ready_since.is_none(),
            Health::Down | Health::Well => false,
            Health::Leaving | Health::Failed(_) | Health::Starting(_) | Health::Settling(_) => true,
        });
        let unavailable = i32::try_from(unavailable.count())
            .unwrap_or(i32::MAX)
            .saturating_add(missing);
        let most = share(&self.pace.max_unavailable, self.desired);
        // Those that do not work are helped at once; a change that nobody knows yet comes to a few of them first.
        let idle = idle.into_iter().take(if self.way == Way::Back {
            usize::MAX
        } else {
            at_most(most)
        });
        let room = at_most(most.saturating_sub(unavailable));
        let chosen: Vec<&Node> = idle.chain(serving.into_iter().take(room)).collect();
        if chosen.is_empty() {
            let waiting: Vec<String> = states
                .iter()
                .filter_map(|(node, health)| waits_for(node, health))
                .collect();
            let why = if waiting.is_empty() {
                format!("{missing} nodes have no pod yet")
            } else {
                listed(&waiting)
            };
            return Step::Wait { why, again };
        }
        let names: Vec<String> = chosen.iter().map(|node| node.name.clone()).collect();
        let target = |node: &Node| Target {
            node: node.name.clone(),
            pod: node.pod.name.clone(),
            uid: node.pod.uid.clone(),
        };
        Step::Replace {
            pods: chosen.into_iter().map(target).collect(),
            why: format!("replacing the daemon of {}", listed(&names)),
        }
    }

    /// The nodes that others wait for; none where all canaries are well, or there are to be none.
    fn canaries<'n>(&self, states: &[(&'n Node, Health)]) -> Result<Option<BTreeSet<&'n str>>, String> {
        let canary = &self.pace.canary;
        if self.way != Way::Forward || canary.nodes == 0 {
            return Ok(None);
        }
        let is_selected = |node: &Node| {
            canary
                .node_selector
                .iter()
                .all(|label| node.labels.get(label.0) == Some(label.1))
        };
        let up = states.iter().filter(|(_, health)| *health != Health::Down);
        let mut selected: Vec<_> = up.filter(|(node, _)| is_selected(node)).collect();
        if selected.is_empty() {
            return Err("no node that is up has the labels of spec.daemon.rollout.canary.nodeSelector".into());
        }
        // Those that have it already are the canaries, so that none is added where the nodes' order changes.
        selected.sort_by_key(|(_, health)| *health == Health::Outdated);
        selected.truncate(canary.nodes as usize);
        let are_well = selected.iter().all(|(_, health)| *health == Health::Well);
        Ok((!are_well).then(|| selected.iter().map(|(node, _)| &*node.name).collect()))
    }

    fn health(&self, node: &Node, now: Timestamp) -> Health {
        let (pod, report) = (&node.pod, &node.report);
        if !node.is_up {
            return Health::Down;
        }
        if pod.is_leaving {
            return Health::Leaving;
        }
        if pod.revision != self.revision {
            return Health::Outdated;
        }
        let waited = since(unwell_since(node), now);
        if let Some(trouble) = pod
            .trouble
            .as_ref()
            .filter(|trouble| !trouble.may_pass || waited >= START_PATIENCE)
        {
            return Health::Failed(trouble.message.clone());
        }
        let speaks = report.revision == self.revision;
        let why = match (pod.ready_since, &report.unverified) {
            (None, _) => pod
                .trouble
                .as_ref()
                .map_or_else(|| "its pod is not ready".into(), |trouble| trouble.message.clone()),
            (Some(_), _) if !speaks => "its daemon has not reported yet".into(),
            (Some(_), Some(why)) if report.has_failed => return Health::Failed(why.clone()),
            (Some(_), Some(why)) => why.clone(),
            (Some(_), None) if !report.is_ready => "its policies are not in force".into(),
            (Some(ready), None) => {
                let settled = Duration::from_secs(self.pace.min_ready_seconds.into());
                return match settled.checked_sub(since(ready, now)) {
                    Some(left) if !left.is_zero() => Health::Settling(left),
                    _ => Health::Well,
                };
            }
        };
        if waited >= self.deadline() {
            return Health::Failed(format!("not well after {} s: {why}", self.deadline().as_secs()));
        }
        Health::Starting(why)
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(self.pace.progress_deadline_seconds.into())
    }

    /// When a node is to be looked at again though nothing changes.
    fn again(&self, node: &Node, health: &Health, now: Timestamp) -> Option<Duration> {
        match health {
            Health::Settling(left) => Some(*left),
            Health::Starting(_) => {
                let patience = if node.pod.trouble.is_some() {
                    START_PATIENCE
                } else {
                    self.deadline()
                };
                Some(patience.saturating_sub(since(unwell_since(node), now)))
            }
            _ => None,
        }
    }
}

/// Since when something may be wrong: a node that was well for long has all the time again when its daemon starts anew.
fn unwell_since(node: &Node) -> Timestamp {
    match node.pod.ready_since {
        Some(ready) => ready.max(node.report.changed),
        None => node.pod.unready_since,
    }
}

fn at_most(count: i32) -> usize {
    usize::try_from(count).unwrap_or(0)
}

/// Clocks may differ: what lies ahead is now.
fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

fn waits_for(node: &Node, health: &Health) -> Option<String> {
    match health {
        Health::Leaving => Some(format!("{}: its pod is ending", node.name)),
        Health::Starting(why) | Health::Failed(why) => Some(format!("{}: {why}", node.name)),
        // Without a number: it is part of a status, which is written when it changes.
        Health::Settling(_) => Some(format!("{}: well so far", node.name)),
        Health::Outdated | Health::Down | Health::Well => None,
    }
}

fn listed(all: &[String]) -> String {
    let named = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    match all.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

#[cfg(test)]
mod tests {
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
}
