// SPDX-License-Identifier: Apache-2.0
//! Server-side apply of what was built, and the end of what nobody uses any more.

use std::time::Instant;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use wardline_crds::Dataplane;

use super::build::{Built, DAEMON_SET};
use super::dereference::Observed;
use crate::MANAGER;
use crate::announce::Announcement;
use crate::context::{Context, lock};
use crate::controller::RESYNC;
use crate::error::Error;

/// What was applied last. While the API server's object is still of that generation, nobody has changed it.
#[derive(Debug, Clone)]
pub(crate) struct Applied {
    hash: String,
    uid: String,
    generation: i64,
    at: Instant,
}

/// Applies ConfigMap, then DaemonSet, and returns the DaemonSet as it is now.
pub(super) async fn apply(
    context: &Context,
    dataplane: &Dataplane,
    built: &Built,
    observed: &Observed,
) -> Result<DaemonSet, Error> {
    if let Some(unchanged) = unchanged(context, built, observed) {
        return Ok(unchanged);
    }
    let namespace = &context.args.namespace;
    let params = PatchParams::apply(MANAGER).force();
    if !observed.config_maps.contains(&built.config_name) {
        let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
        let patched = api
            .patch(&built.config_name, &params, &Patch::Apply(&built.config_map))
            .await;
        patched.map_err(Error::api(
            "apply",
            format!("ConfigMap {namespace}/{}", built.config_name),
        ))?;
    }
    let api: Api<DaemonSet> = Api::namespaced(context.client.clone(), namespace);
    let patched = api.patch(DAEMON_SET, &params, &Patch::Apply(&built.daemon_set)).await;
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
        hash: built.hash.clone(),
        uid,
        generation,
        at: Instant::now(),
    });
    if !known && !repeated {
        let note = format!(
            "applied DaemonSet {namespace}/{DAEMON_SET} with configuration {}",
            built.config_name
        );
        tracing::info!(generation, "{note}");
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

/// The cached DaemonSet, where it is known to be what would be applied.
fn unchanged(context: &Context, built: &Built, observed: &Observed) -> Option<DaemonSet> {
    let rollout = observed.rollout.as_ref()?;
    let applied = lock(&context.applied).clone()?;
    let same = applied.hash == built.hash && applied.uid == rollout.uid && applied.generation == rollout.generation;
    if !same || applied.at.elapsed() >= RESYNC || !observed.config_maps.contains(&built.config_name) {
        return None;
    }
    let reference = ObjectRef::<DeserializeGuard<DaemonSet>>::new(DAEMON_SET).within(&context.args.namespace);
    context.caches.daemon_sets.get(&reference)?.0.clone().ok()
}

/// Deletes ConfigMaps that no pod mounts and that no pod will: the DaemonSet's controller knows the present template, so
/// it makes no pod of an older one.
pub(super) async fn delete_orphans(context: &Context, built: &Built, observed: &Observed) -> Result<(), Error> {
    let namespace = &context.args.namespace;
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    for name in orphans(&built.config_name, observed) {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => tracing::info!(name, "deleted ConfigMap that no pod uses"),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Error::api("delete", format!("ConfigMap {namespace}/{name}"))(error)),
        }
    }
    Ok(())
}

fn orphans<'a>(current: &'a str, observed: &'a Observed) -> impl Iterator<Item = &'a String> {
    let settled = observed.rollout.as_ref().is_some_and(|rollout| rollout.current);
    let used = observed.used.as_ref().filter(|_| settled);
    let candidates = used.into_iter().flat_map(|used| observed.config_maps.difference(used));
    candidates.filter(move |name| *name != current)
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
            assert_eq!(orphans("c", &observed).collect::<Vec<_>>(), expected, "{what}");
        }
    }
}
