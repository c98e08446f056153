// SPDX-License-Identifier: Apache-2.0
//! From what there is now to `Dataplane.status` and Events. The status is computed whole and written on change only.

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use wardline_crds::condition::{NewCondition, Status, find, set_condition};
use wardline_crds::{Dataplane, DataplaneNodeCounts, DataplaneStatus, FailedRollout, RolloutStatus};

use super::Rollout;
use super::build::REMOVAL;
use super::dereference::Observed;
use super::plan::{self, Step};
use crate::announce::{Announcement, Watched, transitions};
use crate::context::{Context, lock};
use crate::error::Error;
use crate::nodes::{Nodes, listed};
use crate::status;

/// Reasons that stand in several conditions.
const ROLLED_BACK: &str = "RolledBack";
const STUCK: &str = "RolloutStuck";
const APPLY_FAILED: &str = "ApplyFailed";
const REMOVING: &str = "Removing";
const REMOVAL_STUCK: &str = "RemovalStuck";

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
        ("Ready", ready(outcome, progress, observed, &progressing, &degraded)),
        ("Available", available(outcome, progress, observed)),
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
    number(left.count())
}

/// Nodes that have what the spec asks for.
fn updated(progress: &Progress, observed: &Observed) -> i32 {
    let machines = observed.machines.iter().flatten();
    let updated =
        machines.filter(|machine| machine.pod.revision == progress.built && machine.pod.leaving_since.is_none());
    number(updated.count())
}

/// Whether all nodes run what the spec asks for, and are well with it.
fn ready(
    outcome: &Outcome,
    progress: &Progress,
    observed: &Observed,
    progressing: &Finding,
    degraded: &Finding,
) -> Finding {
    let not = |(_, reason, message): &Finding| (Status::False, *reason, message.clone());
    match outcome {
        Outcome::Applied => {}
        Outcome::Removing(_) => return (Status::False, REMOVING, progressing.2.clone()),
        Outcome::Refused(_) | Outcome::Failed(_) => return not(degraded),
    }
    let Rollout { desired, ready, .. } = observed.rollout.clone().unwrap_or_default();
    let machines = observed.machines.iter().flatten();
    let lacking: Vec<String> = machines
        .clone()
        .filter_map(|node| Some(format!("{}: {}", node.name, node.lacks(&progress.built)?)))
        .collect();
    let well = machines.count() - lacking.len();
    match progressing {
        (Status::True, ..) | (_, ROLLED_BACK | STUCK, _) => not(progressing),
        _ if desired == 0 => (Status::False, "NoNodes", "no node runs the daemon".into()),
        _ if ready < desired || number(well) < desired => (
            Status::False,
            "NodesNotReady",
            with_names(
                format!("{} of {desired} nodes are well", ready.min(number(well))),
                &lacking,
            ),
        ),
        _ if degraded.0 == Status::True => not(degraded),
        _ => (Status::True, "Ready", format!("{desired} nodes are ready")),
    }
}

/// Whether policy is enforced on each node that is up and is to run the daemon: by a daemon that is well, of whatever
/// revision; or, while the rollout replaces one that was well, by what it has left in the kernel.
fn available(outcome: &Outcome, progress: &Progress, observed: &Observed) -> Finding {
    if let Outcome::Removing(why) = outcome {
        return (Status::False, REMOVING, why.clone());
    }
    let desired = observed.rollout.as_ref().map_or(0, |set| set.desired);
    if desired == 0 {
        return (Status::False, "NoNodes", "no node runs the daemon".into());
    }
    let Some(machines) = &observed.machines else {
        let why = "a Pod of the daemon or its Node cannot be read";
        return (Status::Unknown, "Unreadable", why.into());
    };
    let RolloutStatus { replacing, excused, .. } = &progress.rollout;
    let is_replaced = |node: &str| {
        replacing.iter().any(|entry| entry.node == *node) && !excused.iter().any(|excused| *excused == *node)
    };
    let (down, up): (Vec<&plan::Node>, Vec<&plan::Node>) = machines.iter().partition(|node| node.down_since.is_some());
    let (enforced, not): (Vec<&plan::Node>, Vec<&plan::Node>) = up
        .into_iter()
        .partition(|node| node.was_well() || is_replaced(&node.name));
    let without_pod = replacing.iter().filter(|entry| {
        let has_pod = machines.iter().any(|node| node.name == entry.node);
        !has_pod && observed.existing.contains(&entry.node) && is_replaced(&entry.node)
    });
    let enforced = enforced.len() + without_pod.count();
    let due = (desired - number(down.len())).max(0);
    let counts = format!("policy is enforced on {enforced} of {due} nodes that are up");
    if due > 0 && number(enforced) >= due {
        return (Status::True, "Enforced", counts);
    }
    let not: Vec<String> = not.into_iter().map(|node| node.name.clone()).collect();
    (Status::False, "NotEnforced", with_names(counts, &not))
}

fn with_names(counts: String, names: &[String]) -> String {
    if names.is_empty() {
        counts
    } else {
        format!("{counts}; {}", listed(names))
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn progressing(outcome: &Outcome, progress: &Progress, set: &Rollout, updated: i32) -> Finding {
    if let Outcome::Removing(why) = outcome {
        let message = format!("{updated} of {} nodes are clean; {why}", set.desired);
        return match &progress.step {
            Step::Stuck { .. } => (Status::False, REMOVAL_STUCK, message),
            _ => (Status::True, REMOVING, message),
        };
    }
    let counts = format!("{updated} of {} nodes are updated", set.desired);
    if let (Outcome::Refused(_) | Outcome::Failed(_), Step::Wait { why, .. }) = (outcome, &progress.step) {
        return (Status::False, "Halted", format!("{counts}; {why}"));
    }
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
        (Outcome::Failed(message), ..) => (Status::True, APPLY_FAILED, message.clone()),
        (Outcome::Applied, Some(failed), _) => (Status::True, ROLLED_BACK, taken_back(failed)),
        (Outcome::Applied, None, Step::GiveUp { node, why }) => (Status::True, STUCK, format!("{node}: {why}")),
        (Outcome::Applied, None, Step::Stuck { why }) => (Status::True, STUCK, why.clone()),
        (Outcome::Removing(why), _, Step::Stuck { .. }) => (Status::True, REMOVAL_STUCK, why.clone()),
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
        (Status::False, reason @ (ROLLED_BACK | STUCK | REMOVAL_STUCK), message) => {
            (Status::True, reason, message.clone())
        }
        _ => (Status::False, "AsExpected", String::new()),
    }
}

/// What the API server refused, by the status as it stands.
pub(super) fn apply_failure(dataplane: &Dataplane) -> Option<String> {
    let conditions = &dataplane.status.as_ref()?.conditions;
    let degraded = find(conditions, "Degraded").filter(|found| found.reason == APPLY_FAILED)?;
    Some(degraded.message.clone())
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
mod tests;
