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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use tokio_util::sync::CancellationToken;

use crate::announce::Announcement;
use crate::context::Context;
use crate::error::explain;
use crate::nodes::{Nodes, Report};

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
    message: String,
    nodes: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// It cannot be used, for this cause, which is new.
    Invalid(String),
    /// All nodes use it as it stands, or it is gone.
    Valid,
}

/// Announces changes until `stop`.
pub(crate) async fn follow(context: Arc<Context>, stop: CancellationToken) {
    let mut known = BTreeMap::new();
    let mut signals = std::pin::pin!(context.caches.changes().take_until(stop.cancelled()));
    loop {
        for (key, change) in changes(&mut known, &Nodes::gather(&context.caches)) {
            announce(&context, &key, change).await;
        }
        if signals.next().await.is_none() {
            // Only the end of everything ends the signals; an early end would be taken for a fault.
            return stop.cancelled().await;
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

/// What is new since `known`, which takes it in.
fn changes(known: &mut BTreeMap<Key, Known>, nodes: &Nodes) -> Vec<(Key, Change)> {
    let named = named(nodes);
    let mut changes = Vec::new();
    known.retain(|key, known| {
        let gone = !named.contains_key(key) && is_gone(known, nodes.reports());
        if gone {
            changes.push((key.clone(), Change::Valid));
        }
        !gone
    });
    for (key, now) in named {
        let known = known.entry(key.clone()).or_default();
        if known.message != now.message {
            known.message.clone_from(&now.message);
            changes.push((key, Change::Invalid(now.message)));
        }
        // Who is away or not sure has not taken its word back.
        let took_back = |node: &String| nodes.reports().get(node).is_some_and(|report| report.names_all);
        known.nodes.retain(|node| !took_back(node));
        known.nodes.extend(now.nodes);
    }
    changes
}

/// Objects that some node names. Where nodes word the cause differently, as two versions may, the first node's counts.
fn named(nodes: &Nodes) -> BTreeMap<Key, Known> {
    let mut named: BTreeMap<Key, Known> = BTreeMap::new();
    for (node, report) in nodes.reports() {
        for object in &report.invalid {
            let Some(watched) = KINDS.iter().find(|watched| watched.kind == object.kind) else {
                continue;
            };
            let key = Key {
                kind: watched.kind,
                namespace: object.namespace.clone(),
                name: object.name.clone(),
            };
            let known = named.entry(key).or_insert_with(|| Known {
                message: object.message.clone(),
                nodes: BTreeSet::new(),
            });
            known.nodes.insert(node.clone());
        }
    }
    named
}

/// Whether an object that nobody names is in force: a daemon that restarts names nothing, and that says nothing.
fn is_gone(known: &Known, reports: &BTreeMap<String, Report>) -> bool {
    let unsure = |node: &String| reports.get(node).is_some_and(|report| !report.names_all);
    reports.values().any(|report| report.names_all) && !known.nodes.iter().any(unsure)
}

async fn announce(context: &Context, key: &Key, change: Change) {
    let Some(reference) = reference(context, key).await else {
        return;
    };
    let Key { kind, .. } = key;
    let announcement = match change {
        Change::Invalid(cause) => Announcement {
            warning: true,
            action: "Decode",
            reason: format!("Invalid{kind}"),
            note: cause,
        },
        Change::Valid => Announcement {
            warning: false,
            action: "Decode",
            reason: format!("Valid{kind}"),
            note: "all nodes use it as it stands".into(),
        },
    };
    context.announce(&reference, vec![announcement]).await;
}

/// The object with its uid, by which `kubectl describe` finds its Events; None where it no longer exists. Only metadata
/// is asked for, so the rest of the object may be as broken as it is.
async fn reference(context: &Context, key: &Key) -> Option<ObjectReference> {
    let watched = KINDS.iter().find(|watched| watched.kind == key.kind)?;
    let resource = (watched.resource)();
    let api: Api<DynamicObject> = if watched.namespaced {
        Api::namespaced_with(context.client.clone(), &key.namespace, &resource)
    } else {
        Api::all_with(context.client.clone(), &resource)
    };
    let uid = match api.get_metadata_opt(&key.name).await {
        Ok(found) => found?.metadata.uid,
        Err(error) => {
            let (kind, cause) = (key.kind, explain(&error));
            tracing::warn!(
                kind,
                namespace = key.namespace,
                name = key.name,
                cause,
                "failed to read metadata"
            );
            None
        }
    };
    Some(ObjectReference {
        api_version: Some(resource.api_version),
        kind: Some(resource.kind),
        namespace: watched.namespaced.then(|| key.namespace.clone()),
        name: Some(key.name.clone()),
        uid,
        ..ObjectReference::default()
    })
}

#[cfg(test)]
mod tests;
