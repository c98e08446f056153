// SPDX-License-Identifier: Apache-2.0
//! Records of several nodes in the order of their times, as far as they come within a moment of each other.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use wardline_record::Timestamp;

use crate::records::Shown;

/// How long a record waits for older ones.
const WINDOW: Duration = Duration::from_millis(500);
/// How long the first ones do: nodes take their time to answer.
const FIRST: Duration = Duration::from_secs(2);
/// Records that wait at most.
const MOST: usize = 50_000;

#[derive(Debug)]
pub(super) struct Merge {
    began: Instant,
    /// By time, then as they came.
    waiting: BTreeMap<(Timestamp, u64), Shown>,
    /// When each came, some of which are shown already.
    arrivals: VecDeque<(Instant, (Timestamp, u64))>,
    number: u64,
}

impl Merge {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            waiting: BTreeMap::new(),
            arrivals: VecDeque::new(),
            number: 0,
        }
    }

    pub(super) fn push(&mut self, shown: Shown, now: Instant) {
        let place = (shown.time(), self.number);
        self.number += 1;
        self.arrivals.push_back((now, place));
        self.waiting.insert(place, shown);
    }

    /// When the next is ready.
    pub(super) fn due(&self) -> Option<Instant> {
        let (came, _) = self.arrivals.front()?;
        Some((*came + WINDOW).max(self.began + FIRST))
    }

    /// Those that have waited, and all that are older.
    pub(super) fn ready(&mut self, now: Instant) -> Vec<Shown> {
        let mut until = None;
        while self.due().is_some_and(|due| due <= now) || self.arrivals.len() > MOST {
            until = until.max(self.arrivals.pop_front().map(|(_, place)| place));
        }
        let mut ready = Vec::new();
        while let Some(entry) = self.waiting.first_entry()
            && until.is_some_and(|until| *entry.key() <= until)
        {
            ready.push(entry.remove());
        }
        ready
    }

    /// All that wait.
    pub(super) fn rest(&mut self) -> Vec<Shown> {
        self.arrivals.clear();
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: u64) -> Shown {
        Shown::Missed {
            node: String::new(),
            count: 1,
            time: Timestamp(time),
        }
    }

    fn times(shown: Vec<Shown>) -> Vec<u64> {
        shown.iter().map(|shown| shown.time().0).collect()
    }

    #[test]
    fn what_comes_within_the_window_is_in_order() {
        let began = Instant::now();
        let mut merge = Merge::new(began);
        assert_eq!(merge.due(), None);
        merge.push(at(5), began);
        merge.push(at(3), began + FIRST / 2);
        assert!(
            merge.ready(began + FIRST / 2).is_empty(),
            "other nodes may still answer"
        );
        assert_eq!(times(merge.ready(began + FIRST)), [3, 5]);

        let now = began + 2 * FIRST;
        for (time, milliseconds) in [(20, 0), (10, 400), (30, 450)] {
            merge.push(at(time), now + Duration::from_millis(milliseconds));
        }
        assert!(merge.ready(now + Duration::from_millis(499)).is_empty());
        assert_eq!(
            times(merge.ready(now + WINDOW)),
            [10, 20],
            "older ones need not wait longer"
        );
        assert!(merge.ready(now + Duration::from_millis(949)).is_empty());
        merge.push(at(30), now + WINDOW);
        assert_eq!(times(merge.rest()), [30, 30]);
        assert_eq!(merge.due(), None);
    }

    #[test]
    fn only_so_many_wait() {
        let began = Instant::now();
        let mut merge = Merge::new(began);
        for time in 0..MOST as u64 + 3 {
            merge.push(at(time), began);
        }
        assert_eq!(times(merge.ready(began)), [0, 1, 2]);
    }
}
