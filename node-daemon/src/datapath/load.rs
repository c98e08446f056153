// SPDX-License-Identifier: Apache-2.0
//! Loads the programs over the maps of the layout's version: those that are pinned are used on, with all they hold.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, OpenMapMut, OpenObject, ProgramAttachType};
use wardline_bpf::abi;
use wardline_bpf::{OpenWardlineSkel, WardlineSkel, WardlineSkelBuilder};
use wardline_crds::AttachKind;
use wardline_crds::config::{DaemonConfig, Limits};

use super::LoadError;
use super::conntrack::Timeouts;
use super::quotas::Quotas;

/// Denies that a direction of a pod may tell one by one in a generation, where that is asked for: a sixteenth of the ring.
const DENY_EVENTS: u32 = abi::RING_BYTES / abi::EVENT_BYTES / 16;

/// Where maps and links are pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinPaths {
    pub maps: PathBuf,
    pub links: PathBuf,
}

impl PinPaths {
    /// Of a layout's links, in its directory.
    pub(super) const LINKS: &str = "links";

    /// This version's. `bpffs` is the mount point of a bpf file system.
    pub fn new(bpffs: &Path) -> Self {
        Self::of(&Self::root(bpffs).join(format!("v{}", abi::ABI_VERSION)))
    }

    fn of(version: &Path) -> Self {
        Self {
            maps: version.join("maps"),
            links: version.join(Self::LINKS),
        }
    }

    /// The directory of this version.
    pub(super) fn version(&self) -> &Path {
        self.maps.parent().unwrap_or(&self.maps)
    }

    /// Whether they are this version's.
    pub(super) fn are_ours(&self) -> bool {
        let ours = format!("v{}", abi::ABI_VERSION);
        self.version().file_name().is_some_and(|name| *name == *ours)
    }

    /// Those of other versions that have made all their tables, the oldest first.
    pub fn others(&self) -> io::Result<Vec<Self>> {
        let mut others = BTreeMap::new();
        let root = self.version().parent().unwrap_or(self.version());
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        for entry in entries {
            let paths = Self::of(&entry?.path());
            let name = paths.version().file_name().and_then(|name| name.to_str());
            let version: Option<u32> = name.and_then(|name| name.strip_prefix('v')?.parse().ok());
            if let Some(version) = version.filter(|_| paths.version() != self.version() && paths.are_there()) {
                others.insert(version, paths);
            }
        }
        Ok(others.into_values().collect())
    }

    /// What holds the directories of all layouts.
    pub(super) fn root(bpffs: &Path) -> PathBuf {
        bpffs.join("wardline")
    }

    /// Whether a daemon has made tables of this layout.
    pub fn are_there(&self) -> bool {
        // Made last, and before any program judges a packet.
        self.maps.join("ledger").exists()
    }

    pub(super) fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.maps)?;
        fs::create_dir_all(&self.links)
    }
}

/// A limit that the configuration changed while the kernel holds state under the old one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLimit {
    pub map: &'static str,
    pub wanted: u32,
    pub in_force: u32,
}

/// Loads programs and maps. What they are made of lives as long as the process.
pub(super) fn load(
    paths: &PinPaths,
    config: &DaemonConfig,
    kind: AttachKind,
) -> Result<(&'static mut WardlineSkel<'static>, Vec<KeptLimit>), LoadError> {
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Info, log)));
    paths.create().map_err(|cause| LoadError::Pins {
        path: paths.maps.clone(),
        cause,
    })?;
    let object: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
    let mut open = WardlineSkelBuilder::default().open(object).map_err(LoadError::open)?;
    let kept = size_and_pin(&mut open, paths, &config.limits)?;
    if kind == AttachKind::Tcx {
        // On the host side of a veth its ingress is what the pod sends.
        open.progs.pod_egress.set_attach_type(ProgramAttachType::TcxIngress);
        open.progs.pod_ingress.set_attach_type(ProgramAttachType::TcxEgress);
    }
    if let Some(data) = open.maps.rodata_data.as_deref_mut() {
        // Shares of the tables that are there, which may have kept another size than the limits ask for.
        data.deny_entries = open.maps.denies.max_entries();
        let quotas = Quotas::of(open.maps.conntrack.max_entries());
        if config.logging.deny_aggregation_seconds == 0 {
            data.deny_event_share = DENY_EVENTS;
        }
        data.connection_quota = quotas.connections;
        data.half_open_quota = quotas.half_open;
    }
    let skel = open.load().map_err(LoadError::load)?;
    Ok((Box::leak(Box::new(skel)), kept))
}

/// libbpf's own messages: the verifier's words among them, where a program does not load.
fn log(level: libbpf_rs::PrintLevel, message: String) {
    let message = message.trim_end();
    if level == libbpf_rs::PrintLevel::Warn {
        tracing::warn!(message, "libbpf");
    } else {
        tracing::debug!(message, "libbpf");
    }
}

fn size_and_pin(
    open: &mut OpenWardlineSkel<'_>,
    paths: &PinPaths,
    limits: &Limits,
) -> Result<Vec<KeptLimit>, LoadError> {
    let maps = &mut open.maps;
    // Twice the limit: a new generation is written beside the one in force before it replaces it.
    let wanted: [(&'static str, &mut OpenMapMut<'_>, Option<u32>); 18] = [
        ("endpoints", &mut maps.endpoints, None),
        ("near_endpoints", &mut maps.near_endpoints, None),
        ("policy_words", &mut maps.policy_words, None),
        ("conntrack", &mut maps.conntrack, Some(limits.connections)),
        ("peers", &mut maps.peers, Some(limits.peers.saturating_mul(2))),
        ("cidrs", &mut maps.cidrs, Some(limits.peers.saturating_mul(2))),
        ("rules", &mut maps.rules, Some(limits.rules.saturating_mul(2))),
        ("ranges", &mut maps.ranges, Some(limits.rules.saturating_mul(2))),
        ("services", &mut maps.services, None),
        ("backends", &mut maps.backends, None),
        ("affinities", &mut maps.affinities, None),
        ("fragments", &mut maps.fragments, None),
        ("usages", &mut maps.usages, None),
        ("settings", &mut maps.settings, None),
        ("counters", &mut maps.counters, None),
        ("denies", &mut maps.denies, Some(limits.deny_aggregates)),
        ("deny_shares", &mut maps.deny_shares, None),
        ("events", &mut maps.events, None),
    ];
    let mut kept = Vec::new();
    for (name, map, size) in wanted {
        let path = paths.maps.join(name);
        let pinned = MapHandle::from_pinned_path(&path).ok().map(|map| map.max_entries());
        if let Some(size) = size {
            if let Some(in_force) = pinned.filter(|in_force| *in_force != size) {
                kept.push(KeptLimit {
                    map: name,
                    wanted: size,
                    in_force,
                });
            }
            map.set_max_entries(pinned.unwrap_or(size)).map_err(LoadError::open)?;
        }
        map.set_pin_path(&path).map_err(LoadError::open)?;
    }
    Ok(kept)
}

/// The idle times that the programs run with.
pub(super) fn timeouts(skel: &WardlineSkel<'_>) -> Result<Timeouts, LoadError> {
    let Some(data) = skel.maps.rodata_data else {
        return Err(LoadError::Load("the object has no load-time settings".to_owned()));
    };
    Ok(Timeouts {
        tcp_opening: data.tcp_opening_ticks,
        tcp_open: data.tcp_open_ticks,
        tcp_closing: data.tcp_closing_ticks,
        udp: data.udp_ticks,
        udp_stream: data.udp_stream_ticks,
        icmp: data.icmp_ticks,
        other: data.other_ticks,
    })
}

/// The shares of the connection table that the programs run with.
pub(super) fn quotas(skel: &WardlineSkel<'_>) -> Result<Quotas, LoadError> {
    let Some(data) = skel.maps.rodata_data else {
        return Err(LoadError::Load("the object has no load-time settings".to_owned()));
    };
    Ok(Quotas {
        connections: data.connection_quota,
        half_open: data.half_open_quota,
    })
}

/// A map that is there.
pub(super) fn pinned(paths: &PinPaths, name: &str) -> Result<MapHandle, LoadError> {
    MapHandle::from_pinned_path(paths.maps.join(name)).map_err(LoadError::load)
}

/// A pinned one-entry array that only user space knows; made where there is none.
pub(super) fn user_map(paths: &PinPaths, name: &str, value_size: usize) -> Result<MapHandle, LoadError> {
    let path = paths.maps.join(name);
    if let Ok(map) = MapHandle::from_pinned_path(&path) {
        return Ok(map);
    }
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let size = u32::try_from(value_size).unwrap_or(u32::MAX);
    let mut map = MapHandle::create(MapType::Array, Some(name), 4, size, 1, &options).map_err(LoadError::load)?;
    map.pin(&path).map_err(|cause| LoadError::Pins {
        path,
        cause: io::Error::other(cause),
    })?;
    debug_assert!(map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).is_ok());
    Ok(map)
}
