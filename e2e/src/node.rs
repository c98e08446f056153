// SPDX-License-Identifier: Apache-2.0
//! A node: containerd and kubelet in network, mount and process namespaces of their own.
//!
//! [`start`] runs `lab node NAME` through `nsenter` and `unshare`; that process is the node's pid 1 ([`init`]). When it
//! is killed, the kernel ends everything in its process namespace: kubelet, containerd, shims and containers. Its
//! mounts go with the mount namespace, so a node leaves only files in its folder and empty cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{WaitOptions, wait};
use serde_json::json;

use crate::command::{run, tail};
use crate::layout::{Layout, NodeSpec, PAUSE_IMAGE, PRIVATE_DIRS};
use crate::pod_network;
use crate::preflight::CNI_PLUGINS;
use crate::process::{self, Recorded};
use crate::progress::wait_until;

/// containerd's socket, as the node sees it.
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// Writes the node's configuration, starts it, and returns its pid 1.
pub async fn start(layout: &Layout, node: &NodeSpec) -> Result<Recorded> {
    write_configuration(layout, node)?;
    let program = std::env::current_exe().context("failed to find this program's own file")?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", node.netns)).arg("--");
    command.args([
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
    ]);
    command.arg(program).args(["node", node.name]);
    let outer = process::start(layout, &format!("{}-outer", node.name), &command)?;
    let children = format!("/proc/{0}/task/{0}/children", outer.pid);
    let pid = wait_until(
        &format!("{}'s first process", node.name),
        Duration::from_secs(10),
        async || {
            outer.check()?;
            let text = fs::read_to_string(&children).with_context(|| format!("failed to read {children}"))?;
            Ok(text.split_whitespace().next().and_then(|pid| pid.parse().ok()))
        },
    )
    .await?;
    let mut init = process::record(layout, node.name, pid)?;
    init.log = layout.log(&format!("{}-outer", node.name));
    Ok(init)
}

/// A path as the node sees it, short and wherever the workspace is: sockets have no long names.
pub fn path_in(layout: &Layout, node: &NodeSpec, path: &str) -> Result<PathBuf> {
    Ok(PathBuf::from(format!(
        "/proc/{}/root{path}",
        init_of(layout, node)?.pid
    )))
}

fn init_of(layout: &Layout, node: &NodeSpec) -> Result<Recorded> {
    let init = process::recorded(layout)?
        .into_iter()
        .find(|recorded| recorded.name == node.name)
        .with_context(|| format!("failed to enter {}: the lab is not up", node.name))?;
    init.check()?;
    Ok(init)
}

/// Runs a command in a node's network, mount and process namespaces.
pub fn enter(layout: &Layout, node: &NodeSpec, args: &[&str]) -> Result<String> {
    let target = format!("--target={}", init_of(layout, node)?.pid);
    run(
        "nsenter",
        [target.as_str(), "--net", "--mount", "--pid", "--"].iter().chain(args),
    )
}

/// Imports image archives into the node's containerd.
pub fn import_image(layout: &Layout, node: &NodeSpec, archive: &Path) -> Result<()> {
    enter(
        layout,
        node,
        &[
            "ctr",
            "--namespace=k8s.io",
            "images",
            "import",
            &archive.display().to_string(),
        ],
    )?;
    Ok(())
}

fn write_configuration(layout: &Layout, node: &NodeSpec) -> Result<()> {
    for folder in PRIVATE_DIRS {
        create_dir(&layout.node_path(node, folder))?;
    }
    let write = |path: PathBuf, text: String| {
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
    };
    write(layout.node(node).join("containerd.toml"), containerd_config())?;
    write(
        layout.node(node).join("kubelet.yaml"),
        format!("{:#}\n", kubelet_config(layout, node)),
    )?;
    // Not this machine's: that may name a resolver on loopback, which pods cannot reach.
    write(layout.node(node).join("resolv.conf"), String::new())?;
    write(
        layout.node_path(node, &format!("/etc/cni/net.d/{}", pod_network::CONFLIST)),
        format!("{:#}\n", pod_network::conflist(node)),
    )?;
    let plugins = fs::read_dir(CNI_PLUGINS).with_context(|| format!("failed to read {CNI_PLUGINS}"))?;
    for plugin in plugins {
        let plugin = plugin.with_context(|| format!("failed to read {CNI_PLUGINS}"))?;
        let target = layout.node_path(node, "/opt/cni/bin").join(plugin.file_name());
        fs::copy(plugin.path(), &target).with_context(|| format!("failed to write {}", target.display()))?;
    }
    Ok(())
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("failed to create {}", path.display()))
}

fn containerd_config() -> String {
    // restrict_oom_score_adj: without CAP_SYS_RESOURCE no process may lower its score, and runc would give up.
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_tcp_service = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#
    )
}

fn kubelet_config(layout: &Layout, node: &NodeSpec) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": layout.pki("ca.crt")},
            "webhook": {"enabled": false},
            "anonymous": {"enabled": false},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "tlsCertFile": layout.pki(&format!("{}.crt", node.name)),
        "tlsPrivateKeyFile": layout.pki(&format!("{}.key", node.name)),
        "cgroupDriver": "cgroupfs",
        // The controllers of this machine stay as they are: no tree of quality classes, no reservations.
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "resolvConf": layout.node(node).join("resolv.conf"),
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
        "evictionHard": {"memory.available": "50Mi"},
        "imageGCHighThresholdPercent": 100,
    })
}

/// The node's pid 1: prepares the mounts, starts containerd and kubelet, and reaps until one of them ends.
///
/// # Errors
/// Always, in the end: a node is ended by killing this process.
pub fn init(layout: &Layout, node: &NodeSpec) -> Result<()> {
    mount_private(layout, node)?;
    pod_network::prepare(node)?;
    let containerd_log = layout.log(&format!("{}-containerd", node.name));
    let configuration = layout.node(node).join("containerd.toml");
    let containerd = spawn(
        Command::new("containerd").arg("--config").arg(configuration),
        &containerd_log,
    )?;
    import_base_images(layout, &containerd_log)?;
    let kubelet_log = layout.log(&format!("{}-kubelet", node.name));
    let kubelet = spawn(&mut kubelet_command(layout, node), &kubelet_log)?;
    let names = [
        (containerd.id(), "containerd", containerd_log),
        (kubelet.id(), "kubelet", kubelet_log),
    ];
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty()).context("failed to wait for a process")? else {
            continue;
        };
        if let Some((_, name, log)) = names
            .iter()
            .find(|(id, ..)| u32::try_from(pid.as_raw_nonzero().get()) == Ok(*id))
        {
            bail!(
                "{name} of {} has ended ({status:?}); its log says:\n{}",
                node.name,
                tail(log, 15)
            );
        }
    }
}

fn mount_private(layout: &Layout, node: &NodeSpec) -> Result<()> {
    // Shared within the node, so that volumes with mount propagation work; `unshare` cut the tie to this machine.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .context("failed to make the node's mounts shared")?;
    for folder in PRIVATE_DIRS {
        let own = layout.node_path(node, folder);
        mount_bind(&own, folder).with_context(|| format!("failed to bind {} to {folder}", own.display()))?;
    }
    mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None).context("failed to mount a bpf file system")
}

fn import_base_images(layout: &Layout, containerd_log: &Path) -> Result<()> {
    let start = Instant::now();
    while std::os::unix::net::UnixStream::connect(CONTAINERD_SOCKET).is_err() {
        if start.elapsed() > Duration::from_mins(1) {
            bail!(
                "failed to reach containerd within 60 s; its log says:\n{}",
                tail(containerd_log, 15)
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let folder = layout.base_images();
    for entry in fs::read_dir(&folder).with_context(|| format!("failed to read {}", folder.display()))? {
        let path = entry
            .with_context(|| format!("failed to read {}", folder.display()))?
            .path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            run(
                "ctr",
                ["--namespace=k8s.io", "images", "import", &path.display().to_string()],
            )?;
        }
    }
    Ok(())
}

fn kubelet_command(layout: &Layout, node: &NodeSpec) -> Command {
    let mut command = Command::new(layout.bin("kubelet"));
    command.arg(format!("--config={}", layout.node(node).join("kubelet.yaml").display()));
    command.arg(format!(
        "--kubeconfig={}",
        layout.pki(&format!("{}.kubeconfig", node.name)).display()
    ));
    command
        .arg(format!("--hostname-override={}", node.name))
        .arg(format!("--node-ip={},{}", node.address, node.address6));
    command
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let output = fs::File::create(log).with_context(|| format!("failed to create {}", log.display()))?;
    let errors = output
        .try_clone()
        .with_context(|| format!("failed to duplicate {}", log.display()))?;
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    command.spawn().with_context(|| format!("failed to start {name}"))
}
