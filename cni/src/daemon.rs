// SPDX-License-Identifier: Apache-2.0
//! Asking the daemon.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::protocol::{self, ANSWER_TIMEOUT, Command, MessageError, PROTOCOL, Request, Response};

/// Longer than the daemon takes before it gives up, whose reason is the better one to tell.
const TIMEOUT: Duration = Duration::from_secs(ANSWER_TIMEOUT.as_secs() + 5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody listens, or ended before it answered: the daemon is away.
    #[error("failed to reach wardline-node at {socket}: {cause}")]
    Away { socket: String, cause: io::Error },
    /// It is there; what it decided is not known.
    #[error("failed to get an answer of wardline-node at {socket} within {} s", .patience.as_secs())]
    Slow { socket: String, patience: Duration },
    #[error("failed to understand wardline-node at {socket}: {cause}")]
    Strange { socket: String, cause: MessageError },
}

pub(crate) fn ask(socket: &str, command: Command) -> Result<Response, AskError> {
    ask_within(socket, command, TIMEOUT)
}

fn ask_within(socket: &str, command: Command, patience: Duration) -> Result<Response, AskError> {
    let request = Request {
        protocol: PROTOCOL,
        command,
    };
    exchange(socket, &request, patience).map_err(|error| {
        let socket = socket.to_owned();
        match error {
            // What a read or write says whose time is up.
            MessageError::Io(cause) if cause.kind() == io::ErrorKind::WouldBlock => AskError::Slow { socket, patience },
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

fn exchange(socket: &str, request: &Request, patience: Duration) -> Result<Response, MessageError> {
    let stream = connect_within(socket, patience)?;
    stream.set_read_timeout(Some(patience))?;
    protocol::write(&stream, request)?;
    stream.shutdown(Shutdown::Write)?;
    protocol::read(&stream)
}

/// A daemon that hangs accepts nobody, and whoever finds its queue full waits. For as long as writing may take: set before
/// connecting, that bounds it too (unix(7)).
fn connect_within(socket: &str, patience: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&stream, Timeout::Send, Some(patience))?;
    connect(&stream, &address)?;
    Ok(stream.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_daemon_that_takes_too_long_is_not_away() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("cni.sock");
        let _silent = UnixListener::bind(&socket).unwrap();
        let socket = socket.to_str().unwrap();
        let asked = ask_within(socket, Command::Status, Duration::from_millis(50));
        assert!(matches!(asked, Err(AskError::Slow { .. })), "{asked:?}");
        let asked = ask_within("/nowhere/cni.sock", Command::Status, Duration::from_millis(50));
        assert!(matches!(asked, Err(AskError::Away { .. })), "{asked:?}");
    }

    #[test]
    fn a_daemon_that_accepts_nobody_is_not_waited_for_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("cni.sock");
        let address = SocketAddrUnix::new(&socket).unwrap();
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let socket = socket.to_str().unwrap();
        let patience = Duration::from_millis(50);
        let _waiting = connect_within(socket, patience).unwrap();
        let asked = ask_within(socket, Command::Status, patience);
        assert!(matches!(asked, Err(AskError::Slow { .. })), "{asked:?}");
    }
}
