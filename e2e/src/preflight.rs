// SPDX-License-Identifier: Apache-2.0
//! What the lab needs of the machine, checked before anything is touched.

use std::path::Path;

use anyhow::{Result, bail};

/// Programs, and the Debian package that each comes from.
const PROGRAMS: [(&str, &str); 12] = [
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("go", "golang, 1.26 or later, from https://go.dev/dl"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("runc", "runc"),
    ("setsid", "util-linux"),
    ("unshare", "util-linux"),
];

/// Where Debian's containernetworking-plugins puts the CNI plugins.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Checks that the lab can come up here.
///
/// # Errors
/// Names everything that is missing at once, with the package to install.
pub fn check() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab makes network namespaces and runs containers: run it as root");
    }
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(program, package)| format!("{program} (package {package})"))
        .collect();
    for plugin in ["bridge", "host-local", "ptp"] {
        if !Path::new(CNI_PLUGINS).join(plugin).exists() {
            missing.push(format!("{CNI_PLUGINS}/{plugin} (package containernetworking-plugins)"));
        }
    }
    if !missing.is_empty() {
        bail!(
            "the lab needs {}: `make deps` installs what Debian has",
            missing.join(", ")
        );
    }
    Ok(())
}

/// The full path of a program in `PATH` or in the administrators' folders, which a plain user's `PATH` leaves out.
pub fn find_program(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::find_program;

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-here").is_none());
    }
}
