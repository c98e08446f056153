// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::path::PathBuf;

use clap::Parser;
use clap::builder::ArgPredicate;

/// Enforces NetworkPolicy at the edge of each pod of this node and logs its verdicts.
///
/// Runs as a DaemonSet that the Wardline operator rolls out. What is in force lives in the kernel and stays there when
/// the daemon stops.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "wardline-node",
    version,
    after_help = "Examples:\n  wardline-node --node-name node1 --config /etc/wardline/config.yaml\n  \
                  wardline-node --node-name node1 --check    # only check what the node has"
)]
pub struct Args {
    /// Name of the Node that this is.
    #[arg(
        long,
        env = "NODE_NAME",
        value_name = "NAME",
        default_value_if("remove_cni", ArgPredicate::IsPresent, "")
    )]
    pub node_name: String,
    /// Configuration file; without one everything has its default.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Mount point of the bpf file system that holds what must outlive the daemon.
    #[arg(long, default_value = "/sys/fs/bpf", value_name = "DIR")]
    pub bpffs: PathBuf,
    /// Where the daemon keeps what its ids mean; as long-lived as the bpf file system.
    #[arg(long, default_value = "/run/wardline", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Check what the node has, print the result and stop.
    #[arg(long)]
    pub check: bool,
    /// Take the CNI plugin out of the node whose file system is at ROOT, print what was removed and stop. For nodes
    /// that Wardline leaves: a daemon that still runs there puts it back.
    #[arg(long, value_name = "ROOT")]
    pub remove_cni: Option<PathBuf>,
}
