// SPDX-License-Identifier: Apache-2.0
//! The API of Wardline, `wardline.io/v1alpha1`: three cluster-scoped kinds and what both ends need to agree on.
//!
//! ```text
//! Dataplane "default"       spec: people    status: operator
//! NetworkLogging "default"  spec: people    status: operator
//! DataplaneNode NODE        no spec         status: the daemon of that node
//!
//! operator --(config::DaemonConfig, YAML in a ConfigMap)--> node daemon
//! ```
//!
//! The types are the source: `schema` turns them into CustomResourceDefinitions, and the committed YAML in `crds/yaml`
//! and in the chart is compared with them by a test. v1alpha1 changes by addition only.

// The comments on fields are what `kubectl explain` prints: plain text, not markdown.
#![allow(clippy::doc_markdown)]
// Columns of one kind repeat `type_`, each within its own list.
#![allow(clippy::duplicated_attributes)]

pub mod condition;
pub mod config;
mod dataplane;
mod dataplane_node;
mod network_logging;
pub mod quantity;
pub mod schema;
pub mod validate;

pub use dataplane::{
    ApiServerSpec, Canary, CniMode, CniSpec, DaemonSpec, Dataplane, DataplaneNodeCounts, DataplaneSpec,
    DataplaneStatus, Enforcement, FailedRollout, FailurePolicy, ImageSpec, LimitsSpec, LogFileSpec, LogLevel,
    LoggingSpec, PolicySpec, PullPolicy, PullSecret, ReplacedDaemon, Resources, RolloutSpec, RolloutStatus,
    ServicesMode, ServicesSpec, SourceAddressCheck,
};
pub use dataplane_node::{
    AttachKind, DataplaneNode, DataplaneNodeSpec, DataplaneNodeStatus, EndpointsStatus, InvalidObject, KernelStatus,
    MAX_LISTED, NodeLoggingStatus, NodePolicyStatus, UnmanagedEndpoint,
};
pub use network_logging::{
    AllowLogging, ClusterLogging, Delegated, DenyLogging, LoggingNodeCounts, NetworkLogging, NetworkLoggingSpec,
    NetworkLoggingStatus,
};

/// The API group of all kinds.
pub const GROUP: &str = "wardline.io";
/// The version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// The only name that a `Dataplane` or a `NetworkLogging` may have.
pub const SINGLETON_NAME: &str = "default";
