// SPDX-License-Identifier: Apache-2.0
//! Runs a command line through the library, from the crate's folder.

#![allow(clippy::unwrap_used, reason = "tests")]

use clap::Parser as _;
use wardline_cli::{Cli, Outcome, run};

/// What a command says, or the error that it ends with, and its exit code. `input` is what `-f -` reads.
#[track_caller]
pub fn wardline(command: &str, input: &str) -> (String, u8) {
    let cli = Cli::try_parse_from(["wardline"].into_iter().chain(command.split_whitespace())).unwrap();
    let mut out = Vec::new();
    match run(&cli, &mut input.as_bytes(), &mut out) {
        Ok(outcome) => (String::from_utf8(out).unwrap(), u8::from(outcome == Outcome::Problems)),
        Err(error) => (format!("{error:#}"), 2),
    }
}
