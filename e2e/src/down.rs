// SPDX-License-Identifier: Apache-2.0
//! Taking the cluster down, and proving that nothing of it is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::layout::{Layout, NODES, NodeSpec, PRIVATE_DIRS};
use crate::progress::step;
use crate::up::MOUNT_POINTS;
use crate::{network, process};

/// Ends the cluster's processes, removes its networks, cgroups and files, and checks that nothing is left.
///
/// Binaries, images and logs stay.
///
/// # Errors
/// When something cannot be removed, or is still there afterwards; the message lists it.
pub fn down(layout: &Layout) -> Result<()> {
    if !layout.run().exists() && network::leftovers().is_empty() {
        step("the lab is not up");
        return Ok(());
    }
    end_processes(layout)?;
    step("removing networks, cgroups and files");
    network::remove()?;
    let cgroups = cgroups(layout);
    for cgroup in &cgroups {
        remove_cgroup(cgroup);
        // `k8s.io` goes with its last child; where another containerd has containers in it, this fails, as it should.
        let _ = cgroup.parent().map(fs::remove_dir);
    }
    remove_mount_points(layout)?;
    let mut left = leftovers(layout, &cgroups);
    if left.is_empty() {
        let folders = NODES.iter().map(|node| layout.node(node));
        for path in folders.chain([layout.etcd(), layout.lab().join("pki"), layout.run()]) {
            remove_dir(&path)?;
        }
        let _ = fs::remove_file(layout.kubeconfig());
        step("the lab is down, and nothing of it is left");
        return Ok(());
    }
    left.sort();
    bail!("the lab is down but has left behind:\n    {}", left.join("\n    "))
}

fn end_processes(layout: &Layout) -> Result<()> {
    let all = process::recorded(layout)?;
    // The nodes first, so that no kubelet reports a control plane that goes away. A node needs no time to say goodbye:
    // with its pid 1, the kernel ends all that runs in it.
    for node in &NODES {
        for recorded in all.iter().filter(|recorded| recorded.name == node.name) {
            step(&format!("ending {}", recorded.name));
            recorded.end(Duration::ZERO)?;
        }
    }
    let mut others: Vec<_> = all
        .iter()
        .filter(|recorded| NODES.iter().all(|node| node.name != recorded.name))
        .collect();
    // The API server waits for the watches of those that still run, and etcd is its store.
    others.sort_by_key(|recorded| {
        ["kube-apiserver", "etcd"]
            .iter()
            .position(|name| *name == recorded.name)
    });
    for recorded in others {
        step(&format!("ending {}", recorded.name));
        recorded.end(Duration::from_secs(5))?;
    }
    Ok(())
}

/// The cgroups of the nodes' containers, in every hierarchy of this machine.
///
/// Without a tree of quality classes the kubelet names no parent, and containerd puts them into `/k8s.io`.
fn cgroups(layout: &Layout) -> Vec<PathBuf> {
    let ids: Vec<String> = NODES.iter().flat_map(|node| containers(layout, node)).collect();
    let roots = cgroup_roots().into_iter().map(|root| root.join("k8s.io"));
    let mut found: Vec<PathBuf> = roots.flat_map(|root| ids.iter().map(move |id| root.join(id))).collect();
    found.retain(|path| path.exists());
    found
}

fn cgroup_roots() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup" || kind == "cgroup2").then(|| PathBuf::from(at))
        })
        .collect()
}

/// The ids of the node's containers, running or not, from the folders that containerd keeps for them.
fn containers(layout: &Layout, node: &NodeSpec) -> Vec<String> {
    let state = layout.node_path(node, "/run/containerd/io.containerd.runtime.v2.task/k8s.io");
    let Ok(entries) = fs::read_dir(state) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Removes a cgroup and those below it. The kernel needs a moment after the last process; what stays is reported.
fn remove_cgroup(path: &Path) {
    let children = fs::read_dir(path).into_iter().flatten().flatten();
    for child in children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_cgroup(&child.path());
    }
    let start = Instant::now();
    while fs::remove_dir(path).is_err() && path.exists() && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn remove_mount_points(layout: &Layout) -> Result<()> {
    let noted = fs::read_to_string(layout.run().join(MOUNT_POINTS)).unwrap_or_default();
    // Deepest first, and only while empty: somebody else may have begun to use them.
    let mut folders: Vec<&str> = noted.lines().collect();
    folders.sort_by_key(|folder| std::cmp::Reverse(folder.len()));
    for folder in folders {
        if let Err(error) = fs::remove_dir(folder)
            && !matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
            )
        {
            return Err(error).with_context(|| format!("failed to remove {folder}"));
        }
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Processes, mounts, interfaces, namespaces, cgroups and pins of the lab that are still there.
fn leftovers(layout: &Layout, cgroups: &[PathBuf]) -> Vec<String> {
    let mut left = network::leftovers();
    let lab = layout.lab().display().to_string();
    left.extend(processes_of(&lab));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&lab))
            .map(|line| format!("mount {line}")),
    );
    left.extend(
        cgroups
            .iter()
            .filter(|path| path.exists())
            .map(|path| format!("cgroup {}", path.display())),
    );
    // Pins belong into the bpf file system of a node, which ends with it; here they would outlive the cluster.
    if Path::new("/sys/fs/bpf/wardline").exists() {
        left.push("pins in /sys/fs/bpf/wardline".to_owned());
    }
    left
}

/// Processes that run from the lab's folder, or in a mount namespace that has one of the nodes' folders mounted.
fn processes_of(lab: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let is_pid = entry
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_digit());
        if !is_pid {
            continue;
        }
        let program = fs::read_link(path.join("exe")).is_ok_and(|exe| exe.to_string_lossy().starts_with(lab));
        let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        let inside = mounts
            .lines()
            .any(|line| line.contains(lab) && PRIVATE_DIRS.iter().any(|dir| line.contains(dir)));
        if program || inside {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            found.push(format!(
                "process {} ({})",
                entry.file_name().to_string_lossy(),
                name.trim()
            ));
        }
    }
    found
}
