// SPDX-License-Identifier: Apache-2.0
//! What is measured of records, once their lines are in the file: how long they took, and whose policies decided them.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec};
use wardline_bpf::abi::{Direction as AbiDirection, Verdict as AbiVerdict};
use wardline_policy::model::{Direction, ObjectName};

use super::log::index;
use super::observed::{Observed, Verdict};
use crate::clock::monotonic;
use crate::names::Names;

/// A policy that has decided nothing for so long, in nanoseconds, gives its place to another.
const IDLE: u64 = 3600 * 1_000_000_000;
/// How often it is looked for one while there is no place, in nanoseconds.
const SEARCH: u64 = 60 * 1_000_000_000;

/// Counts and times of what is written.
#[derive(Debug)]
pub struct Meters {
    /// From a connection's first packet to its line.
    delay: Histogram,
    by_policy: Option<ByPolicy>,
    /// Lines that are not in the file yet.
    unwritten: Vec<Unwritten>,
}

#[derive(Clone, Copy, Debug)]
struct Unwritten {
    direction: Direction,
    verdict: Verdict,
    /// Of the packet: nanoseconds of the kernel's monotonic clock. An aggregate has none: it waits for its time.
    since: Option<u64>,
    /// Of the packet: nanoseconds since the epoch.
    time: u64,
}

impl Meters {
    /// `policies` are told apart in `verdicts`, which has the labels namespace, policy, direction and verdict.
    pub fn new(delay: Histogram, verdicts: IntCounterVec, policies: u32) -> Self {
        Self {
            delay,
            by_policy: (policies > 0).then(|| ByPolicy::new(verdicts, policies as usize)),
            unwritten: Vec::new(),
        }
    }

    /// A line that is to be written next.
    pub(super) fn add(&mut self, seen: &Observed, since: Option<u64>) {
        if since.is_some() || self.by_policy.is_some() {
            self.unwritten.push(Unwritten {
                direction: seen.direction,
                verdict: seen.verdict,
                since,
                time: seen.time,
            });
        }
    }

    /// The lines are in the file.
    pub(super) fn written(&mut self, names: &Names) {
        let now = monotonic();
        let delay = self.delay.local();
        for line in self.unwritten.drain(..) {
            if let Some(since) = line.since {
                delay.observe(Duration::from_nanos(now.saturating_sub(since)).as_secs_f64());
            }
            if let Some(by_policy) = &mut self.by_policy {
                by_policy.count(&line, names);
            }
        }
        delay.flush();
    }

    /// They are not, and will be added again.
    pub(super) fn forget(&mut self) {
        self.unwritten.clear();
    }
}

/// Verdicts by the policies that decided them: each counts for all that its record names.
#[derive(Debug)]
struct ByPolicy {
    verdicts: IntCounterVec,
    /// How many policies are told apart.
    most: usize,
    policies: HashMap<ObjectName, Series>,
    /// Of those that found no place.
    others: Series,
    /// While there is none: when it is looked for one again.
    search_at: u64,
}

#[derive(Debug, Default)]
struct Series {
    /// By direction and verdict.
    counters: [[Option<IntCounter>; 2]; 2],
    /// When it counted last.
    last: u64,
}

impl ByPolicy {
    fn new(verdicts: IntCounterVec, most: usize) -> Self {
        Self {
            verdicts,
            most,
            policies: HashMap::new(),
            others: Series::default(),
            search_at: 0,
        }
    }

    fn count(&mut self, line: &Unwritten, names: &Names) {
        match line.verdict {
            Verdict::Allow {
                attribution,
                only_annotated,
            } => {
                let by = names.attribution(attribution);
                let policies = by.iter().flat_map(|by| &by.policies);
                for allowing in policies.filter(|allowing| allowing.log || !only_annotated) {
                    self.add(&allowing.policy.name, line, AbiVerdict::Allow, 1);
                }
            }
            Verdict::Deny { table, count, .. } => {
                let table = names.table(table);
                for policy in table.iter().flat_map(|table| &table.isolated_by) {
                    self.add(&policy.name, line, AbiVerdict::Deny, count);
                }
            }
        }
    }

    fn add(&mut self, policy: &ObjectName, line: &Unwritten, verdict: AbiVerdict, count: u64) {
        if !self.policies.contains_key(policy) && self.make_room(line.time) {
            self.policies.insert(policy.clone(), Series::default());
        }
        let (series, namespace, name) = match self.policies.get_mut(policy) {
            Some(series) => (series, &*policy.namespace, &*policy.name),
            None => (&mut self.others, "", ""),
        };
        series.last = line.time;
        let direction = AbiDirection::ALL[index(line.direction)];
        series.counters[index(line.direction)][verdict as usize]
            .get_or_insert_with(|| {
                let labels = [namespace, name, direction.as_str(), verdict.as_str()];
                self.verdicts.with_label_values(&labels)
            })
            .inc_by(count);
    }

    /// Whether one policy more can be told apart.
    fn make_room(&mut self, now: u64) -> bool {
        if self.policies.len() < self.most {
            return true;
        }
        if now < self.search_at {
            return false;
        }
        let is_idle = |series: &Series| series.last.saturating_add(IDLE) < now;
        let Self { policies, verdicts, .. } = self;
        policies.retain(|policy, series| {
            if !is_idle(series) {
                return true;
            }
            for direction in AbiDirection::ALL {
                for verdict in AbiVerdict::ALL {
                    let labels = [&*policy.namespace, &*policy.name, direction.as_str(), verdict.as_str()];
                    // Most have counted one or two of them.
                    let _ = verdicts.remove_label_values(&labels);
                }
            }
            false
        });
        self.search_at = now.saturating_add(SEARCH);
        self.policies.len() < self.most
    }
}

#[cfg(test)]
mod tests;
