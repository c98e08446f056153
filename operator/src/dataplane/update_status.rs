// SPDX-License-Identifier: Apache-2.0
//! From what there is now to `Dataplane.status` and Events. The status is computed whole and written on change only.

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use wardline_crds::condition::{NewCondition, Status, set_condition};
use wardline_crds::{Dataplane, DataplaneNodeCounts, DataplaneStatus, FailedRollout, RolloutSpec, RolloutStatus};

use super::Rollout;
use super::build::REMOVAL;
use super::dereference::{Observed, share};
use super::plan::Step;
use crate::announce::{Announcement, Watched, transitions};
use crate::context::{Context, lock};
use crate::error::Error;
use crate::nodes::Nodes;
use crate::status;

/// Reasons that stand in several conditions.
const ROLLED_BACK: &str = "RolledBack";
const STUCK: &str = "RolloutStuck";
const REMOVING: &str = "Removing";

/// How the stages before ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Applied,
    /// The spec cannot be used; why.
    Refused(String),
    /// The API server did not take the objects; why.
    Failed(String),
    /// The nodes are being left; how far that is.
    Removing(String),
}

/// How far the rollout is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Progress {
    pub(super) rollout: RolloutStatus,
    /// The revision that the spec asks for.
    pub(super) built: String,
    pub(super) step: Step,
}

impl Progress {
    /// Where nothing is rolled out for now.
    pub(super) fn standing(rollout: RolloutStatus, observed: &Observed) -> Self {
        let mut machines = observed.machines.iter().flatten();
        let is_half_way = machines.any(|machine| machine.pod.revision != rollout.revision);
        Self {
            built: rollout.revision.clone(),
            rollout,
            step: if is_half_way {
                Step::waiting("the rollout is halted, for the object cannot be used as it is")
            } else {
                Step::Done
            },
        }
    }
}

/// Status, reason and message of one condition.
type Finding = (Status, &'static str, String);

pub(super) async fn update(
    context: &Context,
    dataplane: &Dataplane,
    outcome: &Outcome,
    progress: &Progress,
    observed: &Observed,
) -> Result<(), Error> {
    let old = dataplane.status.clone().unwrap_or_default();
    let new = compute(dataplane, outcome, progress, observed, Timestamp::now());
    if dataplane.status.as_ref() == Some(&new) {
        return Ok(());
    }
    status::apply(context, dataplane, &new).await?;
    let uid = dataplane.meta().uid.clone().unwrap_or_default();
    *lock(&context.rollout) = Some((uid, new.rollout.clone()));
    let watched = [Watched::Good("Ready"), Watched::Bad("Degraded")];
    let mut events = transitions(&watched, &old.conditions, &new.conditions, "Reconcile");
    // Another change that was taken back, though nothing is well since the one before.
    let is_told = events.iter().any(|event| event.reason == ROLLED_BACK);
    if let Some(failed) = new
        .rollout
        .failed
        .as_ref()
        .filter(|failed| !is_told && old.rollout.failed.as_ref() != Some(failed))
    {
        events.push(Announcement {
            warning: true,
            action: "Reconcile",
            reason: ROLLED_BACK.into(),
            note: taken_back(failed),
        });
    }
    context.announce(&dataplane.object_ref(&()), events).await;
    Ok(())
}

fn compute(
    dataplane: &Dataplane,
    outcome: &Outcome,
    progress: &Progress,
    observed: &Observed,
    now: Timestamp,
) -> DataplaneStatus {
    let generation = dataplane.metadata.generation.unwrap_or_default();
    let set = observed.rollout.clone().unwrap_or_default();
    let nodes = &observed.nodes;
    let updated = match outcome {
        Outcome::Removing(_) => left(observed),
        _ if set.current => updated(progress, observed),
        _ => 0,
    };
    let degraded = degraded(outcome, progress, nodes);
    let progressing = progressing(outcome, progress, &set, updated);
    let mut conditions = dataplane.status.clone().unwrap_or_default().conditions;
    let findings = [
        ("Ready", ready(outcome, &set, &progressing, &degraded)),
        ("Available", available(outcome, &set, &dataplane.spec.daemon.rollout)),
        ("Stalled", stalled(outcome, &progressing, &degraded)),
        ("Progressing", progressing),
        ("Degraded", degraded),
    ];
    for (type_, (status, reason, message)) in &findings {
        let new = NewCondition {
            type_,
            status: *status,
            reason,
            message,
            generation: Some(generation),
        };
        set_condition(&mut conditions, &new, now);
    }
    DataplaneStatus {
        observed_generation: generation,
        version: nodes.versions(),
        nodes: DataplaneNodeCounts {
            desired: set.desired,
            updated,
            ready: set.ready,
            degraded: nodes.degraded(),
        },
        rollout: progress.rollout.clone(),
        conditions,
    }
}

/// Nodes on which nothing is left.
fn left(observed: &Observed) -> i32 {
    let machines = observed.machines.iter().flatten();
    let left = machines.filter(|machine| machine.pod.revision == REMOVAL && machine.pod.ready_since.is_some());
    i32::try_from(left.count()).unwrap_or(i32::MAX)
}

/// Nodes that have what the spec asks for.
fn updated(progress: &Progress, observed: &Observed) -> i32 {
    let machines = observed.machines.iter().flatten();
    let updated =
        machines.filter(|machine| machine.pod.revision == progress.built && machine.pod.leaving_since.is_none());
    i32::try_from(updated.count()).unwrap_or(i32::MAX)
}

fn ready(outcome: &Outcome, set: &Rollout, progressing: &Finding, degraded: &Finding) -> Finding {
    let Rollout { desired, ready, .. } = set;
    let not = |(_, reason, message): &Finding| (Status::False, *reason, message.clone());
    match outcome {
        Outcome::Applied => {}
        Outcome::Removing(_) => return not(progressing),
        Outcome::Refused(_) | Outcome::Failed(_) => return not(degraded),
    }
    match progressing {
        (Status::True, ..) | (_, ROLLED_BACK | STUCK, _) => not(progressing),
        _ if *desired == 0 => (Status::False, "NoNodes", "no node runs the daemon".into()),
        _ if ready < desired => (
            Status::False,
            "NodesNotReady",
            format!("{ready} of {desired} nodes are ready"),
        ),
        _ if degraded.0 == Status::True => not(degraded),
        _ => (Status::True, "Ready", format!("{desired} nodes are ready")),
    }
}

/// Whether as many nodes are served as a rollout may leave.
fn available(outcome: &Outcome, set: &Rollout, pace: &RolloutSpec) -> Finding {
    if let Outcome::Removing(why) = outcome {
        return (Status::False, REMOVING, why.clone());
    }
    let Rollout { desired, ready, .. } = set;
    let message = format!("{ready} of {desired} nodes are ready");
    if *desired == 0 {
        (Status::False, "NoNodes", "no node runs the daemon".into())
    } else if *ready > 0 && *ready >= desired - share(&pace.max_unavailable, *desired) {
        (Status::True, "EnoughNodesReady", message)
    } else {
        (Status::False, "TooFewNodesReady", message)
    }
}

fn progressing(outcome: &Outcome, progress: &Progress, set: &Rollout, updated: i32) -> Finding {
    if let Outcome::Removing(why) = outcome {
        return (
            Status::True,
            REMOVING,
            format!("{updated} of {} nodes are clean; {why}", set.desired),
        );
    }
    let counts = format!("{updated} of {} nodes are updated", set.desired);
    if let Some(failed) = &progress.rollout.failed {
        let taken_back = taken_back(failed);
        return match &progress.step {
            Step::Done => (Status::False, ROLLED_BACK, taken_back),
            Step::Stuck { why } => (Status::False, STUCK, format!("{taken_back}; {why}")),
            Step::Wait { why, .. } | Step::Replace { why, .. } | Step::GiveUp { why, .. } => {
                (Status::True, "RollingBack", format!("{taken_back}; {why}"))
            }
        };
    }
    match &progress.step {
        Step::Done => (Status::False, "RolledOut", counts),
        Step::Wait { why, .. } | Step::Replace { why, .. } => (Status::True, "RollingOut", format!("{counts}; {why}")),
        Step::Stuck { why } => (Status::False, STUCK, format!("{counts}; {why}")),
        Step::GiveUp { node, why } => (
            Status::False,
            STUCK,
            format!("{node}: {why}; there is no other revision that all nodes were well with"),
        ),
    }
}

fn degraded(outcome: &Outcome, progress: &Progress, nodes: &Nodes) -> Finding {
    match (outcome, &progress.rollout.failed, &progress.step) {
        (Outcome::Refused(message), ..) => (Status::True, "InvalidDataplane", message.clone()),
        (Outcome::Failed(message), ..) => (Status::True, "ApplyFailed", message.clone()),
        (Outcome::Applied, Some(failed), _) => (Status::True, ROLLED_BACK, taken_back(failed)),
        (Outcome::Applied, None, Step::GiveUp { node, why }) => (Status::True, STUCK, format!("{node}: {why}")),
        (Outcome::Applied, None, Step::Stuck { why }) => (Status::True, STUCK, why.clone()),
        (Outcome::Applied, ..) if nodes.degraded() > 0 => (Status::True, "NodesDegraded", nodes.degraded_message()),
        (Outcome::Applied | Outcome::Removing(_), ..) => (Status::False, "AsExpected", String::new()),
    }
}

/// Whether nothing more will come of it until somebody acts, as kstatus means it.
fn stalled(outcome: &Outcome, progressing: &Finding, degraded: &Finding) -> Finding {
    match outcome {
        Outcome::Applied | Outcome::Removing(_) => {}
        Outcome::Refused(_) | Outcome::Failed(_) => return degraded.clone(),
    }
    match progressing {
        (Status::False, reason @ (ROLLED_BACK | STUCK), message) => (Status::True, reason, message.clone()),
        _ => (Status::False, "AsExpected", String::new()),
    }
}

fn taken_back(failed: &FailedRollout) -> String {
    let FailedRollout {
        generation,
        node,
        message,
        ..
    } = failed;
    format!("generation {generation} was taken back, since {node} was not well with it: {message}")
}

#[cfg(test)]
mod tests {
    use wardline_crds::DataplaneSpec;

    use super::super::plan::Node;
    use super::*;

    fn rollout(current: bool, desired: i32, ready: i32) -> Rollout {
        Rollout {
            current,
            desired,
            ready,
            ..Rollout::default()
        }
    }

    /// So many nodes with what the spec asks for.
    fn machines(updated: usize) -> Vec<Node> {
        let mut node = Node::default();
        node.pod.revision = "new".into();
        vec![node; updated]
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
        let applied = Outcome::Applied;
        let wait = || Step::waiting("node1: its pod is not ready");
        for (what, outcome, progress, set, updated, expected) in [
            ("just applied", &applied, at(wait()), rollout(false, 0, 0), 0,
             "0 0 0 Ready=False/RollingOut Available=False/NoNodes Stalled=False/AsExpected Progressing=True/RollingOut Degraded=False/AsExpected"),
            ("pods start", &applied, at(wait()), rollout(true, 3, 1), 3,
             "3 3 1 Ready=False/RollingOut Available=False/TooFewNodesReady Stalled=False/AsExpected Progressing=True/RollingOut Degraded=False/AsExpected"),
            ("all ready", &applied, at(Step::Done), rollout(true, 3, 3), 3,
             "3 3 3 Ready=True/Ready Available=True/EnoughNodesReady Stalled=False/AsExpected Progressing=False/RolledOut Degraded=False/AsExpected"),
            ("a node goes down", &applied, at(Step::Done), rollout(true, 3, 2), 3,
             "3 3 2 Ready=False/NodesNotReady Available=True/EnoughNodesReady Stalled=False/AsExpected Progressing=False/RolledOut Degraded=False/AsExpected"),
            ("a change, not seen yet", &applied, at(wait()), rollout(false, 3, 3), 3,
             "3 0 3 Ready=False/RollingOut Available=True/EnoughNodesReady Stalled=False/AsExpected Progressing=True/RollingOut Degraded=False/AsExpected"),
            ("a change, half way", &applied, at(wait()), rollout(true, 3, 2), 2,
             "3 2 2 Ready=False/RollingOut Available=True/EnoughNodesReady Stalled=False/AsExpected Progressing=True/RollingOut Degraded=False/AsExpected"),
            ("on the way back", &applied, back(wait()), rollout(true, 3, 2), 0,
             "3 0 2 Ready=False/RollingBack Available=True/EnoughNodesReady Stalled=False/AsExpected Progressing=True/RollingBack Degraded=True/RolledBack"),
            ("back", &applied, back(Step::Done), rollout(true, 3, 3), 0,
             "3 0 3 Ready=False/RolledBack Available=True/EnoughNodesReady Stalled=True/RolledBack Progressing=False/RolledBack Degraded=True/RolledBack"),
            ("nothing to go back to", &applied, at(give_up()), rollout(true, 3, 0), 3,
             "3 3 0 Ready=False/RolloutStuck Available=False/TooFewNodesReady Stalled=True/RolloutStuck Progressing=False/RolloutStuck Degraded=True/RolloutStuck"),
            ("no node matches", &applied, at(Step::Done), rollout(true, 0, 0), 0,
             "0 0 0 Ready=False/NoNodes Available=False/NoNodes Stalled=False/AsExpected Progressing=False/RolledOut Degraded=False/AsExpected"),
            ("refused, the old one is in force", &refused, at(Step::Done), rollout(true, 3, 3), 3,
             "3 3 3 Ready=False/InvalidDataplane Available=True/EnoughNodesReady Stalled=True/InvalidDataplane Progressing=False/RolledOut Degraded=True/InvalidDataplane"),
            ("the API server refuses", &failed, at(Step::Done), rollout(true, 3, 3), 3,
             "3 3 3 Ready=False/ApplyFailed Available=True/EnoughNodesReady Stalled=True/ApplyFailed Progressing=False/RolledOut Degraded=True/ApplyFailed"),
        ] {
            let observed = Observed { rollout: Some(set), machines: Some(machines(updated)), ..Observed::default() };
            let status = compute(&dataplane(), outcome, &progress, &observed, Timestamp::UNIX_EPOCH);
            assert_eq!(summary(&status), expected, "{what}");
            assert_eq!(status.observed_generation, 4);
        }
    }

    #[test]
    fn nothing_new_gives_the_same_status() {
        let observed = Observed {
            rollout: Some(rollout(true, 2, 2)),
            machines: Some(machines(2)),
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
}
