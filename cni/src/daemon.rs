// SPDX-License-Identifier: Apache-2.0
//! Asking the daemon.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::protocol::{self, ANSWER_TIMEOUT, Command, MessageError, PROTOCOL, Request, Response};

/// Longer than the daemon takes before it gives up, whose reason is the better one to tell.
const TIMEOUT: Duration = Duration::from_secs(ANSWER_TIMEOUT.as_secs() + 5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody listens, or does not answer in time: the daemon is away.
    #[error("failed to reach wardline-node at {socket}: {cause}")]
    Away { socket: String, cause: io::Error },
    #[error("failed to understand wardline-node at {socket}: {cause}")]
    Strange { socket: String, cause: MessageError },
}

pub(crate) fn ask(socket: &str, command: Command) -> Result<Response, AskError> {
    let request = Request {
        protocol: PROTOCOL,
        command,
    };
    exchange(socket, &request).map_err(|error| {
        let socket = socket.to_owned();
        match error {
            MessageError::Io(cause) => AskError::Away { socket, cause },
            // It closed the connection without a word: it ended meanwhile.
            MessageError::Decode(cause) if cause.is_eof() => AskError::Away {
                socket,
                cause: io::ErrorKind::UnexpectedEof.into(),
            },
            cause => AskError::Strange { socket, cause },
        }
    })
}

fn exchange(socket: &str, request: &Request) -> Result<Response, MessageError> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    protocol::write(&stream, request)?;
    stream.shutdown(Shutdown::Write)?;
    protocol::read(&stream)
}
