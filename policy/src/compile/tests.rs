// SPDX-License-Identifier: Apache-2.0
//! What the tables hold; that they say the right thing is tested beside `evaluate` and in tests/agree.rs.

use std::collections::BTreeMap;

use super::*;
use crate::model::{Direction, Peer, Protocol};
use crate::tables::{Attribution, Class, PortKey, ProtocolKey, RuleKey};
use crate::testing::{NODE, cluster, name};

/// In the order of the class: blocks by their cidr, pod selectors by their first value (`any` where they have none),
/// named ports.
fn spell_class(class: &Class) -> String {
    let selector = |peer: &Peer| match peer {
        Peer::Block(block) => block.cidr.to_string(),
        Peer::Pods { pods, .. } => match pods.requirements.first().map(|r| &r.operator) {
            Some(crate::model::Operator::In(values)) => values[0].to_string(),
            _ => "any".to_owned(),
        },
    };
    let selectors = class.selectors.iter().map(|s| selector(&s.peer));
    let ports = class.named_ports.iter().map(|(name, _, port)| format!("{name}={port}"));
    selectors.chain(ports).collect::<Vec<_>>().join(" ")
}

fn peers(tables: &Tables) -> Vec<(String, String)> {
    tables
        .peers
        .iter()
        .map(|(address, class)| (address.to_string(), spell_class(class)))
        .collect()
}

fn cidrs(tables: &Tables) -> Vec<(String, String)> {
    tables
        .cidrs
        .iter()
        .map(|(net, class)| (net.to_string(), spell_class(class)))
        .collect()
}

fn texts(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

/// Each class's entries as `tcp/80 0,1` (rules of the one policy).
fn entries(rules: &BTreeMap<RuleKey, Arc<Attribution>>) -> Vec<String> {
    let spell = |(key, attribution): (&RuleKey, &Arc<Attribution>)| {
        let protocol = match key.protocol {
            ProtocolKey::Ported(Protocol::Tcp) => "tcp",
            ProtocolKey::Ported(Protocol::Udp) => "udp",
            ProtocolKey::Ported(Protocol::Sctp) => "sctp",
            ProtocolKey::Other => "other",
        };
        let ports = match key.ports {
            PortKey::Any => "any".to_owned(),
            PortKey::Exact(port) => port.to_string(),
            PortKey::Prefix { first, length } => format!("{first}:{length}"),
        };
        let rules: Vec<String> = attribution.policies[0].rules.iter().map(u32::to_string).collect();
        format!("{protocol}/{ports} {}", rules.join(","))
    };
    rules.iter().map(spell).collect()
}

#[test]
fn no_policies_no_tables() {
    assert_eq!(compile(&cluster("{}"), NODE), Tables::default());
    // Nor where all selected pods run elsewhere.
    let objects = cluster("p: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]}");
    assert_eq!(compile(&objects, "n2"), Tables::default());
    assert_eq!(compile(&objects, "n3"), Tables::default());
}

#[test]
fn only_addresses_that_a_pod_selector_matches_are_peers() {
    let tables = compile(
        &cluster(
            "
p: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}, {ipBlock: {cidr: 10.0.1.0/30}}]}]}
unused: {podSelector: {matchLabels: {app: nothing}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}
",
        ),
        NODE,
    );
    // Neither web, which only an unused policy tells apart, nor the address that shop/new shares.
    assert_eq!(
        peers(&tables),
        texts(&[("10.0.1.2", "10.0.1.0/30 api"), ("fd00:1::2", "api")])
    );
    assert_eq!(cidrs(&tables), texts(&[("10.0.1.0/30", "10.0.1.0/30")]));
}

#[test]
fn named_ports_of_egress_tell_pods_apart() {
    let egress = |rule: &str| {
        format!("p: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{rule}]}}")
    };
    // For every peer: all pods that have the port.
    assert_eq!(
        peers(&compile(
            &cluster(&egress("{ports: [{port: dns, protocol: UDP}]}")),
            NODE
        )),
        texts(&[("10.0.1.2", "dns=53"), ("fd00:1::2", "dns=53")])
    );
    // For some: only those.
    assert_eq!(
        peers(&compile(
            &cluster(&egress(
                "{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: http}]}"
            )),
            NODE
        )),
        texts(&[("10.0.1.3", "db http=80 http=81"), ("fd00:1::3", "db http=80 http=81")])
    );
}

#[test]
fn named_ports_of_ingress_are_part_of_the_table() {
    let tables = compile(
        &cluster("p: {podSelector: {}, ingress: [{ports: [{port: http}]}]}"),
        NODE,
    );
    let at = |pod: &str| tables.endpoints[&name(pod)].ingress.clone().unwrap();
    let ports = |pod: &str| at(pod).named_ports.iter().map(|(_, _, port)| *port).collect::<Vec<_>>();
    assert_eq!(
        (ports("db"), ports("api"), ports("web")),
        (vec![80, 81], vec![8080], vec![])
    );
    assert!(tables.peers.is_empty());
    // Without the port the rule allows nothing, so that the table has no entry.
    assert_eq!(tables.tables[&at("web")], Table::default());
}

#[test]
fn endpoints_under_the_same_policies_share_a_table() {
    let tables = compile(
        &cluster(
            "p: {podSelector: {}, ingress: [{}]}\nq: {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]}",
        ),
        NODE,
    );
    // All of shop on this node, whether it has an address yet or not; no pod of ops, none of node n2.
    let endpoints: Vec<String> = tables.endpoints.keys().map(|pod| pod.name.to_string()).collect();
    assert_eq!(endpoints, ["api", "bare", "db", "new", "old", "starting", "web"]);
    assert_eq!(tables.tables.len(), 2);
    let isolated = |pod: &str| {
        let endpoint = &tables.endpoints[&name(pod)];
        Direction::ALL.map(|direction| endpoint.table(direction).is_some())
    };
    assert_eq!((isolated("db"), isolated("web")), ([true, true], [true, false]));
}

#[test]
fn every_entry_is_complete() {
    let tables = compile(
        &cluster(
            "
p: {podSelector: {matchLabels: {app: db}}, ingress: [
  {},
  {ports: [{port: 80, endPort: 83}, {port: 443}]},
  {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 81}, {port: 53, protocol: UDP}]}]}
",
        ),
        NODE,
    );
    let (_, table) = tables.tables.first_key_value().unwrap();
    let by_class: Vec<_> = table
        .rules
        .iter()
        .map(|(class, rules)| (spell_class(class), entries(rules)))
        .collect();
    let base = [
        "tcp/any 0",
        "tcp/443 0,1",
        "tcp/80:14 0,1",
        "udp/any 0",
        "sctp/any 0",
        "other/any 0",
    ];
    let web = [
        "tcp/any 0",
        "tcp/81 0,1,2",
        "tcp/443 0,1",
        "tcp/80:14 0,1",
        "udp/any 0",
        "udp/53 0,2",
        "sctp/any 0",
        "other/any 0",
    ];
    let owned = |entries: &[&str]| entries.iter().map(|&e| e.to_owned()).collect::<Vec<_>>();
    assert_eq!(
        by_class,
        [(String::new(), owned(&base)), ("web".to_owned(), owned(&web))]
    );
}

#[test]
fn a_table_has_the_classes_that_its_rules_know() {
    let tables = compile(
        &cluster(
            "
p: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}
q: {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}, {ports: [{port: 1}]}]}
",
        ),
        NODE,
    );
    let classes = |pod: &str| {
        let key = tables.endpoints[&name(pod)].ingress.as_ref().unwrap();
        tables.tables[key]
            .rules
            .keys()
            .map(|class| spell_class(class))
            .collect::<Vec<_>>()
    };
    assert_eq!(classes("db"), ["web"]);
    assert_eq!(classes("api"), ["", "db", "web"]);
}

#[test]
fn blocks_within_blocks() {
    let block = |cidr: &str, except: &str| format!("{{ipBlock: {{cidr: '{cidr}', except: [{except}]}}}}");
    let blocks = [
        block("10.0.0.0/8", "10.1.0.0/16"),
        block("10.1.0.0/16", "10.1.2.0/24, 10.1.3.0/24"),
        block("10.1.2.128/25", ""),
        block("fd00::/8", "'fd00:1::/32'"),
    ];
    let tables = compile(
        &cluster(&format!(
            "p: {{podSelector: {{}}, ingress: [{{from: [{}]}}]}}",
            blocks.join(", ")
        )),
        NODE,
    );
    let expected = [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("10.1.2.0/24", ""),
        ("10.1.2.128/25", "10.1.2.128/25"),
        ("10.1.3.0/24", ""),
        ("fd00::/8", "fd00::/8"),
        ("fd00:1::/32", ""),
    ];
    assert_eq!(cidrs(&tables), texts(&expected));
}

#[test]
fn ipv6_blocks_that_hold_the_mapped_addresses_do_not_catch_ipv4() {
    let compiled = |cidr: &str| {
        let from = format!("[{{ipBlock: {{cidr: '{cidr}'}}}}]");
        cidrs(&compile(
            &cluster(&format!("p: {{podSelector: {{}}, ingress: [{{from: {from}}}]}}")),
            NODE,
        ))
    };
    assert_eq!(compiled("::/0"), texts(&[("0.0.0.0/0", ""), ("::/0", "::/0")]));
    assert_eq!(compiled("::/16"), texts(&[("0.0.0.0/0", ""), ("::/16", "::/16")]));
    assert_eq!(compiled("fd00::/8"), texts(&[("fd00::/8", "fd00::/8")]));
}
