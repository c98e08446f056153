// SPDX-License-Identifier: Apache-2.0
//! Times as the log writes them.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Nanoseconds since the epoch, written as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time in UTC, to be written in other ways.
    pub fn utc(self) -> OffsetDateTime {
        // Any u64 of nanoseconds is a year before 2555, which the type holds.
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.utc().format(&Rfc3339).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time as of RFC 3339")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                let time = OffsetDateTime::parse(text, &Rfc3339).map_err(E::custom)?;
                let nanoseconds = u64::try_from(time.unix_timestamp_nanos());
                nanoseconds
                    .map(Timestamp)
                    .map_err(|_| E::custom("a time before 1970 or after 2554"))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time", "description": "RFC 3339, in UTC, nanoseconds at most"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back() {
        for (nanoseconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_781_386_171_445_836_587, "2026-06-13T21:29:31.445836587Z"),
            (1_781_386_173_100_000_000, "2026-06-13T21:29:33.1Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(serde_json::to_value(Timestamp(nanoseconds)).unwrap(), text);
            let read: Timestamp = serde_json::from_value(text.into()).unwrap();
            assert_eq!(read, Timestamp(nanoseconds));
        }
        let eastern: Timestamp = serde_json::from_str("\"1970-01-01T01:00:00+01:00\"").unwrap();
        assert_eq!(eastern, Timestamp(0));
        for text in ["1969-12-31T23:59:59Z", "yesterday", ""] {
            assert!(serde_json::from_value::<Timestamp>(text.into()).is_err(), "{text}");
        }
    }
}
