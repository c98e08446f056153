// SPDX-License-Identifier: Apache-2.0
//! From what there is now to `Dataplane.status` and Events. The status is computed whole and written on change only.

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use wardline_crds::condition::{NewCondition, Status, set_condition};
use wardline_crds::{Dataplane, DataplaneNodeCounts, DataplaneStatus};

use super::Rollout;
use super::dereference::Observed;
use crate::announce::{Watched, transitions};
use crate::context::Context;
use crate::error::Error;
use crate::nodes::Nodes;
use crate::status;

/// How the stages before ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Applied,
    /// The spec cannot be used; why.
    Refused(String),
    /// The API server did not take the objects; why.
    Failed(String),
}

/// Status, reason and message of one condition.
type Finding = (Status, &'static str, String);

pub(super) async fn update(
    context: &Context,
    dataplane: &Dataplane,
    outcome: &Outcome,
    observed: &Observed,
) -> Result<(), Error> {
    let old = dataplane.status.clone().unwrap_or_default();
    let generation = dataplane.metadata.generation.unwrap_or_default();
    let new = compute(&old, generation, outcome, observed, Timestamp::now());
    if dataplane.status.as_ref() == Some(&new) {
        return Ok(());
    }
    status::apply(context, dataplane, &new).await?;
    let watched = [Watched::Good("Ready"), Watched::Bad("Degraded")];
    let events = transitions(&watched, &old.conditions, &new.conditions, "Reconcile");
    context.announce(&dataplane.object_ref(&()), events).await;
    Ok(())
}

fn compute(
    old: &DataplaneStatus,
    generation: i64,
    outcome: &Outcome,
    observed: &Observed,
    now: Timestamp,
) -> DataplaneStatus {
    let rollout = observed.rollout.clone().unwrap_or_default();
    let nodes = &observed.nodes;
    let mut conditions = old.conditions.clone();
    let findings = [
        ("Ready", ready(outcome, &rollout, nodes)),
        ("Available", available(&rollout)),
        ("Progressing", progressing(&rollout)),
        ("Degraded", degraded(outcome, nodes)),
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
            desired: rollout.desired,
            updated: if rollout.current { rollout.updated } else { 0 },
            ready: rollout.ready,
            degraded: nodes.degraded(),
        },
        conditions,
    }
}

fn ready(outcome: &Outcome, rollout: &Rollout, nodes: &Nodes) -> Finding {
    let degraded = degraded(outcome, nodes);
    let Rollout { desired, ready, .. } = rollout;
    if *outcome != Outcome::Applied {
        return (Status::False, degraded.1, degraded.2);
    }
    match progressing(rollout) {
        (Status::True, reason, message) => (Status::False, reason, message),
        _ if *desired == 0 => (Status::False, "NoNodes", "no node runs the daemon".into()),
        _ if ready < desired => (
            Status::False,
            "NodesNotReady",
            format!("{ready} of {desired} nodes are ready"),
        ),
        _ if degraded.0 == Status::True => (Status::False, degraded.1, degraded.2),
        _ => (Status::True, "Ready", format!("{desired} nodes are ready")),
    }
}

/// Whether as many nodes are served as a rollout may leave.
fn available(rollout: &Rollout) -> Finding {
    let Rollout {
        desired,
        ready,
        max_unavailable,
        ..
    } = rollout;
    let message = format!("{ready} of {desired} nodes are ready");
    if *desired == 0 {
        (Status::False, "NoNodes", "no node runs the daemon".into())
    } else if *ready > 0 && *ready >= desired - max_unavailable {
        (Status::True, "EnoughNodesReady", message)
    } else {
        (Status::False, "TooFewNodesReady", message)
    }
}

fn progressing(rollout: &Rollout) -> Finding {
    let Rollout {
        desired,
        updated,
        current,
        ..
    } = rollout;
    if !current {
        (
            Status::True,
            "RollingOut",
            "the DaemonSet's controller has not seen the change yet".into(),
        )
    } else if updated < desired {
        (
            Status::True,
            "RollingOut",
            format!("{updated} of {desired} nodes are updated"),
        )
    } else {
        (
            Status::False,
            "RolledOut",
            format!("{updated} of {desired} nodes are updated"),
        )
    }
}

fn degraded(outcome: &Outcome, nodes: &Nodes) -> Finding {
    match outcome {
        Outcome::Refused(message) => (Status::True, "InvalidDataplane", message.clone()),
        Outcome::Failed(message) => (Status::True, "ApplyFailed", message.clone()),
        Outcome::Applied if nodes.degraded() > 0 => (Status::True, "NodesDegraded", nodes.degraded_message()),
        Outcome::Applied => (Status::False, "AsExpected", String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(current: bool, desired: i32, updated: i32, ready: i32) -> Rollout {
        Rollout {
            current,
            desired,
            updated,
            ready,
            max_unavailable: 1,
            ..Rollout::default()
        }
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

    #[test]
    #[rustfmt::skip]
    fn a_rollout_step_by_step() {
        let refused = Outcome::Refused("failed to validate".into());
        let failed = Outcome::Failed("failed to apply".into());
        for (what, outcome, rollout, expected) in [
            ("just applied", &Outcome::Applied, Some(rollout(false, 0, 0, 0)),
             "0 0 0 Ready=False/RollingOut Available=False/NoNodes Progressing=True/RollingOut Degraded=False/AsExpected"),
            ("pods start", &Outcome::Applied, Some(rollout(true, 3, 3, 1)),
             "3 3 1 Ready=False/NodesNotReady Available=False/TooFewNodesReady Progressing=False/RolledOut Degraded=False/AsExpected"),
            ("all ready", &Outcome::Applied, Some(rollout(true, 3, 3, 3)),
             "3 3 3 Ready=True/Ready Available=True/EnoughNodesReady Progressing=False/RolledOut Degraded=False/AsExpected"),
            ("a change, not seen yet", &Outcome::Applied, Some(rollout(false, 3, 3, 3)),
             "3 0 3 Ready=False/RollingOut Available=True/EnoughNodesReady Progressing=True/RollingOut Degraded=False/AsExpected"),
            ("a change, half way", &Outcome::Applied, Some(rollout(true, 3, 2, 2)),
             "3 2 2 Ready=False/RollingOut Available=True/EnoughNodesReady Progressing=True/RollingOut Degraded=False/AsExpected"),
            ("no node matches", &Outcome::Applied, Some(rollout(true, 0, 0, 0)),
             "0 0 0 Ready=False/NoNodes Available=False/NoNodes Progressing=False/RolledOut Degraded=False/AsExpected"),
            ("refused, the old one is in force", &refused, Some(rollout(true, 3, 3, 3)),
             "3 3 3 Ready=False/InvalidDataplane Available=True/EnoughNodesReady Progressing=False/RolledOut Degraded=True/InvalidDataplane"),
            ("the API server refuses", &failed, Some(rollout(true, 3, 3, 3)),
             "3 3 3 Ready=False/ApplyFailed Available=True/EnoughNodesReady Progressing=False/RolledOut Degraded=True/ApplyFailed"),
        ] {
            let observed = Observed { rollout, ..Observed::default() };
            let status = compute(&DataplaneStatus::default(), 4, outcome, &observed, Timestamp::UNIX_EPOCH);
            assert_eq!(summary(&status), expected, "{what}");
            assert_eq!(status.observed_generation, 4);
        }
    }

    #[test]
    fn nothing_new_gives_the_same_status() {
        let observed = Observed {
            rollout: Some(rollout(true, 2, 2, 2)),
            ..Observed::default()
        };
        let later = Timestamp::UNIX_EPOCH + k8s_openapi::jiff::SignedDuration::from_secs(60);
        let first = compute(
            &DataplaneStatus::default(),
            1,
            &Outcome::Applied,
            &observed,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(compute(&first, 1, &Outcome::Applied, &observed, later), first);
    }
}
