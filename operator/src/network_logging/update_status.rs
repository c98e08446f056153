// SPDX-License-Identifier: Apache-2.0
//! From the verdict on the spec and the nodes' words to `NetworkLogging.status` and Events.

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use wardline_crds::condition::{NewCondition, Status, set_condition};
use wardline_crds::validate::SpecError;
use wardline_crds::{Delegated, LoggingNodeCounts, NetworkLogging, NetworkLoggingStatus};

use crate::announce::{Announcement, Watched, transitions};
use crate::context::Context;
use crate::error::Error;
use crate::status;

pub(super) async fn update(
    context: &Context,
    logging: &NetworkLogging,
    refused: Option<&SpecError>,
    nodes: LoggingNodeCounts,
) -> Result<(), Error> {
    let old = logging.status.clone().unwrap_or_default();
    let new = compute(logging, refused, nodes, Timestamp::now());
    if logging.status.as_ref() == Some(&new) {
        return Ok(());
    }
    status::apply(context, logging, &new).await?;
    context.announce(&logging.object_ref(&()), events(&old, &new)).await;
    Ok(())
}

fn events(old: &NetworkLoggingStatus, new: &NetworkLoggingStatus) -> Vec<Announcement> {
    let mut events = transitions(
        &[Watched::Good("Accepted"), Watched::Good("Ready")],
        &old.conditions,
        &new.conditions,
        "Reconcile",
    );
    // Losing Ready is either a node that is behind, which passes, or the refusal that Accepted announces.
    events.retain(|event| matches!(event.reason.as_str(), "Accepted" | "Ready" | "InvalidNetworkLogging"));
    events.dedup_by(|a, b| a.reason == b.reason);
    let first = old.conditions.is_empty() && events.is_empty();
    if let Some(accepted) = new
        .conditions
        .iter()
        .find(|c| first && c.type_ == "Accepted" && c.status == "False")
    {
        events.push(Announcement {
            warning: true,
            action: "Reconcile",
            reason: accepted.reason.clone(),
            note: accepted.message.clone(),
        });
    }
    events
}

fn compute(
    logging: &NetworkLogging,
    refused: Option<&SpecError>,
    nodes: LoggingNodeCounts,
    now: Timestamp,
) -> NetworkLoggingStatus {
    let generation = logging.metadata.generation.unwrap_or_default();
    let old = logging.status.clone().unwrap_or_default();
    let (accepted, ready) = match refused {
        Some(error) => {
            let finding = (
                false,
                "InvalidNetworkLogging",
                format!("{error}; what was in force stays in force"),
            );
            (finding.clone(), finding)
        }
        None => ((true, "Accepted", describe(logging)), ready(&nodes)),
    };
    let mut conditions = old.conditions;
    for (type_, (status, reason, message)) in [("Accepted", accepted), ("Ready", ready)] {
        let status = Status::from(status);
        set_condition(
            &mut conditions,
            &NewCondition {
                type_,
                status,
                reason,
                message: &message,
                generation: Some(generation),
            },
            now,
        );
    }
    NetworkLoggingStatus {
        observed_generation: generation,
        nodes,
        delegated: Some(Delegated::from(&logging.spec.cluster)),
        conditions,
    }
}

fn ready(nodes: &LoggingNodeCounts) -> (bool, &'static str, String) {
    let LoggingNodeCounts { desired, applied } = nodes;
    let message = format!("{applied} of {desired} nodes have applied this generation");
    match desired {
        0 => (false, "NoNodes", "no node runs the daemon".into()),
        _ if applied < desired => (false, "Applying", message),
        _ => (true, "Applied", message),
    }
}

fn describe(logging: &NetworkLogging) -> String {
    let side = |log, delegate, to| match (log, delegate) {
        (false, _) => "off".to_owned(),
        (true, false) => "on".to_owned(),
        (true, true) => format!("on where {to} asks for it"),
    };
    let (allow, deny) = (&logging.spec.cluster.allow, &logging.spec.cluster.deny);
    let allow = side(allow.log, allow.delegate, "a policy");
    let deny = side(deny.log, deny.delegate, "the pod's namespace");
    format!("logging of allowed connections: {allow}; of denied ones: {deny}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use wardline_crds::validate;

    use super::*;

    fn logging(cluster: &Value) -> NetworkLogging {
        let object = json!({"metadata": {"name": "default", "generation": 3}, "spec": {"cluster": cluster}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn conditions_follow_the_nodes() {
        for (cluster, desired, applied, expected) in [
            (json!({}), 2, 2, "Accepted=True/Accepted Ready=True/Applied None"),
            (
                json!({"allow": {"log": true}}),
                2,
                1,
                "Accepted=True/Accepted Ready=False/Applying None",
            ),
            (
                json!({"deny": {"log": true, "delegate": true}}),
                0,
                0,
                "Accepted=True/Accepted Ready=False/NoNodes Deny",
            ),
            (
                json!({"allow": {"delegate": true}}),
                2,
                0,
                "Accepted=False/InvalidNetworkLogging Ready=False/InvalidNetworkLogging Allow",
            ),
        ] {
            let object = logging(&cluster);
            let refused = validate::network_logging(&object.spec).err();
            let nodes = LoggingNodeCounts { desired, applied };
            let status = compute(&object, refused.as_ref(), nodes, Timestamp::UNIX_EPOCH);
            let mut words: Vec<String> = status
                .conditions
                .iter()
                .map(|c| format!("{}={}/{}", c.type_, c.status, c.reason))
                .collect();
            words.push(format!("{:?}", status.delegated.unwrap()));
            assert_eq!(words.join(" "), expected);
            assert_eq!(status.observed_generation, 3);
        }
    }

    #[test]
    fn events_tell_each_transition_once() {
        let nodes = |applied| LoggingNodeCounts { desired: 2, applied };
        let good = json!({"deny": {"log": true}});
        let bad = json!({"deny": {"delegate": true}});
        let mut old = NetworkLoggingStatus::default();
        for (what, cluster, applied, expected) in [
            ("accepted", &good, 0, vec!["Accepted"]),
            ("in force", &good, 2, vec!["Ready"]),
            ("the same", &good, 2, vec![]),
            ("a node is behind", &good, 1, vec![]),
            ("in force again", &good, 2, vec!["Ready"]),
            ("refused", &bad, 2, vec!["InvalidNetworkLogging"]),
            ("still refused", &bad, 1, vec![]),
            ("accepted again", &good, 0, vec!["Accepted"]),
        ] {
            let mut object = logging(cluster);
            object.status = Some(old.clone());
            let refused = validate::network_logging(&object.spec).err();
            let new = compute(&object, refused.as_ref(), nodes(applied), Timestamp::UNIX_EPOCH);
            let found: Vec<String> = events(&old, &new).into_iter().map(|event| event.reason).collect();
            assert_eq!(found, expected, "{what}");
            old = new;
        }
    }

    #[test]
    fn refused_at_first_sight() {
        let object = logging(&json!({"deny": {"delegate": true}}));
        let refused = validate::network_logging(&object.spec).err();
        let new = compute(
            &object,
            refused.as_ref(),
            LoggingNodeCounts::default(),
            Timestamp::UNIX_EPOCH,
        );
        let found = events(&NetworkLoggingStatus::default(), &new);
        assert_eq!(found.len(), 1);
        assert!(found[0].warning && found[0].reason == "InvalidNetworkLogging");
    }
}
