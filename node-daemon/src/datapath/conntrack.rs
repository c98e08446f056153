// SPDX-License-Identifier: Apache-2.0
//! Tidies the connection table: entries that have expired, those of endpoints that are gone, and those of flows to a
//! Service that lack their other half.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use libbpf_rs::MapHandle;
use wardline_bpf::abi::{self, ConntrackEntry, ConntrackKey, Endpoint};

use super::map::{MapError, TypedMap};
use super::quotas::{Held, Quotas, Usages};
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
    endpoints: TypedMap<u32, Endpoint>,
    usages: Usages,
    live: LiveEndpoints,
    timeouts: Timeouts,
    quotas: Quotas,
}

/// Ticks after which what nobody answered goes where an endpoint comes near its quota: a handshake takes less, and a
/// peer that repeats itself within them stays.
const PRESSED_TICKS: u64 = 5;

/// An endpoint while the table is read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Its place among the usages.
    index: u32,
    /// Before the first entry was read.
    counted: Held,
    is_pressed: bool,
    there: Held,
}

/// Idle times in ticks, as the programs were loaded with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) tcp_opening: u32,
    pub(super) tcp_open: u32,
    pub(super) tcp_closing: u32,
    pub(super) udp: u32,
    pub(super) udp_stream: u32,
    pub(super) icmp: u32,
    pub(super) other: u32,
}

impl ConntrackSweeper {
    pub(super) fn new(
        handle: MapHandle,
        endpoints: MapHandle,
        usages: Usages,
        live: LiveEndpoints,
        timeouts: Timeouts,
        quotas: Quotas,
    ) -> Result<Self, MapError> {
        Ok(Self {
            map: TypedMap::new(handle)?,
            endpoints: TypedMap::new(endpoints)?,
            usages,
            live,
            timeouts,
            quotas,
        })
    }

    /// Whether some endpoint is near its share of the table, so that waiting longer would cost it connections.
    pub fn is_pressed(&self) -> bool {
        (0..abi::MAX_ENDPOINTS).any(|index| self.quotas.is_pressed(self.usages.held(index)))
    }

    /// Reads the whole table once, and looks at what is to go again just before it goes.
    pub fn sweep(&self, now_ns: u64) -> Result<Swept, MapError> {
        let tick = now_ns >> abi::TICK_SHIFT;
        let (mut entries, mut stale, mut halves) = (0, Vec::new(), Vec::new());
        let mut owners = HashSet::new();
        let mut readings = self.readings()?;
        self.map.for_each(|key, entry| {
            entries += 1;
            owners.insert(key.endpoint);
            let reading = readings.get_mut(&key.endpoint);
            let is_pressed = reading.as_ref().is_some_and(|reading| reading.is_pressed);
            let is_early = is_pressed && is_unanswered(&entry, tick);
            let is_stale = is_early || self.is_expired(&key, &entry, tick);
            if translated::is_alias(&entry) || translated::is_translated(&entry) {
                if is_settled(&entry, tick) {
                    halves.push((key, is_early));
                }
            } else if is_stale {
                stale.push((key, is_early));
            }
            if let Some(reading) = reading.filter(|_| !is_stale && !translated::is_alias(&entry)) {
                reading.there.entries += 1;
                reading.there.half_open += u64::from(is_half_open(&entry));
            }
        })?;
        let deleted = self.sweep_stale(&stale, tick)?;
        for reading in readings.values() {
            self.usages.settle(reading.index, reading.counted, reading.there);
        }
        let deleted = deleted + self.sweep_translated(&halves, tick)? + self.sweep_gone(&owners)?;
        Ok(Swept { entries, deleted })
    }

    /// The endpoints there are, by uid.
    fn readings(&self) -> Result<HashMap<u32, Reading>, MapError> {
        let mut readings = HashMap::new();
        self.endpoints.for_each(|_, endpoint| {
            let index = endpoint.slot / 2;
            let reading = Reading {
                index,
                counted: self.usages.counted(index),
                is_pressed: self.quotas.is_pressed(self.usages.held(index)),
                there: Held::default(),
            };
            readings.insert(endpoint.uid, reading);
        })?;
        Ok(readings)
    }

    /// A new connection may have taken an entry's place since the table was read, which takes long where it is full.
    /// Deleted with it, that connection would be found in mid-stream and told a second time.
    fn sweep_stale(&self, stale: &[(ConntrackKey, bool)], tick: u64) -> Result<usize, MapError> {
        let mut deleted = 0;
        for (key, is_early) in stale {
            let is_stale =
                |entry: &ConntrackEntry| self.is_expired(key, entry, tick) || (*is_early && is_unanswered(entry, tick));
            if self.map.get(key)?.is_some_and(|entry| is_stale(&entry)) {
                self.map.delete(key)?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }

    /// An alias lives as long as its entry, whose time alone counts, and neither lives without the other. Both are
    /// looked at again: a packet may have refreshed them since the table was read.
    fn sweep_translated(&self, halves: &[(ConntrackKey, bool)], tick: u64) -> Result<usize, MapError> {
        let mut deleted = 0;
        for (key, is_early) in halves {
            let Some(entry) = self.map.get(key)?.filter(|entry| is_settled(entry, tick)) else {
                continue;
            };
            if !translated::is_paired(&self.map, key, &entry)? {
                self.map.delete(key)?;
                deleted += 1;
            } else if translated::is_translated(&entry)
                && (self.is_expired(key, &entry, tick) || (*is_early && is_unanswered(&entry, tick)))
            {
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

fn is_half_open(entry: &ConntrackEntry) -> bool {
    entry.state == u8::from(abi::ConntrackState::Opening)
}

fn is_unanswered(entry: &ConntrackEntry, tick: u64) -> bool {
    is_half_open(entry) && tick.saturating_sub(u64::from(entry.last_seen)) > PRESSED_TICKS
}

/// Not of this moment: both halves of a flow to a Service are written within one packet.
fn is_settled(entry: &ConntrackEntry, tick: u64) -> bool {
    tick.saturating_sub(u64::from(entry.last_seen)) > 2
}

impl Timeouts {
    fn of(&self, protocol: u8, state: u8) -> u32 {
        let opening = u8::from(abi::ConntrackState::Opening);
        let open = u8::from(abi::ConntrackState::Open);
        let closing = u8::from(abi::ConntrackState::Closing);
        match (protocol, state) {
            (6, state) if state == opening => self.tcp_opening,
            (6, state) if state == closing => self.tcp_closing,
            (6, _) => self.tcp_open,
            (17, state) if state == opening || state == open => self.udp,
            (17, _) => self.udp_stream,
            (1 | 58, _) => self.icmp,
            _ => self.other,
        }
    }
}
