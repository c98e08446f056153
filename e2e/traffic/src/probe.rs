// SPDX-License-Identifier: Apache-2.0
//! Datagrams at a steady pace to an echo server: when answers stop, and when they come again.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::client::say;

/// So many unanswered probes in a row are a stop. An answer takes a tenth of a millisecond, a busy machine delays it.
const STOP: usize = 60;
/// So many answered ones are a flow.
const FLOW: usize = 20;

/// What is known of the probes sent so far; their numbers are indices.
#[derive(Default)]
struct Probes {
    /// When each was sent, in nanoseconds of the monotonic clock, which all processes of the machine share.
    sent_ns: Vec<u64>,
    /// One more than the number of the last that was answered.
    answered: usize,
    /// Answers in all, and since the last stop.
    answers: usize,
    streak: usize,
    flowing: bool,
}

impl Probes {
    fn answer(&mut self, number: usize) {
        // An answer older than the stop that was reported is late, and no sign of a flow.
        if number < self.sent_ns.len() {
            self.answered = self.answered.max(number + 1);
            self.answers += 1;
            self.streak += 1;
        }
    }

    /// `{"event":"stopped","first_unanswered_ns":…}` or `{"event":"flowing"}`, once a change.
    fn change(&mut self) -> Option<serde_json::Value> {
        let unanswered = self.sent_ns.len() - self.answered;
        if self.flowing && unanswered >= STOP {
            (self.flowing, self.streak) = (false, 0);
            return Some(json!({"event": "stopped", "first_unanswered_ns": self.sent_ns[self.answered]}));
        }
        if !self.flowing && unanswered < STOP && self.streak >= FLOW {
            self.flowing = true;
            return Some(json!({"event": "flowing"}));
        }
        None
    }
}

/// Sends until it is killed, or for `duration`, after which it prints `{"event":"probed","sent":…,"answers":…}`; all from
/// one port, so that to a firewall it is one flow.
pub(crate) fn probe(server: SocketAddr, interval: Duration, duration: Option<Duration>) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    let mut probes = Probes::default();
    let start = Instant::now();
    let mut next = start;
    while duration.is_none_or(|duration| start.elapsed() < duration) {
        let mut buffer = [0; 8];
        // Errors belong to earlier datagrams, or say that nothing has come.
        while let Ok(length) = socket.recv(&mut buffer) {
            if length == buffer.len() {
                probes.answer(usize::try_from(u64::from_be_bytes(buffer)).unwrap_or(usize::MAX));
            }
        }
        if let Some(change) = probes.change() {
            say(&change);
        }
        let number = probes.sent_ns.len() as u64;
        probes.sent_ns.push(monotonic_ns());
        let _ = socket.send(&number.to_be_bytes());
        next += interval;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    say(&json!({"event": "probed", "sent": probes.sent_ns.len(), "answers": probes.answers}));
    Ok(())
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::{FLOW, Probes, STOP};

    #[test]
    fn a_stop_names_the_first_probe_without_an_answer() {
        let mut probes = Probes::default();
        let mut said = Vec::new();
        for number in 0..300_usize {
            probes.sent_ns.push(number as u64 * 500);
            // 100 to 199 are lost, and a single one before them, which is no stop.
            if number != 50 && !(100..200).contains(&number) {
                probes.answer(number);
            }
            said.extend(probes.change().map(|change| (number, change)));
        }
        assert_eq!(said.len(), 3, "{said:?}");
        assert_eq!(said[0], (FLOW - 1, serde_json::json!({"event": "flowing"})));
        let stopped = serde_json::json!({"event": "stopped", "first_unanswered_ns": 50_000});
        assert_eq!(said[1], (99 + STOP, stopped));
        assert_eq!(said[2], (199 + FLOW, serde_json::json!({"event": "flowing"})));
    }
}
