// SPDX-License-Identifier: Apache-2.0

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let ended = wardline_cni::run(
        |variable| std::env::var(variable).ok(),
        &mut io::stdin().lock(),
        &mut io::stdout().lock(),
        &mut io::stderr().lock(),
    );
    if ended { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
