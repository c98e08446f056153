// SPDX-License-Identifier: Apache-2.0
//! What the pods' network is compared with: the same without Wardline, and next to nothing.
//!
//! ```text
//!   routed   a ==veth== node1 ==veth== b     host routes and a gateway, as the ptp plugin makes them for pods
//!   direct   c ==========veth========== d    two namespaces, and nobody between them
//! ```

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::command::run_line;
use crate::layout::NodeSpec;

/// Where a server or a client of a benchmark runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file of its network namespace.
    pub netns: PathBuf,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Namespaces of benchmarks.
const ROUTED: [&str; 2] = ["wardline-bench-a", "wardline-bench-b"];
const DIRECT: [&str; 2] = ["wardline-bench-c", "wardline-bench-d"];
/// Where the far ends of pods' veths are that no runtime has made.
const PODS: &str = "wardline-bench-pods";
/// Outside of the ranges of nodes, pods and Services.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);

/// The namespaces; gone when this is dropped.
#[derive(Debug)]
pub struct Wires {
    /// Client and server over the node.
    pub routed: [Place; 2],
    /// Client and server on one wire.
    pub direct: [Place; 2],
}

impl Wires {
    /// Hangs two namespaces into the node as its pods are, and makes two more that have nothing to do with it.
    pub fn create(node: &NodeSpec) -> Result<Self> {
        remove()?;
        let routed = ROUTED.map(|name| name.trim_start_matches("wardline-"));
        for ((name, link), host) in ROUTED.iter().zip(routed).zip(2..) {
            hang(node, name, link, Ipv4Addr::new(10, 79, 0, host))?;
        }
        for name in DIRECT {
            run_line(&format!("ip netns add {name}"))?;
        }
        let [c, d] = DIRECT;
        run_line(&format!("ip -n {c} link add eth0 type veth peer name eth0 netns {d}"))?;
        for (name, host) in DIRECT.iter().zip(2..) {
            run_line(&format!("ip -n {name} address add 10.79.1.{host}/24 dev eth0"))?;
            run_line(&format!("ip -n {name} link set eth0 up"))?;
        }
        Ok(Self {
            routed: places(ROUTED, 0),
            direct: places(DIRECT, 1),
        })
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        // What stays is removed by the next benchmark, or when the lab goes down.
        let _ = remove();
    }
}

/// Veths of a node as a CNI plugin makes them for pods; gone when this is dropped.
#[derive(Debug)]
pub struct PodWires {
    /// Names on the node's side, and the pods' addresses.
    pub pods: Vec<(String, Ipv4Addr)>,
    /// The node's network namespace.
    netns: &'static str,
}

impl PodWires {
    /// At most 200.
    pub fn create(node: &NodeSpec, count: u8) -> Result<Self> {
        let wires = Self {
            pods: (1..=count)
                .map(|host| (format!("bench-p{host}"), Ipv4Addr::new(10, 79, 2, host)))
                .collect(),
            netns: node.netns,
        };
        run_line(&format!("ip netns add {PODS}"))?;
        for (link, address) in &wires.pods {
            let netns = node.netns;
            run_line(&format!(
                "ip -n {netns} link add {link} type veth peer name {link} netns {PODS}"
            ))?;
            run_line(&format!("ip -n {PODS} address add {address}/32 dev {link}"))?;
            run_line(&format!("ip -n {netns} link set {link} up"))?;
        }
        Ok(wires)
    }
}

impl Drop for PodWires {
    fn drop(&mut self) {
        // As with `Wires`. A namespace takes its links along some time after it was deleted; the next are called the same.
        for (link, _) in &self.pods {
            let _ = run_line(&format!("ip -n {} link delete {link}", self.netns));
        }
        let _ = run_line(&format!("ip netns delete {PODS}"));
    }
}

/// Removes the namespaces, and with them their links.
pub fn remove() -> Result<()> {
    for name in leftovers() {
        run_line(&format!("ip netns delete {name}"))?;
    }
    Ok(())
}

/// The namespaces that are there.
pub fn leftovers() -> Vec<&'static str> {
    let mut names = [&ROUTED[..], &DIRECT, &[PODS]].concat();
    names.retain(|name| path(name).exists());
    names
}

fn places(names: [&str; 2], net: u8) -> [Place; 2] {
    let [client, server] = names.map(path);
    [(client, 2), (server, 3)].map(|(netns, host)| Place {
        netns,
        address: Ipv4Addr::new(10, 79, net, host),
    })
}

fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn hang(node: &NodeSpec, name: &str, link: &str, address: Ipv4Addr) -> Result<()> {
    let netns = node.netns;
    run_line(&format!("ip netns add {name}"))?;
    run_line(&format!(
        "ip -n {netns} link add {link} type veth peer name eth0 netns {name}"
    ))?;
    run_line(&format!("ip -n {netns} address add {GATEWAY}/32 dev {link}"))?;
    run_line(&format!("ip -n {netns} link set {link} up"))?;
    run_line(&format!("ip -n {name} address add {address}/32 dev eth0"))?;
    run_line(&format!("ip -n {name} link set eth0 up"))?;
    run_line(&format!("ip -n {name} route add {GATEWAY} dev eth0 scope link"))?;
    run_line(&format!("ip -n {name} route add default via {GATEWAY}"))?;
    run_line(&format!("ip -n {netns} route add {address} dev {link} scope host"))?;
    Ok(())
}
