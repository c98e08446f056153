// SPDX-License-Identifier: Apache-2.0
//! The journal of ids: one JSON object a line, appended before an id is used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wardline_policy::tables::Attribution;

use super::{EndpointName, TableName};

/// What one id means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    Endpoint { uid: u32, name: Arc<EndpointName> },
    Table { id: u32, name: Arc<TableName> },
    Attribution { id: u32, attribution: Arc<Attribution> },
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum EntryId {
    Endpoint(u32),
    Table(u32),
    Attribution(u32),
}

impl Entry {
    pub(super) fn id(&self) -> EntryId {
        match self {
            Self::Endpoint { uid, .. } => EntryId::Endpoint(*uid),
            Self::Table { id, .. } => EntryId::Table(*id),
            Self::Attribution { id, .. } => EntryId::Attribution(*id),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("failed to {action} journal {path}: {source}")]
pub struct JournalError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    pub(super) fn open(directory: &Path, mut learn: impl FnMut(Entry)) -> Result<Self, JournalError> {
        let path = directory.join("names.jsonl");
        let fail = |action| {
            let path = path.clone();
            move |source| JournalError { action, path, source }
        };
        fs::create_dir_all(directory).map_err(fail("create the directory of"))?;
        let mut file = open_append(&path).map_err(fail("open"))?;
        let content = fs::read(&path).map_err(fail("read"))?;
        for line in content.split(|byte| *byte == b'\n') {
            // Only the last line can be torn, and its id never reached the kernel.
            if let Ok(entry) = serde_json::from_slice(line) {
                learn(entry);
            }
        }
        if !content.is_empty() && !content.ends_with(b"\n") {
            file.write_all(b"\n").map_err(fail("write"))?;
        }
        Ok(Self { path, file })
    }

    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let lines = lines(entries).map_err(|source| self.error("encode", source))?;
        self.file
            .write_all(&lines)
            .map_err(|source| self.error("write", source))
    }

    /// Replaces the whole journal atomically.
    pub(super) fn rewrite(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let lines = lines(entries).map_err(|source| self.error("encode", source))?;
        let new = self.path.with_extension("jsonl.new");
        let replace = || -> io::Result<File> {
            let mut options = OpenOptions::new();
            options
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?
                .write_all(&lines)?;
            fs::rename(&new, &self.path)?;
            open_append(&self.path)
        };
        self.file = replace().map_err(|source| self.error("rewrite", source))?;
        Ok(())
    }

    fn error(&self, action: &'static str, source: io::Error) -> JournalError {
        JournalError {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn lines(entries: &[Entry]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::with_capacity(entries.len() * 160);
    for entry in entries {
        serde_json::to_writer(&mut lines, entry)?;
        lines.push(b'\n');
    }
    Ok(lines)
}
