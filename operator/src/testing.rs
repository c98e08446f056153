// SPDX-License-Identifier: Apache-2.0
//! For tests: an API server that remembers what it is sent, and caches that the test fills.

use std::sync::{Arc, Mutex};

use axum::body::Body as AnswerBody;
use clap::Parser;
use futures::stream::{self, StreamExt};
use http::{Request, Response};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::Client;
use kube::client::Body;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::store;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::BoxError;
use wardline_crds::DataplaneNode;

use crate::args::Args;
use crate::caches::Caches;
use crate::client::considerate;
use crate::context::{Context, lock};
use crate::dataplane::truth;
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

/// One request, and when it came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sent {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) is_watch: bool,
    pub(crate) body: Value,
    pub(crate) at: Instant,
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

/// What comes of a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Json(u16, Value),
    /// To come again in so many seconds, worded as priority and fairness does it.
    RetryAfter(u16, u64),
    /// These events, and then nothing more.
    Watch(Vec<Value>),
    /// The connection breaks.
    Reset,
    Silence,
}

/// An API server with one answer a path. What is not listed is echoed, as server-side apply of a new object would be;
/// lists are empty, and watches silent.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    sent: Arc<Mutex<Vec<Sent>>>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

type Answer = (&'static str, Arc<dyn Fn(&Sent) -> Reply + Send + Sync>);

/// Collections that the operator lists.
const COLLECTIONS: [&str; 7] = [
    "/configmaps",
    "/daemonsets",
    "/dataplanenodes",
    "/dataplanes",
    "/networkloggings",
    "/nodes",
    "/pods",
];

impl FakeApi {
    /// Answers requests whose path ends so.
    pub(crate) fn answer(self, path_end: &'static str, code: u16, body: Value) -> Self {
        self.reply(path_end, move |_| Reply::Json(code, body.clone()))
    }

    /// Answers them as they come.
    pub(crate) fn reply(self, path_end: &'static str, reply: impl Fn(&Sent) -> Reply + Send + Sync + 'static) -> Self {
        self.answers.lock().unwrap().push((path_end, Arc::new(reply)));
        self
    }

    /// What was sent since the last time.
    pub(crate) fn take(&self) -> Vec<Sent> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        for status in sent
            .iter()
            .filter(|sent| sent.path.ends_with("/dataplanes/default/status"))
        {
            truth::check(&status.body["status"]);
        }
        sent
    }

    pub(crate) fn summaries(&self) -> Vec<String> {
        self.take().iter().map(Sent::summary).collect()
    }

    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        considerate(move |request| server.clone().handle(request))
    }

    pub(crate) fn context(&self, caches: Caches) -> Arc<Context> {
        Arc::new(Context::new(self.client(), args(), caches, Metrics::new().unwrap()))
    }

    /// The same operator a moment later, with other caches.
    pub(crate) fn context_after(&self, caches: Caches, before: &Context) -> Arc<Context> {
        let after = self.context(caches);
        lock(&after.applied).clone_from(&lock(&before.applied));
        lock(&after.rollout).clone_from(&lock(&before.rollout));
        after
    }

    pub(crate) async fn handle(self, request: Request<Body>) -> Result<Response<AnswerBody>, BoxError> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap()
        };
        let sent = Sent {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            is_watch: parts.uri.query().is_some_and(|query| query.contains("watch=true")),
            body,
            at: Instant::now(),
        };
        self.sent.lock().unwrap().push(sent.clone());
        let found = self
            .answers
            .lock()
            .unwrap()
            .iter()
            .find(|(end, _)| sent.path.ends_with(end))
            .cloned();
        let reply = found.map_or_else(|| unlisted(&sent), |(_, reply)| reply(&sent));
        let answer = |code: u16, body: AnswerBody| {
            let answer = Response::builder()
                .status(code)
                .header("content-type", "application/json");
            (answer, body)
        };
        let (answer, body) = match reply {
            Reply::Json(code, value) => answer(code, AnswerBody::from(serde_json::to_vec(&value)?)),
            Reply::RetryAfter(code, seconds) => {
                let (answer, body) = answer(code, AnswerBody::from("Too many requests, please try again later."));
                (answer.header("retry-after", seconds), body)
            }
            Reply::Watch(events) => {
                let lines = events.into_iter().map(|event| Ok::<_, BoxError>(format!("{event}\n")));
                let lines = stream::iter(lines.collect::<Vec<_>>()).chain(stream::pending());
                answer(200, AnswerBody::from_stream(lines))
            }
            Reply::Reset => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
            Reply::Silence => std::future::pending().await,
        };
        Ok(answer.body(body)?)
    }
}

fn unlisted(sent: &Sent) -> Reply {
    let is_collection = COLLECTIONS.iter().any(|end| sent.path.ends_with(end));
    match (&*sent.method, is_collection) {
        ("GET", _) if sent.is_watch => Reply::Watch(Vec::new()),
        ("GET", true) => Reply::Json(200, list(Vec::new())),
        ("DELETE", _) => Reply::Json(200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})),
        _ => Reply::Json(200, sent.body.clone()),
    }
}

/// How a collection is answered that does not change.
pub(crate) fn collection(items: Vec<Value>) -> impl Fn(&Sent) -> Reply {
    move |sent| {
        if sent.is_watch {
            Reply::Watch(Vec::new())
        } else {
            Reply::Json(200, list(items.clone()))
        }
    }
}

/// A list as it is answered.
pub(crate) fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})
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
        "metadata": {"name": "wardline-node", "namespace": "wardline-system", "uid": "ds", "generation": generation,
            "labels": {"app.kubernetes.io/name": "wardline-node", "app.kubernetes.io/part-of": "wardline",
                "app.kubernetes.io/managed-by": "wardline-operator"}},
        "status": {
            "observedGeneration": generation, "desiredNumberScheduled": nodes, "currentNumberScheduled": nodes,
            "updatedNumberScheduled": nodes, "numberReady": nodes, "numberMisscheduled": 0,
        },
    })
}
