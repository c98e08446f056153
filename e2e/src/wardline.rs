// SPDX-License-Identifier: Apache-2.0
//! Installing Wardline into the lab, the way that users do: by its chart.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams};

use crate::chart;
use crate::cluster::{Lab, SYSTEM_NAMESPACE};
use crate::command::output_of;
use crate::evidence;
use crate::footprint;
use crate::images::{self, Built, Options};
use crate::layout::{CONTROL_PLANE, NODES};
use crate::namespace::is_ready;
use crate::progress::{step, wait_until};

/// What Helm knows it by.
const RELEASE: &str = "wardline";

/// Imports the images, installs or upgrades the chart, and waits until every node enforces.
pub async fn install(lab: &Lab, options: &Options, built: &[Built]) -> Result<()> {
    let changed = images::import(lab.layout(), built)?;
    let pods: Api<Pod> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
    let before = pods.list(&ListParams::default()).await.context("failed to list pods")?;
    if before.items.is_empty() {
        footprint::remember(lab)?;
    }
    install_chart(lab, &values(options)).await?;
    if changed && !before.items.is_empty() {
        restart(lab).await?;
    }
    all_ready(lab).await
}

/// Installs or upgrades the chart with these values, each `KEY=VALUE`.
pub async fn install_chart(lab: &Lab, values: &[String]) -> Result<()> {
    upgrade_chart(lab, values, &[])?;
    all_ready(lab).await
}

/// The same with further arguments of `helm upgrade`, and without waiting for what comes of it.
///
/// # Errors
/// With what Helm said.
pub fn upgrade_chart(lab: &Lab, values: &[String], arguments: &[&str]) -> Result<()> {
    step("installing Wardline by its chart");
    let mut command = helm(lab);
    command.args(["upgrade", "--install", RELEASE]);
    command
        .arg(chart::folder(lab.layout()))
        .arg("--create-namespace")
        .args(arguments);
    for value in values {
        // Or a tag like 1.0 would be a number.
        let is_tag = value
            .split('=')
            .next()
            .is_some_and(|key| key.split('.').next_back() == Some("tag"));
        command.arg(if is_tag { "--set-string" } else { "--set" }).arg(value);
    }
    output_of(&mut command).map(drop)
}

/// Installs plain manifests the way that users do: what comes first, then what needs its definitions.
pub async fn install_manifests(lab: &Lab, folder: &Path, arguments: &[&str]) -> Result<()> {
    step("installing Wardline by plain manifests");
    for file in ["install.yaml", "dataplane.yaml"] {
        apply(lab, &folder.join(file), arguments)?;
        let established = "--for=condition=Established";
        output_of(kubectl(lab).args(["wait", established, "crd/dataplanes.wardline.io", "--timeout=30s"]))?;
    }
    all_ready(lab).await
}

/// `kubectl apply` of a file or a folder, with further arguments.
pub fn apply(lab: &Lab, path: &Path, arguments: &[&str]) -> Result<()> {
    output_of(kubectl(lab).arg("apply").args(arguments).arg("--filename").arg(path)).map(drop)
}

/// What `helm test` prints.
///
/// # Errors
/// When a test fails; the message holds what Helm said.
pub fn test(lab: &Lab) -> Result<String> {
    step("testing Wardline by its chart");
    output_of(helm(lab).args(["test", RELEASE, "--timeout=3m"]))
}

/// The administrator's kubectl.
pub fn kubectl(lab: &Lab) -> Command {
    let mut command = Command::new(lab.layout().bin("kubectl"));
    command.arg(format!("--kubeconfig={}", lab.layout().kubeconfig().display()));
    command
}

/// The values that the chart is installed with, as `helm get values` prints them.
pub fn values_in_use(lab: &Lab) -> Result<Vec<String>> {
    let values = output_of(helm(lab).args(["get", "values", RELEASE, "--output=json"]))?;
    let values = serde_json::from_str(&values).context("failed to read the chart's values")?;
    let mut flat = Vec::new();
    flatten(&values, "", &mut flat);
    Ok(flat)
}

fn flatten(value: &serde_json::Value, at: &str, into: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                let at = if at.is_empty() {
                    key.clone()
                } else {
                    format!("{at}.{key}")
                };
                flatten(value, &at, into);
            }
        }
        serde_json::Value::String(text) => into.push(format!("{at}={text}")),
        other => into.push(format!("{at}={other}")),
    }
}

/// Takes Wardline off the cluster as users do, and returns what Helm printed.
pub fn uninstall(lab: &Lab) -> Result<String> {
    step("uninstalling Wardline by its chart");
    output_of(helm(lab).args(["uninstall", RELEASE, "--wait", "--timeout=5m"]))
}

/// What the chart makes only for as long as its hooks run, as YAML documents.
pub fn hooks(lab: &Lab) -> Result<String> {
    output_of(helm(lab).args(["get", "hooks", RELEASE]))
}

async fn all_ready(lab: &Lab) -> Result<()> {
    if let Err(error) = wait_ready(lab).await {
        return Err(error).context(evidence::collect(lab, SYSTEM_NAMESPACE).await);
    }
    Ok(())
}

fn helm(lab: &Lab) -> Command {
    let mut command = chart::helm(lab.layout());
    command.arg(format!("--namespace={SYSTEM_NAMESPACE}"));
    command.arg(format!("--kubeconfig={}", lab.layout().kubeconfig().display()));
    command
}

fn values(options: &Options) -> Vec<String> {
    let mut values = vec![
        // No kube-proxy runs in the lab, so the Service of the API server leads nowhere.
        format!("apiServer.host={CONTROL_PLANE}"),
        "apiServer.port=6443".into(),
        // Its nodes share the disk of the machine, and kubelets that evict nobody for it.
        "dataplane.spec.logging.file.minFreePercent=1".into(),
        "dataplane.spec.metrics.policies=100".into(),
        // Tests change the Dataplane, and wait for each node.
        "dataplane.spec.daemon.rollout.minReadySeconds=2".into(),
    ];
    for (chart, image) in [("operator", "operator"), ("daemon", "node")] {
        values.push(format!("{chart}.image.repository={}/{image}", options.prefix));
        values.push(format!("{chart}.image.tag={}", options.version));
    }
    values
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
        // A daemon and an operator on each node.
        Ok((new && all.len() >= 2 * NODES.len()).then_some(()))
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
