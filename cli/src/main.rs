// SPDX-License-Identifier: Apache-2.0

use std::io;
use std::process::ExitCode;

use clap::Parser as _;
use wardline_cli::{Cli, run};

fn main() -> ExitCode {
    match run(&Cli::parse(), &mut io::stdin().lock(), &mut io::stdout().lock()) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("wardline: {error:#}");
            ExitCode::from(2)
        }
    }
}
