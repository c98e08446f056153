// SPDX-License-Identifier: Apache-2.0
//! From the API's objects to the model. What the API server would refuse is refused here too, since an object can
//! be older than a rule of the API server's, or be stored past it.
//!
//! ```text
//! NetworkPolicy --Policy::try_from--> Policy, or InvalidPolicy {field, cause}
//! Pod           --pod-------------->  ObjectName, Pod, or None where policy does not know it
//! ```
//!
//! The rules are those of `k8s.io/kubernetes/pkg/apis/networking/validation` and
//! `k8s.io/apimachinery/pkg/apis/meta/v1/validation`; the defaults those of `pkg/apis/networking/v1/defaults.go`.

mod block;
mod pod;
mod port;
mod selector;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};

pub use self::pod::{ADDRESSES_CONDITION, pod};
use crate::model::{ObjectName, Peer, Policy, Rule};

/// A policy that carries one of these with the value `"true"` is logged where logging is delegated.
pub const LOGGING_ANNOTATIONS: [&str; 2] = ["wardline.io/enable-logging", "policy.network.gke.io/enable-logging"];

/// The first field that is wrong, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to read {field}: {cause}")]
pub struct InvalidPolicy {
    /// Path from the object's root, such as `spec.ingress[0].ports[1].port`.
    pub field: String,
    pub cause: String,
}

impl InvalidPolicy {
    fn at(field: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            cause: cause.into(),
        }
    }

    /// The same, seen from one level further out.
    fn within(self, outer: impl std::fmt::Display) -> Self {
        let field = if self.field.is_empty() {
            outer.to_string()
        } else {
            format!("{outer}.{}", self.field)
        };
        Self { field, ..self }
    }
}

impl TryFrom<&NetworkPolicy> for Policy {
    type Error = InvalidPolicy;

    fn try_from(object: &NetworkPolicy) -> Result<Self, InvalidPolicy> {
        let metadata = &object.metadata;
        let required = |value: &Option<String>, field| match value.as_deref() {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            _ => Err(InvalidPolicy::at(field, "is required")),
        };
        let name = ObjectName::new(
            required(&metadata.namespace, "metadata.namespace")?,
            required(&metadata.name, "metadata.name")?,
        );
        let annotated = |key: &&str| {
            metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(*key))
                .is_some_and(|value| value == "true")
        };
        // An absent spec is an empty one: it isolates every pod of the namespace for ingress.
        let absent = NetworkPolicySpec::default();
        let spec = object.spec.as_ref().unwrap_or(&absent);
        let rules = Rules::read(spec).map_err(|e| e.within("spec"))?;
        Ok(Self {
            name,
            generation: metadata.generation.unwrap_or(0),
            log: LOGGING_ANNOTATIONS.iter().any(annotated),
            pod_selector: selector::read(spec.pod_selector.as_ref())
                .map_err(|e| e.within("podSelector").within("spec"))?,
            ingress: rules.ingress,
            egress: rules.egress,
        })
    }
}

/// The policy without its rules, which still says whom it isolates: for one that cannot be used, since left out
/// altogether it would fail open (docs/decisions/0006-bad-policies-isolate.md). None where selector or types are what
/// cannot be read.
pub fn isolating(mut policy: NetworkPolicy) -> Option<Policy> {
    let spec = policy.spec.as_mut()?;
    let egress = spec.egress.take().is_some_and(|rules| !rules.is_empty());
    spec.ingress = None;
    // With the rules gone, the default would be another one.
    if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
        let default: &[&str] = if egress { &["Ingress", "Egress"] } else { &["Ingress"] };
        spec.policy_types = Some(default.iter().map(|&name| name.to_owned()).collect());
    }
    Policy::try_from(&policy).ok()
}

/// Both directions' rules; None: not isolated in it.
struct Rules {
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

impl Rules {
    fn read(spec: &NetworkPolicySpec) -> Result<Self, InvalidPolicy> {
        let ingress = each(spec.ingress.as_deref(), "ingress", |r| Half::from(r).read())?;
        let egress = each(spec.egress.as_deref(), "egress", |r| Half::from(r).read())?;
        let types = spec.policy_types.as_deref().unwrap_or_default();
        if types.len() > 2 {
            return Err(InvalidPolicy::at("policyTypes", "may not hold more than two types"));
        }
        for (index, name) in types.iter().enumerate() {
            if !matches!(name.as_str(), "Ingress" | "Egress") {
                let cause = format!("{name:?} is not a policy type: Ingress or Egress");
                return Err(InvalidPolicy::at(format!("policyTypes[{index}]"), cause));
            }
        }
        // An empty list is defaulted as an absent one is.
        let isolates = |direction: &str, default: bool| {
            if types.is_empty() {
                default
            } else {
                types.iter().any(|name| name == direction)
            }
        };
        Ok(Self {
            ingress: isolates("Ingress", true).then_some(ingress),
            egress: isolates("Egress", !egress.is_empty()).then_some(egress),
        })
    }
}

/// An ingress or egress rule: they differ only in what their list of peers is called.
struct Half<'a> {
    peers: &'a [NetworkPolicyPeer],
    peers_field: &'static str,
    ports: &'a [NetworkPolicyPort],
}

impl<'a> From<&'a NetworkPolicyIngressRule> for Half<'a> {
    fn from(rule: &'a NetworkPolicyIngressRule) -> Self {
        let (peers, ports) = (rule.from.as_deref(), rule.ports.as_deref());
        Self {
            peers: peers.unwrap_or_default(),
            peers_field: "from",
            ports: ports.unwrap_or_default(),
        }
    }
}

impl<'a> From<&'a NetworkPolicyEgressRule> for Half<'a> {
    fn from(rule: &'a NetworkPolicyEgressRule) -> Self {
        let (peers, ports) = (rule.to.as_deref(), rule.ports.as_deref());
        Self {
            peers: peers.unwrap_or_default(),
            peers_field: "to",
            ports: ports.unwrap_or_default(),
        }
    }
}

impl Half<'_> {
    fn read(&self) -> Result<Rule, InvalidPolicy> {
        let ports = each(Some(self.ports), "ports", port::read)?;
        let peers = each(Some(self.peers), self.peers_field, peer)?;
        // "If this field is empty or missing, this rule matches all": of the rule's lists, unlike of the rules' list.
        Ok(Rule {
            peers: (!peers.is_empty()).then_some(peers),
            ports: (!ports.is_empty()).then_some(ports),
        })
    }
}

fn peer(source: &NetworkPolicyPeer) -> Result<Peer, InvalidPolicy> {
    let selects = source.pod_selector.is_some() || source.namespace_selector.is_some();
    match &source.ip_block {
        Some(_) if selects => Err(InvalidPolicy::at(
            "",
            "may not hold both ipBlock and podSelector or namespaceSelector",
        )),
        Some(block) => block::read(block).map(Peer::Block).map_err(|e| e.within("ipBlock")),
        None if !selects => Err(InvalidPolicy::at(
            "",
            "must hold podSelector, namespaceSelector or ipBlock",
        )),
        None => {
            let pods = selector::read(source.pod_selector.as_ref()).map_err(|e| e.within("podSelector"))?;
            let namespaces = source
                .namespace_selector
                .as_ref()
                .map(|s| selector::read(Some(s)).map_err(|e| e.within("namespaceSelector")))
                .transpose()?;
            Ok(Peer::Pods { namespaces, pods })
        }
    }
}

/// Reads a list; an error names the element.
fn each<S, T>(
    source: Option<&[S]>,
    field: &str,
    read: impl Fn(&S) -> Result<T, InvalidPolicy>,
) -> Result<Vec<T>, InvalidPolicy> {
    let source = source.unwrap_or_default();
    source
        .iter()
        .enumerate()
        .map(|(index, item)| read(item).map_err(|e| e.within(format_args!("{field}[{index}]"))))
        .collect()
}

#[cfg(test)]
mod tests;
