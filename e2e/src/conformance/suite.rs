// SPDX-License-Identifier: Apache-2.0
//! The suite's binary: its cases, and one run of one of them.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tokio::process::Command;

use super::Outcome;
use crate::layout::Layout;

/// The suite's part about network policies, and what of it is left out: by its tag, since cases about TCP speak of SCTP
/// too.
const FOCUS: &str = r"\[sig-network\] Netpol";
const SKIP: &str = r"\[Feature:SCTPConnectivity\]";
/// Nothing of its own waits longer; one that hangs shall not hold up the others for the hour that it has otherwise.
const TIMEOUT: &str = "--ginkgo.timeout=10m";

/// A case by its full name, with which the suite selects it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case(String);

impl Case {
    #[cfg(test)]
    pub(super) fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// Its name without the tags that all of them have.
    pub fn name(&self) -> &str {
        let name = self.0.trim_start_matches("[sig-network] Netpol ");
        name.trim_end_matches(" [Feature:NetworkPolicy]")
    }

    /// A regular expression that matches it and no other. The name is quoted by dots: what is a letter in every dialect
    /// stays.
    fn focus(&self) -> String {
        let quoted = |letter: char| {
            if letter.is_ascii_alphanumeric() || letter == ' ' {
                letter
            } else {
                '.'
            }
        };
        self.0.chars().map(quoted).chain(['$']).collect()
    }

    fn file_name(&self) -> String {
        let dashed = |letter: char| {
            if letter.is_ascii_alphanumeric() {
                letter.to_ascii_lowercase()
            } else {
                '-'
            }
        };
        let name: String = self.name().chars().map(dashed).collect();
        name.split('-')
            .filter(|word| !word.is_empty())
            .collect::<Vec<_>>()
            .join("-")
    }
}

/// What the suite's JSON report says of one run.
#[derive(Deserialize)]
struct Report {
    #[serde(rename = "SpecReports")]
    specs: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
}

/// Every case that is run, in the order of their names, as the suite itself tells them.
pub async fn cases(layout: &Layout) -> Result<Vec<Case>> {
    let report = tempfile::NamedTempFile::new().context("failed to make a file for the suite's report")?;
    let output = e2e_test(layout)
        .arg("--ginkgo.dry-run")
        .arg(format!("--ginkgo.focus={FOCUS}"))
        .arg(format!("--ginkgo.skip={SKIP}"))
        .arg(format!("--ginkgo.json-report={}", report.path().display()))
        .output()
        .await
        .context("failed to start e2e.test")?;
    ensure!(
        output.status.success(),
        "failed to list the suite's cases: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    let text = fs::read(report.path()).context("failed to read the suite's report")?;
    parse(&text)
}

fn parse(report: &[u8]) -> Result<Vec<Case>> {
    let reports: Vec<Report> = serde_json::from_slice(report).context("failed to decode the suite's report")?;
    let specs = reports.into_iter().flat_map(|report| report.specs);
    let selected = specs.filter(|spec| spec.leaf_node_type == "It" && spec.state == "passed");
    let name = |spec: Spec| {
        let mut words = spec.container_hierarchy_texts.unwrap_or_default();
        words.push(spec.leaf_node_text);
        Case(words.join(" "))
    };
    let mut cases: Vec<Case> = selected.map(name).collect();
    cases.sort();
    ensure!(!cases.is_empty(), "failed to list the suite's cases: it has none");
    Ok(cases)
}

/// Runs a case in a process of its own.
pub async fn run_one(layout: &Layout, case: &Case, round: u32) -> Result<Outcome> {
    let log = layout.conformance().join(format!("{}-{round}.log", case.file_name()));
    let output = fs::File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
    let errors = output
        .try_clone()
        .with_context(|| format!("failed to duplicate {}", log.display()))?;
    let start = Instant::now();
    let status = e2e_test(layout)
        .arg(format!("--kubeconfig={}", layout.kubeconfig().display()))
        .arg(format!("--ginkgo.focus={}", case.focus()))
        .args(["--dump-logs-on-failure=false", TIMEOUT])
        .stdout(output)
        .stderr(errors)
        .status()
        .await
        .context("failed to start e2e.test")?;
    Ok(Outcome {
        case: case.clone(),
        round,
        // A focus that matches nothing succeeds too.
        passed: status.success() && ran_one(&log)?,
        exit_code: status.code(),
        took: start.elapsed(),
        log,
    })
}

fn ran_one(log: &Path) -> Result<bool> {
    let text = fs::read(log).with_context(|| format!("failed to read {}", log.display()))?;
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .any(|line| line.starts_with("Ran 1 of ")))
}

fn e2e_test(layout: &Layout) -> Command {
    let mut command = Command::new(layout.bin("e2e.test"));
    command
        .args(["--provider=skeleton", "--test.run=TestUpstream", "--ginkgo.no-color"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::{Case, parse};

    const REPORT: &str = r#"[{"SpecReports": [
        {"ContainerHierarchyTexts": null, "LeafNodeText": "", "LeafNodeType": "BeforeSuite", "State": "passed"},
        {"ContainerHierarchyTexts": ["[sig-network] Netpol", "server"], "LeafNodeText": "should support a 'deny' [Feature:NetworkPolicy]",
         "LeafNodeType": "It", "State": "passed"},
        {"ContainerHierarchyTexts": ["[sig-network] DNS"], "LeafNodeText": "x", "LeafNodeType": "It", "State": "skipped"}
    ]}]"#;

    #[test]
    fn the_cases_are_those_that_a_dry_run_passes() {
        let cases = parse(REPORT.as_bytes()).unwrap();
        let names: Vec<&str> = cases.iter().map(Case::name).collect();
        assert_eq!(names, ["server should support a 'deny'"]);
    }

    #[test]
    fn a_suite_without_cases_is_an_error() {
        assert!(parse(br#"[{"SpecReports": []}]"#).is_err());
    }

    #[test]
    fn a_focus_is_the_quoted_name() {
        let case = Case("[sig-network] Netpol (even if 'x')".to_owned());
        assert_eq!(case.focus(), ".sig.network. Netpol .even if .x..$");
        assert_eq!(case.file_name(), "even-if-x");
    }
}
