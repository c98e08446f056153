// SPDX-License-Identifier: Apache-2.0
//! The command line of `wardline logs`.

use std::path::PathBuf;

use clap::Args;
use wardline_record::filter::Filter;

use crate::args::FormatArgs;
use crate::records::{Color, When};

pub(crate) const EXAMPLES: &str = "\
Examples:
  # on a node: what was denied in the last ten minutes
  wardline logs --verdict deny --since 10m

  # who is denied most, by which policy, and when
  wardline logs --summary

  # files from somewhere else, as JSON
  zcat old/*.gz | wardline logs -o json --policy shop/db-isolate -

Exit codes: 0 all lines are records; 1 some are not, and are told on standard error; 2 wrong usage, or a file cannot be read.";

#[derive(Args, Debug, Clone)]
pub struct LogsArgs {
    /// Files of records in the order of their times, `-` for standard input; without any, this node's log and what was
    /// rotated of it
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Only what was still going on at this time, or so long ago: 2026-06-13T21:29:31Z, 2026-06-13, 90s, 10m, 2h, 7d
    #[arg(long, value_name = "TIME")]
    pub since: Option<When>,

    /// Only what had begun before this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<When>,

    /// Sum up: top denied pairs, by policy, over time, and what was lost
    #[arg(long)]
    pub summary: bool,

    /// Rows of each of the summary's tables
    #[arg(long, value_name = "NUMBER", default_value_t = 10, requires = "summary")]
    pub top: usize,

    /// Whether to colour verdicts
    #[arg(long, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,

    #[command(flatten)]
    pub filter: Filter,

    #[command(flatten)]
    pub format: FormatArgs,
}
