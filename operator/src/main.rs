// SPDX-License-Identifier: Apache-2.0
use std::process::ExitCode;

use clap::Parser;
use wardline_operator::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wardline-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}
