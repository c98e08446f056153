// SPDX-License-Identifier: Apache-2.0
//! Programs that only some tests need: Debian's packages, unpacked into `target/tools` and not installed, as installing
//! would start their services on this machine.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::output_of;
use crate::layout::Layout;
use crate::progress::step;

/// The folder that holds the files of these packages, as they would be below `/`. Libraries that every Debian has are
/// taken from the machine.
pub fn debian(layout: &Layout, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = layout.tools().join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    step(&format!("unpacking {} from Debian", packages.join(", ")));
    fs::create_dir_all(layout.tools()).with_context(|| format!("failed to create {}", layout.tools().display()))?;
    let work = tempfile::tempdir_in(layout.tools()).context("failed to create a folder in target/tools")?;
    let mut download = Command::new("apt-get");
    download.args(["--quiet", "download"]).args(packages).current_dir(&work);
    if output_of(&mut download).is_err() {
        // The machine's lists are older than the packages, or it has none yet.
        output_of(Command::new("apt-get").args(["--quiet", "update"]))?;
        output_of(&mut download)?;
    }
    let root = work.path().join("root");
    for entry in fs::read_dir(work.path()).context("failed to read a folder in target/tools")? {
        let path = entry.context("failed to read a folder in target/tools")?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            output_of(Command::new("dpkg-deb").arg("--extract").arg(path).arg(&root))?;
        }
    }
    match fs::rename(&root, &folder) {
        // Another test was faster.
        Err(_) if folder.is_dir() => Ok(folder),
        Err(error) => bail!("failed to rename {} to {}: {error}", root.display(), folder.display()),
        Ok(()) => Ok(folder),
    }
}
