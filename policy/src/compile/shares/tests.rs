// SPDX-License-Identifier: Apache-2.0
//! Who is told to give way, and that nothing comes to more than what it was taken for.

use std::net::IpAddr;

use super::*;
use crate::compile::{compile, compile_within};
use crate::model::{Labels, ObjectName, Objects, Operator, Pod, PortMatch, Protocol, Requirement, Selector};

const NODE: &str = "n1";
/// Shares of 10 rules and of 20 peers.
const ROOM: Room = Room {
    rules: 40,
    peers: 80,
    nodes: 4,
};

/// A policy: its namespace, how many blocks its rule is for (0: every peer), and how many ports.
type Row = (&'static str, u8, u16);

/// Namespace, limit and its size, what is needed, and whether that is of the namespace's share.
type Expected = Option<(&'static str, (&'static str, usize), usize, bool)>;

fn rule(network: u8, blocks: u8, ports: u16) -> Rule {
    let block = |n| {
        let cidr = format!("198.18.{network}.{n}/32").parse().unwrap();
        Peer::Block(IpBlock { cidr, except: vec![] })
    };
    // Every other port, so that they are no range.
    let port = |n| PortMatch {
        protocol: Protocol::Tcp,
        port: Port::Exact(2 * n),
    };
    Rule {
        peers: (blocks > 0).then(|| (0..blocks).map(block).collect()),
        ports: Some((0..ports).map(port).collect()),
    }
}

/// Each namespace has a pod that its policies isolate; no two policies have a block in common.
fn objects(rows: &[Row]) -> Objects {
    let mut objects = Objects::default();
    for (n, (namespace, blocks, ports)) in (0..).zip(rows) {
        objects.namespaces.insert((*namespace).into(), Labels::new());
        let pod = Pod {
            labels: Labels::new(),
            addresses: vec![],
            node: NODE.into(),
            ports: vec![],
        };
        objects.pods.insert(ObjectName::new(*namespace, "pod"), pod.into());
        let name = ObjectName::new(*namespace, format!("p{n}"));
        let policy = Policy {
            name: name.clone(),
            generation: 1,
            log: false,
            pod_selector: Selector::default(),
            ingress: Some(vec![rule(n, *blocks, *ports)]),
            egress: None,
        };
        objects.policies.insert(name, policy.into());
    }
    objects
}

#[test]
fn who_asks_for_too_much_is_told() {
    let rules = ("limits.rules", ROOM.rules);
    let peers = ("limits.peers", ROOM.peers);
    let table: [(&str, &[Row], Expected); 10] = [
        ("nobody", &[("a", 5, 2), ("b", 0, 3)], None),
        ("one policy", &[("a", 4, 3), ("b", 0, 1)], Some(("a", rules, 12, true))),
        (
            "several of one namespace",
            &[("a", 4, 2), ("a", 0, 3), ("b", 0, 1)],
            Some(("a", rules, 5 * 3, true)),
        ),
        (
            "far too much, and not counted out",
            &[("a", 16, 100), ("b", 4, 3)],
            Some(("a", rules, 1600, true)),
        ),
        ("blocks", &[("a", 21, 1), ("b", 0, 1)], Some(("a", peers, 21, true))),
        (
            "what others' blocks make of a rule is not its namespace's",
            &[("a", 9, 1), ("b", 0, 2)],
            None,
        ),
        (
            "blocks of all, beside the nodes' addresses",
            &[("a", 19, 0), ("b", 20, 0), ("c", 19, 0), ("d", 19, 0)],
            Some(("b", peers, 77 + ROOM.nodes, false)),
        ),
        (
            "as many as there is room for",
            &[("a", 19, 0), ("b", 19, 0), ("c", 19, 0), ("d", 19, 0)],
            None,
        ),
        (
            "all together, by who brings peers",
            &[("a", 0, 3), ("b", 0, 3), ("c", 0, 3), ("d", 9, 1)],
            Some(("d", rules, 99, false)),
        ),
        (
            "all together, by who has rules for every peer",
            &[("a", 3, 1), ("b", 3, 1), ("c", 3, 1), ("d", 0, 9)],
            Some(("d", rules, 99, false)),
        ),
    ];
    for (why, rows, expected) in table {
        let objects = objects(rows);
        let found = compile_within(&objects, NODE, ROOM);
        let expected = expected.map(|(namespace, (limit, size), needed, is_share)| Over {
            namespace: namespace.into(),
            limit,
            size,
            needed,
            held: found.as_ref().err().map_or(0, |over| over.held),
            is_share,
        });
        assert_eq!(found.as_ref().err(), expected.as_ref(), "{why}");
        if let Err(over) = &found {
            assert!((1..=over.needed).contains(&over.held), "{why}: {over:?}");
        }
        if let Ok(tables) = found {
            assert_eq!(tables, compile(&objects, NODE), "{why}");
        }
    }
}

#[test]
fn blocks_are_counted_with_those_around_them() {
    let block = |cidr: &str, except: &[&str]| IpBlock {
        cidr: cidr.parse().unwrap(),
        except: except.iter().map(|net| net.parse().unwrap()).collect(),
    };
    for (why, blocks, expected) in [
        ("apart", vec![block("10.0.0.0/8", &[]), block("fd00::/8", &[])], (2, 2)),
        (
            "its exceptions",
            vec![block("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.0/16"])],
            (3, 3),
        ),
        (
            "within one another",
            vec![
                block("::/0", &[]),
                block("0.0.0.0/0", &["10.1.0.0/16"]),
                block("10.1.0.0/16", &["10.1.0.0/24"]),
                block("10.1.0.0/24", &[]),
            ],
            // IPv6: 1; the one around all of IPv4: 3; then 2, and 1.
            (4, 7),
        ),
    ] {
        let Prefixes { prefixes, held } = Prefixes::of(&blocks.iter().collect());
        assert_eq!((prefixes, held), expected, "{why}");
    }
}

/// One namespace with one pod, isolated by a policy of these rules.
fn isolated_by(rules: Vec<Rule>) -> Objects {
    let mut objects = objects(&[("a", 0, 0)]);
    let policy = objects.policies.values_mut().next().unwrap();
    *policy = Arc::new(Policy {
        ingress: Some(rules.clone()),
        egress: Some(rules),
        ..Policy::clone(policy)
    });
    objects
}

fn tcp(ports: impl IntoIterator<Item = Port>) -> Rule {
    let port = |port| PortMatch {
        protocol: Protocol::Tcp,
        port,
    };
    Rule {
        peers: None,
        ports: Some(ports.into_iter().map(port).collect()),
    }
}

#[test]
fn no_bound_is_below_what_is_written() {
    let within = |objects: &Objects, why: &str| {
        let pods = PodIndex::new(objects);
        let endpoints = Endpoints::of(objects, &pods, NODE);
        let selectors = Selectors::of(&endpoints);
        let classes = Classes::new(&pods, &selectors, &Cidrs::new(&selectors));
        for table in &endpoints.tables {
            let written = rules::expand(table, &selectors, &classes);
            let entries = || written.rules.values().flat_map(BTreeMap::values);
            let names = entries()
                .flat_map(|entry| &entry.policies)
                .map(|policy| policy.rules.len());
            let (most, direction) = (bound(table, &selectors, &classes), table.direction);
            assert!(most >= entries().count(), "{why}, {direction:?}: {most}");
            let most = bound(table, &selectors, &classes) * weight(table) * NAMED;
            assert!(most >= names.clone().sum(), "{why}, {direction:?}: {most}");
            if weight(table) > 1 {
                let most = named(table, &selectors, &classes);
                assert!(most >= names.sum(), "{why}, {direction:?}: {most}");
            }
        }
    };
    let pairs = (0..300).map(|n| Port::Range(200 * n + 14, 200 * n + 15));
    let cut = isolated_by(vec![tcp([Port::Range(0, 65535)]), tcp(pairs)]);
    within(&cut, "a range that others cut");
    let nested = (1..400).map(|n| tcp([Port::Range(n, 65535 - n)]));
    within(&isolated_by(nested.collect()), "ranges in one another");
    let mut named = isolated_by(vec![tcp([Port::Named("web".into())])]);
    for pod in named.pods.values_mut() {
        let port = |port| crate::model::NamedPort {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port,
        };
        *pod = Arc::new(Pod {
            addresses: vec!["10.0.0.1".parse().unwrap()],
            ports: (1..100).map(port).collect(),
            ..Pod::clone(pod)
        });
    }
    within(&named, "a name that is another number in each container");
}

#[test]
fn what_makes_much_of_little_is_told_before_it_is_made() {
    let everything = Rule {
        peers: None,
        ports: None,
    };
    let each = (0..30_000).map(|port| Port::Exact(2 * port));
    let nested = (1..30_000).map(|n| tcp([Port::Range(n, 65535 - n)]));
    let wide = [
        tcp([Port::Range(0, 65535)]),
        tcp((0..2_000).map(|n| Port::Range(32 * n + 14, 32 * n + 15))),
    ];
    let room = Room {
        rules: 20_000,
        peers: 20_000,
        nodes: 0,
    };
    let nobodys = || tcp([Port::Named("nobodys".into())]);
    let block = |n| IpBlock {
        cidr: format!("198.18.{}.{}/32", n / 256, n % 256).parse().unwrap(),
        except: Vec::new(),
    };
    let blocks = Rule {
        peers: Some((0..1_000).map(|n| Peer::Block(block(n))).collect()),
        ..nobodys()
    };
    for (why, rules) in [
        (
            "a port that nobody has, for many classes",
            [vec![blocks], vec![nobodys(); 1_000]].concat(),
        ),
        ("ranges in one another", nested.collect()),
        (
            "ports beside many rules",
            [vec![everything; 20_000], vec![tcp(each)]].concat(),
        ),
        ("a range that others cut", wide.to_vec()),
    ] {
        let objects = isolated_by(rules);
        let over = compile_within(&objects, NODE, room).unwrap_err();
        assert_eq!((over.limit, over.is_share), ("limits.rules", true), "{why}");
    }
}

#[test]
fn what_is_counted_is_what_is_written() {
    let mut objects = objects(&[("a", 3, 2), ("a", 2, 5), ("a", 0, 2), ("b", 0, 1)]);
    let policy = objects.policies.values_mut().next().unwrap();
    let mut ranged = Policy::clone(policy);
    for (blocks, first, last) in [(1, 1, 6), (0, 4, 90)] {
        let udp = PortMatch {
            protocol: Protocol::Udp,
            port: Port::Range(first, last),
        };
        let ranges = Rule {
            ports: Some(vec![udp]),
            ..rule(0, blocks, 1)
        };
        let everything = Rule {
            peers: None,
            ports: None,
        };
        ranged.ingress.as_mut().unwrap().extend([ranges, everything]);
    }
    *policy = ranged.into();
    let pods = PodIndex::new(&objects);
    let endpoints = Endpoints::of(&objects, &pods, NODE);
    let selectors = Selectors::of(&endpoints);
    let classes = Classes::new(&pods, &selectors, &Cidrs::new(&selectors));
    for table in &endpoints.tables {
        let written: usize = rules::expand(table, &selectors, &classes)
            .rules
            .values()
            .map(BTreeMap::len)
            .sum();
        assert_eq!(rules::count(table, &selectors, &classes), written);
        assert!(bound(table, &selectors, &classes) >= written);
    }
}

/// Of 20 pods, each of which `a`'s selectors all match.
#[test]
fn selectors_that_match_very_often_are_told() {
    let mut objects = objects(&[("a", 0, 0), ("b", 0, 1)]);
    for n in 0..20_u8 {
        let pod = Pod {
            labels: Labels::new(),
            addresses: vec![IpAddr::from([10, 0, 0, n])],
            node: "another".into(),
            ports: Vec::new(),
        };
        objects
            .pods
            .insert(ObjectName::new("a", format!("pod-{n}")), pod.into());
    }
    let selector = |n| Peer::Pods {
        namespaces: None,
        pods: Selector {
            requirements: vec![Requirement {
                key: format!("key-{n}").into(),
                operator: Operator::DoesNotExist,
            }],
        },
    };
    let room = Room { peers: 100, ..ROOM };
    let share = WORTH_COUNTING * share_of(room.peers);
    for (selectors, is_told) in [(share / 21, false), (share / 21 + 1, true)] {
        let rule = Rule {
            peers: Some((0..selectors).map(selector).collect()),
            ports: Some(Vec::new()),
        };
        let policy = objects.policies.values_mut().next().unwrap();
        *policy = Arc::new(Policy {
            ingress: Some(vec![rule]),
            egress: None,
            ..Policy::clone(policy)
        });
        let found = compile_within(&objects, NODE, room);
        let told = found.err().map(|over| (over.namespace, over.limit, over.is_share));
        assert_eq!(told, is_told.then(|| ("a".into(), "limits.peers", true)), "{selectors}");
    }
}

/// More than weigh nothing: what they make of classes that others bring is the others'.
#[test]
fn rules_for_every_peer_are_not_blamed_for_others_classes() {
    for rules in [16, 17, 40] {
        let mut objects = objects(&[("a", 0, 0), ("b", 0, 0)]);
        let mut every: Vec<Rule> = (0..rules).map(|n| tcp([Port::Exact(1000 + 2 * n)])).collect();
        // It has some classes of its own too.
        every.push(rule(1, 3, 1));
        let block = |n| IpBlock {
            cidr: format!("198.18.{}.{}/32", n / 256, n % 256).parse().unwrap(),
            except: Vec::new(),
        };
        let blocks = Rule {
            peers: Some((0..400).map(|n| Peer::Block(block(n))).collect()),
            ..tcp([Port::Exact(1000)])
        };
        for (policy, rules) in objects.policies.values_mut().zip([every, vec![blocks]]) {
            *policy = Arc::new(Policy {
                ingress: Some(rules),
                egress: None,
                ..Policy::clone(policy)
            });
        }
        let room = Room {
            rules: 4_000,
            peers: 4_000,
            nodes: 0,
        };
        let over = compile_within(&objects, NODE, room).unwrap_err();
        assert_eq!((&*over.namespace, over.is_share), ("b", false), "{rules}");
    }
}
