// SPDX-License-Identifier: Apache-2.0
//! The archive: one folder, a manifest that says what each file is, and what could not be had.

use std::cell::Cell;
use std::io::{self, Write};
use std::rc::Rc;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use tar::{Builder, EntryType, Header};

/// Kept free for the manifest and the list of errors, which come last.
const RESERVE: u64 = 256 << 10;
/// A file's header in the archive, and its rounding up.
const HEADER: u64 = 2 << 10;

/// Written as it grows; what was written is not touched again.
pub(super) struct Archive<W: Write> {
    tar: Builder<GzEncoder<Counted<W>>>,
    written: Rc<Cell<u64>>,
    limit: u64,
    folder: String,
    /// Seconds since 1970.
    now: u64,
    files: Vec<File>,
    errors: Vec<Failure>,
}

/// A file in the manifest.
#[derive(Debug, Serialize)]
struct File {
    path: String,
    what: String,
    bytes: usize,
    /// From its beginning, for want of room.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_left_out: Option<usize>,
}

/// Something that could not be had.
#[derive(Debug, Serialize)]
struct Failure {
    path: String,
    why: String,
}

/// About the whole.
#[derive(Debug, Serialize)]
pub(super) struct About {
    pub(super) wardline_cli: &'static str,
    pub(super) kubernetes: Option<String>,
    pub(super) context: String,
    pub(super) namespace: String,
    pub(super) created: String,
    pub(super) messages_since_seconds: u64,
}

#[derive(Debug, Serialize)]
struct Manifest<'a> {
    #[serde(flatten)]
    about: &'a About,
    files: &'a [File],
    errors: &'a [Failure],
}

/// What to do with a content that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Whole,
    /// Lines, of which the last are worth most.
    Tail,
}

impl<W: Write> Archive<W> {
    /// `limit`: bytes that it may grow to.
    pub(super) fn new(out: W, folder: &str, limit: u64, now: u64) -> Self {
        let written = Rc::new(Cell::new(0));
        let out = Counted {
            out,
            written: Rc::clone(&written),
        };
        Self {
            tar: Builder::new(GzEncoder::new(out, Compression::default())),
            written,
            limit,
            folder: folder.to_owned(),
            now,
            files: Vec::new(),
            errors: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, path: &str, what: &str, content: &[u8], fit: Fit) -> io::Result<()> {
        // However well it could be compressed: text that cannot be is what the limit is for.
        let used = self.written.get() + RESERVE + HEADER;
        let room = usize::try_from(self.limit.saturating_sub(used)).unwrap_or(usize::MAX);
        let mut kept = content;
        if content.len() > room {
            if fit == Fit::Whole || room == 0 {
                self.error(path, "left out, for it finds no room: raise --size-limit");
                return Ok(());
            }
            kept = &content[content.len() - room..];
            let whole_lines = kept.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            kept = &kept[whole_lines..];
        }
        let left_out = content.len() - kept.len();
        self.append(path, kept)?;
        self.files.push(File {
            path: path.to_owned(),
            what: what.to_owned(),
            bytes: kept.len(),
            bytes_left_out: (left_out > 0).then_some(left_out),
        });
        Ok(())
    }

    /// Something could not be had.
    pub(super) fn error(&mut self, path: &str, why: impl Into<String>) {
        self.errors.push(Failure {
            path: path.to_owned(),
            why: why.into(),
        });
    }

    pub(super) fn errors(&self) -> usize {
        self.errors.len()
    }

    /// Writes manifest and errors, and gives back what it was written to.
    pub(super) fn finish(mut self, about: &About) -> io::Result<W> {
        let line = |failure: &Failure| format!("{}: {}\n", failure.path, failure.why);
        let errors: String = self.errors.iter().map(line).collect();
        if !errors.is_empty() {
            self.append("errors.txt", errors.as_bytes())?;
        }
        let manifest = Manifest {
            about,
            files: &self.files,
            errors: &self.errors,
        };
        let mut text = serde_json::to_vec_pretty(&manifest)?;
        text.push(b'\n');
        self.append("manifest.json", &text)?;
        let mut out = self.tar.into_inner()?.finish()?;
        out.flush()?;
        Ok(out.out)
    }

    fn append(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        header.set_size(content.len() as u64);
        let path = format!("{}/{path}", self.folder);
        self.tar.append_data(&mut header, path, content)?;
        // Or it would not be known how large it is.
        self.tar.get_mut().flush()
    }
}

struct Counted<W> {
    out: W,
    written: Rc<Cell<u64>>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written.set(self.written.get() + written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn about() -> About {
        About {
            wardline_cli: "0.1.0",
            kubernetes: None,
            context: "c".into(),
            namespace: "n".into(),
            created: "t".into(),
            messages_since_seconds: 1,
        }
    }

    fn unpacked(archive: &[u8]) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
        let read = |entry: io::Result<tar::Entry<'_, _>>| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        };
        archive.entries().unwrap().map(read).collect()
    }

    /// Lines that do not compress.
    fn noise(lines: usize) -> String {
        let mut state = 1u64;
        let line = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            format!("{:016x}{:016x}\n", state, state.rotate_left(23) ^ 0x5bd1_e995)
        };
        (0..lines).map(line).collect()
    }

    #[test]
    fn files_are_listed_and_so_is_what_is_missing() {
        let mut archive = Archive::new(Vec::new(), "dump", 1 << 20, 0);
        archive.add("a/b.txt", "some text", b"text", Fit::Whole).unwrap();
        archive.error("c.txt", "no right");
        assert_eq!(archive.errors(), 1);
        let files = unpacked(&archive.finish(&about()).unwrap());
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["dump/a/b.txt", "dump/errors.txt", "dump/manifest.json"]);
        assert_eq!(
            (files[0].1.as_str(), files[1].1.as_str()),
            ("text", "c.txt: no right\n")
        );
        let manifest: serde_json::Value = serde_json::from_str(&files[2].1).unwrap();
        let file = serde_json::json!([{"path": "a/b.txt", "what": "some text", "bytes": 4}]);
        assert_eq!((&manifest["files"], &manifest["context"]), (&file, &"c".into()));
    }

    #[test]
    fn it_is_never_larger_than_it_may_be() {
        let limit = 1 << 20;
        let mut archive = Archive::new(Vec::new(), "dump", limit, 0);
        let lines = noise(60_000);
        archive.add("first.log", "lines", lines.as_bytes(), Fit::Tail).unwrap();
        archive
            .add("second.json", "whole", lines.as_bytes(), Fit::Whole)
            .unwrap();
        archive.add("third.log", "lines", lines.as_bytes(), Fit::Tail).unwrap();
        let written = archive.finish(&about()).unwrap();
        assert!(
            written.len() < usize::try_from(limit).unwrap(),
            "{} bytes",
            written.len()
        );
        let files = unpacked(&written);
        let (name, first) = &files[0];
        assert!(name == "dump/first.log" && first.len() > 400_000 && lines.ends_with(first.as_str()));
        assert_eq!(first.len() % 33, 0, "whole lines");
        let manifest: serde_json::Value = serde_json::from_str(&files.last().unwrap().1).unwrap();
        let left_out = manifest["files"][0]["bytes_left_out"].as_u64().unwrap();
        assert_eq!(left_out, (lines.len() - first.len()) as u64);
        assert_eq!(manifest["errors"][0]["path"], "second.json");
    }
}
