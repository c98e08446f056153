// SPDX-License-Identifier: Apache-2.0
//! What `observe` and `logs` share: how records are shown, and how times are asked for.

mod cells;
mod render;
mod when;

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use wardline_record::stream::Note;
use wardline_record::{Record, Timestamp};

pub(crate) use self::cells::{clean, long_seconds, party, port, short};
pub(crate) use self::render::Renderer;
pub(crate) use self::when::When;

/// Something to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// A record, and its line without the line feed.
    Record(Box<Record>, Vec<u8>),
    /// Lines that the daemon of a node did not hand out, and when it said so.
    Missed { node: String, count: u64, time: Timestamp },
}

impl Shown {
    /// Its place among others.
    pub(crate) fn time(&self) -> Timestamp {
        match self {
            Self::Record(record, _) => record.first(),
            Self::Missed { time, .. } => *time,
        }
    }

    pub(crate) fn missed(note: Note) -> Option<Self> {
        match note {
            Note::Missed {
                node_name,
                count,
                timestamp,
            } => Some(Self::Missed {
                node: node_name,
                count,
                time: timestamp,
            }),
            Note::Hello(_) | Note::Refused { .. } => None,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// Where standard output is a terminal, and the variable `NO_COLOR` is not set
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    pub(crate) fn is_on(self) -> bool {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                io::stdout().is_terminal() && !is_set("NO_COLOR") && std::env::var("TERM").as_deref() != Ok("dumb")
            }
        }
    }
}
