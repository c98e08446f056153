// SPDX-License-Identifier: Apache-2.0
//! Installing Wardline into the lab, the way that users do: by its chart.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams};

use crate::cluster::{Lab, SYSTEM_NAMESPACE};
use crate::command::output_of;
use crate::evidence;
use crate::images::{self, Built, Options};
use crate::layout::{CONTROL_PLANE, NODES};
use crate::namespace::is_ready;
use crate::progress::{step, wait_until};

/// Imports the images, installs or upgrades the chart, and waits until every node enforces.
pub async fn install(lab: &Lab, options: &Options, built: &[Built]) -> Result<()> {
    let changed = images::import(lab.layout(), built)?;
    let pods: Api<Pod> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
    let before = pods.list(&ListParams::default()).await.context("failed to list pods")?;
    step("installing Wardline by its chart");
    if !before.items.is_empty() {
        // Which Helm never changes once it has installed them.
        let crds = lab.layout().workspace().join("charts/wardline/crds");
        let mut kubectl = Command::new(lab.layout().bin("kubectl"));
        kubectl
            .args(["apply", "--server-side", "--force-conflicts", "--filename"])
            .arg(crds);
        kubectl.arg(format!("--kubeconfig={}", lab.layout().kubeconfig().display()));
        output_of(&mut kubectl)?;
    }
    output_of(&mut helm(lab, options))?;
    if changed && !before.items.is_empty() {
        restart(lab).await?;
    }
    if let Err(error) = wait_ready(lab).await {
        return Err(error).context(evidence::collect(lab, SYSTEM_NAMESPACE).await);
    }
    Ok(())
}

fn helm(lab: &Lab, options: &Options) -> Command {
    let mut command = Command::new(lab.layout().bin("helm"));
    command
        .args(["upgrade", "--install", "wardline"])
        .arg(lab.layout().workspace().join("charts/wardline"));
    command
        .arg(format!("--namespace={SYSTEM_NAMESPACE}"))
        .arg("--create-namespace");
    command.arg(format!("--kubeconfig={}", lab.layout().kubeconfig().display()));
    // Nothing of the administrator's own Helm is read or written.
    for (variable, folder) in [
        ("HELM_CONFIG_HOME", "config"),
        ("HELM_CACHE_HOME", "cache"),
        ("HELM_DATA_HOME", "data"),
    ] {
        command.env(variable, lab.layout().lab().join("helm").join(folder));
    }
    // No kube-proxy runs in the lab, so the Service of the API server leads nowhere.
    command
        .arg("--set")
        .arg(format!("apiServer.host={CONTROL_PLANE},apiServer.port=6443"));
    // Its nodes share the disk of the machine, and kubelets that evict nobody for it.
    command.arg("--set").arg("dataplane.spec.logging.file.minFreePercent=1");
    command.arg("--set").arg("dataplane.spec.metrics.policies=100");
    // Tests change the Dataplane, and wait for each node.
    command
        .arg("--set")
        .arg("dataplane.spec.daemon.rollout.minReadySeconds=2");
    for (chart, image) in [("operator", "operator"), ("daemon", "node")] {
        command
            .arg("--set")
            .arg(format!("{chart}.image.repository={}/{image}", options.prefix));
        command
            .arg("--set-string")
            .arg(format!("{chart}.image.tag={}", options.version));
    }
    command
}

/// Images keep their tag while one works on them, and a pod that runs does not look again: its successor does.
async fn restart(lab: &Lab) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
    pods.delete_collection(&DeleteParams::default(), &ListParams::default())
        .await
        .context("failed to restart Wardline's pods")?;
    // Until then, what the statuses say is what the pods that go have said.
    wait_until("the new pods of Wardline", Duration::from_mins(2), async || {
        let all = pods.list(&ListParams::default()).await?.items;
        let new = all
            .iter()
            .all(|pod| pod.metadata.deletion_timestamp.is_none() && is_ready(pod));
        Ok((new && all.len() > NODES.len()).then_some(()))
    })
    .await
}

/// Waits until the Dataplane says that every node is ready, and so do the nodes themselves.
pub async fn wait_ready(lab: &Lab) -> Result<()> {
    wait_until("Dataplane default to be Ready", Duration::from_mins(2), async || {
        let dataplane = lab.get("wardline.io/v1alpha1", "Dataplane", "", "default").await?;
        let generation = dataplane.metadata.generation;
        let status = &dataplane.data["status"];
        let observed = status["observedGeneration"].as_i64();
        Ok((is_true(status, "Ready") && observed == generation).then_some(()))
    })
    .await?;
    for node in &NODES {
        wait_until(
            &format!("DataplaneNode {} to be Ready", node.name),
            Duration::from_mins(1),
            async || {
                let object = lab.get("wardline.io/v1alpha1", "DataplaneNode", "", node.name).await?;
                Ok(is_true(&object.data["status"], "Ready").then_some(()))
            },
        )
        .await?;
    }
    Ok(())
}

/// Whether a condition of a status is `True`.
pub fn is_true(status: &serde_json::Value, condition: &str) -> bool {
    let conditions = status["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|one| one["type"] == condition && one["status"] == "True")
    })
}
