// SPDX-License-Identifier: Apache-2.0
//! How many Events there may be: each pair once in a while, so many a pod, so many a node.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use wardline_policy::model::Direction;

/// A pair that was told is told again after one to two of these.
const FORGET: Duration = Duration::from_mins(30);
/// Pairs that are remembered; with more of them some are forgotten sooner, and the rates below hold all the same.
const PAIRS: usize = 8192;
/// Of a pod: three at once, then one in five minutes.
const POD: Rate = Rate {
    at_once: 3,
    every: Duration::from_mins(5),
};
/// Of a node: twenty at once, then one in half a minute; a thousand nodes under attack so write 33 a second.
const NODE: Rate = Rate {
    at_once: 20,
    every: Duration::from_secs(30),
};
/// Pods whose rate is kept: more than a node has.
const PODS: usize = 4096;

/// Who was denied whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) endpoint: u32,
    pub(super) direction: Direction,
    pub(super) remote: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Admitted,
    Limited,
}

struct Rate {
    at_once: u32,
    every: Duration,
}

#[derive(Debug)]
pub(super) struct Limits {
    /// Those of this half hour, or since they were too many, and those of the one before.
    pairs: [HashSet<Pair>; 2],
    /// When these began.
    since: Option<Instant>,
    /// When each has all its Events again.
    pods: HashMap<u32, Instant>,
    node: Option<Instant>,
}

impl Limits {
    pub(super) fn new() -> Self {
        Self {
            pairs: [HashSet::new(), HashSet::new()],
            since: None,
            pods: HashMap::new(),
            node: None,
        }
    }

    /// Whether the pair was told lately.
    pub(super) fn knows(&mut self, pair: &Pair, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) >= FORGET {
            self.forget();
            self.since = Some(now);
        }
        self.pairs.iter().any(|pairs| pairs.contains(pair))
    }

    /// Whether there may be one more Event, which is then counted.
    pub(super) fn admit(&mut self, pair: &Pair, now: Instant) -> Admission {
        if self.pods.len() >= PODS {
            self.pods.retain(|_, full| *full > now);
        }
        let pod = self.pods.get(&pair.endpoint).copied();
        let (Some(pod), Some(node)) = (POD.take(pod, now), NODE.take(self.node, now)) else {
            return Admission::Limited;
        };
        self.pods.insert(pair.endpoint, pod);
        self.node = Some(node);
        Admission::Admitted
    }

    /// The pair was told.
    pub(super) fn told(&mut self, pair: Pair) {
        if self.pairs[0].len() >= PAIRS / 2 {
            self.forget();
        }
        self.pairs[0].insert(pair);
    }

    fn forget(&mut self) {
        self.pairs.swap(0, 1);
        self.pairs[0].clear();
    }
}

impl Rate {
    /// When all are there again once one more is taken, given when they would be; None where none is left.
    fn take(&self, full: Option<Instant>, now: Instant) -> Option<Instant> {
        let full = full.map_or(now, |full| full.max(now)) + self.every;
        (full.duration_since(now) <= self.every * self.at_once).then_some(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(endpoint: u32, remote: u32) -> Pair {
        Pair {
            endpoint,
            direction: Direction::Ingress,
            remote: IpAddr::from(remote.to_be_bytes()),
        }
    }

    /// Whether it is told.
    fn deny(limits: &mut Limits, pair: Pair, now: Instant) -> bool {
        let is_told = !limits.knows(&pair, now) && limits.admit(&pair, now) == Admission::Admitted;
        if is_told {
            limits.told(pair);
        }
        is_told
    }

    #[test]
    fn a_pair_is_told_once_in_a_while() {
        let (mut limits, began) = (Limits::new(), Instant::now());
        let at = |minutes: u64| began + Duration::from_mins(minutes);
        for (minutes, expected) in [(0, true), (1, false), (29, false), (31, false), (59, false), (62, true)] {
            assert_eq!(
                deny(&mut limits, pair(1, 1), at(minutes)),
                expected,
                "after {minutes} minutes"
            );
        }
        let other_way = Pair {
            direction: Direction::Egress,
            ..pair(1, 1)
        };
        assert!(deny(&mut limits, other_way, at(62)));
    }

    #[test]
    fn a_pod_and_a_node_have_rates() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        let told = |limits: &mut Limits, endpoint: u32, from: u32, now: Instant| {
            (from..from + 100)
                .filter(|remote| deny(limits, pair(endpoint, *remote), now))
                .count()
        };
        assert_eq!(told(&mut limits, 1, 0, now), 3);
        assert_eq!(told(&mut limits, 1, 0, now + Duration::from_mins(4)), 0);
        assert_eq!(
            told(&mut limits, 1, 0, now + Duration::from_mins(5)),
            1,
            "what was limited comes later"
        );
        let later = now + Duration::from_hours(1);
        let all: usize = (2..100).map(|endpoint| told(&mut limits, endpoint, 0, later)).sum();
        assert_eq!(all, 20, "one pod cannot take all, and the node has its own");
        let all: usize = (2..100)
            .map(|endpoint| told(&mut limits, endpoint, 0, later + Duration::from_mins(1)))
            .sum();
        assert_eq!(all, 2);
    }

    #[test]
    fn memory_is_bounded() {
        let mut limits = Limits::new();
        let mut now = Instant::now();
        for i in 0..40_000 {
            now += Duration::from_secs(30);
            deny(&mut limits, pair(i, i), now);
        }
        for i in 0..20_000 {
            limits.told(pair(i, i));
        }
        assert!(limits.pairs.iter().map(HashSet::len).sum::<usize>() <= PAIRS);
        assert!(limits.pods.len() <= PODS, "{}", limits.pods.len());
    }
}
