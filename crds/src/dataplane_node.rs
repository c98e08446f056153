// SPDX-License-Identifier: Apache-2.0
//! `DataplaneNode`: what one node's daemon says of itself. Named as its Node, owned by it, without a spec.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::conditions;

/// The most entries that a list in a `DataplaneNode` holds; conditions tell how many there are in all.
pub const MAX_LISTED: usize = 16;

/// Empty: a `DataplaneNode` has a status only.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "wardline.io",
    version = "v1alpha1",
    kind = "DataplaneNode",
    shortname = "dpn",
    category = "wardline",
    status = "DataplaneNodeStatus",
    derive = "PartialEq",
    no_spec,
    doc = "DataplaneNode is what the Wardline daemon of one node says of itself: it is named as the node and goes with it. \
           Nobody but that daemon writes it.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Endpoints", type_ = "integer", json_path = ".status.endpoints.managed"),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.kernel.release"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct DataplaneNodeSpec {}

/// What the daemon says: written on change, at most every 10 s once it has started, without running
/// counters.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct DataplaneNodeStatus {
    /// Version of the daemon.
    pub version: String,
    /// Revision of the daemon's configuration and pod template, as `Dataplane.status.rollout` names it.
    pub revision: String,
    /// The node's kernel and how programs are attached to it.
    pub kernel: KernelStatus,
    /// Pods of the node.
    pub endpoints: EndpointsStatus,
    /// Policies in force.
    pub policy: NodePolicyStatus,
    /// Logging in force.
    pub logging: NodeLoggingStatus,
    /// Objects that this node could not use, 16 at most. What was in force before stays in force for them.
    #[schemars(length(max = 16))]
    pub invalid_objects: Vec<InvalidObject>,
    /// Ready, Verified and Degraded.
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// The node's kernel.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct KernelStatus {
    /// Release, as uname -r prints it.
    pub release: String,
    /// How programs are attached to the pods' interfaces. Absent until the daemon knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach: Option<AttachKind>,
}

/// The kernel's way to attach programs: tcx from 6.6, clsact before.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AttachKind {
    Tcx,
    Clsact,
}

/// Pods of the node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointsStatus {
    /// Pods whose traffic passes through Wardline.
    pub managed: i64,
    /// Pods that have an address of their own and could not be managed, 16 at most.
    #[schemars(length(max = 16))]
    pub unmanaged: Vec<UnmanagedEndpoint>,
}

/// A pod that could not be managed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct UnmanagedEndpoint {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Why it is not managed.
    pub message: String,
}

/// Policies in force.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct NodePolicyStatus {
    /// Whether the kernel holds all that the API server said last.
    pub synced: bool,
    /// When policies were last changed in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_applied_time: Option<Time>,
}

/// Logging in force.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeLoggingStatus {
    /// Generation of the NetworkLogging that is in force; 0 without one.
    pub applied_generation: i64,
}

/// An object that the node could not use.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase", default)]
pub struct InvalidObject {
    /// Kind, such as NetworkPolicy.
    pub kind: String,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What is wrong with it.
    pub message: String,
}
