// SPDX-License-Identifier: Apache-2.0
//! The lines of a file, one at a time and none longer than a record can be.

use std::io::{self, BufRead, Read as _};

/// No record is as long.
const LONGEST: u64 = 1 << 20;

pub(super) struct Line<'a> {
    /// Without its line feed.
    pub(super) bytes: &'a [u8],
    /// Counted from 1.
    pub(super) number: u64,
    /// The file ends before the line does.
    pub(super) is_torn: bool,
    /// Only its beginning is here.
    pub(super) is_too_long: bool,
}

pub(super) struct Lines<R> {
    input: R,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            number: 0,
            buffer: Vec::new(),
        }
    }

    /// The next line that is not empty.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        loop {
            self.buffer.clear();
            if (&mut self.input).take(LONGEST).read_until(b'\n', &mut self.buffer)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.buffer.trim_ascii().is_empty() {
                continue;
            }
            let has_end = self.buffer.pop_if(|last| *last == b'\n').is_some();
            let is_too_long = !has_end && self.buffer.len() as u64 == LONGEST;
            if is_too_long {
                self.input.skip_until(b'\n')?;
            }
            return Ok(Some(Line {
                bytes: &self.buffer,
                number: self.number,
                is_torn: !has_end && !is_too_long,
                is_too_long,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_bounded() {
        let longest = usize::try_from(LONGEST).unwrap();
        let input = format!("one\n\n \nfour\n{}\nsix\nsev", "x".repeat(3 * longest));
        let mut lines = Lines::new(input.as_bytes());
        let mut seen = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            assert!(line.bytes.len() <= longest);
            seen.push((line.number, line.is_torn, line.is_too_long));
        }
        let whole = |number| (number, false, false);
        assert_eq!(seen, [whole(1), whole(4), (5, false, true), whole(6), (7, true, false)]);
        assert!(lines.buffer.capacity() <= 2 * longest);
    }
}
