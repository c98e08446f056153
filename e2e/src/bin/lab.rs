// SPDX-License-Identifier: Apache-2.0
//! `lab`: brings the two-node cluster up and down, and Wardline into it.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use wardline_e2e::cluster::Lab;
use wardline_e2e::layout::{Layout, NODES};
use wardline_e2e::{
    audit, bench, chart, conformance, demo, down, gobuild, images, kube_proxy, node, status, up, wardline,
};

const EXAMPLES: &str = "Examples:
  lab up                                     # two nodes, ready after about half a minute
  export KUBECONFIG=target/lab/kubeconfig
  target/lab/bin/kubectl get pods -A -o wide
  lab install                                # Wardline, built from this checkout
  lab enter node1 ip link                    # a command as node1 sees the world
  lab down                                   # ends it, and fails if anything is left";

/// A real two-node Kubernetes cluster on this machine. Everything lies in target/lab.
#[derive(Parser)]
#[command(name = "lab", after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Bring the cluster up; does nothing where it is up already
    Up {
        /// Run kube-proxy on both nodes too; without it node ports lead nowhere, nor do Services without Wardline
        #[arg(long)]
        kube_proxy: bool,
    },
    /// Take the cluster down, and check that no process, mount, interface, cgroup or pin is left
    Down,
    /// Build kubectl, helm, the control plane and the rest into target/lab/bin, where they are missing or old
    Tools,
    /// Build Wardline's images into target/images, and import them into the nodes where the cluster is up
    Images(images::Options),
    /// Build the images, and install Wardline into the running cluster by its chart
    Install(images::Options),
    /// Bring everything up, open connections between pods, and show each beside its record
    Demo(images::Options),
    /// Measure what Wardline costs connections and how fast it is; brings up what is missing
    Bench {
        #[command(flatten)]
        bench: bench::BenchOptions,
        #[command(flatten)]
        images: images::Options,
    },
    /// Run Kubernetes' own network policy suite, all but the cases that open SCTP sockets; brings up what is missing
    Conformance {
        #[command(flatten)]
        conformance: conformance::ConformanceOptions,
        #[command(flatten)]
        images: images::Options,
    },
    /// Lint the chart, and validate what it renders, the plain manifests and the examples of deploy/
    Chart {
        /// Write docs/values.md instead, from values.yaml and its schema
        #[arg(long)]
        values: bool,
    },
    /// Write plain manifests and a kustomize base to target/manifests, made from the chart
    Manifests {
        #[command(flatten)]
        images: images::Options,
        /// Further values of the chart, each KEY=VALUE
        #[arg(long = "set", value_name = "KEY=VALUE")]
        values: Vec<String>,
    },
    /// Compare what Wardline may do with what it did since the cluster came up, and look for tokens in its logs
    Audit,
    /// Show what runs: processes, nodes, and Wardline on them
    Status,
    /// Run a command in a node's network, mount and process namespaces
    Enter {
        /// node1 or node2
        node: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// The first process of a node; started by `lab up`
    #[command(hide = true)]
    Node {
        /// node1 or node2
        name: String,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Cmd) -> Result<()> {
    let layout = Layout::of_workspace();
    match command {
        // A node's first process has no use for a runtime with threads.
        Cmd::Node { name } => node::init(
            &layout,
            NODES.iter().find(|node| node.name == name).context("no such node")?,
        ),
        Cmd::Down => down::down(&layout),
        Cmd::Tools => gobuild::build(&layout),
        Cmd::Images(options) => {
            let built = images::build(&layout, &options)?;
            if layout.kubeconfig().exists() {
                images::import(&layout, &built)?;
            }
            Ok(())
        }
        Cmd::Chart { values: true } => chart::values::write(&layout),
        Cmd::Chart { values: false } => chart::check::check(&layout),
        Cmd::Manifests {
            images: options,
            values,
        } => chart::manifests::make(&layout, &options, &values),
        Cmd::Enter { node: name, command } => {
            let spec = NODES
                .iter()
                .find(|node| node.name == name)
                .context("failed to find the node: it is node1 or node2")?;
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            print!("{}", node::enter(&layout, spec, &words)?);
            Ok(())
        }
        command @ (Cmd::Up { .. }
        | Cmd::Install(_)
        | Cmd::Demo(_)
        | Cmd::Bench { .. }
        | Cmd::Conformance { .. }
        | Cmd::Audit
        | Cmd::Status) => tokio::runtime::Runtime::new()
            .context("failed to start a runtime")?
            .block_on(run_async(&layout, command)),
    }
}

async fn run_async(layout: &Layout, command: Cmd) -> Result<()> {
    match command {
        Cmd::Up { kube_proxy: with_proxy } => {
            up::up(layout).await?;
            if with_proxy {
                kube_proxy::start(layout).await?;
            }
            Ok(())
        }
        Cmd::Install(options) => {
            let built = images::build(layout, &options)?;
            wardline::install(&Lab::connect().await?, &options, &built).await
        }
        Cmd::Demo(options) => demo::demo(layout, &options).await,
        Cmd::Bench { bench: options, images } => bench::bench(layout, &images, &options).await,
        Cmd::Conformance {
            conformance: options,
            images,
        } => conformance::conformance(layout, &images, &options).await,
        Cmd::Audit => audit::check(&Lab::connect().await?).await,
        Cmd::Status => status::show(layout).await,
        Cmd::Chart { .. }
        | Cmd::Down
        | Cmd::Enter { .. }
        | Cmd::Images(_)
        | Cmd::Manifests { .. }
        | Cmd::Node { .. }
        | Cmd::Tools => Ok(()),
    }
}
