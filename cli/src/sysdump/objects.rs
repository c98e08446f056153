// SPDX-License-Identifier: Apache-2.0
//! Objects of the API server, each reduced to what may leave the cluster as soon as it is read.

use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use serde_json::{Value, json};
use wardline_crds::config::{CONFIG_KEY, DaemonConfig};

use super::allowed::{
    CONTROLLER_REVISION, ENDPOINT_SLICE, EVENT, LEASE, METADATA, NAMESPACE, NODE, OWN_POD, POD, SERVICE, WHOLE,
    WORKLOAD,
};
use super::reduce::Reduction;
use crate::daemons::within;

/// How long a page of a list may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Objects of a page.
const PAGE: u32 = 500;
const OURS: &str = "labelSelector=app.kubernetes.io/name+in+(wardline-node,wardline-operator)";

/// A list that goes into one file.
pub(super) struct Listed {
    pub(super) file: &'static str,
    pub(super) what: &'static str,
    /// Path and query at the API server; several where one query cannot say it.
    paths: Vec<String>,
    fields: &'static [&'static [&'static str]],
    /// Of what these queries find.
    is_wanted: fn(&Value) -> bool,
}

/// All lists, the most telling first.
pub(super) fn all(namespace: &str) -> Vec<Listed> {
    let listed = |file, what, path: &str, fields| Listed {
        file,
        what,
        paths: vec![path.to_owned()],
        fields,
        is_wanted: |_| true,
    };
    let within = |group: &str, plural: &str, query: &str| format!("{group}/namespaces/{namespace}/{plural}?{query}");
    let wardline = "/apis/wardline.io/v1alpha1";
    let apps = "/apis/apps/v1";
    vec![
        listed(
            "dataplanes.json",
            "Dataplanes",
            &format!("{wardline}/dataplanes"),
            &[METADATA, WHOLE],
        ),
        listed(
            "networkloggings.json",
            "NetworkLoggings",
            &format!("{wardline}/networkloggings"),
            &[METADATA, WHOLE],
        ),
        listed(
            "dataplanenodes.json",
            "DataplaneNodes: what each daemon says of its node",
            &format!("{wardline}/dataplanenodes"),
            &[METADATA, WHOLE],
        ),
        listed(
            "wardline/pods.json",
            "Pods of operator and daemons",
            &within("/api/v1", "pods", OURS),
            &[METADATA, POD, OWN_POD],
        ),
        listed(
            "wardline/daemonsets.json",
            "DaemonSets of Wardline",
            &within(apps, "daemonsets", OURS),
            &[METADATA, WORKLOAD],
        ),
        listed(
            "wardline/deployments.json",
            "Deployments of Wardline",
            &within(apps, "deployments", OURS),
            &[METADATA, WORKLOAD],
        ),
        listed(
            "wardline/controllerrevisions.json",
            "former templates of the DaemonSet",
            &within(apps, "controllerrevisions", OURS),
            &[METADATA, CONTROLLER_REVISION],
        ),
        listed(
            "wardline/leases.json",
            "which operator leads",
            &within(
                "/apis/coordination.k8s.io/v1",
                "leases",
                "fieldSelector=metadata.name%3Dwardline-operator",
            ),
            &[METADATA, LEASE],
        ),
        Listed {
            file: "events.json",
            what: "Events about Wardline's objects",
            paths: vec![
                within("/api/v1", "events", ""),
                "/api/v1/events?fieldSelector=involvedObject.apiVersion%3Dwardline.io/v1alpha1".to_owned(),
            ],
            is_wanted: is_about_ours,
            fields: &[METADATA, EVENT],
        },
        listed("nodes.json", "Nodes", "/api/v1/nodes", &[METADATA, NODE]),
        listed(
            "networkpolicies.json",
            "NetworkPolicies",
            "/apis/networking.k8s.io/v1/networkpolicies",
            &[METADATA, WHOLE],
        ),
        listed(
            "namespaces.json",
            "Namespaces",
            "/api/v1/namespaces",
            &[METADATA, NAMESPACE],
        ),
        listed("services.json", "Services", "/api/v1/services", &[METADATA, SERVICE]),
        listed(
            "endpointslices.json",
            "EndpointSlices",
            "/apis/discovery.k8s.io/v1/endpointslices",
            &[METADATA, ENDPOINT_SLICE],
        ),
        listed(
            "pods.json",
            "Pods of all namespaces, reduced to what policy needs",
            "/api/v1/pods",
            &[METADATA, POD],
        ),
    ]
}

/// Whether an Event is about an object of Wardline: its message may be anything where it is about somebody else's.
fn is_about_ours(event: &Value) -> bool {
    let begins = |field: &str, with| {
        let text = event["involvedObject"][field].as_str();
        text.is_some_and(|text| text.starts_with(with))
    };
    begins("apiVersion", "wardline.io/") || begins("name", "wardline-")
}

impl Listed {
    /// What is left of all objects, as a JSON list; each once.
    pub(super) async fn read(&self, client: &Client) -> anyhow::Result<Vec<u8>> {
        let reduction = Reduction::new(self.fields);
        let mut objects: Vec<Value> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for path in &self.paths {
            pages(client, path, |object| {
                let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
                if (self.is_wanted)(object) && uid.is_none_or(|uid| seen.insert(uid)) {
                    objects.push(reduction.of(object));
                }
            })
            .await?;
        }
        text(&objects)
    }
}

/// The daemons' configurations: they are of a type of their own, which has no room for anything else.
pub(super) async fn configurations(client: &Client, namespace: &str) -> anyhow::Result<Vec<u8>> {
    let path = format!(
        "/api/v1/namespaces/{namespace}/configmaps?labelSelector=app.kubernetes.io/name%3Dwardline-node,\
         app.kubernetes.io/managed-by%3Dwardline-operator"
    );
    let metadata = Reduction::new(&[METADATA]);
    let mut objects = Vec::new();
    pages(client, &path, |object| {
        let mut left = metadata.of(object);
        let yaml = object["data"][CONFIG_KEY].as_str().unwrap_or_default();
        left["config"] = match serde_yaml::from_str::<DaemonConfig>(yaml) {
            Ok(config) => serde_json::to_value(config).unwrap_or_default(),
            Err(_) => json!("it is no configuration of this version"),
        };
        objects.push(left);
    })
    .await?;
    text(&objects)
}

fn text(objects: &[Value]) -> anyhow::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(objects).context("failed to write JSON")?;
    text.push(b'\n');
    Ok(text)
}

/// Reads a list in pieces, as kubectl does.
async fn pages(client: &Client, path: &str, mut take: impl FnMut(&Value)) -> anyhow::Result<()> {
    let mut token = String::new();
    loop {
        let and = if path.contains('?') { '&' } else { '?' };
        let from = if token.is_empty() {
            String::new()
        } else {
            format!("&continue={token}")
        };
        let paged = format!("{path}{and}limit={PAGE}{from}");
        let request = http::Request::get(paged).body(Vec::new()).context("failed to ask")?;
        let page: Value = within(PATIENCE, client.request(request)).await?;
        for object in page["items"].as_array().into_iter().flatten() {
            take(object);
        }
        // Letters, digits, `-` and `_`: base64 as in URLs.
        match page["metadata"]["continue"].as_str() {
            Some(next) if !next.is_empty() => next.clone_into(&mut token),
            _ => return Ok(()),
        }
    }
}
