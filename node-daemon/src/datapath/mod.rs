// SPDX-License-Identifier: Apache-2.0
//! Brings the kernel to the desired state, so that every packet sees the old policy or the new one.
//!
//! ```text
//! names in the journal -> rules under new keys -> addresses -> words of the slots -> (grace period) -> old keys go
//!                         nobody looks yet         one store a slot changes everything a packet sees
//! ```
//!
//! Addresses change in place while all the tables in force are also wanted: each of them then has rules for every
//! class that an address can move to. Else a new generation of the peer maps is written, and each word names it
//! together with its table: docs/decisions/0004-peer-generations.md.

mod accounts;
mod apply;
mod attach;
mod backend_lists;
mod batch;
mod conntrack;
mod departures;
mod endpoints;
mod former;
mod garbage;
mod hand_back;
mod ids;
mod layout;
mod load;
mod map;
mod peers;
mod quotas;
mod removal;
mod self_test;
mod services;
mod shares;
mod tables;
mod translated;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use libbpf_rs::{MapCore, MapHandle};
use wardline_bpf::abi::{self, IdCounters, RangeKey, Rule, RuleKey};
pub use wardline_bpf::abi::{Ledger, TOLD_EVENT, TOLD_GENERATION};
use wardline_crds::config::{DaemonConfig, Limits};
use wardline_crds::{AttachKind, Enforcement, SourceAddressCheck};
use wardline_policy::compile::Room;
use wardline_policy::model::{Direction, ObjectName};
use wardline_policy::tables::TableKey;

pub(crate) use self::accounts::add;
pub use self::accounts::{Accounts, Cause, Closed, Losses};
pub use self::attach::attach_kind;
use self::attach::{Attacher, Place};
pub use self::conntrack::ConntrackSweeper;
use self::conntrack::LiveEndpoints;
pub use self::departures::DepartureSweeper;
use self::endpoints::{EndpointError, Endpoints, EntryMaps};
use self::former::Takeover;
pub use self::former::TakingOver;
pub use self::hand_back::{HandBackError, HandedBack};
use self::ids::Ids;
use self::layout::Layout;
pub use self::layout::LayoutError;
pub use self::load::{KeptLimit, PinPaths};
pub use self::map::MapError;
use self::map::TypedMap;
use self::peers::{PeerMaps, Peers};
use self::quotas::Usages;
pub use self::removal::{Detached, InKernel, RemovalError};
pub use self::self_test::{SelfTestError, self_test};
pub use self::services::ServiceCounts;
use self::tables::{LoadedTable, Meanings};
pub use self::translated::Way;
use crate::index::{EndpointSpec, LogModes, Logged};
use crate::mapping::{Mapping, page_size};
use crate::names::{JournalError, Names};

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("failed to make pins under {path}: {cause}")]
    Pins { path: PathBuf, cause: io::Error },
    #[error("failed to open packet programs: {0}")]
    Open(String),
    #[error("failed to load packet programs: {0}")]
    Load(String),
    #[error("failed to map {map}: {cause}")]
    Mapping { map: &'static str, cause: io::Error },
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl LoadError {
    fn open(error: libbpf_rs::Error) -> Self {
        Self::Open(format!("{error:#}"))
    }

    fn load(error: libbpf_rs::Error) -> Self {
        Self::Load(format!("{error:#}"))
    }
}

/// Why a change was refused as a whole; what was in force before still is.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{limit} is {size}, and {needed} entries are needed")]
    Full {
        limit: &'static str,
        size: u32,
        needed: usize,
    },
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Names(#[from] JournalError),
    #[error("failed to wait for packet programs: {0}")]
    Grace(io::Error),
    #[error("failed to take away what another version of the daemon left: {0}")]
    TakeOver(io::Error),
}

/// A filter still stands where a link is to stand.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct HandOverError(#[from] EndpointError);

/// What an apply did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Whether some slot's policy changed.
    pub changed: bool,
    pub managed: usize,
    /// Pods that could not be managed, and why.
    pub failed: BTreeMap<ObjectName, String>,
}

/// A program that somebody took off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub pod: ObjectName,
    pub direction: Direction,
    /// Why it could not be put back.
    pub failure: Option<String>,
}

/// The kernel side of the node. One thread owns it.
#[derive(Debug)]
pub struct Datapath {
    endpoints: Endpoints,
    attacher: Attacher,
    peer_maps: PeerMaps,
    services: services::Services,
    rules: TypedMap<RuleKey, Rule>,
    ranges: TypedMap<RangeKey, Rule>,
    settings: Mapping,
    ids: Ids,
    limits: Limits,
    names: Arc<Names>,
    loaded: Loaded,
    live: LiveEndpoints,
    takeover: Takeover,
}

/// The mirror of what the kernel holds for policy.
#[derive(Debug, Default)]
struct Loaded {
    meanings: Meanings,
    tables: HashMap<TableKey, LoadedTable>,
    /// Generation of the peer maps in force; 0: nothing was written in this life.
    generation: u32,
    peers: Peers,
    /// Former generations that may still be there, and their entries.
    former: HashMap<u32, usize>,
    /// Something in the kernel is not in this mirror.
    sweep: bool,
}

/// Handles for the threads that account and tidy.
#[derive(Debug)]
pub struct Handles {
    pub accounts: Accounts,
    pub conntrack: ConntrackSweeper,
    pub departures: DepartureSweeper,
    pub kept_limits: Vec<KeptLimit>,
    /// What other versions counted, and where it goes when it is written; the oldest first.
    pub former: Vec<(Accounts, PinPaths)>,
    pub taking_over: TakingOver,
}

impl Datapath {
    /// Loads programs and maps. Policies that an earlier life left in the kernel stay in force until the first
    /// [`Datapath::apply`].
    pub fn load(
        paths: &PinPaths,
        config: &DaemonConfig,
        names: Arc<Names>,
        kind: AttachKind,
    ) -> Result<(Self, Handles), LoadError> {
        let (skel, kept_limits) = load::load(paths, config, kind)?;
        let skel: &'static wardline_bpf::WardlineSkel<'static> = skel;
        let handle = |map: &libbpf_rs::Map<'_>| MapHandle::try_from(map).map_err(LoadError::load);
        let map_words = |map: &libbpf_rs::Map<'_>, name, size: usize| {
            let length = size.next_multiple_of(page_size());
            Mapping::new(std::os::fd::AsFd::as_fd(map), 0, length, true)
                .map_err(|cause| LoadError::Mapping { map: name, cause })
        };
        Layout::leave(paths)?;
        let mut ids = Ids::open(load::user_map(paths, "ids", size_of::<IdCounters>())?)?;
        let words = map_words(&skel.maps.policy_words, "policy_words", abi::MAX_SLOTS as usize * 8)?;
        let accounts = Accounts::open(paths)?;
        let live = LiveEndpoints::default();
        let timeouts = load::timeouts(skel)?;
        let usages = || map_words(&skel.maps.usages, "usages", Usages::BYTES).map(Usages);
        let conntrack = ConntrackSweeper::new(
            handle(&skel.maps.conntrack)?,
            handle(&skel.maps.endpoints)?,
            usages()?,
            Arc::clone(&live),
            timeouts,
            load::quotas(skel)?,
        )?;
        let entries = EntryMaps {
            hash: TypedMap::new(handle(&skel.maps.endpoints)?)?,
            near: TypedMap::new(handle(&skel.maps.near_endpoints)?)?,
        };
        let takeover = Takeover::begin(paths, skel, &entries, &words, &mut ids)?;
        let departures = Arc::default();
        let services = services::Services::open(
            handle(&skel.maps.services)?,
            handle(&skel.maps.backends)?,
            Arc::clone(&departures),
        )?;
        let departures = DepartureSweeper::new(
            departures,
            handle(&skel.maps.affinities)?,
            handle(&skel.maps.conntrack)?,
        )?;
        services.note_left(takeover.flows())?;
        let endpoints = Endpoints::new(entries, words, usages()?);
        ids.hold_tables(endpoints.in_force()?.tables);
        let datapath = Self {
            endpoints,
            attacher: Attacher::new(
                [&skel.progs.pod_ingress, &skel.progs.pod_egress],
                kind,
                paths.links.clone(),
                takeover.links(),
            ),
            peer_maps: PeerMaps {
                exact: TypedMap::new(handle(&skel.maps.peers)?)?,
                cidrs: TypedMap::new(handle(&skel.maps.cidrs)?)?,
            },
            services,
            rules: TypedMap::new(handle(&skel.maps.rules)?)?,
            ranges: TypedMap::new(handle(&skel.maps.ranges)?)?,
            settings: map_words(&skel.maps.settings, "settings", size_of::<abi::Settings>())?,
            ids,
            limits: Limits {
                // Those of the maps that are there: twice the limit, see `load`.
                peers: skel.maps.peers.max_entries() / 2,
                rules: skel.maps.rules.max_entries() / 2,
                ..config.limits.clone()
            },
            names,
            loaded: Loaded {
                sweep: true,
                ..Loaded::default()
            },
            live,
            takeover,
        };
        datapath.set_enforcement(config);
        let former = datapath.takeover.accounts()?;
        let taking_over = datapath.takeover.progress();
        Ok((
            datapath,
            Handles {
                accounts,
                conntrack,
                departures,
                kept_limits,
                former,
                taking_over,
            },
        ))
    }

    /// How many pods the programs of another version may still judge.
    pub fn judged_by_others(&self) -> usize {
        self.takeover.waiting()
    }

    /// Pods whose programs are not the first at their hook.
    pub fn bypassed(&self) -> Vec<(ObjectName, Vec<Direction>)> {
        let managed = self.endpoints.managed.iter();
        managed
            .map(|(_, managed)| (managed.spec.pod.clone(), managed.attached.at(Place::Behind)))
            .filter(|(_, directions)| !directions.is_empty())
            .collect()
    }

    /// Puts back the programs that somebody took off; of all interfaces, or of those in `only`.
    pub fn restore(&mut self, only: Option<&BTreeSet<u32>>) -> Vec<Restored> {
        let Self {
            endpoints, attacher, ..
        } = self;
        let mut restored = Vec::new();
        for (ifindex, managed) in &mut endpoints.managed {
            if only.is_some_and(|only| !only.contains(ifindex)) {
                continue;
            }
            for direction in managed.attached.at(Place::Gone) {
                let failure = match managed.attached.restore(attacher, managed.uid, direction) {
                    Ok(()) => None,
                    // Its pod goes too, or moves: what follows the interfaces takes care of that.
                    Err(error) if error.is_interface_gone() => continue,
                    Err(error) => Some(error.to_string()),
                };
                restored.push(Restored {
                    pod: managed.spec.pod.clone(),
                    direction,
                    failure,
                });
            }
        }
        restored
    }

    /// Whether new pods have filters that links are to take over from.
    pub fn has_filters(&self) -> bool {
        self.endpoints.has_filters()
    }

    /// Lets a link take over from one of the filters, which takes a grace period (docs/decisions/0009-filters-first.md).
    ///
    /// # Errors
    /// The filter stays, and its turn comes again.
    pub fn hand_over(&mut self) -> Result<(), HandOverError> {
        Ok(self.endpoints.hand_over(&self.attacher)?)
    }

    /// What policies have room for, on a node that knows of no nodes.
    pub fn room(&self) -> Room {
        Room {
            rules: self.limits.rules as usize,
            peers: self.limits.peers as usize,
            nodes: 0,
        }
    }

    /// Whether a pod's programs are at the interface, under a policy.
    pub fn manages(&self, ifindex: u32, pod_uid: &str) -> bool {
        let managed = self.endpoints.managed.get(&ifindex);
        managed.is_some_and(|managed| &*managed.spec.pod_uid == pod_uid)
    }

    /// The pods that an earlier life of the daemon managed, by ifindex.
    pub fn inherited(&self) -> Vec<(u32, EndpointSpec)> {
        self.endpoints.inherited_pods(&self.names)
    }

    fn set_enforcement(&self, config: &DaemonConfig) {
        let mode = |is_enforced| {
            if is_enforced {
                abi::Enforcement::Enforce
            } else {
                abi::Enforcement::Audit
            }
        };
        self.store_setting(
            std::mem::offset_of!(abi::Settings, policy),
            mode(config.enforcement == Enforcement::Enforce).into(),
        );
        self.store_setting(
            std::mem::offset_of!(abi::Settings, source_check),
            mode(config.source_address_check == SourceAddressCheck::Enforce).into(),
        );
    }

    fn set_log_modes(&self, modes: LogModes) {
        let mode = |logged| match logged {
            Logged::Off => abi::LogMode::Off,
            Logged::All => abi::LogMode::All,
            Logged::Delegated => abi::LogMode::Delegated,
        };
        self.store_setting(std::mem::offset_of!(abi::Settings, log_allow), mode(modes.allow).into());
        self.store_setting(std::mem::offset_of!(abi::Settings, log_deny), mode(modes.deny).into());
    }

    fn store_setting(&self, offset: usize, value: u8) {
        self.settings.u8(offset).store(value, Ordering::Release);
    }
}
