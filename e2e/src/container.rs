// SPDX-License-Identifier: Apache-2.0
//! The processes behind containers, seen from this machine: their network namespace, CPU time, memory and maps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
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

    /// That of the operator; of one, where there are several.
    pub async fn of_operator(lab: &Lab) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
        let selected = ListParams::default().labels("app.kubernetes.io/name=wardline-operator");
        let all = pods
            .list(&selected)
            .await
            .context("failed to list the operator's pods")?;
        let operator = all.items.iter().find(|pod| pod.metadata.deletion_timestamp.is_none());
        Self::of(operator.context("failed to find the operator")?)
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
        let kibibytes = self.status("VmRSS")?;
        let kibibytes = kibibytes
            .strip_suffix(" kB")
            .and_then(|number| number.parse::<f64>().ok());
        Ok(kibibytes.context("failed to read VmRSS")? / 1024.0)
    }

    /// A field of /proc/PID/status, such as `CapEff`.
    pub fn status(&self, field: &str) -> Result<String> {
        let text = self.read("status")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let value = line.with_context(|| format!("failed to find {field} in status"))?;
        Ok(value.trim().to_owned())
    }

    /// Whether nobody can write to its root file system.
    pub fn has_read_only_root(&self) -> Result<bool> {
        let text = self.read("mounts")?;
        let root = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mut options = root
            .filter(|fields| fields.get(1) == Some(&"/"))
            .filter_map(|fields| fields.get(3).copied());
        let options = options.next_back().context("failed to find / in mounts")?;
        Ok(options.split(',').any(|option| option == "ro"))
    }

    /// Where it listens: addresses and ports, and paths or abstract names of unix sockets.
    pub fn listens(&self) -> Result<BTreeSet<String>> {
        let sockets = self.sockets()?;
        let mut found = BTreeSet::new();
        // Columns as in proc_net_tcp(5); state 0A is LISTEN, and 07 a datagram socket that knows no peer.
        for (file, state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
            for line in self.read(&format!("net/{file}"))?.lines().skip(1) {
                let columns: Vec<&str> = line.split_whitespace().collect();
                if let [_, local, _, is, _, _, _, _, _, inode, ..] = columns[..]
                    && is == state
                    && sockets.contains(inode)
                {
                    found.insert(format!("{file} {}", socket_address(local)?));
                }
            }
        }
        // Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON is 0x10000.
        for line in self.read("net/unix")?.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if let [_, _, _, flags, _, _, inode, path] = columns[..]
                && sockets.contains(inode)
                && (flags == "00010000" || path.starts_with('@'))
            {
                found.insert(format!("unix {path}"));
            }
        }
        Ok(found)
    }

    /// The inodes of the sockets that it has open.
    fn sockets(&self) -> Result<BTreeSet<String>> {
        let folder = self.proc.join("fd");
        let entries = fs::read_dir(&folder).with_context(|| format!("failed to read {}", folder.display()))?;
        let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let inode = |target: PathBuf| {
            let text = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(text.to_owned())
        };
        Ok(targets.filter_map(inode).collect())
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

/// `0100007F:24FF` is 127.0.0.1:9471: four bytes at a time, in the machine's order.
fn socket_address(hexadecimal: &str) -> Result<SocketAddr> {
    let parsed = || {
        let (address, port) = hexadecimal.split_once(':')?;
        let words = address
            .as_bytes()
            .chunks(8)
            .map(|word| u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok());
        let bytes: Vec<u8> = words
            .collect::<Option<Vec<u32>>>()?
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let port = u16::from_str_radix(port, 16).ok()?;
        match <[u8; 4]>::try_from(&*bytes) {
            Ok(four) => Some(SocketAddr::new(four.into(), port)),
            Err(_) => Some(SocketAddr::new(<[u8; 16]>::try_from(&*bytes).ok()?.into(), port)),
        }
    };
    parsed().with_context(|| format!("failed to read the address {hexadecimal}"))
}

#[cfg(test)]
mod tests {
    use super::socket_address;

    #[cfg(target_endian = "little")]
    #[test]
    fn addresses_of_proc_net() {
        for (text, expected) in [
            ("0100007F:24FF", "127.0.0.1:9471"),
            ("00000000000000000000000001000000:0050", "[::1]:80"),
        ] {
            assert_eq!(socket_address(text).unwrap().to_string(), expected);
        }
        socket_address("0100007F").unwrap_err();
    }
}
