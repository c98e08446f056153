// SPDX-License-Identifier: Apache-2.0
//! Those who watch the log as it is written: docs/observe.md.
//!
//! ```text
//! policy log thread: append to the file -> Observers::tell -> a queue each -> server -> socket -> wardline observe
//! ```
//!
//! The writer never waits: what does not fit into an observer's queue is counted, and told to that observer when
//! there is room again. While nobody is there, a write costs one load more.

mod client;
mod server;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use wardline_record::stream::Position;

pub use self::client::copy;
pub use self::server::{ObserveServer, Source};

/// Observers at a time.
pub const MOST: usize = 8;
/// Bytes that may wait for one observer.
const ROOM: usize = 2 << 20;
/// Pieces that may wait for it.
const PIECES: usize = 1024;
/// Bytes of a piece, but for the end of its last line.
const PIECE: usize = 64 << 10;

/// What an observer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// First: the lines before this place are in the file, those behind it follow.
    Joined(Position),
    /// Whole lines, as they stand in the file.
    Lines(Arc<[u8]>),
    /// So many lines did not fit.
    Missed(u64),
}

/// The observers, as the policy log thread and the server share them.
#[derive(Debug, Default)]
pub struct Observers {
    /// How many there are: all that a write looks at while it is none.
    present: AtomicUsize,
    queues: Mutex<Vec<Queue>>,
}

/// The writer's end of one observer.
#[derive(Debug)]
struct Queue {
    told: mpsc::Sender<Told>,
    /// Bytes that wait.
    waiting: Arc<AtomicUsize>,
    missed: u64,
    has_joined: bool,
}

/// The reader's end. Dropping it is leaving.
#[derive(Debug)]
pub struct Observer {
    told: mpsc::Receiver<Told>,
    waiting: Arc<AtomicUsize>,
}

impl Observers {
    /// None where too many are there.
    pub fn join(&self) -> Option<Observer> {
        let mut queues = self.queues();
        self.leave(&mut queues);
        if queues.len() >= MOST {
            return None;
        }
        let (sender, told) = mpsc::channel(PIECES);
        let waiting = Arc::new(AtomicUsize::new(0));
        queues.push(Queue {
            told: sender,
            waiting: Arc::clone(&waiting),
            missed: 0,
            has_joined: false,
        });
        self.present.store(queues.len(), Ordering::Release);
        Some(Observer { told, waiting })
    }

    /// Lets those in who came since, and tells what was missed where there is room. The writer calls it between writes.
    pub fn admit(&self, position: Position) {
        if self.nobody() {
            return;
        }
        let mut queues = self.queues();
        self.leave(&mut queues);
        for queue in &mut *queues {
            if !queue.has_joined {
                queue.has_joined = queue.told.try_send(Told::Joined(position)).is_ok();
            }
            queue.tell_missed();
        }
    }

    /// Hands out lines that are in the file.
    pub fn tell(&self, lines: &[u8]) {
        if self.nobody() || lines.is_empty() {
            return;
        }
        let mut queues = self.queues();
        for piece in pieces(lines) {
            let piece: Arc<[u8]> = piece.into();
            for queue in queues.iter_mut().filter(|queue| queue.has_joined) {
                queue.tell(&piece);
            }
        }
    }

    pub fn nobody(&self) -> bool {
        self.present.load(Ordering::Acquire) == 0
    }

    fn leave(&self, queues: &mut Vec<Queue>) {
        queues.retain(|queue| !queue.told.is_closed());
        self.present.store(queues.len(), Ordering::Release);
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn tell(&mut self, piece: &Arc<[u8]>) {
        self.tell_missed();
        let has_room = self.missed == 0 && self.waiting.load(Ordering::Acquire) + piece.len() <= ROOM;
        // Counted before it is there to be taken.
        self.waiting.fetch_add(piece.len(), Ordering::AcqRel);
        if !has_room || self.told.try_send(Told::Lines(Arc::clone(piece))).is_err() {
            self.waiting.fetch_sub(piece.len(), Ordering::AcqRel);
            self.missed += lines_of(piece);
        }
    }

    /// Only once half of the room is free again: one long gap tells more than many short ones.
    fn tell_missed(&mut self) {
        let has_room = self.waiting.load(Ordering::Acquire) <= ROOM / 2;
        if self.missed > 0 && has_room && self.told.try_send(Told::Missed(self.missed)).is_ok() {
            self.missed = 0;
        }
    }
}

impl Observer {
    /// None when the daemon ends.
    pub async fn next(&mut self) -> Option<Told> {
        let told = self.told.recv().await;
        if let Some(Told::Lines(lines)) = &told {
            self.waiting.fetch_sub(lines.len(), Ordering::AcqRel);
        }
        told
    }
}

/// Whole lines, of which each piece but for its last has not more than its bytes.
fn pieces(mut lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let from = PIECE.min(lines.len());
        let end = lines[from..]
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(lines.len(), |end| from + end + 1);
        let (piece, rest) = lines.split_at(end);
        lines = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

fn lines_of(piece: &[u8]) -> u64 {
    piece.split_inclusive(|byte| *byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Position = Position { inode: 1, size: 2 };

    fn drain(observer: &mut Observer) -> Vec<Told> {
        std::iter::from_fn(|| observer.told.try_recv().ok())
            .inspect(|told| {
                if let Told::Lines(lines) = told {
                    observer.waiting.fetch_sub(lines.len(), Ordering::AcqRel);
                }
            })
            .collect()
    }

    fn lines(number: usize) -> Vec<u8> {
        (0..number)
            .flat_map(|i| format!("{i}{}\n", "x".repeat(600)).into_bytes())
            .collect()
    }

    #[test]
    fn pieces_are_whole_lines() {
        for number in [0, 1, 2, 500] {
            let lines = lines(number);
            let pieces: Vec<&[u8]> = pieces(&lines).collect();
            assert_eq!(pieces.concat(), lines);
            assert!(pieces.iter().all(|piece| piece.ends_with(b"\n")));
            assert!(pieces.iter().all(|piece| piece.len() < PIECE + 700));
        }
    }

    #[test]
    fn an_observer_is_told_what_comes_after_it_joined_and_what_it_missed() {
        let observers = Observers::default();
        observers.tell(b"nobody hears this\n");
        let mut observer = observers.join().unwrap();
        observers.tell(b"it is in the file before the place that is told\n");
        observers.admit(HERE);
        observers.tell(b"one\ntwo\n");
        assert_eq!(
            drain(&mut observer),
            [Told::Joined(HERE), Told::Lines(b"one\ntwo\n".as_slice().into())]
        );

        let many = lines(10_000);
        observers.tell(&many);
        observers.tell(b"late\n");
        let told = drain(&mut observer);
        let kept: Vec<u8> = told
            .iter()
            .flat_map(|told| match told {
                Told::Lines(lines) => lines.to_vec(),
                _ => Vec::new(),
            })
            .collect();
        assert!(kept.len() <= ROOM && kept.len() > ROOM - 2 * PIECE, "{}", kept.len());
        assert!(many.starts_with(&kept), "what is told is not torn");
        observers.admit(HERE);
        assert_eq!(drain(&mut observer), [Told::Missed(10_001 - lines_of(&kept))]);
        observers.tell(b"again\n");
        assert_eq!(drain(&mut observer), [Told::Lines(b"again\n".as_slice().into())]);
    }

    #[test]
    fn pieces_that_are_small_are_bounded_too() {
        let observers = Observers::default();
        let mut observer = observers.join().unwrap();
        observers.admit(HERE);
        for _ in 0..PIECES + 100 {
            observers.tell(b"x\n");
        }
        let told = drain(&mut observer);
        assert_eq!(told.len(), PIECES);
        observers.admit(HERE);
        assert_eq!(drain(&mut observer), [Told::Missed(101)]);
    }

    #[test]
    fn places_are_few_and_given_back() {
        let observers = Observers::default();
        let mut all: Vec<Observer> = (0..MOST).map(|_| observers.join().unwrap()).collect();
        assert!(observers.join().is_none());
        all.pop();
        all.push(observers.join().unwrap());
        drop(all);
        assert!(!observers.nobody());
        observers.admit(HERE);
        assert!(observers.nobody());
    }
}
