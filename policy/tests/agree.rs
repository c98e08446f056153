// SPDX-License-Identifier: Apache-2.0
//! The tables say what the reference says: the same verdict, by the same rules of the same policies, for generated
//! clusters and flows.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use wardline_policy::compile::compile;
use wardline_policy::evaluate::{Verdict, evaluate};
use wardline_policy::generate::{self, NODE};
use wardline_policy::lookup::lookup;
use wardline_policy::model::Objects;
use wardline_policy::tables::{PortKey, Tables};

fn config() -> Config {
    Config {
        cases: 768,
        failure_persistence: None,
        ..Config::default()
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

fn check_shape(tables: &Tables) -> Result<(), TestCaseError> {
    let used: BTreeSet<_> = tables
        .endpoints
        .values()
        .flat_map(|e| e.ingress.iter().chain(&e.egress))
        .collect();
    prop_assert_eq!(used, tables.tables.keys().collect::<BTreeSet<_>>());
    for (key, table) in &tables.tables {
        prop_assert!(key.policies.is_sorted_by(|a, b| a.name < b.name) && !key.policies.is_empty());
        for rules in table.rules.values() {
            prop_assert!(!rules.is_empty());
            let mut prefixes: Vec<_> = Vec::new();
            for (rule, attribution) in rules {
                prop_assert!(!attribution.policies.is_empty());
                prop_assert!(attribution.policies.iter().all(|p| p.rules.is_sorted_by(|a, b| a < b)));
                if let PortKey::Prefix { first, length } = rule.ports {
                    let range = ports(first, length);
                    prop_assert_eq!(range.start() % (1 << (16 - length)), 0, "{:?}", rule);
                    prefixes.push((rule.protocol, *range.start(), *range.end()));
                }
            }
            prefixes.sort_unstable();
            prop_assert!(
                prefixes.windows(2).all(|p| p[0].0 != p[1].0 || p[0].2 < p[1].1),
                "{:?}",
                prefixes
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn tables_agree_with_the_reference((objects, flows) in generate::cluster_and_flows(64)) {
        let tables = compile(&objects, NODE);
        for flow in &flows {
            prop_assert_eq!(lookup(&tables, flow), evaluate(&objects, flow), "{:?}", flow);
        }
    }

    #[test]
    fn equal_objects_give_equal_tables_of_sound_shape(objects in generate::objects()) {
        let tables = compile(&objects, NODE);
        prop_assert_eq!(&tables, &compile(&copied(&objects), NODE));
        check_shape(&tables)?;
    }
}

/// The agreement would be worth little if the clusters never came to what is hard.
#[test]
fn generated_clusters_come_to_every_case() {
    let mut runner = TestRunner::deterministic();
    let strategy = generate::cluster_and_flows(32);
    let mut seen = BTreeSet::new();
    for _ in 0..300 {
        let (objects, flows) = strategy.new_tree(&mut runner).unwrap().current();
        let tables = compile(&objects, NODE);
        let addresses: Vec<_> = objects.pods.values().flat_map(|pod| &pod.addresses).collect();
        if addresses.iter().collect::<BTreeSet<_>>().len() < addresses.len() {
            seen.insert("address of two pods");
        }
        if objects
            .pods
            .keys()
            .any(|name| !objects.namespaces.contains_key(&name.namespace))
        {
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
        for key in tables
            .tables
            .values()
            .flat_map(|table| table.rules.values())
            .flat_map(|rules| rules.keys())
        {
            seen.insert(match key.ports {
                PortKey::Any => "any port",
                PortKey::Exact(_) => "exact port",
                PortKey::Prefix { .. } => "range",
            });
        }
        for flow in &flows {
            seen.insert(match evaluate(&objects, flow) {
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
