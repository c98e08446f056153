// SPDX-License-Identifier: Apache-2.0
//! Spans of time as people give and read them.

use std::str::FromStr;
use std::time::Duration;

const EXPECTED: &str = "expected a span of time: 90s, 10m, 2h, 7d";

/// `90s`, `10m`, `2h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, seconds) = number_and_unit(text).ok_or(EXPECTED)?;
        let seconds = number.checked_mul(seconds).ok_or("this is too long")?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

/// The number, and how many seconds its unit has.
pub(crate) fn number_and_unit(text: &str) -> Option<(u64, u64)> {
    let (at, unit) = text.char_indices().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    Some((text[..at].parse().ok()?, seconds))
}

/// In its largest unit, as kubectl's AGE.
pub(crate) fn short(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{}s", seconds.max(0)),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, expected) in [
            ("90s", Some(90)),
            ("10m", Some(600)),
            ("2h", Some(7200)),
            ("7d", Some(604_800)),
            ("", None),
            ("5", None),
            ("-5m", None),
            ("99999999999999999999s", None),
            ("9999999999999999d", None),
        ] {
            let read = text.parse::<Span>().ok().map(|span| span.0.as_secs());
            assert_eq!(read, expected, "{text}");
        }
        for (seconds, expected) in [(-5, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")] {
            assert_eq!(short(seconds), expected);
        }
    }
}
