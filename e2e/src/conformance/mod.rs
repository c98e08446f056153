// SPDX-License-Identifier: Apache-2.0
//! Kubernetes' own network policy suite, run side by side on the cluster.
//!
//! ```text
//!   suite    e2e.test tells its cases     one process a case, several at a time
//!   report   a table of cases and rounds  target/conformance/results.json, and a log a case
//! ```
//!
//! The cases that open SCTP sockets (`[Feature:SCTPConnectivity]`) are left out, as not every kernel does that.

mod report;
mod suite;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use futures::{StreamExt as _, stream};

use crate::cluster::Lab;
use crate::images::{self, Options};
use crate::layout::Layout;
use crate::progress::step;
use crate::{down, kube_proxy, logging, up, wardline};

pub use suite::{Case, cases};

/// What is run, and how.
#[derive(Debug, Clone, Args)]
pub struct ConformanceOptions {
    /// How many cases run at a time
    #[arg(long, default_value_t = WORKERS)]
    workers: usize,
    /// How many times each case runs
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Only the cases whose names contain this
    #[arg(long, default_value = "")]
    only: String,
    /// Run kube-proxy beside Wardline
    #[arg(long)]
    kube_proxy: bool,
}

/// Cases wait more than they work: each brings up nine pods, and then probes that time out.
pub const WORKERS: usize = 4;

/// How a case ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Which one.
    pub case: Case,
    /// Counted from 1.
    pub round: u32,
    /// Whether it ran and passed.
    pub passed: bool,
    /// That of the suite's process; none if a signal ended it.
    pub exit_code: Option<i32>,
    /// From the start of its process to the end.
    pub took: Duration,
    /// What its process wrote.
    pub log: std::path::PathBuf,
}

/// Runs all of it. Brings the cluster up and Wardline into it where they are not there, and takes down again what it
/// brought up.
///
/// # Errors
/// Also when a case failed.
pub async fn conformance(layout: &Layout, images: &Options, options: &ConformanceOptions) -> Result<()> {
    let was_up = layout.kubeconfig().exists();
    let result = on_cluster(layout, images, options).await;
    let ended = if was_up { Ok(()) } else { down::down(layout) };
    result.and(ended)
}

async fn on_cluster(layout: &Layout, images: &Options, options: &ConformanceOptions) -> Result<()> {
    let built = images::build(layout, images)?;
    up::up(layout).await?;
    let lab = Lab::connect().await?;
    if options.kube_proxy {
        kube_proxy::start(layout).await?;
    } else {
        kube_proxy::stop(layout)?;
    }
    wardline::install(&lab, images, &built).await?;
    // The suite's own probes are many, and nobody reads their records.
    logging::set(&lab, false).await?;
    let mut cases = cases(layout).await?;
    cases.retain(|case| case.name().contains(&options.only));
    ensure!(
        !cases.is_empty(),
        "failed to find a case with `{}` in its name",
        options.only
    );
    let start = Instant::now();
    let outcomes = run(layout, &cases, options.repeat, options.workers).await?;
    report::print(&outcomes, start.elapsed(), options.workers);
    report::write(&layout.conformance().join("results.json"), &outcomes)?;
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    ensure!(failed == 0, "{failed} of {} failed", outcomes.len());
    Ok(())
}

/// Runs each case `rounds` times, `workers` processes at a time, and returns the outcomes round by round.
///
/// # Errors
/// When the suite cannot be started; a case that fails is an outcome.
pub async fn run(layout: &Layout, cases: &[Case], rounds: u32, workers: usize) -> Result<Vec<Outcome>> {
    let folder = layout.conformance();
    std::fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    let total = cases.len() * usize::try_from(rounds).context("failed to count the cases")?;
    step(&format!(
        "running {total} cases of the upstream suite, {workers} at a time"
    ));
    let all = (1..=rounds).flat_map(|round| cases.iter().map(move |case| (round, case)));
    let mut running = stream::iter(all)
        .map(|(round, case)| suite::run_one(layout, case, round))
        .buffer_unordered(workers);
    let mut outcomes = Vec::new();
    while let Some(outcome) = running.next().await {
        let outcome = outcome?;
        step(&format!("  {}/{total} {}", outcomes.len() + 1, report::line(&outcome)));
        outcomes.push(outcome);
    }
    outcomes.sort_by(|a, b| (a.round, &a.case).cmp(&(b.round, &b.case)));
    Ok(outcomes)
}
