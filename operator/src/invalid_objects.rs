// SPDX-License-Identifier: Apache-2.0
//! Objects that nodes cannot use, such as a NetworkPolicy that got past the API server: from the lists in the
//! `DataplaneNodes` to one Event for each object and transition, however many nodes name it.
//!
//! ```text
//! DataplaneNode a: [shop/db] ─┐                      InvalidNetworkPolicy on shop/db, when the first node names it
//! DataplaneNode b: [shop/db] ─┴─► Known ─► changes ─► ValidNetworkPolicy on shop/db, when the last one has let go of it
//! ```
//!
//! `Dataplane` and `NetworkLogging` have controllers, which say themselves what is wrong with them. What is known is kept
//! in memory: an operator that starts says once more what is wrong.
//!
//! A list is the word of one node, which somebody may have taken over: what is not a name is ignored, an Event says which
//! node's word it is, and its wording changes once in [`QUIET`] at most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wardline_crds::InvalidObject;

use crate::announce::Announcement;
use crate::context::Context;
use crate::error::explain;
use crate::nodes::{Nodes, Report};

/// How long an Event on an object stands before one with another wording.
const QUIET: Duration = Duration::from_mins(1);
/// Characters of an Event's note.
const LONGEST_NOTE: usize = 512;

/// A kind that nodes watch and that has no controller here.
struct WatchedKind {
    kind: &'static str,
    namespaced: bool,
    resource: fn() -> ApiResource,
}

const KINDS: [WatchedKind; 6] = [
    WatchedKind {
        kind: "EndpointSlice",
        namespaced: true,
        resource: || ApiResource::erase::<EndpointSlice>(&()),
    },
    WatchedKind {
        kind: "Namespace",
        namespaced: false,
        resource: || ApiResource::erase::<Namespace>(&()),
    },
    WatchedKind {
        kind: "NetworkPolicy",
        namespaced: true,
        resource: || ApiResource::erase::<NetworkPolicy>(&()),
    },
    WatchedKind {
        kind: "Node",
        namespaced: false,
        resource: || ApiResource::erase::<Node>(&()),
    },
    WatchedKind {
        kind: "Pod",
        namespaced: true,
        resource: || ApiResource::erase::<Pod>(&()),
    },
    WatchedKind {
        kind: "Service",
        namespaced: true,
        resource: || ApiResource::erase::<Service>(&()),
    },
];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: &'static str,
    namespace: String,
    name: String,
}

/// What has been said of an object, and whose word that is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// Empty where it could not be said yet.
    message: String,
    nodes: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// It cannot be used, as that node says, for this cause, which is new.
    Invalid { node: String, message: String },
    /// All nodes use it as it stands, or it is gone.
    Valid,
}

#[derive(Default)]
struct Memory {
    known: BTreeMap<Key, Known>,
    /// What was said last of objects in the last [`QUIET`], and when.
    told: BTreeMap<Key, (Instant, String)>,
}

/// Announces changes until `stop`.
pub(crate) async fn follow(context: Arc<Context>, stop: CancellationToken) {
    let mut memory = Memory::default();
    let mut warned = BTreeSet::new();
    let mut signals = std::pin::pin!(context.caches.changes().take_until(stop.cancelled()));
    loop {
        let nodes = Nodes::gather(&context.caches);
        let unusable = nodes_without_names(&nodes);
        for node in unusable.difference(&warned) {
            tracing::warn!(
                node,
                "its DataplaneNode lists invalid objects by what is not a name; these are ignored"
            );
        }
        warned = unusable;
        for (key, change) in memory.changes(&nodes, Instant::now()) {
            if !announce(&context, &key, change).await {
                memory.forget(&key);
            }
        }
        match timeout(QUIET, signals.next()).await {
            // What had to wait, or could not be said, is looked at again.
            Ok(Some(())) | Err(_) => {}
            // Only the end of everything ends the signals; an early end would be taken for a fault.
            Ok(None) => return stop.cancelled().await,
        }
    }
}

/// How many objects the nodes cannot use, for each kind that has no controller here.
pub(crate) fn count(nodes: &Nodes) -> impl Iterator<Item = (&'static str, usize)> {
    let named = named(nodes);
    KINDS.iter().map(move |watched| {
        let of_kind = named.keys().filter(|key| key.kind == watched.kind);
        (watched.kind, of_kind.count())
    })
}

impl Memory {
    /// What is new since the last time, and may be said.
    fn changes(&mut self, nodes: &Nodes, now: Instant) -> Vec<(Key, Change)> {
        let named = named(nodes);
        let mut changes = Vec::new();
        self.told.retain(|_, (at, _)| now.duration_since(*at) < QUIET);
        self.known.retain(|key, known| {
            let gone = !named.contains_key(key) && is_gone(known, nodes.reports());
            if gone && !known.message.is_empty() {
                changes.push((key.clone(), Change::Valid));
            }
            !gone
        });
        for (key, Named { message, by }) in named {
            let known = self.known.entry(key.clone()).or_default();
            // Who is away or not sure has not taken its word back.
            let took_back = |node: &String| nodes.reports().get(node).is_some_and(|report| report.names_all);
            known.nodes.retain(|node| !took_back(node));
            known.nodes.extend(by.iter().cloned());
            let is_too_soon = self.told.get(&key).is_some_and(|(_, told)| *told != message);
            if known.message != message && !is_too_soon {
                known.message.clone_from(&message);
                self.told.insert(key.clone(), (now, message.clone()));
                let node = by.into_iter().next().unwrap_or_default();
                changes.push((key, Change::Invalid { node, message }));
            }
        }
        changes
    }

    /// It could not be said: in a while it is new once more.
    fn forget(&mut self, key: &Key) {
        if let Some(known) = self.known.get_mut(key) {
            known.message.clear();
        }
        if let Some((_, told)) = self.told.get_mut(key) {
            told.clear();
        }
    }
}

/// What is said of an object, by which nodes.
struct Named {
    message: String,
    by: BTreeSet<String>,
}

/// Objects that some node names. Where nodes word the cause differently, as two versions may, the first node's counts.
fn named(nodes: &Nodes) -> BTreeMap<Key, Named> {
    let mut named: BTreeMap<Key, Named> = BTreeMap::new();
    for (node, report) in nodes.reports() {
        for object in &report.invalid {
            let Some(watched) = watched(object).filter(|watched| has_name(object, watched)) else {
                continue;
            };
            let key = Key {
                kind: watched.kind,
                namespace: object.namespace.clone(),
                name: object.name.clone(),
            };
            let named = named.entry(key).or_insert_with(|| Named {
                message: object.message.clone(),
                by: BTreeSet::new(),
            });
            named.by.insert(node.clone());
        }
    }
    named
}

fn watched(object: &InvalidObject) -> Option<&'static WatchedKind> {
    KINDS.iter().find(|watched| watched.kind == object.kind)
}

/// Nodes that list what cannot be the name of an object.
fn nodes_without_names(nodes: &Nodes) -> BTreeSet<String> {
    let is_wrong = |object: &InvalidObject| watched(object).is_some_and(|watched| !has_name(object, watched));
    let wrong = nodes
        .reports()
        .iter()
        .filter(|(_, report)| report.invalid.iter().any(is_wrong));
    wrong.map(|(node, _)| node.clone()).collect()
}

/// Whether an object of that kind can have that name and namespace; they become part of a request's path.
fn has_name(object: &InvalidObject, watched: &WatchedKind) -> bool {
    let is_in_place = if watched.namespaced {
        is_label(&object.namespace)
    } else {
        object.namespace.is_empty()
    };
    is_in_place && object.name.len() <= 253 && object.name.split('.').all(is_label_of_any_length)
}

/// A DNS label (RFC 1123) in lower case, of up to 63 characters.
fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_label_of_any_length(text)
}

/// As the API server has it: of a subdomain it limits the whole alone.
fn is_label_of_any_length(text: &str) -> bool {
    let is_alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends = [text.bytes().next(), text.bytes().next_back()];
    ends.into_iter().all(|end| end.is_some_and(is_alphanumeric))
        && text.bytes().all(|c| is_alphanumeric(c) || c == b'-')
}

/// Whether an object that nobody names is in force: a daemon that restarts names nothing, and that says nothing.
fn is_gone(known: &Known, reports: &BTreeMap<String, Report>) -> bool {
    let unsure = |node: &String| reports.get(node).is_some_and(|report| !report.names_all);
    reports.values().any(|report| report.names_all) && !known.nodes.iter().any(unsure)
}

/// Returns false where it could not be said, because the object could not be asked for.
async fn announce(context: &Context, key: &Key, change: Change) -> bool {
    let reference = match reference(context, key).await {
        Ok(Some(reference)) => reference,
        Ok(None) => return true,
        Err(error) => {
            let (kind, cause) = (key.kind, explain(&error));
            tracing::warn!(
                kind,
                namespace = key.namespace,
                name = key.name,
                cause,
                "failed to read metadata; no Event is written"
            );
            return false;
        }
    };
    let Key { kind, .. } = key;
    let announcement = match change {
        Change::Invalid { node, message } => Announcement {
            warning: true,
            action: "Decode",
            reason: format!("Invalid{kind}"),
            note: format!("{node}: {message}").chars().take(LONGEST_NOTE).collect(),
        },
        Change::Valid => Announcement {
            warning: false,
            action: "Decode",
            reason: format!("Valid{kind}"),
            note: "all nodes use it as it stands".into(),
        },
    };
    context.announce(&reference, vec![announcement]).await;
    true
}

/// The object with its uid, by which `kubectl describe` finds its Events; None where it does not exist. Only metadata is
/// asked for, so the rest of the object may be as broken as it is.
async fn reference(context: &Context, key: &Key) -> Result<Option<ObjectReference>, kube::Error> {
    let Some(watched) = KINDS.iter().find(|watched| watched.kind == key.kind) else {
        return Ok(None);
    };
    let resource = (watched.resource)();
    let api: Api<DynamicObject> = if watched.namespaced {
        Api::namespaced_with(context.client.clone(), &key.namespace, &resource)
    } else {
        Api::all_with(context.client.clone(), &resource)
    };
    let Some(found) = api.get_metadata_opt(&key.name).await? else {
        return Ok(None);
    };
    Ok(Some(ObjectReference {
        api_version: Some(resource.api_version),
        kind: Some(resource.kind),
        namespace: watched.namespaced.then(|| key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: found.metadata.uid,
        ..ObjectReference::default()
    }))
}

#[cfg(test)]
mod tests;
