// SPDX-License-Identifier: Apache-2.0
//! The node's own `DataplaneNode`: written when it changes, at most every ten seconds once the daemon has started.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wardline_crds::condition::{NewCondition, Status, set_condition};
use wardline_crds::{
    DataplaneNode, DataplaneNodeSpec, DataplaneNodeStatus, EndpointsStatus, InvalidObject, KernelStatus, MAX_LISTED,
    NodeLoggingStatus, NodePolicyStatus, UnmanagedEndpoint,
};

use crate::control::NodeState;
use crate::preflight::NodeKernel;

/// At most this often, so that a cluster of thousands of nodes does not write all day.
const INTERVAL: Duration = Duration::from_secs(10);
/// After an error.
const RETRY: Duration = Duration::from_secs(5);
/// Of a kind of problem, told by name.
const LISTED: usize = 4;
const FIELD_MANAGER: &str = "wardline-node";

#[allow(missing_debug_implementations, reason = "kube's client has none")]
pub struct StatusWriter {
    client: Client,
    node: String,
    revision: String,
    kernel: NodeKernel,
    conditions: Vec<Condition>,
}

impl StatusWriter {
    pub fn new(client: Client, node: &str, revision: &str, kernel: NodeKernel) -> Self {
        Self {
            client,
            node: node.to_owned(),
            revision: revision.to_owned(),
            kernel,
            conditions: Vec::new(),
        }
    }

    /// Follows the state until cancelled.
    pub async fn run(mut self, mut state: watch::Receiver<NodeState>, cancel: CancellationToken) {
        let mut written: Option<DataplaneNodeStatus> = None;
        loop {
            let seen = state.borrow_and_update().clone();
            let status = self.status(&seen);
            let mut is_written = true;
            if written.as_ref() != Some(&status) {
                match self.write(&status).await {
                    Ok(()) => written = Some(status),
                    Err(error) => {
                        tracing::warn!(%error, "failed to write DataplaneNode status; trying again");
                        is_written = false;
                    }
                }
            }
            let due = cancel.run_until_cancelled(until_due(&mut state, has_started(&seen), is_written));
            if due.await != Some(true) {
                return;
            }
        }
    }

    fn status(&mut self, state: &NodeState) -> DataplaneNodeStatus {
        self.set_conditions(state);
        let unmanaged = state
            .unmanaged
            .iter()
            .take(MAX_LISTED)
            .map(|(pod, message)| UnmanagedEndpoint {
                namespace: pod.namespace.to_string(),
                name: pod.name.to_string(),
                message: message.clone(),
            });
        let invalid_objects = state.invalid.iter().take(MAX_LISTED).map(|object| {
            let (namespace, name) = object.name.split_once('/').unwrap_or(("", &object.name));
            InvalidObject {
                kind: object.kind.to_string(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                message: object.cause.clone(),
            }
        });
        DataplaneNodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.revision.clone(),
            kernel: KernelStatus {
                release: self.kernel.release.clone(),
                attach: Some(self.kernel.attach),
            },
            endpoints: EndpointsStatus {
                managed: i64::try_from(state.managed).unwrap_or(i64::MAX),
                unmanaged: unmanaged.collect(),
            },
            policy: NodePolicyStatus {
                synced: state.synced,
                last_applied_time: state.last_applied.and_then(whole_seconds),
            },
            logging: NodeLoggingStatus {
                applied_generation: state.logging.map_or(0, |logging| logging.generation),
            },
            invalid_objects: invalid_objects.collect(),
            conditions: self.conditions.clone(),
        }
    }

    fn set_conditions(&mut self, state: &NodeState) {
        let now = Timestamp::now();
        let mut set = |type_, status, reason, message: &str| {
            let new = NewCondition {
                type_,
                status,
                reason,
                message,
                generation: None,
            };
            set_condition(&mut self.conditions, &new, now);
        };
        if state.synced {
            set("Ready", Status::True, "InForce", "policies are in force");
        } else if state.last_applied.is_some() {
            set(
                "Ready",
                Status::False,
                "ChangeRefused",
                "a change is not in force; what was in force stays",
            );
        } else {
            set("Ready", Status::False, "Starting", "policies are not in force yet");
        }
        let (verified, reason, message) = verified(state);
        set("Verified", verified, reason, &message);
        match problems(state) {
            (reason, message) if message.is_empty() => set("Degraded", Status::False, reason, ""),
            (reason, message) => set("Degraded", Status::True, reason, &message),
        }
    }

    async fn write(&self, status: &DataplaneNodeStatus) -> kube::Result<()> {
        let api: Api<DataplaneNode> = Api::all(self.client.clone());
        let patch = json!({
            "apiVersion": format!("{}/{}", wardline_crds::GROUP, wardline_crds::VERSION),
            "kind": "DataplaneNode",
            "metadata": {"name": self.node},
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch_status(&self.node, &parameters, &Patch::Apply(&patch)).await {
            Err(kube::Error::Api(response)) if response.code == 404 => {
                self.create(&api).await?;
                api.patch_status(&self.node, &parameters, &Patch::Apply(&patch))
                    .await
                    .map(drop)
            }
            result => result.map(drop),
        }
    }

    /// Owned by the Node, so that it goes with it.
    async fn create(&self, api: &Api<DataplaneNode>) -> kube::Result<()> {
        let node = Api::<Node>::all(self.client.clone()).get(&self.node).await?;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.clone(),
            uid: node.uid().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let mut object = DataplaneNode::new(&self.node, DataplaneNodeSpec::default());
        object.metadata = ObjectMeta {
            owner_references: Some(vec![owner]),
            ..object.metadata
        };
        match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(response)) if response.code == 409 => Ok(()),
            result => result.map(drop),
        }
    }
}

/// Whether this life of the daemon has brought policies in force and has seen that they are, or will not.
fn has_started(state: &NodeState) -> bool {
    matches!(state.self_test, Some(Err(_))) || (state.last_applied.is_some() && state.is_looked_at)
}

/// Waits until the state is to be written again; false where there will be no other. The end of a daemon's start comes
/// once, and whoever rolls daemons out waits for it: it is due at once.
async fn until_due(state: &mut watch::Receiver<NodeState>, had_started: bool, is_written: bool) -> bool {
    // Looking for the start must not count as having seen what changed before it.
    let mut starting = state.clone();
    tokio::select! {
        () = tokio::time::sleep(if is_written { INTERVAL } else { RETRY }) => {}
        started = starting.wait_for(has_started), if !had_started => return started.is_ok(),
    }
    !is_written || state.changed().await.is_ok()
}

/// Status, reason and message of `Verified`: whether the node does what it should, beyond what its daemon believes.
fn verified(state: &NodeState) -> (Status, &'static str, String) {
    if let Some((reason, message)) = failed_checks(state).next() {
        return (Status::False, reason, message);
    }
    if let Some((pod, cause)) = state.unattached.first_key_value() {
        return (
            Status::Unknown,
            "Unattached",
            format!("failed to take over pod {pod}: {cause}"),
        );
    }
    match &state.self_test {
        Some(Ok(packets)) if state.is_looked_at => (
            Status::True,
            "SelfTestPassed",
            format!("the programs judged {packets} packets as they should"),
        ),
        _ => (Status::Unknown, "Starting", "the programs are being tested".into()),
    }
}

/// Reason and message of each check that the node does not pass.
fn failed_checks(state: &NodeState) -> impl Iterator<Item = (&'static str, String)> {
    let self_test = state.self_test.as_ref().and_then(|result| result.as_ref().err());
    let bypassed = state
        .bypassed
        .iter()
        .take(LISTED)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    let bypassed = Some(bypassed).filter(|bypassed| !bypassed.is_empty());
    let checks = [
        ("SelfTestFailed", self_test.cloned()),
        ("AccountImbalance", state.log.imbalance.clone()),
        ("Bypassed", bypassed),
    ];
    checks
        .into_iter()
        .filter_map(|(reason, message)| Some((reason, message?)))
}

/// Reason and message of `Degraded`; no message where nothing is wrong.
fn problems(state: &NodeState) -> (&'static str, String) {
    let mut messages = state.problems.clone();
    let refused = state.refused_services.iter().take(LISTED);
    messages.extend(refused.map(|(service, cause)| format!("failed to apply Service {service}: {cause}")));
    if state.refused_services.len() > LISTED {
        messages.push(format!("{} Services are refused", state.refused_services.len()));
    }
    let mut reason = if messages.is_empty() {
        "AllWell"
    } else {
        "ChangeRefused"
    };
    for (check, message) in failed_checks(state) {
        reason = if messages.is_empty() { check } else { reason };
        messages.push(message);
    }
    if let Some(problem) = &state.plugin {
        reason = if messages.is_empty() {
            "PluginNotInstalled"
        } else {
            reason
        };
        messages.push(format!("the CNI plugin is not installed: {problem}"));
    }
    if let Some(problem) = &state.log.stopped {
        reason = if messages.is_empty() {
            "PolicyLogStopped"
        } else {
            reason
        };
        messages.push(problem.clone());
    }
    if !state.unmanaged.is_empty() {
        reason = if messages.is_empty() { "UnmanagedPods" } else { reason };
        messages.push(format!("{} pods are not managed", state.unmanaged.len()));
    }
    if !state.invalid.is_empty() {
        reason = if messages.is_empty() { "InvalidObjects" } else { reason };
        messages.push(format!("{} objects are invalid", state.invalid.len()));
    }
    (reason, messages.join("; "))
}

/// As the API server stores it: a status is compared with what was written.
fn whole_seconds(time: std::time::SystemTime) -> Option<Time> {
    let seconds = time.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok().map(Time)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wardline_policy::model::ObjectName;

    use super::*;
    use crate::events::LogHealth;
    use crate::index::Kind;

    #[tokio::test]
    async fn the_end_of_the_start_is_due_at_once() {
        let (sender, mut state) = watch::channel(NodeState::default());
        let soon = Duration::from_millis(100);
        for (had_started, managed, last_applied, is_due) in [
            (false, 1, None, false),
            (false, 2, Some(std::time::UNIX_EPOCH), true),
            (true, 3, Some(std::time::UNIX_EPOCH), false),
        ] {
            sender.send_modify(|state| {
                state.managed = managed;
                state.last_applied = last_applied;
                state.self_test = last_applied.map(|_| Ok(1));
                state.is_looked_at = last_applied.is_some();
            });
            let due = tokio::time::timeout(soon, until_due(&mut state, had_started, true)).await;
            assert_eq!(due.ok(), is_due.then_some(true), "change {managed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_before_the_start_is_due_later() {
        let (sender, mut state) = watch::channel(NodeState::default());
        sender.send_modify(|state| state.managed = 1);
        let due = tokio::time::timeout(2 * INTERVAL, until_due(&mut state, false, true)).await;
        assert_eq!(due, Ok(true));
        let due = tokio::time::timeout(2 * INTERVAL, until_due(&mut state, false, true)).await;
        assert!(due.is_err(), "nothing has changed since");
    }

    #[test]
    fn verified_is_what_was_tried() {
        let passed = || Some(Ok(12));
        let unbalanced = LogHealth {
            imbalance: Some("differ".into()),
            ..LogHealth::default()
        };
        for (self_test, log, bypassed, expected) in [
            (None, LogHealth::default(), vec![], "Unknown Starting"),
            (passed(), LogHealth::default(), vec![], "True SelfTestPassed"),
            (
                Some(Err("wrong".into())),
                LogHealth::default(),
                vec![],
                "False SelfTestFailed",
            ),
            (passed(), unbalanced, vec![], "False AccountImbalance"),
            (
                passed(),
                LogHealth::default(),
                vec!["shop/web".to_owned()],
                "False Bypassed",
            ),
        ] {
            let state = NodeState {
                bypassed,
                log,
                self_test,
                is_looked_at: true,
                ..NodeState::default()
            };
            let (status, reason, message) = verified(&state);
            assert_eq!(format!("{} {reason}", status.as_str()), expected);
            assert!(!message.is_empty());
            let is_wrong = status == Status::False;
            assert_eq!(problems(&state).0 == reason, is_wrong, "{reason}");
        }
        let state = NodeState {
            self_test: passed(),
            ..NodeState::default()
        };
        assert_eq!(verified(&state).1, "Starting", "nobody has looked yet");
        let state = NodeState {
            is_looked_at: true,
            unattached: BTreeMap::from([(ObjectName::new("shop", "web"), "no such device".to_owned())]),
            ..state
        };
        let (status, reason, message) = verified(&state);
        assert_eq!((status, reason), (Status::Unknown, "Unattached"));
        assert_eq!(message, "failed to take over pod shop/web: no such device");
    }

    #[test]
    fn degraded_says_what_is_wrong() {
        let unmanaged = BTreeMap::from([(ObjectName::new("shop", "web"), "no host-side veth".to_owned())]);
        let invalid = crate::index::InvalidObject {
            kind: Kind::NetworkPolicy,
            name: "shop/broken".into(),
            cause: "spec.podSelector: bad".into(),
        };
        let table = [
            (NodeState::default(), ("AllWell", "")),
            (
                NodeState {
                    unmanaged: unmanaged.clone(),
                    ..NodeState::default()
                },
                ("UnmanagedPods", "1 pods are not managed"),
            ),
            (
                NodeState {
                    plugin: Some("no list".into()),
                    unmanaged: unmanaged.clone(),
                    ..NodeState::default()
                },
                (
                    "PluginNotInstalled",
                    "the CNI plugin is not installed: no list; 1 pods are not managed",
                ),
            ),
            (
                NodeState {
                    log: LogHealth {
                        stopped: Some("failed to write".into()),
                        ..LogHealth::default()
                    },
                    unmanaged: unmanaged.clone(),
                    ..NodeState::default()
                },
                ("PolicyLogStopped", "failed to write; 1 pods are not managed"),
            ),
            (
                NodeState {
                    invalid: vec![invalid],
                    unmanaged,
                    problems: vec!["limits.rules is 5".into()],
                    ..NodeState::default()
                },
                (
                    "ChangeRefused",
                    "limits.rules is 5; 1 pods are not managed; 1 objects are invalid",
                ),
            ),
        ];
        for (state, (reason, message)) in table {
            assert_eq!(problems(&state), (reason, message.to_owned()));
        }
    }
}
