// SPDX-License-Identifier: Apache-2.0
//! Figures: one table, one JSON file.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

/// What a figure should reach: its ratio to the baseline where it has one, its value otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Lower is better.
    AtMost(f64),
    /// Higher is better.
    AtLeast(f64),
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What it is called in the table and the file.
    pub name: String,
    /// In `unit`.
    pub value: f64,
    /// Such as `us`.
    pub unit: String,
    /// What the same measurement gave without the thing that is measured, in the same run.
    pub baseline: Option<f64>,
    /// What it should reach, if there is such a figure.
    pub target: Option<Target>,
    /// What was done to get it, in one line.
    pub measured: String,
}

/// A figure of the packet programs, as `packet_bench` writes it; its target is the ratio that it should not exceed.
#[derive(Deserialize)]
struct PacketFigure {
    name: String,
    value: f64,
    unit: String,
    baseline: f64,
    target: Option<f64>,
}

impl Figure {
    /// Value over baseline.
    pub fn ratio(&self) -> Option<f64> {
        self.baseline.map(|baseline| self.value / baseline)
    }

    /// Whether the target is reached; none without a target.
    pub fn is_met(&self) -> Option<bool> {
        let reached = self.ratio().unwrap_or(self.value);
        self.target.map(|target| match target {
            Target::AtMost(most) => reached <= most,
            Target::AtLeast(least) => reached >= least,
        })
    }

    fn to_json(&self) -> Value {
        let target = self.target.map(|target| match target {
            Target::AtMost(number) | Target::AtLeast(number) => number,
        });
        json!({
            "name": self.name,
            "value": rounded(self.value),
            "unit": self.unit,
            "baseline": self.baseline.map(rounded),
            "ratio": self.ratio().map(rounded),
            "target": target,
        })
    }

    fn row(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), show);
        let ratio = self
            .ratio()
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x"));
        let target = match self.target {
            Some(Target::AtMost(most)) => format!("<= {most}"),
            Some(Target::AtLeast(least)) => format!(">= {least}"),
            None => "-".to_owned(),
        };
        let met = match self.is_met() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        format!(
            "{:<46} {:>10} {:<10} {:>10} {ratio:>8} {target:>9}  {met}",
            self.name,
            show(self.value),
            self.unit,
            number(self.baseline)
        )
    }
}

/// The figures of the packet programs.
pub fn read_packet_figures(path: &Path) -> Result<Vec<Figure>> {
    let text = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    let figures: Vec<PacketFigure> =
        serde_json::from_slice(&text).with_context(|| format!("failed to decode {}", path.display()))?;
    let convert = |figure: PacketFigure| Figure {
        name: figure.name,
        value: figure.value,
        unit: figure.unit,
        baseline: Some(figure.baseline),
        target: figure.target.map(Target::AtMost),
        measured: String::new(),
    };
    Ok(figures.into_iter().map(convert).collect())
}

/// Prints the table, and how each figure of it was taken.
pub fn print(figures: &[Figure]) {
    println!(
        "\n{:<46} {:>10} {:<10} {:>10} {:>8} {:>9}  MET",
        "FIGURE", "VALUE", "UNIT", "BASELINE", "RATIO", "TARGET"
    );
    for figure in figures {
        println!("{}", figure.row());
    }
    println!();
    for figure in figures.iter().filter(|figure| !figure.measured.is_empty()) {
        println!("{}: {}", figure.name, figure.measured);
    }
    println!(
        "Ratios compare measurements of one run; absolute figures depend on the machine and on what else it does."
    );
}

/// Writes the figures as a JSON list of `{"name","value","unit","baseline","ratio","target"}`.
///
/// # Errors
/// Also when a figure is not a finite number: then it was not measured.
pub fn write(path: &Path, figures: &[Figure]) -> Result<()> {
    for figure in figures {
        let numbers = [Some(figure.value), figure.baseline, figure.ratio()];
        ensure!(
            numbers.into_iter().flatten().all(f64::is_finite),
            "failed to measure {}: {figure:?}",
            figure.name
        );
    }
    let list: Vec<Value> = figures.iter().map(Figure::to_json).collect();
    let text = serde_json::to_string_pretty(&list).context("failed to encode the figures")?;
    fs::write(path, text + "\n").with_context(|| format!("failed to write {}", path.display()))
}

/// The middle one of the samples, the upper of two; not a number if there are none.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn show(value: f64) -> String {
    if value.abs() < 1000.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Figure, Target, median, read_packet_figures, write};

    fn figure(value: f64, baseline: Option<f64>, target: Option<Target>) -> Figure {
        Figure {
            name: "a".into(),
            value,
            unit: "us".into(),
            baseline,
            target,
            measured: String::new(),
        }
    }

    #[test]
    fn a_target_is_for_the_ratio_where_there_is_one() {
        let cases = [
            (figure(3.0, Some(2.0), Some(Target::AtMost(1.5))), Some(true)),
            (figure(3.0, None, Some(Target::AtMost(1.5))), Some(false)),
            (figure(1.8, Some(2.0), Some(Target::AtLeast(0.85))), Some(true)),
            (figure(0.8, None, Some(Target::AtLeast(0.85))), Some(false)),
            (figure(0.8, None, None), None),
        ];
        for (figure, met) in cases {
            assert_eq!(figure.is_met(), met, "{figure:?}");
        }
    }

    #[test]
    fn figures_are_written_and_nothing_that_is_no_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench.json");
        write(&path, &[figure(3.0, Some(2.0), Some(Target::AtMost(1.5)))]).unwrap();
        let read = read_packet_figures(&path).unwrap();
        assert_eq!(read, [figure(3.0, Some(2.0), Some(Target::AtMost(1.5)))]);
        assert!(write(&path, &[figure(f64::NAN, None, None)]).is_err());
        assert!(write(&path, &[figure(1.0, Some(0.0), None)]).is_err());
    }

    #[test]
    fn a_median_is_a_sample() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }
}
