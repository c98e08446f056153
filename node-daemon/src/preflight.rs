// SPDX-License-Identifier: Apache-2.0
//! What the node must have, checked before anything is touched: each error says what to do.

use std::path::{Path, PathBuf};

use crate::mapping::wait_for_programs;
use caps::{CapSet, Capability};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// tcx came with 6.6.
const OLDEST: (u32, u32) = (6, 6);
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Maps and programs; network programs and interfaces; the verifier's view of pointers.
const NEEDED: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    #[error("kernel {release} is too old: Wardline needs {}.{} or later", OLDEST.0, OLDEST.1)]
    KernelTooOld { release: String },
    #[error("failed to read the kernel's release {0:?}")]
    Release(String),
    #[error("{BTF} is not there: the node's kernel must be built with CONFIG_DEBUG_INFO_BTF=y")]
    NoBtf,
    #[error(
        "{path} is no bpf file system: mount one on the node (mount -t bpf bpf {path}) and into the daemon's container"
    )]
    NoBpffs { path: PathBuf },
    #[error("capability {missing} is missing: add it to securityContext.capabilities of the daemon's container")]
    NoCapability { missing: Capability },
    #[error(
        "the kernel refuses membarrier(MEMBARRIER_CMD_GLOBAL): {0}; it is not there with the boot option nohz_full"
    )]
    NoMembarrier(std::io::Error),
    #[error("failed to read the process's capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
}

/// Checks the node and returns the kernel's release.
pub fn check(bpffs: &Path) -> Result<String, PreflightError> {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .map_err(|error| PreflightError::Release(error.to_string()))?;
    check_release(&release)?;
    if !Path::new(BTF).exists() {
        return Err(PreflightError::NoBtf);
    }
    if !statfs(bpffs).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Err(PreflightError::NoBpffs { path: bpffs.to_owned() });
    }
    wait_for_programs().map_err(PreflightError::NoMembarrier)?;
    let effective = caps::read(None, CapSet::Effective)?;
    match NEEDED.into_iter().find(|capability| !effective.contains(capability)) {
        Some(missing) => Err(PreflightError::NoCapability { missing }),
        None => Ok(release),
    }
}

fn check_release(release: &str) -> Result<(), PreflightError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(PreflightError::Release(release.to_owned()));
    };
    if (major, minor) < OLDEST {
        return Err(PreflightError::KernelTooOld {
            release: release.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (release, expected) in [
            ("6.6.0", "ok"),
            ("6.18.44-fc", "ok"),
            ("7.0", "ok"),
            (
                "6.1.0-28-amd64",
                "kernel 6.1.0-28-amd64 is too old: Wardline needs 6.6 or later",
            ),
            ("5.10.0", "kernel 5.10.0 is too old: Wardline needs 6.6 or later"),
            ("linux", "failed to read the kernel's release \"linux\""),
        ] {
            let found = check_release(release).map_or_else(|error| error.to_string(), |()| "ok".to_owned());
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_is_no_bpffs_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let error = check(directory.path()).unwrap_err();
        assert!(error.to_string().contains("mount -t bpf bpf"), "{error}");
    }
}
