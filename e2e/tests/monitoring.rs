// SPDX-License-Identifier: Apache-2.0
//! The chart's alerts and dashboard hold together with the documentation, and the alerts with their tests. What they give
//! on a cluster is tests/cluster/monitoring.rs.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;

use serde_yaml::Value;
use wardline_e2e::layout::Layout;
use wardline_e2e::monitoring::{alerts, metrics_in, panels};

fn read(path: &str) -> String {
    fs::read_to_string(Layout::of_workspace().workspace().join(path)).unwrap()
}

/// What stands in backticks at the beginning of the rows of the page's tables.
fn documented(prefix: &str) -> BTreeSet<String> {
    let page = read("docs/operations.md");
    let cells = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells
        .filter(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .collect()
}

// The program is unpacked for it, see src/tools.rs.
#[cfg(feature = "shipping-tests")]
#[test]
fn rules_are_what_prometheus_takes_and_fire_when_they_should() {
    use wardline_e2e::monitoring::alerts_file;
    use wardline_e2e::prometheus::promtool;

    let layout = Layout::of_workspace();
    promtool(&layout, &["check", "rules"], &[&alerts_file(&layout)]).unwrap();
    let tests = layout.workspace().join("e2e/monitoring/alerts_test.yaml");
    promtool(&layout, &["test", "rules"], &[&tests]).unwrap();
}

#[test]
fn each_alert_is_tested_to_fire_and_not_to_fire() {
    let file: Value = serde_yaml::from_str(&read("e2e/monitoring/alerts_test.yaml")).unwrap();
    let mut cases = BTreeSet::new();
    for test in file["tests"].as_sequence().unwrap() {
        for case in test["promql_expr_test"].as_sequence().unwrap() {
            let asked = case["expr"].as_str().unwrap().split('"').nth(1).unwrap();
            let fires = !case["exp_samples"].as_sequence().unwrap().is_empty();
            cases.insert((asked.to_owned(), fires));
        }
    }
    let names = alerts(&Layout::of_workspace())
        .unwrap()
        .into_iter()
        .map(|alert| alert.name);
    let wanted = names.flat_map(|name| [(name.clone(), false), (name, true)]);
    assert_eq!(cases, wanted.collect());
}

#[test]
fn alerts_are_documented() {
    let alerts = alerts(&Layout::of_workspace()).unwrap();
    let names = alerts.iter().map(|alert| alert.name.clone());
    assert_eq!(documented("Wardline"), names.collect());
    for alert in &alerts {
        let severity = alert.labels["severity"].as_str();
        assert!(["critical", "warning", "info"].contains(&severity), "{}", alert.name);
        for annotation in ["summary", "description"] {
            assert!(!alert.annotations[annotation].is_empty(), "{}", alert.name);
        }
        assert!(
            alert.annotations["runbook_url"].ends_with("/docs/operations.md#alerts"),
            "{}",
            alert.name
        );
    }
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_are_documented() {
    let layout = Layout::of_workspace();
    let documented = documented("wardline_");
    let alerts = alerts(&layout)
        .unwrap()
        .into_iter()
        .map(|alert| (alert.name, alert.expr));
    let panels = panels(&layout).unwrap();
    assert!(panels.len() > 10 && panels.len() <= 15, "{} panels", panels.len());
    let ids: BTreeSet<u32> = panels.iter().map(|panel| panel.id).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has its number");
    let targets = panels.iter().flat_map(|panel| {
        let asks = |target: &wardline_e2e::monitoring::Target| (panel.title.clone(), target.expr.clone());
        panel.targets.iter().map(asks)
    });
    for (who, expression) in alerts.chain(targets) {
        let metrics = metrics_in(&expression);
        let is_other = expression.starts_with("up{");
        assert!(is_other || !metrics.is_empty(), "{who}: {expression}");
        let unknown: Vec<_> = metrics.difference(&documented).collect();
        assert!(
            unknown.is_empty(),
            "{who} asks for {unknown:?}, which operations.md does not name"
        );
    }
}
