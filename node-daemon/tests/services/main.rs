// SPDX-License-Identifier: Apache-2.0
//! Services in the kernel's tables: what a change writes, what another life of the daemon finds. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod clients;
mod room;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use wardline_bpf::abi::{self, Affinity, AffinityKey, Backend, BackendKey, ServiceKey};
use wardline_crds::config::DaemonConfig;
use wardline_node::datapath::{PinPaths, ServiceCounts};
use wardline_node::services::{Endpoint, EndpointState, Service, ServicePort, Services, Slice, SlicePort};
use wardline_policy::model::{ObjectName, Protocol};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use support::{Life, Node, on_a_node};

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A Service with one UDP port, 80, and a client that stays for an hour.
fn service(cluster_ip: &str) -> Service {
    Service {
        cluster_ips: vec![cluster_ip.parse().unwrap()],
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Udp,
            port: 80,
            node_port: None,
        }],
        affinity_seconds: 3600,
        ..Service::default()
    }
}

/// Ready endpoints by the last part of their addresses, on port 8080.
fn slice(service: &str, endpoints: impl IntoIterator<Item = u8>) -> Slice {
    let endpoint = |n| Endpoint {
        address: format!("10.0.0.{n}").parse().unwrap(),
        node: None,
        state: EndpointState::Ready,
        zones: Vec::new(),
        nodes: Vec::new(),
    };
    Slice {
        service: service.into(),
        ports: vec![SlicePort {
            name: "".into(),
            protocol: Protocol::Udp,
            port: 8080,
        }],
        endpoints: endpoints.into_iter().map(endpoint).collect(),
    }
}

fn set(services: &mut Services, service_name: &str, cluster_ip: &str, endpoints: &[u8]) {
    services.set_service(&name(service_name), Some(service(cluster_ip)));
    services.set_slice(
        &name(service_name),
        Some(slice(service_name, endpoints.iter().copied())),
    );
}

#[track_caller]
fn apply(services: &mut Services, life: &mut Life) {
    for change in services.take_changes() {
        life.datapath.apply_services(&change).unwrap();
    }
}

/// A front as the kernel has it.
type Shown = (abi::Service, BTreeSet<SocketAddr>);

/// The tables of Services, read past the daemon.
struct Tables {
    services: MapHandle,
    backends: MapHandle,
    affinities: MapHandle,
}

impl Tables {
    fn of(node: &Node) -> Self {
        let maps = PinPaths::new(&node.bpffs).maps;
        let open = |name: &str| MapHandle::from_pinned_path(maps.join(name)).unwrap();
        Self {
            services: open("services"),
            backends: open("backends"),
            affinities: open("affinities"),
        }
    }

    fn fronts(&self) -> BTreeMap<(SocketAddr, u8), Shown> {
        let fronts = entries::<ServiceKey, abi::Service>(&self.services);
        let fronts = fronts.into_iter().map(|(key, service)| {
            let backends = (0..service.count).map(|index| {
                let list = BackendKey {
                    list: service.list,
                    index,
                };
                let backend = self.backends.lookup(list.as_bytes(), MapFlags::ANY).unwrap().unwrap();
                SocketAddr::from(Backend::read_from_bytes(&backend).unwrap())
            });
            let address = SocketAddr::new(key.address.into(), u16::from_be(key.port));
            ((address, key.protocol), (service, backends.collect()))
        });
        fronts.collect()
    }

    fn web(&self) -> Shown {
        self.fronts().remove(&(socket("10.96.0.1:80"), 17)).unwrap()
    }

    fn entries(&self) -> usize {
        entries::<BackendKey, Backend>(&self.backends).len()
    }

    fn stay(&self, service: u32, client: &str, backend: &str) {
        let key = AffinityKey {
            service,
            client: client.parse::<std::net::Ipv4Addr>().unwrap().into(),
        };
        let value = Affinity {
            backend: socket(backend).into(),
            last_used: 1,
        };
        self.affinities
            .update(key.as_bytes(), value.as_bytes(), MapFlags::ANY)
            .unwrap();
    }

    fn stays(&self) -> BTreeSet<SocketAddr> {
        let found = entries::<AffinityKey, Affinity>(&self.affinities);
        found.into_iter().map(|(_, affinity)| affinity.backend.into()).collect()
    }
}

fn entries<K: FromBytes, V: FromBytes + Immutable>(map: &MapHandle) -> Vec<(K, V)> {
    let value = |key: &Vec<u8>| map.lookup(key, MapFlags::ANY).unwrap().unwrap();
    map.keys()
        .map(|key| {
            (
                K::read_from_bytes(&key).unwrap(),
                V::read_from_bytes(&value(&key)).unwrap(),
            )
        })
        .collect()
}

fn backends(numbers: &[u8]) -> BTreeSet<SocketAddr> {
    numbers.iter().map(|n| socket(&format!("10.0.0.{n}:8080"))).collect()
}

#[test]
fn a_change_gives_the_front_another_list_and_leaves_the_rest_alone() {
    on_a_node(0, |node| {
        let mut life = node.start(&DaemonConfig::default());
        let tables = Tables::of(node);
        let mut services = Services::new("node1", true);
        set(&mut services, "web", "10.96.0.1", &[1, 2]);
        set(&mut services, "other", "10.96.0.2", &[1, 2]);
        apply(&mut services, &mut life);
        let before = tables.fronts();
        assert_eq!(before.len(), 4, "two fronts and their addresses");
        let (web, found) = tables.web();
        assert_eq!((web.flags, found), (abi::SERVICE_TRANSLATE, backends(&[1, 2])));
        assert_eq!(web.affinity, 3353, "an hour in ticks of 1.07 s, rounded up");
        assert_eq!(before[&(socket("10.96.0.1:0"), 0)].0.count, 0);
        assert_eq!(tables.entries(), 2, "equal lists are one");

        set(&mut services, "web", "10.96.0.1", &[2, 3, 4]);
        apply(&mut services, &mut life);
        let (changed, found) = tables.web();
        assert_eq!(found, backends(&[2, 3, 4]));
        assert!(
            changed.id == web.id && changed.list > web.list,
            "{changed:?} after {web:?}"
        );
        let others = |fronts: BTreeMap<_, Shown>| {
            fronts
                .into_iter()
                .filter(|(_, (s, _))| s.id != web.id)
                .collect::<Vec<_>>()
        };
        assert_eq!(others(tables.fronts()), others(before));

        set(&mut services, "other", "10.96.0.2", &[]);
        apply(&mut services, &mut life);
        assert_eq!(tables.entries(), 5, "a packet may still read the old list");
        life.datapath.collect_garbage().unwrap();
        assert_eq!(tables.entries(), 3);
        services.set_service(&name("web"), None);
        apply(&mut services, &mut life);
        life.datapath.collect_garbage().unwrap();
        assert_eq!((tables.entries(), tables.fronts().len()), (0, 2));
        assert_eq!(life.datapath.service_counts(), ServiceCounts { fronts: 2, backends: 0 });
    });
}

#[test]
fn another_life_writes_only_what_is_different() {
    on_a_node(0, |node| {
        let mut life = node.start(&DaemonConfig::default());
        let tables = Tables::of(node);
        let mut services = Services::new("node1", true);
        for (service, ip, endpoints) in [
            ("web", "10.96.0.1", &[1, 2][..]),
            ("same", "10.96.0.2", &[3, 4]),
            ("former", "10.96.0.3", &[5]),
        ] {
            set(&mut services, service, ip, endpoints);
        }
        apply(&mut services, &mut life);
        let before = tables.fronts();
        // Killed after it wrote a list that no front names.
        let key = BackendKey { list: 77, index: 0 };
        let backend = Backend::from(socket("10.0.0.9:8080"));
        tables
            .backends
            .update(key.as_bytes(), backend.as_bytes(), MapFlags::ANY)
            .unwrap();
        drop(life);

        let mut life = node.start(&DaemonConfig::default());
        assert_eq!(tables.fronts(), before, "until the cluster is known");
        let mut services = Services::new("node1", true);
        set(&mut services, "web", "10.96.0.1", &[1]);
        set(&mut services, "same", "10.96.0.2", &[3, 4]);
        apply(&mut services, &mut life);
        life.datapath
            .retain_services(|key| services.front(key).is_some())
            .unwrap();
        let after = tables.fronts();
        let same = (socket("10.96.0.2:80"), 17);
        assert_eq!(after[&same], before[&same]);
        let (web, found) = tables.web();
        assert_eq!(found, backends(&[1]));
        let former = before[&(socket("10.96.0.1:80"), 17)].0;
        let ids: Vec<u32> = before
            .values()
            .flat_map(|(service, _)| [service.id, service.list])
            .collect();
        assert!(web.id == former.id && !ids.contains(&web.list), "{web:?}");
        assert_eq!(after.len(), 4, "the Service that went meanwhile is gone: {after:?}");
        life.datapath.collect_garbage().unwrap();
        assert_eq!(tables.entries(), 3);
    });
}

/// Numbers that look like chance and are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u8::try_from((self.0 >> 33) % limit).unwrap()
    }
}

#[test]
fn change_by_change_the_kernel_holds_what_it_would_hold_from_nothing() {
    on_a_node(0, |node| {
        let mut life = node.start(&DaemonConfig::default());
        let tables = Tables::of(node);
        let mut services = Services::new("node1", true);
        let mut chance = Chance(4);
        let mut wanted: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for round in 0..150 {
            let service = chance.below(12);
            let service_name = format!("web-{service}");
            if chance.below(5) == 0 {
                services.set_service(&name(&service_name), None);
                wanted.remove(&service);
            } else {
                let endpoints: Vec<u8> = (0..chance.below(5)).map(|_| chance.below(4)).collect();
                set(&mut services, &service_name, &format!("10.96.0.{service}"), &endpoints);
                wanted.insert(service, endpoints);
            }
            apply(&mut services, &mut life);
            match chance.below(30) {
                0 => {
                    drop(life);
                    life = node.start(&DaemonConfig::default());
                }
                1..6 => life.datapath.collect_garbage().unwrap(),
                _ => {}
            }
            let found = tables.fronts().into_iter().filter(|((front, _), _)| front.port() != 0);
            let found: BTreeMap<SocketAddr, _> = found.map(|((front, _), (_, backends))| (front, backends)).collect();
            let expected = wanted
                .iter()
                .map(|(service, endpoints)| (socket(&format!("10.96.0.{service}:80")), backends(endpoints)));
            assert_eq!(found, expected.collect(), "round {round}");
        }
        life.datapath.collect_garbage().unwrap();
        let fronts = tables.fronts();
        let lists = fronts
            .values()
            .map(|(service, backends)| (service.list, backends.len()));
        let named: usize = lists.collect::<BTreeMap<_, _>>().values().sum();
        assert_eq!(tables.entries(), named, "nothing is left over");
    });
}
