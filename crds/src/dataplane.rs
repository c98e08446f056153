// SPDX-License-Identifier: Apache-2.0
//! `Dataplane`: how the nodes of the cluster enforce policy. A singleton named `default`.
//!
//! Each group has one `Default`: it is both what Rust uses and what the API server fills in.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{conditions, pull_secrets, quantities};

/// What the node daemons of the cluster do and how they are rolled out.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "wardline.io",
    version = "v1alpha1",
    kind = "Dataplane",
    shortname = "dp",
    category = "wardline",
    status = "DataplaneStatus",
    derive = "PartialEq",
    doc = "Dataplane sets up Wardline on the nodes of this cluster. There is one, named `default`; `spec: {}` is complete. \
           An object that does not validate changes nothing: the last good configuration stays in force.",
    validation = Rule::new("self.metadata.name == 'default'").message("a Dataplane must be named 'default'"),
    printcolumn(name = "Enforcement", type_ = "string", json_path = ".spec.policy.enforcement"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.nodes.desired"),
    printcolumn(name = "Updated", type_ = "integer", json_path = ".status.nodes.updated"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.nodes.ready"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct DataplaneSpec {
    /// How pods are handed to Wardline when they are created: the daemon chains its plugin to the node's CNI
    /// configuration, and keeps it there.
    #[serde(default)]
    pub cni: CniSpec,
    /// What happens to packets that a NetworkPolicy does not allow.
    #[serde(default)]
    pub policy: PolicySpec,
    /// Who balances Services for pods.
    #[serde(default)]
    pub services: ServicesSpec,
    /// Where each node keeps its policy log. What is logged is decided by the NetworkLogging object.
    #[serde(default)]
    pub logging: LoggingSpec,
    /// What the daemons' metrics tell beside the totals.
    #[serde(default)]
    pub metrics: MetricsSpec,
    /// Sizes of the tables in each node's kernel. They are allocated in advance, so memory follows them.
    #[serde(default)]
    pub limits: LimitsSpec,
    /// Where the daemons reach the API server, for clusters without kube-proxy.
    #[serde(default)]
    pub api_server: ApiServerSpec,
    /// The node daemon's image, placement and rollout.
    #[serde(default)]
    pub daemon: DaemonSpec,
}

/// How pods are handed to Wardline when they are created.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct CniSpec {
    /// Chained: Wardline comes after the cluster's own CNI plugin. Cannot be changed once it is set.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "cni.mode is immutable"}]))]
    pub mode: CniMode,
    /// Directory on the node with the CNI configuration: an absolute path.
    #[schemars(length(max = 256), pattern(r"^(/[A-Za-z0-9._-]+)+$"))]
    pub conf_dir: String,
    /// Directory on the node with the CNI plugins: an absolute path.
    #[schemars(length(max = 256), pattern(r"^(/[A-Za-z0-9._-]+)+$"))]
    pub bin_dir: String,
    /// What happens to a new pod while the daemon of its node is away. Fail: it waits. Ignore: it starts without its
    /// policies, the runtime's log says so, and the daemon takes it over when it is back.
    pub failure_policy: FailurePolicy,
}

impl Default for CniSpec {
    fn default() -> Self {
        Self {
            mode: CniMode::Chained,
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
            failure_policy: FailurePolicy::Fail,
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CniMode {
    Chained,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    Fail,
    Ignore,
}

/// What happens to packets that a NetworkPolicy does not allow.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySpec {
    /// Enforce drops what no policy allows. Audit lets it pass, and counts and logs it as denied.
    pub enforcement: Enforcement,
    /// A pod that sends from an address which is not its own: Enforce drops the packet, Audit only counts it.
    pub source_address_check: SourceAddressCheck,
}

impl Default for PolicySpec {
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Enforce,
            source_address_check: SourceAddressCheck::Audit,
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    Enforce,
    Audit,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceAddressCheck {
    Enforce,
    Audit,
}

/// Who balances Services.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicesSpec {
    /// PodEdge: a flow to a ClusterIP gets its backend at the client pod's edge. Disabled: left to kube-proxy, or what
    /// stands in for it, and judged by all backends.
    pub mode: ServicesMode,
}

impl Default for ServicesSpec {
    fn default() -> Self {
        Self {
            mode: ServicesMode::PodEdge,
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServicesMode {
    PodEdge,
    Disabled,
}

/// Where each node keeps its policy log.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct LoggingSpec {
    /// Name of this cluster in each record, as `cluster_name`. Empty leaves the field out.
    #[schemars(length(max = 253), pattern(r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"))]
    pub cluster_name: String,
    /// Denied attempts that differ in nothing but their source port become one record, written this many seconds
    /// after the first one. 0: each denied packet is a record, up to 5,957 a second in each direction of a pod; what is
    /// beyond that is aggregated over a second. 0 to 300.
    #[schemars(range(min = 0, max = 300))]
    pub deny_aggregation_seconds: u32,
    /// The file on each node.
    pub file: LogFileSpec,
    /// Every line that is in the file also goes to the daemon's standard output. Where nobody reads that, lines are
    /// left out there, and counted; the file does not wait.
    pub stdout: bool,
}

impl Default for LoggingSpec {
    fn default() -> Self {
        Self {
            cluster_name: String::new(),
            deny_aggregation_seconds: 5,
            file: LogFileSpec::default(),
            stdout: false,
        }
    }
}

/// The policy log on each node: one JSON object a line, rotated by size, and by age where that is set.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct LogFileSpec {
    /// Absolute path on the node. Its directory is created where it is missing, and mounted into the daemon.
    #[schemars(
        length(max = 256),
        pattern(r"^(/[A-Za-z0-9._-]+){2,}$"),
        extend("x-kubernetes-validations" = [
            {"rule": "!self.matches('/[.][.]?(/|$)')", "message": "file.path must not hold '.' or '..'"},
            {"rule": "!self.matches('^/(proc|sys|dev|run/wardline|etc/wardline)/')",
             "message": "file.path must not lie under /proc, /sys, /dev, /run/wardline or /etc/wardline"},
        ])
    )]
    pub path: String,
    /// The file is rotated before it grows beyond this: a quantity of bytes such as 10Mi, 64Ki to 1Gi.
    #[schemars(
        length(min = 1, max = 16),
        pattern(r"^[0-9]+([.][0-9]+)?(k|M|G|Ki|Mi|Gi)?$"),
        extend("x-kubernetes-validations" = [{
            "rule": "isQuantity(self) && quantity(self).compareTo(quantity('64Ki')) >= 0 \
                     && quantity(self).compareTo(quantity('1Gi')) <= 0",
            "message": "file.maxSize must be a quantity from 64Ki to 1Gi",
        }])
    )]
    pub max_size: String,
    /// How many files are kept on the node, the one in use among them. 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub max_files: u32,
    /// The file is also rotated when its first line has been there for this many seconds. 60 to 31536000; without it,
    /// by size only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 31_536_000))]
    pub max_age_seconds: Option<u32>,
    /// While less than this part of the file's file system is free, in percent, nothing is written, so that the log
    /// never makes kubelet evict pods; what cannot be kept until there is room again is counted and told as lost.
    /// 0 to 50; 0 writes until the disk is full.
    #[schemars(range(min = 0, max = 50))]
    pub min_free_percent: u32,
}

impl Default for LogFileSpec {
    fn default() -> Self {
        Self {
            path: "/var/log/network/policy_action.log".into(),
            max_size: "10Mi".into(),
            max_files: 5,
            max_age_seconds: None,
            min_free_percent: 12,
        }
    }
}

/// What the daemons' metrics tell beside the totals.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricsSpec {
    /// How many policies each node tells apart when it counts the verdicts that it logs; those of further ones are
    /// counted together. Each is up to four time series a node. 0 to 10000; 0 does not count by policy.
    #[schemars(range(min = 0, max = 10_000))]
    pub policies: u32,
}

/// Sizes of the tables in each node's kernel, in entries. A change that would not fit is refused whole, what was in
/// force stays, and the node says which limit it met.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitsSpec {
    /// Connections tracked at once; a flow between two pods of one node takes two. 1024 to 16777216.
    #[schemars(range(min = 1024, max = 16_777_216))]
    pub connections: u32,
    /// Remote addresses and address blocks that policies of the node tell apart. 1024 to 4194304.
    #[schemars(range(min = 1024, max = 4_194_304))]
    pub peers: u32,
    /// Compiled rules over all policies of the node. 1024 to 4194304.
    #[schemars(range(min = 1024, max = 4_194_304))]
    pub rules: u32,
    /// Distinct denied flows that are waiting for their record. 1024 to 1048576.
    #[schemars(range(min = 1024, max = 1_048_576))]
    pub deny_aggregates: u32,
}

impl Default for LimitsSpec {
    fn default() -> Self {
        Self {
            connections: 262_144,
            peers: 131_072,
            rules: 262_144,
            deny_aggregates: 65_536,
        }
    }
}

/// Where the daemons reach the API server.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ApiServerSpec {
    /// Host name or IP address of the API server. Empty: the address that kubelet gives each pod, which needs
    /// something that serves the `kubernetes` Service.
    #[schemars(length(max = 253), pattern(r"^[A-Za-z0-9.:-]*$"))]
    pub host: String,
    /// Port of the API server, used where `host` is set.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

impl Default for ApiServerSpec {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 6443,
        }
    }
}

/// The node daemon's image, placement and rollout.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSpec {
    /// Overrides of the image that the operator was installed with.
    pub image: ImageSpec,
    /// Secrets in the daemon's namespace to pull the image with.
    #[schemars(schema_with = "pull_secrets")]
    pub image_pull_secrets: Vec<PullSecret>,
    /// How a change reaches the nodes.
    pub rollout: RolloutSpec,
    /// Labels a node must have to run the daemon. Pods on other nodes are not managed.
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations besides the one for every taint, which the daemon always has.
    pub tolerations: Vec<Toleration>,
    /// Resources of the daemon's container. The memory limit counts the kernel tables too.
    pub resources: Resources,
    /// Priority class of the daemon's pods.
    #[schemars(length(max = 253))]
    pub priority_class_name: String,
    /// The least severe message that the daemon logs.
    pub log_level: LogLevel,
}

impl Default for DaemonSpec {
    fn default() -> Self {
        Self {
            image: ImageSpec::default(),
            image_pull_secrets: Vec::new(),
            rollout: RolloutSpec::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            resources: Resources::default(),
            priority_class_name: "system-node-critical".into(),
            log_level: LogLevel::Info,
        }
    }
}

/// Parts of the daemon's image reference. A part that is not set is taken from the operator's own setting.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageSpec {
    /// Repository, such as registry.example.com/wardline/wardline-node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub repository: Option<String>,
    /// Tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"))]
    pub tag: Option<String>,
    /// Digest, such as sha256:… It wins over the tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^sha256:[0-9a-f]{64}$"))]
    pub digest: Option<String>,
    /// When the image is pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// A Secret in the daemon's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How a change reaches the nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutSpec {
    /// How many nodes, or which share of them, may be without a ready daemon during a rollout: 1 or more, or 1% to
    /// 100%. What is in force in their kernels stays in force meanwhile.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "type(self) == int ? self >= 1 : self.matches('^(100|[1-9][0-9]?)%$')",
        "message": "rollout.maxUnavailable must be 1 or more, or 1% to 100%",
    }]))]
    pub max_unavailable: IntOrString,
    /// The nodes that a change comes to first. All of them must be well before it comes to any other.
    pub canary: Canary,
    /// How long a node must have been well before the change goes on to others, in seconds. 0 to 3600.
    #[schemars(range(min = 0, max = 3600))]
    pub min_ready_seconds: u32,
    /// How long a node may take to be well with the change, in seconds, before it is taken back from all nodes.
    /// 30 to 3600.
    #[schemars(range(min = 30, max = 3600))]
    pub progress_deadline_seconds: u32,
}

impl Default for RolloutSpec {
    fn default() -> Self {
        Self {
            max_unavailable: IntOrString::Int(1),
            canary: Canary::default(),
            min_ready_seconds: 10,
            progress_deadline_seconds: 300,
        }
    }
}

/// The nodes that a change comes to first.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Canary {
    /// How many nodes, of those that `nodeSelector` selects. 0 to 100; 0 is no canary.
    #[schemars(range(min = 0, max = 100))]
    pub nodes: u32,
    /// Labels of nodes that may be canaries; empty: every node.
    pub node_selector: BTreeMap<String, String>,
}

impl Default for Canary {
    fn default() -> Self {
        Self {
            nodes: 1,
            node_selector: BTreeMap::new(),
        }
    }
}

/// Resources of the daemon's container, as in a Pod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What the scheduler keeps free for the daemon, by resource name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the daemon may use at most, by resource name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// What the operator sees of the rollout. Written by the operator only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct DataplaneStatus {
    /// Generation of the spec that this status speaks of.
    pub observed_generation: i64,
    /// Version of the daemon that is rolled out.
    pub version: String,
    /// How many nodes are how far.
    pub nodes: DataplaneNodeCounts,
    /// What is rolled out.
    pub rollout: RolloutStatus,
    /// Ready, Available, Stalled, Progressing and Degraded.
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// How many nodes are how far.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct DataplaneNodeCounts {
    /// Nodes that should run the daemon.
    pub desired: i32,
    /// Nodes that run it with the configuration of this generation.
    pub updated: i32,
    /// Nodes whose daemon is ready.
    pub ready: i32,
    /// Nodes whose DataplaneNode says Degraded.
    pub degraded: i32,
}

/// What is rolled out. A revision is the daemon's configuration and pod template, named by their hash.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutStatus {
    /// The revision that the nodes have or are to get.
    pub revision: String,
    /// The last revision that all nodes were well with: the one that is gone back to. Empty before there was one.
    pub good_revision: String,
    /// The change that was taken back, until another one is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailedRollout>,
    /// Nodes whose daemon is being replaced, until they are well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replacing: Vec<ReplacedDaemon>,
    /// Nodes that were not well before the change came to them: it is not taken back for them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub excused: Vec<String>,
}

/// A node whose daemon is being replaced.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ReplacedDaemon {
    /// Name of the node.
    pub node: String,
    /// Uid of the pod that is replaced.
    pub pod: String,
    /// Since when.
    pub since: Time,
}

/// A change that was taken back from the nodes, and is not tried again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct FailedRollout {
    /// Generation of the spec that asked for it.
    pub generation: i64,
    /// The revision that it was.
    pub revision: String,
    /// The node that was not well with it.
    pub node: String,
    /// What was wrong there.
    pub message: String,
}
