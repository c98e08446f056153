// SPDX-License-Identifier: Apache-2.0
//! Services in the kernel's tables: what a change writes, what another life of the daemon finds. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use wardline_bpf::abi::{self, Affinity, AffinityKey, Backend, BackendKey, ServiceKey};
use wardline_bpf::frame;
use wardline_crds::config::DaemonConfig;
use wardline_node::datapath::{ApplyError, PinPaths, ServiceCounts};
use wardline_node::services::SlicePort;
use wardline_node::services::{
    Change, Endpoint, EndpointState, Front, FrontKey, Service, ServicePort, Services, Slice,
};
use wardline_policy::model::{Direction, Labels, ObjectName, Objects, Peer, Pod, Policy, Protocol, Rule, Selector};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use support::{Life, Node, Program, on_a_node};

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

#[test]
fn a_service_that_does_not_fit_is_refused_whole_and_holds_up_no_other() {
    on_a_node(0, |node| {
        let mut life = node.start(&DaemonConfig::default());
        let tables = Tables::of(node);
        let key = |address: &str, port| FrontKey {
            address: address.parse().unwrap(),
            port: Some((Protocol::Udp, port)),
        };
        let front = |base: u32, count: u32| {
            let address = |n: u32| SocketAddr::new(std::net::Ipv4Addr::from(base + n).into(), 8080);
            Some(Front {
                backends: (0..count).map(address).collect(),
                is_translated: true,
                is_address_judged: false,
                is_silent: false,
                affinity_seconds: 0,
            })
        };
        let change = |namespace: &str, fronts: Vec<(FrontKey, Option<Front>)>| Change {
            service: ObjectName::new(namespace, "big"),
            fronts: fronts.into_iter().collect(),
        };
        let (base, other) = (0x0a00_0001, 0x0b00_0001);
        for change in [
            change("shop", vec![(key("10.96.0.1", 80), front(base, 100_000))]),
            change("bank", vec![(key("10.96.1.1", 80), front(base, 100_001))]),
        ] {
            life.datapath.apply_services(&change).unwrap();
        }
        let error = life
            .datapath
            .apply_services(&change(
                "shop",
                vec![
                    (key("10.96.0.1", 80), front(base, 1)),
                    (key("10.96.0.1", 81), front(other, 100_000)),
                ],
            ))
            .unwrap_err();
        assert!(matches!(error, ApplyError::Full { size: 262_144, .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "the table of Service backends is 262144, and 300002 entries are needed"
        );
        assert_eq!(
            (tables.web().0.count, tables.fronts().len()),
            (100_000, 2),
            "what was in force is"
        );
        let small = change("shop", vec![(key("10.96.0.2", 80), front(other, 2))]);
        life.datapath.apply_services(&small).unwrap();

        // What is garbage makes room at once.
        for change in [
            change("shop", vec![(key("10.96.0.1", 80), front(base, 1))]),
            change("shop", vec![(key("10.96.0.1", 81), front(other, 100_000))]),
        ] {
            life.datapath.apply_services(&change).unwrap();
        }
        assert_eq!(tables.fronts().len(), 4);
        let many = |address, ports: u16| (0..ports).map(move |port| (key(address, port + 1), front(base, 1)));
        for (namespace, address) in [("a", "10.96.2.1"), ("b", "10.96.2.2")] {
            let change = change(namespace, many(address, 32_764).collect());
            life.datapath.apply_services(&change).unwrap();
        }
        let change = change("c", many("10.96.2.3", 5).collect());
        let error = life.datapath.apply_services(&change).unwrap_err();
        assert!(
            matches!(
                error,
                ApplyError::Full {
                    size: 65_536,
                    needed: 65_537,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(tables.fronts().len(), 65_532);
    });
}

#[test]
fn no_namespace_takes_more_than_half_of_the_room() {
    on_a_node(0, |node| {
        let mut life = node.start(&DaemonConfig::default());
        let mut services = Services::new("node1", true);
        let ports = |count: u16| {
            let port = |n: u16| ServicePort {
                name: n.to_string().into(),
                protocol: Protocol::Udp,
                port: n,
                node_port: None,
            };
            (1..=count).map(port).collect::<Vec<_>>()
        };
        let greedy = |addresses: u8, count| Service {
            external_ips: (1..=addresses).map(|n| [192, 0, 2, n].into()).collect(),
            ports: ports(count),
            ..service("10.96.0.66")
        };
        set(&mut services, "web", "10.96.0.1", &[1]);
        apply(&mut services, &mut life);
        services.set_service(&name("greedy"), Some(greedy(250, 250)));
        let change = services.take_changes().remove(0);
        let error = life.datapath.apply_services(&change).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a namespace's half of the table of Service addresses and ports is 32768, and 62753 entries are needed"
        );
        services.refuse(change);

        // What there was goes on, and so does what takes nothing more.
        set(&mut services, "web", "10.96.0.1", &[2]);
        apply(&mut services, &mut life);
        // As much as is left, also in another life, which finds it there.
        services.set_service(&name("greedy"), Some(greedy(127, 255)));
        apply(&mut services, &mut life);
        drop(life);
        let mut life = node.start(&DaemonConfig::default());
        let mut services = Services::new("node1", true);
        set(&mut services, "web", "10.96.0.1", &[2]);
        services.set_service(&name("greedy"), Some(greedy(127, 255)));
        apply(&mut services, &mut life);
        let added = |services: &mut Services, namespace: &str, address: &str| {
            let mut more = service(address);
            more.ports = ports(200);
            services.set_service(&ObjectName::new(namespace, "more"), Some(more));
            services.take_changes().remove(0)
        };
        let change = added(&mut services, "shop", "10.96.0.7");
        let error = life.datapath.apply_services(&change).unwrap_err();
        assert!(matches!(error, ApplyError::Full { needed: 32_844, .. }), "{error}");
        services.set_service(&ObjectName::new("shop", "more"), None);
        services.take_changes();
        let of_another = added(&mut services, "bank", "10.96.0.7");
        life.datapath.apply_services(&of_another).unwrap();

        // What goes makes room.
        services.set_service(&name("greedy"), Some(greedy(0, 2)));
        apply(&mut services, &mut life);
        let change = added(&mut services, "shop", "10.96.0.8");
        life.datapath.apply_services(&change).unwrap();
    });
}

#[test]
fn no_namespace_takes_more_than_half_of_the_backends() {
    on_a_node(0, |node| {
        let mut life = node.start(&DaemonConfig::default());
        let change = |namespace: &str, port, base: u32, count: u32| {
            let key = FrontKey {
                address: [10, 96, 0, 1].into(),
                port: Some((Protocol::Udp, port)),
            };
            let address = |n: u32| SocketAddr::new(std::net::Ipv4Addr::from(base + n).into(), 8080);
            let front = Front {
                backends: (0..count).map(address).collect(),
                is_translated: true,
                is_address_judged: false,
                is_silent: false,
                affinity_seconds: 0,
            };
            Change {
                service: ObjectName::new(namespace, "big"),
                fronts: [(key, Some(front))].into(),
            }
        };
        let mut needed =
            |namespace, port, base, count| match life.datapath.apply_services(&change(namespace, port, base, count)) {
                Ok(()) => None,
                Err(ApplyError::Full {
                    size: 131_072, needed, ..
                }) => Some(needed),
                Err(error) => panic!("{error}"),
            };
        let (base, other) = (0x0a00_0001, 0x0b00_0001);
        assert_eq!(needed("shop", 80, base, 100_000), None);
        assert_eq!(needed("shop", 81, other, 31_073), Some(131_073));
        assert_eq!(needed("bank", 82, base, 100_000), None, "the list is there");
        assert_eq!(needed("bank", 83, other, 2), None);
        // The list that it leaves makes room for the one that takes its place, unless somebody else's front has it.
        assert_eq!(needed("shop", 80, base, 99_999), Some(199_999));
        assert_eq!(needed("bank", 82, other, 2), None);
        assert_eq!(needed("shop", 80, base, 99_999), None);
    });
}

#[test]
fn datagrams_that_were_ahead_of_their_service_find_its_backends() {
    on_the_clients_node(Vec::new(), |_, mut life, egress| {
        let datagram = frame::udp(socket("10.0.1.1:4000"), socket("10.96.0.1:80"));
        assert!(egress.passes(&datagram));
        let mut services = Services::new("node1", true);
        set(&mut services, "web", "10.96.0.1", &[1]);
        apply(&mut services, &mut life);
        assert!(egress.passes(&datagram));
        assert_eq!(translated_to(&life), backends(&[]), "not before it is tidied");
        life.departures.sweep().unwrap();
        assert!(egress.passes(&datagram));
        assert_eq!(translated_to(&life), backends(&[1]));
    });
}

#[test]
fn what_a_killed_life_did_not_tidy_the_next_one_does() {
    on_the_clients_node(Vec::new(), |node, mut life, egress| {
        let tables = Tables::of(node);
        let shown = |life: &Life| (translated_to(life), tables.stays());
        let both = |numbers: &[u8]| (backends(numbers), backends(numbers));
        let datagram = frame::udp(socket("10.0.1.1:4000"), socket("10.96.0.1:80"));
        let mut services = Services::new("node1", true);
        set(&mut services, "web", "10.96.0.1", &[2]);
        apply(&mut services, &mut life);
        assert!(egress.passes(&datagram));
        assert_eq!(shown(&life), both(&[2]));
        set(&mut services, "web", "10.96.0.1", &[1]);
        apply(&mut services, &mut life);
        drop(life);
        let life = node.start(&DaemonConfig::default());
        assert_eq!(shown(&life), both(&[2]));
        life.departures.sweep().unwrap();
        assert_eq!(shown(&life), both(&[]));

        assert!(egress.passes(&datagram));
        drop(life);
        let life = node.start(&DaemonConfig::default());
        life.departures.sweep().unwrap();
        assert_eq!(shown(&life), both(&[1]), "nothing was left to tidy");
    });
}

/// The backends that flows are translated to.
fn translated_to(life: &Life) -> BTreeSet<SocketAddr> {
    let entries = entries::<abi::ConntrackKey, abi::ConntrackEntry>(&life.map("conntrack"));
    let is_translated = |entry: &abi::ConntrackEntry| u32::from(entry.flags) & abi::CONNTRACK_TRANSLATED != 0;
    let translated = entries.into_iter().filter(|(_, entry)| is_translated(entry));
    translated
        .map(|(key, _)| SocketAddr::new(key.remote.into(), u16::from_be(key.remote_port)))
        .collect()
}

#[test]
fn clients_do_not_stay_with_a_backend_that_left() {
    on_a_node(0, |node| {
        let mut life = node.start(&DaemonConfig::default());
        let tables = Tables::of(node);
        let mut services = Services::new("node1", true);
        set(&mut services, "web", "10.96.0.1", &[1, 2]);
        set(&mut services, "other", "10.96.0.2", &[1]);
        apply(&mut services, &mut life);
        let id = |ip: &str| tables.fronts()[&(socket(ip), 17)].0.id;
        tables.stay(id("10.96.0.1:80"), "10.0.1.1", "10.0.0.1:8080");
        tables.stay(id("10.96.0.1:80"), "10.0.1.2", "10.0.0.2:8080");
        set(&mut services, "web", "10.96.0.1", &[1, 3]);
        apply(&mut services, &mut life);
        life.departures.sweep().unwrap();
        assert_eq!(tables.stays(), backends(&[1]));
        tables.stay(id("10.96.0.2:80"), "10.0.1.1", "10.0.0.1:8080");
        services.set_service(&name("web"), None);
        apply(&mut services, &mut life);
        life.departures.sweep().unwrap();
        assert_eq!(
            entries::<AffinityKey, Affinity>(&tables.affinities).len(),
            1,
            "the other Service's"
        );
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

/// What the pod `client` of node1 sends goes by its programs; `own` is a pod of its namespace elsewhere. `policies` are
/// those of the namespace.
fn on_the_clients_node(policies: Vec<Policy>, test: impl FnOnce(&Node, Life, &Program) + Send) {
    on_a_node(1, |node| {
        let mut objects = Objects::default();
        objects.namespaces.insert("shop".into(), Labels::new());
        for (pod, address, node) in [("client", "10.0.1.1", "node1"), ("own", "10.0.0.1", "node2")] {
            let pod_of = Pod {
                labels: Labels::new(),
                addresses: vec![address.parse().unwrap()],
                node: node.into(),
                ports: Vec::new(),
            };
            objects.pods.insert(name(pod), Arc::new(pod_of));
        }
        for policy in policies {
            objects.policies.insert(policy.name.clone(), Arc::new(policy));
        }
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, "node1"));
        let egress = life.program(node.veths[0], Direction::Egress);
        test(node, life, &egress);
    });
}

#[test]
fn a_service_that_anybody_makes_opens_no_address_that_nobody_translates() {
    let own = Peer::Pods {
        namespaces: None,
        pods: Selector::default(),
    };
    let stay = Policy {
        name: name("stay"),
        generation: 1,
        log: false,
        pod_selector: Selector::default(),
        ingress: None,
        egress: Some(vec![Rule {
            peers: Some(vec![own]),
            ports: None,
        }]),
    };
    on_the_clients_node(vec![stay], |_, mut life, egress| {
        let to = |address, port| frame::udp(socket("10.0.1.1:4000"), SocketAddr::new(address, port));
        let (outside, inside) = ([192, 0, 2, 1].into(), [10, 0, 0, 1].into());
        assert!(!egress.passes(&to(outside, 80)));
        let mut services = Services::new("node1", true);
        let made = Service {
            external_ips: vec![outside, inside],
            ..service("10.96.0.1")
        };
        services.set_service(&name("made"), Some(made.clone()));
        services.set_slice(&name("made"), Some(slice("made", [1])));
        apply(&mut services, &mut life);
        assert!(
            !egress.passes(&to(outside, 80)),
            "its backend is allowed, the address is not"
        );
        assert!(egress.passes(&to(inside, 80)), "both are");

        let balanced = Service {
            balancer_ips: made.external_ips,
            external_ips: Vec::new(),
            ..made
        };
        services.set_service(&name("made"), Some(balanced));
        apply(&mut services, &mut life);
        assert!(
            egress.passes(&to(outside, 80)),
            "a load balancer leads to the backends alone"
        );
    });
}
