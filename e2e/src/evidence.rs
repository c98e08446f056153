// SPDX-License-Identifier: Apache-2.0
//! What one wants to see after a test has failed, before its namespace goes.

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams, LogParams};

use crate::cluster::{Lab, SYSTEM_NAMESPACE};
use crate::records::Record;

/// More than these a test that looks at each has not.
const RECORDS: usize = 200;

/// The namespace's pods, warnings and records, and the ends of the logs of Wardline's own pods.
pub async fn collect(lab: &Lab, namespace: &str) -> String {
    let mut lines = vec![format!("--- evidence from namespace {namespace}")];
    lines.extend(pods(lab, namespace).await);
    lines.extend(warnings(lab, namespace).await);
    match lab.records() {
        Ok(records) => {
            let ours = |record: &&Record| record.concerns(namespace) || record.disposition == "lost";
            let ours: Vec<&Record> = records.iter().filter(ours).collect();
            let last = ours.len().saturating_sub(RECORDS);
            lines.push(format!("{} records, the last of them:", ours.len()));
            lines.extend(ours[last..].iter().map(|record| format!("record {}", record.line)));
        }
        Err(error) => lines.push(format!("records: {error:#}")),
    }
    lines.extend(system_logs(lab).await);
    lines.join("\n")
}

async fn pods(lab: &Lab, namespace: &str) -> Vec<String> {
    let pods = Api::<Pod>::namespaced(lab.client().clone(), namespace)
        .list(&ListParams::default())
        .await;
    let items = pods.map(|list| list.items).unwrap_or_default();
    let line = |pod: Pod| {
        let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
        let (node, ip) = (spec.node_name.unwrap_or_default(), status.pod_ip.unwrap_or_default());
        let (name, phase) = (pod.metadata.name.unwrap_or_default(), status.phase.unwrap_or_default());
        format!("pod {name} on {node}, {ip}, {phase}")
    };
    items.into_iter().map(line).collect()
}

async fn warnings(lab: &Lab, namespace: &str) -> Vec<String> {
    let events = Api::<Event>::namespaced(lab.client().clone(), namespace)
        .list(&ListParams::default())
        .await;
    let mut items = events.map(|list| list.items).unwrap_or_default();
    items.retain(|event| event.type_.as_deref() == Some("Warning"));
    let line = |event: Event| {
        let (reason, message) = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
        format!(
            "event {reason} on {}: {message}",
            event.involved_object.name.unwrap_or_default()
        )
    };
    items.into_iter().map(line).collect()
}

async fn system_logs(lab: &Lab) -> Vec<String> {
    let pods = Api::<Pod>::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
    let mut lines = Vec::new();
    for pod in pods
        .list(&ListParams::default())
        .await
        .map(|list| list.items)
        .unwrap_or_default()
    {
        let name = pod.metadata.name.unwrap_or_default();
        let last = LogParams {
            tail_lines: Some(30),
            ..LogParams::default()
        };
        let log = pods.logs(&name, &last).await.unwrap_or_else(|error| error.to_string());
        lines.push(format!("--- log of {name}\n{log}"));
    }
    lines
}
