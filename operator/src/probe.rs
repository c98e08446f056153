// SPDX-License-Identifier: Apache-2.0
//! `wardline-operator probe`: what `helm test` runs in pods, to see that an installation works.
//!
//! ```text
//!   status                  Dataplane and DataplaneNodes say that all is well
//!   friend --- reach -----> serve     a NetworkPolicy admits it
//!   stranger - blocked -X-> serve     and nobody else
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use wardline_crds::{Dataplane, DataplaneNode};

use crate::args::{Peer, ProbeCommand};

/// How long one connection may take: a packet that is dropped is sent again after a second.
const ATTEMPT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);
/// How many connections in a row must be dropped.
const DROPPED: u32 = 3;

/// # Errors
/// When the installation is not as the command says.
pub(crate) async fn probe(command: &ProbeCommand) -> Result<()> {
    match command {
        ProbeCommand::Serve { port } => serve(*port).await,
        ProbeCommand::Reach { peer, wait } => reach(peer, Duration::from_secs(wait.timeout_seconds)).await,
        ProbeCommand::Blocked { peer } => blocked(peer).await,
        ProbeCommand::Status(wait) => status(Duration::from_secs(wait.timeout_seconds)).await,
    }
}

/// Accepts connections, and ends them.
async fn serve(port: u16) -> Result<()> {
    // Of either family, where there is IPv6.
    let listener = match TcpListener::bind(("::", port)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", port))
            .await
            .with_context(|| format!("failed to listen on port {port}"))?,
    };
    println!("listening on port {port}");
    loop {
        drop(listener.accept().await.context("failed to accept a connection")?);
    }
}

async fn connect(peer: &Peer) -> Result<()> {
    let connected = timeout(ATTEMPT, TcpStream::connect((peer.host.as_str(), peer.port))).await;
    connected.context("no answer")??;
    Ok(())
}

async fn reach(peer: &Peer, patience: Duration) -> Result<()> {
    let began = Instant::now();
    loop {
        match connect(peer).await {
            Ok(()) => {
                println!("connected to {}, as the policy admits", peer.host);
                return Ok(());
            }
            Err(error) if began.elapsed() >= patience => {
                bail!(
                    "failed to connect to {} within {} s: {error:#}",
                    peer.host,
                    patience.as_secs()
                );
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Denied packets are dropped: a connection that is refused has come through.
async fn blocked(peer: &Peer) -> Result<()> {
    for _ in 0..DROPPED {
        match timeout(ATTEMPT, TcpStream::connect((peer.host.as_str(), peer.port))).await {
            Err(_) => {}
            Ok(Ok(_)) => bail!(
                "connected to {}, which a policy denies: policies are not enforced",
                peer.host
            ),
            Ok(Err(error)) => bail!("failed to tell whether {} is denied: {error}", peer.host),
        }
    }
    println!("nothing came through to {}, as the policy denies it", peer.host);
    Ok(())
}

async fn status(patience: Duration) -> Result<()> {
    let client = Client::try_default().await.context("failed to find the API server")?;
    wait_until_well(client, patience).await
}

async fn wait_until_well(client: Client, patience: Duration) -> Result<()> {
    let dataplanes: Api<Dataplane> = Api::all(client.clone());
    let nodes: Api<DataplaneNode> = Api::all(client);
    let began = Instant::now();
    loop {
        match look(&dataplanes, &nodes).await {
            Ok(count) => {
                println!("Dataplane default is Ready; {count} nodes are Ready and Verified");
                return Ok(());
            }
            Err(error) if began.elapsed() >= patience => bail!("{error:#}, after {} s", patience.as_secs()),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// How many nodes are well.
///
/// # Errors
/// When not all is well, or the API server does not say.
async fn look(dataplanes: &Api<Dataplane>, nodes: &Api<DataplaneNode>) -> Result<usize> {
    let dataplane = dataplanes.get("default").await;
    let dataplane = dataplane.context("failed to get Dataplane default")?;
    let nodes = nodes.list(&ListParams::default()).await;
    let nodes = nodes.context("failed to list DataplaneNodes")?;
    is_well(&dataplane, &nodes.items)?;
    Ok(nodes.items.len())
}

/// # Errors
/// With the first that is not well, and why.
fn is_well(dataplane: &Dataplane, nodes: &[DataplaneNode]) -> Result<()> {
    let status = dataplane.status.clone().unwrap_or_default();
    ensure!(
        dataplane.metadata.generation == Some(status.observed_generation),
        "the operator has not looked at Dataplane default yet"
    );
    is_true("Dataplane default", &status.conditions, "Ready")?;
    let desired = usize::try_from(status.nodes.desired).unwrap_or_default();
    ensure!(
        nodes.len() >= desired,
        "{} of {desired} nodes have a DataplaneNode",
        nodes.len()
    );
    for node in nodes {
        let conditions = node
            .status
            .as_ref()
            .map(|status| status.conditions.as_slice())
            .unwrap_or_default();
        for wanted in ["Ready", "Verified"] {
            is_true(&format!("DataplaneNode {}", node.name_any()), conditions, wanted)?;
        }
    }
    Ok(())
}

fn is_true(whose: &str, conditions: &[Condition], wanted: &str) -> Result<()> {
    let condition = conditions.iter().find(|condition| condition.type_ == wanted);
    let condition = condition.with_context(|| format!("{whose} does not say whether it is {wanted}"))?;
    ensure!(
        condition.status == "True",
        "{whose} is not {wanted}: {}: {}",
        condition.reason,
        condition.message
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, Reply, list};

    fn conditions(all: &[(&str, &str)]) -> serde_json::Value {
        all.iter()
            .map(|(type_, status)| {
                json!({"type": type_, "status": status, "reason": "Because", "message": "it is",
                       "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect()
    }

    fn dataplane(observed: i64, desired: i32, ready: &str) -> Dataplane {
        serde_json::from_value(json!({
            "metadata": {"name": "default", "generation": 2}, "spec": {},
            "status": {"observedGeneration": observed, "version": "1", "nodes": {"desired": desired, "updated": 0, "ready": 0, "degraded": 0},
                       "conditions": conditions(&[("Ready", ready)])},
        }))
        .unwrap()
    }

    fn node(ready: &str, verified: &str) -> DataplaneNode {
        serde_json::from_value(json!({
            "metadata": {"name": "node1"}, "spec": {},
            "status": {"conditions": conditions(&[("Ready", ready), ("Verified", verified)])},
        }))
        .unwrap()
    }

    #[test]
    fn what_is_not_well_is_named() {
        for (dataplane, nodes, told) in [
            (dataplane(1, 1, "True"), vec![node("True", "True")], "has not looked"),
            (
                dataplane(2, 1, "False"),
                vec![node("True", "True")],
                "Dataplane default is not Ready: Because: it is",
            ),
            (dataplane(2, 2, "True"), vec![node("True", "True")], "1 of 2 nodes"),
            (
                dataplane(2, 1, "True"),
                vec![node("False", "True")],
                "DataplaneNode node1 is not Ready",
            ),
            (
                dataplane(2, 1, "True"),
                vec![node("True", "False")],
                "DataplaneNode node1 is not Verified",
            ),
        ] {
            let error = is_well(&dataplane, &nodes).unwrap_err().to_string();
            assert!(error.contains(told), "{told}: {error}");
        }
        is_well(&dataplane(2, 1, "True"), &[node("True", "True")]).unwrap();
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_for_a_moment_is_waited_for() {
        let asked = AtomicUsize::new(0);
        let api = FakeApi::default()
            .reply("/dataplanes/default", move |_| {
                if asked.fetch_add(1, Ordering::Relaxed) == 0 {
                    return Reply::Reset;
                }
                Reply::Json(200, serde_json::to_value(dataplane(2, 1, "True")).unwrap())
            })
            .reply("/dataplanenodes", |_| {
                Reply::Json(200, list(vec![serde_json::to_value(node("True", "True")).unwrap()]))
            });
        wait_until_well(api.client(), Duration::from_mins(1)).await.unwrap();

        let api = FakeApi::default().reply("/dataplanes/default", |_| Reply::Reset);
        let error = wait_until_well(api.client(), Duration::ZERO).await.unwrap_err();
        assert!(
            error.to_string().contains("failed to get Dataplane default"),
            "{error:#}"
        );
    }

    #[tokio::test]
    async fn a_connection_that_comes_through_or_is_refused_is_not_blocked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Peer {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
        };
        reach(&peer, Duration::ZERO).await.unwrap();
        let error = blocked(&peer).await.unwrap_err().to_string();
        assert!(error.contains("not enforced"), "{error}");
        drop(listener);
        assert!(reach(&peer, Duration::ZERO).await.is_err());
        let error = blocked(&peer).await.unwrap_err().to_string();
        assert!(error.contains("failed to tell"), "{error}");
    }
}
