// SPDX-License-Identifier: Apache-2.0
//! `NetworkLogging`: which verdicts are logged. A singleton named `default`; without it nothing is logged, and
//! enforcement is as it was.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::conditions;

/// Which verdicts are logged.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "wardline.io",
    version = "v1alpha1",
    kind = "NetworkLogging",
    plural = "networkloggings",
    shortname = "nl",
    category = "wardline",
    status = "NetworkLoggingStatus",
    derive = "PartialEq",
    doc = "NetworkLogging says which verdicts of NetworkPolicies become records in the policy log of each node. There is \
           one, named `default`. Without it nothing is logged; enforcement does not depend on it. It takes effect on \
           running nodes, without a rollout.",
    validation = Rule::new("self.metadata.name == 'default'").message("a NetworkLogging must be named 'default'"),
    printcolumn(name = "Allow", type_ = "boolean", json_path = ".spec.cluster.allow.log"),
    printcolumn(name = "Deny", type_ = "boolean", json_path = ".spec.cluster.deny.log"),
    printcolumn(name = "Delegated", type_ = "string", json_path = ".status.delegated"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NetworkLoggingSpec {
    /// Logging of the whole cluster.
    #[serde(default)]
    pub cluster: ClusterLogging,
}

/// Logging of the whole cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterLogging {
    /// Connections that a NetworkPolicy allowed: one record each.
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": "!has(self.delegate) || !self.delegate || self.log", "message": "allow.delegate needs allow.log"}
    ]))]
    pub allow: AllowLogging,
    /// Attempts that were denied: one record for those that are alike within a few seconds, with their count.
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": "!has(self.delegate) || !self.delegate || self.log", "message": "deny.delegate needs deny.log"},
        {"rule": "!has(self.events) || !self.events || self.log", "message": "deny.events needs deny.log"}
    ]))]
    pub deny: DenyLogging,
}

/// Logging of allowed connections.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowLogging {
    /// Whether allowed connections are logged.
    pub log: bool,
    /// Log only what a policy annotated wardline.io/enable-logging: "true" allowed, and list only those policies.
    /// Needs `log`. GKE's annotation policy.network.gke.io/enable-logging means the same.
    pub delegate: bool,
}

/// Logging of denied attempts.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct DenyLogging {
    /// Whether denied attempts are logged.
    pub log: bool,
    /// Log only denies of pods whose Namespace is annotated wardline.io/enable-deny-logging: "true". Needs `log`.
    /// GKE's annotation policy.network.gke.io/enable-deny-logging means the same.
    pub delegate: bool,
    /// Tell the first deny of each pair of a pod and a peer also as an Event NetworkPolicyDeny on the pod, so many a pod
    /// and a node. Only of what is logged. Needs `log`.
    pub events: bool,
}

/// How far the nodes are. Written by the operator only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkLoggingStatus {
    /// Generation of the spec that this status speaks of.
    pub observed_generation: i64,
    /// How many nodes log as this generation asks.
    pub nodes: LoggingNodeCounts,
    /// Which side leaves the choice to annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delegated: Option<Delegated>,
    /// Accepted and Ready.
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// Which side of a `NetworkLogging` is delegated; one word, for a column cannot join two fields.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delegated {
    None,
    Allow,
    Deny,
    AllowAndDeny,
}

impl From<&ClusterLogging> for Delegated {
    fn from(cluster: &ClusterLogging) -> Self {
        match (cluster.allow.delegate, cluster.deny.delegate) {
            (false, false) => Self::None,
            (true, false) => Self::Allow,
            (false, true) => Self::Deny,
            (true, true) => Self::AllowAndDeny,
        }
    }
}

/// How many nodes log as this generation asks.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct LoggingNodeCounts {
    /// Nodes that should run the daemon.
    pub desired: i32,
    /// Nodes whose daemon has applied this generation.
    pub applied: i32,
}
