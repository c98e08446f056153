// SPDX-License-Identifier: Apache-2.0
//! How results are written: columns for people, one JSON object for programs.

use std::io::Write;

use anyhow::Context as _;
use serde::Serialize;
use tabwriter::TabWriter;

/// What stands where there is nothing to say.
pub(crate) const NOTHING: &str = "-";

/// One JSON object, indented, and a line feed.
pub(crate) fn json(out: &mut Vec<u8>, report: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report).context("failed to write JSON")?;
    out.push(b'\n');
    Ok(())
}

/// Columns as wide as their widest cell, three spaces apart, as kubectl writes them.
pub(crate) fn table<const N: usize>(out: &mut Vec<u8>, header: [&str; N], rows: &[[String; N]]) -> anyhow::Result<()> {
    let mut columns = TabWriter::new(Vec::new()).padding(3);
    writeln!(columns, "{}", header.join("\t")).context("failed to write the table")?;
    for row in rows {
        writeln!(columns, "{}", row.join("\t")).context("failed to write the table")?;
    }
    let text = columns
        .into_inner()
        .map_err(|error| anyhow::anyhow!("failed to write the table: {error}"))?;
    out.extend(text);
    Ok(())
}

/// How many records a loss is of, where somebody knows.
pub(crate) fn lost(count: Option<u64>) -> String {
    count.map_or_else(|| "?".to_owned(), |count| count.to_string())
}

/// A number and what it counts: `1 node`, `2 nodes`.
pub(crate) fn count(number: impl TryInto<u64>, one: &str, many: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut out = Vec::new();
        let rows = [
            ["a".to_owned(), "long name".to_owned()],
            ["longer".to_owned(), "-".to_owned()],
        ];
        table(&mut out, ["KIND", "NAME"], &rows).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "KIND     NAME\na        long name\nlonger   -\n"
        );
    }
}
