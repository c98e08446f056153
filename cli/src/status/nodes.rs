// SPDX-License-Identifier: Apache-2.0
//! Each node: what its DataplaneNode says, whether somebody still stands behind that, and what was lost.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use wardline_crds::condition::find;
use wardline_crds::{AttachKind, Dataplane, DataplaneNode, DataplaneNodeStatus, NetworkLogging};

use super::figures::Figures;
use super::look::Asked;
use super::pods::{self, PodRow};
use super::report::{Losses, NODE, Report, at, ready};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct NodeRow {
    pub(super) name: String,
    /// The condition's status; None: there is no DataplaneNode, or it has none.
    pub(super) ready: Option<String>,
    /// Whether a daemon that runs stands behind what is said here.
    pub(super) current: bool,
    pub(super) version: Option<String>,
    pub(super) revision: Option<String>,
    /// Whether it is the revision that the Dataplane asks for.
    pub(super) updated: Option<bool>,
    /// Whether the kernel holds all policies.
    pub(super) synced: Option<bool>,
    /// When policies were last changed in the kernel.
    pub(super) last_applied: Option<Timestamp>,
    pub(super) managed: Option<i64>,
    /// At most 16 are listed.
    pub(super) unmanaged: Option<usize>,
    /// At most 16 are listed.
    pub(super) invalid_objects: Option<usize>,
    pub(super) lost: Option<Lost>,
    pub(super) log: Option<LogState>,
    pub(super) kernel: Option<String>,
    pub(super) attach: Option<&'static str>,
    pub(super) pod: Option<PodRow>,
}

/// Records that were lost since the node booted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Lost {
    pub(super) total: u64,
    pub(super) by_cause: BTreeMap<String, u64>,
    /// Of these, since one began to watch; None where there are none.
    pub(super) watched: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogState {
    On,
    Off,
    /// It logs as an older generation of the NetworkLogging asked.
    Behind,
    /// Nothing can be written.
    Stopped,
}

/// What the cluster asks of nodes.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// None: there is no Dataplane.
    node_selector: Option<BTreeMap<String, String>>,
    revision: String,
    /// 0 without a NetworkLogging.
    logging_generation: i64,
    logs: bool,
}

impl Wanted {
    pub(super) fn of(dataplane: Option<&Dataplane>, logging: Option<&NetworkLogging>) -> Self {
        let status = dataplane.and_then(|dataplane| dataplane.status.as_ref());
        Self {
            node_selector: dataplane.map(|dataplane| dataplane.spec.daemon.node_selector.clone()),
            revision: status.map_or_else(String::new, |status| status.rollout.revision.clone()),
            logging_generation: logging
                .and_then(|logging| logging.metadata.generation)
                .unwrap_or_default(),
            logs: logging.is_some_and(|logging| logging.spec.cluster.allow.log || logging.spec.cluster.deny.log),
        }
    }

    fn selects(&self, node: &Node) -> bool {
        let has = |(key, value): (&String, &String)| node.labels().get(key) == Some(value);
        self.node_selector
            .as_ref()
            .is_some_and(|selector| selector.iter().all(has))
    }
}

/// All that is known of the nodes.
pub(super) struct Cluster<'a> {
    pub(super) namespace: &'a str,
    pub(super) objects: Vec<DataplaneNode>,
    pub(super) nodes: Asked<Vec<Node>>,
    pub(super) pods: Asked<Vec<Pod>>,
    pub(super) figures: Option<Asked<BTreeMap<String, Result<Figures, String>>>>,
    pub(super) before: Option<&'a Losses>,
}

/// One node, from all sides.
struct OneNode<'a> {
    name: String,
    object: Option<DataplaneNode>,
    node: Option<&'a Node>,
    pod: Option<&'a Pod>,
    figures: Option<&'a Result<Figures, String>>,
}

impl Cluster<'_> {
    pub(super) fn tell(mut self, report: &mut Report, wanted: &Wanted) {
        if let Err(why) = &self.nodes {
            report.notes.push(format!("the nodes are not known: {why}"));
        }
        match &self.figures {
            Some(Err(why)) => report.notes.push(format!("what was lost is not known: {why}")),
            None if self.pods.is_ok() => report
                .notes
                .push("what was lost is not known: no daemon was asked".to_owned()),
            _ => {}
        }
        let mut objects: BTreeMap<String, DataplaneNode> = std::mem::take(&mut self.objects)
            .into_iter()
            .map(|object| (object.name_any(), object))
            .collect();
        let nodes: BTreeMap<String, &Node> = self
            .nodes
            .iter()
            .flatten()
            .map(|node| (node.name_any(), node))
            .collect();
        let mut daemons: BTreeMap<&str, &Pod> = BTreeMap::new();
        for pod in self.pods.iter().flatten().filter(|pod| pods::is_daemon(pod)) {
            let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else {
                continue;
            };
            // While one goes and its successor comes, the successor.
            let is_better = daemons
                .get(node)
                .is_none_or(|other| other.metadata.deletion_timestamp.is_some());
            if is_better {
                daemons.insert(node, pod);
            }
        }
        let selected = nodes
            .iter()
            .filter(|(_, node)| wanted.selects(node))
            .map(|(name, _)| name.clone());
        let names: BTreeSet<String> = selected
            .chain(objects.keys().cloned())
            .chain(daemons.keys().map(|name| (*name).to_owned()))
            .collect();
        for name in names {
            let figures = self.figures.as_ref().and_then(|figures| figures.as_ref().ok());
            let one = OneNode {
                object: objects.remove(&name),
                node: nodes.get(&name).copied(),
                pod: daemons.get(name.as_str()).copied(),
                figures: figures.and_then(|figures| figures.get(&name)),
                name,
            };
            self.tell_one(report, wanted, one);
        }
    }

    fn tell_one(&self, report: &mut Report, wanted: &Wanted, one: OneNode<'_>) {
        let is_left_out = one.node.is_some_and(|node| !wanted.selects(node)) && one.pod.is_none();
        if is_left_out {
            let note = format!(
                "{}: the Dataplane leaves it out, so nothing of its DataplaneNode is kept true",
                one.name
            );
            report.notes.push(note);
        } else {
            if let Some(why) = one.node.and_then(why_node_is_down) {
                report.problem(NODE, &one.name, why);
            }
            self.tell_daemon(report, &one);
        }
        let mut row = NodeRow {
            pod: one.pod.map(PodRow::from),
            lost: self.lost(report, &one),
            ..NodeRow::default()
        };
        let is_stopped = one
            .figures
            .is_some_and(|figures| matches!(figures, Ok(figures) if figures.is_log_stopped));
        let status = one.object.as_ref().and_then(|object| object.status.as_ref());
        row.name.clone_from(&one.name);
        if let Some(status) = status {
            let is_old = self.tell_age(report, &one, status);
            row.current = !is_old && one.pod.is_none_or(pods::is_ready);
            tell_status(report, &one.name, status);
            fill(&mut row, wanted, status);
            row.log = Some(log_state(wanted, status, is_stopped));
        } else if !is_left_out {
            let message = match one.pod {
                Some(pod) => format!(
                    "its daemon has not said anything yet. Look: kubectl logs -n {} {}",
                    self.namespace,
                    pod.name_any()
                ),
                None => "it has no DataplaneNode: no daemon has ever worked there".to_owned(),
            };
            report.problem(NODE, &one.name, message);
        }
        if is_stopped && row.log == Some(LogState::Stopped) && !says_log_stopped(status) {
            report.problem(
                NODE,
                &one.name,
                "its policy log cannot be written; its DataplaneNode will say why",
            );
        }
        report.nodes.push(row);
    }

    /// Whether its daemon is there, and answers.
    fn tell_daemon(&self, report: &mut Report, one: &OneNode<'_>) {
        let namespace = self.namespace;
        match (one.pod, &self.pods) {
            (None, Ok(_)) => report.problem(
                NODE,
                &one.name,
                format!(
                    "no daemon runs there: what was enforced stays so, changes and new pods wait. \
                     Look: kubectl describe daemonset -n {namespace} wardline-node"
                ),
            ),
            (Some(pod), _) if !pods::is_ready(pod) => {
                let (name, why) = (pod.name_any(), pods::why_not_ready(pod));
                report.problem(
                    NODE,
                    &one.name,
                    format!(
                        "its daemon is not ready: {why}. Look: kubectl logs -n {namespace} {name}, and with --previous"
                    ),
                );
            }
            (Some(_), _) | (None, Err(_)) => {}
        }
        if let (Some(pod), Some(Err(why))) = (one.pod, one.figures) {
            let name = pod.name_any();
            report.problem(
                NODE,
                &one.name,
                format!("its daemon does not tell its metrics: {why}. Look: kubectl logs -n {namespace} {name}"),
            );
        }
    }

    /// Whether what it says was said by a daemon that is no more.
    fn tell_age(&self, report: &mut Report, one: &OneNode<'_>, status: &DataplaneNodeStatus) -> bool {
        if one.pod.is_none() && self.pods.is_ok() {
            // Told already.
            return true;
        }
        // A daemon sets all its conditions anew when it starts.
        let said = status
            .conditions
            .iter()
            .map(|condition| condition.last_transition_time.0)
            .min();
        let started = one.pod.and_then(pods::started);
        let (Some(said), Some(started)) = (said, started) else {
            return false;
        };
        if said >= started {
            return false;
        }
        report.problem(
            NODE,
            &one.name,
            format!(
                "what it says is of a daemon that ended: the one that runs since {} has not written it. \
                 Look whether it reaches the API server: kubectl logs -n {} {}",
                at(started),
                self.namespace,
                one.pod.map(ResourceExt::name_any).unwrap_or_default()
            ),
        );
        true
    }

    fn lost(&self, report: &mut Report, one: &OneNode<'_>) -> Option<Lost> {
        let figures = one.figures?.as_ref().ok()?;
        let total = figures.lost.values().sum();
        let watched = self.before.and_then(|before| before.get(&one.name));
        let watched = watched
            .map(|before| u64::saturating_sub(total, *before))
            .filter(|watched| *watched > 0);
        let causes: Vec<String> = figures
            .lost
            .iter()
            .map(|(cause, count)| format!("{count} {cause}"))
            .collect();
        let causes = causes.join(", ");
        if watched.is_some() {
            report.problem(
                NODE,
                &one.name,
                format!("records are being lost: {causes} since the node booted"),
            );
        } else if total > 0 {
            report
                .notes
                .push(format!("{}: records were lost since it booted: {causes}", one.name));
        }
        Some(Lost {
            total,
            by_cause: figures.lost.clone(),
            watched,
        })
    }
}

fn fill(row: &mut NodeRow, wanted: &Wanted, status: &DataplaneNodeStatus) {
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    row.ready = ready(&status.conditions);
    row.version = text(&status.version);
    row.revision = text(&status.revision);
    row.updated = (!wanted.revision.is_empty()).then(|| status.revision == wanted.revision);
    row.synced = Some(status.policy.synced);
    row.last_applied = status.policy.last_applied_time.as_ref().map(|time| time.0);
    row.managed = Some(status.endpoints.managed);
    row.unmanaged = Some(status.endpoints.unmanaged.len());
    row.invalid_objects = Some(status.invalid_objects.len());
    row.kernel = text(&status.kernel.release);
    row.attach = status.kernel.attach.map(|attach| match attach {
        AttachKind::Tcx => "tcx",
        AttachKind::Clsact => "clsact",
    });
}

fn tell_status(report: &mut Report, name: &str, status: &DataplaneNodeStatus) {
    report.conditions(NODE, name, &status.conditions, &["Ready", "Verified"], &["Degraded"]);
    for invalid in &status.invalid_objects {
        let object = if invalid.namespace.is_empty() {
            invalid.name.clone()
        } else {
            format!("{}/{}", invalid.namespace, invalid.name)
        };
        let message = format!("{} {object} cannot be used: {}", invalid.kind, invalid.message);
        report.problem(NODE, name, message);
    }
    for pod in &status.endpoints.unmanaged {
        let message = format!("Pod {}/{} is not managed: {}", pod.namespace, pod.name, pod.message);
        report.problem(NODE, name, message);
    }
}

fn log_state(wanted: &Wanted, status: &DataplaneNodeStatus, is_stopped: bool) -> LogState {
    if is_stopped || says_log_stopped(Some(status)) {
        LogState::Stopped
    } else if status.logging.applied_generation < wanted.logging_generation {
        LogState::Behind
    } else if wanted.logs {
        LogState::On
    } else {
        LogState::Off
    }
}

fn says_log_stopped(status: Option<&DataplaneNodeStatus>) -> bool {
    let degraded = status.and_then(|status| find(&status.conditions, "Degraded"));
    degraded.is_some_and(|degraded| degraded.status == "True" && degraded.reason == "PolicyLogStopped")
}

fn why_node_is_down(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    if ready.status == "True" {
        return None;
    }
    let reason = ready.reason.as_deref().unwrap_or("unknown");
    let since = ready
        .last_transition_time
        .as_ref()
        .map(|time| format!(" since {}", at(time.0)));
    let (since, name) = (since.unwrap_or_default(), node.name_any());
    Some(format!(
        "the node is not ready{since} ({reason}). Look: kubectl describe node {name}"
    ))
}
