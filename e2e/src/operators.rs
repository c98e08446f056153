// SPDX-License-Identifier: Apache-2.0
//! The operator's replicas, and which of them leads.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};

use crate::cluster::{Lab, LabNode, Metrics, SYSTEM_NAMESPACE, metrics_of};

const NAME: &str = "wardline-operator";
/// The port of the operator's metrics, on its node's address.
const METRICS_PORT: u16 = 9472;

/// The pods of the operator.
pub fn pods(lab: &Lab) -> Api<Pod> {
    Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE)
}

/// One replica.
#[derive(Debug, Clone)]
pub struct Replica {
    pub pod: Pod,
    /// Host and port of its metrics.
    pub address: String,
}

impl Replica {
    /// The name that it holds the lease by.
    pub fn name(&self) -> String {
        self.pod.name_any()
    }

    /// The node that it runs on.
    pub fn node<'a>(&self, lab: &'a Lab) -> Result<LabNode<'a>> {
        let spec = self.pod.spec.as_ref();
        lab.node(spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default())
    }

    pub async fn metrics(&self) -> Result<Metrics> {
        metrics_of(&self.address).await
    }

    /// Whether it says that it leads.
    pub async fn leads(&self) -> Result<bool> {
        let leader = self.metrics().await?.sum("wardline_operator_leader", &[]);
        Ok(leader.context("failed to read metrics: wardline_operator_leader is missing")? > 0.5)
    }

    /// Sends a signal, such as `-STOP`, to its process.
    pub fn signal(&self, lab: &Lab, signal: &str) -> Result<()> {
        let node = self.node(lab)?;
        let pids = node.run(&["busybox", "pidof", NAME])?;
        let [pid] = pids.split_ascii_whitespace().collect::<Vec<_>>()[..] else {
            bail!("failed to find one operator on {}: {pids}", node.spec.name);
        };
        node.run(&["busybox", "kill", signal, pid])?;
        Ok(())
    }
}

/// All replicas that have a node and are not being deleted.
pub async fn replicas(lab: &Lab) -> Result<Vec<Replica>> {
    let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={NAME}"));
    let found = pods(lab).list(&ours).await.context("failed to list operators")?;
    let mut replicas = Vec::new();
    for pod in found.items {
        let address = pod.status.as_ref().and_then(|status| status.host_ip.clone());
        if let Some(address) = address.filter(|_| pod.metadata.deletion_timestamp.is_none()) {
            let address = format!("{address}:{METRICS_PORT}");
            replicas.push(Replica { pod, address });
        }
    }
    Ok(replicas)
}

/// The lease that they take turns by.
pub async fn lease(lab: &Lab) -> Result<Lease> {
    let leases: Api<Lease> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
    leases
        .get(NAME)
        .await
        .with_context(|| format!("failed to get Lease {NAME}"))
}

/// The replica that holds the lease, and says that it leads.
///
/// # Errors
/// Also while nobody does.
pub async fn leader(lab: &Lab) -> Result<Replica> {
    let holder = lease(lab)
        .await?
        .spec
        .and_then(|spec| spec.holder_identity)
        .unwrap_or_default();
    let found = replicas(lab)
        .await?
        .into_iter()
        .find(|replica| replica.name() == holder);
    let found = found.with_context(|| format!("failed to find the leader: the lease's holder is {holder:?}"))?;
    ensure!(found.leads().await?, "{holder} holds the lease and does not lead yet");
    Ok(found)
}
