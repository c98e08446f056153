// SPDX-License-Identifier: Apache-2.0
//! What is told of a run: a table for people, a JSON file for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::Outcome;
use crate::command::tail;

/// An outcome in one line.
pub fn line(outcome: &Outcome) -> String {
    format!("{} {}", cell(outcome), outcome.case.name())
}

/// Prints the table, and the ends of the logs of what failed.
pub fn print(outcomes: &[Outcome], took: Duration, workers: usize) {
    println!("\n{}", table(outcomes));
    let failed = outcomes.iter().filter(|outcome| !outcome.passed);
    for outcome in failed.clone() {
        println!(
            "{}, {}:\n{}",
            line(outcome),
            outcome.log.display(),
            tail(&outcome.log, 20)
        );
    }
    println!(
        "{} passed, {} failed, after {:.0} s with {workers} at a time",
        outcomes.len() - failed.clone().count(),
        failed.count(),
        took.as_secs_f64()
    );
}

/// A row a case, a column a round.
fn table(outcomes: &[Outcome]) -> String {
    let mut rows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for outcome in outcomes {
        rows.entry(outcome.case.name()).or_default().push(cell(outcome));
    }
    let mut text = String::new();
    for (name, cells) in rows {
        let _ = writeln!(text, "{}  {name}", cells.join("  "));
    }
    text
}

fn cell(outcome: &Outcome) -> String {
    let result = if outcome.passed { "passed" } else { "FAILED" };
    format!("{result} {:>5.1} s", outcome.took.as_secs_f64())
}

/// Writes the outcomes as a JSON list of `{"case","round","passed","exit_code","seconds","log"}`.
pub fn write(path: &Path, outcomes: &[Outcome]) -> Result<()> {
    let object = |outcome: &Outcome| {
        json!({
            "case": outcome.case.name(),
            "round": outcome.round,
            "passed": outcome.passed,
            "exit_code": outcome.exit_code,
            "seconds": (outcome.took.as_secs_f64() * 10.0).round() / 10.0,
            "log": outcome.log,
        })
    };
    let list: Vec<_> = outcomes.iter().map(object).collect();
    let text = serde_json::to_string_pretty(&list).context("failed to encode the outcomes")?;
    fs::write(path, text + "\n").with_context(|| format!("failed to write {}", path.display()))
}
