// SPDX-License-Identifier: Apache-2.0
//! `wardline status`: who is well, who is gone, and when they are back.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wardline_cli::Outcome;
use wardline_e2e::cluster::{Lab, SYSTEM_NAMESPACE};
use wardline_e2e::namespace::{TestNamespace, with_namespace, with_namespace_alone};
use wardline_e2e::progress::wait_until;

use crate::wardline::{Screen, account_with, command, run, says, without_account};

const PATIENCE: Duration = Duration::from_mins(1);
const WAIT: &str = "status --wait --timeout 2m";

impl Screen {
    /// The last object that was shown.
    fn last(&self) -> Result<Value> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = String::from_utf8_lossy(&shown);
        let last = shown.lines().last().context("nothing is shown yet")?;
        serde_json::from_str(last).context("failed to read what is shown")
    }
}

/// Names of those that a report has problems with.
fn unwell(report: &Value) -> Vec<&str> {
    let problems = report["problems"].as_array().into_iter().flatten();
    let names = problems.flat_map(|problem| problem["names"].as_array().into_iter().flatten());
    names.filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn a_daemon_that_stands_still_is_named_and_waited_for() -> Result<()> {
    with_namespace_alone("status", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let (text, outcome) = run(lab, WAIT).await?;
        ensure!(outcome == Outcome::Well, "{text}");
        says(&text, "all is well\n")?;
        let (text, outcome) = run(lab, "status -o wide").await?;
        ensure!(outcome == Outcome::Well, "{text}");
        for words in ["node1", "node2", "tcx", "wardline-operator", "yes, "] {
            says(&text, words)?;
        }

        let cli = command(lab, "status --watch --interval 1s -o json")?;
        let screen = Screen::default();
        let mut out = screen.clone();
        let watching = std::thread::spawn(move || wardline_cli::run(&cli, &mut io::empty(), &mut out));
        wait_until("a first report", PATIENCE, async || Ok(screen.last().ok())).await?;

        let node = lab.node("node1")?;
        // Kubelet would kill it after a minute.
        let stopped = node.stop(&node.daemon_pid()?.to_string())?;
        let began = Instant::now();
        let (text, outcome) = run(lab, "status -o json").await?;
        let took = began.elapsed();
        ensure!(
            outcome == Outcome::Problems && took < Duration::from_secs(20),
            "{took:?}: {text}"
        );
        says(&text, "its daemon does not tell its metrics: no answer within 5 s")?;
        let report: Value = serde_json::from_str(&text).context("failed to read a report")?;
        ensure!(
            unwell(&report).contains(&"node1") && !unwell(&report).contains(&"node2"),
            "{text}"
        );
        ensure!(
            report["nodes"][1]["lost"]["total"].is_u64(),
            "node2 is not told: {text}"
        );
        wait_until("who watches to see it", PATIENCE, async || {
            Ok(unwell(&screen.last()?).contains(&"node1").then_some(()))
        })
        .await?;
        let (text, outcome) = run(lab, "status --wait --timeout 15s").await?;
        ensure!(outcome == Outcome::Problems, "{text}");
        drop(stopped);
        let (text, outcome) = run(lab, WAIT).await?;
        ensure!(outcome == Outcome::Well, "{text}");
        wait_until("who watches to see that it is well again", PATIENCE, async || {
            Ok(screen.last()?["well"].as_bool().filter(|well| *well))
        })
        .await?;

        screen.is_closed.store(true, Ordering::Relaxed);
        operator_goes(lab).await?;
        let ended = tokio::task::spawn_blocking(|| watching.join()).await?;
        let outcome = ended.map_err(|_| anyhow::anyhow!("it panicked"))??;
        ensure!(outcome == Outcome::Well);
        Ok(())
    })
    .await
}

async fn operator_goes(lab: &Lab) -> Result<()> {
    let replicas = async |count: i32| {
        let patch = json!({"spec": {"replicas": count}});
        lab.patch("apps/v1", "Deployment", SYSTEM_NAMESPACE, "wardline-operator", &patch)
            .await
    };
    replicas(0).await?;
    let told = wait_until("the operator's end to be told", PATIENCE, async || {
        let (text, outcome) = run(lab, "status").await?;
        let is_told = text.contains("no operator works: ") && text.contains("it has no pod. Look: kubectl describe");
        ensure!(!is_told || outcome == Outcome::Problems);
        Ok(is_told.then_some(()))
    })
    .await;
    replicas(2).await?;
    told?;
    let (text, outcome) = run(lab, WAIT).await?;
    ensure!(outcome == Outcome::Well, "{text}");
    for condition in ["ready", "synced", "updated"] {
        let (text, outcome) = run(lab, &format!("status --wait={condition} --timeout 1m")).await?;
        ensure!(outcome == Outcome::Well, "{condition}: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_viewer_sees_all_of_it_and_others_are_refused() -> Result<()> {
    with_namespace("viewer", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let nobody = format!("system:serviceaccount:{}:default", namespace.name);
        let refused = run(lab, &format!("status --as {nobody}")).await;
        let refused = refused.err().context("a stranger sees it")?.to_string();
        ensure!(refused.contains("failed to list dataplanes"), "{refused}");
        let viewer = account_with(namespace, "viewer").await?;
        let seen = wait_until("the viewer's rights", PATIENCE, async || {
            let (text, _) = run(lab, &format!("status --as {viewer} -o json")).await?;
            let report: Value = serde_json::from_str(&text).context("failed to read a report")?;
            let are_lost_known = report["nodes"][0]["lost"]["total"].is_u64();
            Ok((are_lost_known && !text.contains("not known")).then_some(text))
        })
        .await;
        without_account(namespace, "viewer").await?;
        seen.map(drop)
    })
    .await
}
