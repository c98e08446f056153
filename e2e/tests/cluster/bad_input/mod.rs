// SPDX-License-Identifier: Apache-2.0
//! Input that cannot be used: it changes nothing that is in force, it is named wherever one would look, and everything
//! else goes on.

mod kinds;
mod limits;
mod policies;
mod singletons;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams};
use serde_json::Value;
use wardline_e2e::cluster::{Lab, LabNode};
use wardline_e2e::operators;
use wardline_e2e::progress::wait_until;

/// A DataplaneNode is written at most every ten seconds, and the operator looks at most once a second.
const PATIENCE: Duration = Duration::from_mins(1);

/// An object that cannot be used, as it is named.
#[derive(Debug, Clone, Copy)]
struct Bad<'a> {
    kind: &'a str,
    /// Empty for cluster-scoped kinds.
    namespace: &'a str,
    name: &'a str,
}

impl Bad<'_> {
    fn singleton(kind: &'static str) -> Bad<'static> {
        Bad {
            kind,
            namespace: "",
            name: "default",
        }
    }

    /// What the node says is wrong with it; None where the node names it not.
    async fn named_by(&self, node: LabNode<'_>, lab: &Lab) -> Result<Option<String>> {
        let status = node_status(lab, node).await?;
        let named = status["invalidObjects"].as_array().cloned().unwrap_or_default();
        let is_it =
            |one: &&Value| one["kind"] == self.kind && one["namespace"] == self.namespace && one["name"] == self.name;
        Ok(named
            .iter()
            .find(is_it)
            .map(|one| one["message"].as_str().unwrap_or_default().to_owned()))
    }

    /// Waits until both nodes name it, with `cause` in what they say.
    async fn until_named(&self, lab: &Lab, cause: &str) -> Result<()> {
        for node in lab.nodes() {
            let what = format!("DataplaneNode {} to name {self:?}: {cause}", node.spec.name);
            wait_until(&what, PATIENCE, async || {
                let message = self.named_by(node, lab).await?;
                ensure!(
                    message.as_ref().is_none_or(|message| message.contains(cause)),
                    "it says {message:?}"
                );
                Ok(message.map(drop))
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until neither node names it.
    async fn until_forgotten(&self, lab: &Lab) -> Result<()> {
        for node in lab.nodes() {
            let what = format!("DataplaneNode {} not to name {self:?}", node.spec.name);
            wait_until(&what, PATIENCE, async || {
                Ok(self.named_by(node, lab).await?.is_none().then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Waits for an Event on it that is not older than `since`, with `cause` in its note, and returns it.
    async fn until_event(&self, lab: &Lab, reason: &str, cause: &str, since: Timestamp) -> Result<Event> {
        wait_until(&format!("an Event {reason} on {self:?}"), PATIENCE, async || {
            let mut events = self.events(lab, reason, since).await?;
            events.retain(|event| event.note.as_deref().unwrap_or_default().contains(cause));
            Ok(events.pop())
        })
        .await
    }

    async fn events(&self, lab: &Lab, reason: &str, since: Timestamp) -> Result<Vec<Event>> {
        let namespace = if self.namespace.is_empty() {
            "default"
        } else {
            self.namespace
        };
        let events: Api<Event> = Api::namespaced(lab.client().clone(), namespace);
        let listed = events.list(&ListParams::default()).await;
        let mut items = listed
            .with_context(|| format!("failed to list Events of {namespace}"))?
            .items;
        items.retain(|event| {
            let regards = event.regarding.as_ref().is_some_and(|object| {
                object.kind.as_deref() == Some(self.kind) && object.name.as_deref() == Some(self.name)
            });
            let again = event.series.as_ref().map(|series| series.last_observed_time.0);
            let time = again.or(event.event_time.as_ref().map(|time| time.0));
            regards && event.reason.as_deref() == Some(reason) && time.is_some_and(|time| time >= since)
        });
        Ok(items)
    }
}

async fn node_status(lab: &Lab, node: LabNode<'_>) -> Result<Value> {
    let object = lab
        .get("wardline.io/v1alpha1", "DataplaneNode", "", node.spec.name)
        .await?;
    Ok(object.data["status"].clone())
}

/// A condition's status, reason and message.
pub(crate) fn condition<'a>(status: &'a Value, type_: &str) -> [&'a str; 3] {
    let mut all = status["conditions"].as_array().into_iter().flatten();
    let found = all.find(|one| one["type"] == type_).unwrap_or(&Value::Null);
    ["status", "reason", "message"].map(|field| found[field].as_str().unwrap_or_default())
}

/// Waits until both daemons and the operator count that many objects of a kind that cannot be used.
async fn until_counted(lab: &Lab, kind: &str, expected: usize) -> Result<()> {
    let label = format!("kind=\"{kind}\"");
    let what = format!("{expected} invalid {kind} in the metrics");
    wait_until(&what, PATIENCE, async || {
        for node in lab.nodes() {
            let counted = node.metrics().await?.sum("wardline_invalid_objects", &[&label]);
            check_count(node.spec.name, counted.unwrap_or(0.0), expected)?;
        }
        let metrics = operators::leader(lab).await?.metrics().await?;
        let counted = metrics.sum("wardline_operator_invalid_objects", &[&label]);
        check_count("the operator", counted.unwrap_or(0.0), expected)?;
        Ok(Some(()))
    })
    .await
}

#[allow(clippy::cast_precision_loss, reason = "a handful of objects")]
fn check_count(who: &str, counted: f64, expected: usize) -> Result<()> {
    ensure!((counted - expected as f64).abs() < 0.5, "{who} counts {counted}");
    Ok(())
}

/// kube's client, for servers that are not the API server.
fn plain_client(url: &str) -> Result<Client> {
    let config = kube::Config::new(url.parse().with_context(|| format!("failed to parse {url}"))?);
    Client::try_from(config).with_context(|| format!("failed to build a client for {url}"))
}
