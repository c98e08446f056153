// SPDX-License-Identifier: Apache-2.0
//! From what the three kinds say of themselves to rows, and to what is wrong.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wardline_crds::condition::{find, is_true};
use wardline_crds::{Dataplane, DataplaneNode, NetworkLogging, SINGLETON_NAME};

use crate::decode;

/// What the API server lists; None for a kind that it does not know.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) dataplanes: Option<Vec<Value>>,
    pub(super) loggings: Option<Vec<Value>>,
    pub(super) nodes: Option<Vec<Value>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) well: bool,
    pub(super) objects: Vec<Row>,
    pub(super) problems: Vec<Problem>,
    /// What is no problem, and good to know.
    pub(super) notes: Vec<&'static str>,
}

/// One object; None where the kind has no such thing.
#[derive(Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// The condition's status; None: the object has none, or is not there.
    pub(super) ready: Option<String>,
    pub(super) version: Option<String>,
    pub(super) nodes: Option<NodeCounts>,
    pub(super) endpoints: Option<Endpoints>,
    /// At most 16 are listed.
    pub(super) invalid_objects: Option<usize>,
}

/// Of the nodes that should, how many do: run the daemon, or log as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct NodeCounts {
    pub(super) desired: i32,
    pub(super) done: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Endpoints {
    pub(super) managed: i64,
    /// At most 16 are listed.
    pub(super) unmanaged: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    pub(super) kind: &'static str,
    /// Several where nodes have the same problem, as all have with an object that cannot be used.
    pub(super) names: Vec<String>,
    pub(super) message: String,
}

const DATAPLANE: &str = "Dataplane";
const LOGGING: &str = "NetworkLogging";
const NODE: &str = "DataplaneNode";

pub(super) fn report(listed: Listed) -> Report {
    let mut report = Report {
        well: false,
        objects: Vec::new(),
        problems: Vec::new(),
        notes: Vec::new(),
    };
    if listed.dataplanes.is_none() {
        report.problem(DATAPLANE, SINGLETON_NAME, "Wardline is not installed in this cluster");
        return report;
    }
    let dataplanes = report.decode::<Dataplane>(DATAPLANE, listed.dataplanes);
    let loggings = report.decode::<NetworkLogging>(LOGGING, listed.loggings);
    let nodes = report.decode::<DataplaneNode>(NODE, listed.nodes);
    if dataplanes.is_empty() && report.problems.iter().all(|problem| problem.kind != DATAPLANE) {
        report.problem(DATAPLANE, SINGLETON_NAME, "there is none, so no node enforces anything");
    }
    for dataplane in dataplanes {
        report.dataplane(dataplane, nodes.len());
    }
    if loggings.is_empty() && report.problems.iter().all(|problem| problem.kind != LOGGING) {
        report.notes.push("there is no NetworkLogging, so nothing is logged");
    }
    for logging in loggings {
        report.logging(logging);
    }
    for node in nodes {
        report.node(node);
    }
    report.well = report.problems.is_empty();
    report
}

impl Report {
    fn problem(&mut self, kind: &'static str, name: &str, message: impl Into<String>) {
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

    /// Those that decode; the others are problems.
    fn decode<K: DeserializeOwned>(&mut self, kind: &'static str, values: Option<Vec<Value>>) -> Vec<K> {
        let mut decoded = Vec::new();
        for value in values.unwrap_or_default() {
            let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            match decode::lenient(value) {
                Ok(object) => decoded.push(object),
                Err(error) => {
                    self.problem(kind, &name, error.to_string());
                    self.objects.push(Row {
                        kind,
                        name,
                        ..Row::default()
                    });
                }
            }
        }
        decoded
    }

    fn dataplane(&mut self, object: Dataplane, nodes: usize) {
        let name = name(&object.metadata);
        let Some(status) = object.status else {
            self.without_status(DATAPLANE, name, "the operator");
            return;
        };
        self.stale(DATAPLANE, &object.metadata, status.observed_generation);
        self.conditions(DATAPLANE, &name, &status.conditions, &["Ready", "Available"]);
        let missing = i64::from(status.nodes.desired) - i64::try_from(nodes).unwrap_or(i64::MAX);
        if missing > 0 {
            self.problem(
                DATAPLANE,
                &name,
                format!("{missing} of {} nodes have no DataplaneNode yet", status.nodes.desired),
            );
        }
        self.objects.push(Row {
            kind: DATAPLANE,
            name,
            ready: ready(&status.conditions),
            version: Some(status.version),
            nodes: Some(NodeCounts {
                desired: status.nodes.desired,
                done: status.nodes.ready,
            }),
            ..Row::default()
        });
    }

    fn logging(&mut self, object: NetworkLogging) {
        let name = name(&object.metadata);
        let Some(status) = object.status else {
            self.without_status(LOGGING, name, "the operator");
            return;
        };
        self.stale(LOGGING, &object.metadata, status.observed_generation);
        self.conditions(LOGGING, &name, &status.conditions, &["Accepted", "Ready"]);
        self.objects.push(Row {
            kind: LOGGING,
            name,
            ready: ready(&status.conditions),
            nodes: Some(NodeCounts {
                desired: status.nodes.desired,
                done: status.nodes.applied,
            }),
            ..Row::default()
        });
    }

    fn node(&mut self, object: DataplaneNode) {
        let name = name(&object.metadata);
        let Some(status) = object.status else {
            self.without_status(NODE, name, "its daemon");
            return;
        };
        self.conditions(NODE, &name, &status.conditions, &["Ready"]);
        for invalid in &status.invalid_objects {
            let object = if invalid.namespace.is_empty() {
                invalid.name.clone()
            } else {
                format!("{}/{}", invalid.namespace, invalid.name)
            };
            let message = format!("{} {object} cannot be used: {}", invalid.kind, invalid.message);
            self.problem(NODE, &name, message);
        }
        for pod in &status.endpoints.unmanaged {
            let message = format!("Pod {}/{} is not managed: {}", pod.namespace, pod.name, pod.message);
            self.problem(NODE, &name, message);
        }
        self.objects.push(Row {
            kind: NODE,
            name,
            ready: ready(&status.conditions),
            version: Some(status.version),
            nodes: None,
            endpoints: Some(Endpoints {
                managed: status.endpoints.managed,
                unmanaged: status.endpoints.unmanaged.len(),
            }),
            invalid_objects: Some(status.invalid_objects.len()),
        });
    }

    fn without_status(&mut self, kind: &'static str, name: String, writer: &str) {
        self.problem(kind, &name, format!("{writer} has not written its status yet"));
        self.objects.push(Row {
            kind,
            name,
            ..Row::default()
        });
    }

    fn stale(&mut self, kind: &'static str, metadata: &ObjectMeta, observed: i64) {
        let generation = metadata.generation.unwrap_or_default();
        if observed < generation {
            let message = format!("the operator has seen generation {observed}, not yet {generation}");
            self.problem(kind, &name(metadata), message);
        }
    }

    /// `good` are those that should be True, the first of a message telling it; Degraded should not be.
    fn conditions(&mut self, kind: &'static str, name: &str, conditions: &[Condition], good: &[&str]) {
        let mut told: Vec<&str> = Vec::new();
        for type_ in good.iter().copied().chain(["Degraded"]) {
            let found = find(conditions, type_);
            let is_bad = match type_ {
                "Degraded" => is_true(conditions, type_),
                _ => !is_true(conditions, type_),
            };
            match found {
                Some(condition) if is_bad && !told.contains(&condition.message.as_str()) => {
                    told.push(&condition.message);
                    self.problem(kind, name, describe(condition));
                }
                None if is_bad => self.problem(kind, name, format!("its status has no condition {type_}")),
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

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn ready(conditions: &[Condition]) -> Option<String> {
    find(conditions, "Ready").map(|condition| condition.status.clone())
}
