// SPDX-License-Identifier: Apache-2.0
//! Tidies the connection table: entries that have expired, those of endpoints that are gone, and those of flows to a
//! Service that lack their other half.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use libbpf_rs::MapHandle;
use wardline_bpf::abi::{self, ConntrackEntry, ConntrackKey, Endpoint};

use super::map::{MapError, TypedMap};
use super::quotas::{Held, Quotas, Usages};
use super::translated::{self, Connections, UDP};

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

/// Ticks after which what nobody answered, and what was only a question and its answer, goes where an endpoint comes
/// near its quota: a handshake takes less, and a peer that repeats itself within them stays.
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
        usages.clear_marks();
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
            let is_early = is_pressed && gives_way(&key, &entry, tick);
            let is_stale = is_early || self.is_expired(&key, &entry, tick);
            if translated::is_alias(&entry) || translated::is_translated(&entry) {
                if is_settled(&entry, tick) {
                    halves.push((key, is_early));
                }
            } else if is_stale {
                stale.push((key, is_early));
            }
            // An alias takes a place of its own, and says nothing about the flow.
            let is_alias = translated::is_alias(&entry);
            if let Some(reading) = reading.filter(|_| !is_stale || is_alias) {
                reading.there.entries += 1;
                reading.there.half_open += u64::from(is_half_open(&entry) && !is_alias);
            }
        })?;
        let read = readings
            .values()
            .map(|reading| self.usages.counted(reading.index))
            .collect::<Vec<_>>();
        let index = |key: &ConntrackKey| readings.get(&key.endpoint).map(|reading| reading.index);
        let mut deleted = self.sweep_gone(&owners)?;
        for (key, is_early) in stale {
            deleted += usize::from(self.take(index(&key), &key, self.is_stale(&key, is_early, tick))?);
        }
        for (key, is_early) in halves {
            deleted += self.sweep_half(index(&key), &key, is_early, tick)?;
        }
        for (reading, read) in readings.values().zip(read) {
            self.usages
                .settle(reading.index, reading.counted.midway(read), reading.there);
        }
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

    /// Whether an entry of this key has had its time, or gives way early.
    fn is_stale(&self, key: &ConntrackKey, is_early: bool, tick: u64) -> impl Fn(&ConntrackEntry) -> bool {
        move |entry| self.is_expired(key, entry, tick) || (is_early && gives_way(key, entry, tick))
    }

    /// Takes out an entry that is still stale. A new connection may have taken its place since the table was read, or
    /// does so in this very moment: that one stays, for it was told. True: it is gone.
    fn take(
        &self,
        index: Option<u32>,
        key: &ConntrackKey,
        is_stale: impl Fn(&ConntrackEntry) -> bool,
    ) -> Result<bool, MapError> {
        if self.map.get(key)?.is_none_or(|entry| !is_stale(&entry)) {
            return Ok(false);
        }
        self.marked(index, key, || match self.map.take(key)? {
            Some(entry) if !is_stale(&entry) => self.map.put_back(key, &entry).map(|()| false),
            _ => Ok(true),
        })
    }

    /// What belongs to no endpoint has no packets that would look for it.
    fn marked<T>(&self, index: Option<u32>, key: &ConntrackKey, take: impl FnOnce() -> T) -> T {
        match index {
            Some(index) => self.usages.swept(index, key, take),
            None => take(),
        }
    }

    /// An alias lives as long as its entry, whose time alone counts, and neither lives without the other. Both are
    /// looked at again: a packet may have refreshed them since the table was read. Returns how many are gone.
    fn sweep_half(&self, index: Option<u32>, key: &ConntrackKey, is_early: bool, tick: u64) -> Result<usize, MapError> {
        let Some(entry) = self.map.get(key)?.filter(|entry| is_settled(entry, tick)) else {
            return Ok(0);
        };
        if !translated::is_paired(&self.map, key, &entry)? {
            return Ok(usize::from(self.take(index, key, |entry| is_settled(entry, tick))?));
        }
        let is_stale = self.is_stale(key, is_early, tick);
        if translated::is_alias(&entry) || !is_stale(&entry) {
            return Ok(0);
        }
        // The alias first, so that no packet follows it any more.
        let alias = translated::alias_of(key, &entry);
        self.marked(index, &alias, || {
            let half = self.map.take(&alias)?;
            let is_gone = self.take(None, key, is_stale)?;
            match half {
                Some(half) if !is_gone || translated::entry_of(&alias, &half) != *key => {
                    self.map.put_back(&alias, &half)?;
                    Ok(usize::from(is_gone))
                }
                half => Ok(usize::from(half.is_some()) + usize::from(is_gone)),
            }
        })
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

/// What is opening still, and questions over UDP that have their answer: a server of many holds little else.
fn gives_way(key: &ConntrackKey, entry: &ConntrackEntry, tick: u64) -> bool {
    let is_answered = key.protocol == UDP && entry.state == u8::from(abi::ConntrackState::Open);
    (is_half_open(entry) || is_answered) && tick.saturating_sub(u64::from(entry.last_seen)) > PRESSED_TICKS
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
