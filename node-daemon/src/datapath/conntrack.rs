// SPDX-License-Identifier: Apache-2.0
//! Tidies the connection table: entries that have expired, and those of endpoints that are gone.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use libbpf_rs::MapHandle;
use wardline_bpf::abi::{self, ConntrackEntry, ConntrackKey};

use super::map::{MapError, TypedMap};

/// What a sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub entries: usize,
    pub deleted: usize,
}

#[derive(Debug)]
pub struct ConntrackSweeper {
    map: TypedMap<ConntrackKey, ConntrackEntry>,
    /// Uids of the endpoints there are; empty until the first policy was applied.
    live: Arc<RwLock<HashSet<u32>>>,
    timeouts: Timeouts,
}

/// Idle times in ticks, as the programs were loaded with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) tcp_opening: u32,
    pub(super) tcp_open: u32,
    pub(super) tcp_closing: u32,
    pub(super) udp_opening: u32,
    pub(super) udp_open: u32,
    pub(super) icmp: u32,
    pub(super) other: u32,
}

impl ConntrackSweeper {
    pub(super) fn new(
        handle: MapHandle,
        live: Arc<RwLock<HashSet<u32>>>,
        timeouts: Timeouts,
    ) -> Result<Self, MapError> {
        Ok(Self {
            map: TypedMap::new(handle)?,
            live,
            timeouts,
        })
    }

    /// Reads the whole table once. A packet may refresh an entry between the reading and the deletion; its flow is
    /// then judged once more, as one in mid-stream.
    pub fn sweep(&self, now_ns: u64) -> Result<Swept, MapError> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).clone();
        let tick = now_ns >> abi::TICK_SHIFT;
        let entries = self.map.entries()?;
        let mut swept = Swept {
            entries: entries.len(),
            deleted: 0,
        };
        for (key, entry) in &entries {
            let is_gone = !live.is_empty() && !live.contains(&key.endpoint);
            if is_gone || self.is_expired(key, entry, tick) {
                self.map.delete(key)?;
                swept.deleted += 1;
            }
        }
        Ok(swept)
    }

    fn is_expired(&self, key: &ConntrackKey, entry: &ConntrackEntry, tick: u64) -> bool {
        let idle = tick.saturating_sub(u64::from(entry.last_seen));
        idle > u64::from(self.timeouts.of(key.protocol, entry.state)) + 1
    }
}

impl Timeouts {
    fn of(&self, protocol: u8, state: u8) -> u32 {
        let opening = u8::from(abi::ConntrackState::Opening);
        let closing = u8::from(abi::ConntrackState::Closing);
        match (protocol, state) {
            (6, state) if state == opening => self.tcp_opening,
            (6, state) if state == closing => self.tcp_closing,
            (6, _) => self.tcp_open,
            (17, state) if state == opening => self.udp_opening,
            (17, _) => self.udp_open,
            (1 | 58, _) => self.icmp,
            _ => self.other,
        }
    }
}
