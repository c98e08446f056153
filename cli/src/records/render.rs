// SPDX-License-Identifier: Apache-2.0
//! Records as lines for people, or as they are for programs. Lines are written as they come, so that a column is as wide
//! as its widest cell so far.

use std::io::{self, Write};

use wardline_record::{Loss, Record, Verdict};

use super::Shown;
use super::cells::{address, because, clean, clock, long, party, policies, port, service, short, workload};
use crate::args::Format;
use crate::output::{self, NOTHING};

/// A column grows no wider: one long name must not push all others off the screen.
const WIDEST: usize = 44;

const TABLE: [(&str, usize); 9] = [
    ("TIME (UTC)", 18),
    ("NODE", 8),
    ("VERDICT", 7),
    ("DIRECTION", 9),
    ("FROM", 24),
    ("TO", 24),
    ("PORT", 8),
    ("COUNT", 5),
    ("POLICIES", 0),
];

const WIDE: [(&str, usize); 16] = [
    ("TIME (UTC)", 30),
    ("NODE", 8),
    ("VERDICT", 7),
    ("DIRECTION", 9),
    ("FROM", 24),
    ("FROM ADDRESS", 18),
    ("FROM WORKLOAD", 16),
    ("TO", 24),
    ("TO ADDRESS", 18),
    ("TO WORKLOAD", 16),
    ("SERVICE", 8),
    ("PROTOCOL", 8),
    ("COUNT", 5),
    ("LAST", 12),
    ("REASON", 12),
    ("POLICIES@GENERATION[RULES]", 0),
];

#[derive(Debug)]
pub(crate) struct Renderer {
    format: Format,
    color: bool,
    /// Of the columns so far; empty until the header is written.
    widths: Vec<usize>,
}

impl Renderer {
    pub(crate) fn new(format: Format, color: bool) -> Self {
        Self {
            format,
            color,
            widths: Vec::new(),
        }
    }

    pub(crate) fn write(&mut self, out: &mut dyn Write, shown: &Shown) -> io::Result<()> {
        match self.format {
            Format::Json => json(out, shown),
            Format::Compact => self.compact(out, shown),
            Format::Table => self.row(out, &TABLE, table_cells(shown)),
            Format::Wide => self.row(out, &WIDE, wide_cells(shown)),
        }
    }

    /// The line that stands above all others, where it does not yet.
    pub(crate) fn header(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match self.format {
            Format::Table => self.begin(out, &TABLE),
            Format::Wide => self.begin(out, &WIDE),
            Format::Json | Format::Compact => Ok(()),
        }
    }

    fn begin(&mut self, out: &mut dyn Write, columns: &[(&str, usize)]) -> io::Result<()> {
        if !self.widths.is_empty() {
            return Ok(());
        }
        self.widths = columns.iter().map(|(name, width)| name.len().max(*width)).collect();
        let names = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        self.cells(out, names)
    }

    fn row(&mut self, out: &mut dyn Write, columns: &[(&str, usize)], cells: Vec<String>) -> io::Result<()> {
        self.begin(out, columns)?;
        self.cells(out, cells)
    }

    fn cells(&mut self, out: &mut dyn Write, cells: Vec<String>) -> io::Result<()> {
        let last = cells.len() - 1;
        for (i, (cell, width)) in cells.iter().zip(&mut self.widths).enumerate() {
            let cell = clean(cell);
            let length = cell.chars().count();
            *width = (*width).max(length.min(WIDEST));
            let padding = if i == last { 0 } else { width.saturating_sub(length) + 2 };
            // The verdict is the third in every table.
            let cell = if i == 2 {
                paint(self.color, &cell)
            } else {
                cell.into_owned()
            };
            write!(out, "{cell}{:padding$}", "")?;
        }
        writeln!(out)
    }

    fn compact(&self, out: &mut dyn Write, shown: &Shown) -> io::Result<()> {
        let line = match shown {
            Shown::Record(record, _) => match &**record {
                Record::Allow(verdict) => self.compact_verdict("allow", verdict),
                Record::Deny(verdict) => self.compact_verdict("deny", verdict),
                Record::Lost(_) => {
                    let [time, node, said] = [clock(shown.time()), record.node().to_owned(), lost(record)];
                    format!("{time} {node} {} {said}", paint(self.color, "lost"))
                }
            },
            Shown::Missed { node, count, time } => {
                let word = paint(self.color, "missed");
                format!("{} {node} {word} {count} lines, which are in its log", clock(*time))
            }
        };
        // Colours are ours; what came from elsewhere was cleaned before they were put on.
        writeln!(out, "{line}")
    }

    fn compact_verdict(&self, word: &str, verdict: &Verdict) -> String {
        let connection = &verdict.connection;
        let times = match verdict.count {
            1 => String::new(),
            count => format!(" x{count}"),
        };
        let rest = format!(
            "{} {} {} -> {} {}{times}",
            connection.direction.as_str(),
            port(connection),
            party(&verdict.src),
            party(&verdict.dest),
            because(verdict),
        );
        let [node, rest] = [clean(&verdict.node_name), clean(&rest)];
        format!("{} {node} {} {rest}", clock(verdict.timestamp), paint(self.color, word))
    }
}

fn json(out: &mut dyn Write, shown: &Shown) -> io::Result<()> {
    match shown {
        Shown::Record(_, line) => out.write_all(line)?,
        Shown::Missed { node, count, time } => {
            let missed = serde_json::json!({
                "disposition": "missed", "count": count, "node_name": node, "timestamp": time,
            });
            write!(out, "{missed}")?;
        }
    }
    writeln!(out)
}

fn paint(is_on: bool, word: &str) -> String {
    let color = match word {
        "allow" => 32,
        "deny" => 31,
        "lost" | "missed" => 33,
        _ => return word.to_owned(),
    };
    if is_on {
        format!("\u{1b}[{color}m{word}\u{1b}[0m")
    } else {
        word.to_owned()
    }
}

fn known(loss: &Loss) -> Option<u64> {
    (loss.count > 0).then_some(loss.count)
}

/// `12 allow records: ring-full`
fn lost(record: &Record) -> String {
    match record {
        Record::Lost(loss) => {
            let text = format!(
                "{} {} {} records: {}",
                loss.connection.direction.as_str(),
                output::lost(known(loss)),
                loss.lost.disposition,
                loss.lost.why
            );
            clean(&text).into_owned()
        }
        Record::Allow(_) | Record::Deny(_) => NOTHING.to_owned(),
    }
}

fn table_cells(shown: &Shown) -> Vec<String> {
    let nothing = || NOTHING.to_owned();
    let (word, verdict) = match shown {
        Shown::Missed { node, count, time } => {
            let mut cells = vec![short(*time), node.clone(), "missed".into()];
            cells.extend((0..4).map(|_| nothing()));
            cells.extend([count.to_string(), "lines that are in its log".into()]);
            return cells;
        }
        Shown::Record(record, _) => match &**record {
            Record::Allow(verdict) => ("allow", verdict),
            Record::Deny(verdict) => ("deny", verdict),
            Record::Lost(loss) => {
                let direction = loss.connection.direction.as_str().to_owned();
                let why = format!("{} records: {}", loss.lost.disposition, loss.lost.why);
                let mut cells = vec![short(loss.timestamp), loss.node_name.clone(), "lost".into(), direction];
                cells.extend((0..3).map(|_| nothing()));
                cells.extend([output::lost(known(loss)), why]);
                return cells;
            }
        },
    };
    vec![
        short(verdict.timestamp),
        verdict.node_name.clone(),
        word.to_owned(),
        verdict.connection.direction.as_str().to_owned(),
        party(&verdict.src),
        party(&verdict.dest),
        port(&verdict.connection),
        verdict.count.to_string(),
        because(verdict),
    ]
}

fn wide_cells(shown: &Shown) -> Vec<String> {
    let verdict = match shown {
        Shown::Record(record, _) => match &**record {
            Record::Allow(verdict) | Record::Deny(verdict) => Some(verdict),
            Record::Lost(_) => None,
        },
        Shown::Missed { .. } => None,
    };
    let mut cells = table_cells(shown);
    cells[0] = long(shown.time());
    let (Some(because), Some(count)) = (cells.pop(), cells.pop()) else {
        return cells;
    };
    let Some(verdict) = verdict else {
        // What was lost, under the policies; nothing is known of the rest.
        cells.extend((0..5).map(|_| NOTHING.to_owned()));
        cells.extend([count, NOTHING.to_owned(), NOTHING.to_owned(), because]);
        return cells;
    };
    let connection = &verdict.connection;
    cells.truncate(4);
    cells.extend([
        party(&verdict.src),
        address(connection.src_ip, connection.src_port),
        workload(&verdict.src),
        party(&verdict.dest),
        address(connection.dest_ip, connection.dest_port),
        workload(&verdict.dest),
        verdict.service.as_ref().map_or_else(|| NOTHING.to_owned(), service),
        connection.protocol.clone(),
        count,
        verdict.last_timestamp.map_or_else(|| NOTHING.to_owned(), clock),
        verdict.reason.clone().unwrap_or_else(|| NOTHING.to_owned()),
        policies(verdict.deciding(), true),
    ]);
    cells
}
