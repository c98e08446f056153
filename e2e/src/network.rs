// SPDX-License-Identifier: Apache-2.0
//! The wires of the lab: a bridge, and a network namespace with an uplink for each node.
//!
//! ```text
//!   wardline0 (10.77.0.1/24) --+-- wardline-n1 ==veth== eth0 (10.77.0.11) in wardline-node1
//!                              +-- wardline-n2 ==veth== eth0 (10.77.0.12) in wardline-node2
//!                              +-- wardline-nx ==veth== eth0 (10.77.0.99) in wardline-outside
//! ```
//!
//! The same once more with IPv6: `fd00:10:77::1/64`, `::11`, `::12` and `::99`. Nobody else can be on this bridge, so addresses
//! are usable at once, without a search for duplicates.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::bench::wires;
use crate::command::{output_of, run_line};
use crate::layout::{BRIDGE, CONTROL_PLANE, CONTROL_PLANE6, NODES, NodeSpec, OUTSIDE};

/// Makes the bridge and the nodes' namespaces, with routes between the nodes' pods.
pub fn create() -> Result<()> {
    run_line(&format!("ip link add {BRIDGE} type bridge"))?;
    run_line(&format!("ip address add {CONTROL_PLANE}/24 dev {BRIDGE}"))?;
    run_line(&format!("ip address add {CONTROL_PLANE6}/64 dev {BRIDGE} nodad"))?;
    run_line(&format!("ip link set {BRIDGE} up"))?;
    for node in &NODES {
        create_node(node)?;
    }
    create_uplink(OUTSIDE.netns, OUTSIDE.uplink, OUTSIDE.address, OUTSIDE.address6)
}

/// A network namespace on the bridge.
fn create_uplink(netns: &str, uplink: &str, address: &str, address6: &str) -> Result<()> {
    run_line(&format!("ip netns add {netns}"))?;
    run_line(&format!("ip link add {uplink} type veth peer name eth0 netns {netns}"))?;
    run_line(&format!("ip link set {uplink} master {BRIDGE} up"))?;
    run_line(&format!("ip -n {netns} address add {address}/24 dev eth0"))?;
    run_line(&format!("ip -n {netns} address add {address6}/64 dev eth0 nodad"))?;
    run_line(&format!("ip -n {netns} link set eth0 up"))?;
    run_line(&format!("ip -n {netns} link set lo up"))?;
    Ok(())
}

fn create_node(node: &NodeSpec) -> Result<()> {
    let NodeSpec {
        netns,
        address,
        address6,
        pod_cidr,
        pod_cidr6,
        ..
    } = node;
    create_uplink(netns, node.uplink, address, address6)?;
    run_line(&format!("ip -n {netns} route add default via {CONTROL_PLANE}"))?;
    run_line(&format!("ip -n {netns} -6 route add default via {CONTROL_PLANE6}"))?;
    for other in NODES.iter().filter(|other| *other != node) {
        run_line(&format!(
            "ip -n {netns} route add {} via {}",
            other.pod_cidr, other.address
        ))?;
        run_line(&format!(
            "ip -n {netns} -6 route add {} via {}",
            other.pod_cidr6, other.address6
        ))?;
    }
    // This machine reaches pods too: it plays the client from outside of the cluster.
    run_line(&format!("ip route add {pod_cidr} via {address} dev {BRIDGE}"))?;
    run_line(&format!("ip -6 route add {pod_cidr6} via {address6} dev {BRIDGE}"))?;
    Ok(())
}

/// Removes what [`create`] makes, as far as it is there, and what a benchmark that was killed left behind.
pub fn remove() -> Result<()> {
    wires::remove()?;
    for link in links().filter(|link| link_exists(link)) {
        run_line(&format!("ip link delete {link}"))?;
    }
    for netns in namespaces().filter(|netns| netns_exists(netns)) {
        run_line(&format!("ip netns delete {netns}"))?;
    }
    Ok(())
}

/// What of this is there, for a report.
pub fn leftovers() -> Vec<String> {
    let links = links()
        .filter(|link| link_exists(link))
        .map(|link| format!("interface {link}"));
    let namespaces = namespaces()
        .filter(|netns| netns_exists(netns))
        .chain(wires::leftovers());
    links
        .chain(namespaces.map(|name| format!("network namespace {name}")))
        .collect()
}

fn links() -> impl Iterator<Item = &'static str> {
    NODES.iter().map(|node| node.uplink).chain([OUTSIDE.uplink, BRIDGE])
}

fn namespaces() -> impl Iterator<Item = &'static str> {
    NODES.iter().map(|node| node.netns).chain([OUTSIDE.netns])
}

fn link_exists(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}

fn netns_exists(netns: &str) -> bool {
    Path::new("/run/netns").join(netns).exists()
}

/// Runs a command in one of the lab's network namespaces. Not with `ip netns exec`, which mounts a fresh /sys over the
/// cgroups.
pub fn run_in(netns: &str, args: &[&str]) -> Result<String> {
    output_of(&mut command_in(netns, args))
}

/// A command in one of the lab's network namespaces, not yet started.
pub fn command_in(netns: &str, args: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{netns}")).arg("--").args(args);
    command
}
