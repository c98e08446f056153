// SPDX-License-Identifier: Apache-2.0
//! The command line of `wardline status`.

use clap::{Args, ValueEnum};

use crate::args::{FormatArgs, SystemArgs};
use crate::records::Color;
use crate::span::Span;

pub(crate) const EXAMPLES: &str = "\
Examples:
  # how Wardline is, and what to do where it is not well
  wardline status

  # as it changes; on a pipe, a new block or JSON object for each change
  wardline status --watch
  wardline status --watch -o json | jq .problems

  # in a pipeline: until all is well, or every node has what the Dataplane asks for
  wardline status --wait --timeout 10m
  wardline status --wait=updated --timeout 10m

It lists Dataplanes, NetworkLoggings, DataplaneNodes and Nodes, and in Wardline's namespace Pods and Leases; what was lost
it reads from the daemons' metrics, which needs `get` of pods/proxy there.

Exit codes: 0 all is well, or came to be as waited for; 1 problems found, or not within the time; 2 wrong usage, or the
command failed.";

#[derive(Args, Debug, Clone)]
pub struct StatusArgs {
    /// Go on showing it as it changes, until stopped
    #[arg(short, long)]
    pub watch: bool,

    /// How often it is looked, with --watch or --wait
    #[arg(long, value_name = "SPAN", default_value = "2s")]
    pub interval: Span,

    /// Look until it is so, then show it
    #[arg(
        long,
        value_enum,
        value_name = "CONDITION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "well",
        conflicts_with = "watch"
    )]
    pub wait: Option<Awaited>,

    /// How long to wait at most
    #[arg(long, value_name = "SPAN", default_value = "5m", requires = "wait")]
    pub timeout: Span,

    /// Do not ask the daemons: losses are not known then
    #[arg(long)]
    pub skip_daemons: bool,

    /// Whether to colour what is wrong
    #[arg(long, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,

    #[command(flatten)]
    pub system: SystemArgs,

    #[command(flatten)]
    pub format: FormatArgs,
}

/// What is waited for.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// There are no problems
    Well,
    /// Dataplane and NetworkLogging are Ready, by an operator that has seen what they say now
    Ready,
    /// On every node, by a daemon that runs, all policies are in force
    Synced,
    /// Every node has the revision that the Dataplane asks for
    Updated,
}
