// SPDX-License-Identifier: Apache-2.0
//! Policies that ask for more than the tables have room for: they give way themselves, and nobody else's do.
//!
//! ```text
//! the namespace that asks for too much --> its policies that changed, the largest first, then the others:
//!                                            the version that is in force, else isolated and nothing allowed
//!                                      --> until the rest fits
//! ```
//!
//! docs/decisions/0010-namespace-shares.md

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use wardline_policy::compile::{Over, Room, compile, compile_within};
use wardline_policy::model::{ObjectName, Policy};
use wardline_policy::tables::Tables;

use super::Index;

type Policies = BTreeMap<ObjectName, Arc<Policy>>;

impl Index {
    /// Compiles what the API server tells, as far as there is room.
    pub(super) fn compile_in_room(&mut self) -> Tables {
        let told = self.policies.iter();
        let told = told.map(|(name, told)| (name.clone(), Arc::clone(&told.policy)));
        let mut former = std::mem::replace(&mut self.objects.policies, told.collect());
        // What only isolates is no version that was good.
        former.retain(|name, _| !self.stand_ins.contains(name));
        let stand_ins = self.policies.iter().filter(|(_, told)| told.is_stand_in);
        self.stand_ins = stand_ins.map(|(name, _)| name.clone()).collect();
        self.too_large.clear();
        let Some(room) = self.room else {
            return compile(&self.objects, &self.node);
        };
        let nodes = self.node_addresses().union(&self.interfaces.local).count();
        let room = Room { nodes, ..room };
        loop {
            let over = match compile_within(&self.objects, &self.node, room) {
                Ok(tables) => return tables,
                Err(over) => over,
            };
            let replaced = self.replacements(&over, &former);
            if replaced.is_empty() {
                // Not reached: what allows nothing takes no room. The limits are checked again where it is loaded.
                return compile(&self.objects, &self.node);
            }
            let cause = over.to_string();
            for (name, instead) in replaced {
                if former.get(&name) != Some(&instead) {
                    self.stand_ins.insert(name.clone());
                }
                self.too_large.insert(name.clone(), cause.clone());
                self.objects.policies.insert(name, instead);
            }
        }
    }

    /// What is to be in force in place of some of a namespace's policies that this node uses: about as many as make up
    /// for what is too much, since it can be very many small ones.
    fn replacements(&self, over: &Over, former: &Policies) -> Vec<(ObjectName, Arc<Policy>)> {
        let namespace = &*over.namespace;
        let pods = self.objects.pods.iter();
        let local: Vec<_> = pods
            .filter(|(name, pod)| &*name.namespace == namespace && pod.node == self.node)
            .map(|(_, pod)| pod)
            .collect();
        let mut found = Vec::new();
        for (name, told) in self.policies.iter().filter(|(name, _)| &*name.namespace == namespace) {
            let Some(current) = self.objects.policies.get(name) else {
                continue;
            };
            if current.size() == 0 || !local.iter().any(|pod| current.pod_selector.matches(&pod.labels)) {
                continue;
            }
            let told = &told.policy;
            let in_force = former.get(name).filter(|in_force| *in_force != told);
            let instead = match in_force {
                Some(in_force) if current == told => Arc::clone(in_force),
                _ => Arc::new(told.without_rules()),
            };
            if instead != *current {
                let is_unchanged = former.get(name) == Some(told);
                found.push((is_unchanged, Reverse(current.size()), name.clone(), instead));
            }
        }
        found.sort();
        let all: usize = found.iter().map(|(_, Reverse(size), ..)| size).sum();
        let mut excess = all.saturating_mul(over.excess()).div_ceil(over.held.max(1));
        let is_needed = |(_, Reverse(size), ..): &(bool, Reverse<usize>, ObjectName, Arc<Policy>)| {
            let is_needed = excess > 0;
            excess = excess.saturating_sub(*size);
            is_needed
        };
        let giving_way = found.into_iter().take_while(is_needed);
        giving_way.map(|(_, _, name, instead)| (name, instead)).collect()
    }
}

#[cfg(test)]
mod tests {
    use wardline_policy::model::{IpBlock, Labels, Peer, Pod, Port, PortMatch, Protocol, Rule, Selector};

    use super::super::{Event, NamespaceInfo, PodInfo, PolicyInfo, Update};
    use super::*;

    /// In the namespace, for so many blocks, each on two ports.
    fn policy(namespace: &str, policy: &str, generation: i64, blocks: u8) -> Event {
        let block = |n| {
            let cidr = format!("198.18.{generation}.{n}/32").parse().unwrap();
            Peer::Block(IpBlock { cidr, except: vec![] })
        };
        let port = |port| PortMatch {
            protocol: Protocol::Tcp,
            port: Port::Exact(port),
        };
        let rule = Rule {
            peers: Some((0..blocks).map(block).collect()),
            ports: Some(vec![port(80), port(443)]),
        };
        let name = ObjectName::new(namespace, policy);
        let policy = Policy {
            name: name.clone(),
            generation,
            log: false,
            pod_selector: Selector::default(),
            ingress: Some(vec![rule]),
            egress: None,
        };
        let uid = "p1".into();
        Event::Policy(name, Update::Set(PolicyInfo { uid, policy }))
    }

    /// Made anew under its name.
    fn another(event: Event) -> Event {
        let Event::Policy(name, Update::Set(told)) = event else {
            return event;
        };
        let uid = "p2".into();
        Event::Policy(name, Update::Set(PolicyInfo { uid, ..told }))
    }

    /// With a mistake that leaves selector and types.
    fn refused(event: Event) -> Event {
        let Event::Policy(name, Update::Set(told)) = event else {
            return event;
        };
        Event::PolicyRefused {
            name,
            uid: told.uid,
            cause: "spec.ingress[0]: bad".into(),
            instead: Some(told.policy.without_rules()),
        }
    }

    /// Two namespaces with a pod each; a namespace may take 10 rules, 5 blocks of the policies above.
    fn index() -> Index {
        let mut index = Index::new("node1", true);
        index.set_room(Room {
            rules: 40,
            peers: 4000,
            nodes: 0,
        });
        for namespace in ["shop", "lab"] {
            index.apply(Event::Namespace(
                namespace.into(),
                Update::Set(NamespaceInfo::default()),
            ));
            let pod = Pod {
                labels: Labels::new(),
                addresses: vec![],
                node: "node1".into(),
                ports: vec![],
            };
            let info = PodInfo {
                uid: "u1".into(),
                static_uid: None,
                node: "node1".into(),
                policy: Some(Arc::new(pod)),
                host_ports: Vec::new(),
                is_written: true,
                created: 0,
                workload: None,
            };
            index.apply(Event::Pod(ObjectName::new(namespace, "pod"), Update::Set(info)));
        }
        index
    }

    /// A policy in force, its generation, and whether it has rules.
    type Row = (&'static str, i64, bool);

    /// The policies in force, and those that are named as too large.
    fn in_force(index: &mut Index) -> (Vec<(String, i64, bool)>, Vec<String>) {
        let tables = index.desired().tables;
        let mut policies: Vec<_> = tables
            .tables
            .keys()
            .flat_map(|key| &key.policies)
            .map(|policy| {
                let has_rules = policy.ingress.as_ref().is_some_and(|rules| !rules.is_empty());
                (policy.name.to_string(), policy.generation, has_rules)
            })
            .collect();
        policies.sort();
        let too_large = index
            .invalid_objects()
            .filter(|object| !object.cause.starts_with("spec."));
        let named = too_large.map(|object| {
            assert!(object.cause.starts_with("limits.rules is 40, a namespace may take 10"));
            object.name
        });
        (policies, named.collect())
    }

    #[test]
    fn who_asks_for_too_much_gives_way_alone() {
        let mut index = index();
        let steps: [(&str, Event, &[Row], &[&str]); 11] = [
            ("one fits", policy("shop", "a", 1, 3), &[("shop/a", 1, true)], &[]),
            (
                "an edit that does not leaves the version before",
                policy("shop", "a", 2, 200),
                &[("shop/a", 1, true)],
                &["shop/a"],
            ),
            (
                "others go on",
                policy("lab", "b", 3, 5),
                &[("lab/b", 3, true), ("shop/a", 1, true)],
                &["shop/a"],
            ),
            (
                "and it too, with what fits",
                policy("shop", "a", 4, 2),
                &[("lab/b", 3, true), ("shop/a", 4, true)],
                &[],
            ),
            (
                "a new one isolates",
                policy("shop", "c", 5, 200),
                &[("lab/b", 3, true), ("shop/a", 4, true), ("shop/c", 5, false)],
                &["shop/c"],
            ),
            (
                "several together are too many: not those that were there before",
                policy("shop", "c", 6, 4),
                &[("lab/b", 3, true), ("shop/a", 4, true), ("shop/c", 6, false)],
                &["shop/c"],
            ),
            (
                "nor is it others'",
                policy("shop", "d", 7, 1),
                &[
                    ("lab/b", 3, true),
                    ("shop/a", 4, true),
                    ("shop/c", 6, false),
                    ("shop/d", 7, true),
                ],
                &["shop/c"],
            ),
            (
                "there is room again",
                Event::Policy(ObjectName::new("shop", "a"), Update::Gone),
                &[("lab/b", 3, true), ("shop/c", 6, true), ("shop/d", 7, true)],
                &[],
            ),
            (
                "the version before was another object's",
                another(policy("shop", "c", 8, 200)),
                &[("lab/b", 3, true), ("shop/c", 8, false), ("shop/d", 7, true)],
                &["shop/c"],
            ),
            (
                "one that cannot be used is named for its cause",
                refused(another(policy("shop", "c", 9, 0))),
                &[("lab/b", 3, true), ("shop/c", 9, false), ("shop/d", 7, true)],
                &[],
            ),
            (
                "and was no version before",
                another(policy("shop", "c", 10, 200)),
                &[("lab/b", 3, true), ("shop/c", 10, false), ("shop/d", 7, true)],
                &["shop/c"],
            ),
        ];
        for (why, event, policies, named) in steps {
            index.apply(event);
            let policies: Vec<_> = policies
                .iter()
                .map(|(name, generation, has_rules)| ((*name).to_owned(), *generation, *has_rules))
                .collect();
            let named: Vec<_> = named.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(in_force(&mut index), (policies, named), "{why}");
        }
    }

    #[test]
    fn very_many_small_ones_are_too_many_too() {
        let mut index = index();
        index.apply(policy("lab", "b", 1, 1));
        for n in 0..200 {
            index.apply(policy("shop", &format!("p{n}"), n, 1));
        }
        let (policies, named) = in_force(&mut index);
        let kept = policies.iter().filter(|(_, _, has_rules)| *has_rules).count();
        assert!(
            kept > 1 && policies.contains(&("lab/b".to_owned(), 1, true)),
            "{policies:?}"
        );
        assert_eq!(kept + named.len(), 201);
    }
}
