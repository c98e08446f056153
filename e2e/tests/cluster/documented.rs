// SPDX-License-Identifier: Apache-2.0
//! The commands of docs/operations.md: each is run as it stands, or by another test, or says itself that it was not tried.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use wardline_e2e::layout::Layout;
use wardline_e2e::namespace::{TestNamespace, with_namespace};
use wardline_e2e::progress::step;

use crate::WEB_TAKES_FRIENDS;

const PAGE: &str = "docs/operations.md";
const PROGRAMS: [&str; 6] = ["helm", "jq", "kubectl", "make", "wardline", "wardline-node"];
/// What a command says of itself that nobody ran.
const NOT_TRIED: &str = "not tried here";

/// What a command begins with that another test runs, or the lab itself; the file, and a word of it.
const ELSEWHERE: [(&str, &str, &str); 17] = [
    (
        "helm install wardline",
        "e2e/src/wardline.rs",
        "\"upgrade\", \"--install\"",
    ),
    (
        "helm upgrade --install --take-ownership",
        "e2e/tests/cluster/applied_twice.rs",
        "--take-ownership",
    ),
    (
        "helm upgrade wardline",
        "e2e/tests/cluster/monitoring.rs",
        "the_chart_renders_what_it_is_asked_for",
    ),
    ("helm test wardline", "e2e/tests/cluster/chart.rs", "wardline::test"),
    (
        "helm uninstall wardline",
        "e2e/tests/cluster/removal.rs",
        "wardline::uninstall",
    ),
    (
        "kubectl apply --server-side --filename target/manifests",
        "e2e/tests/cluster/applied_twice.rs",
        "--server-side",
    ),
    ("kubectl apply --kustomize", "e2e/tests/chart/manifests.rs", "kustomize"),
    ("kubectl delete dataplane default", "operator/src/remove.rs", "delete"),
    (
        "kubectl logs --namespace wardline-system job/wardline-removal",
        "e2e/tests/cluster/removal.rs",
        "wardline::uninstall",
    ),
    (
        "kubectl logs --namespace wardline-system job/wardline-crds",
        "e2e/tests/cluster/chart.rs",
        "wardline-crds",
    ),
    ("make images", "e2e/src/images.rs", "build_binaries"),
    ("make manifests", "e2e/tests/chart/manifests.rs", "manifests"),
    ("wardline observe", "e2e/tests/cluster/observe.rs", "observe"),
    ("wardline status", "e2e/tests/cluster/status.rs", "status --wait"),
    ("wardline sysdump", "e2e/tests/cluster/sysdump.rs", "sysdump"),
    ("wardline policy eval", "cli/tests/eval.rs", "--from"),
    (
        "wardline-node cleanup --check",
        "operator/src/dataplane/build.rs",
        "--check",
    ),
];

/// Each command of the page once: those of its shell blocks, and those in its text that have an argument.
fn commands(page: &str) -> BTreeSet<String> {
    let (mut found, mut text) = (BTreeSet::new(), String::new());
    let mut blocks = page.split("```");
    while let Some(outside) = blocks.next() {
        text += outside;
        let Some(block) = blocks.next() else { break };
        let Some(script) = block.strip_prefix("sh\n") else {
            continue;
        };
        let whole = script.replace("\\\n", " ");
        found.extend(
            whole
                .lines()
                .map(words)
                .filter(|command| !command.is_empty() && !command.starts_with('#')),
        );
    }
    let is_command = |code: &String| {
        let mut words = code.split(' ');
        words.next().is_some_and(|first| PROGRAMS.contains(&first)) && words.count() >= 2
    };
    found.extend(text.split('`').skip(1).step_by(2).map(words).filter(is_command));
    found
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether somebody else runs it, who is still there.
fn is_run_elsewhere(workspace: &Path, command: &str) -> Result<bool> {
    let Some((_, file, word)) = ELSEWHERE.iter().find(|(begins, ..)| command.starts_with(begins)) else {
        return Ok(false);
    };
    let source = fs::read_to_string(workspace.join(file)).with_context(|| format!("failed to read {file}"))?;
    ensure!(source.contains(word), "{command}: {file} has no {word:?} any more");
    Ok(true)
}

/// As it stands, but for names that stand for the reader's own.
fn with_names(command: &str, layout: &Layout) -> String {
    let log = layout.lab().join("node1/root/var/log/network/policy_action.log");
    command
        .replace("/var/log/network/policy_action.log", &log.display().to_string())
        .replace("NODE", "node1")
}

#[tokio::test]
async fn each_command_of_the_operations_page_works_or_says_that_nobody_tried() -> Result<()> {
    with_namespace("documented", async |namespace: &TestNamespace| {
        let layout = namespace.lab.layout();
        namespace.server("web", "node1").await?;
        namespace.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        let page = fs::read_to_string(layout.workspace().join(PAGE)).context("failed to read the page")?;
        let (mut run, mut elsewhere, mut untried) = (0, 0, 0);
        for command in commands(&page) {
            if command.contains(NOT_TRIED) {
                untried += 1;
                continue;
            }
            if is_run_elsewhere(layout.workspace(), &command)? {
                elsewhere += 1;
                continue;
            }
            run += 1;
            step(&format!("  {command}"));
            let output = tokio::process::Command::new("bash")
                .args(["-euo", "pipefail", "-c", &with_names(&command, layout)])
                .current_dir(layout.workspace())
                .env("KUBECONFIG", layout.kubeconfig())
                .env("PATH", format!("{}:/usr/bin:/bin", layout.bin("").display()))
                .output()
                .await
                .with_context(|| format!("failed to run {command}"))?;
            ensure!(output.status.success(), "{command}: {output:?}");
        }
        println!("{run} commands run, {elsewhere} by other tests, {untried} not tried");
        ensure!(run >= 10, "there are hardly any commands on the page: {run}");
        Ok(())
    })
    .await
}

#[test]
fn commands_are_found_in_blocks_and_in_text() {
    let page = "As `kubectl get  nodes` says, `kubectl logs` and `a word`.\n```sh\nhelm test x \\\n  --logs   # why\n\n# note\n```\n```\nnot one\n```\n";
    let expected = ["helm test x --logs # why", "kubectl get nodes"];
    assert_eq!(commands(page), expected.map(str::to_owned).into());
}
