// SPDX-License-Identifier: Apache-2.0
//! The command line of `wardline sysdump`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use wardline_crds::quantity::parse_bytes;

use crate::args::SystemArgs;
use crate::span::Span;

pub(crate) const EXAMPLES: &str = "\
Examples:
  # one archive, named after context and time
  wardline sysdump

  # what operator and daemons said in the last two hours, in at most 20 MiB
  wardline sysdump --since 2h --size-limit 20Mi --output dump.tar.gz

  # look what is in it, without a file
  wardline sysdump -o - | tar tz

It holds what Wardline and its policies are made of, field by field as docs/operations.md lists them: no Secrets, no values
of environment variables, no arguments, no annotations but Wardline's own switches. It does hold names, labels and
addresses of pods, and the last lines of the policy logs.

Exit codes: 0 all is in it; 1 some of it could not be had, and errors.txt in it says why; 2 wrong usage, or there is no archive.";

#[derive(Args, Debug, Clone)]
pub struct SysdumpArgs {
    /// File to write, which must not be there yet, or `-` for standard output; else
    /// wardline-sysdump-CONTEXT-TIME.tar.gz
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// How far back messages of operator and daemons go
    #[arg(long, value_name = "SPAN", default_value = "24h")]
    pub since: Span,

    /// How large the archive may be; what finds no room is named in errors.txt, of messages the last lines are kept
    #[arg(long, value_name = "BYTES", default_value = "100Mi")]
    pub size_limit: Size,

    /// Lines of each node's policy log, the newest; 0 for none
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub log_lines: u32,

    #[command(flatten)]
    pub system: SystemArgs,
}

/// Bytes, at least one MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
        if bytes < 1 << 20 {
            return Err("expected 1Mi or more".to_owned());
        }
        Ok(Self(bytes))
    }
}
