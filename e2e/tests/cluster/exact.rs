// SPDX-License-Identifier: Apache-2.0
//! Outcomes, and exactly the records that should be there.

use anyhow::{Result, ensure};
use time::OffsetDateTime;
use wardline_e2e::fence::Fences;
use wardline_e2e::logging;
use wardline_e2e::namespace::{PORT, TestNamespace, with_namespace};
use wardline_e2e::records::{PolicyRef, Record, Side};
use wardline_e2e::traffic::{Attempt, Protocol};

use crate::{WEB_TAKES_FRIENDS, lines, of_client};

/// What a client does in [`admitted_and_refused_clients_leave_exactly_their_records`].
struct Row {
    /// The pod's name.
    client: &'static str,
    /// The StatefulSet that it belongs to, if any.
    set: Option<&'static str>,
    node: &'static str,
    protocol: Protocol,
    admitted: bool,
}

/// The server, the pod of the StatefulSet `web`.
const WEB: &str = "web-0";

/// Both outcomes, within a node and over two, and a protocol that no rule names.
const ROWS: [Row; 5] = [
    Row {
        client: "friend1",
        set: None,
        node: "node1",
        protocol: Protocol::Tcp,
        admitted: true,
    },
    Row {
        client: "friend2-0",
        set: Some("friend2"),
        node: "node2",
        protocol: Protocol::Tcp,
        admitted: true,
    },
    Row {
        client: "foe1",
        set: None,
        node: "node1",
        protocol: Protocol::Tcp,
        admitted: false,
    },
    Row {
        client: "foe2",
        set: None,
        node: "node2",
        protocol: Protocol::Tcp,
        admitted: false,
    },
    Row {
        client: "foe3",
        set: None,
        node: "node2",
        protocol: Protocol::Udp,
        admitted: false,
    },
];

#[tokio::test]
async fn admitted_and_refused_clients_leave_exactly_their_records() -> Result<()> {
    with_namespace("exact", async |namespace: &TestNamespace| {
        let _logged = logging::on(&namespace.lab).await?;
        let fences = Fences::create(namespace).await?;
        namespace.stateful_server("web", "node1").await?;
        for row in &ROWS {
            match row.set {
                Some(set) => namespace.stateful_server(set, row.node).await?,
                None => namespace.client(row.client, row.node).await?,
            }
        }
        fences.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.until_reach("fence-node2", WEB, false).await?;

        let start = OffsetDateTime::now_utc();
        let mut attempts = Vec::new();
        for row in &ROWS {
            let attempt = namespace.attempt(row.client, WEB, row.protocol).await?;
            ensure!(attempt.ok == row.admitted, "{}: {attempt:?}", row.client);
            ensure!(
                row.admitted || attempt.timed_out(),
                "{} was not refused by silence: {attempt:?}",
                row.client
            );
            attempts.push(attempt);
        }
        let end = OffsetDateTime::now_utc();

        let records = joined(fences.settled_records().await?);
        for (row, attempt) in ROWS.iter().zip(&attempts) {
            check_row(namespace, row, attempt, &records, (start, end)).await?;
        }
        ensure!(
            records.len() == ROWS.len(),
            "there are records of nothing that happened:\n{}",
            lines(&records)
        );
        Ok(())
    })
    .await
}

/// Denies of one attempt as one record: aggregates end with their generation, so an attempt that meets that end stands
/// in two lines (docs/decisions/0007-deny-aggregation-by-generation.md).
fn joined(records: Vec<Record>) -> Vec<Record> {
    let mut joined: Vec<Record> = Vec::new();
    for record in records {
        let same = |other: &&mut Record| {
            let of_one = |r: &Record| (r.disposition.clone(), r.connection.clone(), r.isolated_by.clone());
            record.disposition == "deny" && of_one(other) == of_one(&record)
        };
        match joined.iter_mut().find(same) {
            Some(other) => {
                other.count += record.count;
                other.timestamp = other.timestamp.min(record.timestamp);
                other.last_timestamp = other.last_timestamp.max(record.last_timestamp);
            }
            None => joined.push(record),
        }
    }
    joined
}

/// One record of the row's client, each field of it as docs/events.md says.
async fn check_row(
    namespace: &TestNamespace,
    row: &Row,
    attempt: &Attempt,
    records: &[Record],
    (start, end): (OffsetDateTime, OffsetDateTime),
) -> Result<()> {
    let found = of_client(records, row.client);
    ensure!(
        found.len() == 1,
        "{} has {} records:\n{}",
        row.client,
        found.len(),
        lines(records)
    );
    let record = found[0];
    let connection = &record.connection;
    let (source, destination) = (namespace.ip(row.client).await?, namespace.ip(WEB).await?);
    ensure!(
        connection.src_ip.as_deref() == Some(source.to_string().as_str()),
        "src_ip: {}",
        record.line
    );
    ensure!(
        connection.dest_ip.as_deref() == Some(destination.to_string().as_str()),
        "dest_ip: {}",
        record.line
    );
    ensure!(connection.dest_port == Some(PORT), "dest_port: {}", record.line);
    // A client whose SYN is dropped never learns its port from the kernel.
    ensure!(
        attempt.local_port.is_none_or(|port| connection.src_port == Some(port)),
        "src_port: {}",
        record.line
    );
    let protocol = if row.protocol == Protocol::Tcp { "tcp" } else { "udp" };
    ensure!(
        connection.protocol == Some(protocol.into()),
        "protocol: {}",
        record.line
    );
    ensure!(connection.direction == "ingress", "direction: {}", record.line);
    // A verdict falls where the isolated pod is, wherever the client is.
    ensure!(record.node_name == "node1", "node_name: {}", record.line);
    ensure!(
        record.src.as_ref() == Some(&pod(namespace, row.client, row.set)),
        "src: {}",
        record.line
    );
    ensure!(
        record.dest.as_ref() == Some(&pod(namespace, WEB, Some("web"))),
        "dest: {}",
        record.line
    );
    ensure!(
        (start..=end).contains(&record.timestamp),
        "timestamp: {} {start} {end}",
        record.line
    );
    let last = record.last_timestamp.unwrap_or(record.timestamp);
    ensure!(
        last >= record.timestamp && last <= end,
        "last_timestamp: {} {end}",
        record.line
    );
    check_verdict(namespace, row, record)
}

fn check_verdict(namespace: &TestNamespace, row: &Row, record: &Record) -> Result<()> {
    let policy = |rules: Vec<u32>| PolicyRef {
        kind: "NetworkPolicy".to_owned(),
        namespace: Some(namespace.name.clone()),
        name: "web-takes-friends".to_owned(),
        generation: Some(1),
        rules,
    };
    if row.admitted {
        ensure!(record.disposition == "allow", "disposition: {}", record.line);
        ensure!(record.policies == [policy(vec![0])], "policies: {}", record.line);
        ensure!(record.isolated_by.is_empty(), "isolated_by: {}", record.line);
        ensure!(record.count == 1, "count: {}", record.line);
    } else {
        ensure!(record.disposition == "deny", "disposition: {}", record.line);
        ensure!(
            record.reason.as_deref() == Some("default-deny"),
            "reason: {}",
            record.line
        );
        ensure!(record.policies.is_empty(), "policies: {}", record.line);
        ensure!(
            record.isolated_by == [policy(Vec::new())],
            "isolated_by: {}",
            record.line
        );
        // One datagram is one packet; a SYN is sent again each second, and the client gives up after two.
        let counts = if row.protocol == Protocol::Udp { 1..=1 } else { 2..=3 };
        ensure!(counts.contains(&record.count), "count: {}", record.line);
    }
    Ok(())
}

/// A pod, and the StatefulSet that it belongs to; a pod on its own has no workload.
fn pod(namespace: &TestNamespace, name: &str, set: Option<&str>) -> Side {
    Side {
        pod_name: Some(name.to_owned()),
        pod_namespace: Some(namespace.name.clone()),
        namespace: Some(namespace.name.clone()),
        workload_kind: set.map(|_| "StatefulSet".to_owned()),
        workload_name: set.map(str::to_owned),
        ..Side::default()
    }
}

#[tokio::test]
async fn without_a_policy_everything_passes_and_nothing_is_logged() -> Result<()> {
    with_namespace("open", async |namespace: &TestNamespace| {
        let _logged = logging::on(&namespace.lab).await?;
        let fences = Fences::create(namespace).await?;
        namespace.server("web", "node1").await?;
        namespace.client("near", "node1").await?;
        namespace.client("far", "node2").await?;
        fences.ready().await?;
        for client in ["near", "far"] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let attempt = namespace.attempt(client, "web", protocol).await?;
                ensure!(attempt.ok, "{client} over {protocol:?}: {attempt:?}");
            }
        }
        let records = fences.settled_records().await?;
        ensure!(
            records.is_empty(),
            "there are records without a policy:\n{}",
            lines(&records)
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn with_logging_off_policies_are_enforced_and_nothing_is_logged() -> Result<()> {
    with_namespace("silent", async |namespace: &TestNamespace| {
        let _switched = logging::alone().await;
        logging::set(&namespace.lab, true).await?;
        let fences = Fences::create(namespace).await?;
        namespace.server("web", "node1").await?;
        namespace.client("friend1", "node1").await?;
        namespace.client("foe2", "node2").await?;
        fences.ready().await?;
        logging::set(&namespace.lab, false).await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.until_reach("foe2", "web", false).await?;
        let admitted = namespace.attempt("friend1", "web", Protocol::Tcp).await?;
        ensure!(admitted.ok, "{admitted:?}");
        let refused = namespace.attempt("foe2", "web", Protocol::Tcp).await?;
        ensure!(refused.timed_out(), "{refused:?}");
        // Markers need the log: what was refused before it was on must not appear even then.
        logging::set(&namespace.lab, true).await?;
        let records = fences.settled_records().await?;
        ensure!(
            records.is_empty(),
            "there are records from while logging was off:\n{}",
            lines(&records)
        );
        Ok(())
    })
    .await
}
