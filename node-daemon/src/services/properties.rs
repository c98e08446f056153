// SPDX-License-Identifier: Apache-2.0
//! Whatever order things happen in, the fronts told add up to those of the objects that are there in the end.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Service(u8, Option<Service>),
    Slice(u8, Option<Slice>),
    Pod(u8, Option<HostPorts>),
    Zone(u8),
    Local(BTreeSet<IpAddr>),
    /// What was told since the last time is in force, or refused.
    Tell {
        is_refused: bool,
    },
}

fn name(n: u8) -> ObjectName {
    ObjectName::new("shop", format!("web-{n}"))
}

fn address(kind: &str, n: u8) -> IpAddr {
    format!("{kind}{n}").parse().unwrap()
}

fn any_service() -> impl Strategy<Value = Service> {
    let ports = prop::collection::vec((0..2_u8, 79..81_u16, any::<bool>()), 1..3);
    let other_addresses = [prop::option::of(0..3_u8), prop::option::of(0..3_u8)];
    (0..4_u8, any::<bool>(), other_addresses, ports, any::<bool>()).prop_map(
        |(ip, is_dual, [balancer, external], ports, is_local_only)| Service {
            cluster_ips: [Some("10.96.0."), is_dual.then_some("fd00:96::")]
                .into_iter()
                .flatten()
                .map(|kind| address(kind, ip))
                .collect(),
            // Now and then another Service's ClusterIP.
            balancer_ips: balancer.map(|n| address("10.96.0.", n)).into_iter().collect(),
            external_ips: external.map(|n| address("10.96.0.", n)).into_iter().collect(),
            ports: ports
                .into_iter()
                .map(|(port_name, port, has_node_port)| ServicePort {
                    name: format!("{port_name}").into(),
                    protocol: wardline_policy::model::Protocol::Tcp,
                    port,
                    node_port: has_node_port.then_some(30_000 + port),
                })
                .collect(),
            affinity_seconds: 0,
            is_local_only,
        },
    )
}

fn any_slice() -> impl Strategy<Value = Slice> {
    let endpoint = (0..4_u8, any::<bool>(), any::<bool>(), prop::option::of(0..2_u8));
    (0..4_u8, prop::collection::vec(endpoint, 0..4), 0..2_u8, any::<bool>()).prop_map(
        |(service, endpoints, port_name, is_v4)| Slice {
            service: format!("web-{service}").into(),
            ports: vec![SlicePort {
                name: format!("{port_name}").into(),
                protocol: wardline_policy::model::Protocol::Tcp,
                port: 8080,
            }],
            endpoints: endpoints
                .into_iter()
                .map(|(n, is_ready, is_local, zone)| Endpoint {
                    address: address(if is_v4 { "10.0.0." } else { "fd00::" }, n),
                    node: Some(if is_local { "node1" } else { "node2" }.into()),
                    state: if is_ready {
                        EndpointState::Ready
                    } else {
                        EndpointState::Terminating
                    },
                    zones: zone.map(|n| format!("zone-{n}").into()).into_iter().collect(),
                    nodes: Vec::new(),
                })
                .collect(),
        },
    )
}

/// Now and then at a `NodePort`, and at a Service's external address that is the node's too.
fn any_pod() -> impl Strategy<Value = HostPorts> {
    let port = (0..4_u16, prop::option::of(0..4_u8)).prop_map(|(port, ip)| HostPort {
        protocol: wardline_policy::model::Protocol::Tcp,
        port: [79, 80, 30_079, 30_080][usize::from(port)],
        container_port: 8080,
        address: ip.map(|n| address("10.96.0.", n)),
    });
    (0..4_u8, prop::collection::vec(port, 0..3)).prop_map(|(n, ports)| HostPorts {
        addresses: vec![address("10.0.0.", n)],
        ports,
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..4_u8, prop::option::weighted(0.8, any_service())).prop_map(|(n, service)| Event::Service(n, service)),
        5 => (0..6_u8, prop::option::weighted(0.8, any_slice())).prop_map(|(n, slice)| Event::Slice(n, slice)),
        2 => (0..3_u8, prop::option::weighted(0.8, any_pod())).prop_map(|(n, pod)| Event::Pod(n, pod)),
        1 => (0..3_u8).prop_map(Event::Zone),
        1 => prop::collection::btree_set((0..4_u8).prop_map(|n| address("10.96.0.", n)), 0..2).prop_map(Event::Local),
        3 => any::<bool>().prop_map(|is_refused| Event::Tell { is_refused }),
    ]
}

fn apply(services: &mut Services, event: &Event) {
    match event {
        Event::Service(n, service) => services.set_service(&name(*n), service.clone()),
        Event::Slice(n, slice) => services.set_slice(&name(*n), slice.clone()),
        Event::Pod(n, host_ports) => services.set_host_ports(&name(*n), host_ports.clone()),
        Event::Zone(n) => services.set_zone(Some(format!("zone-{n}").into())),
        Event::Local(local) => services.set_local(local),
        Event::Tell { .. } => {}
    }
}

fn put_in_force(in_force: &mut BTreeMap<FrontKey, Front>, changes: Vec<Change>) {
    for (key, front) in changes.into_iter().flat_map(|change| change.fronts) {
        match front {
            Some(front) => _ = in_force.insert(key, front),
            None => _ = in_force.remove(&key),
        }
    }
}

proptest! {
    #[test]
    fn changes_add_up_to_what_is_there(events in prop::collection::vec(any_event(), 1..60)) {
        let mut services = Services::new("node1", true);
        let mut in_force = BTreeMap::new();
        for event in &events {
            apply(&mut services, event);
            if let Event::Tell { is_refused } = event {
                let changes = services.take_changes();
                if *is_refused {
                    for change in changes {
                        services.refuse(change);
                    }
                } else {
                    put_in_force(&mut in_force, changes);
                }
            }
        }
        services.retry();
        put_in_force(&mut in_force, services.take_changes());

        // From nothing: only the last word about each object, the place first.
        let mut fresh = Services::new("node1", true);
        let last = |is_same: &dyn Fn(&Event) -> bool| events.iter().rev().find(|event| is_same(event));
        let of_place = [last(&|e| matches!(e, Event::Zone(_))), last(&|e| matches!(e, Event::Local(_)))];
        let of_slices = (0..6).map(|n| last(&|e| matches!(e, Event::Slice(m, _) if *m == n)));
        let of_services = (0..4).map(|n| last(&|e| matches!(e, Event::Service(m, _) if *m == n)));
        let of_pods = (0..3).map(|n| last(&|e| matches!(e, Event::Pod(m, _) if *m == n)));
        for event in of_place.into_iter().chain(of_slices).chain(of_services).chain(of_pods).flatten() {
            apply(&mut fresh, event);
        }
        let mut wanted = BTreeMap::new();
        put_in_force(&mut wanted, fresh.take_changes());
        prop_assert_eq!(in_force, wanted);
    }
}
