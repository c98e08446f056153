// SPDX-License-Identifier: Apache-2.0
//! The two sides of a benchmark of connections: as little as possible besides the packets themselves.
//!
//! ```text
//!   rr    one connection, one byte there and back, again and again
//!   crr   connect, one byte there and back, the server closes, again and again
//! ```
//!
//! The server closes first, so that it has the sockets in `TIME_WAIT` and clients never run out of ports: a SYN to a
//! socket in `TIME_WAIT` opens it anew (RFC 6191).

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::say;

/// What a client of `crr` sends: the server closes after its answer.
const ONCE: u8 = b'c';
/// What a client of `rr` sends: the server goes on until the client closes.
const AGAIN: u8 = b'r';

/// Answers each byte with itself, one connection after the other in each of `threads` threads; never ends by itself.
pub(crate) fn respond(port: u16, threads: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            listener
                .try_clone()
                .map(|listener| thread::spawn(move || respond_each(&listener)))
        })
        .collect::<io::Result<_>>()?;
    say(&json!({"event": "listening", "port": port}));
    for worker in workers {
        worker
            .join()
            .map_err(|_| io::Error::other("a server thread panicked"))??;
    }
    Ok(())
}

fn respond_each(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        // A client that goes away in the middle takes its own connection along, and no more.
        let _ = answer(&mut stream);
    }
}

fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
        if byte[0] == ONCE {
            break;
        }
        // Set late, as a connection with one answer does not need it.
        stream.set_nodelay(true)?;
    }
    Ok(())
}

/// Prints `{"event":"load","transactions":…,"seconds":…,"longest_gap_ms":…}`; the gap is the time that the slowest took.
pub(crate) fn rr(server: SocketAddr, duration: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    let mut byte = [AGAIN];
    let (start, mut transactions) = (Instant::now(), 0_u64);
    let (mut last, mut longest) = (start, Duration::ZERO);
    while last - start < duration {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        transactions += 1;
        let now = Instant::now();
        longest = longest.max(now - last);
        last = now;
    }
    say(&json!({
        "event": "load",
        "transactions": transactions,
        "seconds": start.elapsed().as_secs_f64(),
        "longest_gap_ms": longest.as_secs_f64() * 1e3,
    }));
    Ok(())
}

/// Prints `{"event":"load","transactions":…,"seconds":…}`; a transaction is a whole connection, to the server's FIN.
pub(crate) fn crr(server: SocketAddr, duration: Duration) -> io::Result<()> {
    let (start, mut transactions) = (Instant::now(), 0_u64);
    while start.elapsed() < duration {
        let mut stream = TcpStream::connect(server)?;
        let mut byte = [ONCE];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        if stream.read(&mut byte)? != 0 {
            return Err(io::Error::other("the server sent more than one byte"));
        }
        transactions += 1;
    }
    report(transactions, start.elapsed());
    Ok(())
}

pub(crate) fn report(transactions: u64, elapsed: Duration) {
    say(&json!({"event": "load", "transactions": transactions, "seconds": elapsed.as_secs_f64()}));
}
