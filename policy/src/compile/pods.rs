// SPDX-License-Identifier: Apache-2.0
//! The cluster's pods by index, and which of them a selector selects.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use crate::model::{Labels, ObjectName, Objects, Operator, Peer, Pod, Selector};
use crate::tables::PeerSelector;

/// Below this many pods, looking at each is cheaper than the index by label.
const WORTH_AN_INDEX: usize = 512;

pub(super) struct PodIndex<'a> {
    /// Sorted by name, so that those of a namespace are neighbours.
    pub(super) pods: Vec<(&'a ObjectName, &'a Pod)>,
    namespaces: &'a BTreeMap<Arc<str>, Labels>,
    by_namespace: HashMap<&'a str, Range<usize>>,
    /// Pods that carry a label; made when the first selector spans [`WORTH_AN_INDEX`] pods.
    by_label: OnceCell<HashMap<(&'a str, &'a str), Vec<usize>>>,
}

impl<'a> PodIndex<'a> {
    pub(super) fn new(objects: &'a Objects) -> Self {
        let pods: Vec<_> = objects.pods.iter().map(|(name, pod)| (name, &**pod)).collect();
        let mut by_namespace: HashMap<&str, Range<usize>> = HashMap::new();
        for (index, (name, _)) in pods.iter().enumerate() {
            by_namespace.entry(&name.namespace).or_insert(index..index).end = index + 1;
        }
        Self {
            pods,
            namespaces: &objects.namespaces,
            by_namespace,
            by_label: OnceCell::new(),
        }
    }

    /// The pods that a peer selects, ascending; none where it is a block.
    pub(super) fn selected(&self, selector: &PeerSelector) -> Vec<usize> {
        let Peer::Pods { namespaces, pods } = &selector.peer else {
            return Vec::new();
        };
        match (&selector.namespace, namespaces) {
            (Some(own), _) => self.in_namespace(own, pods),
            (None, Some(namespaces)) => self.across(namespaces, pods),
            // Not made: a selector without namespaces has its policy's own.
            (None, None) => Vec::new(),
        }
    }

    /// The pods of one namespace that a selector selects.
    pub(super) fn in_namespace(&self, namespace: &str, selector: &Selector) -> Vec<usize> {
        let range = self.by_namespace.get(namespace).cloned().unwrap_or_default();
        self.select(&[range], selector)
    }

    /// The pods that a selector selects in the namespaces that another selects. A namespace that is not known has no
    /// labels to be selected by.
    pub(super) fn across(&self, namespaces: &Selector, selector: &Selector) -> Vec<usize> {
        let ranges: Vec<_> = self
            .namespaces
            .iter()
            .filter(|(_, labels)| namespaces.matches(labels))
            .filter_map(|(name, _)| self.by_namespace.get(&**name).cloned())
            .collect();
        self.select(&ranges, selector)
    }

    fn select(&self, ranges: &[Range<usize>], selector: &Selector) -> Vec<usize> {
        let scanned = ranges.iter().map(Range::len).sum::<usize>();
        let matches = |index: &usize| selector.matches(&self.pods[*index].1.labels);
        if scanned >= WORTH_AN_INDEX
            && let Some(mut found) = self.candidates(selector)
        {
            // The namespaces are sorted as the pods are.
            let within = |pod: usize| {
                let after = ranges.partition_point(|range| range.end <= pod);
                ranges.get(after).is_some_and(|range| range.contains(&pod))
            };
            found.retain(|&pod| within(pod) && matches(&pod));
            return found;
        }
        ranges.iter().cloned().flatten().filter(matches).collect()
    }

    /// The pods with one of the values of a selector's first `In`, ascending; None: the selector has no `In`.
    fn candidates(&self, selector: &Selector) -> Option<Vec<usize>> {
        let (key, values) = selector.requirements.iter().find_map(|r| match &r.operator {
            Operator::In(values) => Some((&*r.key, values)),
            _ => None,
        })?;
        let by_label = self.by_label.get_or_init(|| {
            let mut by_label: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
            for (index, (_, pod)) in self.pods.iter().enumerate() {
                for (key, value) in &pod.labels {
                    by_label.entry((key, value)).or_default().push(index);
                }
            }
            by_label
        });
        let lists = values.iter().filter_map(|value| by_label.get(&(key, &**value)));
        let mut found: Vec<usize> = lists.flatten().copied().collect();
        found.sort_unstable();
        found.dedup();
        Some(found)
    }

    /// Every address that exactly one pod claims, sorted. One that two claim is nobody's: an address is handed to a new
    /// pod while the old one is still listed, and either guess could admit what no policy allows.
    pub(super) fn owned_addresses(&self) -> Vec<(IpAddr, usize)> {
        let mut claims: Vec<(IpAddr, usize)> = self
            .pods
            .iter()
            .enumerate()
            .flat_map(|(index, (_, pod))| pod.addresses.iter().map(move |address| (*address, index)))
            .collect();
        claims.sort_unstable();
        claims.dedup();
        let same_address = claims.chunk_by(|a, b| a.0 == b.0);
        same_address
            .filter_map(|claims| if let [only] = claims { Some(*only) } else { None })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Requirement;

    /// Pods of three namespaces, one of which is not known, enough for the index by label.
    fn many() -> Objects {
        let labels = |pairs: &[(&str, String)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), v.clone()))
                .collect::<Labels>()
        };
        let mut objects = Objects::default();
        for namespace in ["a", "b"] {
            objects
                .namespaces
                .insert(namespace.into(), labels(&[("name", namespace.to_owned())]));
        }
        for n in 0..3 * WORTH_AN_INDEX {
            let labels = labels(&[("app", format!("app-{}", n % 7)), ("tier", format!("tier-{}", n % 3))]);
            let pod = Pod {
                labels,
                addresses: Vec::new(),
                node: "n".into(),
                ports: Vec::new(),
            };
            objects.pods.insert(
                ObjectName::new(["a", "b", "c"][n % 3], format!("pod-{n}")),
                Arc::new(pod),
            );
        }
        objects
    }

    fn select(requirements: Vec<(&str, Operator)>) -> Selector {
        let requirement = |(key, operator): (&str, Operator)| Requirement {
            key: key.into(),
            operator,
        };
        Selector {
            requirements: requirements.into_iter().map(requirement).collect(),
        }
    }

    #[test]
    fn the_index_by_label_selects_as_a_scan_does() {
        let objects = many();
        let among = |values: &[&str]| Operator::In(values.iter().map(|v| (*v).into()).collect());
        let selectors = [
            select(vec![]),
            select(vec![("app", among(&["app-1"]))]),
            select(vec![("app", among(&["app-1", "app-5", "none"]))]),
            select(vec![("app", among(&["app-1"])), ("tier", among(&["tier-0", "tier-2"]))]),
            select(vec![
                ("app", Operator::NotIn(vec!["app-2".into()])),
                ("tier", among(&["tier-1"])),
            ]),
            select(vec![("app", Operator::Exists)]),
        ];
        for namespaces in [select(vec![]), select(vec![("name", among(&["b"]))])] {
            for selector in &selectors {
                let index = PodIndex::new(&objects);
                let known = |name: &ObjectName| {
                    objects
                        .namespaces
                        .get(&name.namespace)
                        .is_some_and(|labels| namespaces.matches(labels))
                };
                let all = index.pods.iter().enumerate();
                let expected: Vec<usize> = all
                    .filter(|(_, (name, pod))| known(name) && selector.matches(&pod.labels))
                    .map(|(index, _)| index)
                    .collect();
                assert_eq!(
                    index.across(&namespaces, selector),
                    expected,
                    "{namespaces:?} {selector:?}"
                );
                let has_in = selector
                    .requirements
                    .iter()
                    .any(|r| matches!(r.operator, Operator::In(_)));
                assert_eq!(index.by_label.get().is_some(), has_in, "{selector:?}");
            }
        }
    }
}
