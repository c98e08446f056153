// SPDX-License-Identifier: Apache-2.0
//! What manifests are held to.

use anyhow::{Context as _, Result, ensure};
use wardline_e2e::chart::schemas;

use crate::layout;

/// Or a schema that takes anything would pass whatever the chart renders.
#[test]
fn schemas_refuse_what_the_api_does_not_know() -> Result<()> {
    schemas::prepare(layout()?)?;
    let kinds = [
        ("v1", "Service", "spec: {port: 80}", "'port' not allowed"),
        ("v1", "Service", "metadata: {label: {}}", "'label' not allowed"),
        (
            "apps/v1",
            "Deployment",
            "spec: {selector: {}, template: {spec: {containers: [{name: a, images: b}]}}}",
            "'images' not allowed",
        ),
        (
            "apps/v1",
            "Deployment",
            "spec: {template: {}}",
            "missing property 'selector'",
        ),
        (
            "wardline.io/v1alpha1",
            "Dataplane",
            "spec: {policy: {enforcment: Audit}}",
            "'enforcment' not allowed",
        ),
        (
            "wardline.io/v1alpha1",
            "Dataplane",
            "spec: {policy: {enforcement: Maybe}}",
            "'Enforce', 'Audit'",
        ),
        (
            "wardline.io/v1alpha1",
            "Dataplane",
            "spec: {daemon: {rollout: {maxUnavailable: []}}}",
            "maxUnavailable",
        ),
        (
            "monitoring.coreos.com/v1",
            "ServiceMonitor",
            "spec: {selector: {}, endpoints: [{ports: metrics}]}",
            "'ports' not allowed",
        ),
        (
            "argoproj.io/v1alpha1",
            "Application",
            "spec: {project: a, destination: {}, synPolicy: {}}",
            "'synPolicy' not allowed",
        ),
        ("wardline.io/v1alpha1", "Dataplain", "spec: {}", "could not find schema"),
    ];
    for (version, kind, rest, told) in kinds {
        let object = format!("apiVersion: {version}\nkind: {kind}\n{rest}\n");
        let refused = schemas::conform(layout()?, &object).err();
        let refused = refused.with_context(|| format!("{kind} {rest} is taken"))?;
        ensure!(format!("{refused:#}").contains(told), "{kind} {rest}: {refused:#}");
    }
    // A number or a text, as quantities and ports are.
    for port in ["80", "http"] {
        let object = format!("apiVersion: v1\nkind: Service\nspec: {{ports: [{{port: 80, targetPort: {port}}}]}}\n");
        schemas::conform(layout()?, &object)?;
    }
    Ok(())
}

/// Schemas are those of the Kubernetes that the lab runs.
#[test]
fn both_module_files_name_one_kubernetes() -> Result<()> {
    let version = |folder: &str| -> Result<String> {
        let text = std::fs::read_to_string(layout()?.workspace().join("e2e").join(folder).join("go.mod"))?;
        let mut after = text.split("k8s.io/kubernetes v").skip(1);
        let version = after.next().and_then(|after| after.split_whitespace().next());
        Ok(version.context("no k8s.io/kubernetes")?.to_owned())
    };
    ensure!(version("schemas")? == version("cluster")?);
    Ok(())
}
