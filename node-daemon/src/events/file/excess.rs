// SPDX-License-Identifier: Apache-2.0
//! Old files that are too many: what stands in them is counted before they are deleted, a part at a time, so that the
//! ring does not fill meanwhile.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

use super::rotated::Old;
use super::{FileError, LogFile, open};

/// What a record begins its disposition with; within a text of a record quotes are escaped.
const DISPOSITION: &[u8] = br#""disposition":""#;
/// Bytes that are read at once.
const BLOCK: usize = 64 << 10;
/// Beyond this a line is no record, and not kept until its end.
const LONGEST: usize = 1 << 20;

/// What stands in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub bytes: u64,
    /// Lines by disposition: allow, deny, lost.
    pub records: [u64; 3],
}

/// An old file that is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Tells the file from all others.
    pub id: u64,
    /// None where the caller said that it is counted already.
    pub contents: Option<Contents>,
    path: PathBuf,
}

#[derive(Debug)]
pub(super) enum Counting {
    /// Nobody looked since the last rotation, or since the present file has lines.
    Unknown,
    /// No file is too many.
    Done,
    Under(Box<Reading>),
}

impl Counting {
    /// More may be too much than was.
    pub(super) fn look_again(&mut self) {
        if matches!(self, Self::Done) {
            *self = Self::Unknown;
        }
    }
}

/// A file that is being counted.
#[derive(Debug)]
pub(super) struct Reading {
    old: Old,
    file: File,
    contents: Contents,
    /// The beginning of a line.
    rest: Vec<u8>,
}

impl LogFile {
    /// Counts what stands in the oldest of the files that are too many, about `budget` bytes a call, and returns it when
    /// done. The file that is `counted` already is not counted again.
    pub fn count_excess(&mut self, budget: usize, counted: u64) -> Result<Option<Excess>, FileError> {
        if matches!(self.counting, Counting::Unknown) {
            let old = self.rotated.list().map_err(|cause| self.read_error(cause))?;
            // Whoever is killed goes on from the last lines: they stay until the present file has some.
            let kept = (self.options.max_files as usize).max(usize::from(!self.has_lines()));
            if old.len() <= kept {
                self.counting = Counting::Done;
                return Ok(None);
            }
            let Some(oldest) = old.into_iter().next() else {
                return Ok(None);
            };
            if oldest.id() == counted {
                return Ok(Some(Excess {
                    id: counted,
                    contents: None,
                    path: oldest.path,
                }));
            }
            let file = open::for_reading(&oldest.path).map_err(|cause| FileError::Read {
                path: oldest.path.clone(),
                cause,
            })?;
            self.counting = Counting::Under(Box::new(Reading {
                old: oldest,
                file,
                contents: Contents::default(),
                rest: Vec::new(),
            }));
        }
        let Counting::Under(reading) = &mut self.counting else {
            return Ok(None);
        };
        let is_done = reading.go_on(budget).map_err(|cause| FileError::Read {
            path: reading.old.path.clone(),
            cause,
        })?;
        Ok(is_done.then(|| Excess {
            id: reading.old.id(),
            contents: Some(reading.contents),
            path: reading.old.path.clone(),
        }))
    }

    /// Deletes what was counted. That it is gone already is no error.
    pub fn delete(&mut self, excess: &Excess) -> Result<(), FileError> {
        self.counting = Counting::Unknown;
        match fs::remove_file(&excess.path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(FileError::Delete {
                path: excess.path.clone(),
                cause,
            }),
            _ => Ok(()),
        }
    }
}

impl Reading {
    /// Returns whether the end was reached.
    fn go_on(&mut self, budget: usize) -> io::Result<bool> {
        let mut block = vec![0; BLOCK];
        let mut read = 0;
        while read < budget {
            let length = self.file.read(&mut block)?;
            if length == 0 {
                return Ok(true);
            }
            read += length;
            self.take_in(&block[..length]);
        }
        Ok(false)
    }

    fn take_in(&mut self, block: &[u8]) {
        self.contents.bytes += block.len() as u64;
        let mut start = 0;
        for feed in memchr::memchr_iter(b'\n', block) {
            if self.rest.is_empty() {
                self.contents.count(&block[start..feed]);
            } else {
                self.rest.extend_from_slice(&block[start..feed]);
                self.contents.count(&self.rest);
                self.rest.clear();
            }
            start = feed + 1;
        }
        if self.rest.len() < LONGEST {
            self.rest.extend_from_slice(&block[start..]);
        }
    }
}

impl Contents {
    fn count(&mut self, line: &[u8]) {
        let Some(place) = memchr::memmem::find(line, DISPOSITION) else {
            return;
        };
        match line.get(place + DISPOSITION.len()) {
            Some(b'a') => self.records[0] += 1,
            Some(b'd') => self.records[1] += 1,
            Some(b'l') => self.records[2] += 1,
            _ => {}
        }
    }
}
