// SPDX-License-Identifier: Apache-2.0
//! Cases of Kubernetes' own network policy suite; `make conformance` runs all of it.
//!
//! Its pods reach each other through Services, so egress cases also show that policy judges the backend.

use anyhow::{Context as _, Result, ensure};
use wardline_e2e::cluster::Lab;
use wardline_e2e::{conformance, kube_proxy, namespace};

/// What each case is here for, and its name.
const CASES: [(&str, &str); 9] = [
    (
        "an empty podSelector",
        "NetworkPolicy between server and client should support a 'default-deny-ingress' policy",
    ),
    (
        "podSelector",
        "NetworkPolicy between server and client should enforce policy to allow traffic from pods within server namespace based on PodSelector",
    ),
    (
        "namespaceSelector",
        "NetworkPolicy between server and client should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector",
    ),
    (
        "named ports",
        "NetworkPolicy between server and client should allow ingress access on one named port",
    ),
    (
        "egress, to a named port",
        "NetworkPolicy between server and client should allow egress access on one named port",
    ),
    (
        "ipBlock with except",
        "NetworkPolicy between server and client should enforce except clause while egress access to server in CIDR block",
    ),
    (
        "an edited policy",
        "NetworkPolicy between server and client should enforce updated policy",
    ),
    (
        "an edited label",
        "NetworkPolicy between server and client should allow ingress access from updated pod",
    ),
    (
        "UDP",
        "[LinuxOnly] NetworkPolicy between server and client using UDP should enforce policy based on Ports",
    ),
];

#[tokio::test]
async fn cases_of_the_upstream_suite_pass() -> Result<()> {
    let lab = Lab::connect().await?;
    let _place = namespace::beside().await?;
    kube_proxy::stop(lab.layout())?;
    let all = conformance::cases(lab.layout()).await?;
    let mut chosen = Vec::new();
    for (_, name) in CASES {
        let found = all.iter().find(|case| case.name() == name);
        chosen.push(
            found
                .with_context(|| format!("the suite has no case `{name}`"))?
                .clone(),
        );
    }
    let outcomes = conformance::run(lab.layout(), &chosen, 1, conformance::WORKERS).await?;
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    ensure!(failed.is_empty(), "these failed: {failed:#?}");
    Ok(())
}
