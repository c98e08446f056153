// SPDX-License-Identifier: Apache-2.0
//! The files of a policy log: the one that is being written, and beside it those that were rotated.
//!
//! ```text
//! policy_action-2026-06-13T21-29-31.445836.log   ...   policy_action.log
//! the oldest                                           the newest
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Where the log is unless the Dataplane says otherwise.
pub const DEFAULT_LOG: &str = "/var/log/network/policy_action.log";

/// A file of the log that is open: it stays what it is when it is rotated meanwhile.
#[derive(Debug)]
pub struct LogPart {
    pub path: PathBuf,
    pub file: File,
    pub inode: u64,
    /// Bytes when it was opened.
    pub size: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {path}: {cause}", path = path.display())]
pub struct FilesError {
    action: &'static str,
    path: PathBuf,
    cause: io::Error,
}

impl FilesError {
    /// There is no log, at least not yet.
    pub fn is_not_found(&self) -> bool {
        self.cause.kind() == io::ErrorKind::NotFound
    }

    pub(crate) fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self { action, path, cause }
    }
}

/// Opens the log and its rotated files, the oldest first. A file that is deleted meanwhile is left out.
///
/// # Errors
/// When neither the log nor a rotated file of it is there, or one cannot be read.
pub fn open(log: &Path) -> Result<Vec<LogPart>, FilesError> {
    // The current one first: should it be rotated before the others are listed, it is found again and left out there.
    let current = match open_part(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        opened => Ok(opened.map_err(FilesError::of("open", log))?),
    };
    let mut parts = Vec::new();
    for path in rotated(log).map_err(FilesError::of("list the files beside", log))? {
        match open_part(&path) {
            Ok(part) if current.as_ref().is_ok_and(|current| current.inode == part.inode) => {}
            Ok(part) => parts.push(part),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FilesError::of("open", &path)(error)),
        }
    }
    match current {
        Ok(current) => parts.push(current),
        Err(error) if parts.is_empty() => return Err(FilesError::of("open", log)(error)),
        Err(_) => {}
    }
    Ok(parts)
}

fn open_part(path: &Path) -> io::Result<LogPart> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok(LogPart {
        path: path.to_owned(),
        file,
        inode: metadata.ino(),
        size: metadata.len(),
    })
}

/// Rotated files of a log, the oldest first: `STEM-TIME.EXTENSION` beside `STEM.EXTENSION`.
fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let stem = log.file_stem().unwrap_or_default().to_string_lossy();
    let extension = log.extension().map(|extension| extension.to_string_lossy());
    let suffix = extension.map_or_else(String::new, |extension| format!(".{extension}"));
    let directory = match log.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let is_rotated = |name: &str| {
        let rest = name.strip_prefix(&*stem).and_then(|rest| rest.strip_prefix('-'));
        rest.and_then(|rest| rest.strip_suffix(&suffix)).is_some_and(is_time)
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(is_rotated))
        .map(|entry| entry.path())
        .collect();
    // Their times are as wide as each other, so that names sort as they do.
    found.sort();
    Ok(found)
}

/// `2026-06-13T21-29-31.445836`: digits, and what stands between them.
fn is_time(text: &str) -> bool {
    text.len() > 10 && text.starts_with(|c: char| c.is_ascii_digit()) && text.as_bytes()[10] == b'T'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_in_the_order_of_their_times() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("policy_action.log");
        let none = open(&log).unwrap_err();
        assert!(
            none.is_not_found() && none.to_string().contains("policy_action.log"),
            "{none}"
        );
        let names = [
            "policy_action-2026-06-14T00-00-00.000001.log",
            "policy_action-2026-06-13T21-29-31.445836.log",
            "policy_action-old.log",
            "policy_action.log",
            "other-2026-06-13T21-29-31.445836.log",
            "policy_action-2026-06-13T21-29-31.445836.log.gz",
        ];
        for name in names {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        let found: Vec<String> = open(&log)
            .unwrap()
            .iter()
            .map(|part| part.path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(found, [names[1], names[0], names[3]]);

        fs::remove_file(&log).unwrap();
        assert_eq!(open(&log).unwrap().len(), 2, "the log may just be rotated");
    }
}
