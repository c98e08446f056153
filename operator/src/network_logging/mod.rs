// SPDX-License-Identifier: Apache-2.0
//! `NetworkLogging` → its status. The daemons watch the object themselves, so that logging changes without a rollout;
//! the operator says whether it is accepted and how many nodes have it in force.

#[cfg(test)]
mod scenarios;
mod update_status;

use std::sync::Arc;

use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt};
use wardline_crds::condition::Status;
use wardline_crds::validate::{self, SpecError};
use wardline_crds::{LoggingNodeCounts, NetworkLogging};

use crate::caches::Caches;
use crate::context::Context;
use crate::controller::Done;
use crate::dataplane::rollout;
use crate::error::Error;
use crate::nodes::Nodes;
use crate::undecodable::{self, Words};

const UNDECODABLE: Words = Words {
    reason: "InvalidNetworkLogging",
    conditions: &[("Accepted", Status::False), ("Ready", Status::False)],
};

/// One pass over the stages.
pub(crate) async fn reconcile(
    object: Arc<DeserializeGuard<NetworkLogging>>,
    context: Arc<Context>,
) -> Result<Done, Error> {
    let logging = match &object.0 {
        Ok(logging) => logging,
        Err(invalid) => {
            undecodable::report::<NetworkLogging>(&context, invalid, &UNDECODABLE).await?;
            return Ok(Done::Refused);
        }
    };
    if logging.meta().deletion_timestamp.is_some() {
        return Ok(Done::Ok);
    }
    let counts = dereference(&context.caches, logging.metadata.generation.unwrap_or_default());
    let verdict = check(logging);
    update_status::update(&context, logging, verdict.as_ref().err(), counts).await?;
    Ok(if verdict.is_ok() { Done::Ok } else { Done::Refused })
}

fn dereference(caches: &Caches, generation: i64) -> LoggingNodeCounts {
    LoggingNodeCounts {
        desired: rollout(caches).unwrap_or_default().desired,
        applied: Nodes::gather(caches).applied(generation),
    }
}

/// Whether the object can be used.
pub(crate) fn check(logging: &NetworkLogging) -> Result<(), SpecError> {
    validate::name("NetworkLogging", &logging.name_any())?;
    validate::network_logging(&logging.spec)
}
