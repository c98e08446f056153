// SPDX-License-Identifier: Apache-2.0
//! Tidies the connection table: entries that have expired, those of endpoints that are gone, and those of flows to a
//! Service that lack their other half.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use libbpf_rs::MapHandle;
use wardline_bpf::abi::{self, ConntrackEntry, ConntrackKey};

use super::map::{MapError, TypedMap};
use super::translated::{self, Connections};

/// Uids of the endpoints there are; None until the first policy was applied.
pub(super) type LiveEndpoints = Arc<RwLock<Option<HashSet<u32>>>>;

/// What a sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub entries: usize,
    pub deleted: usize,
}

#[derive(Debug)]
pub struct ConntrackSweeper {
    map: Connections,
    live: LiveEndpoints,
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
    pub(super) fn new(handle: MapHandle, live: LiveEndpoints, timeouts: Timeouts) -> Result<Self, MapError> {
        Ok(Self {
            map: TypedMap::new(handle)?,
            live,
            timeouts,
        })
    }

    /// Reads the whole table once. A packet may refresh an entry between the reading and the deletion; its flow is
    /// then judged once more, as one in mid-stream.
    pub fn sweep(&self, now_ns: u64) -> Result<Swept, MapError> {
        let tick = now_ns >> abi::TICK_SHIFT;
        let (mut entries, mut stale, mut halves) = (0, Vec::new(), Vec::new());
        let mut owners = HashSet::new();
        self.map.for_each(|key, entry| {
            entries += 1;
            owners.insert(key.endpoint);
            if translated::is_alias(&entry) || translated::is_translated(&entry) {
                if is_settled(&entry, tick) {
                    halves.push((key, entry));
                }
            } else if self.is_expired(&key, &entry, tick) {
                stale.push(key);
            }
        })?;
        stale.iter().try_for_each(|key| self.map.delete(key))?;
        let deleted = stale.len() + self.sweep_translated(&halves, tick)? + self.sweep_gone(&owners)?;
        Ok(Swept { entries, deleted })
    }

    /// An alias lives as long as its entry, whose time alone counts, and neither lives without the other. Both are
    /// looked at again: a packet may have refreshed them since the table was read.
    fn sweep_translated(&self, halves: &[(ConntrackKey, ConntrackEntry)], tick: u64) -> Result<usize, MapError> {
        let mut deleted = 0;
        for (key, _) in halves {
            let Some(entry) = self.map.get(key)?.filter(|entry| is_settled(entry, tick)) else {
                continue;
            };
            if !translated::is_paired(&self.map, key, &entry)? {
                self.map.delete(key)?;
                deleted += 1;
            } else if translated::is_translated(&entry) && self.is_expired(key, &entry, tick) {
                translated::delete(&self.map, key, &entry)?;
                deleted += 2;
            }
        }
        Ok(deleted)
    }

    /// Entries of endpoints that are gone. Who is live is asked after the table was read: an endpoint is made known
    /// before its first packet.
    fn sweep_gone(&self, owners: &HashSet<u32>) -> Result<usize, MapError> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(live) = live else { return Ok(0) };
        let gone: HashSet<u32> = owners.difference(&live).copied().collect();
        if gone.is_empty() {
            return Ok(0);
        }
        let mut stale = Vec::new();
        self.map.for_each(|key, _| {
            if gone.contains(&key.endpoint) {
                stale.push(key);
            }
        })?;
        stale.iter().try_for_each(|key| self.map.delete(key))?;
        Ok(stale.len())
    }

    fn is_expired(&self, key: &ConntrackKey, entry: &ConntrackEntry, tick: u64) -> bool {
        let idle = tick.saturating_sub(u64::from(entry.last_seen));
        idle > u64::from(self.timeouts.of(key.protocol, entry.state)) + 1
    }
}

/// Not of this moment: both halves of a flow to a Service are written within one packet.
fn is_settled(entry: &ConntrackEntry, tick: u64) -> bool {
    tick.saturating_sub(u64::from(entry.last_seen)) > 2
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
