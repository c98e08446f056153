// SPDX-License-Identifier: Apache-2.0
//! What is asked of the API server, and through it of each daemon. One that does not answer holds up nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::{Client, Resource};
use serde_json::Value;
use wardline_crds::{Dataplane, DataplaneNode, NetworkLogging};

use super::figures::{self, Figures};
use super::pods;
use crate::cluster;
use crate::daemons::{self, Refused, is_forbidden, within};

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a daemon may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Daemons that are asked at a time.
const AT_A_TIME: usize = 32;
const WARDLINE: &str = "app.kubernetes.io/name in (wardline-node,wardline-operator)";
/// The operator's.
pub(super) const LEASE: &str = "wardline-operator";

/// An answer; or why whoever asks has no right to it.
pub(super) type Asked<T> = Result<T, String>;

/// All that a report is made of.
#[derive(Debug)]
pub(super) struct Seen {
    /// By the API server's clock.
    pub(super) now: Timestamp,
    pub(super) namespace: String,
    /// None for kinds that the API server does not know.
    pub(super) dataplanes: Option<Vec<Value>>,
    pub(super) loggings: Option<Vec<Value>>,
    pub(super) nodes: Option<Vec<Value>>,
    pub(super) cluster_nodes: Asked<Vec<Node>>,
    /// Of the operator and the daemons.
    pub(super) pods: Asked<Vec<Pod>>,
    pub(super) lease: Asked<Option<Lease>>,
    /// By node: what its daemon counts, or why it does not say so. None: it was not asked.
    pub(super) figures: Option<Asked<BTreeMap<String, Result<Figures, String>>>>,
}

pub(super) async fn look(client: &Client, namespace: &str, asks_daemons: bool) -> anyhow::Result<Seen> {
    let cluster_nodes = Api::<Node>::all(client.clone());
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let leases = Api::<Lease>::namespaced(client.clone(), namespace);
    let (everything, ours) = (ListParams::default(), ListParams::default().labels(WARDLINE));
    let (now, dataplanes, loggings, nodes, cluster_nodes, pods, lease) = tokio::join!(
        within(PATIENCE, cluster::clock(client)),
        objects::<Dataplane>(client),
        objects::<NetworkLogging>(client),
        objects::<DataplaneNode>(client),
        within(PATIENCE, cluster::pages(&cluster_nodes, &everything)),
        within(PATIENCE, cluster::pages(&pods, &ours)),
        within(PATIENCE, leases.get_opt(LEASE)),
    );
    let pods = unless_forbidden("pods", pods)?;
    let figures = match &pods {
        Ok(pods) if asks_daemons => Some(figures_of(client, pods).await),
        _ => None,
    };
    Ok(Seen {
        now: now.context("failed to reach the API server")?,
        namespace: namespace.to_owned(),
        dataplanes: dataplanes?,
        loggings: loggings?,
        nodes: nodes?,
        cluster_nodes: unless_forbidden("nodes", cluster_nodes)?,
        pods,
        lease: unless_forbidden("leases", lease)?,
        figures,
    })
}

async fn objects<K: Resource<DynamicType = ()>>(client: &Client) -> anyhow::Result<Option<Vec<Value>>> {
    let resource = ApiResource::erase::<K>(&());
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let plural = resource.plural;
    let listed = match within(PATIENCE, cluster::pages(&api, &ListParams::default())).await {
        Err(error)
            if error
                .downcast_ref::<Refused>()
                .is_some_and(|refused| refused.code == 404) =>
        {
            return Ok(None);
        }
        listed => listed.with_context(|| format!("failed to list {plural}"))?,
    };
    let values = listed.into_iter().map(serde_json::to_value).collect::<Result<_, _>>();
    values.map(Some).with_context(|| format!("failed to read {plural}"))
}

fn unless_forbidden<T>(what: &str, asked: anyhow::Result<T>) -> anyhow::Result<Asked<T>> {
    match asked {
        Err(error) if is_forbidden(&error) => Ok(Err(error.to_string())),
        asked => asked.map(Ok).with_context(|| format!("failed to read {what}")),
    }
}

/// Of the daemons that run.
async fn figures_of(client: &Client, pods: &[Pod]) -> Asked<BTreeMap<String, Result<Figures, String>>> {
    let running = pods.iter().filter(|pod| pods::is_daemon(pod) && pods::is_running(pod));
    let asked = running.filter_map(|pod| {
        let node = pod.spec.as_ref()?.node_name.clone()?;
        Some(async move { (node, daemons::metrics(client, pod, ANSWER).await) })
    });
    let answers: Vec<_> = futures::stream::iter(asked).buffer_unordered(AT_A_TIME).collect().await;
    let mut figures = BTreeMap::new();
    for (node, answer) in answers {
        let read = match answer {
            Err(error) if is_forbidden(&error) => return Err(error.to_string()),
            Err(error) => Err(format!("{error:#}")),
            Ok(text) => figures::parse(&text),
        };
        figures.insert(node, read);
    }
    Ok(figures)
}
