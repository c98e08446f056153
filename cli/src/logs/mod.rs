// SPDX-License-Identifier: Apache-2.0
//! `wardline logs`.
//!
//! ```text
//! files, the oldest first --lines--> Record --Filter, --since, --until--> Renderer | Summary
//! ```
//!
//! One line is held at a time, and a summary that does not grow with the files.

mod args;
mod lines;
mod summary;
mod table;

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;
use wardline_record::Record;
use wardline_record::files::{self, DEFAULT_LOG};

pub(crate) use self::args::EXAMPLES;
pub use self::args::LogsArgs;
use self::lines::{Line, Lines};
use self::summary::Summary;
use crate::args::Format;
use crate::records::{Renderer, Shown};
use crate::{Outcome, output};

/// Of lines that are no records, so many are told one by one.
const TOLD: u64 = 5;

/// Where records go.
enum Sink<'a> {
    Lines(Renderer, BufWriter<&'a mut dyn Write>),
    Summary(Summary, &'a mut dyn Write),
}

pub(crate) fn run(args: &LogsArgs, input: &mut dyn BufRead, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let format = args.format.output;
    let mut sink = if args.summary {
        Sink::Summary(Summary::default(), out)
    } else {
        Sink::Lines(Renderer::new(format, args.color.is_on()), BufWriter::new(out))
    };
    let mut bad = 0;
    if args.files.is_empty() {
        let parts = files::open(Path::new(DEFAULT_LOG))
            .map_err(|error| anyhow::anyhow!("{error}. Elsewhere than on a node, name files of records, or `-`"))?;
        for part in parts {
            let name = part.path.display().to_string();
            read(
                args,
                &name,
                BufReader::with_capacity(1 << 20, part.file),
                &mut sink,
                &mut bad,
            )?;
        }
    }
    for path in &args.files {
        if path == Path::new("-") {
            read(args, "-", &mut *input, &mut sink, &mut bad)?;
            continue;
        }
        let name = path.display().to_string();
        let file = std::fs::File::open(path).with_context(|| format!("failed to read {name}"))?;
        read(
            args,
            &name,
            BufReader::with_capacity(1 << 20, file),
            &mut sink,
            &mut bad,
        )?;
    }
    match sink {
        Sink::Lines(_, mut out) => out.flush()?,
        Sink::Summary(summary, out) => {
            let report = summary.report(args.top, bad);
            let mut text = Vec::new();
            match format {
                Format::Json => output::json(&mut text, &report)?,
                Format::Table | Format::Wide | Format::Compact => table::write(&mut text, &report)?,
            }
            out.write_all(&text)?;
        }
    }
    if bad > TOLD {
        eprintln!("wardline: {} are no records", output::count(bad, "line", "lines"));
    }
    Ok(Outcome::well_if(bad == 0))
}

fn read(args: &LogsArgs, name: &str, input: impl BufRead, sink: &mut Sink<'_>, bad: &mut u64) -> anyhow::Result<()> {
    let mut lines = Lines::new(input);
    while let Some(line) = lines.next().with_context(|| format!("failed to read {name}"))? {
        let (number, read) = (line.number, parse(&line));
        match read {
            Ok(record) => {
                let in_time = args.since.is_none_or(|since| record.last() >= since.0)
                    && args.until.is_none_or(|until| record.first() < until.0);
                if in_time && args.filter.fits(&record) {
                    take(sink, record, line.bytes)?;
                }
            }
            // It is being written.
            Err(_) if line.is_torn => {}
            Err(cause) => {
                *bad += 1;
                if *bad <= TOLD {
                    eprintln!("wardline: {name}:{number}: this line is no record: {cause}");
                }
            }
        }
    }
    Ok(())
}

fn parse(line: &Line<'_>) -> Result<Box<Record>, String> {
    if line.is_too_long {
        return Err("it is longer than any record".to_owned());
    }
    serde_json::from_slice(line.bytes).map_err(|error| error.to_string())
}

fn take(sink: &mut Sink<'_>, record: Box<Record>, line: &[u8]) -> io::Result<()> {
    match sink {
        Sink::Lines(renderer, out) => renderer.write(out, &Shown::Record(record, line.to_vec())),
        Sink::Summary(summary, _) => {
            summary.add(&record);
            Ok(())
        }
    }
}
