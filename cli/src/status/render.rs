// SPDX-License-Identifier: Apache-2.0
//! The report as tables, and below them what is wrong, a line each.

use std::io::Write as _;

use anyhow::Context as _;
use k8s_openapi::jiff::Timestamp;
use wardline_crds::MAX_LISTED;

use super::nodes::{LogState, NodeRow};
use super::report::{Counts, Report, Row};
use crate::output::{self, NOTHING};
use crate::records::clean;
use crate::span;

const OBJECTS: [&str; 6] = ["KIND", "NAME", "READY", "VERSION", "NODES", "UPDATED"];
const NODES: [&str; 10] = [
    "NODE",
    "READY",
    "VERSION",
    "UPDATED",
    "SYNCED",
    "MANAGED",
    "UNMANAGED",
    "INVALID",
    "LOST",
    "LOG",
];
const WIDE: [&str; 15] = [
    "NODE",
    "READY",
    "VERSION",
    "UPDATED",
    "SYNCED",
    "MANAGED",
    "UNMANAGED",
    "INVALID",
    "LOST",
    "LOG",
    "REVISION",
    "KERNEL",
    "ATTACH",
    "POD",
    "RESTARTS",
];

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) is_wide: bool,
    pub(super) has_color: bool,
    /// Ages are of now.
    pub(super) now: Timestamp,
}

const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;

pub(super) fn tables(out: &mut Vec<u8>, report: &Report, look: Look) -> anyhow::Result<()> {
    if !report.objects.is_empty() {
        let rows: Vec<_> = report.objects.iter().map(object).collect();
        let is_well = report.objects.iter().map(|row| row.ready.as_deref() == Some("True"));
        table(out, OBJECTS, &rows, is_well, look)?;
    }
    if !report.nodes.is_empty() {
        let is_unwell = |row: &NodeRow| report.problems.iter().any(|problem| problem.names.contains(&row.name));
        let is_well = report.nodes.iter().map(|row| !is_unwell(row));
        let cells = report.nodes.iter().map(|row| node(row, look.now));
        if look.is_wide {
            let rows: Vec<_> = cells.zip(&report.nodes).map(|(cells, row)| wide(cells, row)).collect();
            table(out, WIDE, &rows, is_well, look)?;
        } else {
            table(out, NODES, &cells.collect::<Vec<_>>(), is_well, look)?;
        }
    }
    for problem in &report.problems {
        let names = some(&problem.names);
        let line = format!("{} {names}: {}", problem.kind, clean(&problem.message));
        writeln!(out, "{}", paint(&line, RED, look)).context("failed to write")?;
    }
    for note in &report.notes {
        let line = format!("note: {}", clean(note));
        writeln!(out, "{}", paint(&line, YELLOW, look)).context("failed to write")?;
    }
    let (all, color) = if report.well {
        ("all is well".to_owned(), GREEN)
    } else {
        (output::count(report.problems.len(), "problem", "problems"), RED)
    };
    writeln!(out, "{}", paint(&all, color, look)).context("failed to write")
}

/// Whole rows are coloured, so that no column is wider for it.
fn table<const N: usize>(
    out: &mut Vec<u8>,
    header: [&str; N],
    rows: &[[String; N]],
    is_well: impl Iterator<Item = bool>,
    look: Look,
) -> anyhow::Result<()> {
    let mut plain = Vec::new();
    output::table(&mut plain, header, rows)?;
    let plain = String::from_utf8_lossy(&plain);
    for (line, is_well) in plain.lines().zip(std::iter::once(true).chain(is_well)) {
        let line = if is_well {
            line.to_owned()
        } else {
            paint(line, RED, look)
        };
        writeln!(out, "{line}").context("failed to write the table")?;
    }
    writeln!(out).context("failed to write the table")
}

fn paint(line: &str, color: u8, look: Look) -> String {
    if look.has_color {
        format!("\u{1b}[{color}m{line}\u{1b}[0m")
    } else {
        line.to_owned()
    }
}

fn object(row: &Row) -> [String; 6] {
    [
        row.kind.to_owned(),
        row.name.clone(),
        or_nothing(row.ready.as_deref()),
        or_nothing(row.version.as_deref()),
        counts(row.nodes),
        counts(row.updated),
    ]
}

fn node(row: &NodeRow, now: Timestamp) -> [String; 10] {
    let yes = |is: Option<bool>| or_nothing(is.map(|is| if is { "yes" } else { "no" }));
    let number = |number: Option<usize>| or_nothing(number.map(listed).as_deref());
    let since = row
        .last_applied
        .map(|time| span::short(now.duration_since(time).as_secs()));
    let synced = match (row.synced, since) {
        (Some(true), Some(since)) => format!("yes, {since}"),
        (synced, _) => yes(synced),
    };
    let lost = row.lost.as_ref().map(|lost| match lost.watched {
        Some(watched) => format!("{} (+{watched})", lost.total),
        None => lost.total.to_string(),
    });
    let log = row.log.map(|log| match log {
        LogState::On => "on",
        LogState::Off => "off",
        LogState::Behind => "behind",
        LogState::Stopped => "stopped",
    });
    // What nobody stands behind any more.
    let ready = match (&row.ready, row.current) {
        (Some(ready), false) => Some(format!("({ready})")),
        (ready, _) => ready.clone(),
    };
    [
        row.name.clone(),
        or_nothing(ready.as_deref()),
        or_nothing(row.version.as_deref()),
        yes(row.updated),
        synced,
        or_nothing(row.managed.map(|managed| managed.to_string()).as_deref()),
        number(row.unmanaged),
        number(row.invalid_objects),
        or_nothing(lost.as_deref()),
        or_nothing(log),
    ]
}

fn wide(cells: [String; 10], row: &NodeRow) -> [String; 15] {
    let pod = row.pod.as_ref();
    let more = [
        or_nothing(row.revision.as_deref()),
        or_nothing(row.kernel.as_deref()),
        or_nothing(row.attach),
        or_nothing(pod.map(|pod| pod.name.as_str())),
        or_nothing(pod.map(|pod| pod.restarts.to_string()).as_deref()),
    ];
    let mut all = cells.into_iter().chain(more);
    std::array::from_fn(|_| all.next().unwrap_or_default())
}

fn or_nothing(text: Option<&str>) -> String {
    let text = text.filter(|text| !text.is_empty()).unwrap_or(NOTHING);
    clean(text).into_owned()
}

fn counts(counts: Option<Counts>) -> String {
    let told = counts.map(|counts| format!("{}/{}", counts.done, counts.desired));
    or_nothing(told.as_deref())
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
