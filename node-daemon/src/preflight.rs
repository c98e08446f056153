// SPDX-License-Identifier: Apache-2.0
//! What the node must have, checked before anything is touched: each error says what to do.

use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use libbpf_rs::ProgramType;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use wardline_crds::AttachKind;

use crate::datapath::attach_kind;
use crate::mapping::wait_for_programs;

/// The oldest that `make test-kernels` tries. Before 5.8 there is neither ring buffer nor `CAP_BPF`.
const OLDEST: (u32, u32) = (5, 10);
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
    #[error(
        "this kernel counts tables as locked memory, and containers may lock {limit} KiB: let the container runtime's \
         service have LimitMEMLOCK=infinity, or give the daemon's container the capability SYS_RESOURCE"
    )]
    LockedMemory {
        /// KiB.
        limit: u64,
    },
    #[error("failed to read the process's capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
}

/// The kernel that the daemon found.
#[derive(Clone, Debug)]
pub struct NodeKernel {
    /// As `uname -r` prints it.
    pub release: String,
    pub attach: AttachKind,
}

impl std::fmt::Display for NodeKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let attach = match self.attach {
            AttachKind::Tcx => "tcx",
            AttachKind::Clsact => "clsact",
        };
        write!(f, "{} ({attach})", self.release)
    }
}

/// Checks the node.
pub fn check(bpffs: &Path) -> Result<NodeKernel, PreflightError> {
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
    if let Some(missing) = NEEDED.into_iter().find(|capability| !effective.contains(capability)) {
        return Err(PreflightError::NoCapability { missing });
    }
    lift_memory_lock()?;
    Ok(NodeKernel {
        release,
        attach: attach_kind(),
    })
}

/// Before 5.11 maps count as locked memory (later they belong to the memory cgroup), of which containers may lock
/// little. There libbpf lifts the limit as it loads; here it is seen in time whether it may.
fn lift_memory_lock() -> Result<(), PreflightError> {
    // The helper came with the same version; libbpf goes by it as well.
    let helper = libbpf_sys::BPF_FUNC_ktime_get_coarse_ns;
    if ProgramType::SocketFilter.is_helper_supported(helper).unwrap_or(true) {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).map_err(|_| {
        let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(_, hard)| hard);
        PreflightError::LockedMemory { limit: limit >> 10 }
    })
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
            ("5.10.0", "ok"),
            ("6.6.0", "ok"),
            ("6.18.44-fc", "ok"),
            ("7.0", "ok"),
            (
                "5.9.0-amd64",
                "kernel 5.9.0-amd64 is too old: Wardline needs 5.10 or later",
            ),
            ("4.19.0", "kernel 4.19.0 is too old: Wardline needs 5.10 or later"),
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
