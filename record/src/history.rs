// SPDX-License-Identifier: Apache-2.0
//! The last lines of a log, found from its end.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::Record;
use crate::files::{self, FilesError};
use crate::filter::Filter;
use crate::stream::Position;

/// Bytes that are read at once.
const BLOCK: u64 = 256 << 10;
/// How far back lines are looked for that fit: a filter that nothing fits must not read for minutes.
pub const FARTHEST: u64 = 256 << 20;
/// No line of the log is as long; what is longer is no line.
const LONGEST: usize = 1 << 20;

/// Which lines of the past are asked for.
#[derive(Clone, Debug, Default)]
pub struct Past<'a> {
    /// So many at most.
    pub last: usize,
    /// Only what came after the record with this `seq`.
    pub after: Option<&'a str>,
    pub filter: Filter,
}

/// The last lines before `position` that are asked for, the oldest first, without their line feeds.
///
/// # Errors
/// When a file cannot be read.
pub fn last(log: &Path, position: &Position, past: &Past<'_>) -> Result<Vec<Vec<u8>>, FilesError> {
    let mut found = VecDeque::new();
    if past.last == 0 {
        return Ok(Vec::new());
    }
    let mut parts = match files::open(log) {
        // Nothing was ever logged.
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        parts => parts?,
    };
    // What was begun since belongs to the stream.
    if let Some(current) = parts.iter().position(|part| part.inode == position.inode) {
        parts.truncate(current + 1);
        parts[current].size = parts[current].size.min(position.size);
    }
    let mut room = FARTHEST;
    for part in parts.iter().rev() {
        let whole = backwards(&part.file, part.size, &mut room, |line| {
            if let Ok(record) = serde_json::from_slice::<Record>(line) {
                if past.after == Some(record.seq()) {
                    return false;
                }
                if past.filter.fits(&record) {
                    found.push_front(line.to_vec());
                }
            }
            found.len() < past.last
        })
        .map_err(FilesError::of("read", &part.path))?;
        if !whole {
            break;
        }
    }
    Ok(found.into())
}

/// Calls `each` with the lines among the first `size` bytes of a file, the last first, until it returns false or `room`
/// bytes were read. Returns whether all were.
///
/// # Errors
/// When the file cannot be read.
pub fn backwards(file: &File, size: u64, room: &mut u64, mut each: impl FnMut(&[u8]) -> bool) -> io::Result<bool> {
    let mut end = size;
    // The beginning of a line whose end was in the block behind.
    let mut rest: Vec<u8> = Vec::new();
    while end > 0 {
        let length = end.min(BLOCK).min(*room);
        if length == 0 {
            return Ok(false);
        }
        *room -= length;
        end -= length;
        let mut block = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut block, end)?;
        if rest.len() < LONGEST {
            block.append(&mut rest);
        }
        let mut lines = block.rsplit(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            if lines.peek().is_none() && end > 0 {
                rest = line.to_vec();
            } else if !line.is_empty() && !each(line) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::samples::{ALLOW, DENY};

    fn numbered(from: usize, to: usize) -> String {
        (from..to)
            .map(|i| ALLOW.replace("-r144", &format!("-r{i}")) + "\n")
            .collect()
    }

    fn sequences(lines: &[Vec<u8>]) -> Vec<String> {
        let seq = |line: &Vec<u8>| serde_json::from_slice::<Record>(line).unwrap().seq().to_owned();
        lines
            .iter()
            .map(|line| seq(line).rsplit('-').next().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn the_last_lines_that_fit_over_files_and_blocks() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("p.log");
        let nowhere = last(
            &log,
            &Position::default(),
            &Past {
                last: 5,
                ..Past::default()
            },
        );
        assert_eq!(nowhere.unwrap(), Vec::<Vec<u8>>::new());
        let old = directory.path().join("p-2026-06-13T21-29-31.445836.log");
        fs::write(&old, format!("{DENY}\n{}", numbered(0, 500))).unwrap();
        fs::write(
            &log,
            format!("{}no record\n{}", numbered(500, 1200), numbered(1200, 1210)),
        )
        .unwrap();
        let part = files::open(&log).unwrap().pop().unwrap();
        let all = Position {
            inode: part.inode,
            size: part.size,
        };
        let take = |position: &Position, last| {
            let past = Past {
                last,
                ..Past::default()
            };
            sequences(&super::last(&log, position, &past).unwrap())
        };
        assert_eq!(take(&all, 3), ["r1207", "r1208", "r1209"]);
        assert_eq!(take(&all, 0), Vec::<String>::new());
        assert_eq!(take(&all, 12)[..2], ["r1198", "r1199"], "what is no record is left out");
        let long = take(&all, 1000);
        let expected: Vec<String> = (210..1210).map(|i| format!("r{i}")).collect();
        assert_eq!(long, expected);
        assert_eq!(take(&all, 100_000).len(), 1211);

        let line = numbered(500, 501).len() as u64;
        let before = Position { size: 10 * line, ..all };
        assert_eq!(take(&before, 2), ["r508", "r509"], "not what came after the position");
        let former = Position {
            inode: fs::metadata(&old)
                .map(|m| std::os::unix::fs::MetadataExt::ino(&m))
                .unwrap(),
            size: u64::MAX,
        };
        assert_eq!(take(&former, 1), ["r499"], "not what was begun after the position");

        let mut past = Past {
            last: 5,
            ..Past::default()
        };
        past.filter.verdicts = vec![crate::filter::Decided::Deny];
        assert_eq!(sequences(&last(&log, &all, &past).unwrap()), ["g6.0"]);
        past.filter = Filter::default();
        past.after = Some("18e9e1d4923b5272-r1208");
        assert_eq!(sequences(&last(&log, &all, &past).unwrap()), ["r1209"]);
    }
}
