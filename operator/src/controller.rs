// SPDX-License-Identifier: Apache-2.0
//! What the controllers of both kinds have in common: a guarded watch, measured reconciliations, a backoff an object.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Controller, Error as ControllerError};
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, lock};
use crate::error::Error;

/// What was applied is compared again after this long, though nothing was seen to change.
pub(crate) const RESYNC: Duration = Duration::from_mins(10);

/// Nothing that is waited for is measured in less.
const SOONEST: Duration = Duration::from_secs(1);

/// How a reconciliation ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Ok,
    /// To be looked at again after that long, though nothing changes.
    Again(Duration),
    /// The object cannot be used, and says so.
    Refused,
}

/// A controller to be run, and the copies of the objects that it watches.
pub(crate) struct Guarded<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    controller: Controller<DeserializeGuard<K>>,
}

impl<K> Guarded<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    (): Eq + Hash,
{
    pub(crate) fn new(context: &Context) -> Self {
        let api = Api::<DeserializeGuard<K>>::all(context.client.clone());
        let controller = Controller::new(api, watcher::Config::default()).reconcile_all_on(context.caches.changes());
        Self { controller }
    }

    pub(crate) fn store(&self) -> Store<DeserializeGuard<K>> {
        self.controller.store()
    }

    /// Reconciles until `stop`; what has begun by then is finished.
    pub(crate) async fn run<F, Fut>(self, context: Arc<Context>, stop: CancellationToken, reconcile: F)
    where
        F: Fn(Arc<DeserializeGuard<K>>, Arc<Context>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Done, Error>> + Send + 'static,
    {
        let kind = K::kind(&()).into_owned();
        let measured = {
            let kind = kind.clone();
            move |object, context| measure(kind.clone(), reconcile.clone(), object, context)
        };
        let policy = {
            let kind = kind.clone();
            move |object: Arc<DeserializeGuard<K>>, error: &Error, context: Arc<Context>| {
                let key = format!("{kind}/{}", object.name_any());
                let wait = lock(&context.backoff).failed(&key, object.meta().generation, error.category());
                context.metrics.failed(&kind, error.category());
                tracing::error!(kind, name = object.name_any(), %error, ?wait, "failed to reconcile; trying again");
                Action::requeue(wait)
            }
        };
        let watch_failed = Arc::clone(&context);
        self.controller
            .graceful_shutdown_on(stop.cancelled_owned())
            .run(measured, policy, context)
            .for_each(|result| {
                if let Err(ControllerError::QueueError(error)) = &result {
                    watch_failed.metrics.watch_failed(&kind);
                    tracing::warn!(kind, %error, "failed to watch; trying again");
                }
                std::future::ready(())
            })
            .await;
    }
}

async fn measure<K, F, Fut>(
    kind: String,
    reconcile: F,
    object: Arc<DeserializeGuard<K>>,
    context: Arc<Context>,
) -> Result<Action, Error>
where
    K: Resource<DynamicType = ()>,
    F: Fn(Arc<DeserializeGuard<K>>, Arc<Context>) -> Fut,
    Fut: Future<Output = Result<Done, Error>>,
{
    let key = format!("{kind}/{}", object.name_any());
    // A cluster in which some node always changes would try again with each change.
    if let Some(left) = lock(&context.backoff).remaining(&key, object.meta().generation) {
        return Ok(Action::requeue(left));
    }
    let started = Instant::now();
    let result = reconcile(object, Arc::clone(&context)).await;
    let label = match &result {
        Ok(Done::Ok | Done::Again(_)) => "ok",
        Ok(Done::Refused) => "refused",
        Err(_) => "error",
    };
    context
        .metrics
        .reconciled(&kind, label, started.elapsed().as_secs_f64());
    result.map(|done| {
        match done {
            Done::Ok | Done::Again(_) => context.succeeded(&key),
            Done::Refused => context.refused(&key),
        }
        Action::requeue(match done {
            Done::Again(after) => after.clamp(SOONEST, RESYNC),
            Done::Ok | Done::Refused => RESYNC,
        })
    })
}

#[cfg(test)]
mod tests;
