// SPDX-License-Identifier: Apache-2.0
//! Plain manifests and a kustomize base in `target/manifests`, made from the chart. They are not committed: the names of
//! images stand in them, and where those are only who builds them knows.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::chart;
use crate::command::output_of;
use crate::gobuild;
use crate::images::Options;
use crate::layout::Layout;
use crate::progress::step;

/// The files: each with what it says of itself, and the arguments of `helm template` that make it.
pub const FILES: [(&str, &str, &[&str]); 3] = [
    (
        "install.yaml",
        "Namespace, CRDs, RBAC and the operator. Apply it first: kubectl apply --server-side --filename install.yaml",
        &["--include-crds", "--set=namespace.create=true,dataplane.create=false"],
    ),
    (
        "dataplane.yaml",
        "What the operator rolls out to the nodes. Delete it, and wait, before install.yaml.",
        &["--show-only=templates/objects.yaml"],
    ),
    (
        "networklogging/networklogging.yaml",
        "Verdicts are logged while this is there.",
        &[
            "--show-only=templates/objects.yaml",
            "--set=dataplane.create=false,networkLogging.create=true",
        ],
    ),
];
/// The bases: their folder, and what they are made of.
const BASES: [(&str, &[&str]); 2] = [
    ("", &["install.yaml", "dataplane.yaml"]),
    ("networklogging", &["networklogging.yaml"]),
];
/// Lines of labels that are true only of what Helm has installed.
const OF_HELM: [&str; 2] = ["app.kubernetes.io/managed-by: Helm", "helm.sh/chart: "];

/// Writes them, with the names that `make images` gives images.
pub fn make(layout: &Layout, options: &Options, values: &[String]) -> Result<()> {
    gobuild::helm(layout)?;
    let folder = layout.manifests();
    write(layout, options, values, &folder)?;
    step(&format!("manifests are in {}", folder.display()));
    Ok(())
}

/// Writes them to a folder; `values` are further ones, each `KEY=VALUE`.
pub fn write(layout: &Layout, options: &Options, values: &[String], folder: &Path) -> Result<()> {
    let images = ["operator", "daemon"].map(|whose| {
        let image = if whose == "daemon" { "node" } else { whose };
        format!("--set={whose}.image.repository={}/{image}", options.prefix)
    });
    let tags = ["operator", "daemon"].map(|whose| format!("--set-string={whose}.image.tag={}", options.version));
    let values: Vec<String> = values.iter().map(|value| format!("--set={value}")).collect();
    for (name, about, args) in FILES {
        let mut all: Vec<&str> = values.iter().chain(&images).chain(&tags).map(String::as_str).collect();
        all.extend(args);
        // Nobody runs hooks here.
        all.push("--skip-tests");
        let rendered = chart::render(layout, &all)?;
        let lines = rendered.lines().filter(|line| {
            let line = line.trim_start();
            !OF_HELM.iter().any(|label| line.starts_with(label))
        });
        let mut text = format!("# SPDX-License-Identifier: Apache-2.0\n# {about}\n");
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        put(folder, name, &text)?;
    }
    for (base, resources) in BASES {
        let resources: Vec<String> = resources.iter().map(|name| format!("  - {name}\n")).collect();
        let text = format!(
            "# SPDX-License-Identifier: Apache-2.0\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
             resources:\n{}",
            resources.concat()
        );
        put(&folder.join(base), "kustomization.yaml", &text)?;
    }
    Ok(())
}

fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    let parent = path.parent().unwrap_or(folder);
    fs::create_dir_all(parent).with_context(|| format!("failed to create {}", parent.display()))?;
    fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
}

/// What `kustomize build` makes of a folder.
pub fn kustomize(layout: &Layout, folder: &Path) -> Result<String> {
    output_of(Command::new(layout.bin("kustomize")).arg("build").arg(folder))
}
