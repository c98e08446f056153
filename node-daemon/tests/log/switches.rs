// SPDX-License-Identifier: Apache-2.0
//! What NetworkLogging and annotations switch: every combination, from the API's objects to lines in the file. Verdicts and
//! open connections do not notice.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wardline_bpf::frame::{self, flag};
use wardline_crds::NetworkLogging;
use wardline_crds::config::DaemonConfig;
use wardline_node::index::{Event, Index, Kind};
use wardline_node::interfaces::{Interfaces, Veth};
use wardline_node::names::PodName;
use wardline_node::watch::{ObjectKey, Seen, convert};
use wardline_policy::model::Direction;

use crate::support::{Life, Node, on_a_node};
use crate::{Family, NODE};

/// Off, on, delegated.
const SWITCHES: [(bool, bool); 3] = [(false, false), (true, false), (true, true)];
/// Of an annotation: whether it is GKE's key, and its value. It counts where that is exactly `true`.
const ANNOTATIONS: [Option<(bool, &str)>; 5] = [
    None,
    Some((false, "true")),
    Some((true, "true")),
    Some((false, "True")),
    Some((true, "yes")),
];

fn is_on(annotation: Option<(bool, &str)>) -> bool {
    annotation.is_some_and(|(_, value)| value == "true")
}

fn annotations(name: &str, annotation: Option<(bool, &str)>) -> Value {
    let key = |is_gkes| {
        if is_gkes {
            "policy.network.gke.io"
        } else {
            "wardline.io"
        }
    };
    match annotation {
        None => json!({}),
        Some((is_gkes, value)) => json!({format!("{}/{name}", key(is_gkes)): value}),
    }
}

fn here<K>(convert: fn(&ObjectKey, Seen<K>) -> Event, object: Value) -> Event
where
    K: DeserializeOwned + kube::Resource<DynamicType = ()>,
{
    let object: K = serde_json::from_value(object).unwrap();
    convert(&ObjectKey::of(&object), Seen::Here(object))
}

fn namespace(annotation: Option<(bool, &str)>) -> Event {
    let annotations = annotations("enable-deny-logging", annotation);
    here::<Namespace>(
        convert::namespace,
        json!({"metadata": {"name": "shop", "annotations": annotations}}),
    )
}

/// Admits the client `a`.
fn policy(name: &str, annotation: Option<(bool, &str)>) -> Event {
    let annotations = annotations("enable-logging", annotation);
    here::<NetworkPolicy>(
        convert::policy,
        json!({
            "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
            "spec": {
                "podSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}],
            },
        }),
    )
}

fn pod(app: &str, node: &str, address: &str) -> Event {
    here::<Pod>(
        convert::pod,
        json!({
            "metadata": {"name": app, "namespace": "shop", "uid": app, "labels": {"app": app}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        }),
    )
}

fn logging(allow: (bool, bool), deny: (bool, bool)) -> Event {
    let switch = |(log, delegate): (bool, bool)| json!({"log": log, "delegate": delegate});
    let cluster = json!({"allow": switch(allow), "deny": switch(deny)});
    here::<NetworkLogging>(
        convert::logging,
        json!({"apiVersion": "wardline.io/v1alpha1", "kind": "NetworkLogging",
               "metadata": {"name": "default", "generation": 1}, "spec": {"cluster": cluster}}),
    )
}

/// A server on the node, at its one interface, and two clients on another.
struct World {
    index: Index,
    life: Life,
    ifindex: u32,
    port: u16,
}

impl World {
    fn new(node: &Node) -> Self {
        let mut index = Index::new(NODE, false);
        let addresses = BTreeSet::from([Family::V4.server(0)]);
        let name = "veth".into();
        index.set_interfaces(Interfaces {
            veths: BTreeMap::from([(node.veths[0], Veth { name, addresses })]),
            local: BTreeSet::new(),
        });
        let address = |ip: std::net::IpAddr| ip.to_string();
        for event in [
            namespace(None),
            pod("server", NODE, &address(Family::V4.server(0))),
            pod("a", "node2", &address(Family::V4.client(true, 0))),
            pod("b", "node2", &address(Family::V4.client(false, 0))),
            policy("plain", None),
            policy("switched", None),
        ] {
            index.apply(event);
        }
        let names = ["shop", "shop/server", "shop/a", "shop/b", "shop/plain", "shop/switched"];
        for kind in Kind::WATCHED {
            index.apply(Event::Listed(
                kind,
                names.iter().map(|name| (*name).to_owned()).collect(),
            ));
        }
        let mut world = Self {
            index,
            life: node.start(&DaemonConfig::default()),
            ifindex: node.veths[0],
            port: 1024,
        };
        world.bring_about();
        world
    }

    fn apply(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.index.apply(event);
        }
        self.bring_about();
    }

    fn bring_about(&mut self) {
        self.life.names.apply_moves(self.index.take_moves());
        let desired = self.index.desired();
        let name = |pod: &_| PodName {
            pod: Clone::clone(pod),
            workload: None,
        };
        let applied = self.life.datapath.apply(&desired, name).unwrap();
        assert!(applied.failed.is_empty());
    }

    /// Whether a packet between a client and the server passes at the server.
    fn passes(&self, direction: Direction, is_admitted: bool, port: u16, flags: u8) -> bool {
        let client = (Family::V4.client(is_admitted, 0), port).into();
        let server = (Family::V4.server(0), 80).into();
        let (source, destination) = match direction {
            Direction::Ingress => (client, server),
            Direction::Egress => (server, client),
        };
        let program = self.life.program(self.ifindex, direction);
        program.passes(&frame::tcp(source, destination, flags))
    }

    /// A new connection of each client.
    fn send(&mut self) {
        self.port += 1;
        assert!(self.passes(Direction::Ingress, true, self.port, flag::SYN));
        assert!(!self.passes(Direction::Ingress, false, self.port, flag::SYN));
    }

    /// A new connection of each client, and what is written of them.
    fn written(&mut self) -> BTreeMap<String, Vec<String>> {
        self.send();
        self.read()
    }

    /// What is written of one connection of each client, and the policies that are named.
    fn read(&mut self) -> BTreeMap<String, Vec<String>> {
        let records = self.life.records();
        let of = |record: &Value| {
            assert_eq!(record["count"], 1, "{record}");
            let named = [&record["policies"], &record["isolated_by"]];
            let named = named.into_iter().filter_map(Value::as_array).flatten();
            let names = named.map(|policy| policy["name"].as_str().unwrap().to_owned());
            (record["disposition"].as_str().unwrap().to_owned(), names.collect())
        };
        let written: BTreeMap<_, _> = records.iter().map(of).collect();
        assert_eq!(written.len(), records.len(), "{records:?}");
        written
    }
}

/// What should be written.
fn expected(allow: (bool, bool), deny: (bool, bool), policy: bool, namespace: bool) -> BTreeMap<String, Vec<String>> {
    let mut expected = BTreeMap::new();
    let both = || vec!["plain".to_owned(), "switched".to_owned()];
    match allow {
        (true, false) => _ = expected.insert("allow".to_owned(), both()),
        (true, true) if policy => _ = expected.insert("allow".to_owned(), vec!["switched".to_owned()]),
        _ => {}
    }
    if deny.0 && (!deny.1 || namespace) {
        expected.insert("deny".to_owned(), both());
    }
    expected
}

#[test]
fn each_combination_of_switches_and_annotations_logs_what_it_says() {
    on_a_node(1, |node| {
        let mut world = World::new(node);
        assert_eq!(world.written(), BTreeMap::new(), "without an object logging is off");
        // Stays open all the while.
        assert!(world.passes(Direction::Ingress, true, 999, flag::SYN));
        assert!(world.passes(Direction::Egress, true, 999, flag::SYN | flag::ACK));
        let mut combinations = 0;
        for (allow, deny) in SWITCHES.iter().flat_map(|allow| SWITCHES.map(|deny| (*allow, deny))) {
            for (of_policy, of_namespace) in ANNOTATIONS.iter().flat_map(|a| ANNOTATIONS.map(|b| (*a, b))) {
                let why = format!("allow {allow:?}, deny {deny:?}, policy {of_policy:?}, namespace {of_namespace:?}");
                world.apply([
                    logging(allow, deny),
                    policy("switched", of_policy),
                    namespace(of_namespace),
                ]);
                assert!(world.passes(Direction::Ingress, true, 999, flag::ACK), "{why}");
                let expected = expected(allow, deny, is_on(of_policy), is_on(of_namespace));
                assert_eq!(world.written(), expected, "{why}");
                combinations += 1;
            }
        }
        assert_eq!(combinations, 225);
    });
}

#[test]
fn a_record_is_of_the_switches_that_its_packet_met() {
    on_a_node(1, |node| {
        let mut world = World::new(node);
        let (off, all, delegated) = (SWITCHES[0], SWITCHES[1], SWITCHES[2]);
        let on = Some((false, "true"));
        for (then, later) in [
            (all, delegated),
            (delegated, all),
            (delegated, off),
            (all, off),
            (off, all),
        ] {
            for (policy_then, policy_later) in [(on, on), (on, None), (None, on)] {
                world.apply([
                    logging(then, then),
                    policy("switched", policy_then),
                    namespace(policy_then),
                ]);
                world.send();
                world.apply([
                    logging(later, later),
                    policy("switched", policy_later),
                    namespace(policy_later),
                ]);
                let expected = expected(then, then, is_on(policy_then), is_on(policy_then));
                let why = format!("{then:?} {policy_then:?}, then {later:?} {policy_later:?}");
                assert_eq!(world.read(), expected, "{why}");
            }
        }
    });
}

#[test]
fn an_object_that_cannot_be_used_leaves_the_last_good_one_in_force() {
    on_a_node(1, |node| {
        let mut world = World::new(node);
        let on = expected((true, false), (true, false), false, false);
        world.apply([logging((true, false), (true, false))]);
        assert_eq!(world.written(), on);
        let key = ObjectKey {
            namespace: "".into(),
            name: "default".into(),
            uid: "".into(),
        };
        // Refused by the API server, unless it has a laxer CRD.
        for bad in [
            logging((false, true), (false, false)),
            convert::logging(&key, Seen::Undecodable("spec.cluster: it is a list".into())),
        ] {
            world.apply([bad]);
            assert_eq!(world.written(), on);
            let invalid: Vec<_> = world.index.invalid_objects().collect();
            assert!(
                invalid.iter().any(|object| object.kind == Kind::NetworkLogging),
                "{invalid:?}"
            );
        }
        world.apply([convert::logging(&key, Seen::Gone)]);
        assert_eq!(world.written(), BTreeMap::new());
    });
}

#[test]
fn both_ends_are_named_though_their_pods_are_gone_a_moment_later() {
    on_a_node(1, |node| {
        let mut world = World::new(node);
        world.apply([logging((true, false), (true, false))]);
        world.send();
        let gone = |pod: &str| {
            let key = ObjectKey {
                namespace: "shop".into(),
                name: pod.into(),
                uid: "".into(),
            };
            convert::pod(&key, Seen::Gone)
        };
        let address = Family::V4.client(true, 0).to_string();
        world.apply([
            gone("a"),
            gone("b"),
            gone("server"),
            pod("successor", "node2", &address),
        ]);
        let records = world.life.records();
        let ends: Vec<_> = records
            .iter()
            .map(|record| {
                (
                    &record["disposition"],
                    &record["src"]["pod_name"],
                    &record["dest"]["pod_name"],
                )
            })
            .collect();
        let [allow, deny, a, b, server] = ["allow", "deny", "a", "b", "server"].map(Value::from);
        assert_eq!(ends, [(&allow, &a, &server), (&deny, &b, &server)]);
    });
}
