// SPDX-License-Identifier: Apache-2.0
//! Cases of Kubernetes' own network policy suite.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use wardline_e2e::cluster::Lab;
use wardline_e2e::{kube_proxy, logging};

/// The ingress cases that are run. The suite has some again over UDP and over SCTP, which the focus leaves out: SCTP
/// needs a kernel module that not every machine has.
const CASES: [&str; 3] = [
    "should support a 'default-deny-ingress' policy",
    "should enforce policy to allow traffic from pods within server namespace based on PodSelector",
    "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector",
];

#[tokio::test]
async fn ingress_cases_of_the_upstream_suite_pass() -> Result<()> {
    let lab = Lab::connect().await?;
    let _alone = wardline_e2e::namespace::alone().await;
    // The suite's own probes are many, and nobody reads their records.
    logging::set(&lab, false).await?;
    kube_proxy::start(lab.layout()).await?;
    let focus: Vec<String> = CASES
        .iter()
        .map(|case| {
            format!(
                "Netpol NetworkPolicy between server and client {}",
                case.replace('\'', ".")
            )
        })
        .collect();
    let output = tokio::process::Command::new(lab.layout().bin("e2e.test"))
        .arg(format!("--kubeconfig={}", lab.layout().kubeconfig().display()))
        .args([
            "--provider=skeleton",
            "--dump-logs-on-failure=false",
            "--ginkgo.no-color",
        ])
        .args([
            "--test.run=TestUpstream",
            &format!("--ginkgo.focus={}", focus.join("|")),
        ])
        .stdin(Stdio::null())
        .output()
        .await
        .context("failed to start e2e.test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = text
        .lines()
        .find(|line| line.starts_with("Ran "))
        .unwrap_or("it ran nothing");
    println!("{summary}");
    ensure!(output.status.success(), "{}: {summary}\n{text}", output.status);
    // A focus that matches nothing succeeds too.
    ensure!(
        summary.starts_with(&format!("Ran {} of", CASES.len())),
        "{summary}\n{text}"
    );
    Ok(())
}
