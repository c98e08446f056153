// SPDX-License-Identifier: Apache-2.0
//! Bringing the cluster up.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt as _};

use crate::layout::{BRIDGE, Layout, NODES, NodeSpec, PRIVATE_DIRS};
use crate::process::Recorded;
use crate::progress::{step, wait_until};
use crate::{control_plane, down, gobuild, image, network, node, pki, preflight, process};

/// Where [`create_mount_points`] notes which directories of this machine it made.
pub const MOUNT_POINTS: &str = "mount-points";

/// Brings the cluster up and waits until both nodes are ready; does nothing where it is up already.
pub async fn up(layout: &Layout) -> Result<()> {
    preflight::check()?;
    gobuild::build(layout)?;
    image::write_base_images(layout)?;
    let running = process::recorded(layout)?;
    if !running.is_empty() && running.iter().all(Recorded::is_alive) {
        wait_nodes_ready(&control_plane::admin_client(layout).await?, &[]).await?;
        step("the lab is up already");
        return Ok(());
    }
    if !running.is_empty() || !network::leftovers().is_empty() {
        step("an earlier lab is there in part: taking it down first");
        down::down(layout)?;
    }
    for folder in ["run", "log", "pki"] {
        let path = layout.lab().join(folder);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).with_context(|| format!("failed to create {}", path.display()))?;
    }
    pki::create(layout)?;
    create_mount_points(layout)?;
    step(&format!(
        "making the bridge {BRIDGE} and the network namespaces of the nodes"
    ));
    network::create()?;
    let client = control_plane::start(layout).await?;
    let mut inits = Vec::new();
    for node in &NODES {
        create_node_object(&client, node).await?;
        step(&format!("starting {}", node.name));
        inits.push(node::start(layout, node).await?);
    }
    wait_nodes_ready(&client, &inits).await?;
    step(&format!(
        "the lab is up: export KUBECONFIG={}",
        layout.kubeconfig().display()
    ));
    Ok(())
}

/// The kubelet would create it too, but then without the range of its pods.
async fn create_node_object(client: &Client, spec: &NodeSpec) -> Result<()> {
    let node: Node = serde_json::from_value(serde_json::json!({
        "metadata": {"name": spec.name},
        "spec": {"podCIDR": spec.pod_cidr, "podCIDRs": [spec.pod_cidr, spec.pod_cidr6]},
    }))
    .context("failed to build a Node")?;
    Api::<Node>::all(client.clone())
        .create(&PostParams::default(), &node)
        .await
        .with_context(|| format!("failed to create Node {}", spec.name))?;
    Ok(())
}

async fn wait_nodes_ready(client: &Client, inits: &[Recorded]) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let ended = wait_until("both nodes to be ready", Duration::from_mins(3), async || {
        if let Some(ended) = inits.iter().find_map(|init| init.check().err()) {
            return Ok(Some(Err(ended)));
        }
        let ready = nodes
            .list(&kube::api::ListParams::default())
            .await?
            .items
            .iter()
            .filter(|node| is_ready(node))
            .count();
        Ok((ready == NODES.len()).then_some(Ok(())))
    });
    ended.await.context("the nodes' logs are in target/lab/log")?
}

fn is_ready(node: &Node) -> bool {
    let known = NODES.iter().any(|spec| spec.name == node.name_any());
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    known && conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// A bind mount needs something to be mounted on. What is not there is made, and noted for [`down::down`] to remove.
fn create_mount_points(layout: &Layout) -> Result<()> {
    let missing: Vec<PathBuf> = PRIVATE_DIRS
        .iter()
        .flat_map(|folder| missing_ancestors(Path::new(folder)))
        .collect();
    let note: Vec<String> = missing.iter().map(|path| path.display().to_string()).collect();
    let file = layout.run().join(MOUNT_POINTS);
    fs::write(&file, note.join("\n")).with_context(|| format!("failed to write {}", file.display()))?;
    for folder in PRIVATE_DIRS {
        fs::create_dir_all(folder).with_context(|| format!("failed to create {folder}"))?;
    }
    Ok(())
}

/// The path and those above it that do not exist, the deepest first.
fn missing_ancestors(path: &Path) -> Vec<PathBuf> {
    path.ancestors()
        .take_while(|path| !path.exists())
        .map(Path::to_path_buf)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::missing_ancestors;

    #[test]
    fn only_what_is_missing_is_noted_the_deepest_first() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("a/b"));
        assert_eq!(missing_ancestors(&b), [b.clone(), a.clone()]);
        std::fs::create_dir(&a).unwrap();
        assert_eq!(missing_ancestors(&b), [b]);
    }
}
