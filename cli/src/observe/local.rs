// SPDX-License-Identifier: Apache-2.0
//! The daemon of this machine, by its socket.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use wardline_record::history::Past;
use wardline_record::stream;

use super::{ObserveArgs, Session, Told, WAITING};

/// After which a daemon that has gone is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Reads in a thread of its own, which waits where nothing cancels it and ends with the process.
pub(super) fn start(socket: PathBuf, args: ObserveArgs) -> mpsc::Receiver<Told> {
    let (sender, told) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut session = Session::default();
        while let Err(why) = read(&socket, &args, &mut session, &sender) {
            let node = session.node.clone().unwrap_or_else(|| "this node".to_owned());
            if sender.blocking_send(Told::Problem { node, why }).is_err() || !args.follow {
                return;
            }
            std::thread::sleep(RETRY);
        }
    });
    told
}

fn read(socket: &Path, args: &ObserveArgs, session: &mut Session, told: &mpsc::Sender<Told>) -> Result<(), String> {
    let after = session.last_seq.clone();
    let past = Past {
        last: session.last(args),
        after: after.as_deref(),
        filter: args.filter.clone(),
    };
    let mut lines = Splitter {
        session,
        told,
        line: Vec::new(),
    };
    match stream::observe(socket, &past, args.follow, &mut lines) {
        Ok(()) if args.follow => Err("its daemon ended".to_owned()),
        read => read.map_err(|error| error.to_string()),
    }
}

/// Makes lines of what is written.
struct Splitter<'a> {
    session: &'a mut Session,
    told: &'a mpsc::Sender<Told>,
    line: Vec<u8>,
}

impl Write for Splitter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if !self.line.ends_with(b"\n") {
                continue;
            }
            if let Some(told) = self.session.read(&self.line) {
                self.told
                    .blocking_send(told)
                    .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            }
            self.line.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
