// SPDX-License-Identifier: Apache-2.0
//! From what was seen to rows, and to what is wrong.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wardline_crds::condition::{find, is_true};
use wardline_crds::{Dataplane, DataplaneNode, NetworkLogging, RolloutStatus, SINGLETON_NAME};

use super::look::Seen;
use super::nodes::{Cluster, NodeRow, Wanted};
use super::operator;
use crate::decode;

/// Records that each node had lost at some time.
pub(super) type Losses = BTreeMap<String, u64>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    pub(super) well: bool,
    pub(super) objects: Vec<Row>,
    pub(super) rollout: Option<Rollout>,
    pub(super) nodes: Vec<NodeRow>,
    pub(super) problems: Vec<Problem>,
    /// What is no problem, and good to know.
    pub(super) notes: Vec<String>,
}

/// One object, or the operator; None where the kind has no such thing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// The condition's status; None: the object has none, or is not there.
    pub(super) ready: Option<String>,
    /// Whether the operator has seen what it says now.
    pub(super) observed: Option<bool>,
    pub(super) version: Option<String>,
    /// Nodes that run a ready daemon, or log as asked; pods of the operator.
    pub(super) nodes: Option<Counts>,
    pub(super) updated: Option<Counts>,
}

/// Of those that should, how many do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) desired: i32,
    pub(super) done: i32,
}

/// How far the daemon's revision has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Rollout {
    pub(super) desired: i32,
    pub(super) updated: i32,
    pub(super) revision: String,
    pub(super) good_revision: String,
    /// Nodes whose daemon is being replaced.
    pub(super) replacing: Vec<String>,
    pub(super) excused: Vec<String>,
    pub(super) failed: Option<Failed>,
}

/// A change that was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Failed {
    pub(super) generation: i64,
    pub(super) revision: String,
    pub(super) node: String,
    pub(super) message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    pub(super) kind: &'static str,
    /// Several where nodes have the same problem, as all have with an object that cannot be used.
    pub(super) names: Vec<String>,
    pub(super) message: String,
}

pub(super) const DATAPLANE: &str = "Dataplane";
pub(super) const LOGGING: &str = "NetworkLogging";
pub(super) const NODE: &str = "DataplaneNode";

/// `before`: what was lost when one began to watch.
pub(super) fn report(seen: Seen, before: Option<&Losses>) -> Report {
    let mut report = Report {
        well: false,
        objects: Vec::new(),
        rollout: None,
        nodes: Vec::new(),
        problems: Vec::new(),
        notes: Vec::new(),
    };
    if seen.dataplanes.is_none() {
        report.problem(DATAPLANE, SINGLETON_NAME, "Wardline is not installed in this cluster");
        return report;
    }
    let dataplanes = report.decode::<Dataplane>(DATAPLANE, seen.dataplanes);
    let loggings = report.decode::<NetworkLogging>(LOGGING, seen.loggings);
    let nodes = report.decode::<DataplaneNode>(NODE, seen.nodes);
    if dataplanes.is_empty() && report.problems.iter().all(|problem| problem.kind != DATAPLANE) {
        report.problem(
            DATAPLANE,
            SINGLETON_NAME,
            "there is none, so no node enforces anything: create one, `spec: {}` is complete",
        );
    }
    let knows_nodes = seen.cluster_nodes.is_ok();
    let wanted = Wanted::of(dataplanes.first(), loggings.first());
    for dataplane in dataplanes {
        report.dataplane(dataplane, (!knows_nodes).then_some(nodes.len()));
    }
    if loggings.is_empty() && report.problems.iter().all(|problem| problem.kind != LOGGING) {
        report
            .notes
            .push("there is no NetworkLogging, so nothing is logged".to_owned());
    }
    for logging in loggings {
        report.logging(logging);
    }
    operator::tell(&mut report, seen.now, &seen.namespace, &seen.lease, &seen.pods);
    let cluster = Cluster {
        namespace: &seen.namespace,
        objects: nodes,
        nodes: seen.cluster_nodes,
        pods: seen.pods,
        figures: seen.figures,
        before,
    };
    cluster.tell(&mut report, &wanted);
    report.well = report.problems.is_empty();
    report
}

impl Report {
    pub(super) fn problem(&mut self, kind: &'static str, name: &str, message: impl Into<String>) {
        let message = message.into();
        let same = |problem: &&mut Problem| problem.kind == kind && problem.message == message;
        match self.problems.iter_mut().find(same) {
            Some(problem) => problem.names.push(name.to_owned()),
            None => self.problems.push(Problem {
                kind,
                names: vec![name.to_owned()],
                message,
            }),
        }
    }

    /// What each node has lost so far.
    pub(super) fn losses(&self) -> Losses {
        let lost = self
            .nodes
            .iter()
            .filter_map(|node| Some((node.name.clone(), node.lost.as_ref()?.total)));
        lost.collect()
    }

    /// Those that decode; the others are problems.
    fn decode<K: DeserializeOwned>(&mut self, kind: &'static str, values: Option<Vec<Value>>) -> Vec<K> {
        let mut decoded = Vec::new();
        for value in values.unwrap_or_default() {
            let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            match decode::lenient(value) {
                Ok(object) => decoded.push(object),
                Err(error) => {
                    self.problem(kind, &name, error.to_string());
                    if kind != NODE {
                        self.objects.push(Row {
                            kind,
                            name,
                            ..Row::default()
                        });
                    }
                }
            }
        }
        decoded
    }

    /// `with_object`: how many nodes have a DataplaneNode, where it is not known which should.
    fn dataplane(&mut self, object: Dataplane, with_object: Option<usize>) {
        let name = name(&object.metadata);
        let Some(status) = object.status else {
            self.without_status(DATAPLANE, name);
            return;
        };
        let observed = self.observed(DATAPLANE, &object.metadata, status.observed_generation);
        let good = ["Ready", "Available"];
        self.conditions(DATAPLANE, &name, &status.conditions, &good, &["Stalled", "Degraded"]);
        let counts = status.nodes;
        if let Some(nodes) = with_object {
            let missing = i64::from(counts.desired) - i64::try_from(nodes).unwrap_or(i64::MAX);
            if missing > 0 {
                let message = format!("{missing} of {} nodes have no DataplaneNode yet", counts.desired);
                self.problem(DATAPLANE, &name, message);
            }
        }
        let of = |done| Counts {
            desired: counts.desired,
            done,
        };
        self.objects.push(Row {
            kind: DATAPLANE,
            name,
            ready: ready(&status.conditions),
            observed: Some(observed),
            version: Some(status.version),
            nodes: Some(of(counts.ready)),
            updated: Some(of(counts.updated)),
        });
        self.rollout(counts.desired, counts.updated, status.rollout);
    }

    fn rollout(&mut self, desired: i32, updated: i32, status: RolloutStatus) {
        let since =
            |replaced: &wardline_crds::ReplacedDaemon| format!("{} (since {})", replaced.node, replaced.since.0);
        let replacing: Vec<String> = status.replacing.iter().map(since).collect();
        if !replacing.is_empty() {
            let nodes = replacing.join(", ");
            self.notes
                .push(format!("revision {} comes to {nodes}", status.revision));
        }
        if !status.excused.is_empty() {
            let nodes = status.excused.join(", ");
            self.notes.push(format!(
                "excused of the rollout, for they were not well before: {nodes}"
            ));
        }
        let failed = status.failed.map(|failed| Failed {
            generation: failed.generation,
            revision: failed.revision,
            node: failed.node,
            message: failed.message,
        });
        if let Some(failed) = &failed {
            self.notes.push(format!(
                "revision {} of generation {} was taken back, for {} was not well with it: {}; it is not tried again \
                 until the Dataplane or the image is changed",
                failed.revision, failed.generation, failed.node, failed.message
            ));
        }
        self.rollout = Some(Rollout {
            desired,
            updated,
            revision: status.revision,
            good_revision: status.good_revision,
            replacing: status.replacing.into_iter().map(|replaced| replaced.node).collect(),
            excused: status.excused,
            failed,
        });
    }

    fn logging(&mut self, object: NetworkLogging) {
        let name = name(&object.metadata);
        let Some(status) = object.status else {
            self.without_status(LOGGING, name);
            return;
        };
        let observed = self.observed(LOGGING, &object.metadata, status.observed_generation);
        self.conditions(
            LOGGING,
            &name,
            &status.conditions,
            &["Accepted", "Ready"],
            &["Degraded"],
        );
        self.objects.push(Row {
            kind: LOGGING,
            name,
            ready: ready(&status.conditions),
            observed: Some(observed),
            nodes: Some(Counts {
                desired: status.nodes.desired,
                done: status.nodes.applied,
            }),
            ..Row::default()
        });
    }

    fn without_status(&mut self, kind: &'static str, name: String) {
        self.problem(kind, &name, "the operator has not written its status yet");
        self.objects.push(Row {
            kind,
            name,
            observed: Some(false),
            ..Row::default()
        });
    }

    fn observed(&mut self, kind: &'static str, metadata: &ObjectMeta, observed: i64) -> bool {
        let generation = metadata.generation.unwrap_or_default();
        if observed < generation {
            let message = format!("the operator has seen generation {observed}, not yet {generation}");
            self.problem(kind, &name(metadata), message);
        }
        observed >= generation
    }

    /// `good` are those that should be True, the first of a message telling it; `bad` should not be.
    pub(super) fn conditions(
        &mut self,
        kind: &'static str,
        name: &str,
        conditions: &[Condition],
        good: &[&str],
        bad: &[&str],
    ) {
        let mut told: Vec<&str> = Vec::new();
        let all = good
            .iter()
            .map(|type_| (*type_, true))
            .chain(bad.iter().map(|type_| (*type_, false)));
        for (type_, is_good) in all {
            let is_wrong = is_true(conditions, type_) != is_good;
            match find(conditions, type_) {
                Some(condition) if is_wrong && !told.contains(&condition.message.as_str()) => {
                    told.push(&condition.message);
                    self.problem(kind, name, describe(condition));
                }
                None if is_wrong => self.problem(kind, name, format!("its status has no condition {type_}")),
                _ => {}
            }
        }
    }
}

/// Such as `Ready is False (RollingOut): 1 of 2 nodes are updated`.
fn describe(condition: &Condition) -> String {
    let Condition {
        type_,
        status,
        reason,
        message,
        ..
    } = condition;
    let told = format!("{type_} is {status} ({reason})");
    if message.is_empty() {
        told
    } else {
        format!("{told}: {message}")
    }
}

pub(super) fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

pub(super) fn ready(conditions: &[Condition]) -> Option<String> {
    find(conditions, "Ready").map(|condition| condition.status.clone())
}

/// A moment as it is shown.
pub(super) fn at(time: Timestamp) -> String {
    time.to_string()
}
