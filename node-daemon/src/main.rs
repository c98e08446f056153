// SPDX-License-Identifier: Apache-2.0

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    match wardline_node::run::run(wardline_node::args::Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wardline-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}
