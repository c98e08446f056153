// SPDX-License-Identifier: Apache-2.0
//! The shipped programs, loaded with tables of their own and pinned nowhere: what tests and the benchmark play with.
//! Loading needs root. Every map is read and written by the ABI's types.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::rc::Rc;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorExt, MapCore, MapFlags, MapMut, OpenObject, ProgramMut, RingBufferBuilder};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{
    Address, Affinity, AffinityKey, Backend, BackendKey, CidrKey, ConntrackEntry, ConntrackKey, Counters, DenyEntry,
    DenyKey, DenyShare, Direction, Endpoint, Event, NEAR_ENDPOINTS, NearEndpoint, Peer, PeerKey, RangeKey, Rule,
    RuleKey, Service, ServiceKey, Settings,
};
use crate::test_run::{self, Frame, Outcome};
use crate::{WardlineSkel, WardlineSkelBuilder};

/// Sizes of the tables: entries, and bytes for the ring (a power of two, at least a page).
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub conntrack: u32,
    pub peers: u32,
    pub rules: u32,
    pub denies: u32,
    pub ring: u32,
    /// Denies of one direction of an endpoint that leave an event each in a generation.
    pub deny_event_share: u32,
    /// Entries of conntrack that one endpoint may have, and those that nobody answered.
    pub connection_quota: u32,
    pub half_open_quota: u32,
    /// How long after its first a later fragment passes; -1 for not at all.
    pub fragment_ticks: i32,
}

/// Small enough to load in no time, large enough for a table of packets.
impl Default for Sizes {
    fn default() -> Self {
        Self {
            conntrack: 1024,
            peers: 1024,
            rules: 1024,
            denies: 1024,
            ring: 64 << 10,
            deny_event_share: 0,
            connection_quota: u32::MAX >> 1,
            half_open_quota: u32::MAX >> 1,
            fragment_ticks: 28,
        }
    }
}

/// The loaded programs and their tables; all go when it is dropped.
pub struct Sandbox {
    skel: WardlineSkel<'static>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").finish_non_exhaustive()
    }
}

fn value<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8], what: &str) -> libbpf_rs::Result<T> {
    // Per-CPU values are padded to eight bytes.
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| {
        libbpf_rs::Error::from(std::io::Error::from(std::io::ErrorKind::InvalidData))
            .context(format!("failed to read {what}: {} bytes", bytes.len()))
    })
}

fn read<K: IntoBytes + Immutable, V: FromBytes + KnownLayout + Immutable>(
    map: &MapMut<'_>,
    key: &K,
) -> libbpf_rs::Result<Option<V>> {
    map.lookup(key.as_bytes(), MapFlags::ANY)?
        .map(|bytes| value(&bytes, "a value"))
        .transpose()
}

fn write<K: IntoBytes + Immutable, V: IntoBytes + Immutable>(
    map: &MapMut<'_>,
    key: &K,
    value: &V,
) -> libbpf_rs::Result<()> {
    map.update(key.as_bytes(), value.as_bytes(), MapFlags::ANY)
}

fn entries<K, V>(map: &MapMut<'_>) -> libbpf_rs::Result<Vec<(K, V)>>
where
    K: FromBytes + IntoBytes + KnownLayout + Immutable,
    V: FromBytes + KnownLayout + Immutable,
{
    let mut found = Vec::new();
    for bytes in map.keys() {
        let key: K = value(&bytes, "a key")?;
        if let Some(value) = read(map, &key)? {
            found.push((key, value));
        }
    }
    Ok(found)
}

impl Sandbox {
    pub fn load(sizes: Sizes) -> libbpf_rs::Result<Self> {
        // The skeleton borrows its storage for as long as it lives; a few words a sandbox, in processes that end soon.
        let storage: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = WardlineSkelBuilder::default().open(storage)?;
        open.maps.conntrack.set_max_entries(sizes.conntrack)?;
        open.maps.peers.set_max_entries(sizes.peers)?;
        open.maps.cidrs.set_max_entries(sizes.peers)?;
        open.maps.rules.set_max_entries(sizes.rules)?;
        open.maps.ranges.set_max_entries(sizes.rules)?;
        open.maps.denies.set_max_entries(sizes.denies)?;
        open.maps.events.set_max_entries(sizes.ring)?;
        if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
            rodata.deny_entries = sizes.denies;
            rodata.deny_event_share = sizes.deny_event_share;
            rodata.connection_quota = sizes.connection_quota;
            rodata.half_open_quota = sizes.half_open_quota;
            rodata.fragment_ticks = sizes.fragment_ticks;
        }
        Ok(Self { skel: open.load()? })
    }

    pub fn program(&self, direction: Direction) -> &ProgramMut<'static> {
        match direction {
            Direction::Ingress => &self.skel.progs.pod_ingress,
            Direction::Egress => &self.skel.progs.pod_egress,
        }
    }

    /// One frame through the program of that direction.
    pub fn run(&self, direction: Direction, frame: Frame<'_>) -> libbpf_rs::Result<Outcome> {
        test_run::run(self.program(direction), frame, 1)
    }

    /// In both of its maps.
    pub fn set_endpoint(&self, ifindex: u32, endpoint: &Endpoint) -> libbpf_rs::Result<()> {
        let place = ifindex % NEAR_ENDPOINTS;
        let near = |ifindex| NearEndpoint {
            ifindex,
            endpoint: *endpoint,
        };
        write(&self.skel.maps.endpoints, &ifindex, endpoint)?;
        write(&self.skel.maps.near_endpoints, &place, &near(0))?;
        write(&self.skel.maps.near_endpoints, &place, &near(ifindex))
    }

    /// Leaves it to the hash, as if another interface had its place.
    pub fn vacate_near_endpoint(&self, ifindex: u32) -> libbpf_rs::Result<()> {
        write(
            &self.skel.maps.near_endpoints,
            &(ifindex % NEAR_ENDPOINTS),
            &NearEndpoint::default(),
        )
    }

    pub fn remove_endpoint(&self, ifindex: u32) -> libbpf_rs::Result<()> {
        self.vacate_near_endpoint(ifindex)?;
        self.skel.maps.endpoints.delete(ifindex.as_bytes())
    }

    /// The packed word of a slot.
    pub fn set_word(&self, slot: u32, word: u64) -> libbpf_rs::Result<()> {
        write(&self.skel.maps.policy_words, &slot, &word)
    }

    pub fn set_peer(&self, peers: u32, address: IpAddr, peer: Peer) -> libbpf_rs::Result<()> {
        write(
            &self.skel.maps.peers,
            &PeerKey {
                peers,
                address: address.into(),
            },
            &peer,
        )
    }

    /// `prefix` is the family's own: up to 32 or 128.
    pub fn set_cidr(&self, peers: u32, network: IpAddr, prefix: u32, peer: Peer) -> libbpf_rs::Result<()> {
        let mapped = if network.is_ipv4() { 96 } else { 0 };
        let key = CidrKey {
            prefixlen: 32 + mapped + prefix,
            peers,
            address: Address::from(network),
        };
        write(&self.skel.maps.cidrs, &key, &peer)
    }

    pub fn set_rule(&self, key: &RuleKey, rule: Rule) -> libbpf_rs::Result<()> {
        write(&self.skel.maps.rules, key, &rule)
    }

    pub fn set_range(&self, key: &RangeKey, rule: Rule) -> libbpf_rs::Result<()> {
        write(&self.skel.maps.ranges, key, &rule)
    }

    /// What stands behind an address, port and protocol. Its backends are written first.
    pub fn set_service(&self, key: &ServiceKey, service: Service, behind: &[Backend]) -> libbpf_rs::Result<()> {
        for (index, backend) in (0..).zip(behind) {
            let key = BackendKey {
                list: service.list,
                index,
            };
            write(&self.skel.maps.backends, &key, backend)?;
        }
        write(&self.skel.maps.services, key, &service)
    }

    pub fn affinities(&self) -> libbpf_rs::Result<Vec<(AffinityKey, Affinity)>> {
        entries(&self.skel.maps.affinities)
    }

    pub fn set_affinity(&self, key: &AffinityKey, affinity: Affinity) -> libbpf_rs::Result<()> {
        write(&self.skel.maps.affinities, key, &affinity)
    }

    pub fn set_settings(&self, settings: Settings) -> libbpf_rs::Result<()> {
        write(&self.skel.maps.settings, &0_u32, &settings)
    }

    /// Of one parity, summed over all CPUs.
    pub fn counters(&self, generation: u32) -> libbpf_rs::Result<Counters> {
        let index = generation & 1;
        let mut sum = Counters::default();
        for bytes in self
            .skel
            .maps
            .counters
            .lookup_percpu(index.as_bytes(), MapFlags::ANY)?
            .unwrap_or_default()
        {
            let cpu: Counters = value(&bytes, "counters")?;
            let pairs = sum
                .packets
                .as_flattened_mut()
                .iter_mut()
                .zip(cpu.packets.as_flattened());
            let pairs = pairs.chain(sum.due.as_flattened_mut().iter_mut().zip(cpu.due.as_flattened()));
            for (total, part) in pairs.chain(sum.ring_full.iter_mut().zip(&cpu.ring_full)) {
                *total += part;
            }
        }
        Ok(sum)
    }

    pub fn denies(&self) -> libbpf_rs::Result<Vec<(DenyKey, DenyEntry)>> {
        entries(&self.skel.maps.denies)
    }

    /// Of one direction's slot, in one generation.
    pub fn deny_share(&self, slot: u32, generation: u32) -> libbpf_rs::Result<DenyShare> {
        let index = slot * 2 + (generation & 1);
        Ok(read(&self.skel.maps.deny_shares, &index)?.unwrap_or_default())
    }

    pub fn conntrack(&self) -> libbpf_rs::Result<Vec<(ConntrackKey, ConntrackEntry)>> {
        entries(&self.skel.maps.conntrack)
    }

    pub fn set_conntrack(&self, key: &ConntrackKey, entry: &ConntrackEntry) -> libbpf_rs::Result<()> {
        write(&self.skel.maps.conntrack, key, entry)
    }

    pub fn remove_conntrack(&self, key: &ConntrackKey) -> libbpf_rs::Result<()> {
        self.skel.maps.conntrack.delete(key.as_bytes())
    }

    /// Takes all events out of the ring.
    pub fn take_events(&self) -> libbpf_rs::Result<Vec<Event>> {
        let events = Rc::new(RefCell::new(Vec::new()));
        let into = Rc::clone(&events);
        let mut builder = RingBufferBuilder::new();
        builder.add(&self.skel.maps.events, move |bytes: &[u8]| {
            into.borrow_mut().push(value::<Event>(bytes, "an event"));
            0
        })?;
        builder.build()?.consume()?;
        let taken = events.take();
        taken.into_iter().collect()
    }
}
