// SPDX-License-Identifier: Apache-2.0
//! The ABI with another layout, for tests of upgrades: what outlives a daemon has its fields in reverse order, and one
//! more.

use anyhow::{Context as _, Result};

/// LPM keys begin with their prefix, and what is built anew by every daemon has no past.
const CHANGED: [&str; 14] = [
    "endpoint",
    "conntrack_key",
    "conntrack_entry",
    "usage",
    "affinity_key",
    "affinity",
    "settings",
    "counters",
    "deny_key",
    "deny_entry",
    "deny_share",
    "event",
    "id_counters",
    "ledger",
];
/// Of these, those that have another size too. A word more keeps all fields aligned.
const GROWN: [&str; 5] = ["conntrack_entry", "counters", "deny_entry", "event", "ledger"];

pub(crate) fn other_layout(header: &str) -> Result<String> {
    let mut other = header.replace("ABI_VERSION = 1,", "ABI_VERSION = 2,");
    other = other.replace("EVENT_BYTES = 88,", "EVENT_BYTES = 96,");
    let asserts = other.find("_Static_assert").context("the header has no assertions")?;
    other.truncate(asserts);
    for name in CHANGED {
        let start = format!("\nstruct {name} {{\n");
        let start = other
            .find(&start)
            .with_context(|| format!("there is no struct {name}"))?
            + start.len();
        let end = start
            + other[start..]
                .find("\n};")
                .with_context(|| format!("struct {name} has no end"))?;
        let mut fields = fields(&other[start..end]);
        fields.reverse();
        if GROWN.contains(&name) {
            fields.insert(0, "\t__u64 grown;".to_owned());
        }
        other.replace_range(start..end, &fields.join("\n"));
    }
    Ok(other)
}

/// Declarations, without their comments.
fn fields(body: &str) -> Vec<String> {
    let mut bare = String::new();
    let mut rest = body;
    while let Some((code, comment)) = rest.split_once("/*") {
        bare += code;
        rest = comment.split_once("*/").map_or("", |(_, rest)| rest);
    }
    bare += rest;
    bare.split(';')
        .map(str::trim)
        .filter(|field| !field.is_empty())
        .map(|field| format!("\t{field};"))
        .collect()
}
