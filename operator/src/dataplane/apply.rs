// SPDX-License-Identifier: Apache-2.0
//! Server-side apply of what was built, and the end of what nobody uses any more: pods whose turn it is, ConfigMaps.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use wardline_crds::Dataplane;

use super::build::{Built, DAEMON_SET, Revision, config_map_of, short_hash};
use super::dereference::Observed;
use super::plan::Target;
use crate::MANAGER;
use crate::announce::Announcement;
use crate::context::{Context, lock};
use crate::controller::RESYNC;
use crate::error::Error;

/// How long nobody uses a ConfigMap that is deleted: copies of pods and of the DaemonSet may be of different ages.
pub(super) const ORPHANED: Duration = Duration::from_mins(1);

/// What was applied last. While the API server's object is still of that generation, nobody has changed it.
#[derive(Debug, Clone)]
pub(crate) struct Applied {
    hash: String,
    uid: String,
    generation: i64,
    at: Instant,
}

/// Applies the ConfigMap that was built, then the DaemonSet, whose new pods are of that revision, and returns it as it is
/// now.
pub(super) async fn apply(
    context: &Context,
    dataplane: &Dataplane,
    built: &Built,
    revision: &Revision,
    observed: &Observed,
) -> Result<DaemonSet, Error> {
    let wanted = built.daemon_set_with(revision);
    let bytes = serde_json::to_vec(&wanted).map_err(|source| Error::Serialise {
        object: format!("DaemonSet {DAEMON_SET}"),
        source,
    })?;
    let hash = short_hash(&[&bytes]);
    if let Some(unchanged) = unchanged(context, &hash, &wanted, &revision.config_map(), observed) {
        return Ok(unchanged);
    }
    let namespace = &context.args.namespace;
    let params = PatchParams::apply(MANAGER).force();
    if !observed.config_maps.contains(&built.revision.config_map()) {
        config_map(context, built).await?;
    }
    let api: Api<DaemonSet> = Api::namespaced(context.client.clone(), namespace);
    let patched = api.patch(DAEMON_SET, &params, &Patch::Apply(&wanted)).await;
    let daemon_set = patched.map_err(Error::api("apply", format!("DaemonSet {namespace}/{DAEMON_SET}")))?;

    let generation = daemon_set.metadata.generation.unwrap_or_default();
    let uid = daemon_set.uid().unwrap_or_default();
    let known = observed
        .rollout
        .as_ref()
        .is_some_and(|old| old.uid == uid && old.generation == generation);
    let repeated = lock(&context.applied)
        .as_ref()
        .is_some_and(|old| old.uid == uid && old.generation == generation);
    *lock(&context.applied) = Some(Applied {
        hash,
        uid,
        generation,
        at: Instant::now(),
    });
    if !known && !repeated {
        let note = format!(
            "applied DaemonSet {namespace}/{DAEMON_SET} with revision {}",
            revision.name
        );
        let event = Announcement {
            warning: false,
            action: "Apply",
            reason: "DaemonSetApplied".into(),
            note,
        };
        context.announce(&dataplane.object_ref(&()), vec![event]).await;
    }
    Ok(daemon_set)
}

/// Applies the ConfigMap that was built.
pub(super) async fn config_map(context: &Context, built: &Built) -> Result<(), Error> {
    let namespace = &context.args.namespace;
    let name = built.revision.config_map();
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let params = PatchParams::apply(MANAGER).force();
    let patched = api.patch(&name, &params, &Patch::Apply(&built.config_map)).await;
    patched.map_err(Error::api("apply", format!("ConfigMap {namespace}/{name}")))?;
    Ok(())
}

/// The cached DaemonSet, where it is known to be what would be applied.
fn unchanged(
    context: &Context,
    hash: &str,
    wanted: &DaemonSet,
    config_map: &str,
    observed: &Observed,
) -> Option<DaemonSet> {
    let rollout = observed.rollout.as_ref()?;
    let applied = lock(&context.applied).clone()?;
    let same = applied.hash == hash && applied.uid == rollout.uid && applied.generation == rollout.generation;
    if !same || applied.at.elapsed() >= RESYNC || !observed.config_maps.contains(config_map) {
        return None;
    }
    let reference = ObjectRef::<DeserializeGuard<DaemonSet>>::new(DAEMON_SET).within(&context.args.namespace);
    let cached = context.caches.daemon_sets.get(&reference)?.0.clone().ok()?;
    // Labels are no part of the generation.
    let has_labels = wanted
        .labels()
        .iter()
        .all(|label| cached.labels().get(label.0) == Some(label.1));
    has_labels.then_some(cached)
}

/// The revision of that name, from its ConfigMap.
pub(super) async fn revision(context: &Context, name: &str) -> Result<Revision, Error> {
    let namespace = &context.args.namespace;
    let config_map = config_map_of(name);
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let found = api.get(&config_map).await;
    let found = found.map_err(Error::api("get", format!("ConfigMap {namespace}/{config_map}")))?;
    Revision::from_config_map(name, &found)
}

/// Deletes these pods, and no others of their names. The DaemonSet's controller makes new ones.
pub(super) async fn replace(context: &Context, pods: &[Target]) -> Result<(), Error> {
    let namespace = &context.args.namespace;
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    for Target { node, pod, uid } in pods {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(pod, &params).await {
            Ok(_) => tracing::info!(node, pod, "deleted Pod, so that its node gets the present revision"),
            // It is gone, or another has its name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(Error::api("delete", format!("Pod {namespace}/{pod}"))(error)),
        }
    }
    Ok(())
}

/// Deletes ConfigMaps that no pod has mounted for [`ORPHANED`], and that no pod will: the DaemonSet's controller knows the
/// present template, so it makes no pod of an older one. Those in `kept` are gone back to, perhaps. One that
/// cannot be deleted harms nobody, and is tried again after as long. Returns whether some are to be looked at again.
pub(super) async fn delete_orphans(context: &Context, kept: &[String], observed: &Observed) -> bool {
    let namespace = &context.args.namespace;
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let found: Vec<&String> = orphans(kept, observed).collect();
    let mut due = Vec::new();
    {
        let mut known = lock(&context.orphans);
        known.retain(|name, _| found.contains(&name));
        for name in &found {
            let since = known.entry((*name).clone()).or_insert_with(Instant::now);
            if since.elapsed() >= ORPHANED {
                due.push(*name);
            }
        }
    }
    let mut is_left = due.len() < found.len();
    for name in due {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => tracing::info!(name, "deleted ConfigMap that no pod uses"),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                let error = Error::api("delete", format!("ConfigMap {namespace}/{name}"))(error);
                tracing::warn!(%error, "a ConfigMap that no pod uses is left; trying again");
                lock(&context.orphans).insert(name.clone(), Instant::now());
                is_left = true;
            }
        }
    }
    is_left
}

fn orphans<'a>(kept: &'a [String], observed: &'a Observed) -> impl Iterator<Item = &'a String> {
    let settled = observed.rollout.as_ref().is_some_and(|rollout| rollout.current);
    let used = observed.used.as_ref().filter(|_| settled);
    let candidates = used.into_iter().flat_map(|used| observed.config_maps.difference(used));
    candidates.filter(move |name| !kept.contains(name))
}

#[cfg(test)]
mod tests {
    use super::super::Rollout;
    use super::*;

    #[test]
    fn a_config_map_lives_while_somebody_may_use_it() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let observed = |current, used: Option<&[&str]>| Observed {
            rollout: Some(Rollout {
                current,
                ..Rollout::default()
            }),
            config_maps: set(&["a", "b", "c"]),
            used: used.map(set),
            ..Observed::default()
        };
        for (what, observed, expected) in [
            ("rolled out", observed(true, Some(&["c"])), vec!["a", "b"]),
            ("in the middle", observed(true, Some(&["a", "c"])), vec!["b"]),
            ("no pod yet", observed(true, Some(&[])), vec!["a", "b"]),
            (
                "the new template is not seen yet",
                observed(false, Some(&["c"])),
                vec![],
            ),
            ("a pod does not decode", observed(true, None), vec![]),
            (
                "no DaemonSet",
                Observed {
                    rollout: None,
                    ..observed(true, Some(&[]))
                },
                vec![],
            ),
        ] {
            assert_eq!(
                orphans(&["c".to_owned()], &observed).collect::<Vec<_>>(),
                expected,
                "{what}"
            );
        }
    }
}
