// SPDX-License-Identifier: Apache-2.0
//! The chart's alerts and dashboard, as tests read them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::layout::Layout;

/// An alert of `charts/wardline/files/alerts.yaml`.
#[derive(Debug, Clone, Deserialize)]
pub struct Alert {
    #[serde(rename = "alert")]
    pub name: String,
    pub expr: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Alert>,
}

/// A panel of `charts/wardline/files/dashboard.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Panel {
    pub id: u32,
    pub title: String,
    pub description: String,
    pub targets: Vec<Target>,
}

/// What a panel asks.
#[derive(Debug, Clone, Deserialize)]
pub struct Target {
    pub expr: String,
}

impl Target {
    /// The query as Grafana sends it, for all nodes.
    pub fn query(&self) -> String {
        self.expr.replace("$node", ".*").replace("$__rate_interval", "1m")
    }
}

#[derive(Deserialize)]
struct Dashboard {
    panels: Vec<Panel>,
}

/// Where the alerts are.
pub fn alerts_file(layout: &Layout) -> PathBuf {
    layout.workspace().join("charts/wardline/files/alerts.yaml")
}

/// All alerts.
pub fn alerts(layout: &Layout) -> Result<Vec<Alert>> {
    let file: RuleFile = read(&alerts_file(layout))?;
    Ok(file.groups.into_iter().flat_map(|group| group.rules).collect())
}

/// All panels of the dashboard.
pub fn panels(layout: &Layout) -> Result<Vec<Panel>> {
    let dashboard: Dashboard = read(&layout.workspace().join("charts/wardline/files/dashboard.json"))?;
    Ok(dashboard.panels)
}

/// YAML, or JSON, which is YAML too.
fn read<T: DeserializeOwned>(path: &PathBuf) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    serde_yaml::from_str(&text).with_context(|| format!("failed to decode {}", path.display()))
}

/// The metrics that an expression names, without the endings of a histogram's series.
pub fn metrics_in(expression: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c| !is_part(c));
    let names = words.filter(|word| word.starts_with("wardline_"));
    let bare = |name: &str| {
        let endings = ["_bucket", "_sum", "_count"];
        let bare = endings.iter().find_map(|ending| name.strip_suffix(ending));
        bare.unwrap_or(name).to_owned()
    };
    names.map(bare).collect()
}

#[cfg(test)]
mod tests {
    use super::metrics_in;

    #[test]
    fn metrics_are_found_in_expressions() {
        let found = metrics_in("sum(rate(wardline_a_total{x=\"wardline-node\"}[5m])) / wardline_b_seconds_bucket > 0");
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            ["wardline_a_total", "wardline_b_seconds"]
        );
    }
}
