// SPDX-License-Identifier: Apache-2.0
//! kube-proxy on each node, for tests that go through Services. The lab runs without it otherwise.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::layout::{Layout, NODES, POD_CIDR, POD_CIDR6};
use crate::pod_network;
use crate::process;
use crate::progress::{step, wait_until};

/// Starts it on every node where it does not run yet, and waits until its rules are there.
pub async fn start(layout: &Layout) -> Result<()> {
    let recorded = process::recorded(layout)?;
    for node in &NODES {
        let name = format!("{}-kube-proxy", node.name);
        if recorded.iter().any(|one| one.name == name && one.is_alive()) {
            continue;
        }
        step(&format!("starting kube-proxy on {}", node.name));
        pod_network::let_bridges_ask(node)?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", node.netns))
            .arg("--")
            .arg(layout.bin("kube-proxy"));
        command.arg(format!(
            "--kubeconfig={}",
            layout.pki("kube-proxy.kubeconfig").display()
        ));
        command
            .arg(format!("--hostname-override={}", node.name))
            .arg(format!("--cluster-cidr={POD_CIDR},{POD_CIDR6}"));
        // The sizes of the conntrack table belong to the whole machine and may not be written from a node.
        command.args(["--proxy-mode=nftables", "--conntrack-max-per-core=0"]);
        let proxy = process::start(layout, &name, &command)?;
        wait_until(
            &format!("kube-proxy's rules on {}", node.name),
            Duration::from_secs(30),
            async || {
                proxy.check()?;
                let tables =
                    crate::network::run_in(node.netns, &["nft", "list", "tables"]).context("failed to list rules")?;
                Ok(tables.contains("kube-proxy").then_some(()))
            },
        )
        .await?;
    }
    Ok(())
}
