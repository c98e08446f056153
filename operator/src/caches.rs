// SPDX-License-Identifier: Apache-2.0
//! Copies of what the operator looks at besides its own kinds, kept by watches, and a signal when any of them changes.
//! Every typed watch is guarded: an object that does not decode is an entry of its own, and stops nothing.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, NodeStatus, Pod, PodSpec, PodStatus, Volume};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{Store, store};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wardline_crds::DataplaneNode;

use crate::dataplane::SELECTOR;
use crate::metrics::Metrics;

/// The shortest time between two signals. A plain debounce would never fire on a large cluster, where some node always
/// changes.
const PACE: Duration = Duration::from_secs(1);

pub(crate) struct Caches {
    pub(crate) daemon_sets: Store<DeserializeGuard<DaemonSet>>,
    /// Pods of the daemon, with nothing in them but their metadata, node, volumes, and how their containers are.
    pub(crate) pods: Store<DeserializeGuard<Pod>>,
    pub(crate) config_maps: Store<PartialObjectMeta<ConfigMap>>,
    /// What the daemons say of their nodes.
    pub(crate) nodes: Store<DeserializeGuard<DataplaneNode>>,
    /// The nodes themselves, with nothing in them but their metadata and conditions.
    pub(crate) machines: Store<DeserializeGuard<Node>>,
    changed: watch::Receiver<u64>,
}

impl Caches {
    /// Starts the watches as tasks that end with `stop`.
    pub(crate) fn start(
        client: &Client,
        namespace: &str,
        metrics: &Metrics,
        stop: &CancellationToken,
        tasks: &mut JoinSet<Result<()>>,
    ) -> Self {
        let (sender, changed) = watch::channel(0);
        let spawner = Spawner {
            changes: sender,
            metrics: metrics.clone(),
            stop: stop.clone(),
        };
        let ours = watcher::Config::default().labels(SELECTOR);
        let any = watcher::Config::default();
        let pods = watcher::watcher(
            Api::<DeserializeGuard<Pod>>::namespaced(client.clone(), namespace),
            ours.clone(),
        );
        let config_maps = Api::<PartialObjectMeta<ConfigMap>>::namespaced(client.clone(), namespace);
        let daemon_sets = Api::namespaced(client.clone(), namespace);
        let machines = watcher::watcher(Api::<DeserializeGuard<Node>>::all(client.clone()), any.clone());
        Self {
            daemon_sets: spawner.spawn("DaemonSet", watcher::watcher(daemon_sets, ours.clone()), tasks),
            pods: spawner.spawn("Pod", pods.modify(keep_what_is_used), tasks),
            config_maps: spawner.spawn("ConfigMap", watcher::watcher(config_maps, ours), tasks),
            nodes: spawner.spawn(
                "DataplaneNode",
                watcher::watcher(Api::all(client.clone()), any.clone()),
                tasks,
            ),
            machines: spawner.spawn("Node", machines.modify(keep_conditions), tasks),
            changed,
        }
    }

    /// Caches that a test fills itself.
    #[cfg(test)]
    pub(crate) fn from_stores(
        daemon_sets: Store<DeserializeGuard<DaemonSet>>,
        pods: Store<DeserializeGuard<Pod>>,
        config_maps: Store<PartialObjectMeta<ConfigMap>>,
        nodes: Store<DeserializeGuard<DataplaneNode>>,
        machines: Store<DeserializeGuard<Node>>,
    ) -> Self {
        Self {
            daemon_sets,
            pods,
            config_maps,
            nodes,
            machines,
            changed: watch::channel(0).1,
        }
    }

    /// The same, with signals that a test gives itself.
    #[cfg(test)]
    pub(crate) fn with_changes(self, changed: watch::Receiver<u64>) -> Self {
        Self { changed, ..self }
    }

    /// Waits until each copy has been filled once. Before that, absence means nothing.
    pub(crate) async fn wait_until_ready(&self) -> Result<()> {
        let dropped = || "failed to fill caches: a watch ended";
        self.daemon_sets.wait_until_ready().await.with_context(dropped)?;
        self.pods.wait_until_ready().await.with_context(dropped)?;
        self.config_maps.wait_until_ready().await.with_context(dropped)?;
        self.nodes.wait_until_ready().await.with_context(dropped)?;
        self.machines.wait_until_ready().await.with_context(dropped)
    }

    /// A signal after changes, at once for the first one, then at most one each `PACE`.
    pub(crate) fn changes(&self) -> impl Stream<Item = ()> + Send + 'static {
        futures::stream::unfold((self.changed.clone(), false), |(mut changed, wait)| async move {
            if wait {
                tokio::time::sleep(PACE).await;
            }
            changed.changed().await.ok()?;
            Some(((), (changed, true)))
        })
    }
}

struct Spawner {
    changes: watch::Sender<u64>,
    metrics: Metrics,
    stop: CancellationToken,
}

impl Spawner {
    fn spawn<K, S>(&self, kind: &'static str, events: S, tasks: &mut JoinSet<Result<()>>) -> Store<K>
    where
        K: Resource + Clone + Debug + Send + Sync + 'static,
        K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
        S: Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    {
        let (reader, writer) = store();
        let (changes, metrics, stop) = (self.changes.clone(), self.metrics.clone(), self.stop.clone());
        let mut events = events.default_backoff().reflect(writer).touched_objects().boxed();
        tasks.spawn(async move {
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    event = events.next() => event,
                };
                match event {
                    Some(Ok(_)) => changes.send_modify(|n| *n += 1),
                    Some(Err(error)) => {
                        metrics.watch_failed(kind);
                        tracing::warn!(kind, %error, "failed to watch; trying again");
                    }
                    None => anyhow::bail!("failed to watch {kind}: the stream ended"),
                }
            }
        });
        reader
    }
}

/// A pod of the daemon is large, and of it only this is looked at.
fn keep_what_is_used(pod: &mut DeserializeGuard<Pod>) {
    let Ok(pod) = &mut pod.0 else { return };
    pod.metadata.managed_fields = None;
    pod.status = pod.status.take().map(|status| PodStatus {
        conditions: status.conditions,
        container_statuses: status.container_statuses,
        ..PodStatus::default()
    });
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        node_name: spec.node_name,
        // One that is not scheduled yet has its node here.
        affinity: spec.affinity,
        volumes: spec.volumes.map(|volumes| {
            let volumes = volumes.into_iter().filter(|v| v.config_map.is_some());
            volumes
                .map(|v| Volume {
                    name: v.name,
                    config_map: v.config_map,
                    ..Volume::default()
                })
                .collect()
        }),
        ..PodSpec::default()
    });
}

/// Kubelets write a Node every few seconds; of it only this is looked at.
fn keep_conditions(node: &mut DeserializeGuard<Node>) {
    let Ok(node) = &mut node.0 else { return };
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    node.spec = None;
    node.status = node.status.take().map(|status| NodeStatus {
        conditions: status.conditions,
        ..NodeStatus::default()
    });
}

/// How many objects of a cache do not decode, or are of no use though they do.
pub(crate) fn invalid<K>(store: &Store<DeserializeGuard<K>>, useless: impl Fn(&K) -> bool) -> usize
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store
        .state()
        .iter()
        .filter(|object| object.0.as_ref().map_or(true, &useless))
        .count()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use kube::runtime::reflector::ObjectRef;
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, Reply, failure, list, report};

    #[test]
    fn of_a_pod_only_what_is_looked_at_is_kept() {
        let mut pod: DeserializeGuard<Pod> = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {"a": "b"}, "managedFields": [{"manager": "m"}]},
            "spec": {
                "nodeName": "node1", "containers": [{"name": "c"}],
                "volumes": [{"name": "config", "configMap": {"name": "x"}}, {"name": "run", "hostPath": {"path": "/run"}}],
            },
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        keep_what_is_used(&mut pod);
        let expected = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {"nodeName": "node1", "containers": [], "volumes": [{"name": "config", "configMap": {"name": "x"}}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        assert_eq!(serde_json::to_value(pod.0.unwrap()).unwrap(), expected);
    }

    #[tokio::test]
    async fn a_burst_of_changes_is_one_signal_at_once_and_one_later() {
        let (sender, changed) = watch::channel(0);
        let caches = crate::testing::Cached::default().caches().with_changes(changed);
        let mut changes = std::pin::pin!(caches.changes());
        for n in 1..=100 {
            sender.send_replace(n);
        }
        let started = std::time::Instant::now();
        assert_eq!(changes.next().await, Some(()));
        assert!(started.elapsed() < PACE / 2);
        sender.send_replace(101);
        sender.send_replace(102);
        assert_eq!(changes.next().await, Some(()));
        assert!(started.elapsed() >= PACE);
        drop(sender);
        assert_eq!(changes.next().await, None);
    }

    /// What came of lists and watches of one kind: the n-th of each.
    fn broken_watches() -> FakeApi {
        let (lists, watches) = (AtomicU32::new(0), AtomicU32::new(0));
        let gone = json!({"type": "ERROR", "object": failure(410, "too old resource version: 1 (9)")});
        let added = |name| {
            json!({"type": "ADDED", "object": {"apiVersion": "wardline.io/v1alpha1", "kind": "DataplaneNode",
            "metadata": {"name": name, "resourceVersion": "3"}}})
        };
        FakeApi::default().reply("/dataplanenodes", move |sent| {
            if sent.is_watch {
                return match watches.fetch_add(1, Ordering::Relaxed) {
                    0 => Reply::Watch(vec![added("node2"), gone.clone()]),
                    1 => Reply::Reset,
                    2 => Reply::Silence,
                    _ => Reply::Watch(vec![added("node4")]),
                };
            }
            match lists.fetch_add(1, Ordering::Relaxed) {
                0 => Reply::RetryAfter(429, 20),
                1 => Reply::Json(500, failure(500, "etcdserver: leader changed")),
                2 => Reply::Json(200, list(vec![report("node1", "r")])),
                // After the 410 everything is listed again, and node2 is not there any more.
                _ => Reply::Json(200, list(vec![report("node1", "r"), report("node3", "r")])),
            }
        })
    }

    #[tokio::test(start_paused = true)]
    async fn watches_outlive_whatever_the_api_server_does() {
        let api = broken_watches();
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let metrics = Metrics::new().unwrap();
        let caches = Caches::start(&api.client(), "wardline-system", &metrics, &stop, &mut tasks);
        let began = tokio::time::Instant::now();
        caches.wait_until_ready().await.unwrap();
        assert!(
            began.elapsed() >= Duration::from_secs(20),
            "Retry-After is heeded: {:?}",
            began.elapsed()
        );
        let has = |name: &str| caches.nodes.get(&ObjectRef::new(name)).is_some();
        assert!(has("node1"));
        while !has("node4") {
            tokio::time::sleep(PACE).await;
            assert!(began.elapsed() < Duration::from_mins(5), "{:?}", api.summaries());
        }
        assert!(has("node1") && has("node3") && !has("node2"));
        let requests: Vec<_> = api
            .take()
            .into_iter()
            .filter(|sent| sent.path.ends_with("/dataplanenodes"))
            .collect();
        assert!(requests.len() <= 12, "{requests:?}");
        let counted = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(
            counted.contains("wardline_operator_watch_errors_total{kind=\"DataplaneNode\"}"),
            "{counted}"
        );
        stop.cancel();
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}
