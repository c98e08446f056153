// SPDX-License-Identifier: Apache-2.0
//! The daemon is killed and started again while traffic flows: what the traffic notices.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Effort;
use super::connections::Setting;
use super::figure::{Figure, Target};
use super::load::{Traffic, count};
use super::wires::Place;
use crate::namespace::PORT;

/// How often the undisturbed gap is measured: the longest of them is the noise.
const QUIET_ROUNDS: usize = 3;
/// From the start of the traffic to the kill.
const BEFORE: Duration = Duration::from_millis(500);
/// A daemon that was killed before is started again after a pause.
const PATIENCE: Duration = Duration::from_mins(2);

/// `restart_longest_gap` and `restart_wrong_verdicts`. `refused` is a pod that no policy admits to the server.
pub async fn measure(setting: &Setting<'_>, refused: &Place, effort: &Effort) -> Result<Vec<Figure>> {
    let [_, server] = &setting.pods;
    let _responder = setting.traffic.respond(server, 1).await?;
    let mut quiet: f64 = 0.0;
    for _ in 0..QUIET_ROUNDS {
        quiet = quiet.max(longest_gap(setting, effort.restart).await?);
    }
    let kill = async {
        tokio::time::sleep(BEFORE).await;
        setting.node.kill_daemon()
    };
    let traffic = async || {
        tokio::try_join!(
            longest_gap(setting, effort.restart),
            answers(setting.traffic, refused, server, effort.restart)
        )
    };
    let ((mut gap, mut answers), killed) = tokio::try_join!(traffic(), kill)?;
    let start = Instant::now();
    // Until a round has begun under the new daemon: then one before it has seen the takeover.
    loop {
        let is_back = is_back(setting, killed).await;
        let (longest, more) = traffic().await?;
        (gap, answers) = (gap.max(longest), answers + more);
        if is_back {
            break;
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "the daemon did not come back within {PATIENCE:?}"
        );
    }
    Ok(vec![
        Figure {
            name: "restart_longest_gap".into(),
            value: gap,
            unit: "ms".into(),
            baseline: Some(quiet),
            target: Some(Target::AtMost(2.0)),
            measured: format!(
                "longest time of a request on an open connection between two pods of node1 while its daemon is killed \
                 and starts again, in rounds of {} s, over the longest of {QUIET_ROUNDS} rounds without",
                effort.restart.as_secs()
            ),
        },
        Figure {
            name: "restart_wrong_verdicts".into(),
            value: count(answers),
            unit: "packets".into(),
            baseline: None,
            target: Some(Target::AtMost(0.0)),
            measured: "datagrams of a refused pod that were admitted meanwhile, one sent each 0.5 ms".into(),
        },
    ])
}

async fn is_back(setting: &Setting<'_>, killed: u32) -> bool {
    setting.node.daemon_pid().is_ok_and(|pid| pid != killed) && setting.node.metrics().await.is_ok()
}

async fn longest_gap(setting: &Setting<'_>, duration: Duration) -> Result<f64> {
    let done = setting.traffic.load("rr", &setting.pods, duration).await?;
    done.longest_gap_ms.context("failed to read the longest gap")
}

/// How many probes of a refused pod were answered.
async fn answers(traffic: &Traffic, refused: &Place, server: &Place, duration: Duration) -> Result<u64> {
    let echo = format!("{}:{PORT}", server.address);
    let milliseconds = duration.as_millis().to_string();
    let mut probes = traffic.start(refused, &["probe", &echo, "--duration", &milliseconds])?;
    loop {
        let event = probes.event().await?;
        if event["event"] == "probed" {
            return event["answers"]
                .as_u64()
                .context("failed to read how many probes were answered");
        }
    }
}
