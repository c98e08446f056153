// SPDX-License-Identifier: Apache-2.0
//! What a flood of denied packets costs the daemon, and whether its memory stays flat meanwhile.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Effort;
use super::account::Account;
use super::connections::Setting;
use super::figure::{Figure, Target};
use super::load::count;
use super::wires::Place;

/// Nobody is there (RFC 5737), and no policy lets the pod out to it.
const REFUSED: &str = "203.0.113.1:1024";
/// In turn: more aggregates than a pod may have, so that some packets are told as lost.
const PORTS: &str = "60000";
const RATE: &str = "100000";
/// How often the daemon's memory is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// `deny_flood-memory` and `deny_flood-daemon_cpu`, while one pod scans the ports of a server that it may not reach.
pub async fn measure(setting: &Setting<'_>, flooder: &Place, effort: &Effort) -> Result<Vec<Figure>> {
    let before = Account::of("deny", setting.node).await?;
    let (quiet, cpu) = (setting.daemon.resident_mebibytes()?, setting.daemon.cpu_seconds()?);
    let (from, duration) = (flooder.address.to_string(), effort.flood);
    let milliseconds = duration.as_millis().to_string();
    #[rustfmt::skip]
    let args = [
        "flood", REFUSED, "--from", &from, "--ports", PORTS, "--rate", RATE, "--duration", &milliseconds, "--half-open",
    ];
    let mut most = quiet;
    let watch = async {
        loop {
            tokio::time::sleep(LOOK).await;
            match setting.daemon.resident_mebibytes() {
                Ok(memory) => most = memory.max(most),
                Err(error) => return error,
            }
        }
    };
    // Until all is written: reading the aggregates of a generation is what takes most.
    let flood = async {
        let done = setting.traffic.run(flooder, &args).await?;
        let moved = before.until_written(setting.node, done.transactions).await?;
        anyhow::Ok((done, moved))
    };
    let (done, moved) = tokio::select! {
        ended = flood => ended?,
        error = watch => return Err(error),
    };
    ensure!(
        moved.due >= done.transactions,
        "{} packets were denied, but the account says {moved:?}",
        done.transactions
    );
    let cpu = setting.daemon.cpu_seconds()? - cpu;
    let what = format!(
        "one pod sends {} SYNs to 60,000 ports that no policy lets it reach, {:.0} a second for {} s: {} of them in \
         records, {} told as lost",
        done.transactions,
        done.rate(),
        duration.as_secs_f64(),
        moved.written,
        moved.lost
    );
    Ok(vec![
        Figure {
            name: "deny_flood-memory".into(),
            value: most,
            unit: "MiB".into(),
            baseline: Some(quiet),
            target: Some(Target::AtMost(1.25)),
            measured: format!("the most that node1's daemon has resident, over what it had before, while {what}"),
        },
        Figure {
            name: "deny_flood-daemon_cpu".into(),
            value: cpu * 1e6 / count(done.transactions),
            unit: "us".into(),
            baseline: None,
            target: None,
            measured: "CPU time of node1's daemon over the packets denied, at that rate".into(),
        },
    ])
}
