// SPDX-License-Identifier: Apache-2.0
//! A namespace for one test: made with a name of its own, removed at the end, and full of evidence when the test fails.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, Pod, PodIP, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::core::ObjectMeta;
use serde_json::json;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphorePermit};

use crate::cluster::Lab;
use crate::evidence;
use crate::ipam::Ipam;
use crate::layout::TRAFFIC_IMAGE;
use crate::progress::{step, wait_until};
use crate::records::Record;
use crate::traffic::{Again, Attempt, Held, Protocol};

/// The port that [`TestNamespace::server`] listens on.
pub const PORT: u16 = 8080;

/// How long a pod may take to be ready, and a record to be written.
const PATIENCE: Duration = Duration::from_mins(1);

/// A test's namespace.
#[derive(Debug, Clone)]
pub struct TestNamespace {
    /// The cluster it is in.
    pub lab: Lab,
    /// Its name.
    pub name: String,
}

/// Held for reading by tests that leave the cluster as it is, for writing by those that do not.
static CLUSTER: RwLock<()> = RwLock::const_new(());
/// For as many tests side by side as the machine bears.
static PLACES: Semaphore = Semaphore::const_new(SIDE_BY_SIDE);
const SIDE_BY_SIDE: usize = 7;

/// A test's place beside others; see [`beside`].
#[derive(Debug)]
pub struct Place {
    _place: SemaphorePermit<'static>,
    _cluster: RwLockReadGuard<'static, ()>,
}

/// Waits until no test of this process has the cluster for itself. None will as long as the place is kept.
pub async fn beside() -> Result<Place> {
    Ok(Place {
        _place: PLACES.acquire().await.context("failed to wait for other tests")?,
        _cluster: CLUSTER.read().await,
    })
}

/// Waits until no other test of this process runs, and what they had is gone from the nodes. None will as long as the
/// guard is kept.
pub async fn alone(lab: &Lab) -> Result<RwLockWriteGuard<'static, ()>> {
    let alone = write_last(&CLUSTER).await;
    wait_until("deleted pods to leave their nodes", PATIENCE, async || {
        let namespaces: Api<Namespace> = Api::all(lab.client().clone());
        let namespaces = namespaces.list(&ListParams::default()).await?.items;
        let pods: Api<Pod> = Api::all(lab.client().clone());
        let pods = pods.list(&ListParams::default()).await?.items;
        let is_leaving = |meta: &ObjectMeta| meta.deletion_timestamp.is_some();
        let goes_with = |pod: &Pod| {
            let mut gone = namespaces.iter().filter(|one| is_leaving(&one.metadata));
            gone.any(|one| one.metadata.name == pod.metadata.namespace)
        };
        let leaving = pods.iter().filter(|pod| is_leaving(&pod.metadata) || goes_with(pod));
        ensure!(leaving.count() == 0, "some are being deleted");
        let status = pods.into_iter().filter_map(|pod| pod.status);
        let ips = status.flat_map(|status| status.pod_ips.unwrap_or_default());
        let known: BTreeSet<IpAddr> = ips.filter_map(|ip| ip.ip.parse().ok()).collect();
        for node in lab.nodes() {
            let mut taken = Ipam::of(lab.layout(), node.spec).taken()?;
            taken.retain(|ip, _| !known.contains(ip));
            ensure!(
                taken.is_empty(),
                "{} has addresses of no pod: {taken:?}",
                node.spec.name
            );
        }
        Ok(Some(()))
    })
    .await?;
    Ok(alone)
}

/// Waits until nobody reads, and lets everybody read meanwhile: tests that can stand side by side shall.
pub(crate) async fn write_last(lock: &'static RwLock<()>) -> RwLockWriteGuard<'static, ()> {
    loop {
        if let Ok(guard) = lock.try_write() {
            return guard;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs a test in a namespace of its own, beside others. Prints evidence if it fails, and removes the namespace either
/// way.
pub async fn with_namespace(hint: &str, test: impl AsyncFnOnce(&TestNamespace) -> Result<()>) -> Result<()> {
    let _place = beside().await?;
    in_namespace(Lab::connect().await?, hint, test).await
}

/// Like [`with_namespace`], for a test that needs the cluster for itself: it ends daemons, changes the Dataplane, counts
/// what nodes do, or measures.
pub async fn with_namespace_alone(hint: &str, test: impl AsyncFnOnce(&TestNamespace) -> Result<()>) -> Result<()> {
    let lab = Lab::connect().await?;
    let _alone = alone(&lab).await?;
    in_namespace(lab, hint, test).await
}

async fn in_namespace(lab: Lab, hint: &str, test: impl AsyncFnOnce(&TestNamespace) -> Result<()>) -> Result<()> {
    let began = Instant::now();
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("failed to read the clock")?;
    let namespace = TestNamespace {
        lab,
        name: format!("{hint}-{:x}", since.as_micros() & 0xffff_ffff),
    };
    namespace.create(&json!({})).await?;
    let result = test(&namespace).await;
    if result.is_err() {
        eprintln!("{}", evidence::collect(&namespace.lab, &namespace.name).await);
    }
    let removed = namespace.remove().await;
    let ended = if result.is_ok() { "passed" } else { "failed" };
    step(&format!("{ended} after {:.1} s", began.elapsed().as_secs_f64()));
    result.and(removed)
}

impl TestNamespace {
    /// Creates it, with annotations, and waits until pods can be created in it.
    pub async fn create(&self, annotations: &serde_json::Value) -> Result<()> {
        let object: Namespace =
            serde_json::from_value(json!({"metadata": {"name": self.name, "annotations": annotations}}))
                .context("failed to build a Namespace")?;
        let namespaces: Api<Namespace> = Api::all(self.lab.client().clone());
        match namespaces.create(&PostParams::default(), &object).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error).with_context(|| format!("failed to create Namespace {}", self.name)),
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(self.lab.client().clone(), &self.name);
        let what = format!("the default ServiceAccount of {}", self.name);
        wait_until(&what, PATIENCE, async || {
            Ok(accounts.get_opt("default").await?.map(drop))
        })
        .await
    }

    /// Deletes it. Kubernetes takes some seconds for that, which nobody needs to wait for.
    pub async fn remove(&self) -> Result<()> {
        let pods = self.pods();
        let at_once = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        pods.delete_collection(&at_once, &ListParams::default())
            .await
            .context("failed to delete pods")?;
        let namespaces: Api<Namespace> = Api::all(self.lab.client().clone());
        namespaces
            .delete(&self.name, &DeleteParams::default())
            .await
            .with_context(|| format!("failed to delete Namespace {}", self.name))?;
        Ok(())
    }

    /// Its pods.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.lab.client().clone(), &self.name)
    }

    /// Creates a pod to run clients in, labelled `app: NAME`. It is a server too, which does no harm.
    pub async fn client(&self, name: &str, node: &str) -> Result<()> {
        self.server(name, node).await
    }

    /// Like [`Self::server`], as the one pod of a StatefulSet: the pod is called `NAME-0`, its label is `app: NAME`.
    pub async fn stateful_server(&self, name: &str, node: &str) -> Result<()> {
        let labels = json!({"app": name});
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "serviceName": name,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod_spec(node)},
            },
        }))
        .context("failed to build a StatefulSet")?;
        Api::<StatefulSet>::namespaced(self.lab.client().clone(), &self.name)
            .create(&PostParams::default(), &set)
            .await
            .with_context(|| format!("failed to create StatefulSet {}/{name}", self.name))?;
        let what = format!("{name}-0 of {}", self.name);
        wait_until(&what, PATIENCE, async || {
            Ok(self.pods().get_opt(&format!("{name}-0")).await?.map(drop))
        })
        .await
    }

    /// Creates an echo server on [`PORT`] on a node, labelled `app: NAME`; ready when [`Self::ready`] says so.
    pub async fn server(&self, name: &str, node: &str) -> Result<()> {
        self.create_pod(name, pod_spec(node)).await
    }

    /// Like [`Self::server`], and ready only when the kubelet has reached its [`PORT`].
    pub async fn probed_server(&self, name: &str, node: &str) -> Result<()> {
        let mut spec = pod_spec(node);
        spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": PORT}, "periodSeconds": 1});
        self.create_pod(name, spec).await
    }

    /// A pod on the host network of a node, to run clients in.
    pub async fn on_host(&self, name: &str, node: &str) -> Result<()> {
        let mut spec = pod_spec(node);
        spec["hostNetwork"] = true.into();
        self.create_pod(name, spec).await
    }

    async fn create_pod(&self, name: &str, spec: serde_json::Value) -> Result<()> {
        let labels = json!({"app": name});
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "spec": spec}))
            .context("failed to build a Pod")?;
        self.pods()
            .create(&PostParams::default(), &pod)
            .await
            .with_context(|| format!("failed to create Pod {}/{name}", self.name))?;
        Ok(())
    }

    /// Waits until all pods of the namespace run and have addresses.
    pub async fn ready(&self) -> Result<()> {
        wait_until(&format!("the pods of {}", self.name), PATIENCE, async || {
            let pods = self.pods().list(&ListParams::default()).await?.items;
            Ok(pods.iter().all(is_ready).then_some(()))
        })
        .await
    }

    /// Waits until the daemons enforce the policies that are there now: until `from` fails to reach, or reaches, `to`.
    pub async fn until_reach(&self, from: &str, to: &str, reached: bool) -> Result<()> {
        let expected = if reached { "admitted" } else { "refused" };
        wait_until(&format!("{from} -> {to} to be {expected}"), PATIENCE, async || {
            Ok((self.attempt(from, to, Protocol::Tcp).await?.ok == reached).then_some(()))
        })
        .await
    }

    /// The first address of a pod: IPv4.
    pub async fn ip(&self, pod: &str) -> Result<IpAddr> {
        let ips = self.ips(pod).await?;
        let first = ips.first().copied();
        first.with_context(|| format!("failed to read the address of Pod {}/{pod}: it has none", self.name))
    }

    /// The addresses of a pod, one a family.
    pub async fn ips(&self, pod: &str) -> Result<Vec<IpAddr>> {
        let object = self.pods().get(pod).await;
        let object = object.with_context(|| format!("failed to get Pod {}/{pod}", self.name))?;
        let ips = object.status.and_then(|status| status.pod_ips).unwrap_or_default();
        let parse = |ip: &PodIP| ip.ip.parse();
        let ips: Result<Vec<IpAddr>, _> = ips.iter().map(parse).collect();
        ips.with_context(|| format!("failed to parse the addresses of Pod {}/{pod}", self.name))
    }

    /// One connection from a pod to another's [`PORT`], with a message and its echo. A refusal is a result, no error.
    pub async fn attempt(&self, from: &str, to: &str, protocol: Protocol) -> Result<Attempt> {
        let server = SocketAddr::new(self.ip(to).await?, PORT);
        Attempt::make(&self.pods(), from, server, protocol).await
    }

    /// A connection from a pod to another's [`PORT`] that stays open, with a message each `interval`.
    pub async fn hold(&self, from: &str, to: &str, protocol: Protocol, interval: Duration) -> Result<Held> {
        let server = SocketAddr::new(self.ip(to).await?, PORT);
        Held::open(&self.pods(), from, server, protocol, interval).await
    }

    /// Connections from a pod to another's [`PORT`], one after the other, one each `interval`.
    pub async fn again(&self, from: &str, to: &str, protocol: Protocol, interval: Duration) -> Result<Again> {
        let server = SocketAddr::new(self.ip(to).await?, PORT);
        Again::start(&self.pods(), from, server, protocol, interval).await
    }

    /// The records that concern the namespace's pods.
    pub fn records(&self) -> Result<Vec<Record>> {
        Ok(self
            .lab
            .records()?
            .into_iter()
            .filter(|record| record.concerns(&self.name))
            .collect())
    }

    /// Waits until the namespace's records satisfy `enough`, and returns them.
    pub async fn records_until(&self, what: &str, enough: impl Fn(&[Record]) -> bool) -> Result<Vec<Record>> {
        wait_until(what, PATIENCE, async || {
            let records = self.records()?;
            Ok(enough(&records).then_some(records))
        })
        .await
    }

    /// Applies YAML documents; those that name no namespace go into this one.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        step(&format!("  applying to {}", self.name));
        self.lab.apply(&self.name, yaml).await
    }
}

fn pod_spec(node: &str) -> serde_json::Value {
    let args = ["serve", "--port", &PORT.to_string()];
    json!({
        "nodeName": node,
        "terminationGracePeriodSeconds": 0,
        "containers": [{
            "name": "traffic",
            "image": TRAFFIC_IMAGE,
            "args": args,
            "imagePullPolicy": "Never",
            "ports": [{"name": "echo", "containerPort": PORT}, {"name": "echo-udp", "containerPort": PORT, "protocol": "UDP"}],
        }],
    })
}

/// Whether a pod's condition Ready is true.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}
