// SPDX-License-Identifier: Apache-2.0
//! The end of a Dataplane: finalizers hold it until nothing of it is left, on the nodes first.
//!
//! ```text
//! wardline.io/nodes     the DaemonSet's template becomes one that cleans its node; node by node its pods are replaced,
//!                       as in any rollout (plan); each is ready when nothing of Wardline is left on its node
//! wardline.io/daemons   DaemonSet and pods, then ConfigMaps and DataplaneNodes are deleted
//! ```
//!
//! Which of the two is left says how far it is, to whoever leads next. Nothing here needs the object to decode. That the
//! objects have no owner is on purpose: where the Dataplane is deleted in the foreground, the garbage collector would
//! take the DaemonSet before any node is clean.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PropagationPolicy};
use kube::core::DeserializeGuard;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use wardline_crds::{Dataplane, DataplaneNode, RolloutSpec};

use super::build::{DAEMON_SET, REMOVAL, REVISION_LABEL};
use super::dereference::{Observed, Rollout};
use super::plan::{Plan, Step, Way};
use super::update_status::{Outcome, Progress};
use super::{apply, build, known, update_status, validate};
use crate::MANAGER;
use crate::announce::Announcement;
use crate::context::Context;
use crate::controller::Done;
use crate::error::Error;

const NODES: &str = "wardline.io/nodes";
const DAEMONS: &str = "wardline.io/daemons";

/// Sees that the object does not go before its nodes are clean. Returns false where somebody else has changed it just now:
/// there is a newer copy to come.
pub(super) async fn hold(context: &Context, dataplane: &Dataplane) -> Result<bool, Error> {
    let mut finalizers = dataplane.finalizers().to_vec();
    let missing = [NODES, DAEMONS]
        .into_iter()
        .filter(|ours| !finalizers.iter().any(|held| held == ours));
    let missing: Vec<String> = missing.map(Into::into).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    finalizers.extend(missing);
    set_finalizers(context, dataplane.meta(), finalizers).await
}

/// One step towards the end.
pub(super) async fn remove(context: &Context, object: &DeserializeGuard<Dataplane>) -> Result<Done, Error> {
    let observed = super::dereference::dereference(context);
    let result = advance(context, object, &observed).await;
    if let Err(error) = &result
        && error.is_refusal()
    {
        let step = Step::Stuck { why: error.to_string() };
        if let Err(error) = tell(context, object, &step, &observed).await {
            tracing::warn!(%error, "failed to say why the removal is stuck");
        }
    }
    result
}

async fn advance(context: &Context, object: &DeserializeGuard<Dataplane>, observed: &Observed) -> Result<Done, Error> {
    let holds = |ours: &str| object.finalizers().iter().any(|held| held == ours);
    let (finalizer, step) = if holds(NODES) {
        (NODES, clean_nodes(context, object, observed).await?)
    } else if holds(DAEMONS) {
        (DAEMONS, take_down(context, observed).await?)
    } else {
        return Ok(Done::Ok);
    };
    let done = match &step {
        Step::Wait { again: Some(after), .. } => Done::Again(*after),
        _ => Done::Ok,
    };
    match step {
        Step::Done => release(context, object, finalizer).await?,
        step => {
            // Told when it is done, so that a refusal is not taken back with each attempt.
            if let Step::Replace { pods, .. } = &step {
                apply::replace(context, pods).await?;
            }
            tell(context, object, &step, observed).await?;
        }
    }
    Ok(done)
}

/// Done where nothing is left on any node.
async fn clean_nodes(
    context: &Context,
    object: &DeserializeGuard<Dataplane>,
    observed: &Observed,
) -> Result<Step, Error> {
    let namespace = &context.args.namespace;
    let api: Api<DaemonSet> = Api::namespaced(context.client.clone(), namespace);
    let found = api.get_opt(DAEMON_SET).await;
    let found = found.map_err(Error::api("get", format!("DaemonSet {namespace}/{DAEMON_SET}")))?;
    if found.is_none() && context.caches.nodes.state().is_empty() {
        // No daemon has ever said anything.
        return Ok(Step::Done);
    }
    let is_removal = |daemon_set: &DaemonSet| revision_of(daemon_set) == Some(REMOVAL);
    let daemon_set = match found {
        Some(daemon_set) if is_removal(&daemon_set) => daemon_set,
        found => {
            let Some(template) = template(context, object, found.as_ref()).await? else {
                let why = "there is neither a DaemonSet nor a valid spec to make pods of that clean the nodes: run \
                           `wardline-node cleanup` on each, and take the finalizers off the Dataplane";
                return Ok(Step::Stuck { why: why.into() });
            };
            tracing::info!("removing Wardline from the nodes");
            let wanted = build::removal(namespace, &template);
            let params = PatchParams::apply(MANAGER).force();
            let applied = api.patch(DAEMON_SET, &params, &Patch::Apply(&wanted)).await;
            applied.map_err(Error::api("apply", format!("DaemonSet {namespace}/{DAEMON_SET}")))?
        }
    };
    let rollout = Rollout::from(&daemon_set);
    if !rollout.current {
        return Ok(Step::waiting("the DaemonSet's controller has not seen the change yet"));
    }
    let Some(machines) = &observed.machines else {
        return Ok(Step::waiting("a Pod of the daemon or its Node cannot be read"));
    };
    let pace = object
        .0
        .as_ref()
        .map_or_else(|_| RolloutSpec::default(), |object| object.spec.daemon.rollout.clone());
    let plan = Plan {
        revision: REMOVAL,
        way: Way::Away,
        desired: rollout.desired,
        pace: &pace,
        existing: &observed.existing,
        replacing: &[],
        excused: &[],
        has_good: false,
        failed: None,
    };
    Ok(plan.decide(machines, Timestamp::now()).step)
}

fn revision_of(daemon_set: &DaemonSet) -> Option<&str> {
    let template = daemon_set.spec.as_ref()?.template.metadata.as_ref()?;
    template.labels.as_ref()?.get(REVISION_LABEL).map(String::as_str)
}

/// What the pods are made of that clean: of what all nodes were well with, if that is known, for another may not start.
async fn template(
    context: &Context,
    object: &DeserializeGuard<Dataplane>,
    daemon_set: Option<&DaemonSet>,
) -> Result<Option<PodTemplateSpec>, Error> {
    let dataplane = object.0.as_ref().ok();
    let good = dataplane
        .map(|dataplane| known(context, dataplane).good_revision)
        .unwrap_or_default();
    if !good.is_empty() {
        match apply::revision(context, &good).await {
            Ok(revision) => return Ok(Some(revision.pod_template())),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(spec) = daemon_set.and_then(|daemon_set| daemon_set.spec.as_ref()) {
        return Ok(Some(spec.template.clone()));
    }
    let valid = dataplane.and_then(|dataplane| validate::validate(dataplane, &context.args).ok());
    let Some(built) = valid.as_ref().map(build::build).transpose()? else {
        return Ok(None);
    };
    apply::config_map(context, &built).await?;
    Ok(Some(built.revision.pod_template()))
}

/// Done where neither pods nor objects of the daemon are left.
async fn take_down(context: &Context, observed: &Observed) -> Result<Step, Error> {
    let namespace = &context.args.namespace;
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    };
    let namespaced = |resource| Api::namespaced_with(context.client.clone(), namespace, &resource);
    delete(
        &namespaced(ApiResource::erase::<DaemonSet>(&())),
        "DaemonSet",
        DAEMON_SET,
        &params,
    )
    .await?;
    if !context.caches.pods.state().is_empty() {
        return Ok(Step::waiting("the daemon's pods are ending"));
    }
    let config_maps = namespaced(ApiResource::erase::<ConfigMap>(&()));
    for name in &observed.config_maps {
        delete(&config_maps, "ConfigMap", name, &DeleteParams::default()).await?;
    }
    let nodes = Api::all_with(context.client.clone(), &ApiResource::erase::<DataplaneNode>(&()));
    for node in context.caches.nodes.state() {
        let name = node.meta().name.clone().unwrap_or_default();
        delete(&nodes, "DataplaneNode", &name, &DeleteParams::default()).await?;
    }
    Ok(Step::Done)
}

/// Whether it decodes or not. That there is none is no error.
async fn delete(api: &Api<DynamicObject>, kind: &str, name: &str, params: &DeleteParams) -> Result<(), Error> {
    match api.delete(name, params).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => deleted
            .map(drop)
            .map_err(Error::api("delete", format!("{kind} {name}"))),
    }
}

async fn release(context: &Context, object: &DeserializeGuard<Dataplane>, finalizer: &str) -> Result<(), Error> {
    let finalizers = object
        .finalizers()
        .iter()
        .filter(|held| *held != finalizer)
        .cloned()
        .collect();
    let note = if finalizer == NODES {
        "nothing of Wardline is left on any node"
    } else {
        "the daemon's objects are deleted"
    };
    if set_finalizers(context, object.meta(), finalizers).await? {
        let event = Announcement {
            warning: false,
            action: "Remove",
            reason: "Removed".into(),
            note: note.into(),
        };
        context.announce(&object.object_ref(&()), vec![event]).await;
    }
    Ok(())
}

async fn tell(
    context: &Context,
    object: &DeserializeGuard<Dataplane>,
    step: &Step,
    observed: &Observed,
) -> Result<(), Error> {
    let (Step::Wait { why, .. } | Step::Replace { why, .. } | Step::Stuck { why } | Step::GiveUp { why, .. }) = step
    else {
        return Ok(());
    };
    // One that does not decode has no status of ours to be written.
    let Ok(dataplane) = &object.0 else {
        if context.first_time("Dataplane/removal", why) {
            tracing::info!(why, "removing");
        }
        return Ok(());
    };
    let progress = Progress {
        rollout: known(context, dataplane),
        built: REMOVAL.into(),
        step: step.clone(),
    };
    update_status::update(context, dataplane, &Outcome::Removing(why.clone()), &progress, observed).await
}

/// Returns false where the copy is older than the object, or the object is gone.
async fn set_finalizers(context: &Context, meta: &ObjectMeta, finalizers: Vec<String>) -> Result<bool, Error> {
    let name = meta.name.clone().unwrap_or_default();
    // Whatever its spec is: neither is it decoded, nor sent.
    let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &ApiResource::erase::<Dataplane>(&()));
    let patch = json!({"metadata": {
        "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers,
    }});
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    match api.patch(&name, &params, &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        patched => patched
            .map(|_| true)
            .map_err(Error::api("set the finalizers of", format!("Dataplane {name}"))),
    }
}
