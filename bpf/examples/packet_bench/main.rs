// SPDX-License-Identifier: Apache-2.0
//! What the packet programs cost, over an empty program in the same run: `packet_bench [FILE]` prints a table, and
//! writes the figures to FILE as a JSON list. Needs root.
//!
//! Each figure is the median over interleaved rounds, so that a slow spell of the machine falls on all alike. Every
//! figure but the steady ones is taken through `rotate` (see `prog/harness.bpf.c`), with its own cost taken off again.

mod report;
mod world;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use report::Figure;
use world::{Scale, World};

/// Odd, for a median that is one of them.
const ROUNDS: usize = 15;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("packet_bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// One column a measurement, one row a round; the first column is the empty program.
fn measure(small: &mut World, large: &mut World) -> Result<Vec<Vec<f64>>> {
    let mut columns = vec![Vec::new(); 11];
    // The first round warms caches and branch predictors, and is thrown away.
    for round in 0..=ROUNDS {
        let empty = small.empty()?;
        let mut row = vec![empty];
        row.extend([small.established()?, small.denied()?, small.allowed()? + empty]);
        row.extend([large.established()?, large.denied()?, large.allowed()? + empty]);
        row.extend([
            small.established_rotating()? + empty,
            large.established_rotating()? + empty,
            small.translated()? + empty,
            small.allowed_without_room()? + empty,
        ]);
        if round > 0 {
            for (column, sample) in columns.iter_mut().zip(row) {
                column.push(sample);
            }
        }
    }
    Ok(columns)
}

fn run() -> Result<()> {
    let mut small = World::new(Scale::Small).context("failed to set up one rule")?;
    let mut large = World::new(Scale::Large).context("failed to set up 16k rules and 100k peers")?;
    let medians: Vec<f64> = measure(&mut small, &mut large)?.into_iter().map(median).collect();
    let [
        empty,
        established,
        denied,
        allowed,
        established_large,
        denied_large,
        allowed_large,
        rotating,
        rotating_large,
        translated,
        allowed_without_room,
    ] = medians[..]
    else {
        anyhow::bail!("failed to take all measurements: {} columns", medians.len());
    };
    let over_empty = |name, value, target| Figure {
        name,
        value,
        baseline: empty,
        target,
    };
    let figures = [
        over_empty("established", established, 3.0),
        over_empty("established-to-service", translated, 4.5),
        over_empty("denied", denied, 6.0),
        over_empty("allowed", allowed, 30.0),
        over_empty("established-16k-rules-100k-peers", established_large, 3.0),
        over_empty("denied-16k-rules-100k-peers", denied_large, 6.0),
        over_empty("allowed-16k-rules-100k-peers", allowed_large, 30.0),
        over_empty("established-45k-flows", rotating, f64::NAN),
        over_empty("established-45k-flows-16k-rules-100k-peers", rotating_large, f64::NAN),
        Figure {
            name: "established-growth",
            value: established_large,
            baseline: established,
            target: 1.05,
        },
        Figure {
            name: "denied-growth",
            value: denied_large,
            baseline: denied,
            target: 1.25,
        },
        Figure {
            name: "established-45k-flows-growth",
            value: rotating_large,
            baseline: rotating,
            target: 1.05,
        },
        Figure {
            name: "allowed-full-ring-growth",
            value: allowed_without_room,
            baseline: allowed,
            target: 1.05,
        },
    ];
    ensure!(
        empty > 0.0,
        "failed to measure the empty program: the kernel reports no time"
    );
    report::print(&figures);
    if let Some(path) = std::env::args_os().nth(1) {
        report::write(path.as_ref(), &figures)?;
    }
    Ok(())
}
