// SPDX-License-Identifier: Apache-2.0
//! Old files: `policy_action-2026-06-13T21-29-31.445836.log` beside `policy_action.log`, named by the time at which they
//! were rotated, so that names sort by time.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]-[minute]-[second].[subsecond digits:6]");
/// What tells two names apart.
const STEP: Duration = Duration::from_micros(1);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Old {
    pub(super) time: OffsetDateTime,
    pub(super) path: PathBuf,
}

impl Old {
    /// Tells it from all others: the microseconds of its name.
    pub(super) fn id(&self) -> u64 {
        u64::try_from(self.time.unix_timestamp_nanos() / 1000).unwrap_or(0)
    }
}

#[derive(Debug)]
pub(super) struct Rotated {
    directory: PathBuf,
    /// What stands before and behind the time in their names.
    prefix: String,
    suffix: String,
}

impl Rotated {
    pub(super) fn of(path: &Path) -> Self {
        let part = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let extension = part(path.extension());
        Self {
            directory: path.parent().unwrap_or(Path::new(".")).to_owned(),
            prefix: format!("{}-", part(path.file_stem())),
            suffix: if extension.is_empty() {
                extension
            } else {
                format!(".{extension}")
            },
        }
    }

    /// Those that are there, the oldest first. Other files of that prefix are not ours.
    pub(super) fn list(&self) -> io::Result<Vec<Old>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found: Vec<Old> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .filter_map(|entry| {
                let name = entry.file_name();
                let time = name.to_str()?.strip_prefix(&self.prefix)?.strip_suffix(&self.suffix)?;
                Some(Old {
                    time: PrimitiveDateTime::parse(time, TIME).ok()?.assume_utc(),
                    path: entry.path(),
                })
            })
            .collect();
        found.sort();
        Ok(found)
    }

    /// Where the present file goes: behind all others, also when the clock was put back, and over none of them.
    pub(super) fn next(&self) -> io::Result<PathBuf> {
        let now = OffsetDateTime::now_utc();
        let time = match self.list()?.last() {
            Some(newest) if newest.time + STEP > now => newest.time + STEP,
            _ => now,
        };
        let time = time.format(TIME).map_err(io::Error::other)?;
        let Self { prefix, suffix, .. } = self;
        Ok(self.directory.join(format!("{prefix}{time}{suffix}")))
    }
}
