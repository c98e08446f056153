// SPDX-License-Identifier: Apache-2.0
//! Random clusters and flows, for property tests here and in crates that load the tables (feature `generate`).
//!
//! Few names, labels, addresses and ports, so that they meet often: pods that share an address, namespaces that nobody
//! knows, blocks within blocks, ranges that overlap. All that convert lets through can occur, and nothing else.
//!
//! ```
//! use proptest::prelude::*;
//! use wardline_policy::{compile, evaluate, generate, lookup};
//!
//! proptest!(|((objects, flows) in generate::cluster_and_flows(8))| {
//!     let tables = compile::compile(&objects, generate::NODE);
//!     for flow in &flows {
//!         prop_assert_eq!(lookup::lookup(&tables, flow), evaluate::evaluate(&objects, flow));
//!     }
//! });
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use crate::evaluate::Flow;
use crate::model::{
    Direction, IpBlock, Labels, NamedPort, ObjectName, Objects, Operator, Peer, Pod, Policy, Port, PortMatch, Protocol,
    Requirement, Rule, Selector,
};

/// The node whose pods flows are judged at; others run on a node that is not it.
pub const NODE: &str = "node1";

const NAMESPACES: &[&str] = &["a", "b", "c"];
const KEYS: &[&str] = &["app", "tier"];
const VALUES: &[&str] = &["x", "y", "z"];
const PORT_NAMES: &[&str] = &["http", "dns"];
/// Both ends of the port space, and some that stand together.
const PORTS: &[u16] = &[1, 2, 53, 79, 80, 81, 443, 1023, 1024, 8080, 32767, 32768, 65534, 65535];
/// TCP, UDP, SCTP, ICMP, `ICMPv6`, GRE.
const PROTOCOLS: &[u8] = &[6, 17, 132, 1, 58, 47];
const BLOCKS: &[&str] = &[
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/27",
    "10.0.0.8/29",
    "10.0.0.16/28",
    "10.0.0.5/32",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "::/0",
    "fd00::/8",
    "fd00::/64",
    "fd00::/123",
    "fd00::8/125",
    "fd00::5/128",
    "2001:db8::/32",
];
const OUTSIDE: &[&str] = &[
    "192.0.2.1",
    "192.0.2.129",
    "203.0.113.9",
    "11.0.0.1",
    "2001:db8::1",
    "fd12::1",
    "2606::1",
];

/// A cluster of up to ten pods in three namespaces under up to eight policies.
pub fn objects() -> impl Strategy<Value = Objects> {
    let name = |names: &'static [&'static str]| select(names).prop_map(Arc::<str>::from);
    let namespaces = btree_map(name(NAMESPACES), labels(), 0..=NAMESPACES.len());
    let pods = btree_map((select(NAMESPACES), 0_u8..6), pod(), 0..=10);
    let policies = btree_map((select(NAMESPACES), 0_u8..6), policy(), 0..=8);
    (namespaces, pods, policies).prop_map(|(namespaces, pods, policies)| Objects {
        namespaces,
        pods: pods
            .into_iter()
            .map(|((namespace, n), pod)| (ObjectName::new(namespace, format!("pod-{n}")), Arc::new(pod)))
            .collect(),
        policies: policies
            .into_iter()
            .map(|((namespace, n), mut policy)| {
                policy.name = ObjectName::new(namespace, format!("policy-{n}"));
                (policy.name.clone(), Arc::new(policy))
            })
            .collect(),
    })
}

/// A flow at a pod of [`NODE`], or at one that is not known where there is none.
pub fn flow(objects: &Objects) -> impl Strategy<Value = Flow> + use<> {
    let on_node = |(name, pod): (&ObjectName, &Arc<Pod>)| (&*pod.node == NODE).then(|| name.clone());
    let endpoints: Vec<ObjectName> = objects.pods.iter().filter_map(on_node).collect();
    let remotes: Vec<IpAddr> = objects.pods.values().flat_map(|pod| pod.addresses.clone()).collect();
    let endpoint = any::<Index>().prop_map(move |index| match endpoints.as_slice() {
        [] => ObjectName::new("nowhere", "nobody"),
        some => index.get(some).clone(),
    });
    let outside = prop_oneof![
        select(OUTSIDE).prop_filter_map("an address", |text| text.parse().ok()),
        address(),
    ];
    let remote = (any::<Index>(), outside, 0..4_u8).prop_map(move |(index, outside, choice)| {
        if choice == 0 || remotes.is_empty() {
            outside
        } else {
            *index.get(&remotes)
        }
    });
    let protocol = prop_oneof![6 => Just(6), 2 => Just(17), 2 => select(PROTOCOLS)];
    let near = (select(PORTS), 0..3_u8).prop_map(|(port, step)| match step {
        0 => port.wrapping_sub(1),
        1 => port,
        _ => port.wrapping_add(1),
    });
    (
        endpoint,
        direction(),
        remote,
        protocol,
        prop_oneof![4 => near, 1 => any::<u16>()],
    )
        .prop_map(|(endpoint, direction, remote, protocol, port)| {
            let port = if Protocol::from_number(protocol).is_some() {
                port
            } else {
                0
            };
            Flow {
                endpoint,
                direction,
                remote,
                protocol,
                port,
            }
        })
}

/// A cluster, and that many flows in it.
pub fn cluster_and_flows(flows: usize) -> impl Strategy<Value = (Objects, Vec<Flow>)> {
    objects().prop_flat_map(move |objects| {
        let flows = vec(flow(&objects), flows);
        (Just(objects), flows)
    })
}

fn direction() -> impl Strategy<Value = Direction> {
    select(&Direction::ALL[..])
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![3 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn labels() -> impl Strategy<Value = Labels> {
    let text = |texts: &'static [&'static str]| select(texts).prop_map(str::to_owned);
    btree_map(text(KEYS), text(VALUES), 0..=KEYS.len())
}

/// One of 32 of each family: enough that most pods have their own, few enough that some share.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..32_u8).prop_map(|host| IpAddr::V4(Ipv4Addr::new(10, 0, 0, host))),
        (0..32_u16).prop_map(|host| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host))),
    ]
}

fn pod() -> impl Strategy<Value = Pod> {
    let port = (select(PORT_NAMES), protocol(), select(PORTS));
    let ports = btree_set(port, 0..=3).prop_map(|ports| {
        ports
            .into_iter()
            .map(|(name, protocol, port)| NamedPort {
                name: name.into(),
                protocol,
                port,
            })
            .collect()
    });
    let addresses = btree_set(address(), 0..=2).prop_map(|addresses| addresses.into_iter().collect());
    let node = prop_oneof![3 => Just(NODE), 1 => Just("node2")];
    (labels(), addresses, node, ports).prop_map(|(labels, addresses, node, ports)| Pod {
        labels,
        addresses,
        node: node.into(),
        ports,
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let rules = || option::weighted(0.75, vec(rule(), 0..=3));
    let selector = prop_oneof![1 => Just(Selector::default()), 1 => selector()];
    (selector, rules(), rules(), 1..4_i64, any::<bool>()).prop_map(
        |(pod_selector, ingress, egress, generation, log)| Policy {
            name: ObjectName::new("", ""),
            generation,
            log,
            pod_selector,
            ingress,
            egress,
        },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    let peers = option::weighted(0.8, vec(peer(), 1..=3));
    let ports = option::weighted(0.7, vec(port_match(), 1..=4));
    (peers, ports).prop_map(|(peers, ports)| Rule { peers, ports })
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        2 => (option::of(selector()), selector()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        1 => block().prop_map(Peer::Block),
    ]
}

/// A block, and of its strict parts some as excepts.
fn block() -> impl Strategy<Value = IpBlock> {
    let all: Vec<IpNet> = BLOCKS.iter().filter_map(|text| text.parse().ok()).collect();
    select(all.clone()).prop_flat_map(move |cidr| {
        let parts: Vec<IpNet> = all
            .iter()
            .copied()
            .filter(|net| cidr.contains(net) && *net != cidr)
            .collect();
        let most = parts.len().min(2);
        subsequence(parts, 0..=most).prop_map(move |except| IpBlock { cidr, except })
    })
}

fn port_match() -> impl Strategy<Value = PortMatch> {
    let range = (select(PORTS), select(PORTS)).prop_map(|(a, b)| match (a.min(b), a.max(b)) {
        (first, last) if first == last => Port::Exact(first),
        (first, last) => Port::Range(first, last),
    });
    let port = prop_oneof![
        1 => Just(Port::Any),
        3 => select(PORTS).prop_map(Port::Exact),
        3 => range,
        2 => select(PORT_NAMES).prop_map(|name| Port::Named(name.into())),
    ];
    (protocol(), port).prop_map(|(protocol, port)| PortMatch { protocol, port })
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = || subsequence(VALUES, 1..=2).prop_map(|values| values.into_iter().map(Arc::<str>::from).collect());
    let operator = prop_oneof![
        4 => values().prop_map(Operator::In),
        1 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    btree_map(select(KEYS), operator, 0..=KEYS.len()).prop_map(|requirements| Selector {
        requirements: requirements
            .into_iter()
            .map(|(key, operator)| Requirement {
                key: key.into(),
                operator,
            })
            .collect(),
    })
}
