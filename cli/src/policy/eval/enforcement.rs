// SPDX-License-Identifier: Apache-2.0
//! Whether what the policies say is in force: the answer is about the objects, this is about the cluster.

use wardline_crds::condition::{find, is_true};
use wardline_crds::{Dataplane, DataplaneNode, Enforcement, SINGLETON_NAME};

use super::answer::{Answer, Party};
use crate::cluster::Cluster;
use crate::decode;

/// What stands between the answer and the packets. Who may not read Wardline's objects is told so, and gets the answer.
pub(super) fn notes(cluster: &Cluster, answer: &Answer) -> Vec<String> {
    let dataplanes = match cluster.list::<Dataplane>() {
        Ok(values) => decoded(values),
        Err(error) => return vec![format!("whether this is enforced is not known: {error:#}")],
    };
    let nodes = match cluster.list::<DataplaneNode>() {
        Ok(values) => decoded(values),
        Err(error) => return vec![format!("whether this is enforced is not known: {error:#}")],
    };
    let mut notes: Vec<String> = enforcement(&dataplanes).into_iter().collect();
    for party in [&answer.from, &answer.to] {
        notes.extend(edge(&nodes, party));
    }
    notes.dedup();
    notes
}

fn decoded<K: serde::de::DeserializeOwned>(values: Option<Vec<serde_json::Value>>) -> Vec<K> {
    let values = values.unwrap_or_default().into_iter();
    values.filter_map(|value| decode::lenient(value).ok()).collect()
}

fn enforcement(dataplanes: &[Dataplane]) -> Option<String> {
    let default = |dataplane: &&Dataplane| dataplane.metadata.name.as_deref() == Some(SINGLETON_NAME);
    match dataplanes.iter().find(default) {
        None => Some("there is no Dataplane that can be read, so Wardline may not enforce this".to_owned()),
        Some(dataplane) if dataplane.spec.policy.enforcement == Enforcement::Audit => {
            Some("the Dataplane's enforcement is Audit: what is denied is logged, and passes".to_owned())
        }
        Some(_) => None,
    }
}

/// What is not as it should be at one pod's edge.
fn edge(nodes: &[DataplaneNode], party: &Party) -> Option<String> {
    let (pod, node) = (party.pod.as_ref()?, party.node.as_deref()?);
    if party.host_network {
        return None;
    }
    let object = nodes
        .iter()
        .find(|object| object.metadata.name.as_deref() == Some(node));
    let Some(status) = object.and_then(|object| object.status.as_ref()) else {
        return Some(format!("{node} has no DataplaneNode: policies are not enforced there"));
    };
    let is_pod = |u: &&wardline_crds::UnmanagedEndpoint| u.namespace == pod.namespace && u.name == pod.name;
    if let Some(unmanaged) = status.endpoints.unmanaged.iter().find(is_pod) {
        return Some(format!(
            "pod {}/{} is not managed, so its policies are not enforced: {}",
            pod.namespace, pod.name, unmanaged.message
        ));
    }
    if is_true(&status.conditions, "Ready") {
        return None;
    }
    let message = find(&status.conditions, "Ready").map_or("no condition Ready", |ready| ready.message.as_str());
    Some(format!("{node} is not ready: {message}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::answer::PodName;
    use super::*;

    fn party(node: &str) -> Party {
        Party {
            pod: Some(PodName {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
            }),
            node: Some(node.to_owned()),
            host_network: false,
            addresses: Vec::new(),
        }
    }

    fn node(name: &str, ready: &str, unmanaged: serde_json::Value) -> serde_json::Value {
        json!({
            "apiVersion": "wardline.io/v1alpha1", "kind": "DataplaneNode", "metadata": {"name": name}, "spec": {},
            "status": {
                "endpoints": {"managed": 1, "unmanaged": unmanaged},
                "conditions": [{
                    "type": "Ready", "status": ready, "reason": "R", "message": "policies are not in force yet",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        })
    }

    #[test]
    fn what_is_wrong_at_an_edge() {
        let web = json!([{"namespace": "shop", "name": "web", "message": "no veth"}]);
        let nodes: Vec<DataplaneNode> = decoded(Some(vec![
            node("good", "True", json!([])),
            node("starting", "False", json!([])),
            node("blind", "True", web),
        ]));
        assert_eq!(nodes.len(), 3);
        for (name, expected) in [
            ("good", None),
            ("starting", Some("starting is not ready: policies are not in force yet")),
            (
                "blind",
                Some("pod shop/web is not managed, so its policies are not enforced: no veth"),
            ),
            (
                "other",
                Some("other has no DataplaneNode: policies are not enforced there"),
            ),
        ] {
            assert_eq!(edge(&nodes, &party(name)).as_deref(), expected, "{name}");
        }
        let host = Party {
            host_network: true,
            ..party("other")
        };
        assert_eq!(edge(&nodes, &host), None);
    }

    #[test]
    fn audit_drops_nothing() {
        for (spec, expected) in [
            (json!({}), None),
            (json!({"policy": {"enforcement": "Enforce"}}), None),
            (
                json!({"policy": {"enforcement": "Audit"}}),
                Some("the Dataplane's enforcement is Audit: what is denied is logged, and passes"),
            ),
        ] {
            let object = json!({"metadata": {"name": "default"}, "spec": spec});
            let dataplanes = decoded(Some(vec![object]));
            assert_eq!(enforcement(&dataplanes).as_deref(), expected, "{spec}");
        }
        assert!(enforcement(&[]).is_some());
    }
}
