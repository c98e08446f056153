// SPDX-License-Identifier: Apache-2.0
//! `Dataplane` → ConfigMap and DaemonSet of the node daemon, and the rollout's status.
//!
//! ```text
//! dereference    what there is: DaemonSet, ConfigMaps, pods, nodes             (caches)
//! validate       spec + settings -> Valid, the only input of build             (pure)
//! build          Valid -> revision, in a ConfigMap named by its hash; DaemonSet (pure)
//! plan           what there is -> the pods that are replaced next, or give up   (pure)
//! apply          server-side apply; pods, and ConfigMaps that nobody uses, are deleted
//! update_status  what there is now -> status and Events, written on change
//! ```
//!
//! A Dataplane that is deleted goes when its nodes are clean (`removal`).
//!
//! A change that some node is not well with is taken back: `status.rollout.failed` says so *before* the DaemonSet gets the
//! last good revision again, so that nobody who leads after us tries it once more
//! (docs/decisions/0014-revisions-and-rollbacks.md).

mod apply;
mod build;
mod dereference;
mod plan;
mod removal;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
pub(crate) mod truth;
mod update_status;
mod validate;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::core::DeserializeGuard;
use wardline_crds::condition::Status;
use wardline_crds::{Dataplane, FailedRollout, RolloutStatus};

use crate::context::{Context, lock};
use crate::controller::Done;
use crate::error::Error;
use crate::undecodable::{self, Words};

pub(crate) use apply::Applied;
use build::Built;
pub(crate) use build::SELECTOR;
use dereference::Observed;
pub(crate) use dereference::{Rollout, rollout};
use plan::{Plan, Step, Target, Way};
use update_status::{Outcome, Progress};
use validate::Valid;
pub(crate) use validate::check;

const UNDECODABLE: Words = Words {
    reason: "InvalidDataplane",
    conditions: &[
        ("Ready", Status::False),
        ("Stalled", Status::True),
        ("Degraded", Status::True),
    ],
};

/// One pass over the stages.
pub(crate) async fn reconcile(object: Arc<DeserializeGuard<Dataplane>>, context: Arc<Context>) -> Result<Done, Error> {
    if object.meta().deletion_timestamp.is_some() {
        return Box::pin(removal::remove(&context, &object)).await;
    }
    let dataplane = match &object.0 {
        Ok(dataplane) => dataplane,
        Err(invalid) => {
            undecodable::report::<Dataplane>(&context, invalid, &UNDECODABLE).await?;
            return Ok(Done::Refused);
        }
    };
    let mut observed = dereference::dereference(&context);
    let valid = match validate::validate(dataplane, &context.args) {
        Ok(valid) => valid,
        Err(error) => {
            let outcome = Outcome::Refused(format!("{error}; what was in force stays in force"));
            let progress = Progress::standing(known(&context, dataplane), &observed);
            update_status::update(&context, dataplane, &outcome, &progress, &observed).await?;
            return Ok(Done::Refused);
        }
    };
    let built = build::build(&valid)?;
    match removal::hold(&context, dataplane).await {
        Ok(true) => {}
        Ok(false) => return Ok(Done::Ok),
        Err(error) => {
            let progress = Progress::standing(known(&context, dataplane), &observed);
            tell(&context, dataplane, &error, &progress, &observed).await;
            return Err(error);
        }
    }
    // What it holds while it waits is large.
    let rolled_out = Box::pin(roll_out(&context, dataplane, &valid, &built, &mut observed));
    let mut progress = match rolled_out.await {
        Ok(progress) => progress,
        Err(error) => {
            let progress = Progress::standing(known(&context, dataplane), &observed);
            tell(&context, dataplane, &error, &progress, &observed).await;
            return Err(error);
        }
    };
    let is_somewhere = observed.machines.as_ref().is_some_and(|machines| !machines.is_empty());
    if progress.step == Step::Done && is_somewhere {
        progress.rollout.good_revision.clone_from(&progress.rollout.revision);
    }
    if let Step::Replace { pods, .. } = &progress.step {
        replace(&context, dataplane, pods, &progress, &observed).await?;
    } else {
        update_status::update(&context, dataplane, &Outcome::Applied, &progress, &observed).await?;
    }
    let RolloutStatus {
        revision,
        good_revision,
        ..
    } = &progress.rollout;
    let kept = [&built.revision.name, revision, good_revision].map(|name| build::config_map_of(name));
    let has_orphans = apply::delete_orphans(&context, &kept, &observed).await;
    Ok(match progress.step {
        Step::Wait { again: Some(after), .. } => Done::Again(after),
        _ if has_orphans => Done::Again(apply::ORPHANED),
        _ => Done::Ok,
    })
}

/// Says whose turn it is, then deletes their pods. While that was refused before, it is said until it works.
async fn replace(
    context: &Context,
    dataplane: &Dataplane,
    pods: &[Target],
    progress: &Progress,
    observed: &Observed,
) -> Result<(), Error> {
    let halted = Progress {
        step: Step::waiting("the rollout is halted, for a pod could not be deleted"),
        ..progress.clone()
    };
    let refused = update_status::apply_failure(dataplane);
    let (outcome, said) = match &refused {
        Some(why) => (Outcome::Failed(why.clone()), &halted),
        None => (Outcome::Applied, progress),
    };
    update_status::update(context, dataplane, &outcome, said, observed).await?;
    if let Err(error) = apply::replace(context, pods).await {
        tell(context, dataplane, &error, &halted, observed).await;
        return Err(error);
    }
    if refused.is_some() {
        update_status::update(context, dataplane, &Outcome::Applied, progress, observed).await?;
    }
    Ok(())
}

/// Says in the status that the API server refused something, which stays so until somebody acts. That it is away or busy
/// is no fault of the object.
async fn tell(context: &Context, dataplane: &Dataplane, error: &Error, progress: &Progress, observed: &Observed) {
    if !error.is_refusal() {
        return;
    }
    let outcome = Outcome::Failed(error.to_string());
    if let Err(error) = update_status::update(context, dataplane, &outcome, progress, observed).await {
        tracing::warn!(%error, "failed to say what the API server refused");
    }
}

/// What is known of the rollout: the copy of the object may be older than what was written last.
fn known(context: &Context, dataplane: &Dataplane) -> RolloutStatus {
    let uid = dataplane.meta().uid.as_deref().unwrap_or_default();
    let written = lock(&context.rollout).clone().filter(|(of, _)| of == uid);
    let read = || dataplane.status.as_ref().map(|status| status.rollout.clone());
    written.map(|(_, rollout)| rollout).or_else(read).unwrap_or_default()
}

/// Applies the revision that the nodes are to have, and finds the next step towards it. A change that has to be taken
/// back is marked so first.
async fn roll_out(
    context: &Context,
    dataplane: &Dataplane,
    valid: &Valid,
    built: &Built,
    observed: &mut Observed,
) -> Result<Progress, Error> {
    let generation = dataplane.metadata.generation.unwrap_or_default();
    let mut rollout = known(context, dataplane);
    let is_this = |failed: &FailedRollout| failed.generation == generation && failed.revision == built.revision.name;
    let former = rollout.failed.take();
    let is_tried_again = former
        .as_ref()
        .is_some_and(|failed| failed.revision == built.revision.name);
    rollout.failed = former.filter(is_this);
    loop {
        let is_rollback = rollout.failed.is_some();
        let revision = if is_rollback {
            match apply::revision(context, &rollout.good_revision).await {
                Ok(revision) => revision,
                Err(error) if error.is_not_found() => {
                    let why = format!("there is nothing to go back to any more: {error}");
                    return Ok(Progress {
                        rollout,
                        built: built.revision.name.clone(),
                        step: Step::Stuck { why },
                    });
                }
                Err(error) => return Err(error),
            }
        } else {
            built.revision.clone()
        };
        if rollout.revision != revision.name {
            rollout.excused.clear();
            // Pods of an attempt before are no witnesses of this one.
            let of_before = observed
                .machines
                .iter()
                .flatten()
                .filter(|node| node.pod.revision == revision.name && !node.was_well());
            rollout.replacing = of_before
                .filter(|_| is_tried_again && !is_rollback)
                .map(|node| node.replaced(Timestamp::now()))
                .collect();
        }
        rollout.revision.clone_from(&revision.name);
        let way = if revision.name != rollout.good_revision {
            Way::Forward
        } else if is_rollback {
            Way::Back
        } else {
            Way::Standing
        };
        let daemon_set = apply::apply(context, dataplane, built, &revision, observed).await?;
        let applied = Rollout::from(&daemon_set);
        let desired = applied.desired;
        let is_seen = applied.current;
        observed.rollout = Some(applied);
        let step = match &observed.machines {
            _ if !is_seen => Step::waiting("the DaemonSet's controller has not seen the change yet"),
            None => Step::waiting("a Pod of the daemon or its Node cannot be read"),
            Some(machines) => {
                let plan = Plan {
                    revision: &revision.name,
                    way,
                    desired,
                    pace: &valid.rollout,
                    existing: &observed.existing,
                    replacing: &rollout.replacing,
                    excused: &rollout.excused,
                    has_good: !rollout.good_revision.is_empty(),
                    failed: rollout.failed.as_ref().map(|failed| &*failed.node),
                };
                let decision = plan.decide(machines, Timestamp::now());
                (rollout.replacing, rollout.excused) = (decision.replacing, decision.excused);
                decision.step
            }
        };
        if let Step::GiveUp { node, why } = &step
            && !rollout.good_revision.is_empty()
        {
            tracing::error!(node, why, generation, "taking a change back from the nodes");
            rollout.failed = Some(FailedRollout {
                generation,
                revision: revision.name.clone(),
                node: node.clone(),
                message: why.clone(),
            });
            let progress = Progress {
                rollout: rollout.clone(),
                built: built.revision.name.clone(),
                step: Step::waiting(&format!("going back to revision {}", rollout.good_revision)),
            };
            update_status::update(context, dataplane, &Outcome::Applied, &progress, observed).await?;
            continue;
        }
        return Ok(Progress {
            rollout,
            built: built.revision.name.clone(),
            step,
        });
    }
}
