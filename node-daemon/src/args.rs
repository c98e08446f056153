// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use wardline_record::filter::Filter;
use wardline_record::stream::DEFAULT_SOCKET;

const BPFFS: &str = "/sys/fs/bpf";
const STATE_DIR: &str = "/run/wardline";

/// Enforces NetworkPolicy at the edge of each pod of this node and logs its verdicts.
///
/// Runs as a DaemonSet that the Wardline operator rolls out. What is in force lives in the kernel and stays there when
/// the daemon stops.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "wardline-node",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  wardline-node --node-name node1 --config /etc/wardline/config.yaml\n  \
                  wardline-node --node-name node1 --check    # only check what the node has\n  \
                  wardline-node observe --last 5             # what it logged, as `wardline observe` asks it"
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Name of the Node that this is.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", required = true)]
    pub node_name: Option<String>,
    /// Configuration file; without one everything has its default.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Mount point of the bpf file system that holds what must outlive the daemon.
    #[arg(long, default_value = BPFFS, value_name = "DIR")]
    pub bpffs: PathBuf,
    /// Where the daemon keeps what its ids mean; as long-lived as the bpf file system.
    #[arg(long, default_value = STATE_DIR, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// What this daemon runs with, as the operator names it.
    #[arg(long, env = "WARDLINE_REVISION", default_value = "", value_name = "NAME")]
    pub revision: String,
    /// Check what the node has, print the result and stop.
    #[arg(long)]
    pub check: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Print this node's records as JSON, a line each: asks the daemon that runs on it.
    Observe(ObserveArgs),
    /// Take Wardline out of this node: programs, tables, CNI plugin, state; its log stays.
    ///
    /// For nodes that no daemon runs on any more. Deleting the Dataplane does it on every node.
    Cleanup(CleanupArgs),
}

#[derive(Clone, Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  wardline-node cleanup                   # on the node\n  \
                        wardline-node cleanup --root /host      # in a container that has the node's files there\n  \
                        wardline-node cleanup --check           # is anything there? exit code 1 where it is"
)]
pub struct CleanupArgs {
    /// Where the node's file system is.
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub root: PathBuf,
    /// Configuration file that the daemon ran with, where directories were not the default ones.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of the Node, for the last records that are written.
    #[arg(long, env = "NODE_NAME", default_value = "", value_name = "NAME")]
    pub node_name: String,
    /// Mount point of the bpf file system, below the root.
    #[arg(long, default_value = BPFFS, value_name = "DIR")]
    pub bpffs: PathBuf,
    /// What the daemon kept while the node ran, below the root.
    #[arg(long, default_value = STATE_DIR, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Remove nothing; print what is there, and fail if anything is.
    #[arg(long, conflicts_with = "stay")]
    pub check: bool,
    /// Do not end when it is done, but see that it stays so until SIGTERM: in a pod that would be started again.
    #[arg(long)]
    pub stay: bool,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct ObserveArgs {
    /// Socket of the daemon.
    #[arg(long, default_value = DEFAULT_SOCKET, value_name = "FILE")]
    pub socket: PathBuf,
    /// Records of the past.
    #[arg(long, default_value_t = 20, value_name = "NUMBER")]
    pub last: usize,
    /// Of these, only those after the record with this `seq`.
    #[arg(long, value_name = "SEQ")]
    pub after: Option<String>,
    /// Go on with those that come.
    #[arg(short, long)]
    pub follow: bool,
    /// Stop when standard input ends, as it does when `kubectl exec -i` is cut off.
    #[arg(long)]
    pub while_stdin: bool,
    #[command(flatten)]
    pub filter: Filter,
}

impl Args {
    /// The daemon always has one: the command line is refused without.
    pub fn node_name(&self) -> &str {
        self.node_name.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
        for (arguments, is_good) in [
            ("--node-name n", true),
            ("cleanup --root /host --stay", true),
            ("cleanup --check --stay", false),
            ("observe --last 3 -f -n shop --while-stdin", true),
            ("--node-name n observe", false),
            ("--check", false),
            ("observe --verdict maybe", false),
        ] {
            let parsed = Args::try_parse_from(["wardline-node"].into_iter().chain(arguments.split(' ')));
            assert_eq!(parsed.is_ok(), is_good, "{arguments}");
        }
    }
}
