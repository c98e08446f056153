// SPDX-License-Identifier: Apache-2.0
//! `wardline observe` from a laptop, and first denies as Events.

use std::collections::BTreeSet;
use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use wardline_cli::Outcome;
use wardline_e2e::logging;
use wardline_e2e::namespace::{TestNamespace, with_namespace, with_namespace_alone};
use wardline_e2e::progress::wait_until;
use wardline_e2e::records::Record;
use wardline_e2e::traffic::Protocol;

use crate::WEB_TAKES_FRIENDS;
use crate::wardline::{Screen, command, run};

const PATIENCE: Duration = Duration::from_mins(1);
const CLIENTS: [(&str, &str); 4] = [
    ("friend1", "node1"),
    ("friend2", "node2"),
    ("foe1", "node1"),
    ("foe2", "node2"),
];
const CLIENTS_MAY_ONLY_SEND: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients-may-only-send}
spec:
  podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}
  policyTypes: [Egress]
  egress: [{}]
";

/// The lines that are shown, but for those that tell of losses: whose they were nobody knows, so that they fit all.
fn verdicts(shown: &[u8]) -> Vec<String> {
    let is_verdict = |line: &&str| !line.contains("\"disposition\":\"lost\"");
    let text = String::from_utf8_lossy(shown);
    text.lines().filter(is_verdict).map(str::to_owned).collect()
}

/// `wardline observe`, which runs to its end.
async fn observe(namespace: &TestNamespace, arguments: &str) -> Result<(Vec<String>, Outcome)> {
    let (text, outcome) = run(&namespace.lab, &format!("observe {arguments}")).await?;
    Ok((verdicts(text.as_bytes()), outcome))
}

/// `wardline observe --follow`, as a person watches it.
struct Watched {
    screen: Screen,
    thread: JoinHandle<Result<Outcome>>,
}

impl Watched {
    fn start(namespace: &TestNamespace, arguments: &str) -> Result<Self> {
        let cli = command(&namespace.lab, &format!("observe {arguments}"))?;
        let screen = Screen::default();
        let mut out = screen.clone();
        let thread = std::thread::spawn(move || wardline_cli::run(&cli, &mut io::empty(), &mut out));
        Ok(Self { screen, thread })
    }

    fn lines(&self) -> Vec<String> {
        let shown = self.screen.shown.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts(&shown)
    }

    /// Waits until each record of the namespace is shown, once.
    async fn until_all(&self, namespace: &TestNamespace, enough: impl Fn(&[Record]) -> bool) -> Result<Vec<Record>> {
        wait_until("all records to be shown", PATIENCE, async || {
            let records = namespace.records()?;
            let written: BTreeSet<&str> = records.iter().map(|record| record.line.as_str()).collect();
            let shown = self.lines();
            let shown_once: BTreeSet<&str> = shown.iter().map(String::as_str).collect();
            ensure!(
                shown_once.len() == shown.len(),
                "a record is shown twice:\n{}",
                shown.join("\n")
            );
            Ok((shown_once == written && enough(&records)).then(|| records.clone()))
        })
        .await
    }
}

/// Processes on the machine that `wardline observe` started in the daemons' containers.
fn observing() -> Result<usize> {
    let processes = std::fs::read_dir("/proc").context("failed to list processes")?;
    let is_observing = |entry: &std::fs::DirEntry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        command.starts_with(b"/wardline-node\0observe\0")
    };
    Ok(processes.filter_map(Result::ok).filter(is_observing).count())
}

async fn try_all(namespace: &TestNamespace) -> Result<()> {
    for (client, _) in CLIENTS {
        let attempt = namespace.attempt(client, "web", Protocol::Tcp).await?;
        ensure!(attempt.ok == client.starts_with("friend"), "{client}: {attempt:?}");
    }
    Ok(())
}

#[tokio::test]
async fn all_nodes_are_shown_merged_and_each_record_once_also_when_a_daemon_dies() -> Result<()> {
    with_namespace_alone("observe", async |namespace: &TestNamespace| {
        let _logged = logging::on(&namespace.lab).await?;
        namespace.server("web", "node1").await?;
        for (client, node) in CLIENTS {
            namespace.client(client, node).await?;
        }
        namespace.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.apply(CLIENTS_MAY_ONLY_SEND).await?;
        namespace.until_reach("foe2", "web", false).await?;
        let filter = format!("-n {} -o json", namespace.name);
        let watched = Watched::start(namespace, &format!("-f --last 10000 {filter}"))?;
        try_all(namespace).await?;
        let both = |records: &[Record]| {
            let of = |node: &str, disposition: &str| {
                let is = |r: &&Record| r.node_name == node && r.disposition == disposition;
                records.iter().filter(is).count()
            };
            of("node1", "allow") >= 3 && of("node2", "allow") >= 2 && of("node1", "deny") >= 2
        };
        let before = watched.until_all(namespace, both).await?.len();

        let node = namespace.lab.node("node1")?;
        let killed = node.kill_daemon()?;
        try_all(namespace).await?;
        wait_until("a new daemon on node1", Duration::from_mins(2), async || {
            Ok((node.daemon_pid()? != killed && node.metrics().await.is_ok()).then_some(()))
        })
        .await?;
        // Denies of the second time come with their generation, after what was allowed.
        let all = |records: &[Record]| {
            let denies = records.iter().filter(|record| record.disposition == "deny");
            records.len() >= before + 6 && denies.count() >= 4
        };
        let after = watched.until_all(namespace, all).await?;

        let (lines, outcome) = observe(namespace, &format!("--last 10000 {filter}")).await?;
        ensure!(outcome == Outcome::Well);
        let merged = wardline_e2e::records::parse(&format!("{}\n", lines.join("\n")))?;
        ensure!(merged.len() == after.len(), "{} of {}", merged.len(), after.len());
        ensure!(merged.is_sorted_by_key(|record| record.timestamp));
        let denied = format!("--last 10000 --verdict deny --direction ingress {filter}");
        let (lines, _) = observe(namespace, &denied).await?;
        ensure!(
            lines.len() >= 4 && lines.iter().all(|line| line.contains("default-deny")),
            "{lines:?}"
        );

        // It shows one more, and finds that nobody looks.
        watched.screen.is_closed.store(true, Ordering::Relaxed);
        try_all(namespace).await?;
        let ended = tokio::task::spawn_blocking(|| watched.thread.join());
        let outcome = ended.await?.map_err(|_| anyhow::anyhow!("it panicked"))??;
        ensure!(outcome == Outcome::Well);
        wait_until("nothing to be left in the daemons' containers", PATIENCE, async || {
            Ok((observing()? == 0).then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_node_that_does_not_answer_does_not_hide_the_others() -> Result<()> {
    with_namespace("nowhere", async |namespace: &TestNamespace| {
        let (_, outcome) = observe(namespace, "--last 1 --node node1").await?;
        ensure!(outcome == Outcome::Well);
        let (_, outcome) = observe(namespace, "--last 1 --node node1 --node nowhere").await?;
        ensure!(outcome == Outcome::Problems);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_first_deny_is_an_event_on_the_pod() -> Result<()> {
    with_namespace("deny-events", async |namespace: &TestNamespace| {
        let alone = logging::alone().await;
        logging::set_with_events(&namespace.lab).await?;
        namespace.server("web", "node1").await?;
        namespace.client("foe2", "node2").await?;
        namespace.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.until_reach("foe2", "web", false).await?;
        let events: Api<Event> = Api::namespaced(namespace.lab.client().clone(), &namespace.name);
        let of_denies = async || {
            let listed = events
                .list(&ListParams::default())
                .await
                .context("failed to list Events")?;
            let is_deny = |event: &Event| event.reason.as_deref() == Some("NetworkPolicyDeny");
            anyhow::Ok(listed.items.into_iter().filter(is_deny).collect::<Vec<_>>())
        };
        let told = wait_until("an Event", PATIENCE, async || {
            let events = of_denies().await?;
            Ok((!events.is_empty()).then_some(events))
        })
        .await?;
        for _ in 0..2 {
            let attempt = namespace.attempt("foe2", "web", Protocol::Tcp).await?;
            ensure!(attempt.timed_out(), "{attempt:?}");
        }
        let records = |records: &[Record]| records.iter().filter(|r| r.disposition == "deny").count() >= 2;
        namespace.records_until("records of later denies", records).await?;
        let event = &told[0];
        let regarding = event.regarding.as_ref().context("it regards nothing")?;
        ensure!(
            regarding.name.as_deref() == Some("web") && regarding.uid.is_some(),
            "{event:?}"
        );
        let note = event.note.as_deref().unwrap_or_default();
        let policy = format!("isolated by NetworkPolicy {}/web-takes-friends", namespace.name);
        ensure!(
            note.contains("foe2") && note.contains("tcp/8080") && note.ends_with(&policy),
            "{note}"
        );
        let later = of_denies().await?;
        ensure!(later.len() == told.len(), "a pair is told once: {later:?}");
        logging::set(&namespace.lab, true).await?;
        drop(alone);
        Ok(())
    })
    .await
}
