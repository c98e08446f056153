// SPDX-License-Identifier: Apache-2.0
//! `wardline-node observe`: what `wardline observe` runs in each daemon's container, which has no shell.

use std::io::{self, BufWriter};

use wardline_record::history::Past;
use wardline_record::stream::{self, StreamError};

use crate::args::ObserveArgs;

/// Copies this node's records to standard output.
///
/// # Errors
/// When the daemon cannot be reached, or its log cannot be read.
pub fn copy(args: &ObserveArgs) -> Result<(), StreamError> {
    if args.while_stdin {
        // The runtime does not end what it started for somebody who has gone; it closes its input.
        std::thread::spawn(|| {
            _ = io::copy(&mut io::stdin(), &mut io::sink());
            std::process::exit(0);
        });
    }
    let past = Past {
        last: args.last,
        after: args.after.as_deref(),
        filter: args.filter.clone(),
    };
    match stream::observe(&args.socket, &past, args.follow, &mut BufWriter::new(io::stdout())) {
        // They have read enough.
        Err(StreamError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        copied => copied,
    }
}
