// SPDX-License-Identifier: Apache-2.0
//! Why a rule does not allow a flow. The reference is asked again about the policy alone, with one rule and one half of
//! that rule: what allows by its peers alone fails by its ports, and the other way round.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use wardline_policy::evaluate::{Flow, Verdict, evaluate};
use wardline_policy::model::{Direction, ObjectName, Objects, Policy, Rule};

/// A rule that does not allow the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Miss {
    /// Index into the policy's list of this direction.
    pub(super) rule: u32,
    pub(super) peer_matches: bool,
    pub(super) port_matches: bool,
}

/// Each rule of a policy that isolates and does not allow; none where it has no rules, or is gone.
pub(super) fn misses(objects: &Objects, flow: &Flow, name: &ObjectName) -> Vec<Miss> {
    let Some(policy) = objects.policies.get(name) else {
        return Vec::new();
    };
    let mut probe = Objects {
        policies: BTreeMap::new(),
        ..objects.clone()
    };
    let mut allows = |rule: Rule| {
        let alone = with_rule(policy, flow.direction, rule);
        probe.policies.insert(name.clone(), Arc::new(alone));
        matches!(evaluate(&probe, flow), Verdict::Allow(_))
    };
    let rules = policy.rules(flow.direction).unwrap_or_default();
    (0..)
        .zip(rules)
        .map(|(index, rule)| Miss {
            rule: index,
            peer_matches: allows(Rule {
                ports: None,
                ..rule.clone()
            }),
            port_matches: allows(Rule {
                peers: None,
                ..rule.clone()
            }),
        })
        .collect()
}

/// The policy with this rule only.
fn with_rule(policy: &Policy, direction: Direction, rule: Rule) -> Policy {
    let mut alone = policy.clone();
    match direction {
        Direction::Ingress => alone.ingress = Some(vec![rule]),
        Direction::Egress => alone.egress = Some(vec![rule]),
    }
    alone
}
