// SPDX-License-Identifier: Apache-2.0
//! Writes the Events. One that cannot be written is counted and not tried again: the record stands in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Denied;
use crate::control::NodeState;
use crate::metrics::Metrics;

const CONTROLLER: &str = "wardline-node";
const REASON: &str = "NetworkPolicyDeny";
/// Of one request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of note that the API server takes at most: 1 kB.
const LONGEST_NOTE: usize = 1000;

#[allow(missing_debug_implementations, reason = "kube's client has none")]
pub struct EventWriter {
    is_on: Arc<AtomicBool>,
    waiting: mpsc::Receiver<Denied>,
    client: Client,
    node: String,
    metrics: Arc<Metrics>,
}

impl EventWriter {
    pub(super) fn new(
        is_on: Arc<AtomicBool>,
        waiting: mpsc::Receiver<Denied>,
        client: Client,
        node: &str,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            is_on,
            waiting,
            client,
            node: node.to_owned(),
            metrics,
        }
    }

    /// Writes until cancelled, while the node's logging asks for it.
    pub async fn run(mut self, mut state: watch::Receiver<NodeState>, cancel: CancellationToken) {
        loop {
            let is_on = state
                .borrow_and_update()
                .logging
                .is_some_and(|logging| logging.deny_events);
            self.is_on.store(is_on, Ordering::Relaxed);
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = state.changed() => if changed.is_err() { return },
                // The log's end may be gone before the cancellation is seen.
                Some(denied) = self.waiting.recv() => self.write(&denied).await,
            }
        }
    }

    async fn write(&self, denied: &Denied) {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &denied.pod.namespace);
        let (event, post) = (self.event(denied), PostParams::default());
        let cause = match tokio::time::timeout(TIMEOUT, events.create(&post, &event)).await {
            Ok(Ok(_)) => return self.metrics.deny_event("written"),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the API server did not answer within {} s", TIMEOUT.as_secs()),
        };
        self.metrics.deny_event("failed");
        tracing::warn!(pod = %denied.pod, cause, "failed to write an Event about a deny");
    }

    fn event(&self, denied: &Denied) -> Event {
        let pod = &denied.pod;
        Event {
            metadata: ObjectMeta {
                // The API server cuts long ones, and takes none that ends in a dot.
                generate_name: Some(format!("{}-", pod.name)),
                namespace: Some(pod.namespace.to_string()),
                ..ObjectMeta::default()
            },
            action: Some("Deny".to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            note: Some(denied.note[..denied.note.floor_char_boundary(LONGEST_NOTE)].to_owned()),
            reason: Some(REASON.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.namespace.to_string()),
                name: Some(pod.name.to_string()),
                uid: Some(denied.pod_uid.to_string()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.node.clone()),
            type_: Some("Warning".to_owned()),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use http::{Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::{Value, json};
    use wardline_policy::model::{Direction, ObjectName};

    use super::super::deny_events;
    use super::*;
    use crate::events::{Observed, Verdict};
    use crate::index::{Logged, LoggingSpec};
    use crate::names::{EndpointName, Meaning, Names, PodName};

    /// Takes Events, but for those of one namespace.
    fn api_server(events: &Arc<Mutex<Vec<Value>>>) -> Client {
        let events = Arc::clone(events);
        let answer = move |request: Request<Body>| {
            let events = Arc::clone(&events);
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect_bytes().await.unwrap();
                let (status, answer) = if path.contains("/refused/") {
                    let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                                         "reason": "Forbidden", "message": "no"});
                    (StatusCode::FORBIDDEN, refusal.to_string().into_bytes())
                } else {
                    events.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                    (StatusCode::CREATED, body.to_vec())
                };
                Ok::<_, std::convert::Infallible>(Response::builder().status(status).body(Body::from(answer)).unwrap())
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    fn names(directory: &std::path::Path) -> Names {
        let names = Names::open(directory).unwrap();
        let endpoint = |(uid, namespace)| Meaning::Endpoint {
            uid,
            name: Arc::new(EndpointName {
                name: PodName {
                    pod: ObjectName::new(namespace, "db-0"),
                    workload: None,
                },
                pod_uid: "its-uid".into(),
            }),
        };
        names
            .tell([(1, "shop"), (2, "refused")].map(endpoint).to_vec())
            .unwrap();
        names
    }

    fn deny(endpoint: u32, remote: u8) -> Observed {
        Observed {
            endpoint,
            direction: Direction::Ingress,
            pod: "10.0.0.1".parse().unwrap(),
            remote: [10, 0, 1, remote].into(),
            protocol: 6,
            pod_port: 80,
            remote_port: 40_000,
            service: None,
            time: 0,
            reason: Some("default-deny"),
            verdict: Verdict::Deny {
                table: 1,
                count: 1,
                last: 0,
            },
        }
    }

    #[tokio::test]
    async fn first_denies_become_events_while_it_is_asked_for() {
        let (written, metrics) = (Arc::default(), Arc::new(Metrics::new().unwrap()));
        let directory = tempfile::tempdir().unwrap();
        let names = names(directory.path());
        let (mut events, writer) = deny_events(&metrics, api_server(&written), "node1");
        let (state, seen) = watch::channel(NodeState::default());
        let cancel = CancellationToken::new();
        let writing = tokio::spawn(writer.run(seen, cancel.clone()));
        let now = Instant::now();
        events.tell(&deny(1, 1), &names, now);

        let is_on = Arc::clone(&events.is_on);
        let switch = async |deny_events| {
            let logging = LoggingSpec {
                generation: 1,
                allow: Logged::Off,
                deny: Logged::All,
                deny_events,
            };
            state.send_modify(|state| state.logging = Some(logging));
            while is_on.load(Ordering::Relaxed) != deny_events {
                tokio::task::yield_now().await;
            }
        };
        switch(true).await;
        // Two of one pair, another, one whose pod nobody knows, and one that is refused.
        for (endpoint, remote) in [(1, 1), (1, 1), (1, 2), (3, 1), (2, 1)] {
            events.tell(&deny(endpoint, remote), &names, now);
        }
        let count = |outcome: &str| {
            let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
            let line = format!("wardline_deny_events_total{{outcome=\"{outcome}\"}} ");
            text.lines()
                .find_map(|l| l.strip_prefix(&line))
                .map_or(0, |n| n.parse().unwrap())
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while (count("written"), count("failed")) != (2, 1) && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        assert_eq!((count("written"), count("failed"), count("limited")), (2, 1, 0));
        switch(false).await;
        events.tell(&deny(1, 3), &names, now);
        cancel.cancel();
        writing.await.unwrap();
        let written = written.lock().unwrap();
        assert_eq!(written.len(), 2);
        let event = &written[0];
        assert_eq!(
            event["regarding"],
            json!({"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "db-0", "uid": "its-uid"})
        );
        assert_eq!(
            (&event["type"], &event["reason"], &event["reportingInstance"]),
            (&json!("Warning"), &json!("NetworkPolicyDeny"), &json!("node1"))
        );
        assert_eq!(event["note"], "ingress from 10.0.1.1, tcp/80, was denied: default-deny");
    }
}
