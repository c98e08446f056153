// SPDX-License-Identifier: Apache-2.0
//! Pods that come while no daemon is on their node: they wait, and nothing is left half done.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::json;
use wardline_e2e::cluster::LabNode;
use wardline_e2e::dataplane;
use wardline_e2e::ipam::Ipam;
use wardline_e2e::namespace::{PORT, TestNamespace, with_namespace_alone};
use wardline_e2e::progress::wait_until;

use crate::first_packet::{WEB_TAKES_FRIENDS_BY_ROLE, admitted, client, create, ended, server};

const PATIENCE: Duration = Duration::from_mins(1);
/// Of the node that loses its daemon.
const NODE: &str = "node1";
/// What kubelet's event must name: who is away, and where it was looked for.
const NAMED: &str = "failed to reach wardline-node at /run/wardline/cni.sock";

/// What pods take of a node: the names of their interfaces, and their addresses.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    interfaces: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Taken {
    fn on(namespace: &TestNamespace, node: LabNode<'_>) -> Result<Self> {
        let links = node.run(&["ip", "-oneline", "link", "show", "type", "veth"])?;
        let name = |line: &str| Some(line.split(": ").nth(1)?.to_owned());
        let ipam = Ipam::of(namespace.lab.layout(), node.spec);
        Ok(Self {
            interfaces: links.lines().filter_map(name).collect(),
            addresses: ipam.taken()?.into_keys().collect(),
        })
    }
}

#[tokio::test]
async fn without_the_daemon_pods_wait_and_nothing_is_half_done() -> Result<()> {
    with_namespace_alone("away", async |namespace: &TestNamespace| {
        namespace.apply(WEB_TAKES_FRIENDS_BY_ROLE).await?;
        create(namespace, "web", "web", NODE, &[server()]).await?;
        namespace.ready().await?;
        let web = SocketAddr::new(namespace.ip("web").await?, PORT);
        let elsewhere = json!({"daemon": {"nodeSelector": {"kubernetes.io/hostname": "node2"}}});
        let everywhere = json!({"daemon": {"nodeSelector": null}});
        dataplane::while_patched(&namespace.lab, &elsewhere, &everywhere, async || {
            pods_wait(namespace, web).await
        })
        .await?;
        // The daemon is back. They start by themselves, and their first packets are judged.
        for (name, expected) in [("friend", true), ("foe", false)] {
            let verdicts = admitted(&ended(namespace, name).await?)?;
            ensure!(
                verdicts.values().eq([&expected]),
                "{name} should be admitted: {expected}; {verdicts:?}"
            );
        }
        Ok(())
    })
    .await
}

async fn pods_wait(namespace: &TestNamespace, web: SocketAddr) -> Result<()> {
    let node = namespace.lab.node(NODE)?;
    wait_until("the daemon of node1 to go", PATIENCE, async || {
        Ok(node.daemon_pid().is_err().then_some(()))
    })
    .await?;
    let before = Taken::on(namespace, node)?;
    for name in ["friend", "foe"] {
        create(namespace, name, name, NODE, &[client("near", web)]).await?;
    }
    for name in ["friend", "foe"] {
        let what = format!("kubelet to have tried {name} twice, and said why it does not start");
        wait_until(&what, PATIENCE, async || {
            let failures = failures(namespace, name).await?;
            let named = failures.iter().all(|(message, _)| message.contains(NAMED));
            ensure!(named, "kubelet says {failures:?}");
            let times: i32 = failures.iter().map(|(_, times)| times).sum();
            Ok((times >= 2).then_some(()))
        })
        .await?;
        let pod = namespace.pods().get(name).await?;
        let status = pod.status.context("failed to read a Pod's status")?;
        let started = status.container_statuses.iter().flatten();
        let started: Vec<_> = started.filter(|one| one.started == Some(true)).collect();
        ensure!(
            status.phase.as_deref() == Some("Pending") && started.is_empty(),
            "{name} has started: {status:?}"
        );
    }
    // An attempt may be under way at any moment; each gives back what it took.
    wait_until("what the attempts took to be given back", PATIENCE, async || {
        let now = Taken::on(namespace, node)?;
        ensure!(now == before, "before {before:?}, now {now:?}");
        Ok(Some(()))
    })
    .await
}

/// Why kubelet could not start a pod, and how often.
async fn failures(namespace: &TestNamespace, pod: &str) -> Result<Vec<(String, i32)>> {
    let events: Api<Event> = Api::namespaced(namespace.lab.client().clone(), &namespace.name);
    let about = ListParams::default().fields(&format!("involvedObject.name={pod},reason=FailedCreatePodSandBox"));
    let listed = events.list(&about).await.context("failed to list Events")?.items;
    let failure = |event: Event| {
        let times = event.series.and_then(|series| series.count).or(event.count);
        (event.message.unwrap_or_default(), times.unwrap_or(1))
    };
    Ok(listed.into_iter().map(failure).collect())
}
