// SPDX-License-Identifier: Apache-2.0
//! What a node is like, as far as something that was installed on it could have left a trace: kept from before Wardline
//! was there, and compared when it has gone.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result};

use crate::cluster::{Lab, LabNode};
use crate::layout::NODES;

/// A line for each thing: what it is, and where.
pub type Footprint = BTreeSet<String>;

/// Each prints lines, in the node's own namespaces. What pods alone bring, and take along, is left out: their interfaces
/// and their mounts.
const LOOKS: [(&str, &str); 6] = [
    (
        "mount",
        "busybox cut -d' ' -f2,3 /proc/self/mounts | busybox grep -v -e /kubelet/ -e /containerd/ -e /netns/",
    ),
    (
        "interface",
        "for i in $(busybox ls /sys/class/net); do case $i in veth*) ;; *) echo $i;; esac; done",
    ),
    (
        "filter",
        "for i in $(busybox ls /sys/class/net); do for h in ingress egress; do \
         tc filter show dev $i $h | busybox sed \"s/^/$i $h /\"; done; done",
    ),
    ("pin", "busybox find /sys/fs/bpf"),
    ("file", "busybox find /run/wardline /opt/cni/bin 2> /dev/null"),
    ("configuration", "busybox sha256sum /etc/cni/net.d/*"),
];

/// What the node is like now.
pub fn of(node: &LabNode<'_>) -> Result<Footprint> {
    let mut found = Footprint::new();
    for (what, script) in LOOKS {
        // A look that finds nothing ends as grep does.
        let lines = node.run(&["busybox", "sh", "-c", &format!("{script}; true")])?;
        found.extend(lines.lines().map(|line| format!("{what}: {line}")));
    }
    Ok(found)
}

/// Keeps what the nodes are like before anything is installed.
pub fn remember(lab: &Lab) -> Result<()> {
    for (node, spec) in lab.nodes().iter().zip(&NODES) {
        let lines: Vec<String> = of(node)?.into_iter().collect();
        let path = lab.layout().run().join(format!("{}.footprint", spec.name));
        fs::write(&path, lines.join("\n")).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// What each node has now and had not then (`+`), or had and has no more (`-`).
pub fn changes(lab: &Lab) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    for (node, spec) in lab.nodes().iter().zip(&NODES) {
        let path = lab.layout().run().join(format!("{}.footprint", spec.name));
        let then = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let (then, now): (Footprint, Footprint) = (then.lines().map(Into::into).collect(), of(node)?);
        changes.extend(now.difference(&then).map(|line| format!("{}: + {line}", spec.name)));
        changes.extend(then.difference(&now).map(|line| format!("{}: - {line}", spec.name)));
    }
    Ok(changes)
}
