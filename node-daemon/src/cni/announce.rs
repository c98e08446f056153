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
use serde_json::{Value, json};
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
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let condition = json!({"status": "True", "reason": "Assigned", "message": list.join(",")});
        self.patch(pod, uid, condition).await
    }

    /// The pod's ADD, or its sandbox, failed after it was announced: its addresses may be another pod's next. Where this fails too, the
    /// claim stands until the next ADD of the pod, and the address is nobody's on other nodes while two claim it.
    pub async fn withdraw(&self, pod: &PodId, uid: &str) {
        let condition = json!({"status": "False", "reason": "AddFailed", "message": ""});
        if let Err(error) = self.patch(pod, uid, condition).await {
            let pod = format!("{}/{}", pod.namespace, pod.name);
            tracing::warn!(pod, %error, "failed to take back the announcement of a pod that does not start");
        }
    }

    async fn patch(&self, pod: &PodId, uid: &str, mut condition: Value) -> Result<(), AnnounceError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        condition["type"] = json!(ADDRESSES_CONDITION);
        condition["lastTransitionTime"] = json!(Time(Timestamp::now()));
        let patch = Patch::Strategic(json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}}));
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
