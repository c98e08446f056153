// SPDX-License-Identifier: Apache-2.0
//! What there is in the cluster, read from the caches.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource as _, ResourceExt};

use super::build::{DAEMON_SET, REVISION_LABEL};
use super::plan;
use crate::caches::Caches;
use crate::context::{Context, lock};
use crate::nodes::{Nodes, node_of};

#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    /// How far the DaemonSet is; none where there is none.
    pub(super) rollout: Option<Rollout>,
    /// ConfigMaps of ours.
    pub(super) config_maps: BTreeSet<String>,
    /// ConfigMaps that pods of the daemon mount. None where a pod does not decode, for it may use any.
    pub(super) used: Option<BTreeSet<String>>,
    pub(super) nodes: Nodes,
    /// Nodes that have a pod of the daemon, in the order of their names. None where a pod does not decode, or names a
    /// node that is not known yet.
    pub(super) machines: Option<Vec<plan::Node>>,
    /// The nodes that there are.
    pub(super) existing: BTreeSet<String>,
}

/// How far the DaemonSet is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rollout {
    pub(crate) uid: String,
    pub(crate) generation: i64,
    /// Whether the DaemonSet's controller has seen this generation; until then its numbers speak of another.
    pub(crate) current: bool,
    pub(crate) desired: i32,
    pub(crate) ready: i32,
}

impl From<&DaemonSet> for Rollout {
    fn from(daemon_set: &DaemonSet) -> Self {
        let status = daemon_set.status.clone().unwrap_or_default();
        let generation = daemon_set.metadata.generation.unwrap_or_default();
        Self {
            uid: daemon_set.uid().unwrap_or_default(),
            generation,
            current: status.observed_generation.unwrap_or_default() >= generation,
            desired: status.desired_number_scheduled,
            ready: status.number_ready,
        }
    }
}

/// Nodes that may be without a daemon that is well. A share is rounded up, as DaemonSets do it.
pub(super) fn share(value: &IntOrString, of: i32) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|n| n.parse().ok()).unwrap_or(0);
            i32::try_from((percent * i64::from(of)).div_euclid(100) + i64::from((percent * i64::from(of)) % 100 > 0))
                .unwrap_or(i32::MAX)
        }
    }
}

pub(super) fn dereference(context: &Context) -> Observed {
    let caches = &context.caches;
    let nodes = Nodes::gather(caches);
    let pods = caches.pods.state();
    let pods: Option<Vec<&Pod>> = pods.iter().map(|pod| pod.0.as_ref().ok()).collect();
    let used = |pods: &Vec<&Pod>| pods.iter().flat_map(|pod| config_maps(pod)).collect();
    Observed {
        machines: pods.as_ref().and_then(|pods| machines(context, pods, &nodes)),
        rollout: rollout(caches),
        config_maps: caches
            .config_maps
            .state()
            .iter()
            .map(|object| object.name_any())
            .collect(),
        used: pods.as_ref().map(used),
        existing: caches.machines.state().iter().map(|node| node_name(node)).collect(),
        nodes,
    }
}

fn node_name(node: &DeserializeGuard<Node>) -> String {
    node.meta().name.clone().unwrap_or_default()
}

fn machines(context: &Context, pods: &[&Pod], nodes: &Nodes) -> Option<Vec<plan::Node>> {
    let now = Timestamp::now();
    let mut troubles = lock(&context.troubles);
    troubles.retain(|uid, _| pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid)));
    let mut machines = BTreeMap::new();
    for pod in pods {
        let Some(name) = node_of(pod) else { continue };
        let machine = context.caches.machines.get(&ObjectRef::new(&name))?;
        let created = machine
            .meta()
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let (labels, down_since) = match &machine.0 {
            Ok(node) => (node.labels().clone(), down_since(node)),
            // Of a node that cannot be read it is not known that it is well.
            Err(_) => (BTreeMap::new(), Some(Timestamp::UNIX_EPOCH)),
        };
        let mut found = plan_pod(pod);
        if let Some(trouble) = &mut found.trouble {
            trouble.since = *troubles.entry(found.uid.clone()).or_insert(now);
        } else {
            troubles.remove(&found.uid);
        }
        let node = plan::Node {
            name: name.clone(),
            labels,
            created,
            down_since,
            pod: found,
            report: nodes.reports().get(&name).cloned(),
        };
        // While a pod ends, the next one may be there already.
        let replaces = |old: &plan::Node| old.pod.leaving_since.is_some() || node.pod.leaving_since.is_none();
        if machines.get(&name).is_none_or(replaces) {
            machines.insert(name, node);
        }
    }
    Some(machines.into_values().collect())
}

/// Since when its kubelet has not answered. One that says that it is not ready does answer.
fn down_since(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut unknown = conditions.filter(|condition| condition.type_ == "Ready" && condition.status == "Unknown");
    let since = unknown.next()?.last_transition_time.as_ref();
    Some(since.map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

fn plan_pod(pod: &Pod) -> plan::Pod {
    let status = pod.status.clone().unwrap_or_default();
    let created = pod.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let condition = |type_: &str| {
        status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == type_)
    };
    let ready = condition("Ready");
    let changed = ready
        .and_then(|ready| ready.last_transition_time.as_ref())
        .map_or(created, |time| time.0);
    let is_ready = ready.is_some_and(|ready| ready.status == "True");
    let unscheduled = condition("PodScheduled").filter(|scheduled| scheduled.status == "False");
    let unscheduled = unscheduled.map(|scheduled| trouble_of("Unschedulable", scheduled.message.as_deref(), true));
    let mut containers = status.container_statuses.iter().flatten();
    plan::Pod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        revision: pod.labels().get(REVISION_LABEL).cloned().unwrap_or_default(),
        leaving_since: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
        created,
        ready_since: is_ready.then_some(changed),
        unready_since: changed.max(created),
        trouble: containers.find_map(trouble).or(unscheduled),
    }
}

/// Why a container does not run, where that is not just a matter of moments.
fn trouble(container: &ContainerStatus) -> Option<plan::Trouble> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let may_pass = match reason {
        "CrashLoopBackOff" | "InvalidImageName" | "ErrImageNeverPull" => false,
        "ErrImagePull"
        | "ImagePullBackOff"
        | "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError" => true,
        _ => return None,
    };
    let ended = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let words = ended.map(|ended| {
        let said = ended.message.as_deref().unwrap_or_default().trim();
        let said = said.lines().last().unwrap_or_default();
        format!(
            "exit code {}{}{said}",
            ended.exit_code,
            if said.is_empty() { "" } else { ": " }
        )
    });
    Some(trouble_of(
        reason,
        words.as_deref().or(waiting.message.as_deref()),
        may_pass,
    ))
}

fn trouble_of(reason: &str, words: Option<&str>, may_pass: bool) -> plan::Trouble {
    plan::Trouble {
        message: format!("{reason}: {}", words.unwrap_or_default()),
        may_pass,
        since: Timestamp::UNIX_EPOCH,
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
