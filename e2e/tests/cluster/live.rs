// SPDX-License-Identifier: Apache-2.0
//! Policies that come, change and go while connections are open.

use std::time::Duration;

use anyhow::{Result, ensure};
use wardline_e2e::fence::Fences;
use wardline_e2e::logging;
use wardline_e2e::namespace::{TestNamespace, with_namespace};
use wardline_e2e::traffic::Protocol;

use crate::{WEB_TAKES_FRIENDS, lines, of_client};

/// Often enough for a stop to show soon.
const INTERVAL: Duration = Duration::from_millis(100);
/// Echoes of another connection during which one that says nothing counts as stopped: three seconds of them.
const QUIET: usize = 30;

async fn web_and_clients(namespace: &TestNamespace, clients: &[(&str, &str)]) -> Result<()> {
    namespace.server("web", "node1").await?;
    for (client, node) in clients {
        namespace.client(client, node).await?;
    }
    Ok(())
}

#[tokio::test]
async fn traffic_flows_when_the_policy_is_deleted() -> Result<()> {
    with_namespace("deleted", async |namespace: &TestNamespace| {
        web_and_clients(namespace, &[("foe1", "node1"), ("foe2", "node2")]).await?;
        namespace.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        for client in ["foe1", "foe2"] {
            namespace.until_reach(client, "web", false).await?;
        }
        namespace
            .lab
            .delete(
                "networking.k8s.io/v1",
                "NetworkPolicy",
                &namespace.name,
                "web-takes-friends",
            )
            .await?;
        for client in ["foe1", "foe2"] {
            namespace.until_reach(client, "web", true).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_open_connection_stops_when_an_edited_policy_no_longer_admits_it() -> Result<()> {
    with_namespace("edited", async |namespace: &TestNamespace| {
        let _logged = logging::on(&namespace.lab).await?;
        let fences = Fences::create(namespace).await?;
        web_and_clients(namespace, &[("friend1", "node1"), ("friend2", "node2")]).await?;
        fences.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.until_reach("fence-node2", "web", false).await?;
        let dropped = namespace.hold("friend1", "web", Protocol::Tcp, INTERVAL).await?;
        let kept = namespace.hold("friend2", "web", Protocol::Tcp, INTERVAL).await?;
        dropped.until_echoes(3).await?;

        namespace
            .apply(&WEB_TAKES_FRIENDS.replace("[friend1, friend2]", "[friend2]"))
            .await?;
        dropped.until_stopped_beside(&kept, QUIET).await?;

        let port = dropped.local_port();
        let fared = kept.finish().await?;
        ensure!(
            fared.missing.is_empty() && fared.twice.is_empty(),
            "the other connection did not live on: {fared:?}"
        );
        let records = fences.settled_records().await?;
        let denied = of_client(&records, "friend1")
            .into_iter()
            .any(|record| record.disposition == "deny" && record.connection.src_port == port);
        ensure!(
            denied,
            "no record says that the open connection was denied:\n{}",
            lines(&records)
        );
        let others = of_client(&records, "friend2");
        ensure!(
            others.iter().all(|record| record.disposition == "allow"),
            "friend2 was denied:\n{}",
            lines(&records)
        );
        ensure!(
            others.len() == 1,
            "one connection is one allow record:\n{}",
            lines(&records)
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_connection_older_than_the_first_policy_lives_on_if_it_is_admitted() -> Result<()> {
    with_namespace("older", async |namespace: &TestNamespace| {
        web_and_clients(
            namespace,
            &[("friend1", "node1"), ("friend2", "node2"), ("foe2", "node2")],
        )
        .await?;
        namespace.ready().await?;
        let near = namespace.hold("friend1", "web", Protocol::Tcp, INTERVAL).await?;
        let far = namespace.hold("friend2", "web", Protocol::Tcp, INTERVAL).await?;
        let foe = namespace.hold("foe2", "web", Protocol::Tcp, INTERVAL).await?;
        for held in [&near, &far, &foe] {
            held.until_echoes(3).await?;
        }
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        foe.until_stopped_beside(&far, QUIET).await?;
        near.until_echoes(QUIET).await?;
        for held in [near, far] {
            let fared = held.finish().await?;
            ensure!(
                fared.missing.is_empty() && fared.twice.is_empty(),
                "an older connection was disturbed: {fared:?}"
            );
        }
        Ok(())
    })
    .await
}
