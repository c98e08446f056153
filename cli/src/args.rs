// SPDX-License-Identifier: Apache-2.0
//! The command line.

// The comments on arguments are what `--help` prints: plain text, not markdown.
#![allow(clippy::doc_markdown)]

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use wardline_policy::model::{ObjectName, Protocol};

use crate::logs::{self, LogsArgs};
use crate::observe::{self, ObserveArgs};
use crate::status::{self, StatusArgs};
use crate::sysdump::{self, SysdumpArgs};

const EXAMPLES: &str = "\
Examples:
  # how Wardline is in this cluster, and how it becomes
  wardline status
  wardline status --watch

  # who is denied what, now, on all nodes
  wardline observe --follow --verdict deny

  # which policies decide about this connection?
  wardline policy eval --from shop/web-5d9 --to shop/db-0 --port 5432

  # in a pipeline, before anything is applied
  kustomize build . | wardline policy check -f -

  # what whoever is asked for help wants to see, in one archive
  wardline sysdump

Exit codes: 0 all is well, or allowed; 1 problems found, or denied; 2 wrong usage, or the command failed.";

const CHECK_EXAMPLES: &str = "\
Examples:
  wardline policy check -f policies.yaml more/*.yaml
  helm template charts/shop | wardline policy check --namespace shop -f -

Exit codes: 0 all can be used; 1 at least one is refused; 2 wrong usage, or a file cannot be read.";

const EVAL_EXAMPLES: &str = "\
Examples:
  # why can't the web pods reach the database?
  wardline policy eval --from shop/web-5d9 --to shop/db-0 --port 5432

  # may the outside world look up names here? does ping pass?
  wardline policy eval --from 203.0.113.9 --to kube-system/dns-1 --port udp/53
  wardline policy eval --from shop/web-5d9 --to shop/db-0 --protocol icmp

  # the same with policies that are not applied yet, and pods as they are now
  kubectl get pods,namespaces -A -o yaml | wardline policy eval -f - policies.yaml --from shop/web-5d9 --to shop/db-0 --port 5432

Exit codes: 0 allowed; 1 denied; 2 wrong usage, or the question cannot be answered.";

/// How Wardline is, and what NetworkPolicies say.
#[derive(Parser, Debug, Clone)]
#[command(name = "wardline", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Which cluster is asked.
#[derive(Args, Debug, Clone, Default)]
pub struct ClusterArgs {
    /// File that says how clusters are reached; else those of $KUBECONFIG, ~/.kube/config, or the pod's own cluster
    #[arg(long, global = true, value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub context: Option<String>,

    /// Ask as another user, such as system:serviceaccount:NAMESPACE:NAME
    #[arg(long = "as", global = true, value_name = "USER", help_heading = "Cluster")]
    pub as_user: Option<String>,

    /// Ask as one of another group; may be given several times
    #[arg(
        long = "as-group",
        global = true,
        value_name = "GROUP",
        requires = "as_user",
        help_heading = "Cluster"
    )]
    pub as_groups: Vec<String>,
}

impl ClusterArgs {
    /// Whether it is said which cluster is meant.
    pub(crate) fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some() || self.as_user.is_some()
    }
}

/// How results are written.
#[derive(Args, Debug, Clone, Copy)]
pub struct FormatArgs {
    /// How results are written
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

/// Where Wardline runs.
#[derive(Args, Debug, Clone)]
pub struct SystemArgs {
    /// Namespace of the operator and the daemons
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = "wardline-system",
        help_heading = "Cluster"
    )]
    pub wardline_namespace: String,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people
    Table,
    /// For programs: one JSON object; of observe and logs, one a record
    Json,
    /// A table with all that is known; status, observe and logs only
    Wide,
    /// A line each without columns; observe and logs only
    Compact,
}

#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Shows the Dataplane, the NetworkLogging and each node, and what is wrong with them
    #[command(after_help = status::EXAMPLES)]
    Status(StatusArgs),
    /// Shows what policies allow and deny, as it happens
    #[command(after_help = observe::EXAMPLES)]
    Observe(ObserveArgs),
    /// Reads, filters and sums up the policy log of a node
    #[command(after_help = logs::EXAMPLES)]
    Logs(LogsArgs),
    /// Checks and evaluates NetworkPolicies
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Packs what whoever is asked for help wants to see into one archive, without secrets
    #[command(after_help = sysdump::EXAMPLES)]
    Sysdump(SysdumpArgs),
    /// Prints a script that completes commands, such as for `source <(wardline completion bash)`
    Completion { shell: Shell },
}

#[derive(Subcommand, Debug, Clone)]
pub enum PolicyCommand {
    /// Checks that the NetworkPolicies of files can be used; asks no cluster
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Says which policies allow or deny a connection, at both of its ends
    #[command(after_help = EVAL_EXAMPLES)]
    Eval(EvalArgs),
}

/// Files of objects.
#[derive(Args, Debug, Clone, Default)]
pub struct FileArgs {
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

#[derive(Args, Debug, Clone)]
pub struct CheckArgs {
    /// Files of YAML documents or JSON, `-` for standard input; kinds other than NetworkPolicy are ignored
    #[arg(short, long = "filename", value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    pub file_args: FileArgs,

    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Args, Debug, Clone)]
#[command(group(ArgGroup::new("what").required(true).args(["port", "protocol"])))]
pub struct EvalArgs {
    /// Who opens the connection
    #[arg(long, value_name = "NAMESPACE/POD|IP")]
    pub from: PartyArg,

    /// Whom it goes to: a pod's or another address, not a Service's
    #[arg(long, value_name = "NAMESPACE/POD|IP")]
    pub to: PartyArg,

    /// Port that it goes to: tcp/80, udp/53, sctp/9; 80 is tcp/80
    #[arg(long, value_name = "[PROTOCOL/]PORT")]
    pub port: Option<ServiceArg>,

    /// Protocol without ports: icmp, or a number
    #[arg(long)]
    pub protocol: Option<ProtocolArg>,

    /// Files of Pods, Namespaces, Nodes and NetworkPolicies to ask instead of the cluster, `-` for standard input
    #[arg(short, long = "filename", value_name = "FILE", num_args = 1..)]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    pub file_args: FileArgs,

    #[command(flatten)]
    pub format: FormatArgs,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartyArg {
    Pod(ObjectName),
    /// Never an IPv6 address that maps an IPv4 one.
    Address(IpAddr),
}

impl FromStr for PartyArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::Pod(ObjectName::new(namespace, name)))
            }
            _ => Err("expected NAMESPACE/POD or an IP address"),
        }
    }
}

impl fmt::Display for PartyArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod {name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// A protocol with ports, and the destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceArg {
    pub protocol: Protocol,
    pub port: u16,
}

impl FromStr for ServiceArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (protocol, port) = text.split_once('/').unwrap_or(("tcp", text));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err("expected tcp, udp or sctp before the slash"),
        };
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self { protocol, port }),
            _ => Err("expected a port from 1 to 65535"),
        }
    }
}

/// A protocol without ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolArg {
    /// That of the address family in use.
    Icmp,
    Number(u8),
}

impl FromStr for ProtocolArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("icmp") {
            return Ok(Self::Icmp);
        }
        match text.parse::<u8>() {
            Ok(number) if Protocol::from_number(number).is_none() => Ok(Self::Number(number)),
            Ok(_) => Err("this protocol has ports: use --port"),
            Err(_) => Err("expected icmp or a number from 0 to 255; for tcp, udp and sctp use --port"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ends_of_a_connection() {
        for (text, expected) in [
            ("shop/web", Some("pod shop/web")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("web", None),
            ("/web", None),
            ("shop/", None),
            ("shop/web/80", None),
            ("", None),
        ] {
            let read = text.parse::<PartyArg>().ok().map(|party| party.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn ports_and_protocols() {
        for (text, expected) in [
            ("80", Some((Protocol::Tcp, 80))),
            ("tcp/80", Some((Protocol::Tcp, 80))),
            ("UDP/53", Some((Protocol::Udp, 53))),
            ("sctp/65535", Some((Protocol::Sctp, 65535))),
            ("0", None),
            ("65536", None),
            ("http", None),
            ("icmp/1", None),
            ("tcp/", None),
        ] {
            let read = text.parse::<ServiceArg>().ok().map(|s| (s.protocol, s.port));
            assert_eq!(read, expected, "{text}");
        }
        for (text, expected) in [
            ("icmp", Some(ProtocolArg::Icmp)),
            ("ICMP", Some(ProtocolArg::Icmp)),
            ("47", Some(ProtocolArg::Number(47))),
            ("6", None),
            ("17", None),
            ("132", None),
            ("tcp", None),
            ("256", None),
        ] {
            assert_eq!(text.parse::<ProtocolArg>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (arguments, names) in [
            ("wardline policy check", "--filename"),
            ("wardline policy eval --from a/b --to a/c", "--port"),
            (
                "wardline policy eval --from a/b --to a/c --port 80 --protocol icmp",
                "--protocol",
            ),
            ("wardline policy eval --to a/c --port 80", "--from"),
            ("wardline status -o yaml", "yaml"),
            ("wardline status --watch --wait", "--wait"),
            ("wardline status --wait=soon", "soon"),
            ("wardline status --timeout 5m", "--wait"),
            ("wardline status --as-group ops", "--as"),
            ("wardline sysdump --size-limit 5x", "5x"),
        ] {
            let error = Cli::try_parse_from(arguments.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments}");
            assert!(error.to_string().contains(names), "{arguments}: {error}");
        }
    }
}
