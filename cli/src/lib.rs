// SPDX-License-Identifier: Apache-2.0
//! `wardline`: how the cluster is, and what its policies say.
//!
//! ```text
//! wardline status         API server ------> Dataplane, NetworkLogging, DataplaneNodes --report--> table | JSON
//! wardline policy check   files -----------> NetworkPolicies --wardline_policy::convert----------> table | JSON
//! wardline policy eval    API server|files-> Inventory --wardline_policy::evaluate, both edges---> text  | JSON
//! ```
//!
//! What a policy means is `wardline_policy`'s alone to say; this crate reads objects, asks it, and prints.

mod args;
mod cluster;
mod decode;
mod manifests;
mod output;
mod policy;
mod status;

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use clap::CommandFactory as _;

pub use args::{
    CheckArgs, Cli, ClusterArgs, Command, EvalArgs, FileArgs, Format, PartyArg, PolicyCommand, ProtocolArg, ServiceArg,
};

/// What a command found; errors are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well, or the flow is allowed.
    Well,
    /// Something is wrong, or the flow is denied.
    Problems,
}

impl Outcome {
    fn well_if(well: bool) -> Self {
        if well { Self::Well } else { Self::Problems }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Well => Self::SUCCESS,
            Outcome::Problems => Self::from(1),
        }
    }
}

/// Runs one command: `-f -` reads from `input`, what it says goes to `out`.
pub fn run(cli: &Cli, input: &mut dyn BufRead, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let mut text = Vec::new();
    let outcome = match &cli.command {
        Command::Status => status::run(&cli.cluster, cli.output, &mut text)?,
        Command::Policy(PolicyCommand::Check(args)) => policy::check::run(args, cli.output, input, &mut text)?,
        Command::Policy(PolicyCommand::Eval(args)) => {
            policy::eval::run(args, &cli.cluster, cli.output, input, &mut text)?
        }
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "wardline", &mut text);
            Outcome::Well
        }
    };
    match out.write_all(&text).and_then(|()| out.flush()) {
        // Whoever reads has read enough, as `head` does; the exit code still tells what was found.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(outcome),
        written => written
            .map(|()| outcome)
            .map_err(|error| anyhow::Error::new(error).context("failed to write the output")),
    }
}
