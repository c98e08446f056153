// SPDX-License-Identifier: Apache-2.0
//! Which node gets the revision next, and whether it goes on at all. Pure: what there is, and the time, in; one step out.
//!
//! ```text
//! forward   to what was nowhere yet: canaries first, then the others; given up where a node fails
//! back      to what was good, where that was given up: first to those that do not work
//! standing  to what all have that were well, but who comes late
//! away      to nothing: Wardline leaves, and a node is well when nothing of it is left there
//!
//! never more than maxUnavailable of the nodes are without a daemon that is well
//! well      the pod is ready for minReadySeconds, and the daemon says: this revision, policy in force, verified
//! failed    it crashes, does not start, does not verify, or is not well by the deadline: give up
//! excused   it was not well before, or is new: it gets the revision, and what it does with it is no one's fault
//! down      its kubelet did not answer before: waited for by nobody, and its turn when it is back
//! ```
//!
//! A node keeps the place that it takes up until it is well, whatever becomes of its pod meanwhile: which nodes those are
//! is part of the status (`replacing`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use wardline_crds::condition::whole_seconds;
use wardline_crds::{ReplacedDaemon, RolloutSpec};

use super::dereference::share;
use crate::nodes::{Report, listed};

/// How long a container that cannot be started is tried again: a registry may be away for a moment.
const START_PATIENCE: Duration = Duration::from_mins(1);
/// How long a node is new: its daemon's pod was made within that time after it.
const JOINING: Duration = Duration::from_mins(5);

/// A node that has a pod of the daemon.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) created: Timestamp,
    /// Since when its kubelet does not answer, where it does not.
    pub(super) down_since: Option<Timestamp>,
    pub(super) pod: Pod,
    /// What its daemon says; none where none ever said anything.
    pub(super) report: Option<Report>,
}

impl Node {
    /// Whether it is well with what it runs.
    pub(super) fn was_well(&self) -> bool {
        let says_so = |report: &Report| report.is_ready && report.unverified.is_none();
        self.pod.ready_since.is_some() && self.report.as_ref().is_some_and(says_so)
    }

    /// Why it is not well with a revision that its pod has.
    fn what_is_missing(&self, revision: &str) -> Result<(), Missing> {
        let report = self.report.as_ref().filter(|report| report.revision == revision);
        // A daemon that fails its test takes nothing over, and is not ready either.
        if let Some(why) = report.and_then(|report| report.unverified.as_ref().filter(|_| report.has_failed)) {
            return Err(Missing::Never(why.clone()));
        }
        if self.pod.ready_since.is_none() {
            let trouble = self.pod.trouble.as_ref().map(|trouble| trouble.message.clone());
            return Err(Missing::Yet(trouble.unwrap_or_else(|| "its pod is not ready".into())));
        }
        let Some(report) = report else {
            return Err(Missing::Yet("its daemon has not reported yet".into()));
        };
        match &report.unverified {
            Some(why) => Err(Missing::Yet(why.clone())),
            None if !report.is_ready => Err(Missing::Yet("its policies are not in force".into())),
            None => Ok(()),
        }
    }

    /// Why it is not well with that revision, and up; none where it is.
    pub(super) fn lacks(&self, revision: &str) -> Option<String> {
        if self.down_since.is_some() {
            return Some("its kubelet does not answer".into());
        }
        if self.pod.leaving_since.is_some() {
            return Some("its pod is ending".into());
        }
        if self.pod.revision != revision {
            return Some("it has another revision".into());
        }
        match self.what_is_missing(revision) {
            Ok(()) => None,
            Err(Missing::Yet(why) | Missing::Never(why)) => Some(why),
        }
    }

    /// What is remembered of it once the deletion of its pod is decided.
    pub(super) fn replaced(&self, now: Timestamp) -> ReplacedDaemon {
        ReplacedDaemon {
            node: self.name.clone(),
            pod: self.pod.uid.clone(),
            since: Time(whole_seconds(now)),
        }
    }
}

/// The daemon's pod on a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) revision: String,
    /// When its deletion was asked for, where it was.
    pub(super) leaving_since: Option<Timestamp>,
    pub(super) created: Timestamp,
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
    /// When it was seen first.
    pub(super) since: Timestamp,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Each node that is up is well with the revision, but for those that are excused.
    Done,
    /// Nothing, until something changes, or until then.
    Wait { why: String, again: Option<Duration> },
    /// Deletes pods, so that the DaemonSet's controller makes new ones.
    Replace { pods: Vec<Target>, why: String },
    /// A node is not well with the revision.
    GiveUp { node: String, why: String },
    /// Nothing will come of it until somebody acts.
    Stuck { why: String },
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

/// A step, and what is to be remembered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Decision {
    pub(super) step: Step,
    pub(super) replacing: Vec<ReplacedDaemon>,
    pub(super) excused: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    /// Another revision runs there, or the pod that is to be replaced.
    Outdated,
    /// Nobody knows.
    Down,
    Failed(String),
    Starting(String),
    /// Well, but for that long only so far.
    Settling(Duration),
    Well,
    /// Excused, and not well.
    Unwell,
}

impl Health {
    /// Whether its node takes up one of the places that a rollout may take.
    fn is_under_way(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Starting(_) | Self::Settling(_))
    }
}

/// Where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Forward,
    Back,
    Standing,
    Away,
}

/// What is to be rolled out, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) revision: &'a str,
    pub(super) way: Way,
    /// Nodes that should run the daemon.
    pub(super) desired: i32,
    pub(super) pace: &'a RolloutSpec,
    /// The nodes that there are, with a pod or without.
    pub(super) existing: &'a BTreeSet<String>,
    /// What was remembered.
    pub(super) replacing: &'a [ReplacedDaemon],
    pub(super) excused: &'a [String],
    /// Whether there is something to go back to.
    pub(super) has_good: bool,
    /// The node that a change was taken back for.
    pub(super) failed: Option<&'a str>,
}

type State<'n> = (&'n Node, Health);

impl Plan<'_> {
    /// `nodes` in the order in which they get it.
    pub(super) fn decide(&self, nodes: &[Node], now: Timestamp) -> Decision {
        let states: Vec<State<'_>> = nodes.iter().map(|node| (node, self.health(node, now))).collect();
        let missing = self.missing(nodes);
        let step = self.step(&states, &missing, now);
        let keeps_place = |entry: &&ReplacedDaemon| {
            let state = states.iter().find(|(node, _)| node.name == entry.node);
            match state {
                Some((_, Health::Failed(_))) => matches!(self.way, Way::Forward | Way::Away),
                Some((_, health)) => health.is_under_way() || *health == Health::Outdated,
                None => missing.iter().any(|missing| missing.node == entry.node),
            }
        };
        let mut replacing: Vec<ReplacedDaemon> = self.replacing.iter().filter(keeps_place).cloned().collect();
        let mut excused: BTreeSet<String> = self.excused.iter().cloned().collect();
        let is_chosen = |node: &&Node| match &step {
            Step::Replace { pods, .. } => pods.iter().any(|target| target.node == node.name),
            _ => false,
        };
        for node in nodes.iter().filter(is_chosen) {
            // Decided before, and so was whether it is excused.
            if self.entry(&node.name).is_some() {
                continue;
            }
            replacing.push(node.replaced(now));
            if self.way == Way::Forward && !node.was_well() {
                excused.insert(node.name.clone());
            }
        }
        excused.retain(|name| self.existing.contains(name));
        Decision {
            step,
            replacing,
            excused: excused.into_iter().collect(),
        }
    }

    fn step(&self, states: &[State<'_>], missing: &[&ReplacedDaemon], now: Timestamp) -> Step {
        if self.way == Way::Forward
            && let Some((node, why)) = self.culprit(states, missing, now)
        {
            return Step::GiveUp { node, why };
        }
        let known = i32::try_from(states.len()).unwrap_or(i32::MAX);
        let unmade = (self.desired - known).max(0);
        let under_way = states.iter().filter(|state| self.holds_place(state)).count();
        let under_way = i32::try_from(under_way).unwrap_or(i32::MAX).saturating_add(unmade);
        let most = share(&self.pace.max_unavailable, self.desired).max(1);
        let room = at_most(most.saturating_sub(under_way));
        let again = self.look_again(states, missing, now);
        let wait = |why: String| Step::Wait { why, again };

        // Their deletion was decided already, and may not have come to pass.
        let due = |node: &&Node| self.entry(&node.name).is_some();
        let outdated = states.iter().filter(|(_, health)| *health == Health::Outdated);
        let (due, mut others): (Vec<&Node>, Vec<&Node>) = outdated.map(|(node, _)| *node).partition(due);
        others.sort_by_key(|node| self.failed != Some(&*node.name));
        let chosen: Vec<&Node> = if others.is_empty() {
            due
        } else {
            let canaries = match self.wanted_canaries(states, missing) {
                Ok(canaries) => canaries,
                Err(step) => return step,
            };
            let most = match &canaries {
                Some(canaries) => canaries.wanted,
                // Those that do not work are helped at once; a change that is not proven comes to a few of them first.
                None if self.way == Way::Back => usize::MAX,
                None => room,
            };
            let is_candidate = |node: &&Node| canaries.as_ref().is_none_or(|all| all.selected.contains(&*node.name));
            // Who serves nobody costs nobody anything.
            let is_idle = |node: &&Node| node.pod.ready_since.is_none();
            let (idle, serving): (Vec<&Node>, Vec<&Node>) = others.into_iter().filter(is_candidate).partition(is_idle);
            let others = idle.into_iter().chain(serving.into_iter().take(room));
            due.into_iter().chain(others.take(most)).collect()
        };
        if chosen.is_empty() {
            return self.rest(states, unmade).map_or(Step::Done, wait);
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

    /// A node that the change is to be taken back for.
    fn culprit(&self, states: &[State<'_>], missing: &[&ReplacedDaemon], now: Timestamp) -> Option<(String, String)> {
        let failed = states.iter().find_map(|(node, health)| match health {
            Health::Failed(why) => Some((node.name.clone(), why.clone())),
            _ => None,
        });
        let unmade = || {
            let late = missing
                .iter()
                .find(|entry| since(entry.since.0, now) >= self.deadline())?;
            let why = format!("no pod was made for it within {} s", self.deadline().as_secs());
            (!self.is_excused_by_name(&late.node)).then(|| (late.node.clone(), why))
        };
        failed.or_else(unmade)
    }

    /// Those whose pod was deleted, and that have no other yet.
    fn missing(&self, nodes: &[Node]) -> Vec<&ReplacedDaemon> {
        // Where all have one that should, the others are to have none any more.
        if self.desired <= i32::try_from(nodes.len()).unwrap_or(i32::MAX) {
            return Vec::new();
        }
        let has_pod = |entry: &&ReplacedDaemon| nodes.iter().any(|node| node.name == entry.node);
        let is_there = |entry: &&ReplacedDaemon| self.existing.contains(&entry.node);
        self.replacing
            .iter()
            .filter(|entry| is_there(entry) && !has_pod(entry))
            .collect()
    }

    fn holds_place(&self, (node, health): &State<'_>) -> bool {
        match health {
            Health::Outdated => self.entry(&node.name).is_some(),
            // With what was good before it will not be better.
            Health::Failed(_) => self.way == Way::Forward,
            health => health.is_under_way(),
        }
    }

    /// How many canaries are still to be made, and of which nodes; none where all are well, or there are to be none.
    fn wanted_canaries<'n>(
        &self,
        states: &[State<'n>],
        missing: &[&ReplacedDaemon],
    ) -> Result<Option<Canaries<'n>>, Step> {
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
        let selected: Vec<&State<'n>> = up.filter(|(node, _)| is_selected(node)).collect();
        if selected.is_empty() {
            let why = "no node that is up has the labels of spec.daemon.rollout.canary.nodeSelector".into();
            return Err(Step::Stuck { why });
        }
        let count = |is: &dyn Fn(&State<'_>) -> bool| selected.iter().filter(|state| is(state)).count();
        let proven = count(&|(_, health)| *health == Health::Well);
        let under_way = count(&|state| self.holds_place(state)) + missing.len();
        let open = count(&|(_, health)| *health == Health::Outdated);
        let wanted = canary.nodes as usize;
        // Where no more can be had, those that there are must do.
        if proven >= wanted || (under_way == 0 && open == 0) {
            return Ok(None);
        }
        Ok(Some(Canaries {
            wanted: wanted.saturating_sub(proven + under_way),
            selected: selected.iter().map(|(node, _)| &*node.name).collect(),
        }))
    }

    /// What is waited for where no pod is to be deleted; none where nothing is.
    fn rest(&self, states: &[State<'_>], unmade: i32) -> Option<String> {
        let unwell = states.iter().filter_map(|(node, health)| {
            // How nodes are that have had it for long is no matter of the rollout.
            let is_of_old = matches!(self.way, Way::Standing | Way::Back) && self.entry(&node.name).is_none();
            let why = match health {
                Health::Starting(_) | Health::Settling(_) if is_of_old && node.pod.revision == self.revision => {
                    return None;
                }
                Health::Starting(why) => why,
                // Without a number: it is part of a status, which is written when it changes.
                Health::Settling(_) => "well so far",
                Health::Failed(why) if matches!(self.way, Way::Forward | Way::Away) => why,
                Health::Down if self.way == Way::Away => "its kubelet does not answer",
                Health::Outdated | Health::Failed(_) | Health::Unwell | Health::Down | Health::Well => return None,
            };
            Some(format!("{}: {why}", node.name))
        });
        let unwell: Vec<String> = unwell.collect();
        if !unwell.is_empty() {
            return Some(listed(&unwell));
        }
        if unmade > 0 {
            return Some(format!("{unmade} nodes have no pod yet"));
        }
        if let Some((node, _)) = states.iter().find(|(_, health)| *health == Health::Outdated) {
            return Some(format!("{}: waits for its turn", node.name));
        }
        // What no node is well with is not known to be any good.
        let is_well = |(_, health): &State<'_>| *health == Health::Well;
        let is_unproven = self.way == Way::Forward && !states.is_empty() && !states.iter().any(is_well);
        is_unproven.then(|| "no node is well with it yet".into())
    }

    fn health(&self, node: &Node, now: Timestamp) -> Health {
        let entry = self.entry(&node.name);
        let health = self.health_as_it_is(node, entry, now);
        let is_excused = self.way == Way::Forward && self.is_excused(node);
        match health {
            Health::Failed(_) if is_excused => Health::Unwell,
            // It had its time.
            Health::Starting(_) if is_excused && entry.is_none() => Health::Unwell,
            health => health,
        }
    }

    fn health_as_it_is(&self, node: &Node, entry: Option<&ReplacedDaemon>, now: Timestamp) -> Health {
        let pod = &node.pod;
        let has_it = pod.revision == self.revision && entry.is_none_or(|entry| entry.pod != pod.uid);
        let deadline = self.deadline();
        if let Some(down) = node.down_since {
            let why = "its kubelet does not answer";
            // One that goes down soon after it got the revision may have done so because of it.
            let is_suspect =
                self.way == Way::Forward && has_it && down >= pod.created && since(pod.created, down) < deadline;
            return match is_suspect {
                false => Health::Down,
                true if since(down, now) >= deadline => Health::Failed(why.into()),
                true => Health::Starting(why.into()),
            };
        }
        let begun = entry.map(|entry| entry.since.0);
        if let Some(leaving) = pod.leaving_since {
            let is_late = since(begun.unwrap_or(leaving), now) >= deadline;
            return match (is_late, entry) {
                (false, _) => Health::Starting("its pod is ending".into()),
                (true, Some(_)) => Health::Failed("its pod does not end".into()),
                // Somebody else's doing.
                (true, None) => Health::Unwell,
            };
        }
        if !has_it {
            return Health::Outdated;
        }
        if self.way == Way::Away {
            let is_late = since(pod.created, now) >= deadline;
            let trouble = pod.trouble.as_ref().map(|trouble| trouble.message.clone());
            let why = trouble.unwrap_or_else(|| "it is being cleaned".into());
            return match (pod.ready_since, &node.report) {
                (Some(_), _) => Health::Well,
                // No daemon ever said anything there, so nothing is left of one.
                (None, None) if is_late || pod.trouble.is_some() => Health::Well,
                // Others need not wait for it.
                (None, _) if is_late => Health::Failed(why),
                (None, _) => Health::Starting(why),
            };
        }
        let waited = since(begun.unwrap_or_else(|| unwell_since(node, now)), now);
        if let Some(trouble) = &pod.trouble
            && (!trouble.may_pass || since(trouble.since, now) >= START_PATIENCE)
        {
            return Health::Failed(trouble.message.clone());
        }
        let why = match node.what_is_missing(self.revision) {
            Ok(()) => {
                let settled = Duration::from_secs(self.pace.min_ready_seconds.into());
                let well = since(well_since(node, now), now);
                return match settled.checked_sub(well).filter(|left| !left.is_zero()) {
                    None => Health::Well,
                    // It is well now and then.
                    Some(_) if waited >= deadline + settled => {
                        Health::Failed(format!("not well for {} s on end", settled.as_secs()))
                    }
                    Some(left) => Health::Settling(left),
                };
            }
            Err(Missing::Never(why)) => return Health::Failed(why),
            Err(Missing::Yet(why)) => why,
        };
        if waited >= deadline {
            return Health::Failed(format!("not well after {} s: {why}", deadline.as_secs()));
        }
        Health::Starting(why)
    }

    fn entry(&self, node: &str) -> Option<&ReplacedDaemon> {
        self.replacing.iter().find(|entry| entry.node == node)
    }

    fn is_excused(&self, node: &Node) -> bool {
        let is_new =
            self.has_good && self.entry(&node.name).is_none() && since(node.created, node.pod.created) < JOINING;
        is_new || self.is_excused_by_name(&node.name)
    }

    fn is_excused_by_name(&self, node: &str) -> bool {
        self.excused.iter().any(|excused| excused == node)
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(self.pace.progress_deadline_seconds.into())
    }

    /// When to look again though nothing changes.
    fn look_again(&self, states: &[State<'_>], missing: &[&ReplacedDaemon], now: Timestamp) -> Option<Duration> {
        let left = |from: Timestamp, time: Duration| time.saturating_sub(since(from, now));
        let of_state = |(node, health): &State<'_>| {
            let begun = self.entry(&node.name).map(|entry| entry.since.0);
            match (health, &node.pod.trouble) {
                (Health::Settling(time), _) => Some(*time),
                (Health::Starting(_), _) if node.pod.leaving_since.is_some() => {
                    begun.or(node.pod.leaving_since).map(|from| left(from, self.deadline()))
                }
                (Health::Starting(_), Some(trouble)) => Some(left(trouble.since, START_PATIENCE)),
                (Health::Starting(_), None) => {
                    let down = node.down_since;
                    let from = down.or(begun).unwrap_or_else(|| unwell_since(node, now));
                    Some(left(from, self.deadline()))
                }
                _ => None,
            }
        };
        let unmade = missing.iter().map(|entry| left(entry.since.0, self.deadline()));
        states.iter().filter_map(of_state).chain(unmade).min()
    }
}

/// The nodes that others wait for.
struct Canaries<'n> {
    /// How many more are to be made.
    wanted: usize,
    selected: BTreeSet<&'n str>,
}

/// What a node lacks to be well.
enum Missing {
    /// It may come.
    Yet(String),
    /// It will not.
    Never(String),
}

/// Since when a node is well that is; never since before its pod was made, for its clock may be slow, nor since later than
/// now, for it may be fast.
fn well_since(node: &Node, now: Timestamp) -> Timestamp {
    let changed = node.report.as_ref().map(|report| report.changed);
    let ready = node.pod.ready_since;
    ready
        .into_iter()
        .chain(changed)
        .filter(|time| *time <= now)
        .chain([node.pod.created])
        .max()
        .unwrap_or_default()
}

/// Since when something may be wrong: a node that was well for long has all the time again when its daemon starts anew.
fn unwell_since(node: &Node, now: Timestamp) -> Timestamp {
    match node.pod.ready_since {
        Some(_) => well_since(node, now),
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

#[cfg(test)]
mod tests;
