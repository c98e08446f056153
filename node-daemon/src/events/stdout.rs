// SPDX-License-Identifier: Apache-2.0
//! The lines of the file once more, on standard output. A thread of its own writes them: whoever reads them may stop
//! reading, and neither the file nor anything else waits for that.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes that may wait to be written.
const ROOM: usize = 4 << 20;
/// How long the end of the daemon waits for what waits.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Stdout {
    lines: Sender<Vec<u8>>,
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Bytes that wait.
    waiting: AtomicUsize,
    /// Lines that were not written.
    left_out: AtomicU64,
}

impl Stdout {
    /// Begins to write to the daemon's standard output.
    pub fn start() -> io::Result<Self> {
        Self::to(io::stdout().as_fd())
    }

    fn to(output: BorrowedFd<'_>) -> io::Result<Self> {
        let mut output = File::from(output.try_clone_to_owned()?);
        let (lines, waiting) = channel();
        let queue = Arc::new(Queue::default());
        let thread = {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name("stdout".to_owned())
                .spawn(move || write(&mut output, &waiting, &queue))?
        };
        Ok(Self { lines, queue, thread })
    }

    /// Takes whole lines to be written, or counts them where too many wait already.
    pub(super) fn offer(&self, lines: &[u8]) {
        let waiting = self.queue.waiting.fetch_add(lines.len(), Ordering::Relaxed);
        if waiting + lines.len() > ROOM || self.lines.send(lines.to_vec()).is_err() {
            self.queue.waiting.fetch_sub(lines.len(), Ordering::Relaxed);
            self.queue.leave_out(lines);
        }
    }

    /// Lines that were left out.
    pub fn left_out(&self) -> u64 {
        self.queue.left_out.load(Ordering::Relaxed)
    }

    /// Waits a moment for what waits to be written, and leaves the rest.
    pub(super) fn finish(self) {
        let Self { lines, thread, .. } = self;
        drop(lines);
        let end = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
    }
}

impl Queue {
    fn leave_out(&self, lines: &[u8]) {
        let count = memchr::memchr_iter(b'\n', lines).count();
        self.left_out.fetch_add(count as u64, Ordering::Relaxed);
    }
}

fn write(output: &mut File, waiting: &Receiver<Vec<u8>>, queue: &Queue) {
    // A line failed in the middle: what follows must not be taken for its end.
    let mut is_torn = false;
    for mut lines in waiting {
        let length = lines.len();
        let start = usize::from(is_torn);
        if is_torn {
            lines.insert(0, b'\n');
        }
        let (written, result) = write_all(output, &lines);
        let whole = memchr::memrchr(b'\n', &lines[..written]).map_or(0, |last| last + 1);
        if result.is_err() {
            queue.leave_out(&lines[whole.max(start)..]);
        }
        if written > 0 {
            is_torn = written > whole;
        }
        queue.waiting.fetch_sub(length, Ordering::Relaxed);
    }
}

/// Returns how much was written, also where it failed.
fn write_all(output: &mut File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match output.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody who shares it made it so.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut ready, PollTimeout::NONE);
            }
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};

    use super::*;

    fn line(number: usize) -> String {
        format!("{number:09} {}\n", "x".repeat(500))
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_no_time() {
        let (reader, writer) = io::pipe().unwrap();
        let stdout = Stdout::to(writer.as_fd()).unwrap();
        drop(writer);
        let began = Instant::now();
        for number in 0..20_000 {
            stdout.offer((line(number * 2) + &line(number * 2 + 1)).as_bytes());
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let left_out = stdout.left_out();
        assert!((20_000..40_000).contains(&left_out), "{left_out} of 20 MB");
        let reads = std::thread::spawn(move || {
            let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
            lines
        });
        stdout.finish();
        let lines = reads.join().unwrap();
        assert_eq!(lines.len() as u64 + left_out, 40_000, "each line is there or counted");
        for (i, found) in lines.iter().enumerate() {
            assert_eq!(*found, line(i).trim_end(), "whole, and in order");
        }
    }

    #[test]
    fn a_reader_that_went_away_costs_lines() {
        let (mut reader, writer) = io::pipe().unwrap();
        let stdout = Stdout::to(writer.as_fd()).unwrap();
        drop(writer);
        stdout.offer(line(0).as_bytes());
        let mut read = vec![0; line(0).len()];
        reader.read_exact(&mut read).unwrap();
        drop(reader);
        for number in 1..100 {
            stdout.offer(line(number).as_bytes());
        }
        let queue = Arc::clone(&stdout.queue);
        stdout.finish();
        assert_eq!(queue.left_out.load(Ordering::Relaxed), 99);
    }

    #[test]
    fn a_pipe_that_does_not_block_is_waited_for() {
        let (mut reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK)
            .map(|(r, w)| (File::from(r), w))
            .unwrap();
        let stdout = Stdout::to(writer.as_fd()).unwrap();
        drop(writer);
        let long = "y".repeat(1 << 20) + "\n";
        stdout.offer(long.as_bytes());
        stdout.offer(line(1).as_bytes());
        let (mut text, end) = (Vec::new(), Instant::now() + Duration::from_secs(10));
        while text.len() < long.len() + line(1).len() && Instant::now() < end {
            let mut block = [0; 4096];
            match reader.read(&mut block) {
                Ok(length) => text.extend_from_slice(&block[..length]),
                Err(_) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
        assert_eq!(text, (long + &line(1)).into_bytes());
    }
}
