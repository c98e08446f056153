// SPDX-License-Identifier: Apache-2.0
//! Connections between two pods of a node, each logged, against the same without Wardline; and what logging them costs
//! the daemon.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::figure::{Figure, Target, median};
use super::load::{Traffic, count};
use super::wires::{Place, Wires};
use super::{Effort, account::Account, delay::Delays};
use crate::cluster::LabNode;
use crate::container::ContainerProcess;
use crate::logging;

/// How long after a load the daemon may still be writing: it empties the ring every 10 ms, and settles now and then.
const WRITE_OUT: Duration = Duration::from_millis(100);

/// Everything the measurements need.
#[derive(Debug)]
pub struct Setting<'a> {
    /// The program.
    pub traffic: &'a Traffic,
    /// Client and server in pods.
    pub pods: [Place; 2],
    /// The node of the pods.
    pub node: LabNode<'a>,
    /// Its daemon.
    pub daemon: &'a ContainerProcess,
}

/// Samples of one kind of load: one a round, for each topology.
#[derive(Debug, Default)]
struct Samples {
    pods: Vec<f64>,
    routed: Vec<f64>,
    direct: Vec<f64>,
}

/// A load of one round.
#[derive(Debug, Clone, Copy)]
struct Load {
    kind: &'static str,
    round: u32,
    duration: Duration,
}

/// What the daemon did while connections were opened.
#[derive(Debug, Default)]
struct Logging {
    cpu: f64,
    connections: u64,
    elapsed: f64,
}

/// `tcp_rr`, `tcp_crr`, `daemon_cpu_per_record` and `record_delay`, then `tcp_crr` with logging off.
pub async fn measure(setting: &Setting<'_>, effort: &Effort) -> Result<Vec<Figure>> {
    let wires = Wires::create(setting.node.spec)?;
    let mut servers = Vec::new();
    for [_, server] in [&setting.pods, &wires.routed, &wires.direct] {
        servers.push(setting.traffic.respond(server, 1).await?);
    }
    let mut logging = Logging::default();
    let before = Account::read(setting.node).await?;
    let delays = Delays::read(setting.node).await?;
    let [rr, crr] = rounds(setting, &wires, effort, ["rr", "crr"], Some(&mut logging)).await?;
    // Each connection is there once, those of the warm-up too, and so is that of each round of rr.
    let expected = logging.connections + u64::from(effort.rounds) + 1;
    let written = before.until_written(setting.node, expected).await?;
    ensure!(
        written.lost == 0 && written.due == expected,
        "{expected} connections were opened, but the account says {written:?}"
    );
    let of = "in the rounds of tcp_crr between pods";
    let delays = Delays::read(setting.node).await?.figures(&delays, of);
    let unlogged = unlogged(setting, &wires, effort).await?;
    let mut figures = Vec::new();
    figures.extend(rr.figures(
        "tcp_rr",
        "one byte there and back on one connection, which is logged",
        0.97,
    ));
    figures.extend(crr.figures("tcp_crr", "connect, one byte there and back, close, each logged", 0.85));
    figures.extend(unlogged.figures("tcp_crr-logging-off", "the same while nothing is logged", 0.85));
    figures.push(logging.figure());
    figures.extend(delays);
    Ok(figures)
}

/// The rounds of `crr` once more, while nothing is logged.
async fn unlogged(setting: &Setting<'_>, wires: &Wires, effort: &Effort) -> Result<Samples> {
    logging::set(setting.node.lab, false).await?;
    let measured = rounds(setting, wires, effort, ["crr"], None).await;
    logging::set(setting.node.lab, true).await?;
    let [crr] = measured?;
    Ok(crr)
}

/// All rounds, each of one load of every kind; what `crr` costs the daemon is added to `logging`.
async fn rounds<const N: usize>(
    setting: &Setting<'_>,
    wires: &Wires,
    effort: &Effort,
    kinds: [&'static str; N],
    mut logging: Option<&mut Logging>,
) -> Result<[Samples; N]> {
    let mut samples = [(); N].map(|()| Samples::default());
    for round in 0..=effort.rounds {
        for (samples, kind) in samples.iter_mut().zip(kinds) {
            let load = Load {
                kind,
                round,
                duration: effort.round,
            };
            let logging = logging.as_deref_mut().filter(|_| kind == "crr");
            samples.round(setting, wires, load, logging).await?;
        }
    }
    Ok(samples)
}

impl Samples {
    /// One load over each of the wires. Who comes first changes from round to round, as the first may find a machine that
    /// the last has left busy.
    async fn round(
        &mut self,
        setting: &Setting<'_>,
        wires: &Wires,
        load: Load,
        mut logging: Option<&mut Logging>,
    ) -> Result<()> {
        let over = [&setting.pods, &wires.routed, &wires.direct];
        for index in (0..over.len()).map(|index| (index + load.round as usize) % over.len()) {
            let (cpu, start) = (setting.daemon.cpu_seconds()?, Instant::now());
            let done = setting.traffic.load(load.kind, over[index], load.duration).await?;
            if let (0, Some(logging)) = (index, logging.as_mut()) {
                tokio::time::sleep(WRITE_OUT).await;
                logging.cpu += setting.daemon.cpu_seconds()? - cpu;
                logging.connections += done.transactions;
                logging.elapsed += start.elapsed().as_secs_f64();
            }
            // The first round warms up and is thrown away.
            if load.round > 0 {
                [&mut self.pods, &mut self.routed, &mut self.direct][index].push(done.rate());
            }
        }
        Ok(())
    }

    fn figures(&self, name: &str, what: &str, target: f64) -> [Figure; 2] {
        let figure = |name: String, baseline: &[f64], measured: String| Figure {
            name,
            value: median(&self.pods),
            unit: "1/s".into(),
            baseline: Some(median(baseline)),
            target: Some(Target::AtLeast(target)),
            measured,
        };
        let routed = format!(
            "{what}, between two pods of node1, every connection judged, over two namespaces hung into node1 in the same \
             way that are no pods; medians of {} interleaved rounds",
            self.pods.len()
        );
        let direct = "the same over one veth pair between two namespaces, without a node to route through".to_owned();
        [
            figure(name.to_owned(), &self.routed, routed),
            figure(format!("{name}-over-direct-veth"), &self.direct, direct),
        ]
    }
}

impl Logging {
    fn figure(&self) -> Figure {
        let connections = count(self.connections);
        Figure {
            name: "daemon_cpu_per_record".into(),
            value: self.cpu * 1e6 / connections,
            unit: "us".into(),
            baseline: None,
            target: Some(Target::AtMost(4.0)),
            measured: format!(
                "CPU time of node1's daemon in the rounds of tcp_crr between pods, all that it did included, over the \
                 records written: {connections} in {:.1} s",
                self.elapsed
            ),
        }
    }
}
