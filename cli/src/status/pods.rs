// SPDX-License-Identifier: Apache-2.0
//! What the pods of operator and daemons say of themselves.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;

const NAME: &str = "app.kubernetes.io/name";
const REVISION: &str = "wardline.io/revision";
/// Of pods that clean their node.
const REMOVAL: &str = "removal";

/// A pod in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PodRow {
    pub(super) name: String,
    pub(super) ready: bool,
    pub(super) restarts: i32,
}

impl From<&Pod> for PodRow {
    fn from(pod: &Pod) -> Self {
        Self {
            name: pod.name_any(),
            ready: is_ready(pod),
            restarts: containers(pod).map(|container| container.restart_count).sum(),
        }
    }
}

pub(super) fn is_daemon(pod: &Pod) -> bool {
    let is_removal = pod.labels().get(REVISION).is_some_and(|revision| revision == REMOVAL);
    pod.labels().get(NAME).is_some_and(|name| name == "wardline-node") && !is_removal
}

pub(super) fn is_operator(pod: &Pod) -> bool {
    pod.labels().get(NAME).is_some_and(|name| name == "wardline-operator")
}

pub(super) fn is_running(pod: &Pod) -> bool {
    let runs = |container: &ContainerStatus| container.state.as_ref().is_some_and(|state| state.running.is_some());
    pod.metadata.deletion_timestamp.is_none() && containers(pod).any(runs)
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    pod.metadata.deletion_timestamp.is_none() && ready.any(|condition| condition.status == "True")
}

/// When its container that runs was started.
pub(super) fn started(pod: &Pod) -> Option<Timestamp> {
    let mut running = containers(pod).filter_map(|container| container.state.as_ref()?.running.as_ref());
    Some(running.next()?.started_at.as_ref()?.0)
}

/// Why it is not ready, in a few words.
pub(super) fn why_not_ready(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "it is being deleted".to_owned();
    }
    for container in containers(pod) {
        let state = container.state.as_ref();
        let restarts = match container.restart_count {
            0 => String::new(),
            count => format!(", restarted {count} times"),
        };
        let last = container
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        let ended = state.and_then(|state| state.terminated.as_ref()).or(last);
        let ended = ended.map_or_else(String::new, |ended| {
            let message = ended.message.as_deref().unwrap_or_default().trim();
            let message = message.lines().next_back().unwrap_or_default();
            let said = if message.is_empty() {
                String::new()
            } else {
                format!(": {message}")
            };
            format!(", ended with exit code {}{said}", ended.exit_code)
        });
        if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
            let reason = waiting.reason.as_deref().unwrap_or("Waiting");
            return format!("{reason}{restarts}{ended}");
        }
        if let Some(running) = state.and_then(|state| state.running.as_ref()) {
            let since = running
                .started_at
                .as_ref()
                .map(|started| format!(" since {}", started.0));
            let since = since.unwrap_or_default();
            return format!("it runs{since} and is not ready{restarts}");
        }
        if !ended.is_empty() {
            return format!("{}{restarts}", ended.trim_start_matches(", "));
        }
    }
    let scheduled = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut unscheduled = scheduled.filter(|condition| condition.type_ == "PodScheduled" && condition.status != "True");
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("unknown");
    match unscheduled.next().and_then(|condition| condition.message.clone()) {
        Some(message) => format!("it is {phase}: {message}"),
        None => format!("it is {phase}"),
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten())
}
