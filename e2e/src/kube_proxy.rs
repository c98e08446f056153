// SPDX-License-Identifier: Apache-2.0
//! kube-proxy on each node, for tests that go through node ports. The lab runs without it otherwise.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::layout::{Layout, NODES, NodeSpec, POD_CIDR, POD_CIDR6};
use crate::network::run_in;
use crate::pod_network;
use crate::process;
use crate::progress::{step, wait_until};

/// Starts it on every node where it does not run yet, and waits until its rules are there.
pub async fn start(layout: &Layout) -> Result<()> {
    let recorded = process::recorded(layout)?;
    for node in &NODES {
        let name = name(node);
        if recorded.iter().any(|one| one.name == name && one.is_alive()) {
            continue;
        }
        step(&format!("starting kube-proxy on {}", node.name));
        pod_network::set_bridge_settings(node, true)?;
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
                let tables = run_in(node.netns, &["nft", "list", "tables"]).context("failed to list rules")?;
                Ok(tables.contains("kube-proxy").then_some(()))
            },
        )
        .await?;
    }
    Ok(())
}

/// Ends it on every node where it runs, and removes its rules: what Services there are from then on is Wardline's.
pub fn stop(layout: &Layout) -> Result<()> {
    for node in &NODES {
        let name = name(node);
        for proxy in process::recorded(layout)?.iter().filter(|one| one.name == name) {
            step(&format!("ending kube-proxy on {}", node.name));
            proxy.end(Duration::from_secs(5))?;
            process::forget(layout, &name)?;
        }
        let tables = run_in(node.netns, &["nft", "list", "tables"])?;
        for table in tables.lines().filter(|table| table.ends_with("kube-proxy")) {
            let words: Vec<&str> = ["nft", "delete"].into_iter().chain(table.split(' ')).collect();
            run_in(node.netns, &words)?;
        }
        pod_network::set_bridge_settings(node, false)?;
    }
    Ok(())
}

fn name(node: &NodeSpec) -> String {
    format!("{}-kube-proxy", node.name)
}
