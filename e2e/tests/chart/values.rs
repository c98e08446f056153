// SPDX-License-Identifier: Apache-2.0
//! Values that the chart refuses, and what it says of them.

use anyhow::{Context as _, Result, ensure};
use wardline_e2e::chart;

use crate::layout;

const IMAGES: &str = "operator.image.repository=wardline/operator,daemon.image.repository=wardline/node";
const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// What is set, and parts of what is said of it.
fn wrong_values() -> Vec<(String, &'static [&'static str])> {
    const UNSET: &[&str] = &["daemon.image.repository is not set", "make images", "--set"];
    let mut rows: Vec<(String, &[&str])> = vec![
        (
            "daemon.image.repository=wardline/node".into(),
            &["operator.image.repository is not set", "make images", "--set"],
        ),
        ("operator.image.repository=wardline/operator".into(), UNSET),
        (
            format!("operator.image.repository=wardline/operator,daemon.image.digest={DIGEST}"),
            UNSET,
        ),
    ];
    let with_images: [(&str, &[&str]); 29] = [
        // Keys that there are not.
        ("operator.replica=2", &["/operator", "'replica'"]),
        ("operators.replicas=2", &["'operators'"]),
        ("daemon.image.name=node", &["/daemon/image", "'name'"]),
        ("dataplane.specs.cni=1", &["/dataplane", "'specs'"]),
        ("networkLogging.enabled=true", &["/networkLogging", "'enabled'"]),
        ("monitoring.dashboards.enabled=true", &["/monitoring", "'dashboards'"]),
        ("removal.enabled=false", &["/removal", "'enabled'"]),
        ("apiServer.hosts=10.0.0.1", &["/apiServer", "'hosts'"]),
        // Other types.
        (
            "operator.replicas=two",
            &["/operator/replicas", "got string, want integer"],
        ),
        ("operator.replicas=-1", &["/operator/replicas", "minimum"]),
        ("apiServer.port=https", &["/apiServer/port", "want integer"]),
        ("apiServer.port=65536", &["/apiServer/port", "maximum"]),
        ("namespace.create=yes", &["/namespace/create", "want boolean"]),
        ("dataplane.spec=Audit", &["/dataplane/spec", "want object"]),
        ("imagePullSecrets=registry", &["/imagePullSecrets", "want array"]),
        (
            "imagePullSecrets[0].secret=registry",
            &["/imagePullSecrets/0", "'name'"],
        ),
        (
            "removal.timeoutSeconds=5m",
            &["/removal/timeoutSeconds", "want integer"],
        ),
        (
            "operator.nodeSelector.zone=1",
            &["/operator/nodeSelector/zone", "want string"],
        ),
        (
            "operator.tolerations[0]=all",
            &["/operator/tolerations/0", "want object"],
        ),
        // Words that are not among those.
        ("operator.logFormat=xml", &["/operator/logFormat", "'json', 'text'"]),
        (
            "daemon.image.pullPolicy=Sometimes",
            &["/daemon/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'"],
        ),
        // Texts of another form.
        (
            "operator.image.digest=sha256:12",
            &["/operator/image/digest", "does not match"],
        ),
        (
            "operator.image.repository=https://registry.example.com/",
            &["/operator/image/repository", "does not match"],
        ),
        (
            "operator.image.repository=wardline/operator:1.0",
            &["/operator/image/repository", "does not match"],
        ),
        ("operator.logLevel=verbose", &["/operator/logLevel", "does not match"]),
        (
            "operator.metricsAddress=9472",
            &["/operator/metricsAddress", "want string"],
        ),
        (
            "operator.metricsAddress=localhost",
            &["/operator/metricsAddress", "does not match"],
        ),
        (
            "apiServer.host=https://10.0.0.1",
            &["/apiServer/host", "does not match"],
        ),
        (
            "monitoring.serviceMonitor.interval=often",
            &["/monitoring/serviceMonitor/interval", "does not match"],
        ),
    ];
    rows.extend(with_images.map(|(values, told)| (format!("{IMAGES},{values}"), told)));
    rows
}

#[test]
fn wrong_values_are_refused_and_named() -> Result<()> {
    for (values, told) in wrong_values() {
        let refused = chart::render(layout()?, &["--set", &values]).err();
        let refused = refused.with_context(|| format!("the chart takes {values}"))?;
        let message = format!("{refused:#}");
        let missing: Vec<_> = told.iter().filter(|text| !message.contains(*text)).collect();
        ensure!(missing.is_empty(), "{values}: no word of {missing:?} in\n{message}");
    }
    Ok(())
}
