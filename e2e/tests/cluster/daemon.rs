// SPDX-License-Identifier: Apache-2.0
//! The daemon dies while traffic flows.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wardline_e2e::cluster::LabNode;
use wardline_e2e::container::ContainerProcess;
use wardline_e2e::fence::Fences;
use wardline_e2e::namespace::{TestNamespace, with_namespace_alone};
use wardline_e2e::progress::wait_until;
use wardline_e2e::records::Record;
use wardline_e2e::traffic::{Protocol, Summary};
use wardline_e2e::{logging, wardline};

use crate::{WEB_TAKES_FRIENDS, lines, of_client};

/// Echoes are 10 ms apart here, so that a short gap shows.
const INTERVAL: Duration = Duration::from_millis(10);
/// Datagrams that a busy machine may lose on its own, of several thousand.
const NOISE: usize = 2;
/// Milliseconds after which TCP sends again, at the earliest.
const RETRANSMISSION: u64 = 200;

#[tokio::test]
async fn a_killed_daemon_changes_no_verdict_and_its_account_balances_afterwards() -> Result<()> {
    with_namespace_alone("killed", async |namespace: &TestNamespace| {
        let _logged = logging::on(&namespace.lab).await?;
        let fences = Fences::create(namespace).await?;
        namespace.server("web", "node1").await?;
        for (client, node) in [
            ("friend1", "node1"),
            ("friend2", "node2"),
            ("foe1", "node1"),
            ("foe2", "node2"),
        ] {
            namespace.client(client, node).await?;
        }
        fences.ready().await?;
        // Over UDP too: a lost datagram is not sent again, and so it shows.
        let both = WEB_TAKES_FRIENDS.replace(
            "[{protocol: TCP, port: 8080}]",
            "[{protocol: TCP, port: 8080}, {protocol: UDP, port: 8080}]",
        );
        namespace.apply(&both).await?;
        namespace.until_reach("fence-node2", "web", false).await?;

        let stream = namespace.hold("friend1", "web", Protocol::Tcp, INTERVAL).await?;
        let datagrams = namespace.hold("friend2", "web", Protocol::Udp, INTERVAL).await?;
        let mut ports = Vec::new();
        try_all(namespace, &mut ports).await?;
        let node = namespace.lab.node("node1")?;
        let killed = node.kill_daemon()?;
        // Whoever comes back first, the kubelet or these attempts: the verdicts are the same.
        for _ in 0..3 {
            try_all(namespace, &mut ports).await?;
        }
        wait_until("a new daemon on node1", Duration::from_mins(2), async || {
            Ok((node.daemon_pid()? != killed && node.metrics().await.is_ok()).then_some(()))
        })
        .await?;
        wardline::wait_ready(&namespace.lab).await?;
        try_all(namespace, &mut ports).await?;
        datagrams.until_echoes(100).await?;
        ports.extend([stream.local_port(), datagrams.local_port()].into_iter().flatten());
        check_flow("the stream", &stream.finish().await?, 0)?;
        check_flow("the datagrams", &datagrams.finish().await?, NOISE)?;

        let records = fences.settled_records().await?;
        check_once(&records, &ports)?;
        check_balance(node).await
    })
    .await
}

#[tokio::test]
async fn policies_that_change_while_the_daemon_is_dead_wait_for_it() -> Result<()> {
    with_namespace_alone("changed", async |namespace: &TestNamespace| {
        // On the other node than the test above, and on its plugin.
        namespace.server("web", "node2").await?;
        for (client, node) in [("was", "node1"), ("both", "node2"), ("will", "node1")] {
            namespace.client(client, node).await?;
        }
        namespace.ready().await?;
        namespace.apply(&admitting("[was, both]")).await?;
        namespace.until_reach("will", "web", false).await?;
        let was = namespace.hold("was", "web", Protocol::Udp, INTERVAL).await?;
        let both = namespace.hold("both", "web", Protocol::Udp, INTERVAL).await?;
        let stream = namespace.hold("both", "web", Protocol::Tcp, INTERVAL).await?;
        let client = namespace.pods().get("both").await.context("failed to get Pod both")?;
        let client = ContainerProcess::of(&client)?;
        let sent_again = client.retransmissions()?;

        let node = namespace.lab.node("node2")?;
        // The kubelet starts it again at once the first time, and after a pause of ten seconds the second.
        let first = node.kill_daemon()?;
        let what = "the daemon of node2 to be started again";
        let killed = wait_until(what, Duration::from_mins(2), async || {
            Ok(node.daemon_pid().ok().filter(|pid| *pid != first))
        })
        .await?;
        node.kill_daemon()?;
        namespace.apply(&admitting("[both, will]")).await?;
        let mut tried = 0;
        // For as long as it is away, and that is known only when it is still away after the attempt.
        while node.daemon_pid().is_err() {
            let echoes = was.echoes();
            let attempt = namespace.attempt("will", "web", Protocol::Tcp).await?;
            if node.daemon_pid().is_err() {
                ensure!(attempt.timed_out(), "admitted before the daemon is back: {attempt:?}");
                ensure!(was.echoes() > echoes, "cut before the daemon is back");
                tried += 1;
            }
        }
        ensure!(tried > 0, "the daemon was not away for long enough to try anything");
        namespace.until_reach("will", "web", true).await?;
        was.until_stopped_beside(&both, 100).await?;
        ensure!(node.daemon_pid()? != killed, "the daemon of node2 was not killed");
        check_flow("the datagrams", &both.finish().await?, NOISE)?;
        let stream = stream.finish().await?;
        let sent_again = client.retransmissions()? - sent_again;
        check_flow("the stream", &stream, 0)?;
        // A machine with much to do may let an echo wait for as long, and TCP send again for as little.
        ensure!(
            stream.longest_gap_ms < RETRANSMISSION || sent_again == 0,
            "the stream lost a segment: {} ms between two echoes, {sent_again} segments were sent again",
            stream.longest_gap_ms
        );
        wardline::wait_ready(&namespace.lab).await
    })
    .await
}

fn admitting(clients: &str) -> String {
    WEB_TAKES_FRIENDS.replace("[friend1, friend2]", clients).replace(
        "[{protocol: TCP, port: 8080}]",
        "[{port: 8080}, {protocol: UDP, port: 8080}]",
    )
}

/// Each client once, the refused ones at the same time as the admitted.
async fn try_all(namespace: &TestNamespace, ports: &mut Vec<u16>) -> Result<()> {
    let attempt = |client| namespace.attempt(client, "web", Protocol::Tcp);
    let (near, far, foe1, foe2) =
        tokio::try_join!(attempt("friend1"), attempt("friend2"), attempt("foe1"), attempt("foe2"))?;
    for admitted in [near, far] {
        ensure!(admitted.ok, "an admitted client was refused: {admitted:?}");
        ports.push(admitted.local_port.context("failed to read the client's port")?);
    }
    for refused in [foe1, foe2] {
        ensure!(refused.timed_out(), "a client was not refused: {refused:?}");
    }
    Ok(())
}

pub(crate) fn check_flow(what: &str, fared: &Summary, noise: usize) -> Result<()> {
    ensure!(
        fared.missing.len() <= noise,
        "{what} lost {} of {}: {:?}",
        fared.missing.len(),
        fared.sent,
        fared.missing
    );
    ensure!(fared.twice.is_empty(), "{what} saw messages twice: {:?}", fared.twice);
    Ok(())
}

/// Every admitted connection has one record, before, while and after the daemon was away; no record is there twice.
fn check_once(records: &[Record], ports: &[u16]) -> Result<()> {
    let mut allowed: BTreeMap<u16, usize> = ports.iter().map(|port| (*port, 0)).collect();
    for record in records.iter().filter(|record| record.disposition == "allow") {
        let port = record.connection.src_port.context("an allow record has no port")?;
        *allowed.entry(port).or_default() += 1;
    }
    let wrong: Vec<_> = allowed.iter().filter(|(_, times)| **times != 1).collect();
    ensure!(
        wrong.is_empty(),
        "not one record each, by source port: {wrong:?}\n{}",
        lines(records)
    );
    for foe in ["foe1", "foe2"] {
        let denied = of_client(records, foe);
        ensure!(
            !denied.is_empty() && denied.iter().all(|record| record.disposition == "deny"),
            "{foe}: {denied:?}"
        );
    }
    let mut seen: Vec<String> = records
        .iter()
        .map(|record| format!("{} {:?}", record.node_name, record.seq))
        .collect();
    let all = seen.len();
    seen.sort();
    seen.dedup();
    ensure!(
        seen.len() == all,
        "a sequence number is there twice:\n{}",
        lines(records)
    );
    Ok(())
}

/// What asked for a record was written or told as lost, to the last one.
pub(crate) async fn check_balance(node: LabNode<'_>) -> Result<()> {
    wait_until("the account of node1 to balance", Duration::from_secs(30), async || {
        let metrics = node.metrics().await?;
        let sum = |name: &str| metrics.sum(name, &[]).unwrap_or(0.0);
        let imbalance = metrics.sum("wardline_log_imbalance", &[]);
        let (due, written) = (sum("wardline_log_due_total"), sum("wardline_log_written_total"));
        let told = written + sum("wardline_log_lost_total");
        ensure!((due - told).abs() < 0.5, "due {due}, written and lost {told}");
        ensure!(
            imbalance.is_none_or(|value| value.abs() < 0.5),
            "imbalance {imbalance:?}"
        );
        Ok(Some(()))
    })
    .await
}
