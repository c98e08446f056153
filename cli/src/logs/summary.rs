// SPDX-License-Identifier: Apache-2.0
//! Records summed up. Every `count` is in some sum: what there is no room for by name is summed up as others.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use serde::Serialize;
use wardline_record::{Direction, Party, Record, Timestamp, Verdict};

use crate::records::{party, port};

/// Rows of a table that are held: a scan of ports and addresses must not fill the memory.
const ROWS: usize = 100_000;
/// Spans of time that are shown at most.
const SPANS: usize = 48;
/// Their lengths in seconds; each is a multiple of the one before.
const LENGTHS: [u64; 10] = [1, 5, 15, 60, 300, 900, 3600, 21_600, 86_400, 604_800];
const SECOND: u64 = 1_000_000_000;

/// Sums so far.
#[derive(Debug, Default)]
pub(super) struct Summary {
    totals: Sums,
    lost: BTreeMap<(String, String), u64>,
    denied: Rows<Pair, Times>,
    policies: Rows<String, Sums>,
    spans: Spans,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sums {
    /// Connections.
    pub(super) allowed: u64,
    /// Packets.
    pub(super) denied: u64,
    /// Records.
    pub(super) lost: u64,
}

/// Who was denied what.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(super) struct Pair {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) port: String,
    pub(super) direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Times {
    /// Packets.
    pub(super) count: u64,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
}

/// What is shown.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) totals: Sums,
    pub(super) lost: Vec<Lost>,
    pub(super) denied: Top<Denied>,
    pub(super) policies: Top<PolicySums>,
    /// Seconds of each of `over_time`.
    pub(super) span_seconds: u64,
    pub(super) over_time: Vec<Span>,
    pub(super) lines_that_are_no_records: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Lost {
    pub(super) disposition: String,
    pub(super) why: String,
    /// None: nobody knows how many.
    pub(super) count: Option<u64>,
}

/// The first rows of a table, and what the others come to.
#[derive(Debug, Serialize)]
pub(super) struct Top<T> {
    pub(super) rows: Vec<T>,
    /// Rows that are not shown; at least so many where there was no room for all.
    pub(super) others: u64,
    pub(super) others_count: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Denied {
    #[serde(flatten)]
    pub(super) pair: Pair,
    #[serde(flatten)]
    pub(super) times: Times,
}

#[derive(Debug, Serialize)]
pub(super) struct PolicySums {
    pub(super) policy: String,
    pub(super) allowed: u64,
    pub(super) denied: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Span {
    pub(super) from: Timestamp,
    #[serde(flatten)]
    pub(super) sums: Sums,
}

impl Summary {
    pub(super) fn add(&mut self, record: &Record) {
        let count = record.count();
        let sums = match record {
            Record::Allow(verdict) => {
                self.add_policies(verdict, |sums| sums.allowed += count);
                Sums {
                    allowed: count,
                    ..Sums::default()
                }
            }
            Record::Deny(verdict) => {
                self.add_policies(verdict, |sums| sums.denied += count);
                self.add_denied(verdict);
                Sums {
                    denied: count,
                    ..Sums::default()
                }
            }
            Record::Lost(loss) => {
                let what = (loss.lost.disposition.clone(), loss.lost.why.clone());
                *self.lost.entry(what).or_default() += count;
                Sums {
                    lost: count,
                    ..Sums::default()
                }
            }
        };
        self.totals.add(sums);
        self.spans.add(record.first(), sums);
    }

    fn add_denied(&mut self, verdict: &Verdict) {
        let pair = Pair {
            from: end(&verdict.src),
            to: end(&verdict.dest),
            port: port(&verdict.connection),
            direction: verdict.connection.direction,
        };
        let times = Times {
            count: verdict.count,
            first: verdict.timestamp,
            last: verdict.last_timestamp.unwrap_or(verdict.timestamp),
        };
        let add = |sum: &mut Times| {
            sum.count += times.count;
            sum.first = sum.first.min(times.first);
            sum.last = sum.last.max(times.last);
        };
        match self.denied.get(pair, || Times { count: 0, ..times }) {
            Some(sum) => add(sum),
            None => self.denied.left_out += verdict.count,
        }
    }

    fn add_policies(&mut self, verdict: &Verdict, add: impl Fn(&mut Sums)) {
        for policy in verdict.deciding() {
            let name = format!("{}/{}", policy.namespace, policy.name);
            match self.policies.get(name, Sums::default) {
                Some(sums) => add(sums),
                None => self.policies.left_out += verdict.count,
            }
        }
    }

    pub(super) fn report(self, top: usize, bad: u64) -> Report {
        let denied = self
            .denied
            .top(top, |times| times.count, |pair, times| Denied { pair, times });
        let policies = self.policies.top(
            top,
            |sums| sums.denied + sums.allowed,
            |policy, sums| PolicySums {
                policy,
                allowed: sums.allowed,
                denied: sums.denied,
            },
        );
        let lost = self.lost.into_iter().map(|((disposition, why), count)| Lost {
            disposition,
            why,
            count: (count > 0).then_some(count),
        });
        Report {
            totals: self.totals,
            lost: lost.collect(),
            denied,
            policies,
            span_seconds: self.spans.seconds(),
            over_time: self.spans.rows(),
            lines_that_are_no_records: bad,
        }
    }
}

/// The workload, which outlives its pods, where there is one.
fn end(party_: &Party) -> String {
    match party_ {
        Party::Pod {
            pod_namespace,
            workload_kind: Some(kind),
            workload_name: Some(name),
            ..
        } => format!("{pod_namespace}/{kind}/{name}"),
        other => party(other),
    }
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.allowed += other.allowed;
        self.denied += other.denied;
        self.lost += other.lost;
    }
}

/// A table with a bound.
#[derive(Debug)]
struct Rows<K, V> {
    rows: HashMap<K, V>,
    /// Sum of the counts that there was no row for.
    left_out: u64,
}

impl<K, V> Default for Rows<K, V> {
    fn default() -> Self {
        Self {
            rows: HashMap::new(),
            left_out: 0,
        }
    }
}

impl<K: Eq + Hash + Ord, V> Rows<K, V> {
    /// None where there is no room for one more.
    fn get(&mut self, key: K, new: impl FnOnce() -> V) -> Option<&mut V> {
        if self.rows.len() >= ROWS && !self.rows.contains_key(&key) {
            return None;
        }
        Some(self.rows.entry(key).or_insert_with(new))
    }

    fn top<T>(self, number: usize, count: impl Fn(&V) -> u64, row: impl Fn(K, V) -> T) -> Top<T> {
        let mut rows: Vec<(K, V)> = self.rows.into_iter().collect();
        rows.sort_by(|(a, x), (b, y)| count(y).cmp(&count(x)).then_with(|| a.cmp(b)));
        let others = rows.split_off(number.min(rows.len()));
        let others_count = others.iter().map(|(_, value)| count(value)).sum::<u64>() + self.left_out;
        Top {
            rows: rows.into_iter().map(|(key, value)| row(key, value)).collect(),
            others: others.len() as u64 + u64::from(self.left_out > 0),
            others_count,
        }
    }
}

/// Sums over time, in spans that become longer as more of them are needed.
#[derive(Debug, Default)]
struct Spans {
    /// Which of `LENGTHS`.
    length: usize,
    /// By their beginning in seconds, those without any record left out.
    sums: BTreeMap<u64, Sums>,
}

impl Spans {
    fn add(&mut self, time: Timestamp, sums: Sums) {
        let seconds = time.0 / SECOND;
        self.sums
            .entry(seconds - seconds % self.seconds())
            .or_default()
            .add(sums);
        while self.reach() > SPANS as u64 && self.length + 1 < LENGTHS.len() {
            self.length += 1;
            let length = self.seconds();
            for (from, sums) in std::mem::take(&mut self.sums) {
                self.sums.entry(from - from % length).or_default().add(sums);
            }
        }
    }

    fn seconds(&self) -> u64 {
        LENGTHS[self.length]
    }

    /// Spans from the first to the last.
    fn reach(&self) -> u64 {
        match (self.sums.first_key_value(), self.sums.last_key_value()) {
            (Some((first, _)), Some((last, _))) => (last - first) / self.seconds() + 1,
            _ => 0,
        }
    }

    fn rows(&self) -> Vec<Span> {
        let row = |(from, sums): (&u64, &Sums)| Span {
            from: Timestamp(from * SECOND),
            sums: *sums,
        };
        self.sums.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_become_longer_and_lose_nothing() {
        let mut spans = Spans::default();
        let one = Sums {
            denied: 1,
            ..Sums::default()
        };
        for (second, expected) in [
            (0, 1),
            (40, 1),
            (48, 5),
            (60, 5),
            (3600, 300),
            (86_400, 3600),
            (10, 3600),
        ] {
            spans.add(Timestamp(second * SECOND), one);
            assert_eq!(spans.seconds(), expected, "after second {second}");
        }
        assert_eq!(spans.rows().iter().map(|span| span.sums.denied).sum::<u64>(), 7);
        spans.add(Timestamp(u64::MAX), one);
        assert_eq!(spans.seconds(), 604_800, "the longest there is");
    }

    #[test]
    fn what_there_is_no_room_for_is_summed_up() {
        let mut rows = Rows::<u32, u64>::default();
        for key in 0..u32::try_from(ROWS).unwrap() + 10 {
            match rows.get(key, || 0) {
                Some(sum) => *sum += 2,
                None => rows.left_out += 2,
            }
        }
        *rows.get(7, || 0).unwrap() += 5;
        let top = rows.top(1, |sum| *sum, |key, sum| (key, sum));
        assert_eq!(top.rows, [(7, 7)]);
        assert_eq!(top.others, ROWS as u64);
        assert_eq!(top.others_count, 2 * (ROWS as u64 + 9));
    }
}
