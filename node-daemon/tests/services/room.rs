// SPDX-License-Identifier: Apache-2.0
//! Who has how much of the tables of Services.

use std::net::SocketAddr;

use wardline_crds::config::DaemonConfig;
use wardline_node::datapath::ApplyError;
use wardline_node::services::{Change, Front, FrontKey, Service, ServicePort, Services};
use wardline_policy::model::{ObjectName, Protocol};

use crate::support::on_a_node;
use crate::{Tables, apply, name, service, set};

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
