// SPDX-License-Identifier: Apache-2.0
//! The figures, as a table and as JSON.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One measurement in ns a packet, and what it is held against.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) baseline: f64,
    /// The ratio that it should not exceed; NaN where there is none.
    pub(crate) target: f64,
}

impl Figure {
    fn ratio(&self) -> f64 {
        self.value / self.baseline
    }

    fn to_json(&self) -> Value {
        let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
        json!({
            "name": self.name,
            "value": rounded(self.value),
            "unit": "ns/packet",
            "baseline": rounded(self.baseline),
            "ratio": rounded(self.ratio()),
            // Not a number becomes null.
            "target": self.target,
        })
    }
}

pub(crate) fn print(figures: &[Figure]) {
    println!(
        "{:<46} {:>9} {:>9} {:>7} {:>7}",
        "PACKET PROGRAM", "NS", "OVER", "RATIO", "TARGET"
    );
    for figure in figures {
        let target = if figure.target.is_nan() {
            "-".into()
        } else {
            format!("{:.2}", figure.target)
        };
        println!(
            "{:<46} {:>9.1} {:>9.1} {:>6.2}x {:>7}",
            figure.name,
            figure.value,
            figure.baseline,
            figure.ratio(),
            target
        );
    }
}

pub(crate) fn write(path: &Path, figures: &[Figure]) -> Result<()> {
    let list: Vec<Value> = figures.iter().map(Figure::to_json).collect();
    let file = File::create(path).with_context(|| format!("failed to create {}", path.display()))?;
    serde_json::to_writer_pretty(BufWriter::new(file), &list)
        .with_context(|| format!("failed to write {}", path.display()))
}
