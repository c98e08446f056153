// SPDX-License-Identifier: Apache-2.0
//! `Dataplane` → ConfigMap and DaemonSet of the node daemon, and the rollout's status.
//!
//! ```text
//! dereference    what there is: DaemonSet, ConfigMaps, pods, nodes            (caches)
//! validate       spec + settings -> Valid, the only input of build            (pure)
//! build          Valid -> ConfigMap named by its hash, DaemonSet that names it (pure)
//! apply          server-side apply; then ConfigMaps that nobody uses are deleted
//! update_status  what there is now -> status and Events, written on change
//! ```

mod apply;
mod build;
mod dereference;
#[cfg(test)]
mod scenarios;
mod update_status;
mod validate;

use std::sync::Arc;

use kube::Resource;
use kube::core::DeserializeGuard;
use wardline_crds::Dataplane;
use wardline_crds::condition::Status;

use crate::context::Context;
use crate::controller::Done;
use crate::error::{Category, Error};
use crate::undecodable::{self, Words};

pub(crate) use apply::Applied;
pub(crate) use build::SELECTOR;
pub(crate) use dereference::{Rollout, rollout};
use update_status::Outcome;
pub(crate) use validate::check;

const UNDECODABLE: Words = Words {
    reason: "InvalidDataplane",
    conditions: &[("Ready", Status::False), ("Degraded", Status::True)],
};

/// One pass over the stages.
pub(crate) async fn reconcile(object: Arc<DeserializeGuard<Dataplane>>, context: Arc<Context>) -> Result<Done, Error> {
    let dataplane = match &object.0 {
        Ok(dataplane) => dataplane,
        Err(invalid) => {
            undecodable::report::<Dataplane>(&context, invalid, &UNDECODABLE).await?;
            return Ok(Done::Refused);
        }
    };
    // The garbage collector takes the DaemonSet down with its owner; applying it again would be in its way.
    if dataplane.meta().deletion_timestamp.is_some() {
        return Ok(Done::Ok);
    }
    let mut observed = dereference::dereference(&context.caches);
    let valid = match validate::validate(dataplane, &context.args) {
        Ok(valid) => valid,
        Err(error) => {
            let outcome = Outcome::Refused(format!("{error}; what was in force stays in force"));
            update_status::update(&context, dataplane, &outcome, &observed).await?;
            return Ok(Done::Refused);
        }
    };
    let built = build::build(&valid)?;
    match apply::apply(&context, dataplane, &built, &observed).await {
        Ok(daemon_set) => observed.rollout = Some(Rollout::from(&daemon_set)),
        Err(error) => {
            // An API server that is away or busy is no fault of the object; a refusal stays until somebody acts.
            if matches!(error.category(), Category::Rejected | Category::Forbidden) {
                let outcome = Outcome::Failed(error.to_string());
                if let Err(error) = update_status::update(&context, dataplane, &outcome, &observed).await {
                    tracing::warn!(%error, "failed to say why the DaemonSet was not applied");
                }
            }
            return Err(error);
        }
    }
    update_status::update(&context, dataplane, &Outcome::Applied, &observed).await?;
    apply::delete_orphans(&context, &built, &observed).await?;
    Ok(Done::Ok)
}
