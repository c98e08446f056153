// SPDX-License-Identifier: Apache-2.0
//! What the daemon hands out on its socket: every line as it stands in the file, and between them notes of its own.
//!
//! ```text
//! {"observer":"hello","node_name":"node1",...}     first: where the log is, and from which byte on lines follow here
//! {"connection":{...},...}                         lines, each once it is in the file
//! {"observer":"missed","node_name":"node1",...}    lines that are in the file, and were not handed out here
//! ```

use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::files::FilesError;
use crate::history::{self, Past};

/// Where the daemon listens.
pub const DEFAULT_SOCKET: &str = "/run/wardline/observe.sock";
/// How every note begins, and no record does.
const NOTE: &[u8] = br#"{"observer":"#;
/// The daemon greets between two writes of the log; a failed one is tried again after half a second.
const GREETING: Duration = Duration::from_secs(10);

/// What the daemon says of itself.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "observer", rename_all = "lowercase")]
pub enum Note {
    Hello(Hello),
    /// The reader was too slow.
    Missed {
        node_name: String,
        /// Lines that are in the file, and not in the stream.
        count: u64,
        /// When it was told.
        timestamp: Timestamp,
    },
    /// Nothing more will come.
    Refused {
        node_name: String,
        why: String,
    },
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub node_name: String,
    pub logging: Logging,
    pub log: PathBuf,
    pub position: Position,
}

/// What is logged as the reader comes.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logging {
    pub allow: bool,
    pub deny: bool,
}

/// A place in the log: what stands before it is in the files, what comes after it is streamed.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub inode: u64,
    pub size: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("failed to reach the daemon at {socket}: {cause}", socket = socket.display())]
    Connect { socket: PathBuf, cause: io::Error },
    #[error("failed to read what the daemon writes: {0}")]
    Read(io::Error),
    #[error("the daemon did not greet: {0}")]
    Greeting(String),
    #[error("the daemon refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Whoever takes the lines takes no more.
    #[error("failed to pass on lines: {0}")]
    Write(io::Error),
}

/// A note, where the line is one.
pub fn note(line: &[u8]) -> Option<Note> {
    line.starts_with(NOTE)
        .then(|| serde_json::from_slice(line).ok())
        .flatten()
}

/// Copies what a node logs to `out`: its greeting, the last lines that fit, then, where asked to follow, those that come
/// and notes, until the daemon ends.
pub fn observe(socket: &Path, past: &Past<'_>, follow: bool, out: &mut impl Write) -> Result<(), StreamError> {
    let stream = UnixStream::connect(socket).map_err(|cause| StreamError::Connect {
        socket: socket.to_owned(),
        cause,
    })?;
    stream.set_read_timeout(Some(GREETING)).map_err(StreamError::Read)?;
    let mut lines = BufReader::new(&stream);
    let mut line = Vec::new();
    lines.read_until(b'\n', &mut line).map_err(StreamError::Read)?;
    let hello = match note(&line) {
        Some(Note::Hello(hello)) => hello,
        Some(Note::Refused { why, .. }) => return Err(StreamError::Refused(why)),
        _ => return Err(StreamError::Greeting(String::from_utf8_lossy(&line).into_owned())),
    };
    out.write_all(&line).map_err(StreamError::Write)?;
    if !follow {
        // The daemon need not queue what is not read.
        let _ = stream.shutdown(Shutdown::Both);
    }
    for mut found in history::last(&hello.log, &hello.position, past)? {
        found.push(b'\n');
        out.write_all(&found).map_err(StreamError::Write)?;
    }
    out.flush().map_err(StreamError::Write)?;
    if !follow {
        return Ok(());
    }
    stream.set_read_timeout(None).map_err(StreamError::Read)?;
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(StreamError::Read)? == 0 {
            return Ok(());
        }
        if line.starts_with(NOTE) || past.filter.takes(&line) {
            out.write_all(&line).map_err(StreamError::Write)?;
        }
        if lines.buffer().is_empty() {
            out.flush().map_err(StreamError::Write)?;
        }
    }
}
