// SPDX-License-Identifier: Apache-2.0
//! The report as a table, and below it what is wrong, a line each.

use std::io::Write as _;

use anyhow::Context as _;
use wardline_crds::MAX_LISTED;

use super::report::{Report, Row};
use crate::output::{self, NOTHING};

const HEADER: [&str; 8] = [
    "KIND",
    "NAME",
    "READY",
    "VERSION",
    "NODES",
    "MANAGED",
    "UNMANAGED",
    "INVALID",
];

pub(super) fn table(out: &mut Vec<u8>, report: &Report) -> anyhow::Result<()> {
    let rows: Vec<_> = report.objects.iter().map(cells).collect();
    if !rows.is_empty() {
        output::table(out, HEADER, &rows)?;
        out.push(b'\n');
    }
    for problem in &report.problems {
        let names = some(&problem.names);
        writeln!(out, "{} {names}: {}", problem.kind, problem.message).context("failed to write")?;
    }
    for note in &report.notes {
        writeln!(out, "note: {note}").context("failed to write")?;
    }
    let all = if report.well {
        "all is well".to_owned()
    } else {
        output::count(report.problems.len(), "problem", "problems")
    };
    writeln!(out, "{all}").context("failed to write")
}

fn cells(row: &Row) -> [String; 8] {
    let or_nothing = |text: Option<String>| text.filter(|t| !t.is_empty()).unwrap_or_else(|| NOTHING.to_owned());
    [
        row.kind.to_owned(),
        row.name.clone(),
        or_nothing(row.ready.clone()),
        or_nothing(row.version.clone()),
        or_nothing(row.nodes.map(|nodes| format!("{}/{}", nodes.done, nodes.desired))),
        or_nothing(row.endpoints.map(|endpoints| endpoints.managed.to_string())),
        or_nothing(row.endpoints.map(|endpoints| listed(endpoints.unmanaged))),
        or_nothing(row.invalid_objects.map(listed)),
    ]
}

/// A status lists so many and no more.
fn listed(number: usize) -> String {
    if number >= MAX_LISTED {
        format!("{number}+")
    } else {
        number.to_string()
    }
}

/// The first few of many nodes; JSON has them all.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 3;
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}
