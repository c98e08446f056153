// SPDX-License-Identifier: Apache-2.0
//! What a packet program does with the tables, step for step, so that they can be checked without a kernel.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::evaluate::{Flow, Verdict};
use crate::model::Protocol;
use crate::tables::{Attribution, Class, PolicyRef, PortKey, ProtocolKey, RuleKey, Tables};

/// Judges a flow by one node's tables. An endpoint of another node is not in them: `NotIsolated`.
pub fn lookup(tables: &Tables, flow: &Flow) -> Verdict {
    let Some(key) = tables
        .endpoints
        .get(&flow.endpoint)
        .and_then(|endpoint| endpoint.table(flow.direction))
    else {
        return Verdict::NotIsolated;
    };
    let class = class_of(tables, flow.remote);
    let rules = tables.tables.get(key).and_then(|table| table.rules.get(&class));
    match rules.and_then(|rules| rule(rules, flow.protocol, flow.port)) {
        Some(attribution) => Verdict::Allow(Attribution::clone(attribution)),
        None => Verdict::DefaultDeny(key.policies.iter().map(|policy| PolicyRef::from(&**policy)).collect()),
    }
}

/// The exact address, else the longest prefix that holds it, else the default class.
pub fn class_of(tables: &Tables, address: IpAddr) -> Arc<Class> {
    let prefixes = || {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest)
            .rev()
            .filter_map(|length| IpNet::new(address, length).ok())
            .map(|net| net.trunc())
    };
    let class = tables
        .peers
        .get(&address)
        .or_else(|| prefixes().find_map(|net| tables.cidrs.get(&net)));
    class.cloned().unwrap_or_default()
}

/// The exact port, else the prefix that holds it, else any port.
fn rule(rules: &BTreeMap<RuleKey, Arc<Attribution>>, protocol: u8, port: u16) -> Option<&Arc<Attribution>> {
    let Some(protocol) = Protocol::from_number(protocol).map(ProtocolKey::Ported) else {
        return rules.get(&RuleKey {
            protocol: ProtocolKey::Other,
            ports: PortKey::Any,
        });
    };
    let exact = RuleKey {
        protocol,
        ports: PortKey::Exact(port),
    };
    let any = RuleKey {
        protocol,
        ports: PortKey::Any,
    };
    rules
        .get(&exact)
        .or_else(|| {
            rules.iter().find_map(|(key, attribution)| {
                let holds = matches!(key.ports, PortKey::Prefix { first, length } if in_prefix(port, first, length));
                (key.protocol == protocol && holds).then_some(attribution)
            })
        })
        .or_else(|| rules.get(&any))
}

fn in_prefix(port: u16, first: u16, length: u8) -> bool {
    (port ^ first).leading_zeros() >= u32::from(length)
}
