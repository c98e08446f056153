// SPDX-License-Identifier: Apache-2.0
//! Cases that disagreed once: made as small as they can be, kept as YAML, and asked again in each run.

use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{Cluster, Flow};

/// How often a case is asked at most while it is made smaller.
const TRIES: usize = 500;

/// A flow, and what the cluster was like before it was judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What disagreed.
    pub why: String,
    pub flow: Flow,
    /// Which of the clusters the flow was opened in, where that is not the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_in: Option<usize>,
    /// One after another; the flow is judged in the last.
    pub clusters: Vec<Cluster>,
}

#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    #[error("failed to read or write {path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("failed to read or write {path}: {cause}")]
    Yaml { path: PathBuf, cause: serde_yaml::Error },
}

impl Case {
    pub fn write(&self, path: &Path) -> Result<(), CaseError> {
        let yaml = serde_yaml::to_string(self).map_err(|cause| CaseError::Yaml {
            path: path.to_owned(),
            cause,
        })?;
        let text = format!("# SPDX-License-Identifier: Apache-2.0\n{yaml}");
        std::fs::write(path, text).map_err(|cause| CaseError::File {
            path: path.to_owned(),
            cause,
        })
    }

    pub fn read(path: &Path) -> Result<Self, CaseError> {
        let text = std::fs::read_to_string(path).map_err(|cause| CaseError::File {
            path: path.to_owned(),
            cause,
        })?;
        serde_yaml::from_str(&text).map_err(|cause| CaseError::Yaml {
            path: path.to_owned(),
            cause,
        })
    }

    /// The smallest case that still fails, as far as taking away one thing after another leads.
    #[must_use]
    pub fn shrink(&self, mut fails: impl FnMut(&Self) -> bool) -> Self {
        let mut smallest = self.clone();
        let mut tries = 0;
        loop {
            let mut is_smaller = false;
            for step in steps(&smallest) {
                let Some(candidate) = step.take(&smallest) else {
                    continue;
                };
                tries += 1;
                if tries > TRIES {
                    return smallest;
                }
                if fails(&candidate) {
                    smallest = candidate;
                    is_smaller = true;
                }
            }
            if !is_smaller {
                return smallest;
            }
        }
    }
}

/// One thing to take away; it may be gone by the time that its turn comes.
#[derive(Clone, Debug)]
enum Step {
    /// That many clusters of the past, from the one on.
    Past {
        first: usize,
        count: usize,
    },
    Namespace(ObjectMeta),
    Node(ObjectMeta),
    Pod(ObjectMeta),
    Policy(ObjectMeta),
    /// Of each policy that has this spec.
    Part(NetworkPolicySpec, Part),
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Ingress(usize),
    Egress(usize),
    From(usize, usize),
    To(usize, usize),
    IngressPort(usize, usize),
    EgressPort(usize, usize),
}

/// The large ones first.
fn steps(case: &Case) -> Vec<Step> {
    let mut steps = Vec::new();
    let past = case.clusters.len().saturating_sub(1);
    let mut count = past;
    while count > 0 {
        steps.extend((0..past).step_by(count).map(|first| Step::Past { first, count }));
        count /= 2;
    }
    for cluster in &case.clusters {
        steps.extend(
            cluster
                .policies
                .iter()
                .map(|object| Step::Policy(object.metadata.clone())),
        );
        steps.extend(cluster.pods.iter().map(|object| Step::Pod(object.metadata.clone())));
        let namespaces = cluster.namespaces.iter();
        steps.extend(namespaces.map(|object| Step::Namespace(object.metadata.clone())));
        steps.extend(cluster.nodes.iter().map(|object| Step::Node(object.metadata.clone())));
    }
    for spec in case
        .clusters
        .iter()
        .flat_map(|cluster| &cluster.policies)
        .filter_map(|policy| policy.spec.as_ref())
    {
        steps.extend(parts(spec).into_iter().map(|part| Step::Part(spec.clone(), part)));
    }
    steps
}

fn parts(spec: &NetworkPolicySpec) -> Vec<Part> {
    let mut parts = Vec::new();
    let len = |list: Option<usize>| 0..list.unwrap_or(0);
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        parts.push(Part::Ingress(i));
        parts.extend(len(rule.from.as_ref().map(Vec::len)).map(|j| Part::From(i, j)));
        parts.extend(len(rule.ports.as_ref().map(Vec::len)).map(|j| Part::IngressPort(i, j)));
    }
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        parts.push(Part::Egress(i));
        parts.extend(len(rule.to.as_ref().map(Vec::len)).map(|j| Part::To(i, j)));
        parts.extend(len(rule.ports.as_ref().map(Vec::len)).map(|j| Part::EgressPort(i, j)));
    }
    parts
}

impl Step {
    /// None where nothing is left to take, or the flow would lose what it needs.
    fn take(&self, case: &Case) -> Option<Case> {
        let mut smaller = case.clone();
        match self {
            Self::Past { first, count } => {
                let end = (first + count).min(case.clusters.len().saturating_sub(1));
                if *first >= end {
                    return None;
                }
                smaller.opened_in = match case.opened_in {
                    Some(index) if (*first..end).contains(&index) => return None,
                    Some(index) if index >= end => Some(index - (end - first)),
                    other => other,
                };
                smaller.clusters.drain(first..&end);
            }
            Self::Part(spec, part) => {
                let without = part.without(spec)?;
                let policies = smaller.clusters.iter_mut().flat_map(|cluster| &mut cluster.policies);
                for policy in policies.filter(|policy| policy.spec.as_ref() == Some(spec)) {
                    policy.spec = Some(without.clone());
                }
            }
            Self::Namespace(gone) => each(&mut smaller, |c| c.namespaces.retain(|o| !is_same(&o.metadata, gone))),
            Self::Node(gone) => each(&mut smaller, |c| c.nodes.retain(|o| !is_same(&o.metadata, gone))),
            Self::Pod(gone) => each(&mut smaller, |c| c.pods.retain(|o| !is_same(&o.metadata, gone))),
            Self::Policy(gone) => each(&mut smaller, |c| c.policies.retain(|o| !is_same(&o.metadata, gone))),
        }
        (smaller != *case).then_some(smaller)
    }
}

fn each(case: &mut Case, change: impl FnMut(&mut Cluster)) {
    case.clusters.iter_mut().for_each(change);
}

fn is_same(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    a.namespace == b.namespace && a.name == b.name
}

impl Part {
    /// A list that would become empty would mean everything: it stays.
    fn without(self, spec: &NetworkPolicySpec) -> Option<NetworkPolicySpec> {
        let mut smaller = spec.clone();
        let peer = |list: &mut Option<Vec<NetworkPolicyPeer>>, j| remove(list.as_mut()?, j);
        let port = |list: &mut Option<Vec<NetworkPolicyPort>>, j| remove(list.as_mut()?, j);
        match self {
            Self::Ingress(i) => drop(smaller.ingress.as_mut()?.remove(i)),
            Self::Egress(i) => drop(smaller.egress.as_mut()?.remove(i)),
            Self::From(i, j) => peer(&mut smaller.ingress.as_mut()?.get_mut(i)?.from, j)?,
            Self::To(i, j) => peer(&mut smaller.egress.as_mut()?.get_mut(i)?.to, j)?,
            Self::IngressPort(i, j) => port(&mut smaller.ingress.as_mut()?.get_mut(i)?.ports, j)?,
            Self::EgressPort(i, j) => port(&mut smaller.egress.as_mut()?.get_mut(i)?.ports, j)?,
        }
        Some(smaller)
    }
}

fn remove<T>(list: &mut Vec<T>, index: usize) -> Option<()> {
    (list.len() > 1).then(|| drop(list.remove(index)))
}

/// All cases of a folder, by file name.
pub fn read_all(folder: &Path) -> Result<Vec<(PathBuf, Case)>, CaseError> {
    let failed = |cause| CaseError::File {
        path: folder.to_owned(),
        cause,
    };
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let case = Case::read(&path)?;
            cases.push((path, case));
        }
    }
    cases.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyIngressRule};

    use super::*;
    use crate::oracle::Direction;
    use crate::oracle::generate::Generator;

    /// What the case is about; all else in it was generated.
    fn cause() -> (ObjectMeta, Pod, NetworkPolicy) {
        let metadata = ObjectMeta {
            namespace: Some("cause".to_owned()),
            name: Some("it".to_owned()),
            ..ObjectMeta::default()
        };
        let rule = |cidr: &str| NetworkPolicyIngressRule {
            from: Some(serde_yaml::from_str(&format!("[{{ipBlock: {{cidr: {cidr}}}}}]")).unwrap()),
            ports: Some(serde_yaml::from_str("[{port: 80}, {port: 81}]").unwrap()),
        };
        let spec = NetworkPolicySpec {
            ingress: Some(vec![rule("10.0.0.0/8"), rule("192.0.2.0/24")]),
            ..NetworkPolicySpec::default()
        };
        let policy = NetworkPolicy {
            metadata: metadata.clone(),
            spec: Some(spec),
        };
        let pod = Pod {
            metadata: metadata.clone(),
            ..Pod::default()
        };
        (metadata, pod, policy)
    }

    /// It needs the pod where the flow was opened, and port 81 of the second rule where it is judged.
    fn fails(case: &Case) -> bool {
        let (metadata, ..) = cause();
        let opened_in = &case.clusters[case.opened_in.unwrap()];
        let policies = &case.clusters.last().unwrap().policies;
        let is_there = opened_in.pods.iter().any(|pod| is_same(&pod.metadata, &metadata));
        is_there
            && policies
                .iter()
                .filter(|policy| is_same(&policy.metadata, &metadata))
                .flat_map(|policy| policy.spec.iter().flat_map(|spec| spec.ingress.iter().flatten()))
                .any(|rule| {
                    let yaml = serde_yaml::to_string(rule).unwrap();
                    yaml.contains("192.0.2.0/24") && yaml.contains("port: 81")
                })
    }

    #[test]
    fn what_a_case_does_not_need_is_taken_away() {
        let (_, pod, policy) = cause();
        let mut generator = Generator::new(1);
        let mut clusters: Vec<Cluster> = (0..6).map(|_| generator.cluster()).collect();
        clusters[3].pods.push(pod.clone());
        clusters[5].policies.push(policy.clone());
        let case = Case {
            why: String::new(),
            flow: Flow {
                pod: "cause/it".to_owned(),
                direction: Direction::Ingress,
                remote: [10, 0, 0, 1].into(),
                protocol: 6,
                port: 81,
                with_node: false,
            },
            opened_in: Some(3),
            clusters,
        };
        assert!(fails(&case));
        let smallest = case.shrink(fails);
        let mut needed = policy;
        let rules = needed.spec.as_mut().unwrap().ingress.as_mut().unwrap();
        rules.remove(0);
        rules[0].ports.as_mut().unwrap().remove(0);
        let with_pod = Cluster {
            pods: vec![pod],
            ..Cluster::default()
        };
        let with_policy = Cluster {
            policies: vec![needed],
            ..Cluster::default()
        };
        let expected = Case {
            opened_in: Some(0),
            clusters: vec![with_pod, with_policy],
            ..case
        };
        assert_eq!(smallest, expected);
    }

    #[test]
    fn a_case_that_needs_everything_stays_as_it_is() {
        let mut generator = Generator::new(2);
        let clusters = vec![generator.cluster()];
        let flow = generator.flow(&clusters[0]);
        let case = Case {
            why: String::new(),
            flow: flow.unwrap(),
            opened_in: None,
            clusters,
        };
        assert_eq!(case.shrink(|smaller| *smaller == case), case);
    }
}
