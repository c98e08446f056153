// SPDX-License-Identifier: Apache-2.0
//! The naive evaluator, the reference and the tables say the same of generated flows: the same verdict, by the same
//! rules of the same policies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use wardline_policy::compile::compile;
use wardline_policy::evaluate::{Verdict, evaluate};
use wardline_policy::lookup::lookup;
use wardline_policy::model::Objects;
use wardline_policy::oracle::case::{self, Case};
use wardline_policy::oracle::generate::{Generator, NODE};
use wardline_policy::oracle::naive::{Answer, judge};
use wardline_policy::oracle::{Cluster, Extent, Flow};
use wardline_policy::tables::{PortKey, Tables};

const FLOWS: usize = 100_000;
const FLOWS_A_CLUSTER: usize = 64;

/// Where cases are kept that disagreed once.
fn cases() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases"))
}

/// What the evaluators say of a flow where they differ.
fn disagreement(cluster: &Cluster, objects: &Objects, tables: &Tables, flow: &Flow) -> Result<Answer, String> {
    let naive = judge(cluster, flow);
    let edge = flow.edge();
    let reference = evaluate(objects, &edge);
    let found = lookup(tables, &edge);
    // Whose a packet is, is for the packet program to tell.
    if reference != found || (naive != Answer::Always && naive != Answer::from(&reference)) {
        return Err(format!("naive {naive:?}, reference {reference:?}, tables {found:?}"));
    }
    Ok(naive)
}

fn ask(case: &Case) -> Result<Answer, String> {
    let cluster = case.clusters.last().unwrap();
    let objects = cluster.objects().unwrap();
    disagreement(cluster, &objects, &compile(&objects, NODE), &case.flow)
}

#[test]
fn the_naive_evaluator_the_reference_and_the_tables_agree() {
    let extent = Extent::from_env(FLOWS).unwrap();
    let mut generator = Generator::new(extent.seed);
    let mut judged: BTreeMap<&str, usize> = BTreeMap::new();
    let mut flows = 0;
    while flows < extent.flows {
        let cluster = generator.cluster();
        let objects = cluster.objects().unwrap();
        let tables = compile(&objects, NODE);
        for _ in 0..FLOWS_A_CLUSTER {
            let Some(flow) = generator.flow(&cluster) else { continue };
            flows += 1;
            match disagreement(&cluster, &objects, &tables, &flow) {
                Ok(answer) => *judged.entry(name(&answer)).or_default() += 1,
                Err(why) => fail(extent.seed, why, cluster.clone(), flow),
            }
        }
    }
    println!("seed {}: {flows} flows, {judged:?}", extent.seed);
    for (what, count) in &judged {
        assert!(*count > flows / 50, "too few flows are {what}: {judged:?}");
    }
    assert_eq!(judged.len(), 4);
}

fn fail(seed: u64, why: String, cluster: Cluster, flow: Flow) {
    let case = Case {
        why,
        flow,
        opened_in: None,
        clusters: vec![cluster],
    };
    let mut case = case.shrink(|case| ask(case).is_err());
    case.why = ask(&case).unwrap_err();
    let path = cases().join(format!("seed-{seed}.yaml"));
    case.write(&path).unwrap();
    let yaml = std::fs::read_to_string(&path).unwrap();
    panic!("seed {seed}: kept as {}\n{yaml}", path.display());
}

fn name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Always => "always allowed",
        Answer::NotIsolated => "not isolated",
        Answer::Allowed(_) => "allowed",
        Answer::Denied(_) => "denied",
    }
}

#[test]
fn what_disagreed_once_agrees() {
    let cases = case::read_all(cases()).unwrap();
    assert!(!cases.is_empty());
    for (path, case) in cases {
        if let Err(why) = ask(&case) {
            panic!("{}: {why}", path.display());
        }
    }
}

/// The same objects, with nothing shared.
fn copied(objects: &Objects) -> Objects {
    let Objects {
        namespaces,
        pods,
        policies,
    } = objects.clone();
    Objects {
        namespaces,
        pods: pods
            .into_iter()
            .map(|(name, pod)| (name, Arc::new((*pod).clone())))
            .collect(),
        policies: policies
            .into_iter()
            .map(|(name, policy)| (name, Arc::new((*policy).clone())))
            .collect(),
    }
}

fn ports(first: u16, length: u8) -> std::ops::RangeInclusive<u32> {
    let first = u32::from(first);
    first..=first + (1 << (16 - length)) - 1
}

fn check_shape(tables: &Tables) {
    let used: BTreeSet<_> = tables
        .endpoints
        .values()
        .flat_map(|e| e.ingress.iter().chain(&e.egress))
        .collect();
    assert_eq!(used, tables.tables.keys().collect::<BTreeSet<_>>());
    for (key, table) in &tables.tables {
        assert!(key.policies.is_sorted_by(|a, b| a.name < b.name) && !key.policies.is_empty());
        for rules in table.rules.values() {
            assert!(!rules.is_empty());
            let mut prefixes: Vec<_> = Vec::new();
            for (rule, attribution) in rules {
                assert!(!attribution.policies.is_empty());
                assert!(attribution.policies.iter().all(|p| p.rules.is_sorted_by(|a, b| a < b)));
                if let PortKey::Prefix { first, length } = rule.ports {
                    let range = ports(first, length);
                    assert_eq!(range.start() % (1 << (16 - length)), 0, "{rule:?}");
                    prefixes.push((rule.protocol, *range.start(), *range.end()));
                }
            }
            prefixes.sort_unstable();
            let is_apart = |pair: &[(_, u32, u32)]| pair[0].0 != pair[1].0 || pair[0].2 < pair[1].1;
            assert!(prefixes.windows(2).all(is_apart), "{prefixes:?}");
        }
    }
}

#[test]
fn equal_objects_give_equal_tables_of_sound_shape() {
    let mut generator = Generator::new(Extent::from_env(0).unwrap().seed);
    for _ in 0..768 {
        let objects = generator.cluster().objects().unwrap();
        let tables = compile(&objects, NODE);
        assert_eq!(tables, compile(&copied(&objects), NODE));
        check_shape(&tables);
    }
}

/// The agreement would be worth little if the clusters never came to what is hard.
#[test]
fn generated_clusters_come_to_every_case() {
    let mut generator = Generator::new(1);
    let mut seen = BTreeSet::new();
    for _ in 0..300 {
        let cluster = generator.cluster();
        let objects = cluster.objects().unwrap();
        note_tables(&objects, &compile(&objects, NODE), &mut seen);
        let flows: Vec<Flow> = (0..32).filter_map(|_| generator.flow(&cluster)).collect();
        for flow in flows {
            seen.insert(match evaluate(&objects, &flow.edge()) {
                Verdict::NotIsolated => "not isolated",
                Verdict::DefaultDeny(policies) if policies.len() > 1 => "denied by several",
                Verdict::DefaultDeny(_) => "denied by one",
                Verdict::Allow(attribution) if attribution.policies.len() > 1 => "allowed by several",
                Verdict::Allow(attribution) if attribution.policies[0].rules.len() > 1 => "allowed by several rules",
                Verdict::Allow(_) => "allowed by one",
            });
        }
    }
    let expected = BTreeSet::from([
        "address of two pods",
        "allowed by one",
        "allowed by several",
        "allowed by several rules",
        "any port",
        "block",
        "denied by one",
        "denied by several",
        "endpoint with a named port",
        "exact port",
        "namespace that is not known",
        "not isolated",
        "peer with a named port",
        "range",
    ]);
    assert_eq!(seen, expected);
}

fn note_tables(objects: &Objects, tables: &Tables, seen: &mut BTreeSet<&'static str>) {
    let addresses: Vec<_> = objects.pods.values().flat_map(|pod| &pod.addresses).collect();
    if addresses.iter().collect::<BTreeSet<_>>().len() < addresses.len() {
        seen.insert("address of two pods");
    }
    let is_known = |namespace| objects.namespaces.contains_key(namespace);
    if !objects.pods.keys().all(|name| is_known(&name.namespace)) {
        seen.insert("namespace that is not known");
    }
    if tables.peers.values().any(|class| !class.named_ports.is_empty()) {
        seen.insert("peer with a named port");
    }
    if tables.tables.keys().any(|key| !key.named_ports.is_empty()) {
        seen.insert("endpoint with a named port");
    }
    if tables.cidrs.keys().any(|net| net.prefix_len() > 0) {
        seen.insert("block");
    }
    let rules = tables.tables.values().flat_map(|table| table.rules.values());
    for key in rules.flat_map(|rules| rules.keys()) {
        seen.insert(match key.ports {
            PortKey::Any => "any port",
            PortKey::Exact(_) => "exact port",
            PortKey::Prefix { .. } => "range",
        });
    }
}
