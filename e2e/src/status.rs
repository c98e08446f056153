// SPDX-License-Identifier: Apache-2.0
//! What of the lab runs.

use anyhow::Result;

use crate::cluster::Lab;
use crate::layout::{Layout, NODES};
use crate::process;

/// Prints the recorded processes, and what each node says of itself.
pub async fn show(layout: &Layout) -> Result<()> {
    let recorded = process::recorded(layout)?;
    if recorded.is_empty() {
        println!("the lab is not up: `make lab` starts it");
        return Ok(());
    }
    for one in &recorded {
        let state = if one.is_alive() { "runs" } else { "has ended" };
        println!("{:<26} {state:<10} pid {:<8} {}", one.name, one.pid, one.log.display());
    }
    let lab = Lab::connect().await?;
    for node in &NODES {
        let object = lab.get("v1", "Node", "", node.name).await?;
        let ready = crate::wardline::is_true(&object.data["status"], "Ready");
        let wardline = match lab.get("wardline.io/v1alpha1", "DataplaneNode", "", node.name).await {
            Ok(object) if crate::wardline::is_true(&object.data["status"], "Ready") => "ready",
            Ok(_) => "not ready",
            Err(_) => "not installed",
        };
        println!(
            "{:<26} {:<10} Wardline is {wardline}",
            node.name,
            if ready { "ready" } else { "not ready" }
        );
    }
    Ok(())
}
