// SPDX-License-Identifier: Apache-2.0
//! The wires of the lab: a bridge, and a network namespace with an uplink for each node.
//!
//! ```text
//!   wardline0 (10.77.0.1/24) --+-- wardline-n1 ==veth== eth0 (10.77.0.11) in wardline-node1
//!                              +-- wardline-n2 ==veth== eth0 (10.77.0.12) in wardline-node2
//! ```

use std::path::Path;

use anyhow::Result;

use crate::bench::wires;
use crate::command::{run, run_line};
use crate::layout::{BRIDGE, CONTROL_PLANE, NODES, NodeSpec};

/// Makes the bridge and the nodes' namespaces, with routes between the nodes' pods.
pub fn create() -> Result<()> {
    run_line(&format!("ip link add {BRIDGE} type bridge"))?;
    run_line(&format!("ip address add {CONTROL_PLANE}/24 dev {BRIDGE}"))?;
    run_line(&format!("ip link set {BRIDGE} up"))?;
    for node in &NODES {
        create_node(node)?;
    }
    Ok(())
}

fn create_node(node: &NodeSpec) -> Result<()> {
    let NodeSpec {
        netns,
        uplink,
        address,
        pod_cidr,
        ..
    } = node;
    run_line(&format!("ip netns add {netns}"))?;
    run_line(&format!("ip link add {uplink} type veth peer name eth0 netns {netns}"))?;
    run_line(&format!("ip link set {uplink} master {BRIDGE} up"))?;
    run_line(&format!("ip -n {netns} address add {address}/24 dev eth0"))?;
    run_line(&format!("ip -n {netns} link set eth0 up"))?;
    run_line(&format!("ip -n {netns} link set lo up"))?;
    run_line(&format!("ip -n {netns} route add default via {CONTROL_PLANE}"))?;
    for other in NODES.iter().filter(|other| *other != node) {
        run_line(&format!(
            "ip -n {netns} route add {} via {}",
            other.pod_cidr, other.address
        ))?;
    }
    // This machine reaches pods too: it plays the client from outside of the cluster.
    run_line(&format!("ip route add {pod_cidr} via {address} dev {BRIDGE}"))?;
    Ok(())
}

/// Removes what [`create`] makes, as far as it is there, and what a benchmark that was killed left behind.
pub fn remove() -> Result<()> {
    wires::remove()?;
    for node in &NODES {
        if link_exists(node.uplink) {
            run_line(&format!("ip link delete {}", node.uplink))?;
        }
        if netns_exists(node) {
            run_line(&format!("ip netns delete {}", node.netns))?;
        }
    }
    if link_exists(BRIDGE) {
        run_line(&format!("ip link delete {BRIDGE}"))?;
    }
    Ok(())
}

/// What of this is there, for a report.
pub fn leftovers() -> Vec<String> {
    let mut left = Vec::new();
    for link in NODES.iter().map(|node| node.uplink).chain([BRIDGE]) {
        if link_exists(link) {
            left.push(format!("interface {link}"));
        }
    }
    left.extend(
        NODES
            .iter()
            .filter(|node| netns_exists(node))
            .map(|node| format!("network namespace {}", node.netns)),
    );
    left.extend(
        wires::leftovers()
            .into_iter()
            .map(|name| format!("network namespace {name}")),
    );
    left
}

fn link_exists(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}

fn netns_exists(node: &NodeSpec) -> bool {
    Path::new("/run/netns").join(node.netns).exists()
}

/// Runs a command in a node's network namespace. Not with `ip netns exec`, which mounts a fresh /sys over the cgroups.
pub fn run_in(node: &NodeSpec, args: &[&str]) -> Result<String> {
    let enter = format!("--net=/run/netns/{}", node.netns);
    run("nsenter", [enter.as_str(), "--"].iter().chain(args))
}
