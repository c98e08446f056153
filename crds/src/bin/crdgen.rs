// SPDX-License-Identifier: Apache-2.0
//! Writes the CRDs to crds/yaml and to the chart; with `--check`, compares instead.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const FOLDERS: [&str; 2] = ["yaml", "../charts/wardline/crds"];

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crdgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: impl Iterator<Item = String>) -> Result<()> {
    let check = match (args.next().as_deref(), args.next()) {
        (None, None) => false,
        (Some("--check"), None) => true,
        _ => bail!("usage: crdgen [--check]"),
    };
    let files = wardline_crds::schema::yaml_files().context("failed to render definitions")?;
    for folder in FOLDERS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for (name, content) in &files {
            let path = folder.join(name);
            if check {
                let found = std::fs::read_to_string(&path).unwrap_or_default();
                if found != *content {
                    bail!("{} is not what the types say: run crdgen", path.display());
                }
            } else {
                std::fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
                std::fs::write(&path, content).with_context(|| format!("failed to write {}", path.display()))?;
            }
        }
    }
    Ok(())
}
