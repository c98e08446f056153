// SPDX-License-Identifier: Apache-2.0
//! Telling the other nodes which addresses a new pod has, before its containers start.
//!
//! kubelet writes them into the Pod's status when it next looks, up to a second later, and until then the other nodes
//! would not know whose packets arrive. So this node writes a condition into that status, which kubelet leaves alone:
//! docs/decisions/0008-addresses-as-a-condition.md.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use wardline_cni::protocol::PodId;
use wardline_policy::convert::ADDRESSES_CONDITION;

const FIELD_MANAGER: &str = "wardline-node";
/// Of one request.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    #[error(transparent)]
    Api(Box<kube::Error>),
    #[error("the API server did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

#[derive(Clone)]
#[allow(missing_debug_implementations, reason = "kube's client has none")]
pub struct Announcer {
    client: Client,
}

impl Announcer {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// `uid` is that of the Pod's object: one of the same name that came after it is not written to.
    pub async fn announce(&self, pod: &PodId, uid: &str, addresses: &[IpAddr]) -> Result<(), AnnounceError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": uid},
            "status": {"conditions": [{
                "type": ADDRESSES_CONDITION,
                "status": "True",
                "reason": "PolicyInForce",
                "message": list.join(","),
                "lastTransitionTime": Time(Timestamp::now()),
            }]},
        }));
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let request = pods.patch_status(&pod.name, &parameters, &patch);
        match tokio::time::timeout(TIMEOUT, request).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(AnnounceError::Api(Box::new(error))),
            Err(_) => Err(AnnounceError::Timeout),
        }
    }
}
