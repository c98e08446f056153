// SPDX-License-Identifier: Apache-2.0
//! What a change of policy does to a node: the real programs, fed frame by frame. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};

use wardline_bpf::frame::{self, flag};
use wardline_crds::config::DaemonConfig;
use wardline_node::datapath::{ApplyError, self_test};
use wardline_policy::model::{
    Direction, Labels, ObjectName, Objects, Operator, Peer, Pod, Policy, Port, PortMatch, Protocol, Requirement, Rule,
    Selector,
};

use support::{Life, Node, monotonic, on_each_node};

const NODE: &str = "node1";
const SERVER: &str = "10.0.0.1";

fn objects() -> Objects {
    let mut objects = Objects::default();
    objects.namespaces.insert("shop".into(), Labels::new());
    for (name, address, node) in [
        ("server", SERVER, NODE),
        ("a", "10.0.1.1", "node2"),
        ("b", "10.0.1.2", "node2"),
    ] {
        let pod = Pod {
            labels: Labels::from([("app".to_owned(), name.to_owned())]),
            addresses: vec![address.parse().unwrap()],
            node: node.into(),
            ports: Vec::new(),
        };
        objects.pods.insert(ObjectName::new("shop", name), Arc::new(pod));
    }
    objects
}

fn app(names: &[&str]) -> Selector {
    let operator = Operator::In(names.iter().map(|name| Arc::from(*name)).collect());
    Selector {
        requirements: vec![Requirement {
            key: "app".into(),
            operator,
        }],
    }
}

/// Admits pods by their app label to the server's TCP port 80.
fn admit(objects: &mut Objects, generation: i64, clients: &[&str]) {
    admit_to("server", objects, generation, clients);
}

/// To the port of pods with that label, by a policy of its name.
fn admit_to(server: &str, objects: &mut Objects, generation: i64, clients: &[&str]) {
    let rule = Rule {
        peers: Some(vec![Peer::Pods {
            namespaces: None,
            pods: app(clients),
        }]),
        ports: Some(vec![PortMatch {
            protocol: Protocol::Tcp,
            port: Port::Exact(80),
        }]),
    };
    let name = ObjectName::new("shop", server);
    let policy = Policy {
        name: name.clone(),
        generation,
        log: false,
        pod_selector: app(&[server]),
        ingress: Some(vec![rule]),
        egress: None,
    };
    objects.policies.insert(name, Arc::new(policy));
}

/// Adds a rule with nine more ports to the server's policy.
fn widen(objects: &mut Objects) {
    let ports = (1..=9)
        .map(|port| PortMatch {
            protocol: Protocol::Udp,
            port: Port::Exact(port),
        })
        .collect();
    let policy = objects.policies.get_mut(&ObjectName::new("shop", "server")).unwrap();
    let mut wide = Policy::clone(policy);
    wide.ingress.as_mut().unwrap().push(Rule {
        peers: None,
        ports: Some(ports),
    });
    *policy = Arc::new(wide);
}

fn relabel(objects: &mut Objects, pod: &str, app: &str) {
    let pod = objects.pods.get_mut(&ObjectName::new("shop", pod)).unwrap();
    *pod = Arc::new(Pod {
        labels: Labels::from([("app".to_owned(), app.to_owned())]),
        ..Pod::clone(pod)
    });
}

/// A frame of the connection from `client`'s port 40000 to the server's port 80.
fn to_server(client: &str, flags: u8) -> Vec<u8> {
    frame::tcp(socket(client, 40_000), socket(SERVER, 80), flags)
}

fn from_server(client: &str, flags: u8) -> Vec<u8> {
    frame::tcp(socket(SERVER, 80), socket(client, 40_000), flags)
}

fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

const A: &str = "10.0.1.1";
const B: &str = "10.0.1.2";

/// The server's edge, in both directions.
struct Edge {
    ingress: support::Program,
    egress: support::Program,
}

impl Edge {
    fn of(node: &Node, life: &Life) -> Self {
        let program = |direction| life.program(node.veths[0], direction);
        Self {
            ingress: program(Direction::Ingress),
            egress: program(Direction::Egress),
        }
    }

    /// Whether the handshake comes to its end.
    fn connect(&self, client: &str) -> bool {
        self.ingress.passes(&to_server(client, flag::SYN))
            && self.egress.passes(&from_server(client, flag::SYN | flag::ACK))
            && self.ingress.passes(&to_server(client, flag::ACK))
    }

    /// Whether data gets through in both directions.
    fn talks(&self, client: &str) -> bool {
        self.ingress.passes(&to_server(client, flag::ACK)) && self.egress.passes(&from_server(client, flag::ACK))
    }

    /// Whether data of either side alone gets through.
    fn leaks(&self, client: &str) -> bool {
        self.ingress.passes(&to_server(client, flag::ACK)) || self.egress.passes(&from_server(client, flag::ACK))
    }
}

#[test]
fn an_edited_policy_cuts_what_it_no_longer_admits_and_nothing_else() {
    on_each_node(1, |node| {
        let mut objects = objects();
        admit(&mut objects, 1, &["a", "b"]);
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.connect(A) && edge.connect(B));
        admit(&mut objects, 2, &["b"]);
        life.apply(&node.desired(&objects, NODE));
        assert!(!edge.leaks(A), "a connection that is no longer admitted goes on");
        assert!(!edge.connect(A) && edge.talks(B));

        admit(&mut objects, 3, &["a", "b"]);
        life.apply(&node.desired(&objects, NODE));
        assert!(edge.talks(A), "admitted again, the connection goes on");
        assert_eq!(count(&mut life, "allow"), 2, "one record a connection");
    });
}

#[test]
fn the_first_policy_leaves_open_what_it_admits() {
    on_each_node(1, |node| {
        let mut objects = objects();
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.connect(A) && edge.connect(B), "no policy, everything passes");
        assert_eq!(life.records().len(), 0, "and nothing is logged");
        admit(&mut objects, 1, &["a"]);
        life.apply(&node.desired(&objects, NODE));
        assert!(edge.talks(A) && !edge.leaks(B));

        objects.policies.clear();
        life.apply(&node.desired(&objects, NODE));
        assert!(edge.talks(A) && edge.talks(B), "the policy is gone");
    });
}

#[test]
fn a_label_that_changes_takes_effect_on_open_connections() {
    on_each_node(1, |node| {
        let mut objects = objects();
        admit(&mut objects, 1, &["a"]);
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.connect(A) && !edge.connect(B));
        for (from, to, labelled) in [("a", "z", false), ("z", "a", true)] {
            assert_eq!(objects.pods[&ObjectName::new("shop", "a")].labels["app"], from);
            relabel(&mut objects, "a", to);
            life.apply(&node.desired(&objects, NODE));
            assert_eq!(edge.leaks(A), labelled, "a is labelled {to}");
        }
    });
}

/// The server is selected by another policy, and the client's class is another, in one change: neither policy admits the
/// client that it meets, and each would the other's.
#[test]
fn a_change_of_both_pods_shows_nothing_in_between() {
    on_each_node(3, |node| {
        let mut objects = objects();
        admit_to("old", &mut objects, 1, &["x"]);
        admit_to("new", &mut objects, 1, &["y"]);
        // Both policies are in force all the time.
        for (index, name) in ["old", "new"].into_iter().enumerate() {
            let pod = Pod {
                labels: Labels::from([("app".to_owned(), name.to_owned())]),
                addresses: vec![format!("10.0.0.{}", index + 2).parse().unwrap()],
                node: NODE.into(),
                ports: Vec::new(),
            };
            objects
                .pods
                .insert(ObjectName::new("shop", format!("server-{name}")), Arc::new(pod));
        }
        let mut states = [("old", "y"), ("new", "x")].map(|(server, client)| {
            relabel(&mut objects, "server", server);
            relabel(&mut objects, "a", client);
            node.desired(&objects, NODE)
        });
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&states[0]);
        let ingress = Edge::of(node, &life).ingress;
        let passed = std::thread::scope(|scope| {
            // Goes when the changes are made, also by a panic.
            let (changing, over) = mpsc::channel::<()>();
            let client = scope.spawn(move || {
                let frame = frame::udp(socket(A, 40_000), socket(SERVER, 80));
                let segment = to_server(A, flag::SYN);
                let mut passed = 0;
                while over.try_recv() != Err(TryRecvError::Disconnected) {
                    passed += usize::from(ingress.passes(&segment)) + usize::from(ingress.passes(&frame));
                }
                passed
            });
            for _ in 0..2000 {
                states.reverse();
                life.apply(&states[0]);
            }
            drop(changing);
            client.join().unwrap()
        });
        assert_eq!(passed, 0);
    });
}

#[test]
fn another_life_of_the_daemon_goes_on_where_the_last_one_stopped() {
    on_each_node(1, |node| {
        let mut objects = objects();
        admit(&mut objects, 1, &["a", "b"]);
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.connect(A));
        // As if killed: nothing is read, closed or detached.
        drop(life);
        assert!(edge.connect(B) && edge.talks(A), "the kernel goes on alone");
        assert!(
            !edge
                .ingress
                .passes(&frame::tcp(socket(A, 40_000), socket(SERVER, 81), flag::SYN))
        );

        admit(&mut objects, 2, &["b"]);
        let mut life = node.start(&DaemonConfig::default());
        assert!(edge.talks(A), "what was in force is, until the cluster is known");
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(!edge.leaks(A) && edge.talks(B));
        life.datapath.collect_garbage().unwrap();
        assert!(!edge.leaks(A) && edge.talks(B));

        let records = life.records();
        let attributed: Vec<_> = records
            .iter()
            .map(|r| (r["disposition"].as_str(), r["src"]["instance"].as_str()))
            .collect();
        assert_eq!(
            records.iter().filter(|r| r["disposition"] == "allow").count(),
            2,
            "{attributed:?}"
        );
        assert!(
            records
                .iter()
                .filter(|r| r["disposition"] == "allow")
                .all(|r| r["policies"][0]["generation"] == 1)
        );
        assert_eq!(life.log.imbalance(), Some([[0; 2]; 2]));
        assert_eq!(life.records().len(), 0, "nothing twice");
    });
}

#[test]
fn a_change_that_does_not_fit_is_refused_whole() {
    on_each_node(1, |node| {
        let mut config = DaemonConfig::default();
        config.limits.rules = 4;
        let mut objects = objects();
        admit(&mut objects, 1, &["a"]);
        let mut life = node.start(&config);
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.connect(A) && !edge.connect(B));

        let mut wide = objects.clone();
        admit(&mut wide, 2, &["b"]);
        widen(&mut wide);
        let error = life.try_apply(&node.desired(&wide, NODE)).unwrap_err();
        assert!(
            matches!(
                error,
                ApplyError::Full {
                    limit: "limits.rules",
                    size: 4,
                    ..
                }
            ),
            "{error}"
        );
        life.datapath.collect_garbage().unwrap();
        assert!(edge.talks(A) && !edge.connect(B), "what was in force is");

        admit(&mut objects, 3, &["b"]);
        life.apply(&node.desired(&objects, NODE));
        assert!(!edge.leaks(A) && edge.connect(B), "the next change that fits is taken");
    });
}

#[test]
fn a_first_change_that_is_refused_costs_no_connections() {
    on_each_node(1, |node| {
        let mut config = DaemonConfig::default();
        config.limits.rules = 4;
        let mut objects = objects();
        admit(&mut objects, 1, &["a"]);
        let mut life = node.start(&config);
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.connect(A));
        drop(life);

        // Another life, and a policy that grew too large meanwhile.
        let mut life = node.start(&config);
        widen(&mut objects);
        life.try_apply(&node.desired(&objects, NODE)).unwrap_err();
        assert!(edge.talks(A), "what was in force is");
        let swept = life.conntrack.sweep(monotonic()).unwrap();
        assert_eq!((swept.entries, swept.deleted), (1, 0), "of a pod that is guarded still");
    });
}

#[test]
fn a_pod_that_ended_keeps_what_is_in_force_through_a_restart() {
    on_each_node(1, |node| {
        let mut objects = objects();
        admit(&mut objects, 1, &["a"]);
        let mut life = node.start(&DaemonConfig::default());
        let mut desired = node.desired(&objects, NODE);
        life.apply(&desired);
        let edge = Edge::of(node, &life);
        assert!(edge.connect(A) && !edge.connect(B));
        drop(life);

        // Its object is gone, its containers are not, and nobody knows what selected it.
        objects.pods.remove(&ObjectName::new("shop", "server"));
        desired.tables = node.desired(&objects, NODE).tables;
        desired.ended = desired.endpoints.keys().map(|ifindex| (*ifindex, None)).collect();
        let mut life = node.start(&DaemonConfig::default());
        for _ in 0..2 {
            life.apply(&desired);
            life.datapath.collect_garbage().unwrap();
            life.datapath.forget_names().unwrap();
            assert!(edge.talks(A) && !edge.connect(B));
            life.forget_connections();
            assert!(edge.connect(A));
            // An address of the node: other peers, in another generation.
            desired.local.insert("192.168.77.2".parse().unwrap());
        }
        let records = life.records();
        let allowed = records.iter().filter(|record| record["disposition"] == "allow");
        let names: Vec<_> = allowed.map(|record| &record["policies"][0]["name"]).collect();
        assert_eq!(names, ["server"; 3], "{records:?}");
    });
}

#[test]
fn edits_without_a_pause_use_neither_up_the_peers_nor_old_generations() {
    on_each_node(1, |node| {
        let mut config = DaemonConfig::default();
        config.limits.peers = 4;
        let mut objects = objects();
        admit(&mut objects, 1, &["a", "b"]);
        let mut life = node.start(&config);
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.connect(A) && edge.connect(B));
        relabel(&mut objects, "a", "z");
        // More edits than the words have room for generations, each with other selectors.
        for generation in 2..300 {
            let clients: &[&str] = if generation % 2 == 0 { &["a", "b"] } else { &["b"] };
            admit(&mut objects, generation, clients);
            life.apply(&node.desired(&objects, NODE));
            assert!(!edge.leaks(A) && edge.talks(B), "edit {generation}");
        }
    });
}

#[test]
fn a_pod_that_starts_while_a_change_is_refused_is_guarded() {
    on_each_node(2, |node| {
        let mut config = DaemonConfig::default();
        config.limits.rules = 2;
        let mut objects = objects();
        let mut life = node.start(&config);
        life.apply(&node.desired(&Objects::default(), NODE));
        admit(&mut objects, 1, &["a"]);
        widen(&mut objects);
        let refused = life.try_apply(&node.desired(&objects, NODE));
        assert!(matches!(refused, Err(ApplyError::Full { .. })));
        let edge = Edge::of(node, &life);
        assert!(
            !edge.connect(A),
            "isolated by a policy that is not in force: nothing is allowed"
        );
        let records = life.records();
        assert_eq!(records[0]["isolated_by"][0]["name"], "server", "{records:?}");

        admit(&mut objects, 2, &["a"]);
        life.apply(&node.desired(&objects, NODE));
        life.datapath.collect_garbage().unwrap();
        assert!(edge.connect(A) && !edge.connect(B));
    });
}

#[test]
fn denies_of_many_ports_are_all_written() {
    const PORTS: u16 = 2000;
    const PODS: u16 = 8;
    on_each_node(PODS.into(), |node| {
        let mut objects = objects();
        admit(&mut objects, 1, &["a"]);
        for i in 2..=PODS {
            let server = Pod::clone(&objects.pods[&ObjectName::new("shop", "server")]);
            let addresses = vec![format!("10.0.0.{i}").parse().unwrap()];
            let name = ObjectName::new("shop", format!("server{i}"));
            objects.pods.insert(name, Arc::new(Pod { addresses, ..server }));
        }
        let mut life = node.start(&DaemonConfig::default());
        let desired = node.desired(&objects, NODE);
        life.apply(&desired);
        for (ifindex, spec) in &desired.endpoints {
            let program = life.program(*ifindex, Direction::Ingress);
            for port in 1..=PORTS {
                let to = SocketAddr::new(spec.addresses[0], port);
                assert!(!program.passes(&frame::tcp(socket(B, 40_000), to, flag::SYN)));
            }
        }
        assert_eq!(count(&mut life, "deny"), usize::from(PORTS) * usize::from(PODS));
        assert_eq!(life.log.imbalance(), Some([[0; 2]; 2]));
    });
}

fn count(life: &mut Life, disposition: &str) -> usize {
    life.records()
        .iter()
        .filter(|record| record["disposition"] == disposition)
        .count()
}

#[test]
fn the_programs_judge_as_they_should_in_this_kernel() {
    let packets = self_test().unwrap();
    // Both families, and in both directions where a test run can tell where a packet came in.
    assert!(packets == 12 || packets == 6, "{packets}");
}
