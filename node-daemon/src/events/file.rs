// SPDX-License-Identifier: Apache-2.0
//! The log file: whole lines only, rotated by size, found again after a crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};
use wardline_record::stream::Position;

/// How far back the last sequence numbers are looked for: more than the largest batch that is written at once.
const TAIL: u64 = 64 << 20;

/// The time in the name of an old file.
const ROTATED: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]-[minute]-[second].[subsecond digits:6]");

#[derive(Clone, Debug)]
pub struct FileOptions {
    pub path: PathBuf,
    /// Bytes after which a new file is begun.
    pub max_size: u64,
    /// Old files that are kept.
    pub max_files: u32,
}

#[derive(Debug)]
pub struct LogFile {
    options: FileOptions,
    file: File,
    size: u64,
    inode: u64,
    rotations: u64,
    /// Half a line may stand behind `size`.
    is_torn: bool,
}

impl LogFile {
    /// Opens the file and cuts a line that a crash left half written.
    pub fn open(options: FileOptions) -> io::Result<Self> {
        if let Some(directory) = options.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let (file, size, inode) = open(&options.path)?;
        let mut log = Self {
            options,
            file,
            size,
            inode,
            rotations: 0,
            is_torn: false,
        };
        log.cut_torn_line()?;
        Ok(log)
    }

    /// Appends whole lines. After an error none of them is in the file.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.reopen_if_moved()?;
        if self.size > 0 && self.size + lines.len() as u64 > self.options.max_size {
            self.rotate()?;
        }
        if self.is_torn {
            self.file.set_len(self.size)?;
            self.is_torn = false;
        }
        if let Err(error) = self.file.write_all(lines) {
            // A part may have been written before the disk was full: a torn line must not stay.
            self.is_torn = self.file.set_len(self.size).is_err();
            return Err(error);
        }
        self.size += lines.len() as u64;
        Ok(())
    }

    /// Where the next line will stand.
    pub fn position(&self) -> Position {
        Position {
            inode: self.inode,
            size: self.size,
        }
    }

    /// Files begun because the one before was full.
    pub fn rotations(&self) -> u64 {
        self.rotations
    }

    /// Calls `each` with the last lines, the newest first, until it returns false: those of the current file and, if
    /// need be, of the one before.
    pub fn last_lines(&self, mut each: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        let current = std::iter::once(self.options.path.clone());
        let former = self.rotated()?.into_iter().rev().take(1);
        for path in current.chain(former) {
            let mut file = File::open(&path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            for line in bytes.rsplit(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                if !each(line) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn cut_torn_line(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut reader = File::open(&self.options.path)?;
        let from = self.size.saturating_sub(TAIL);
        reader.seek(SeekFrom::Start(from))?;
        reader.read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |last| last as u64 + 1);
        if from + whole < self.size && (whole > 0 || from == 0) {
            self.file.set_len(from + whole)?;
            self.size = from + whole;
        }
        Ok(())
    }

    fn reopen_if_moved(&mut self) -> io::Result<()> {
        match fs::metadata(&self.options.path) {
            Ok(metadata) if metadata.ino() == self.inode => {
                // Somebody may have emptied it in place.
                if !self.is_torn {
                    self.size = metadata.len();
                }
                Ok(())
            }
            Ok(_) => self.reopen(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.reopen(),
            Err(error) => Err(error),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.size, self.inode) = open(&self.options.path)?;
        self.is_torn = false;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.options.path, self.rotated_path()?)?;
        self.reopen()?;
        self.rotations += 1;
        let rotated = self.rotated()?;
        let too_many = rotated.len().saturating_sub(self.options.max_files as usize);
        rotated.iter().take(too_many).try_for_each(fs::remove_file)
    }

    /// `policy_action-2026-06-13T21-29-31.445.log` beside `policy_action.log`; sorts by time.
    fn rotated_path(&self) -> io::Result<PathBuf> {
        let time = OffsetDateTime::now_utc().format(ROTATED).map_err(io::Error::other)?;
        let (stem, extension) = self.name_parts();
        Ok(self.options.path.with_file_name(format!("{stem}-{time}{extension}")))
    }

    /// Old files, the oldest first.
    fn rotated(&self) -> io::Result<Vec<PathBuf>> {
        let (stem, extension) = self.name_parts();
        let prefix = format!("{stem}-");
        let directory = self.options.path.parent().unwrap_or(Path::new("."));
        let mut found: Vec<PathBuf> = fs::read_dir(directory)?
            .filter_map(Result::ok)
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let time = name
                    .strip_prefix(&prefix)
                    .and_then(|rest| rest.strip_suffix(&extension));
                // Other files of that prefix are not ours to delete.
                time.is_some_and(|time| PrimitiveDateTime::parse(time, ROTATED).is_ok())
            })
            .map(|entry| entry.path())
            .collect();
        found.sort();
        Ok(found)
    }

    fn name_parts(&self) -> (String, String) {
        let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let extension = part(self.options.path.extension());
        let extension = if extension.is_empty() {
            extension
        } else {
            format!(".{extension}")
        };
        (part(self.options.path.file_stem()), extension)
    }
}

fn open(path: &Path) -> io::Result<(File, u64, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata.len(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(directory: &Path) -> FileOptions {
        FileOptions {
            path: directory.join("policy_action.log"),
            max_size: 100,
            max_files: 2,
        }
    }

    #[test]
    fn cuts_a_torn_line_and_keeps_whole_ones() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        fs::write(&options.path, "one\ntwo\nhal").unwrap();
        let mut log = LogFile::open(options.clone()).unwrap();
        log.append(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&options.path).unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_file_of_one_torn_line_becomes_empty() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        fs::write(&options.path, "hal").unwrap();
        LogFile::open(options.clone()).unwrap();
        assert_eq!(fs::read(&options.path).unwrap(), b"");
    }

    #[test]
    fn rotates_by_size_and_keeps_so_many() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let mut log = LogFile::open(options.clone()).unwrap();
        for i in 0..10 {
            log.append(format!("{i}{}\n", "x".repeat(58)).as_bytes()).unwrap();
        }
        assert_eq!(log.rotations(), 9);
        assert_eq!(log.rotated().unwrap().len(), 2);
        let mut newest = Vec::new();
        log.last_lines(|line| {
            newest.push(line[0]);
            true
        })
        .unwrap();
        assert_eq!(newest, b"98", "the current file, then the one before");
    }

    #[test]
    fn a_moved_or_deleted_file_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let mut log = LogFile::open(options.clone()).unwrap();
        log.append(b"one\n").unwrap();
        fs::rename(&options.path, directory.path().join("moved")).unwrap();
        log.append(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(&options.path).unwrap(), "two\n");
        fs::remove_file(&options.path).unwrap();
        log.append(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&options.path).unwrap(), "three\n");
    }
}
