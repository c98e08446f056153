// SPDX-License-Identifier: Apache-2.0
//! What Wardline's processes may do on a node, and what others may do with what it keeps there.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use wardline_e2e::cluster::{Lab, LabNode};
use wardline_e2e::container::ContainerProcess;
use wardline_e2e::layout::NODES;
use wardline_e2e::namespace::{TestNamespace, beside, with_namespace};
use wardline_e2e::traffic::{Attempt, Protocol};

/// Bits of the sets of capabilities: `CAP_NET_ADMIN`, `CAP_PERFMON`, `CAP_BPF`, as linux/capability.h numbers them.
const DAEMON: u64 = 1 << 12 | 1 << 38 | 1 << 39;
/// Sets of a process: what it can do, what it could, and what a program could that it starts.
const SETS: [&str; 4] = ["CapEff", "CapPrm", "CapBnd", "CapAmb"];
/// A user of the node that is nobody.
const NOBODY: u32 = 65534;
const PLUGIN: &str = "/opt/cni/bin/wardline-cni";
const POLICY_LOG: &str = "/var/log/network/policy_action.log";
/// A socket that everybody may connect to, beside.
const OPEN: &str = "open-to-all.sock";
/// What group and others may do.
const OTHERS: u32 = 0o077;
/// Health of daemon and operator: for the kubelet of the node alone.
const HEALTH_PORTS: [u16; 2] = [9471, 9473];

#[tokio::test]
async fn daemons_and_operator_have_what_they_need_and_nothing_else() -> Result<()> {
    let _place = beside().await?;
    let lab = Lab::connect().await?;
    for node in &NODES {
        let daemon = ContainerProcess::of_daemon(&lab, node.name).await?;
        check_process(node.name, &daemon, "0", [DAEMON, DAEMON, DAEMON, 0])?;
        let listens: Vec<String> = daemon.listens()?.into_iter().collect();
        let expected = [
            "tcp 0.0.0.0:9470",
            "tcp 127.0.0.1:9471",
            "unix /run/wardline/cni.sock",
            "unix /run/wardline/observe.sock",
        ];
        ensure!(
            listens == expected,
            "the daemon of {} listens at {listens:?}",
            node.name
        );
    }
    let operator = ContainerProcess::of_operator(&lab).await?;
    check_process("operator", &operator, "65532", [0; 4])?;
    let listens: Vec<String> = operator.listens()?.into_iter().collect();
    ensure!(
        listens == ["tcp 0.0.0.0:9472", "tcp 127.0.0.1:9473"],
        "the operator listens at {listens:?}"
    );
    Ok(())
}

fn check_process(whose: &str, process: &ContainerProcess, user: &str, capabilities: [u64; 4]) -> Result<()> {
    for (set, expected) in SETS.into_iter().zip(capabilities) {
        let found = process.status(set)?;
        let found = u64::from_str_radix(&found, 16).with_context(|| format!("failed to read {set} {found}"))?;
        ensure!(found == expected, "{whose}: {set} is {found:#x}, not {expected:#x}");
    }
    for id in ["Uid", "Gid"] {
        let found = process.status(id)?;
        ensure!(
            found.split_whitespace().all(|id| id == user),
            "{whose}: {id} is {found}, not {user}"
        );
    }
    // Seccomp's mode 2 is a filter.
    for (field, expected) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
        let found = process.status(field)?;
        ensure!(found == expected, "{whose}: {field} is {found}, not {expected}");
    }
    ensure!(
        process.has_read_only_root()?,
        "{whose}: its root file system can be written"
    );
    Ok(())
}

#[tokio::test]
async fn what_it_keeps_on_a_node_is_roots_alone() -> Result<()> {
    let _place = beside().await?;
    let lab = Lab::connect().await?;
    for node in lab.nodes() {
        let layout = lab.layout();
        let run = layout.node_path(node.spec, "/run/wardline");
        check_mode(&run, 0o700)?;
        let mut sockets = Vec::new();
        for entry in fs::read_dir(&run)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            ensure!(
                metadata.mode() & OTHERS == 0 && metadata.uid() == 0,
                "{}: mode {:o}, user {}",
                entry.path().display(),
                metadata.mode(),
                metadata.uid()
            );
            if metadata.file_type().is_socket() {
                check_mode(&entry.path(), 0o600)?;
                sockets.push(PathBuf::from("wardline").join(entry.file_name()));
            }
        }
        ensure!(sockets.len() == 2, "{}: the sockets are {sockets:?}", node.spec.name);
        check_mode(&layout.node_path(node.spec, PLUGIN), 0o755)?;
        if layout.node_path(node.spec, POLICY_LOG).exists() {
            check_mode(&layout.node_path(node.spec, POLICY_LOG), 0o640)?;
        }
        check_pins(node)?;
        nobody_connects(&layout.node_path(node.spec, "/run"), &sockets)?;
    }
    Ok(())
}

/// Root's, with exactly that mode.
fn check_mode(path: &Path, expected: u32) -> Result<()> {
    let metadata = fs::symlink_metadata(path).with_context(|| format!("failed to look at {}", path.display()))?;
    let (mode, owner) = (metadata.mode() & 0o7777, (metadata.uid(), metadata.gid()));
    ensure!(
        mode == expected && owner == (0, 0),
        "{}: mode {mode:o} of {owner:?}, not {expected:o} of root",
        path.display()
    );
    Ok(())
}

/// Who can open a pin can read the tables, or write them.
fn check_pins(node: LabNode<'_>) -> Result<()> {
    let find = |condition: &str| {
        let script = format!("busybox find /sys/fs/bpf/wardline {condition}");
        node.run(&["busybox", "sh", "-c", &script])
    };
    ensure!(!find("-type f")?.is_empty(), "{} has no pins", node.spec.name);
    for condition in ["-type f -perm /077", "-type d -perm /022", "! -user 0"] {
        let found = find(condition)?;
        ensure!(found.is_empty(), "{}: {condition}: {found}", node.spec.name);
    }
    Ok(())
}

/// Another user of the node, who sees its files, cannot speak to the daemon.
fn nobody_connects(run: &Path, sockets: &[PathBuf]) -> Result<()> {
    let folder = File::open(run).with_context(|| format!("failed to open {}", run.display()))?;
    // Whoever may not enter the directories above gets there all the same: what is above is not what is tested.
    let below = |name: &Path| PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    let open = below(Path::new(OPEN));
    let listener = UnixListener::bind(&open).context("failed to listen at a socket of all")?;
    fs::set_permissions(&open, Permissions::from_mode(0o666))?;
    let connect = |name: &Path| UnixStream::connect(below(name)).map(drop);
    // By root first: they listen.
    let by_root: io::Result<()> = sockets.iter().try_for_each(|socket| connect(socket));
    let by_nobody = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Of this thread alone, and it takes the capabilities along that open every file.
            setfsgid(Gid::from_raw(NOBODY));
            setfsuid(Uid::from_raw(NOBODY));
            let names = [PathBuf::from(OPEN)].into_iter().chain(sockets.to_vec());
            names
                .map(|name| (connect(&name).map_err(|error| error.kind()), name))
                .collect::<Vec<_>>()
        });
        thread.join()
    });
    drop(listener);
    fs::remove_file(&open).with_context(|| format!("failed to remove {}", open.display()))?;
    by_root.context("root was refused")?;
    let by_nobody = by_nobody.map_err(|_| anyhow::anyhow!("the thread of another user panicked"))?;
    for (connected, name) in by_nobody {
        let expected = if name == Path::new(OPEN) {
            Ok(())
        } else {
            Err(io::ErrorKind::PermissionDenied)
        };
        ensure!(
            connected == expected,
            "user {NOBODY} at {}: {connected:?}",
            name.display()
        );
    }
    Ok(())
}

/// Metrics are for whoever scrapes them, and name no pod. Health is not.
#[tokio::test]
async fn a_pod_reaches_metrics_and_nothing_else_of_it() -> Result<()> {
    with_namespace("reach", async |namespace: &TestNamespace| {
        namespace.client("hostile", "node1").await?;
        namespace.ready().await?;
        let pods = namespace.pods();
        for node in &NODES {
            let attempt = async |port: u16| {
                let server = format!("{}:{port}", node.address).parse()?;
                Attempt::make(&pods, "hostile", server, Protocol::Tcp).await
            };
            let metrics = attempt(9470).await?;
            ensure!(
                metrics.stage == "echo",
                "{}: metrics are out of reach: {metrics:?}",
                node.name
            );
            for port in HEALTH_PORTS {
                let health = attempt(port).await?;
                ensure!(
                    !health.ok && health.stage == "connect",
                    "{}: a pod has connected to port {port}: {health:?}",
                    node.name
                );
            }
        }
        Ok(())
    })
    .await
}
