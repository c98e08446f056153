// SPDX-License-Identifier: Apache-2.0
//! The benchmark on the cluster: what Wardline costs connections, and how fast it is.
//!
//! ```text
//!   packet_bench's figures --+
//!                            +--> one table, one JSON file
//!   connections              |    pods of node1 beside namespaces that are no pods, in turn
//!   record_rate              |    a steady stream of connections, faster and faster
//!   plugin ------------------+    the CNI plugin, as the runtime runs it
//!   policy ------------------+    probes that stop being answered
//!   restart -----------------+    requests while the daemon is killed, last of all
//! ```
//!
//! Nothing here has a threshold: a figure that misses its target is printed as one that does. That the benchmark runs
//! and gives a number for each figure is what `lab bench --quick` checks.

mod account;
mod connections;
mod delay;
mod deny_flood;
mod figure;
mod load;
mod plugin;
mod policy;
mod record_rate;
mod restart;
pub mod wires;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::cluster::Lab;
use crate::container::ContainerProcess;
use crate::images::{self, Options};
use crate::layout::Layout;
use crate::namespace::{TestNamespace, with_namespace_alone};
use crate::progress::step;
use crate::{down, logging, up, wardline};
use connections::Setting;
use figure::{Figure, Target};
use load::Traffic;
use wires::Place;

/// The node that everything runs on.
const NODE: &str = "node1";

/// Lets the client's connections in, so that each is judged and logged.
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: load}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: client}}}]
";

/// What is measured, and where the figures go.
#[derive(Debug, Clone, Args)]
pub struct BenchOptions {
    /// A few seconds a figure: shows that the benchmark runs, and little more
    #[arg(long)]
    quick: bool,
    /// Figures of the packet programs, as `packet_bench` writes them, to be shown and written along
    #[arg(long)]
    packets: Option<PathBuf>,
    /// The file that the figures are written to, as a JSON list
    #[arg(long, default_value = "target/bench.json")]
    output: PathBuf,
}

/// How much is done for a figure.
#[derive(Debug)]
struct Effort {
    /// Rounds of each load, and how long one takes; many short ones, so that a slow spell falls on all alike.
    rounds: u32,
    round: Duration,
    /// How long a rate of records is held, and the rates that are tried.
    flood: Duration,
    rates: &'static [u32],
    /// Policies that are applied.
    policies: u32,
    /// How long a round of traffic takes while the daemon is killed and starts again.
    restart: Duration,
}

const FULL: Effort = Effort {
    rounds: 15,
    round: Duration::from_secs(1),
    flood: Duration::from_secs(10),
    rates: &[25_000, 50_000, 75_000, 100_000, 150_000],
    policies: 50,
    restart: Duration::from_secs(5),
};
const QUICK: Effort = Effort {
    rounds: 3,
    round: Duration::from_millis(200),
    flood: Duration::from_secs(1),
    rates: &[10_000],
    policies: 3,
    restart: Duration::from_secs(2),
};

/// Takes all figures. Brings the cluster up and Wardline into it where they are not there, and takes down again what it
/// brought up.
pub async fn bench(layout: &Layout, images: &Options, options: &BenchOptions) -> Result<()> {
    let mut figures = match &options.packets {
        Some(path) => figure::read_packet_figures(path)?,
        None => Vec::new(),
    };
    let was_up = layout.kubeconfig().exists();
    let on_cluster = on_cluster(layout, images, options).await;
    let ended = if was_up { Ok(()) } else { down::down(layout) };
    figures.extend(on_cluster?);
    figure::print(&figures);
    figure::write(&options.output, &figures)?;
    println!("The figures are in {}.", options.output.display());
    ended
}

async fn on_cluster(layout: &Layout, images: &Options, options: &BenchOptions) -> Result<Vec<Figure>> {
    let built = images::build(layout, images)?;
    up::up(layout).await?;
    let lab = Lab::connect().await?;
    wardline::install(&lab, images, &built).await?;
    logging::set(&lab, true).await?;
    let traffic = Traffic {
        program: images::static_binary(layout, "traffic")?,
    };
    let effort = if options.quick { &QUICK } else { &FULL };
    let mut figures = Vec::new();
    with_namespace_alone("bench", async |namespace: &TestNamespace| {
        figures = in_namespace(namespace, &traffic, effort).await?;
        Ok(())
    })
    .await?;
    Ok(figures)
}

async fn in_namespace(namespace: &TestNamespace, traffic: &Traffic, effort: &Effort) -> Result<Vec<Figure>> {
    for pod in ["client", "server", "flood"] {
        namespace.server(pod, NODE).await?;
    }
    namespace.ready().await?;
    let daemon = ContainerProcess::of_daemon(&namespace.lab, NODE).await?;
    let setting = Setting {
        traffic,
        pods: [place(namespace, "client").await?, place(namespace, "server").await?],
        node: namespace.lab.node(NODE)?,
        daemon: &daemon,
    };
    step("measuring how fast a policy is in force");
    let policy = policy::measure(&setting, namespace, effort.policies).await?;

    namespace.apply(POLICY).await?;
    namespace.until_reach("flood", "server", false).await?;
    step("measuring connections between pods, and without Wardline");
    let mut figures = connections::measure(&setting, effort).await?;

    namespace.apply(record_rate::POLICY).await?;
    namespace.until_reach("flood", "client", false).await?;
    step("measuring how many records a second are written");
    let flooder = place(namespace, "flood").await?;
    figures.extend(record_rate::measure(&setting, &flooder, effort).await?);

    step("measuring what a flood of denied packets costs");
    figures.extend(deny_flood::measure(&setting, &flooder, effort).await?);

    step("measuring how long new pods wait for their policies");
    figures.extend(plugin::measure(namespace, setting.node.spec).await?);

    figures.extend(policy);
    figures.push(Figure {
        name: "daemon_memory".into(),
        value: daemon.resident_mebibytes()?,
        unit: "MiB".into(),
        baseline: None,
        target: Some(Target::AtMost(30.0)),
        measured: format!("resident memory of {NODE}'s daemon after all of the above, with a handful of pods"),
    });
    step("measuring what a killed daemon does to traffic");
    figures.extend(restart::measure(&setting, &flooder, effort).await?);
    Ok(figures)
}

async fn place(namespace: &TestNamespace, pod: &str) -> Result<Place> {
    let object = namespace.pods().get(pod).await;
    let object = object.with_context(|| format!("failed to get Pod {}/{pod}", namespace.name))?;
    let address: Ipv4Addr = match namespace.ip(pod).await? {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => bail!("failed to use Pod {pod}: its address {address} is not IPv4"),
    };
    Ok(ContainerProcess::of(&object)?.place(address))
}
