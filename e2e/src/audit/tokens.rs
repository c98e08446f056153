// SPDX-License-Identifier: Apache-2.0
//! Whether what Wardline prints would let a reader be Wardline.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::cluster::{Lab, SYSTEM_NAMESPACE};

/// The first bytes of every JSON web token's header, as base64 shows it, and the scheme that it is sent with.
const MARKS: [&str; 2] = ["eyJhbGciOi", "Bearer "];

/// Files of Wardline's own pods, on both nodes.
pub fn logs(lab: &Lab) -> Result<Vec<PathBuf>> {
    let mut logs = Vec::new();
    for node in lab.nodes() {
        let pods = lab.layout().node_path(node.spec, "/var/log/pods");
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{SYSTEM_NAMESPACE}_"))
        };
        for pod in entries(&pods)?.into_iter().filter(ours) {
            for container in entries(&pod)? {
                logs.extend(entries(&container)?);
            }
        }
    }
    ensure!(
        logs.len() > lab.nodes().len(),
        "failed to find the logs of operator and daemons: there are {logs:?}"
    );
    Ok(logs)
}

/// The lines of a log that hold a token, with where they stand; the token is not repeated.
pub fn find(log: &Path) -> Result<Vec<String>> {
    let text = fs::read(log).with_context(|| format!("failed to read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().enumerate();
    let shown = lines.filter(|(_, line)| MARKS.iter().any(|mark| line.contains(mark)));
    Ok(shown.map(|(at, _)| format!("{}:{}", log.display(), at + 1)).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = || format!("failed to read {}", folder.display());
    let entries = fs::read_dir(folder).with_context(failed)?;
    entries.map(|entry| Ok(entry.with_context(failed)?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found() {
        let log = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            log.path(),
            "starting\nGET with eyJhbGciOiJSUzI1NiJ9.e30.c2ln\nauthorization: Bearer x\n",
        )
        .unwrap();
        let found = find(log.path()).unwrap();
        let lines: Vec<&str> = found.iter().filter_map(|at| at.rsplit(':').next()).collect();
        assert_eq!(lines, ["2", "3"]);
    }
}
