// SPDX-License-Identifier: Apache-2.0
//! The processes behind containers, seen from this machine: their network namespace, CPU time, memory and maps.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::bench::wires::Place;
use crate::cluster::{Lab, SYSTEM_NAMESPACE};

/// The first process of a container.
#[derive(Debug, Clone)]
pub struct ContainerProcess {
    proc: PathBuf,
}

impl ContainerProcess {
    /// That of a pod's first container.
    pub fn of(pod: &Pod) -> Result<Self> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let status = pod
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_ref()?.first());
        let id = status.and_then(|status| status.container_id.as_deref()?.split_once("://"));
        let (_, id) = id.with_context(|| format!("failed to find the container of Pod {name}: it does not run"))?;
        for entry in fs::read_dir("/proc").context("failed to read /proc")? {
            let proc = entry.context("failed to read /proc")?.path();
            // Processes end while one looks at them.
            let cgroups = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
            if cgroups.contains(id) {
                return Ok(Self { proc });
            }
        }
        anyhow::bail!("failed to find the process of Pod {name}: no cgroup is named after container {id}")
    }

    /// That of the daemon on a node.
    pub async fn of_daemon(lab: &Lab, node: &str) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let all = pods.list(&on_node).await.context("failed to list Wardline's pods")?;
        let is_daemon = |pod: &&Pod| {
            let owners = pod.metadata.owner_references.iter().flatten();
            let goes = pod.metadata.deletion_timestamp.is_some();
            !goes && owners.into_iter().any(|owner| owner.kind == "DaemonSet")
        };
        let daemon = all.items.iter().find(is_daemon);
        Self::of(daemon.with_context(|| format!("failed to find the daemon of {node}"))?)
    }

    /// CPU time of all its threads so far, in seconds.
    ///
    /// From the clock of the process: /proc/PID/stat counts in hundredths of a second, too coarse for a short load.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let shown = self.proc.display();
        let pid = self.proc.file_name().and_then(|name| name.to_str()?.parse().ok());
        let pid = pid.with_context(|| format!("failed to read the pid of {shown}"))?;
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid));
        let time = clock.and_then(ClockId::now);
        let time = time.with_context(|| format!("failed to read the CPU time of {shown}"))?;
        Ok(Duration::from(time).as_secs_f64())
    }

    /// Segments that TCP of its network namespace had to send again.
    pub fn retransmissions(&self) -> Result<u64> {
        let text = self.read("net/snmp")?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = lines.next().zip(lines.next()).context("failed to read net/snmp")?;
        let mut columns = names.split_whitespace().zip(values.split_whitespace());
        let (_, value) = columns
            .find(|(name, _)| *name == "RetransSegs")
            .context("failed to find RetransSegs in net/snmp")?;
        value.parse().context("failed to read RetransSegs")
    }

    /// Resident memory, in MiB.
    pub fn resident_mebibytes(&self) -> Result<f64> {
        let text = self.read("status")?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        Ok(kibibytes.context("failed to read VmRSS")? / 1024.0)
    }

    /// Bytes that it has written to files and sockets so far.
    pub fn written_bytes(&self) -> Result<u64> {
        let text = self.read("io")?;
        let value = text.lines().find_map(|line| line.strip_prefix("wchar: "));
        let value = value.context("failed to find wchar in io")?;
        value.parse().context("failed to read wchar")
    }

    /// Memory of the BPF maps that it has open, in MiB, as the kernel counts it: what entries take, or could take where
    /// they are allocated in advance.
    pub fn map_mebibytes(&self) -> Result<f64> {
        let folder = self.proc.join("fdinfo");
        let entries = fs::read_dir(&folder).with_context(|| format!("failed to read {}", folder.display()))?;
        let mut maps = BTreeMap::new();
        for entry in entries {
            let path = entry
                .with_context(|| format!("failed to read {}", folder.display()))?
                .path();
            // Files are closed while one looks at them.
            let text = fs::read_to_string(path).unwrap_or_default();
            let field = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
            };
            let id = text.lines().find_map(|line| line.strip_prefix("map_id:"));
            if let (Some(id), Some(bytes)) = (id, field("memlock:")) {
                maps.insert(id.trim().to_owned(), bytes);
            }
        }
        ensure!(!maps.is_empty(), "failed to find maps: {} names none", folder.display());
        Ok(maps.values().sum::<f64>() / 1_048_576.0)
    }

    /// Its network namespace, for a process that is the pod with this address.
    pub fn place(&self, address: Ipv4Addr) -> Place {
        Place {
            netns: self.proc.join("ns/net"),
            address,
        }
    }

    fn read(&self, file: &str) -> Result<String> {
        let path: &Path = &self.proc.join(file);
        fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
    }
}
