// SPDX-License-Identifier: Apache-2.0
//! The objects that decide about a flow: those of policy's own model, and beside them what tells why a pod is not
//! judged at all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wardline_policy::convert;
use wardline_policy::model::{Labels, ObjectName, Objects, Policy};

use crate::decode::{self, Undecodable};
use crate::manifests::{Kind, Manifest};

/// The API server gives every namespace this label, with its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) objects: Objects,
    pub(super) places: BTreeMap<ObjectName, Place>,
    /// Addresses of each node.
    pub(super) nodes: BTreeMap<String, Vec<IpAddr>>,
    /// Of each namespace, which of its policies cannot be used, and why.
    pub(super) refused: BTreeMap<String, Vec<String>>,
    /// Namespaces that were not given, but have pods.
    pub(super) assumed: BTreeSet<Arc<str>>,
}

/// Where a pod is: also one that policy does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) kind: PlaceKind,
    pub(super) node: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PlaceKind {
    /// It has an edge of its own.
    Endpoint,
    /// It wears its node's address.
    HostNetwork,
    /// Its address may be another's by now.
    Finished,
}

impl Inventory {
    /// Takes an object of the API server as the daemon would: a policy that cannot be used isolates, as far as can be
    /// read whom (docs/decisions/0006-bad-policies-isolate.md), and what else does not decode is left out.
    pub(super) fn add_stored(&mut self, kind: Kind, value: Value) -> anyhow::Result<()> {
        if kind != Kind::NetworkPolicy {
            // One broken pod must not hide the answer about others; where it is asked about, it is not found.
            return self.add(kind, value, Decoding::Lenient).or(Ok(()));
        }
        let metadata = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (metadata("namespace"), metadata("name"));
        let cause = match decode::lenient::<NetworkPolicy>(value) {
            Err(error) => format!("{error}; nobody can tell which pods it isolates"),
            Ok(policy) => match Policy::try_from(&policy) {
                Ok(policy) => return self.add_policy(policy),
                Err(error) => match convert::isolating(policy) {
                    Some(policy) => {
                        self.add_policy(policy)?;
                        format!(
                            "{error}; taken as isolating its pods and allowing nothing, unless nodes still hold a version \
                             that was good"
                        )
                    }
                    None => format!("{error}; nobody can tell which pods it isolates"),
                },
            },
        };
        let cause = format!("NetworkPolicy {namespace}/{name} cannot be used: {cause}");
        self.refused.entry(namespace).or_default().push(cause);
        Ok(())
    }

    /// Takes an object of a file: what is wrong can be mended, so nothing is answered before it is.
    pub(super) fn add_manifest(&mut self, manifest: Manifest) -> anyhow::Result<()> {
        let place = format!("failed to read {}: {}", manifest.origin, manifest.title());
        let decoding = match manifest.kind {
            Kind::NetworkPolicy => Decoding::Strict,
            _ => Decoding::Lenient,
        };
        self.add(manifest.kind, manifest.value, decoding).context(place)
    }

    fn add(&mut self, kind: Kind, value: Value, decoding: Decoding) -> anyhow::Result<()> {
        match kind {
            Kind::Namespace => self.add_namespace(decoding.read(value)?),
            Kind::Pod => self.add_pod(decoding.read(value)?),
            Kind::Node => {
                self.add_node(decoding.read(value)?);
                Ok(())
            }
            Kind::NetworkPolicy => self.add_policy(Policy::try_from(&decoding.read::<NetworkPolicy>(value)?)?),
            Kind::Other => Ok(()),
        }
    }

    fn add_namespace(&mut self, object: Namespace) -> anyhow::Result<()> {
        let name = object.metadata.name.context("metadata.name is required")?;
        let mut labels = object.metadata.labels.unwrap_or_default();
        labels.insert(NAME_LABEL.to_owned(), name.clone());
        match self.objects.namespaces.insert(name.into(), labels) {
            None => Ok(()),
            Some(_) => bail!("it is there twice"),
        }
    }

    fn add_pod(&mut self, object: Pod) -> anyhow::Result<()> {
        let spec = object.spec.as_ref().context("spec is required")?;
        let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
        let kind = if matches!(phase, Some("Succeeded" | "Failed")) {
            PlaceKind::Finished
        } else if spec.host_network == Some(true) {
            PlaceKind::HostNetwork
        } else {
            PlaceKind::Endpoint
        };
        let node = spec.node_name.clone().filter(|node| !node.is_empty());
        // Asked as if it were running on some node and on the pod network, the conversion gives every pod's addresses.
        // One of a file may have no node, which its policies do not need.
        let mut endpoint = object.clone();
        if let Some(spec) = endpoint.spec.as_mut() {
            spec.host_network = None;
            spec.node_name.get_or_insert_with(|| "unknown".to_owned());
        }
        if let Some(status) = endpoint.status.as_mut() {
            status.phase = None;
        }
        let (name, pod) = convert::pod(&endpoint).context("metadata.namespace and metadata.name are required")?;
        let place = Place {
            kind,
            node,
            addresses: pod.addresses.clone(),
        };
        if kind == PlaceKind::Endpoint {
            self.objects.pods.insert(name.clone(), Arc::new(pod));
        }
        match self.places.insert(name, place) {
            None => Ok(()),
            Some(_) => bail!("it is there twice"),
        }
    }

    fn add_node(&mut self, object: Node) {
        let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
        let addresses = addresses
            .iter()
            .filter_map(|address| address.address.parse::<IpAddr>().ok())
            .map(|address| address.to_canonical())
            .collect();
        self.nodes.insert(object.metadata.name.unwrap_or_default(), addresses);
    }

    fn add_policy(&mut self, policy: Policy) -> anyhow::Result<()> {
        match self.objects.policies.insert(policy.name.clone(), Arc::new(policy)) {
            None => Ok(()),
            Some(_) => bail!("it is there twice"),
        }
    }

    /// Namespaces of pods that no file describes have the label that every namespace has, and are told so. Without
    /// them no namespaceSelector would match, not even the empty one.
    pub(super) fn assume_namespaces(&mut self) {
        for name in self.objects.pods.keys() {
            if !self.objects.namespaces.contains_key(&name.namespace) {
                let labels = Labels::from([(NAME_LABEL.to_owned(), name.namespace.to_string())]);
                self.objects.namespaces.insert(Arc::clone(&name.namespace), labels);
                self.assumed.insert(Arc::clone(&name.namespace));
            }
        }
    }
}

/// What becomes of fields that a type does not have.
#[derive(Clone, Copy)]
enum Decoding {
    Lenient,
    Strict,
}

impl Decoding {
    fn read<T: DeserializeOwned>(self, value: Value) -> anyhow::Result<T> {
        let read = match self {
            Self::Lenient => decode::lenient(value),
            Self::Strict => decode::strict(value),
        };
        read.map_err(|error: Undecodable| anyhow::anyhow!("{}: {}", error.field, error.cause))
    }
}
