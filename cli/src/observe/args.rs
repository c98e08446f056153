// SPDX-License-Identifier: Apache-2.0
//! The command line of `wardline observe`.

use std::path::PathBuf;

use clap::Args;
use wardline_record::filter::Filter;

use crate::args::{FormatArgs, SystemArgs};
use crate::records::Color;

pub(crate) const EXAMPLES: &str = "\
Examples:
  # the last verdicts of all nodes, and then what comes
  wardline observe -f

  # who is denied at the database, with all that is known
  wardline observe -f --verdict deny --pod shop/db-0 --port 5432 -o wide

  # what a policy allowed lately, as JSON
  wardline observe --policy shop/db-takes-web --last 1000 -o json

On a node with Wardline, as root, it shows that node alone; elsewhere it runs `wardline-node observe` in each daemon's pod,
which needs the right to list pods and to `create` and `get` pods/exec in their namespace.

Exit codes: 0 all nodes answered; 1 some did not, and are named on standard error; 2 wrong usage, or none did.";

#[derive(Args, Debug, Clone)]
pub struct ObserveArgs {
    /// Go on with what comes, until stopped
    #[arg(short, long)]
    pub follow: bool,

    /// So many records of the past; with --follow, of each node
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    pub last: usize,

    /// Whether to colour verdicts
    #[arg(long, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,

    /// Ask the daemon of this machine by its socket, and no cluster
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kubeconfig", "context", "as_user"])]
    pub socket: Option<PathBuf>,

    #[command(flatten)]
    pub system: SystemArgs,

    #[command(flatten)]
    pub filter: Filter,

    #[command(flatten)]
    pub format: FormatArgs,
}
