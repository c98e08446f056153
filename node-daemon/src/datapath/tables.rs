// SPDX-License-Identifier: Apache-2.0
//! Rule tables as the kernel holds them, and which ids mean what. Pure bookkeeping: what must be written comes out as
//! a list.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use wardline_bpf::abi::{self, RangeKey, Rule, RuleKey};
use wardline_policy::model::{Direction, Peer, Protocol};
use wardline_policy::tables::{Attribution, Class, PortKey, ProtocolKey, Table, TableKey};

use super::ids::Ids;
use crate::names::{Meaning, TableName};

/// The rules of one class in one table, as the policy crate makes them.
pub(super) type ClassRules = BTreeMap<wardline_policy::tables::RuleKey, Arc<Attribution>>;

/// Entries for the two rule maps.
#[derive(Debug, Default)]
pub(super) struct RuleEntries {
    pub(super) rules: Vec<(RuleKey, Rule)>,
    pub(super) ranges: Vec<(RangeKey, Rule)>,
}

/// A table in the kernel.
#[derive(Clone, Debug)]
pub(super) struct LoadedTable {
    pub(super) id: u32,
    /// Some policy of it has an ipBlock.
    pub(super) has_cidrs: bool,
    /// By class id.
    pub(super) classes: HashMap<u32, ClassRules>,
}

/// Ids given to meanings. A meaning keeps its id as long as it is in use; an id never gets another meaning.
#[derive(Clone, Debug, Default)]
pub(super) struct Meanings {
    classes: HashMap<Arc<Class>, u32>,
    attributions: HashMap<Arc<Attribution>, u32>,
    attribution_ids: HashSet<u32>,
    /// Attributions that must be made known before they are used.
    pub(super) untold: Vec<Meaning>,
}

impl Meanings {
    /// Class 0 is the one that matches no selector.
    pub(super) fn class(&mut self, class: &Arc<Class>, ids: &mut Ids) -> u32 {
        if **class == Class::default() {
            return 0;
        }
        *self
            .classes
            .entry(Arc::clone(class))
            .or_insert_with(|| ids.next_class())
    }

    fn attribution(&mut self, attribution: &Arc<Attribution>, ids: &mut Ids) -> u32 {
        let (untold, in_use) = (&mut self.untold, &mut self.attribution_ids);
        *self.attributions.entry(Arc::clone(attribution)).or_insert_with(|| {
            let id = ids.next_attribution();
            in_use.insert(id);
            untold.push(Meaning::Attribution {
                id,
                attribution: Arc::clone(attribution),
            });
            id
        })
    }

    pub(super) fn has_attribution(&self, id: u32) -> bool {
        self.attribution_ids.contains(&id)
    }

    /// Gives a new table its id.
    pub(super) fn table(&mut self, key: &TableKey, ids: &mut Ids) -> LoadedTable {
        let id = ids.next_table();
        let isolated_by = key
            .policies
            .iter()
            .map(|policy| wardline_policy::tables::PolicyRef {
                name: policy.name.clone(),
                generation: policy.generation,
            })
            .collect();
        let name = Arc::new(TableName {
            direction: key.direction,
            isolated_by,
        });
        self.untold.push(Meaning::Table { id, name });
        LoadedTable {
            id,
            has_cidrs: has_cidrs(key),
            classes: HashMap::new(),
        }
    }

    /// The entries of `table`'s classes that `loaded` does not have yet; they are noted there.
    pub(super) fn extend(&mut self, loaded: &mut LoadedTable, table: &Table, ids: &mut Ids) -> RuleEntries {
        let mut entries = RuleEntries::default();
        for (class, rules) in &table.rules {
            let class = self.class(class, ids);
            if loaded.classes.contains_key(&class) {
                continue;
            }
            self.class_entries(loaded.id, class, rules, ids, &mut entries);
            loaded.classes.insert(class, rules.clone());
        }
        entries
    }

    fn class_entries(&mut self, table: u32, class: u32, rules: &ClassRules, ids: &mut Ids, entries: &mut RuleEntries) {
        let has_ranges = |protocol| {
            rules
                .keys()
                .any(|key| key.protocol == protocol && matches!(key.ports, PortKey::Prefix { .. }))
        };
        for (key, attribution) in rules {
            let value = Rule {
                attribution: self.attribution(attribution, ids),
                flags: abi::RULE_ALLOW
                    | if attribution.policies.iter().any(|p| p.log) {
                        abi::RULE_LOG
                    } else {
                        0
                    },
            };
            match key.ports {
                PortKey::Any => {
                    let flags = value.flags | if has_ranges(key.protocol) { abi::RULE_RANGES } else { 0 };
                    entries
                        .rules
                        .push((rule_key(table, class, key.protocol, 0), Rule { flags, ..value }));
                }
                PortKey::Exact(port) => entries.rules.push((rule_key(table, class, key.protocol, port), value)),
                PortKey::Prefix { first, length } => {
                    entries
                        .ranges
                        .push((range_key(table, class, key.protocol, first, length), value));
                    let any = wardline_policy::tables::RuleKey {
                        protocol: key.protocol,
                        ports: PortKey::Any,
                    };
                    if !rules.contains_key(&any) {
                        let ask = Rule {
                            attribution: 0,
                            flags: abi::RULE_RANGES,
                        };
                        entries.rules.push((rule_key(table, class, key.protocol, 0), ask));
                    }
                }
            }
        }
        // Several prefixes of a protocol ask for the same any-port entry.
        entries
            .rules
            .sort_unstable_by_key(|(key, _)| (key.table, key.class, key.protocol, key.port));
        entries.rules.dedup_by_key(|(key, _)| *key);
    }

    /// Forgets what is not in use: not in one of the loaded `tables`, nor among the `classes` that occur.
    pub(super) fn retain<'a>(&mut self, tables: impl Iterator<Item = &'a LoadedTable>, mut classes: HashSet<u32>) {
        let mut attributions = HashSet::new();
        for table in tables {
            classes.extend(table.classes.keys().copied());
            attributions.extend(table.classes.values().flat_map(BTreeMap::values).cloned());
        }
        self.classes.retain(|_, id| classes.contains(id));
        self.attributions
            .retain(|attribution, _| attributions.contains(attribution));
        self.attribution_ids = self.attributions.values().copied().collect();
    }
}

/// All keys that a loaded table has in the kernel.
pub(super) fn keys_of(table: &LoadedTable, class: u32) -> (Vec<RuleKey>, Vec<RangeKey>) {
    let (mut rules, mut ranges) = (Vec::new(), Vec::new());
    let Some(entries) = table.classes.get(&class) else {
        return (rules, ranges);
    };
    for key in entries.keys() {
        match key.ports {
            PortKey::Any => rules.push(rule_key(table.id, class, key.protocol, 0)),
            PortKey::Exact(port) => rules.push(rule_key(table.id, class, key.protocol, port)),
            PortKey::Prefix { first, length } => {
                ranges.push(range_key(table.id, class, key.protocol, first, length));
                rules.push(rule_key(table.id, class, key.protocol, 0));
            }
        }
    }
    (rules, ranges)
}

fn rule_key(table: u32, class: u32, protocol: ProtocolKey, port: u16) -> RuleKey {
    RuleKey {
        table,
        class,
        port: port.to_be(),
        protocol: number(protocol),
        pad: 0,
    }
}

fn range_key(table: u32, class: u32, protocol: ProtocolKey, port: u16, length: u8) -> RangeKey {
    // The LPM compares bytes from the front: table, class, protocol and pad are 80 bits, always whole.
    let prefixlen = 80 + u32::from(length);
    RangeKey {
        prefixlen,
        table,
        class,
        protocol: number(protocol),
        pad: 0,
        port: port.to_be(),
    }
}

fn number(protocol: ProtocolKey) -> u8 {
    match protocol {
        ProtocolKey::Ported(protocol) => Protocol::number(protocol),
        ProtocolKey::Other => 0,
    }
}

fn has_cidrs(key: &TableKey) -> bool {
    key.policies.iter().any(|policy| {
        let rules = match key.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let mut peers = rules.iter().flatten().flat_map(|rule| rule.peers.iter().flatten());
        peers.any(|peer| matches!(peer, Peer::Block(_)))
    })
}
