// SPDX-License-Identifier: Apache-2.0
//! `wardline`: how the cluster is, what its policies say, and what they did.
//!
//! ```text
//! wardline status         API server ------> Wardline's objects and pods, metrics --report-------> table | JSON
//! wardline observe        daemons ---------> records as they are written ---merged---------------> table | lines | JSON
//! wardline logs           files -----------> records ---filtered, summed up----------------------> table | lines | JSON
//! wardline policy check   files -----------> NetworkPolicies --wardline_policy::convert----------> table | JSON
//! wardline policy eval    API server|files-> Inventory --wardline_policy::evaluate, both edges---> text  | JSON
//! wardline sysdump        API server, nodes> objects, messages, metrics --what may be shown------> archive
//! ```
//!
//! What a policy means is `wardline_policy`'s alone to say; this crate reads objects, asks it, and prints.

mod args;
mod cluster;
mod daemons;
mod decode;
mod logs;
mod manifests;
mod observe;
mod output;
mod policy;
mod records;
mod span;
mod status;
mod sysdump;

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use clap::CommandFactory as _;

pub use args::{
    CheckArgs, Cli, ClusterArgs, Command, EvalArgs, FileArgs, Format, FormatArgs, PartyArg, PolicyCommand, ProtocolArg,
    ServiceArg, SystemArgs,
};

pub use logs::LogsArgs;
pub use observe::ObserveArgs;
pub use records::Color;
pub use status::StatusArgs;
pub use sysdump::SysdumpArgs;

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
    refuse_formats(&cli.command)?;
    let mut text = Vec::new();
    let outcome = match &cli.command {
        Command::Observe(args) => return unless_closed(observe::run(args, &cli.cluster, out)),
        Command::Logs(args) => return unless_closed(logs::run(args, input, out)),
        Command::Status(args) if args.watch => return unless_closed(status::watch(args, &cli.cluster, out)),
        Command::Sysdump(args) => return sysdump::run(args, &cli.cluster, out),
        Command::Status(args) => status::run(args, &cli.cluster, &mut text)?,
        Command::Policy(PolicyCommand::Check(args)) => policy::check::run(args, input, &mut text)?,
        Command::Policy(PolicyCommand::Eval(args)) => policy::eval::run(args, &cli.cluster, input, &mut text)?,
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

/// Not every command has every form.
fn refuse_formats(command: &Command) -> anyhow::Result<()> {
    let (format, has_wide) = match command {
        Command::Status(args) => (args.format.output, true),
        Command::Policy(PolicyCommand::Check(args)) => (args.format.output, false),
        Command::Policy(PolicyCommand::Eval(args)) => (args.format.output, false),
        Command::Observe(_) | Command::Logs(_) | Command::Sysdump(_) | Command::Completion { .. } => return Ok(()),
    };
    match format {
        Format::Wide if !has_wide => {
            anyhow::bail!("only status, observe and logs are written as wide: use -o table or -o json")
        }
        Format::Compact => anyhow::bail!("only observe and logs are written as compact: use -o table or -o json"),
        Format::Table | Format::Wide | Format::Json => Ok(()),
    }
}

/// Whoever reads may have read enough, as `head` does.
fn unless_closed(outcome: anyhow::Result<Outcome>) -> anyhow::Result<Outcome> {
    let is_closed = |error: &anyhow::Error| {
        let cause = error.downcast_ref::<io::Error>();
        cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    };
    match outcome {
        Err(error) if is_closed(&error) => Ok(Outcome::Well),
        outcome => outcome,
    }
}
