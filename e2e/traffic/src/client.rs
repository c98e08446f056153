// SPDX-License-Identifier: Apache-2.0
//! The clients: one attempt, or a connection that stays open.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::Target;

/// How long `hold` tries to connect; longer than a few retransmissions of a SYN.
const CONNECT: Duration = Duration::from_secs(10);
/// The first of the ports that `again` uses once: behind all that a pod listens on, and the kernel gives out none before 32,768.
const FIRST_PORT: u16 = 10_000;
/// How long it waits for echoes that are under way when it is told to end: on a busy machine that may be several.
const LAST: Duration = Duration::from_secs(1);

/// Prints `{"event":"result","ok":…,"stage":…,"local_port":…,"error":…}` and fails if the echo did not come.
pub(crate) fn connect(target: &Target, timeout: Duration) -> io::Result<()> {
    let mut local_port = None;
    let outcome = attempt(target, timeout, &mut local_port);
    let (stage, error) = match &outcome {
        Ok(()) => ("echo", None),
        Err((stage, error)) => (*stage, Some(error.to_string())),
    };
    say(&json!({"event": "result", "ok": outcome.is_ok(), "stage": stage, "local_port": local_port, "error": error}));
    outcome.map_err(|(stage, error)| io::Error::new(error.kind(), format!("failed to {stage}: {error}")))
}

fn attempt(target: &Target, timeout: Duration, local_port: &mut Option<u16>) -> Result<(), (&'static str, io::Error)> {
    let mut answer = [0; 4];
    if target.udp {
        let socket = udp_socket(target).map_err(|error| ("connect", error))?;
        *local_port = port(socket.local_addr());
        socket
            .set_read_timeout(Some(timeout))
            .map_err(|error| ("connect", error))?;
        socket.send(b"ping").map_err(|error| ("send", error))?;
        socket.recv(&mut answer).map_err(|error| ("echo", error))?;
    } else {
        let mut stream = TcpStream::connect_timeout(&target.server, timeout).map_err(|error| ("connect", error))?;
        *local_port = port(stream.local_addr());
        stream
            .set_read_timeout(Some(timeout))
            .map_err(|error| ("connect", error))?;
        stream.write_all(b"ping").map_err(|error| ("send", error))?;
        stream.read_exact(&mut answer).map_err(|error| ("echo", error))?;
    }
    Ok(())
}

/// Sends numbered messages and prints `{"event":"echo","seq":…,"at_ms":…}` for each that comes back.
///
/// Starts with `{"event":"connected","local_port":…}`, and ends with `{"event":"done","sent":…}` when the standard
/// input does and the last echo has come, or has not for a while. Over TCP a lost packet shows as a gap between echoes, over UDP as a number that never comes.
pub(crate) fn hold(target: &Target, interval: Duration) -> io::Result<()> {
    let echoed = Arc::new(AtomicU64::new(0));
    let sent = if target.udp {
        hold_udp(target, interval, Arc::clone(&echoed))?
    } else {
        hold_tcp(target, interval, Arc::clone(&echoed))?
    };
    let ended = Instant::now();
    while echoed.load(Ordering::Relaxed) < sent && ended.elapsed() < LAST {
        thread::sleep(Duration::from_millis(5));
    }
    say(&json!({"event": "done", "sent": sent}));
    Ok(())
}

/// Makes one attempt after the other, UDP from ports that are used once, and prints `{"event":"error","error":…}` for each
/// that fails, and `{"event":"done","sent":…,"failed":…}` when the standard input has ended.
pub(crate) fn again(target: &Target, interval: Duration, timeout: Duration) -> io::Result<()> {
    let mut failed = 0_u64;
    let sent = send_each(interval, |seq| {
        let source_port = u16::try_from(u64::from(FIRST_PORT) + seq).map_err(io::Error::other)?;
        let target = Target {
            source_port: if target.udp { source_port } else { 0 },
            ..*target
        };
        if let Err((stage, error)) = attempt(&target, timeout, &mut None) {
            failed += 1;
            say(&json!({"event": "error", "error": format!("attempt {seq} failed to {stage}: {error}")}));
        }
        Ok(())
    })?;
    say(&json!({"event": "done", "sent": sent, "failed": failed}));
    Ok(())
}

fn hold_tcp(target: &Target, interval: Duration, echoed: Arc<AtomicU64>) -> io::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&target.server, CONNECT)?;
    stream.set_nodelay(true)?;
    say(&json!({"event": "connected", "local_port": port(stream.local_addr())}));
    let answers = BufReader::new(stream.try_clone()?);
    thread::spawn(move || {
        for line in answers.lines() {
            match line {
                Ok(line) => say_echo(&line, &echoed),
                Err(error) => say(&json!({"event": "error", "error": error.to_string()})),
            }
        }
        say(&json!({"event": "closed"}));
    });
    send_each(interval, |seq| stream.write_all(format!("{seq}\n").as_bytes()))
}

fn hold_udp(target: &Target, interval: Duration, echoed: Arc<AtomicU64>) -> io::Result<u64> {
    let socket = udp_socket(target)?;
    say(&json!({"event": "connected", "local_port": port(socket.local_addr())}));
    let answers = socket.try_clone()?;
    thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            match answers.recv(&mut buffer) {
                Ok(length) => say_echo(&String::from_utf8_lossy(&buffer[..length]), &echoed),
                Err(error) => say(&json!({"event": "error", "error": error.to_string()})),
            }
        }
    });
    send_each(interval, |seq| match socket.send(format!("{seq}").as_bytes()) {
        // A refusal belongs to an earlier datagram, and this one goes with the next.
        Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => Err(error),
        _ => Ok(()),
    })
}

/// A channel that is disconnected when the standard input ends.
pub(crate) fn until_stdin_ends() -> Receiver<()> {
    let (ended, input) = mpsc::channel();
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(ended);
    });
    input
}

/// Sends 1, 2, 3 … until the standard input ends; returns how many.
pub(crate) fn send_each(interval: Duration, mut send: impl FnMut(u64) -> io::Result<()>) -> io::Result<u64> {
    let input = until_stdin_ends();
    let start = Instant::now();
    let mut seq = 0;
    loop {
        seq += 1;
        send(seq)?;
        // Against the start, so that the pace does not drift with the time that sending takes.
        let next = interval.saturating_mul(u32::try_from(seq).unwrap_or(u32::MAX));
        let pause = next.saturating_sub(start.elapsed());
        if input.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return Ok(seq);
        }
    }
}

fn udp_socket(target: &Target) -> io::Result<UdpSocket> {
    let wildcard = if target.server.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind((wildcard, target.source_port))?;
    socket.connect(target.server)?;
    Ok(socket)
}

fn port(address: io::Result<SocketAddr>) -> Option<u16> {
    address.ok().map(|address| address.port())
}

fn say_echo(seq: &str, echoed: &AtomicU64) {
    let seq = seq.parse::<u64>().ok();
    let at = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    say(&json!({"event": "echo", "seq": seq, "at_ms": u64::try_from(at).ok()}));
    echoed.fetch_max(seq.unwrap_or(0), Ordering::Relaxed);
}

pub(crate) fn say(line: &Value) {
    // Nobody listens any more when this fails, and then there is nobody to tell.
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
