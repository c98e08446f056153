// SPDX-License-Identifier: Apache-2.0
//! `lab chart`: whether the chart renders with each set of values in its folder `ci`, and whether that, the plain
//! manifests and the examples of deploy/ are what the API takes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::chart::{self, manifests, schemas, values};
use crate::command::output_of;
use crate::gobuild;
use crate::images::Options;
use crate::layout::Layout;
use crate::progress::step;

/// Lints, renders and validates; says of each what was found.
///
/// # Errors
/// With the first thing that is wrong.
pub fn check(layout: &Layout) -> Result<()> {
    gobuild::helm(layout)?;
    schemas::prepare(layout)?;
    values::check(layout)?;
    for values in files_of(&chart::folder(layout).join("ci"))? {
        let argument = format!("--values={}", values.display());
        let mut lint = chart::helm(layout);
        lint.args(["lint", "--strict", "--quiet"])
            .arg(chart::folder(layout))
            .arg(&argument);
        output_of(&mut lint)?;
        conform(layout, &values, &chart::render(layout, &["--include-crds", &argument])?)?;
    }
    let work = tempfile::Builder::new().prefix("chart-").tempdir_in(layout.target());
    let work = work.context("failed to make a folder for manifests")?;
    let options = Options::named("registry.example.com/wardline", "0.1.0");
    let base = work.path().join("manifests");
    manifests::write(layout, &options, &[], &base)?;
    for (name, ..) in manifests::FILES {
        conform(layout, &base.join(name), &read(&base.join(name))?)?;
    }
    conform(layout, &base, &manifests::kustomize(layout, &base)?)?;
    let overlay = overlay(layout, work.path())?;
    conform(layout, &overlay, &manifests::kustomize(layout, &overlay)?)?;
    for folder in ["argocd", "flux"] {
        for file in files_of(&layout.workspace().join("deploy").join(folder))? {
            conform(layout, &file, &read(&file)?)?;
        }
    }
    Ok(())
}

/// A copy of the example of an overlay, beside the manifests that it is an overlay of.
pub fn overlay(layout: &Layout, beside: &Path) -> Result<PathBuf> {
    let folder = beside.join("overlay");
    fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    for file in files_of(&layout.workspace().join("deploy/kustomize"))? {
        let name = file.file_name().context("failed to name a file")?;
        fs::copy(&file, folder.join(name)).with_context(|| format!("failed to copy {}", file.display()))?;
    }
    Ok(folder)
}

fn conform(layout: &Layout, what: &Path, manifests: &str) -> Result<()> {
    let target = layout.target();
    let shown = what
        .strip_prefix(target)
        .or_else(|_| what.strip_prefix(layout.workspace()));
    let shown = shown.unwrap_or(what).display();
    let found = schemas::conform(layout, manifests).with_context(|| format!("{shown} is not what the API takes"))?;
    let skipped = match found.skipped {
        0 => String::new(),
        some => format!(", {some} {} not looked at", schemas::UNKNOWN),
    };
    step(&format!("{:4} valid{skipped}: {shown}", found.valid));
    Ok(())
}

/// The files of a folder, by name.
///
/// # Errors
/// Also when there is none: a check of nothing would pass.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))?;
    let paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>();
    let mut paths = paths.with_context(|| format!("failed to read {}", folder.display()))?;
    paths.sort();
    ensure!(!paths.is_empty(), "{} is empty", folder.display());
    Ok(paths)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}
