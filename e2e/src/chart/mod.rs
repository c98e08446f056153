// SPDX-License-Identifier: Apache-2.0
//! The chart, and what is made from it, as far as no cluster is needed.
//!
//! ```text
//!   charts/wardline ---> helm template, with each of ci/*.yaml ---+
//!        |                                                        v
//!        +--> values.yaml + its schema --> docs/values.md     kubeconform <--- schemas: the API's, our CRDs, others' CRDs
//!        |                                                        ^
//!        +--> target/manifests ---> kustomize build --------------+
//!   deploy/ (Argo CD, Flux, kustomize) ---------------------------+
//! ```

pub mod check;
pub mod health;
pub mod manifests;
pub mod schemas;
pub mod values;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cluster::SYSTEM_NAMESPACE;
use crate::command::output_of;
use crate::layout::Layout;

/// Where the chart is.
pub fn folder(layout: &Layout) -> PathBuf {
    layout.workspace().join("charts/wardline")
}

/// Helm, which reads and writes nothing of the administrator's own.
pub fn helm(layout: &Layout) -> Command {
    let mut command = Command::new(layout.bin("helm"));
    for (variable, folder) in [
        ("HELM_CONFIG_HOME", "config"),
        ("HELM_CACHE_HOME", "cache"),
        ("HELM_DATA_HOME", "data"),
    ] {
        command.env(variable, layout.lab().join("helm").join(folder));
    }
    command
}

/// What the chart renders with these arguments of `helm template`, for Wardline's own namespace.
///
/// # Errors
/// With what Helm said, when the chart refuses its values.
pub fn render(layout: &Layout, args: &[&str]) -> Result<String> {
    let mut helm = helm(layout);
    helm.args(["template", "wardline"]).arg(folder(layout));
    output_of(helm.arg(format!("--namespace={SYSTEM_NAMESPACE}")).args(args))
}
