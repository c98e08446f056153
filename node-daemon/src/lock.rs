// SPDX-License-Identifier: Apache-2.0
//! One daemon a node: two would take the kernel from each other.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

const FILE: &str = "lock";

/// Taken until it is dropped; refused while another daemon holds it.
pub fn take(directory: &Path) -> Result<Flock<File>> {
    std::fs::create_dir_all(directory).with_context(|| format!("failed to make {}", directory.display()))?;
    let path = directory.join(FILE);
    // Whoever may open it may lock it, and keep the daemon from starting.
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.with_context(|| format!("failed to open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow!(
            "failed to lock {}: {error}: a Wardline daemon runs on this node",
            path.display()
        )
    })
}

/// None where no daemon has run since the node started.
pub fn take_if_there(directory: &Path) -> Result<Option<Flock<File>>> {
    if directory.join(FILE).exists() {
        take(directory).map(Some)
    } else {
        Ok(None)
    }
}
