// SPDX-License-Identifier: Apache-2.0
//! Times as people give them.

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use wardline_record::Timestamp;

use crate::span;

/// A moment, or so long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When(pub Timestamp);

impl FromStr for When {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        parse(text, now).map(|time| Self(Timestamp(time)))
    }
}

fn parse(text: &str, now: u64) -> Result<u64, &'static str> {
    const EXPECTED: &str =
        "expected a time such as 2026-06-13T21:29:31Z or 2026-06-13, or how long ago: 90s, 10m, 2h, 7d";
    for text in [text.to_owned(), format!("{text}T00:00:00Z")] {
        if let Ok(time) = serde_json::from_value::<Timestamp>(text.into()) {
            return Ok(time.0);
        }
    }
    let (number, seconds) = span::number_and_unit(text).ok_or(EXPECTED)?;
    Ok(now.saturating_sub(number.saturating_mul(seconds).saturating_mul(1_000_000_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_spans() {
        const SECOND: u64 = 1_000_000_000;
        let now = 1_000_000 * SECOND;
        for (text, expected) in [
            ("1970-01-01T00:01:00Z", Some(60 * SECOND)),
            ("1970-01-02", Some(86_400 * SECOND)),
            ("1970-01-01T02:00:00+01:00", Some(3600 * SECOND)),
            ("90s", Some(now - 90 * SECOND)),
            ("10m", Some(now - 600 * SECOND)),
            ("2h", Some(now - 7200 * SECOND)),
            ("7d", Some(now - 604_800 * SECOND)),
            ("99999999999d", Some(0)),
            ("", None),
            ("m", None),
            ("-5m", None),
            ("5", None),
            ("yesterday", None),
            ("5µ", None),
        ] {
            assert_eq!(parse(text, now).ok(), expected, "{text}");
        }
    }
}
