// SPDX-License-Identifier: Apache-2.0
//! The log file: whole lines only, found again after a crash, begun anew when it is full, old, or taken away.
//!
//! ```text
//! append:  ours still? (open) -> room on the disk? (space) -> full or old? (rotated) -> write whole lines, or none
//! later:   too many old files? count what stands in the oldest (excess) -> enter it into the ledger -> delete
//! ```

mod excess;
mod lines;
mod open;
mod rotated;
mod space;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use wardline_crds::config;
use wardline_record::history::backwards;
use wardline_record::stream::Position;

use self::excess::Counting;
use self::open::Current;
use self::rotated::Rotated;
use self::space::Floor;

/// How far back lines are looked for: more than the longest batch that is written at once.
const BACK: u64 = 64 << 20;

#[derive(Clone, Debug)]
pub struct FileOptions {
    pub path: PathBuf,
    /// Bytes after which a new file is begun.
    pub max_size: u64,
    /// Old files that are kept.
    pub max_files: u32,
    /// Time after its first line after which a new file is begun.
    pub max_age: Option<Duration>,
    /// Percent of the file system that must be free; 0 writes until it is full.
    pub min_free_percent: u32,
}

impl From<&config::LogFile> for FileOptions {
    fn from(file: &config::LogFile) -> Self {
        Self {
            path: file.path.clone(),
            max_size: file.max_size,
            // The one that is written to is one of them.
            max_files: file.max_files.saturating_sub(1),
            max_age: file.max_age_seconds.map(|age| Duration::from_secs(age.into())),
            min_free_percent: file.min_free_percent,
        }
    }
}

/// Why nothing can be written. The text is the same for the same cause, since it is shown as a condition.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("failed to open policy log {}: {cause}", path.display())]
    Open { path: PathBuf, cause: io::Error },
    #[error("failed to open policy log {}: it is {what}, not a regular file; move it away", path.display())]
    Foreign { path: PathBuf, what: &'static str },
    #[error("failed to open policy log {}: its directory was deleted on the node; restart the daemon", path.display())]
    Orphaned { path: PathBuf },
    #[error("failed to write policy log {}: {cause}", path.display())]
    Write { path: PathBuf, cause: io::Error },
    #[error("failed to write policy log {}: less than {percent}% of its file system is free", path.display())]
    NoRoom { path: PathBuf, percent: u32 },
    #[error("failed to read policy log {}: {cause}", path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("failed to rotate policy log {}: {cause}", path.display())]
    Rotate { path: PathBuf, cause: io::Error },
    #[error("failed to delete old policy log {}: {cause}", path.display())]
    Delete { path: PathBuf, cause: io::Error },
}

impl FileError {
    /// Whether room on the disk would help.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Open { cause, .. } | Self::Write { cause, .. } | Self::Rotate { cause, .. } => {
                matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

#[derive(Debug)]
pub struct LogFile {
    options: FileOptions,
    rotated: Rotated,
    floor: Floor,
    /// None until it could be opened.
    current: Option<Current>,
    rotations: u64,
    counting: Counting,
}

impl LogFile {
    /// Nothing is touched yet: a node whose disk cannot be written must enforce policies all the same.
    pub fn new(options: FileOptions) -> Self {
        Self {
            rotated: Rotated::of(&options.path),
            floor: Floor::new(options.min_free_percent),
            options,
            current: None,
            rotations: 0,
            counting: Counting::Unknown,
        }
    }

    pub fn path(&self) -> &Path {
        &self.options.path
    }

    /// Sees that lines could be written now, as far as that can be seen without writing any.
    pub fn prepare(&mut self) -> Result<(), FileError> {
        let path = &self.options.path;
        if let Some(current) = &mut self.current
            && !current.is_at(path)?
        {
            self.current = None;
        }
        let current = match &mut self.current {
            Some(current) => current,
            none => {
                self.counting.look_again();
                none.insert(Current::open(path)?)
            }
        };
        current.mend().map_err(|cause| write_error(path, cause))?;
        let space = current.space().map_err(|cause| write_error(path, cause))?;
        if self.floor.allows(space) {
            return Ok(());
        }
        Err(FileError::NoRoom {
            path: path.clone(),
            percent: self.options.min_free_percent,
        })
    }

    /// Sees that so many bytes can be appended, in a new file where the present one is too long for them, or too old.
    pub fn make_room(&mut self, bytes: usize) -> Result<(), FileError> {
        self.prepare()?;
        let is_too_long = self
            .current
            .as_ref()
            .is_some_and(|current| current.size() > 0 && current.size() + bytes as u64 > self.options.max_size);
        if is_too_long || self.is_old() {
            self.rotate()?;
        }
        Ok(())
    }

    /// Whether the file of this inode is the log, or one that was rotated.
    pub fn has(&self, inode: u64) -> bool {
        let old = self.rotated.list().unwrap_or_default().into_iter().map(|old| old.path);
        let files = old.chain([self.options.path.clone()]);
        files
            .filter_map(|path| fs::symlink_metadata(path).ok())
            .any(|metadata| metadata.ino() == inode)
    }

    /// Appends whole lines. After an error none of them is in the file, or [`LogFile::is_torn`].
    pub fn append(&mut self, lines: &[u8]) -> Result<(), FileError> {
        self.make_room(lines.len())?;
        if !self.has_lines() {
            self.counting.look_again();
        }
        let path = &self.options.path;
        let Some(current) = &mut self.current else {
            return Err(write_error(path, io::ErrorKind::NotFound.into()));
        };
        current.append(lines).map_err(|cause| write_error(path, cause))
    }

    /// Where the next line will stand; before the first file was opened, behind nothing.
    pub fn position(&self) -> Position {
        self.current.as_ref().map(Current::position).unwrap_or_default()
    }

    /// Begins a new file where the present one is too old, so that one nobody writes to is handed on too.
    pub fn rotate_if_old(&mut self) -> Result<(), FileError> {
        if !self.is_old() {
            return Ok(());
        }
        self.prepare()?;
        if self.is_old() { self.rotate() } else { Ok(()) }
    }

    /// Lines of a write that failed may stand in the file, and could not be taken out again yet.
    pub fn is_torn(&self) -> bool {
        self.current.as_ref().is_some_and(Current::is_torn)
    }

    /// Bytes that should be appended at once at most, so that no file grows beyond its size.
    pub fn chunk(&self) -> usize {
        usize::try_from(self.options.max_size / 2)
            .unwrap_or(usize::MAX)
            .min(1 << 20)
    }

    /// Files begun because the one before was full or old.
    pub fn rotations(&self) -> u64 {
        self.rotations
    }

    /// Calls `each` with the last whole lines, the newest first, until it returns false: those of the file in use, then
    /// of those before it. Nothing is written for it. A file that is not ours, or cannot be read, is left out and the error
    /// returned in the end.
    pub fn last_lines(&self, mut each: impl FnMut(&[u8]) -> bool) -> Result<(), FileError> {
        let old = self.rotated.list().map_err(|cause| self.read_error(cause))?;
        let former = old.iter().rev().map(|old| old.path.as_path());
        let (mut left, mut result) = (BACK, Ok(()));
        for path in std::iter::once(self.options.path.as_path()).chain(former) {
            let read = open::for_reading(path).and_then(|file| {
                let end = lines::end_of_last(&file)?;
                backwards(&file, end, &mut left, &mut each)
            });
            match read {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => {
                    let path = path.to_owned();
                    result = result.and(Err(FileError::Read { path, cause }));
                }
            }
        }
        result
    }

    fn has_lines(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.size() > 0)
    }

    fn is_old(&self) -> bool {
        let begun = self.current.as_ref().and_then(Current::begun);
        let age = begun.and_then(|begun| SystemTime::now().duration_since(begun).ok());
        matches!((age, self.options.max_age), (Some(age), Some(most)) if age >= most)
    }

    fn rotate(&mut self) -> Result<(), FileError> {
        let path = &self.options.path;
        let rotate_error = |cause| FileError::Rotate {
            path: path.clone(),
            cause,
        };
        let to = self.rotated.next().map_err(rotate_error)?;
        fs::rename(path, to).map_err(rotate_error)?;
        self.current = None;
        self.rotations += 1;
        self.counting = Counting::Unknown;
        self.current = Some(Current::open(path)?);
        Ok(())
    }

    fn read_error(&self, cause: io::Error) -> FileError {
        FileError::Read {
            path: self.options.path.clone(),
            cause,
        }
    }
}

fn write_error(path: &Path, cause: io::Error) -> FileError {
    FileError::Write {
        path: path.to_owned(),
        cause,
    }
}
