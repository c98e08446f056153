// SPDX-License-Identifier: Apache-2.0
//! The file that is being written.

use std::cmp::Ordering;
use std::fs::{self, File, FileType, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use wardline_record::stream::Position;

use super::FileError;
use super::lines;
use super::space::Space;

/// What stands in the log is not for everybody.
const MODE: u32 = 0o640;
/// Whoever may write to the directory must not lead us elsewhere, nor make us wait for a reader.
const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;

#[derive(Debug)]
pub(super) struct Current {
    file: File,
    /// Device and inode.
    id: (u64, u64),
    /// Bytes of whole lines.
    size: u64,
    /// When its first line was written; None of an empty file.
    begun: Option<SystemTime>,
    /// Parts of lines may stand behind `size`.
    is_torn: bool,
}

impl Current {
    /// Opens the file, with its directory where that is missing, and cuts a line that a crash left half written.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        let open_error = |cause| FileError::Open {
            path: path.to_owned(),
            cause,
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(open_error)?;
        }
        if let Ok(metadata) = fs::symlink_metadata(path) {
            check_kind(path, metadata.file_type())?;
        }
        let mut options = OpenOptions::new();
        options
            .create(true)
            .read(true)
            .append(true)
            .mode(MODE)
            .custom_flags(FLAGS);
        let file = options.open(path).map_err(|cause| {
            if cause.kind() == io::ErrorKind::NotFound && is_directory_deleted(path) {
                FileError::Orphaned { path: path.to_owned() }
            } else {
                open_error(cause)
            }
        })?;
        let metadata = file.metadata().map_err(open_error)?;
        check_kind(path, metadata.file_type())?;
        // Somebody else may have made it; of what another user owns the mode is not ours to change.
        if metadata.mode() & 0o7777 != MODE
            && let Err(error) = file.set_permissions(Permissions::from_mode(MODE))
        {
            tracing::warn!(path = %path.display(), %error, "failed to close the policy log to others");
        }
        let size = lines::end_of_last(&file).map_err(open_error)?;
        if size < metadata.len() {
            file.set_len(size).map_err(open_error)?;
        }
        Ok(Self {
            id: id(&metadata),
            size,
            begun: (size > 0).then(|| begun(&file, &metadata)),
            file,
            is_torn: false,
        })
    }

    /// Whether it still is what stands at `path`.
    pub(super) fn is_at(&self, path: &Path) -> Result<bool, FileError> {
        match fs::symlink_metadata(path) {
            Ok(metadata) => Ok(id(&metadata) == self.id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(FileError::Open {
                path: path.to_owned(),
                cause,
            }),
        }
    }

    /// Takes out what a failed write left, or whoever cut it in place, which may leave nothing.
    pub(super) fn mend(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let size = match length.cmp(&self.size) {
            Ordering::Less => lines::end_of_last(&self.file)?,
            Ordering::Greater if self.is_torn => self.size,
            _ => length,
        };
        if size < length {
            self.file.set_len(size)?;
        }
        (self.size, self.is_torn) = (size, false);
        if size == 0 {
            self.begun = None;
        }
        Ok(())
    }

    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(lines) {
            // A part may have been written before the disk was full: a torn line must not stay. Where nothing was written
            // there is nothing to take out, which a disk that takes no writes any more would not allow either.
            self.is_torn = !self.file.metadata().is_ok_and(|found| found.len() <= self.size);
            return self.mend().and(Err(error));
        }
        self.size += lines.len() as u64;
        self.begun.get_or_insert_with(SystemTime::now);
        Ok(())
    }

    pub(super) fn position(&self) -> Position {
        Position {
            inode: self.id.1,
            size: self.size,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn begun(&self) -> Option<SystemTime> {
        self.begun
    }

    pub(super) fn is_torn(&self) -> bool {
        self.is_torn
    }

    pub(super) fn space(&self) -> io::Result<Space> {
        Space::of(&self.file)
    }
}

/// Opens a file that was written before, whatever the state of its file system.
pub(super) fn for_reading(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(FLAGS).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

fn check_kind(path: &Path, kind: FileType) -> Result<(), FileError> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(FileError::Foreign {
        path: path.to_owned(),
        what,
    })
}

/// A directory that is mounted into a container and deleted outside stays, and takes no files any more.
fn is_directory_deleted(path: &Path) -> bool {
    path.parent()
        .is_some_and(|directory| fs::metadata(directory).is_ok_and(|metadata| metadata.nlink() == 0))
}

fn id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// When the first line was written, about: when the file was made, or later when what the line tells of had happened. Of a
/// file system and a line that do not know, when it was last written to.
fn begun(file: &File, metadata: &Metadata) -> SystemTime {
    let made = metadata.created().ok();
    let told = lines::time_of_first(file);
    made.max(told)
        .or_else(|| metadata.modified().ok())
        .unwrap_or_else(SystemTime::now)
}
