// SPDX-License-Identifier: Apache-2.0
//! What the rest is checked against, and on what (feature `oracle`, for tests alone).
//!
//! ```text
//! generate --> Cluster, Flow --naive::judge------------------------> Answer  (what the API's documentation says)
//!     |           |    \------convert, evaluate-------------------> Verdict  (the reference)
//!     |           |     \-----convert, compile, lookup or kernel--> Verdict  (what packets get)
//!   change        '------> Case: kept as YAML where they differ, shrunk first
//! ```
//!
//! A cluster is the API's own objects, so that conversion is checked too. [`naive`] shares neither code nor types with
//! what it judges.

pub mod case;
pub mod generate;
pub mod naive;

use std::net::IpAddr;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Serialize};

use self::naive::{Answer, By};
use crate::convert::{self, InvalidPolicy};
use crate::evaluate::{self, Verdict};
use crate::model::{self, ObjectName, Objects, Policy};
use crate::tables::PolicyRef;

/// The objects of an API server, each kind in any order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    pub namespaces: Vec<Namespace>,
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    pub policies: Vec<NetworkPolicy>,
}

impl Cluster {
    /// The same as the product sees it.
    pub fn objects(&self) -> Result<Objects, InvalidPolicy> {
        let namespace = |object: &Namespace| {
            let name = object.metadata.name.as_deref()?.into();
            Some((name, object.metadata.labels.clone().unwrap_or_default()))
        };
        let policies = self.policies.iter().map(|object| {
            let policy = Policy::try_from(object)?;
            Ok((policy.name.clone(), Arc::new(policy)))
        });
        Ok(Objects {
            namespaces: self.namespaces.iter().filter_map(namespace).collect(),
            pods: self
                .pods
                .iter()
                .filter_map(convert::pod)
                .map(|(name, pod)| (name, Arc::new(pod)))
                .collect(),
            policies: policies.collect::<Result<_, _>>()?,
        })
    }
}

/// Which way a flow is opened, as the pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From it.
    Egress,
}

/// A flow that is opened, at the edge of one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// `namespace/name` of the pod at whose edge it is judged.
    pub pod: String,
    pub direction: Direction,
    /// The other side. The pod's own is its address of the same family.
    pub remote: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; 0 where the protocol has none.
    #[serde(default)]
    pub port: u16,
    /// The other side is a socket of the pod's own node: no address proves that.
    #[serde(default)]
    pub with_node: bool,
}

impl Flow {
    /// The same as the product sees it, but for what no object proves: [`Flow::with_node`].
    pub fn edge(&self) -> evaluate::Flow {
        let (namespace, name) = self.pod.split_once('/').unwrap_or_default();
        evaluate::Flow {
            endpoint: ObjectName::new(namespace, name),
            direction: match self.direction {
                Direction::Ingress => model::Direction::Ingress,
                Direction::Egress => model::Direction::Egress,
            },
            remote: self.remote,
            protocol: self.protocol,
            port: self.port,
        }
    }
}

impl From<&Verdict> for Answer {
    fn from(verdict: &Verdict) -> Self {
        let by = |policy: &PolicyRef, rules: &[u32]| By {
            policy: policy.name.to_string(),
            generation: policy.generation,
            rules: rules.to_vec(),
        };
        match verdict {
            Verdict::NotIsolated => Self::NotIsolated,
            Verdict::Allow(attribution) => {
                let policies = attribution.policies.iter();
                Self::Allowed(policies.map(|allowing| by(&allowing.policy, &allowing.rules)).collect())
            }
            Verdict::DefaultDeny(policies) => Self::Denied(policies.iter().map(|policy| by(policy, &[])).collect()),
        }
    }
}

/// How far a test goes.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub flows: usize,
    pub seed: u64,
}

/// A variable that says how far, and is no number.
#[derive(Debug, thiserror::Error)]
#[error("failed to read {variable}={value}: {cause}")]
pub struct ExtentError {
    variable: &'static str,
    value: String,
    cause: ParseIntError,
}

impl Extent {
    /// As `WARDLINE_FLOWS` and `WARDLINE_SEED` say; otherwise that many flows, the same in each run.
    pub fn from_env(flows: usize) -> Result<Self, ExtentError> {
        Ok(Self {
            flows: number("WARDLINE_FLOWS")?.unwrap_or(flows),
            seed: number("WARDLINE_SEED")?.unwrap_or(1),
        })
    }
}

/// None where the variable is not set: one that cannot be read must not look as if it were not.
fn number<T: FromStr<Err = ParseIntError>>(variable: &'static str) -> Result<Option<T>, ExtentError> {
    let Some(value) = std::env::var_os(variable) else {
        return Ok(None);
    };
    let value = value.to_string_lossy().into_owned();
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(cause) => Err(ExtentError { variable, value, cause }),
    }
}
