// SPDX-License-Identifier: Apache-2.0
//! What a pod's packets and the choices that were made for it come to when Services change.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use wardline_bpf::abi::{self, Affinity, AffinityKey};
use wardline_bpf::frame;
use wardline_crds::config::DaemonConfig;
use wardline_node::services::{Service, Services};
use wardline_policy::model::{Direction, Labels, Objects, Peer, Pod, Policy, Rule, Selector};

use crate::support::{Life, Node, Program, on_a_node};
use crate::{Tables, apply, backends, entries, name, service, set, slice, socket};

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
