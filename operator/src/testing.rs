// SPDX-License-Identifier: Apache-2.0
//! For tests: an API server that remembers what it is sent, and caches that the test fills.

use std::sync::{Arc, Mutex};

use clap::Parser;
use http::{Request, Response};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::Client;
use kube::client::Body;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::store;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use wardline_crds::DataplaneNode;

use crate::args::Args;
use crate::caches::Caches;
use crate::context::{Context, lock};
use crate::metrics::Metrics;

pub(crate) fn args() -> Args {
    Args::try_parse_from([
        "wardline-operator",
        "--daemon-image",
        "r.example/wardline-node:v1",
        "--pod-name",
        "op-0",
    ])
    .unwrap()
}

/// One request: method, path without the query, and body.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sent {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: Value,
}

impl Sent {
    /// `METHOD last/two/segments`, for comparisons that read well.
    pub(crate) fn summary(&self) -> String {
        let segments: Vec<&str> = self.path.rsplit('/').take(2).collect();
        match (&self.body["reason"], &self.body["kind"]) {
            (Value::String(reason), Value::String(_)) if self.path.ends_with("/events") => format!("EVENT {reason}"),
            _ => format!("{} {}/{}", self.method, segments[1], segments[0]),
        }
    }
}

/// An API server with one answer a path; what is not listed is echoed, as server-side apply of a new object would be.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    sent: Arc<Mutex<Vec<Sent>>>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

/// End of the path, status code and body.
type Answer = (&'static str, u16, Value);

impl FakeApi {
    /// Answers requests whose path ends so.
    pub(crate) fn answer(self, path_end: &'static str, code: u16, body: Value) -> Self {
        self.answers.lock().unwrap().push((path_end, code, body));
        self
    }

    /// What was sent since the last time.
    pub(crate) fn take(&self) -> Vec<Sent> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }

    pub(crate) fn summaries(&self) -> Vec<String> {
        self.take().iter().map(Sent::summary).collect()
    }

    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| server.clone().handle(request));
        Client::new(service, "default")
    }

    pub(crate) fn context(&self, caches: Caches) -> Arc<Context> {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| server.clone().handle(request));
        Arc::new(Context::new(
            Client::new(service, "default"),
            args(),
            caches,
            Metrics::new().unwrap(),
        ))
    }

    /// The same operator a moment later, with other caches.
    pub(crate) fn context_after(&self, caches: Caches, before: &Context) -> Arc<Context> {
        let after = self.context(caches);
        lock(&after.applied).clone_from(&lock(&before.applied));
        lock(&after.rollout).clone_from(&lock(&before.rollout));
        after
    }

    async fn handle(self, request: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap()
        };
        let path = parts.uri.path().to_owned();
        let (code, answer) = {
            let answers = self.answers.lock().unwrap();
            let found = answers.iter().find(|(end, ..)| path.ends_with(end));
            let unlisted = || match parts.method {
                http::Method::DELETE => (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})),
                _ => (200, body.clone()),
            };
            found.map_or_else(unlisted, |(_, code, answer)| (*code, answer.clone()))
        };
        self.sent.lock().unwrap().push(Sent {
            method: parts.method.to_string(),
            path,
            body,
        });
        let bytes = serde_json::to_vec(&answer).unwrap();
        Ok(Response::builder()
            .status(code)
            .header("content-type", "application/json")
            .body(Body::from(bytes))
            .unwrap())
    }
}

/// A failure as the API server words it.
pub(crate) fn failure(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
        "reason": if code == 404 { "NotFound" } else { "" }, "code": code})
}

/// What a test puts into the caches, as JSON.
#[derive(Default)]
pub(crate) struct Cached {
    pub(crate) daemon_set: Option<Value>,
    pub(crate) pods: Vec<Value>,
    pub(crate) config_maps: Vec<Value>,
    pub(crate) nodes: Vec<Value>,
    pub(crate) machines: Vec<Value>,
}

impl Cached {
    pub(crate) fn caches(self) -> Caches {
        macro_rules! filled {
            ($kind:ty, $objects:expr) => {{
                let (reader, mut writer) = store::<$kind>();
                writer.apply_watcher_event(&Event::Init);
                for object in Vec::<Value>::from_iter($objects) {
                    writer.apply_watcher_event(&Event::InitApply(serde_json::from_value(object).unwrap()));
                }
                writer.apply_watcher_event(&Event::InitDone);
                reader
            }};
        }
        Caches::from_stores(
            filled!(DeserializeGuard<DaemonSet>, self.daemon_set),
            filled!(DeserializeGuard<Pod>, self.pods),
            filled!(PartialObjectMeta<ConfigMap>, self.config_maps),
            filled!(DeserializeGuard<DataplaneNode>, self.nodes),
            filled!(DeserializeGuard<Node>, self.machines),
        )
    }
}

/// Nodes that are up, each with a pod of its revision that has been ready for long, and a daemon that says all is well.
pub(crate) fn fleet(nodes: &[(&str, &str)]) -> Cached {
    let nodes = || nodes.iter().copied();
    Cached {
        daemon_set: Some(rolled_out(1, i32::try_from(nodes().count()).unwrap())),
        pods: nodes().map(|(node, revision)| pod(node, revision)).collect(),
        nodes: nodes().map(|(node, revision)| report(node, revision)).collect(),
        machines: nodes().map(|(node, _)| machine(node)).collect(),
        config_maps: Vec::new(),
    }
}

const LONG_AGO: &str = "2026-01-01T00:00:00Z";

/// The daemon's pod on a node.
pub(crate) fn pod(node: &str, revision: &str) -> Value {
    let config_map = format!("wardline-node-{revision}");
    json!({
        "metadata": {
            "name": format!("pod-{node}"), "namespace": "wardline-system", "uid": format!("{node}-{revision}"),
            "labels": {"wardline.io/revision": revision}, "creationTimestamp": LONG_AGO,
        },
        "spec": {"nodeName": node, "containers": [], "volumes": [{"name": "config", "configMap": {"name": config_map}}]},
        "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": LONG_AGO}]},
    })
}

fn machine(name: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
}

/// A node's `DataplaneNode`.
pub(crate) fn report(node: &str, revision: &str) -> Value {
    let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": "Well", "message": "", "lastTransitionTime": LONG_AGO});
    json!({"metadata": {"name": node}, "status": {
        "version": "0.1.0", "revision": revision, "conditions": [condition("Ready"), condition("Verified")],
    }})
}

/// The DaemonSet, rolled out to `nodes` nodes.
pub(crate) fn rolled_out(generation: i64, nodes: i32) -> Value {
    json!({
        "metadata": {"name": "wardline-node", "namespace": "wardline-system", "uid": "ds", "generation": generation},
        "status": {
            "observedGeneration": generation, "desiredNumberScheduled": nodes, "currentNumberScheduled": nodes,
            "updatedNumberScheduled": nodes, "numberReady": nodes, "numberMisscheduled": 0,
        },
    })
}
