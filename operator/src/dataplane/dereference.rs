// SPDX-License-Identifier: Apache-2.0
//! What there is in the cluster, read from the caches.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::build::DAEMON_SET;
use crate::caches::Caches;
use crate::nodes::Nodes;

#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    /// How far the DaemonSet is; none where there is none.
    pub(super) rollout: Option<Rollout>,
    /// ConfigMaps of ours.
    pub(super) config_maps: BTreeSet<String>,
    /// ConfigMaps that pods of the daemon mount. None where a pod does not decode, for it may use any.
    pub(super) used: Option<BTreeSet<String>>,
    pub(super) nodes: Nodes,
}

/// How far the DaemonSet is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rollout {
    pub(crate) uid: String,
    pub(crate) generation: i64,
    /// Whether the DaemonSet's controller has seen this generation; until then its numbers speak of another.
    pub(crate) current: bool,
    pub(crate) desired: i32,
    pub(crate) updated: i32,
    pub(crate) ready: i32,
    /// Nodes that may be without a ready daemon.
    pub(crate) max_unavailable: i32,
}

impl From<&DaemonSet> for Rollout {
    fn from(daemon_set: &DaemonSet) -> Self {
        let status = daemon_set.status.clone().unwrap_or_default();
        let generation = daemon_set.metadata.generation.unwrap_or_default();
        let strategy = daemon_set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let max_unavailable = strategy.and_then(|s| s.rolling_update.as_ref()?.max_unavailable.as_ref());
        Self {
            uid: daemon_set.uid().unwrap_or_default(),
            generation,
            current: status.observed_generation.unwrap_or_default() >= generation,
            desired: status.desired_number_scheduled,
            updated: status.updated_number_scheduled.unwrap_or_default(),
            ready: status.number_ready,
            max_unavailable: max_unavailable.map_or(1, |value| share(value, status.desired_number_scheduled)),
        }
    }
}

/// A share is rounded up, as the DaemonSet's controller does it.
fn share(value: &IntOrString, of: i32) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|n| n.parse().ok()).unwrap_or(0);
            i32::try_from((percent * i64::from(of)).div_euclid(100) + i64::from((percent * i64::from(of)) % 100 > 0))
                .unwrap_or(i32::MAX)
        }
    }
}

pub(super) fn dereference(caches: &Caches) -> Observed {
    Observed {
        rollout: rollout(caches),
        config_maps: caches
            .config_maps
            .state()
            .iter()
            .map(|object| object.name_any())
            .collect(),
        used: caches
            .pods
            .state()
            .iter()
            .map(|pod| Some(config_maps(pod.0.as_ref().ok()?)))
            .try_fold(BTreeSet::new(), |mut used, pod| {
                used.extend(pod?);
                Some(used)
            }),
        nodes: Nodes::gather(caches),
    }
}

/// The DaemonSet of the daemon. One that does not decode is told by a metric, and applied again as if it were not there.
pub(crate) fn rollout(caches: &Caches) -> Option<Rollout> {
    let found = caches
        .daemon_sets
        .state()
        .into_iter()
        .find(|object| object.name_any() == DAEMON_SET)?;
    found.0.as_ref().ok().map(Rollout::from)
}

fn config_maps(pod: &Pod) -> BTreeSet<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| volume.config_map.as_ref().map(|source| source.name.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_up() {
        for (value, of, expected) in [
            ("25%", 4, 1),
            ("25%", 5, 2),
            ("100%", 7, 7),
            ("1%", 1, 1),
            ("50%", 0, 0),
        ] {
            assert_eq!(
                share(&IntOrString::String(value.into()), of),
                expected,
                "{value} of {of}"
            );
        }
        assert_eq!(share(&IntOrString::Int(3), 2), 3);
    }
}
