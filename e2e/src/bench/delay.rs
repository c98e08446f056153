// SPDX-License-Identifier: Apache-2.0
//! How long records take, out of the daemon's own histogram.

use anyhow::{Context as _, Result};

use super::figure::Figure;
use crate::cluster::{LabNode, Metrics};

/// Cumulative counts by upper bound in seconds, ascending, the last without a bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Delays(Vec<(f64, f64)>);

impl Delays {
    /// Reads the node's metrics.
    pub async fn read(node: LabNode<'_>) -> Result<Self> {
        Self::of(&node.metrics().await?)
    }

    fn of(metrics: &Metrics) -> Result<Self> {
        let bucket = |line: &str| {
            let rest = line.strip_prefix("wardline_log_delay_seconds_bucket{le=\"")?;
            let (bound, count) = rest.split_once("\"} ")?;
            let bound = if bound == "+Inf" {
                f64::INFINITY
            } else {
                bound.parse().ok()?
            };
            Some((bound, count.parse().ok()?))
        };
        let buckets: Vec<_> = metrics.text().lines().filter_map(bucket).collect();
        let last = buckets
            .last()
            .context("failed to find the delays of records in the metrics")?;
        anyhow::ensure!(last.0.is_infinite(), "the delays of records have no last bucket");
        Ok(Self(buckets))
    }

    /// The delay below which this part of the records since `before` stayed, in milliseconds. Within a bucket they are
    /// taken for evenly spread.
    fn quantile(&self, before: &Self, part: f64) -> f64 {
        let counts = self.0.iter().zip(&before.0);
        let moved: Vec<(f64, f64)> = counts.map(|((bound, now), (_, then))| (*bound, now - then)).collect();
        let rank = part * moved.last().map_or(0.0, |(_, all)| *all);
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in moved {
            if count >= rank && count > below {
                let within = (rank - below) / (count - below);
                let upper = if bound.is_infinite() { lower } else { bound };
                return (lower + (upper - lower) * within) * 1e3;
            }
            (lower, below) = (bound, count);
        }
        0.0
    }

    /// `record_delay` and `record_delay_p99`: of the records since `before`.
    pub fn figures(&self, before: &Self, of: &str) -> [Figure; 2] {
        [
            ("record_delay", 0.5, "median"),
            ("record_delay_p99", 0.99, "99 of 100 are below it"),
        ]
        .map(|(name, part, what)| Figure {
            name: name.into(),
            value: self.quantile(before, part),
            unit: "ms".into(),
            baseline: None,
            target: None,
            measured: format!(
                "from a connection's first packet to its line in the file, {what}, {of}; from a histogram whose \
                     buckets double"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Delays;

    #[test]
    fn quantiles_are_of_what_came_since() {
        let before = Delays(vec![(0.001, 5.0), (0.002, 5.0), (f64::INFINITY, 5.0)]);
        let now = Delays(vec![(0.001, 15.0), (0.002, 105.0), (f64::INFINITY, 105.0)]);
        let near = |part: f64, expected: f64| (now.quantile(&before, part) - expected).abs() < 1e-6;
        assert!(near(0.1, 1.0));
        assert!(near(0.55, 1.5));
        assert!(near(1.0, 2.0));
        assert!((before.quantile(&before, 0.5)).abs() < 1e-9, "nothing came");
    }
}
