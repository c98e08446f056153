// SPDX-License-Identifier: Apache-2.0
//! Which addresses the nodes' IPAM plugin, host-local, has given out, and which it gives out next.
//!
//! It keeps a file for each address that is taken, named by the address, and the last that it gave out of each range:
//! the next is the one after that, if it is free.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, Result};

use crate::layout::{Layout, NodeSpec};
use crate::pod_network::{IPAM_DIR, NETWORK};

/// The plugin's files of a node.
#[derive(Debug, Clone)]
pub struct Ipam {
    folder: PathBuf,
}

impl Ipam {
    /// Those of a node of the lab.
    pub fn of(layout: &Layout, node: &NodeSpec) -> Self {
        let folder = layout.node_path(node, IPAM_DIR).join(NETWORK);
        Self { folder }
    }

    /// The addresses that are taken, and since when.
    pub fn taken(&self) -> Result<BTreeMap<IpAddr, SystemTime>> {
        let shown = self.folder.display();
        let mut taken = BTreeMap::new();
        let entries = match fs::read_dir(&self.folder) {
            // Made for the first pod of the node.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(taken),
            entries => entries.with_context(|| format!("failed to read {shown}"))?,
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("failed to read {shown}"))?;
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // It may be given back while one looks.
            if let Ok(since) = entry.metadata().and_then(|metadata| metadata.modified()) {
                taken.insert(address, since);
            }
        }
        Ok(taken)
    }

    /// Has the addresses after these, one a family in the order of the ranges, given out next, if nobody has them.
    pub fn begin_after(&self, last: [IpAddr; 2]) -> Result<()> {
        for (range, address) in last.iter().enumerate() {
            let path = self.folder.join(format!("last_reserved_ip.{range}"));
            fs::write(&path, address.to_string()).with_context(|| format!("failed to write {}", path.display()))?;
        }
        Ok(())
    }

    /// Gives an address back that a pod still has.
    pub fn release(&self, address: IpAddr) -> Result<()> {
        let path = self.folder.join(address.to_string());
        fs::remove_file(&path).with_context(|| format!("failed to remove {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::Ipam;

    #[test]
    fn what_is_taken_are_the_files_named_by_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let ipam = Ipam {
            folder: folder.path().to_owned(),
        };
        let last = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        ipam.begin_after(last).unwrap();
        assert!(ipam.taken().unwrap().is_empty());
        std::fs::write(folder.path().join("fd00::2"), "a container").unwrap();
        let address = "fd00::2".parse().unwrap();
        assert!(ipam.taken().unwrap().contains_key(&address));
        ipam.release(address).unwrap();
        assert!(ipam.taken().unwrap().is_empty());
    }
}
