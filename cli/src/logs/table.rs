// SPDX-License-Identifier: Apache-2.0
//! A summary as tables.

use std::io::Write as _;

use super::summary::{Report, Top};
use crate::output;
use crate::records::{clean, long_seconds, short};

/// Letters of the longest bar.
const BAR: u64 = 30;

pub(super) fn write(out: &mut Vec<u8>, report: &Report) -> anyhow::Result<()> {
    let totals = report.totals;
    let is_known = report.lost.iter().all(|lost| lost.count.is_some());
    writeln!(
        out,
        "{} allowed, {} denied, {}{} lost",
        output::count(totals.allowed, "connection", "connections"),
        output::count(totals.denied, "packet", "packets"),
        if is_known { "" } else { "at least " },
        output::count(totals.lost, "record", "records"),
    )?;
    for lost in &report.lost {
        let (disposition, why) = (clean(&lost.disposition), clean(&lost.why));
        let count = output::lost(lost.count);
        writeln!(out, "lost: {count} {disposition} records: {why}")?;
    }
    if report.lines_that_are_no_records > 0 {
        let lines = output::count(report.lines_that_are_no_records, "line", "lines");
        writeln!(out, "{lines} that are no records")?;
    }
    denied(out, report)?;
    policies(out, report)?;
    over_time(out, report)
}

fn denied(out: &mut Vec<u8>, report: &Report) -> anyhow::Result<()> {
    if report.denied.rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nMost denied")?;
    let rows: Vec<[String; 7]> = report
        .denied
        .rows
        .iter()
        .map(|row| {
            [
                row.times.count.to_string(),
                clean(&row.pair.from).into_owned(),
                clean(&row.pair.to).into_owned(),
                clean(&row.pair.port).into_owned(),
                row.pair.direction.as_str().to_owned(),
                short(row.times.first),
                short(row.times.last),
            ]
        })
        .collect();
    let header = [
        "PACKETS",
        "FROM",
        "TO",
        "PORT",
        "DIRECTION",
        "FIRST (UTC)",
        "LAST (UTC)",
    ];
    output::table(out, header, &rows)?;
    others(out, &report.denied, "packets")
}

fn policies(out: &mut Vec<u8>, report: &Report) -> anyhow::Result<()> {
    if report.policies.rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nBy policy; what several decided counts for each")?;
    let rows: Vec<[String; 3]> = report
        .policies
        .rows
        .iter()
        .map(|row| {
            [
                clean(&row.policy).into_owned(),
                row.allowed.to_string(),
                row.denied.to_string(),
            ]
        })
        .collect();
    output::table(out, ["POLICY", "CONNECTIONS ALLOWED", "PACKETS DENIED"], &rows)?;
    others(out, &report.policies, "connections and packets")
}

fn over_time(out: &mut Vec<u8>, report: &Report) -> anyhow::Result<()> {
    if report.over_time.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nOver time, in spans of {}", span(report.span_seconds))?;
    let most = report.over_time.iter().map(|row| row.sums.denied).max().unwrap_or(0);
    let rows: Vec<[String; 4]> = report
        .over_time
        .iter()
        .map(|row| {
            [
                long_seconds(row.from),
                row.sums.allowed.to_string(),
                row.sums.lost.to_string(),
                match bar(row.sums.denied, most) {
                    0 => "0".to_owned(),
                    bar => format!("{:<8}{}", row.sums.denied, "#".repeat(bar)),
                },
            ]
        })
        .collect();
    output::table(out, ["FROM (UTC)", "ALLOWED", "LOST", "DENIED"], &rows)
}

/// At least one letter where there is anything.
fn bar(count: u64, most: u64) -> usize {
    let letters = u128::from(count) * u128::from(BAR);
    usize::try_from(letters.div_ceil(u128::from(most.max(1)))).unwrap_or_default()
}

fn others<T>(out: &mut Vec<u8>, top: &Top<T>, what: &str) -> anyhow::Result<()> {
    if top.others > 0 {
        writeln!(out, "{} {what} in {} or more other rows", top.others_count, top.others)?;
    }
    Ok(())
}

fn span(seconds: u64) -> String {
    for (length, unit) in [(604_800, "w"), (86_400, "d"), (3600, "h"), (60, "m")] {
        if seconds.is_multiple_of(length) {
            return format!("{} {unit}", seconds / length);
        }
    }
    format!("{seconds} s")
}
