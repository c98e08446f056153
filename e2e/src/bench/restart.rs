// SPDX-License-Identifier: Apache-2.0
//! The daemon is killed and started again while traffic flows: what the traffic notices.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Effort;
use super::connections::Setting;
use super::figure::{Figure, Target};
use super::load::{Traffic, count};
use super::wires::Place;
use crate::namespace::PORT;
use crate::progress::wait_until;

/// How often the undisturbed gap is measured: the longest of them is the noise.
const QUIET_ROUNDS: usize = 3;
/// From the start of the traffic to the kill.
const BEFORE: Duration = Duration::from_millis(500);

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
    let (gap, answers, killed) = tokio::try_join!(
        longest_gap(setting, effort.restart),
        answers(setting.traffic, refused, server, effort.restart),
        kill
    )?;
    // The traffic must have seen the new daemon take over; it comes back within a second or two.
    let daemon = setting
        .node
        .daemon_pid()
        .context("the daemon did not come back in time")?;
    ensure!(daemon != killed, "the daemon was not killed");
    wait_until("the new daemon", Duration::from_mins(1), async || {
        Ok(setting.node.metrics().await.is_ok().then_some(()))
    })
    .await?;
    Ok(vec![
        Figure {
            name: "restart_longest_gap".into(),
            value: gap,
            unit: "ms".into(),
            baseline: Some(quiet),
            target: Some(Target::AtMost(2.0)),
            measured: format!(
                "longest time of a request on an open connection between two pods of node1 while its daemon is killed \
                 and starts again, over the longest of {QUIET_ROUNDS} rounds of {} s without",
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
