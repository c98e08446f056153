// SPDX-License-Identifier: Apache-2.0
//! From a `Dataplane` and the operator's own settings to the only input of `build`. Pure.

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use kube::ResourceExt;
use std::collections::BTreeMap;
use wardline_crds::config::DaemonConfig;
use wardline_crds::validate::{self, SpecError};
use wardline_crds::{Dataplane, PullPolicy, Resources, RolloutSpec};

use crate::args::Args;

/// What the DaemonSet and its ConfigMap are made of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Valid {
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) config: DaemonConfig,
    pub(super) image: String,
    pub(super) pull_policy: PullPolicy,
    pub(super) pull_secrets: Vec<String>,
    pub(super) rollout: RolloutSpec,
    pub(super) node_selector: BTreeMap<String, String>,
    pub(super) tolerations: Vec<Toleration>,
    pub(super) resources: ResourceRequirements,
    pub(super) priority_class: String,
}

/// Whether the object can be used.
pub(crate) fn check(dataplane: &Dataplane) -> Result<(), SpecError> {
    validate::name("Dataplane", &dataplane.name_any())?;
    validate::dataplane(&dataplane.spec)
}

pub(super) fn validate(dataplane: &Dataplane, args: &Args) -> Result<Valid, SpecError> {
    validate::name("Dataplane", &dataplane.name_any())?;
    let daemon = &dataplane.spec.daemon;
    Ok(Valid {
        config: DaemonConfig::from_spec(&dataplane.spec)?,
        namespace: args.namespace.clone(),
        service_account: args.daemon_service_account.clone(),
        image: args.daemon_image.with(&daemon.image).to_string(),
        pull_policy: daemon
            .image
            .pull_policy
            .unwrap_or_else(|| args.daemon_pull_policy.into()),
        pull_secrets: daemon
            .image_pull_secrets
            .iter()
            .map(|secret| secret.name.clone())
            .collect(),
        rollout: daemon.rollout.clone(),
        node_selector: daemon.node_selector.clone(),
        tolerations: daemon.tolerations.clone(),
        resources: resources(&daemon.resources),
        priority_class: daemon.priority_class_name.clone(),
    })
}

fn resources(spec: &Resources) -> ResourceRequirements {
    let some = |map: &BTreeMap<_, _>| (!map.is_empty()).then(|| map.clone());
    ResourceRequirements {
        requests: some(&spec.requests),
        limits: some(&spec.limits),
        claims: None,
    }
}
