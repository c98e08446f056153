// SPDX-License-Identifier: Apache-2.0
//! Which node gets the revision next, and whether it goes on at all. Pure: what there is, and the time, in; one step out.
//!
//! ```text
//! forward   to what was nowhere yet: canaries first, then the others; given up where a node fails
//! back      to what was good, where that was given up: first to those that do not work
//! standing  all have it, but who comes late
//!
//! never more than maxUnavailable of the nodes are without a daemon that is well
//! well      the pod is ready for minReadySeconds, and the daemon says: this revision, policy in force, verified
//! failed    it crashes, does not start, does not verify, or is not well by the deadline: give up
//! down      its kubelet does not answer: waited for by nobody, and its turn when it is back
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use wardline_crds::RolloutSpec;

use super::dereference::share;
use crate::nodes::{Report, listed};

/// How long a container that cannot be started is tried again: a registry may be away for a moment.
const START_PATIENCE: Duration = Duration::from_mins(1);

/// A node that has a pod of the daemon.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    /// Whether its kubelet answers.
    pub(super) is_up: bool,
    pub(super) pod: Pod,
    /// What its daemon says.
    pub(super) report: Report,
}

/// The daemon's pod on a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) revision: String,
    pub(super) is_leaving: bool,
    pub(super) ready_since: Option<Timestamp>,
    /// Since when it is not, where it is not.
    pub(super) unready_since: Timestamp,
    pub(super) trouble: Option<Trouble>,
}

/// Why the daemon's container does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) message: String,
    /// Whether it may pass by itself.
    pub(super) may_pass: bool,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Each node that is up is well with the revision.
    Done,
    /// Nothing, until something changes, or until then.
    Wait { why: String, again: Option<Duration> },
    /// Deletes pods, so that the DaemonSet's controller makes new ones.
    Replace { pods: Vec<Target>, why: String },
    /// A node is not well with the revision.
    GiveUp { node: String, why: String },
}

impl Step {
    pub(super) fn waiting(why: &str) -> Self {
        Self::Wait {
            why: why.to_owned(),
            again: None,
        }
    }
}

/// A pod to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) node: String,
    pub(super) pod: String,
    /// Of that pod and no other of its name.
    pub(super) uid: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    /// Another revision runs there.
    Outdated,
    /// The pod is being deleted.
    Leaving,
    /// Nobody knows.
    Down,
    Failed(String),
    Starting(String),
    /// Well, but for that long only so far.
    Settling(Duration),
    Well,
}

/// Where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Forward,
    Back,
    Standing,
}

/// What is to be rolled out, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) revision: &'a str,
    pub(super) way: Way,
    /// Nodes that should run the daemon.
    pub(super) desired: i32,
    pub(super) pace: &'a RolloutSpec,
}

impl Plan<'_> {
    /// `nodes` in the order in which they get it.
    pub(super) fn step(&self, nodes: &[Node], now: Timestamp) -> Step {
        let states: Vec<(&Node, Health)> = nodes.iter().map(|node| (node, self.health(node, now))).collect();
        let failed = states.iter().find_map(|(node, health)| match health {
            Health::Failed(why) => Some((node, why)),
            _ => None,
        });
        if let Some((node, why)) = failed.filter(|_| self.way == Way::Forward) {
            return Step::GiveUp {
                node: node.name.clone(),
                why: why.clone(),
            };
        }
        let outdated = || states.iter().filter(|(_, health)| *health == Health::Outdated);
        let known = i32::try_from(nodes.len()).unwrap_or(i32::MAX);
        let missing = (self.desired - known).max(0);
        let again = states
            .iter()
            .filter_map(|(node, health)| self.again(node, health, now))
            .min();
        if outdated().next().is_none() {
            // How nodes are that have had it for long is no matter of the rollout.
            if self.way == Way::Standing {
                return Step::Done;
            }
            return match waits_for(&states, missing) {
                Some(why) => Step::Wait { why, again },
                None => Step::Done,
            };
        }
        let candidates: Vec<&Node> = match self.canaries(&states) {
            Ok(Some(canaries)) => outdated()
                .map(|(node, _)| *node)
                .filter(|node| canaries.contains(&*node.name))
                .collect(),
            Ok(None) => outdated().map(|(node, _)| *node).collect(),
            Err(why) => return Step::Wait { why, again },
        };
        // One that serves nobody costs nobody anything.
        let (idle, serving): (Vec<&Node>, Vec<&Node>) =
            candidates.into_iter().partition(|node| node.pod.ready_since.is_none());
        let unavailable = states.iter().filter(|(node, health)| match health {
            Health::Outdated => node.pod.ready_since.is_none(),
            Health::Down | Health::Well => false,
            Health::Leaving | Health::Failed(_) | Health::Starting(_) | Health::Settling(_) => true,
        });
        let unavailable = i32::try_from(unavailable.count())
            .unwrap_or(i32::MAX)
            .saturating_add(missing);
        let most = share(&self.pace.max_unavailable, self.desired);
        // Those that do not work are helped at once; a change that nobody knows yet comes to a few of them first.
        let idle = idle.into_iter().take(if self.way == Way::Back {
            usize::MAX
        } else {
            at_most(most)
        });
        let room = at_most(most.saturating_sub(unavailable));
        let chosen: Vec<&Node> = idle.chain(serving.into_iter().take(room)).collect();
        if chosen.is_empty() {
            let why = waits_for(&states, missing).unwrap_or_default();
            return Step::Wait { why, again };
        }
        let names: Vec<String> = chosen.iter().map(|node| node.name.clone()).collect();
        let target = |node: &Node| Target {
            node: node.name.clone(),
            pod: node.pod.name.clone(),
            uid: node.pod.uid.clone(),
        };
        Step::Replace {
            pods: chosen.into_iter().map(target).collect(),
            why: format!("replacing the daemon of {}", listed(&names)),
        }
    }

    /// The nodes that others wait for; none where all canaries are well, or there are to be none.
    fn canaries<'n>(&self, states: &[(&'n Node, Health)]) -> Result<Option<BTreeSet<&'n str>>, String> {
        let canary = &self.pace.canary;
        if self.way != Way::Forward || canary.nodes == 0 {
            return Ok(None);
        }
        let is_selected = |node: &Node| {
            canary
                .node_selector
                .iter()
                .all(|label| node.labels.get(label.0) == Some(label.1))
        };
        let up = states.iter().filter(|(_, health)| *health != Health::Down);
        let mut selected: Vec<_> = up.filter(|(node, _)| is_selected(node)).collect();
        if selected.is_empty() {
            return Err("no node that is up has the labels of spec.daemon.rollout.canary.nodeSelector".into());
        }
        // Those that have it already are the canaries, so that none is added where the nodes' order changes.
        selected.sort_by_key(|(_, health)| *health == Health::Outdated);
        selected.truncate(canary.nodes as usize);
        let are_well = selected.iter().all(|(_, health)| *health == Health::Well);
        Ok((!are_well).then(|| selected.iter().map(|(node, _)| &*node.name).collect()))
    }

    fn health(&self, node: &Node, now: Timestamp) -> Health {
        let (pod, report) = (&node.pod, &node.report);
        if !node.is_up {
            return Health::Down;
        }
        if pod.is_leaving {
            return Health::Leaving;
        }
        if pod.revision != self.revision {
            return Health::Outdated;
        }
        let waited = since(unwell_since(node), now);
        if let Some(trouble) = pod
            .trouble
            .as_ref()
            .filter(|trouble| !trouble.may_pass || waited >= START_PATIENCE)
        {
            return Health::Failed(trouble.message.clone());
        }
        let speaks = report.revision == self.revision;
        let why = match (pod.ready_since, &report.unverified) {
            (None, _) => pod
                .trouble
                .as_ref()
                .map_or_else(|| "its pod is not ready".into(), |trouble| trouble.message.clone()),
            (Some(_), _) if !speaks => "its daemon has not reported yet".into(),
            (Some(_), Some(why)) if report.has_failed => return Health::Failed(why.clone()),
            (Some(_), Some(why)) => why.clone(),
            (Some(_), None) if !report.is_ready => "its policies are not in force".into(),
            (Some(ready), None) => {
                let settled = Duration::from_secs(self.pace.min_ready_seconds.into());
                return match settled.checked_sub(since(ready, now)) {
                    Some(left) if !left.is_zero() => Health::Settling(left),
                    _ => Health::Well,
                };
            }
        };
        if waited >= self.deadline() {
            return Health::Failed(format!("not well after {} s: {why}", self.deadline().as_secs()));
        }
        Health::Starting(why)
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(self.pace.progress_deadline_seconds.into())
    }

    /// When a node is to be looked at again though nothing changes.
    fn again(&self, node: &Node, health: &Health, now: Timestamp) -> Option<Duration> {
        match health {
            Health::Settling(left) => Some(*left),
            Health::Starting(_) => {
                let patience = if node.pod.trouble.is_some() {
                    START_PATIENCE
                } else {
                    self.deadline()
                };
                Some(patience.saturating_sub(since(unwell_since(node), now)))
            }
            _ => None,
        }
    }
}

/// Since when something may be wrong: a node that was well for long has all the time again when its daemon starts anew.
fn unwell_since(node: &Node) -> Timestamp {
    match node.pod.ready_since {
        Some(ready) => ready.max(node.report.changed),
        None => node.pod.unready_since,
    }
}

fn at_most(count: i32) -> usize {
    usize::try_from(count).unwrap_or(0)
}

/// Clocks may differ: what lies ahead is now.
fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// The nodes that are not well yet, or else those that have no pod; none where nothing is waited for.
fn waits_for(states: &[(&Node, Health)], missing: i32) -> Option<String> {
    let unwell = states.iter().filter_map(|(node, health)| {
        let why = match health {
            Health::Leaving => "its pod is ending",
            Health::Starting(why) | Health::Failed(why) => why,
            // Without a number: it is part of a status, which is written when it changes.
            Health::Settling(_) => "well so far",
            Health::Outdated | Health::Down | Health::Well => return None,
        };
        Some(format!("{}: {why}", node.name))
    });
    let unwell: Vec<String> = unwell.collect();
    if unwell.is_empty() {
        (missing > 0).then(|| format!("{missing} nodes have no pod yet"))
    } else {
        Some(listed(&unwell))
    }
}

#[cfg(test)]
mod tests;
