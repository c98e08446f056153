// SPDX-License-Identifier: Apache-2.0
//! What connects the pods of a node: the CNI configuration, the kernel's settings and the way out of the cluster.
//!
//! ```text
//!   node1   pod ==veth== node           ptp: a link a pod, the node routes
//!   node2   pod ==veth== cni0 == node   bridge: one link layer for all pods of the node
//!
//!   pod -> pod, any node                its own address
//!   pod -> anybody else                 masqueraded behind the node's
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::command::run_line;
use crate::layout::{NodeSpec, POD_CIDR, POD_CIDR6, Plugin};
use crate::network;

/// Settings of the kernel in the node's network namespace.
const SETTINGS: [(&str, &str); 3] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    // The node's ends of its pods' links are usable at once: nobody else can have their addresses.
    ("ipv6/conf/default/accept_dad", "0"),
];
/// Whether a bridge takes what it forwards between its pods to the host's tables; there with `br_netfilter` only.
const BRIDGE_SETTINGS: [&str; 2] = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];

/// The file of [`conflist`] in the folder of CNI configurations.
pub const CONFLIST: &str = "10-lab.conflist";

/// The name of the network in it.
pub const NETWORK: &str = "lab";
/// Where the IPAM plugin keeps which addresses are taken.
pub const IPAM_DIR: &str = "/var/lib/cni/ipam";

/// The node's CNI configuration.
pub fn conflist(node: &NodeSpec) -> Value {
    let mut plugin = match node.plugin {
        Plugin::Ptp => json!({"type": "ptp"}),
        Plugin::Bridge => json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true}),
    };
    // Masquerading is the node's, below: the plugins' own would hide pods from those of other nodes.
    plugin["ipMasq"] = false.into();
    plugin["ipam"] = json!({
        "type": "host-local",
        "ranges": [[{"subnet": node.pod_cidr}], [{"subnet": node.pod_cidr6}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dataDir": IPAM_DIR,
    });
    json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": [plugin]})
}

/// Prepares the network namespace that the process is in for the node's pods.
///
/// Bridges forward by themselves, as they do where the module `br_netfilter` is not loaded: the harder case.
pub fn prepare(node: &NodeSpec) -> Result<()> {
    // Written from inside: /proc/sys/net is that of the process's network namespace.
    let write = |setting: &str, value: &str| {
        let path = setting_path(setting);
        fs::write(&path, value).with_context(|| format!("failed to write {}", path.display()))
    };
    for (setting, value) in SETTINGS {
        write(setting, value)?;
    }
    for setting in bridge_settings() {
        write(setting, "0")?;
    }
    run_line("nft add table inet lab")?;
    run_line("nft add chain inet lab postrouting { type nat hook postrouting priority srcnat ; }")?;
    let NodeSpec {
        pod_cidr, pod_cidr6, ..
    } = node;
    for (family, own, all) in [("ip", pod_cidr, POD_CIDR), ("ip6", pod_cidr6, POD_CIDR6)] {
        run_line(&format!(
            "nft add rule inet lab postrouting oifname eth0 {family} saddr {own} {family} daddr != {all} masquerade"
        ))?;
    }
    Ok(())
}

/// Lets the node's bridge ask the host's tables, or not. kube-proxy needs it: without, an answer from a pod of the same
/// bridge is not translated back. Does nothing where `br_netfilter` is not loaded.
pub fn set_bridge_settings(node: &NodeSpec, ask: bool) -> Result<()> {
    for setting in bridge_settings() {
        let command = format!("echo {} > {}", u8::from(ask), setting_path(setting).display());
        network::run_in(node.netns, &["sh", "-c", &command])?;
    }
    Ok(())
}

fn bridge_settings() -> impl Iterator<Item = &'static str> {
    BRIDGE_SETTINGS
        .into_iter()
        .filter(|setting| setting_path(setting).exists())
}

fn setting_path(setting: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(setting)
}
