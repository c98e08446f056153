// SPDX-License-Identifier: Apache-2.0
//! Where the whole lines of a file end, and since when they have been there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use wardline_record::Timestamp;

/// Bytes that are read at once.
const BLOCK: u64 = 64 << 10;

/// Where the last whole line ends: what stands behind it is torn.
pub(super) fn end_of_last(file: &File) -> io::Result<u64> {
    let mut block = Vec::new();
    let mut at = file.metadata()?.len();
    while at > 0 {
        at = read_before(file, at, &mut block)?;
        if let Some(last) = memchr::memrchr(b'\n', &block) {
            return Ok(at + last as u64 + 1);
        }
    }
    Ok(0)
}

/// What a line says about its time.
#[derive(Deserialize)]
struct Time {
    timestamp: Timestamp,
    last_timestamp: Option<Timestamp>,
}

/// When that happened, the last of it, of which the first line tells. None where it is no record.
pub(super) fn time_of_first(file: &File) -> Option<SystemTime> {
    let mut block = vec![0; usize::try_from(BLOCK).ok()?];
    let length = file.read_at(&mut block, 0).ok()?;
    let line = block[..length].split(|byte| *byte == b'\n').next()?;
    let time: Time = serde_json::from_slice(line).ok()?;
    let nanoseconds = time.last_timestamp.unwrap_or(time.timestamp).0;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(nanoseconds))
}

/// Reads the block that ends at `at`. Returns where it begins.
fn read_before(file: &File, at: u64, block: &mut Vec<u8>) -> io::Result<u64> {
    let start = at.saturating_sub(BLOCK);
    block.resize(usize::try_from(at - start).map_err(io::Error::other)?, 0);
    file.read_exact_at(block, start)?;
    Ok(start)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        file
    }

    #[test]
    fn what_is_torn_is_no_line() {
        let long = "x".repeat(3 * 65_536 + 7);
        for text in [
            String::new(),
            "torn".to_owned(),
            "one\n".to_owned(),
            "one\ntwo\ntorn".to_owned(),
            format!("one\n{long}\n"),
            format!("one\ntwo\n{long}"),
            long,
        ] {
            let end = text.rfind('\n').map_or(0, |feed| feed as u64 + 1);
            assert_eq!(end_of_last(&file(text.as_bytes())).unwrap(), end);
        }
    }
}
