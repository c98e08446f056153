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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Case, Outcome};
    use super::{table, write};

    fn outcome(name: &str, round: u32, exit_code: i32) -> Outcome {
        Outcome {
            case: Case::named(name),
            round,
            passed: exit_code == 0,
            exit_code: Some(exit_code),
            took: Duration::from_millis(12_340),
            log: "/log".into(),
        }
    }

    #[test]
    fn a_row_a_case_and_a_column_a_round() {
        let outcomes = [
            outcome("b", 1, 0),
            outcome("a", 1, 0),
            outcome("b", 2, 1),
            outcome("a", 2, 0),
        ];
        let expected = "passed  12.3 s  passed  12.3 s  a\npassed  12.3 s  FAILED  12.3 s  b\n";
        assert_eq!(table(&outcomes), expected);
    }

    #[test]
    fn outcomes_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        write(&path, &[outcome("a", 1, 3)]).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let expected = serde_json::json!([
            {"case": "a", "round": 1, "passed": false, "exit_code": 3, "seconds": 12.3, "log": "/log"}
        ]);
        assert_eq!(read, expected);
    }
}
