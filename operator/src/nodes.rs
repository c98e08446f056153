// SPDX-License-Identifier: Apache-2.0
//! What the nodes say of themselves, put together: the `DataplaneNode` of each node that has a daemon pod. One that was
//! left behind by a daemon that has moved away counts nowhere.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use wardline_crds::{InvalidObject, MAX_LISTED, condition};

use crate::caches::Caches;

/// How many nodes a message names; the rest is a number.
const NAMED: usize = 3;
/// Characters of one node's own message that are repeated.
const QUOTED: usize = 200;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Nodes {
    reports: BTreeMap<String, Report>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) version: String,
    /// What its daemon runs with.
    pub(crate) revision: String,
    /// Whether its policies are in force.
    pub(crate) is_ready: bool,
    /// Why the daemon is not sure that the node does what it should, in its own words.
    pub(crate) unverified: Option<String>,
    /// Whether it is sure that the node does not.
    pub(crate) has_failed: bool,
    /// When either of them changed last.
    pub(crate) changed: Timestamp,
    pub(crate) applied_generation: i64,
    /// Why the node is degraded, in its own words.
    pub(crate) degraded: Option<String>,
    /// Objects that the node cannot use.
    pub(crate) invalid: Vec<InvalidObject>,
    /// Whether an object that is not in `invalid` is in force: not while the daemon starts or refuses a change, nor where
    /// the list has no more room.
    pub(crate) names_all: bool,
}

impl Nodes {
    pub(crate) fn gather(caches: &Caches) -> Self {
        let pods = caches.pods.state();
        let with_daemon: BTreeSet<String> = pods.iter().filter_map(|pod| node_of(pod.0.as_ref().ok()?)).collect();
        let mut reports = BTreeMap::new();
        for object in caches.nodes.state() {
            let (name, report) = match &object.0 {
                Ok(node) => {
                    let status = node.status.clone().unwrap_or_default();
                    let found = |type_| condition::find(&status.conditions, type_);
                    let degraded = found("Degraded").filter(|c| c.status == "True");
                    let verified = found("Verified");
                    let unverified = verified.filter(|c| c.status != "True");
                    let report = Report {
                        version: status.version.clone(),
                        revision: status.revision.clone(),
                        is_ready: condition::is_true(&status.conditions, "Ready"),
                        unverified: match verified {
                            Some(_) => unverified.map(words),
                            None => Some("its daemon has not verified the node yet".into()),
                        },
                        changed: [found("Ready"), verified]
                            .into_iter()
                            .flatten()
                            .map(|condition| condition.last_transition_time.0)
                            .max()
                            .unwrap_or_default(),
                        has_failed: unverified.is_some_and(|c| c.status == "False"),
                        applied_generation: status.logging.applied_generation,
                        degraded: degraded.map(words),
                        names_all: status.policy.synced && status.invalid_objects.len() < MAX_LISTED,
                        invalid: status.invalid_objects,
                    };
                    (&node.metadata.name, report)
                }
                Err(invalid) => {
                    let degraded = Some(format!("its DataplaneNode does not decode: {}", invalid.error));
                    (
                        &invalid.metadata.name,
                        Report {
                            degraded,
                            ..Report::default()
                        },
                    )
                }
            };
            if let Some(name) = name.as_ref().filter(|name| with_daemon.contains(*name)) {
                reports.insert(name.clone(), report);
            }
        }
        Self { reports }
    }

    pub(crate) fn degraded(&self) -> i32 {
        count(self.reports.values().filter(|report| report.degraded.is_some()))
    }

    /// By the node's name.
    pub(crate) fn reports(&self) -> &BTreeMap<String, Report> {
        &self.reports
    }

    #[cfg(test)]
    pub(crate) fn from_reports(reports: BTreeMap<String, Report>) -> Self {
        Self { reports }
    }

    /// Nodes whose daemon has applied that generation of the `NetworkLogging`.
    pub(crate) fn applied(&self, generation: i64) -> i32 {
        count(
            self.reports
                .values()
                .filter(|report| report.applied_generation == generation),
        )
    }

    /// The versions that run, joined by commas: more than one while a new one is rolled out.
    pub(crate) fn versions(&self) -> String {
        let versions: BTreeSet<&str> = self.reports.values().map(|report| report.version.as_str()).collect();
        versions
            .into_iter()
            .filter(|version| !version.is_empty())
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Which nodes are degraded and why; empty where none is.
    pub(crate) fn degraded_message(&self) -> String {
        let degraded = self
            .reports
            .iter()
            .filter_map(|(name, report)| Some(format!("{name}: {}", cut(report.degraded.as_ref()?))));
        listed(&degraded.collect::<Vec<_>>())
    }
}

/// The first few, and how many more there are.
pub(crate) fn listed(all: &[String]) -> String {
    let named = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    match all.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

/// The node that a pod is on, or that its DaemonSet's controller has made it for.
pub(crate) fn node_of(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = &spec.node_name {
        return Some(name.clone());
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?
        .node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    fields
        .find(|field| field.key == "metadata.name")?
        .values
        .as_ref()?
        .first()
        .cloned()
}

fn words(condition: &Condition) -> String {
    format!("{}: {}", condition.reason, condition.message)
}

fn count(items: impl Iterator) -> i32 {
    i32::try_from(items.count()).unwrap_or(i32::MAX)
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(reports: &[(&str, &str, i64, Option<&str>)]) -> Nodes {
        let report = |(name, version, generation, degraded): &(&str, &str, i64, Option<&str>)| {
            let report = Report {
                version: (*version).into(),
                applied_generation: *generation,
                degraded: degraded.map(Into::into),
                ..Report::default()
            };
            ((*name).to_owned(), report)
        };
        Nodes {
            reports: reports.iter().map(report).collect(),
        }
    }

    #[test]
    fn sums() {
        let nodes = nodes(&[
            ("a", "0.1.0", 1, None),
            ("b", "0.2.0", 2, Some("Full: rules")),
            ("c", "0.2.0", 2, None),
            ("d", "", 0, None),
        ]);
        assert_eq!((nodes.degraded(), nodes.applied(2), nodes.applied(3)), (1, 2, 0));
        assert_eq!(nodes.versions(), "0.1.0,0.2.0");
        assert_eq!(nodes.degraded_message(), "b: Full: rules");
    }

    #[test]
    fn a_message_names_a_few_nodes() {
        let long = "é".repeat(QUOTED + 1);
        let nodes = nodes(&[
            ("a", "", 0, Some("x")),
            ("b", "", 0, Some(&long)),
            ("c", "", 0, Some("x")),
            ("d", "", 0, Some("x")),
            ("e", "", 0, Some("x")),
        ]);
        assert_eq!(
            nodes.degraded_message(),
            format!("a: x; b: {}…; c: x; and 2 more", "é".repeat(QUOTED))
        );
        assert_eq!(Nodes::default().degraded_message(), "");
    }
}
