// SPDX-License-Identifier: Apache-2.0
//! Of an object, what may leave the cluster: fields that are listed, and nothing else.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Annotations that switch logging; see docs/events.md.
const SWITCHES: [&str; 4] = [
    "wardline.io/enable-logging",
    "wardline.io/enable-deny-logging",
    "policy.network.gke.io/enable-logging",
    "policy.network.gke.io/enable-deny-logging",
];

/// What is allowed of a value.
#[derive(Debug)]
enum Allowed {
    All,
    Fields(BTreeMap<&'static str, Allowed>),
    /// Of each element.
    Each(Box<Allowed>),
}

/// Fields that are allowed, read once for all objects of a kind.
#[derive(Debug)]
pub(super) struct Reduction(Allowed);

impl Reduction {
    /// Paths such as `spec.containers[].name`; what stands below a path's end is allowed too.
    pub(super) fn new(paths: &[&[&'static str]]) -> Self {
        let mut root = Allowed::Fields(BTreeMap::new());
        for path in paths.iter().copied().flatten() {
            allow(&mut root, path);
        }
        Self(root)
    }

    /// What is left of an object. Of annotations only our own switches are, where they are `true` or `false`.
    pub(super) fn of(&self, object: &Value) -> Value {
        let mut left = keep(object, &self.0).unwrap_or_default();
        let annotations = object["metadata"]["annotations"].as_object();
        let is_switch = |(key, value): &(&String, &Value)| {
            SWITCHES.contains(&key.as_str()) && matches!(value.as_str(), Some("true" | "false"))
        };
        let switches = annotations.into_iter().flatten().filter(is_switch);
        let switches: Map<String, Value> = switches.map(|(key, value)| (key.clone(), value.clone())).collect();
        if let (false, Some(metadata)) = (switches.is_empty(), left["metadata"].as_object_mut()) {
            metadata.insert("annotations".to_owned(), Value::Object(switches));
        }
        left
    }
}

fn allow(mut at: &mut Allowed, path: &'static str) {
    for part in path.split('.') {
        let (name, is_list) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        let Allowed::Fields(fields) = at else { return };
        let new = || {
            let fields = Allowed::Fields(BTreeMap::new());
            if is_list {
                Allowed::Each(Box::new(fields))
            } else {
                fields
            }
        };
        at = fields.entry(name).or_insert_with(new);
        if let Allowed::Each(each) = at {
            at = each;
        }
    }
    *at = Allowed::All;
}

/// None where nothing is left.
fn keep(value: &Value, allowed: &Allowed) -> Option<Value> {
    match (allowed, value) {
        (Allowed::All, value) => Some(value.clone()),
        (Allowed::Fields(allowed), Value::Object(fields)) => {
            let kept = allowed.iter().filter_map(|(name, allowed)| {
                let kept = keep(fields.get(*name)?, allowed)?;
                Some(((*name).to_owned(), kept))
            });
            let kept: Map<String, Value> = kept.collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        (Allowed::Each(allowed), Value::Array(elements)) => {
            // An element of which nothing is left still counts.
            let kept = elements
                .iter()
                .map(|element| keep(element, allowed).unwrap_or_else(|| Map::new().into()));
            Some(kept.collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_listed_is_left() {
        let reduction = Reduction::new(&[
            &["metadata.name", "spec.a[].b", "spec.a[].c.d"],
            &["spec.e", "spec.f.g"],
        ]);
        let object = json!({
            "metadata": {"name": "n", "annotations": {
                "wardline.io/enable-logging": "true",
                "wardline.io/enable-deny-logging": "a secret",
                "kubectl.kubernetes.io/last-applied-configuration": "a secret",
            }},
            "spec": {
                "a": [{"b": 1, "x": "a secret"}, {"c": {"d": 2, "y": "a secret"}}, {"x": "a secret"}, "a secret"],
                "e": {"all": ["of it"]},
                "f": "a secret, where an object should be",
            },
            "data": "a secret",
        });
        let expected = json!({
            "metadata": {"name": "n", "annotations": {"wardline.io/enable-logging": "true"}},
            "spec": {"a": [{"b": 1}, {"c": {"d": 2}}, {}, {}], "e": {"all": ["of it"]}},
        });
        assert_eq!(reduction.of(&object), expected);
    }
}
