// SPDX-License-Identifier: Apache-2.0
//! An upgrade to a daemon whose maps have another layout, and back, under load and while policies are rewritten: nobody
//! notices, and the log has each verdict once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};
use wardline_e2e::cluster::Lab;
use wardline_e2e::dataplane;
use wardline_e2e::fence::Fences;
use wardline_e2e::images;
use wardline_e2e::layout::{NODES, OTHER_LAYOUT_IMAGE};
use wardline_e2e::logging;
use wardline_e2e::namespace::{TestNamespace, with_namespace_alone};
use wardline_e2e::progress::wait_until;
use wardline_e2e::records::Record;
use wardline_e2e::traffic::{Again, Held, Protocol};
use wardline_e2e::wardline::is_true;

use crate::rewritten::{more, put, spec};
use crate::{lines, of_client};

const PATIENCE: Duration = Duration::from_mins(3);
/// Between messages of a flow.
const INTERVAL: Duration = Duration::from_millis(5);
/// Between connections of a client, each from a port of its own: there are enough for three minutes.
const CONNECTIONS: Duration = Duration::from_millis(8);
/// Between changes of policies.
const CHANGES: Duration = Duration::from_millis(200);
const FRIENDS: [(&str, &str); 2] = [("friend1", "node1"), ("friend2", "node2")];
const FOES: [(&str, &str); 2] = [("foe1", "node1"), ("foe2", "node2")];
/// Answers come to the friends only because they asked.
const FRIENDS_TAKE_NOTHING: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends-take-nothing}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [friend1, friend2]}]}
  policyTypes: [Ingress]
";
/// A client's port is not used again before this has passed (`TIME_WAIT`); a long run comes to its first ones again.
const REST: time::Duration = time::Duration::seconds(50);
/// Answers that a busy machine, or the moment in which programs are replaced, may cost a flow that began in it.
const NOISE: u64 = 3;

/// What one of the friends does all the while.
struct Load {
    client: &'static str,
    connections: Again,
    datagrams: Again,
    held: [Held; 2],
}

impl Load {
    async fn start(namespace: &TestNamespace, client: &'static str) -> Result<Self> {
        let again = |protocol| namespace.again(client, "web", protocol, CONNECTIONS);
        let hold = |protocol| namespace.hold(client, "web", protocol, INTERVAL);
        Ok(Self {
            client,
            held: [hold(Protocol::Tcp).await?, hold(Protocol::Udp).await?],
            connections: again(Protocol::Tcp).await?,
            datagrams: again(Protocol::Udp).await?,
        })
    }

    /// Returns how many connections there were over TCP and over UDP, and how many answers were lost.
    async fn finish(self) -> Result<([u64; 2], u64)> {
        let (tcp, udp) = (self.connections.finish().await?, self.datagrams.finish().await?);
        ensure!(tcp.failed == 0, "{}: connections failed: {tcp:?}", self.client);
        let (mut lost, mut gap) = (udp.failed, 0);
        for flow in self.held {
            let fared = flow.finish().await?;
            gap = gap.max(fared.longest_gap_ms);
            ensure!(
                fared.twice.is_empty(),
                "a flow of {} was disturbed: {fared:?}",
                self.client
            );
            lost += fared.missing.len() as u64;
        }
        println!(
            "{}: {} connections, {} questions over UDP; {lost} answers lost, held flows waited {gap} ms at most",
            self.client, tcp.made, udp.made
        );
        // The held ones are connections too.
        Ok(([tcp.made + 1, udp.made + 1], lost))
    }
}

#[tokio::test]
async fn an_upgrade_to_another_layout_and_back_is_noticed_by_nobody() -> Result<()> {
    with_namespace_alone("upgrade", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        images::import_other_layout(lab.layout())?;
        let _logged = logging::on(lab).await?;
        let fences = Fences::create(namespace).await?;
        namespace.server("web", "node1").await?;
        for (client, node) in FRIENDS.iter().chain(&FOES) {
            namespace.client(client, node).await?;
        }
        fences.ready().await?;
        // Open before there is a policy, so that they know when they are refused.
        let mut foes = BTreeMap::new();
        for (client, _) in FOES {
            foes.insert(client, namespace.hold(client, "web", Protocol::Udp, INTERVAL).await?);
        }
        let policies: Api<NetworkPolicy> = Api::namespaced(lab.client().clone(), &namespace.name);
        namespace.apply(FRIENDS_TAKE_NOTHING).await?;
        put(&policies, "web", spec(0)).await?;
        for client in FRIENDS.map(|(client, _)| client) {
            namespace.until_reach(client, "web", true).await?;
        }
        let friends = [
            Load::start(namespace, "friend1").await?,
            Load::start(namespace, "friend2").await?,
        ];
        for foe in foes.values() {
            foe.until_stopped_beside(&friends[0].held[1], 200).await?;
        }
        let echoes: BTreeMap<_, _> = foes.iter().map(|(client, foe)| (*client, foe.echoes())).collect();

        tokio::select! {
            there_and_back = there_and_back(lab) => there_and_back?,
            rewritten = rewrite(&policies) => rewritten?,
        }

        let (mut connections, mut lost) = (BTreeMap::new(), 0);
        for load in friends {
            let client = load.client;
            let (made, missed) = load.finish().await?;
            connections.insert(client, made);
            lost += missed;
        }
        let mut refused = BTreeMap::new();
        for (client, foe) in foes {
            ensure!(foe.echoes() == echoes[client], "{client} was admitted");
            let sent = foe.finish().await?.sent;
            refused.insert(client, sent - echoes[client] as u64);
        }
        let records = fences.settled_records().await?;
        check_allows(&records, &connections)?;
        check_denies(&records, &refused, lost)?;
        ensure!(lost <= NOISE, "{lost} answers were lost");
        Ok(())
    })
    .await
}

/// To the other layout, and back.
async fn there_and_back(lab: &Lab) -> Result<()> {
    let (repository, tag) = OTHER_LAYOUT_IMAGE.split_once(':').context("the image has no tag")?;
    let image = json!({"daemon": {"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}}});
    let restore = json!({"daemon": {"image": null}});
    dataplane::while_patched(lab, &image, &restore, async || rolled_out(lab, "v2").await).await?;
    rolled_out(lab, "v1").await
}

/// Waits until every node is well with what is wanted, and has the maps of that layout alone.
async fn rolled_out(lab: &Lab, layout: &str) -> Result<()> {
    wait_until(
        &format!("every node to have maps of layout {layout}"),
        PATIENCE,
        async || {
            let dataplane = lab.get("wardline.io/v1alpha1", "Dataplane", "", "default").await?;
            let status: &Value = &dataplane.data["status"];
            let is_observed = status["observedGeneration"].as_i64() == dataplane.metadata.generation;
            ensure!(
                status["rollout"]["failed"].is_null(),
                "the rollout failed: {}",
                status["rollout"]
            );
            if !is_observed || !is_true(status, "Ready") {
                return Ok(None);
            }
            for node in &NODES {
                let layouts = lab.node(node.name)?.run(&["busybox", "ls", "/sys/fs/bpf/wardline"])?;
                if layouts.trim() != layout {
                    bail!("{} has {layouts:?}", node.name);
                }
            }
            Ok(Some(()))
        },
    )
    .await
}

/// Policies that say the same of all clients, in other words each time; never ends by itself.
async fn rewrite(policies: &Api<NetworkPolicy>) -> Result<()> {
    loop {
        put(policies, "web", spec(1)).await?;
        tokio::time::sleep(CHANGES).await;
        put(policies, "more", more()).await?;
        tokio::time::sleep(CHANGES).await;
        put(policies, "web", spec(0)).await?;
        tokio::time::sleep(CHANGES).await;
        policies.delete("more", &DeleteParams::default()).await?;
        tokio::time::sleep(CHANGES).await;
    }
}

/// Each connection stands in the log, and stands there once.
fn check_allows(records: &[Record], connections: &BTreeMap<&str, [u64; 2]>) -> Result<()> {
    for (client, made) in connections {
        for (protocol, made) in ["tcp", "udp"].into_iter().zip(made) {
            let is_allow = |record: &&&Record| {
                record.disposition == "allow" && record.connection.protocol == Some(protocol.into())
            };
            let of_client = of_client(records, client);
            let allows: Vec<_> = of_client.iter().filter(is_allow).collect();
            let mut by_port: BTreeMap<_, Vec<&Record>> = BTreeMap::new();
            for record in &allows {
                by_port.entry(record.connection.src_port).or_default().push(record);
            }
            let is_told_again = |pair: &&[&Record]| (pair[1].timestamp - pair[0].timestamp).abs() < REST;
            let twice: Vec<_> = by_port
                .values()
                .flat_map(|records| records.windows(2).filter(is_told_again))
                .map(|pair| [&pair[0].line, &pair[1].line])
                .collect();
            println!(
                "{client}: {} records of {made} connections over {protocol}",
                allows.len()
            );
            // One more attempt told that the client was admitted; over TCP.
            let made = made + u64::from(protocol == "tcp");
            ensure!(twice.is_empty(), "{client} over {protocol}: {twice:#?}");
            ensure!(
                allows.len() as u64 == made,
                "{client} over {protocol}: {} of {made} records",
                allows.len()
            );
        }
    }
    Ok(())
}

/// Each datagram of the foes was denied and counted; of the friends nothing was, but answers that were lost.
fn check_denies(records: &[Record], refused: &BTreeMap<&str, u64>, lost: u64) -> Result<()> {
    let denied = |records: &[&Record]| -> u64 {
        let denies = records.iter().filter(|record| record.disposition == "deny");
        denies.map(|record| record.count).sum()
    };
    for (client, sent) in refused {
        let counted = denied(&of_client(records, client));
        println!("{client}: {counted} denies of {sent} datagrams");
        ensure!(counted == *sent, "{client}: {counted} denies of {sent} datagrams");
    }
    for (client, _) in FRIENDS {
        let of_client: Vec<_> = of_client(records, client);
        ensure!(denied(&of_client) == 0, "{client} was denied:\n{}", lines(records));
    }
    let answers: Vec<_> = records
        .iter()
        .filter(|record| {
            let to = record.dest.as_ref().and_then(|side| side.pod_name.as_deref());
            record.disposition == "deny" && FRIENDS.iter().any(|(client, _)| to == Some(client))
        })
        .collect();
    ensure!(denied(&answers) <= lost, "answers were denied: {answers:#?}");
    Ok(())
}
