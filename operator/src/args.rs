// SPDX-License-Identifier: Apache-2.0
//! What the operator is started with. Each flag can be given as an environment variable too.

use std::net::SocketAddr;

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::image::Image;

const EXAMPLES: &str = "\
Examples:
  # in a cluster, as the chart starts it
  wardline-operator --daemon-image registry.example.com/wardline-node:v0.1.0

  # before the operator itself is deleted: takes Wardline off all nodes, and waits for it
  wardline-operator remove

  # at a desk, against the cluster of your kubeconfig
  KUBECONFIG=~/.kube/config wardline-operator --namespace wardline-system --leader-elect=false --log-format text";

/// Reconciles Dataplane and NetworkLogging, and rolls out the node daemon of Wardline.
#[derive(Parser, Debug, Clone)]
#[command(name = "wardline-operator", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Namespace of the node daemons, their configuration and the operator's lease
    #[arg(long, env = "POD_NAMESPACE", default_value = "wardline-system")]
    pub namespace: String,

    /// Name of this replica in the lease and in Events [default: the host's name and the process's id]
    #[arg(long, env = "POD_NAME", default_value_t = process_name(), hide_default_value = true)]
    pub pod_name: String,

    /// Image of the node daemon: REPOSITORY[:TAG][@DIGEST]; spec.daemon.image overrides its parts
    #[arg(long, env = "WARDLINE_DAEMON_IMAGE", default_value = concat!("wardline-node:", env!("CARGO_PKG_VERSION")))]
    pub daemon_image: Image,

    /// When the node daemon's image is pulled
    #[arg(long, env = "WARDLINE_DAEMON_PULL_POLICY", default_value = "IfNotPresent")]
    pub daemon_pull_policy: PullPolicyArg,

    /// ServiceAccount of the node daemons, which must exist
    #[arg(long, env = "WARDLINE_DAEMON_SERVICE_ACCOUNT", default_value = "wardline-node")]
    pub daemon_service_account: String,

    /// Work only while holding the lease, so that one of several replicas works
    #[arg(long, env = "WARDLINE_LEADER_ELECT", default_value_t = true, action = ArgAction::Set)]
    pub leader_elect: bool,

    /// Where /metrics is served
    #[arg(long, env = "WARDLINE_METRICS_ADDRESS", default_value = "0.0.0.0:9472")]
    pub metrics_address: SocketAddr,

    /// Where /healthz and /readyz are served
    #[arg(long, env = "WARDLINE_HEALTH_ADDRESS", default_value = "127.0.0.1:9473")]
    pub health_address: SocketAddr,

    /// Least severe message that is logged: error, warn, info, debug or trace; or a filter such as wardline_operator=debug
    #[arg(long, env = "WARDLINE_LOG_LEVEL", default_value = "info")]
    pub log_level: String,

    /// How messages are written
    #[arg(long, env = "WARDLINE_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormatArg,
}

/// A name that no other process has: whoever finds its own in the lease leads.
fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim()).filter(|host| !host.is_empty());
    format!("{}-{}", host.unwrap_or("wardline-operator"), std::process::id())
}

#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Delete the Dataplane, and wait until the operator in the cluster has taken Wardline off all nodes
    Remove(RemoveArgs),
    /// Make the CRDs in the cluster what this version needs; objects stay
    Crds,
    /// See that an installation works; what `helm test` runs
    Probe {
        #[command(subcommand)]
        command: ProbeCommand,
    },
}

#[derive(Subcommand, Debug, Clone)]
pub enum ProbeCommand {
    /// Accept TCP connections
    Serve {
        /// Where to listen
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Connect, and try again until it works
    Reach {
        #[command(flatten)]
        peer: Peer,
        #[command(flatten)]
        wait: Wait,
    },
    /// Fail unless connections are dropped without an answer
    Blocked {
        #[command(flatten)]
        peer: Peer,
    },
    /// Wait until Dataplane and DataplaneNodes say that all is well
    Status(Wait),
}

#[derive(ClapArgs, Debug, Clone)]
pub struct Peer {
    /// Address or name
    pub host: String,
    /// Its TCP port
    pub port: u16,
}

#[derive(ClapArgs, Debug, Clone)]
pub struct Wait {
    /// How long to wait
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout_seconds: u64,
}

#[derive(ClapArgs, Debug, Clone)]
pub struct RemoveArgs {
    /// How long to wait
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub timeout_seconds: u64,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormatArg {
    Json,
    Text,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicyArg {
    Always,
    IfNotPresent,
    Never,
}

impl From<PullPolicyArg> for wardline_crds::PullPolicy {
    fn from(arg: PullPolicyArg) -> Self {
        match arg {
            PullPolicyArg::Always => Self::Always,
            PullPolicyArg::IfNotPresent => Self::IfNotPresent,
            PullPolicyArg::Never => Self::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["wardline-operator", "--daemon-image", "r.example/w:1"]).unwrap();
        assert_eq!(args.daemon_image.to_string(), "r.example/w:1");
        let id = format!("-{}", std::process::id());
        let name = args.pod_name.strip_suffix(&id).unwrap();
        assert!(!name.is_empty(), "two processes outside of pods both lead");
        assert!(Args::try_parse_from(["wardline-operator", "--daemon-image", ":1"]).is_err());
        let args = Args::try_parse_from(["wardline-operator", "remove", "--timeout-seconds", "5"]).unwrap();
        assert!(matches!(
            args.command,
            Some(Command::Remove(RemoveArgs { timeout_seconds: 5 }))
        ));
    }
}
