// SPDX-License-Identifier: Apache-2.0
//! From the ports that rules allow to entries that answer alone: each port is decided by one entry, which names every
//! rule that allows it.
//!
//! ```text
//! any port      A A A A A A A A          entry any:      A
//! 80 to 85            B B B B B B        entries of 80 to 85, as prefixes: A B, without those below
//! 81                    C                entry 81:       A B C
//! ```

use std::collections::BTreeMap;

use crate::tables::PortKey;

/// A rule of a table: its index there, policy by policy.
pub(super) type RuleId = usize;

/// What rules allow of one protocol.
#[derive(Clone, Debug, Default)]
pub(super) struct Allowed {
    pub(super) any: Vec<RuleId>,
    /// First and last port.
    pub(super) ranges: Vec<(u16, u16, RuleId)>,
    pub(super) exact: Vec<(u16, RuleId)>,
}

impl Allowed {
    /// The entries, with all the rules that allow their ports, ascending. An entry that would say what the one behind
    /// it says is left out.
    pub(super) fn entries(mut self) -> Vec<(PortKey, Vec<RuleId>)> {
        let any = sorted(std::mem::take(&mut self.any));
        let segments: Vec<Segment> = self.segments(&any).into_iter().filter(|s| s.rules != any).collect();
        let mut entries = Vec::new();
        self.exact.sort_unstable();
        for same in self.exact.chunk_by(|a, b| a.0 == b.0) {
            let port = same[0].0;
            let around = segments.get(segments.partition_point(|s| s.last < port));
            let behind = around.filter(|s| s.first <= port).map_or(&any, |s| &s.rules);
            let rules = sorted(behind.iter().copied().chain(same.iter().map(|(_, id)| *id)).collect());
            if rules != *behind {
                entries.push((PortKey::Exact(port), rules));
            }
        }
        for segment in segments {
            let prefixes = prefixes(segment.first, segment.last).into_iter();
            entries.extend(prefixes.map(|(first, length)| (PortKey::Prefix { first, length }, segment.rules.clone())));
        }
        if !any.is_empty() {
            entries.push((PortKey::Any, any));
        }
        entries
    }

    /// The ranges cut where one begins or ends, those that touch and say the same joined again. Ascending.
    fn segments(&self, any: &[RuleId]) -> Vec<Segment> {
        let begin = |(first, _, id): &(u16, u16, RuleId)| (u32::from(*first), true, *id);
        let end = |(_, last, id): &(u16, u16, RuleId)| (u32::from(*last) + 1, false, *id);
        let ranges = self.ranges.iter().filter(|(first, last, _)| first <= last);
        let mut cuts: Vec<_> = ranges.flat_map(|range| [begin(range), end(range)]).collect();
        cuts.sort_unstable();
        // The ranges over the ports behind the cut, counted by rule: thousands may lie over one another.
        let mut over: BTreeMap<RuleId, usize> = BTreeMap::new();
        let mut segments: Vec<Segment> = Vec::new();
        let cuts: Vec<_> = cuts.chunk_by(|a, b| a.0 == b.0).collect();
        for (here, next) in cuts.iter().zip(cuts.iter().skip(1)) {
            for (_, begins, id) in *here {
                let ranges = over.entry(*id).or_default();
                *ranges = if *begins { *ranges + 1 } else { *ranges - 1 };
                if *ranges == 0 {
                    over.remove(id);
                }
            }
            let (Ok(first), Ok(last)) = (u16::try_from(here[0].0), u16::try_from(next[0].0 - 1)) else {
                continue;
            };
            if over.is_empty() {
                continue;
            }
            let rules = sorted(any.iter().chain(over.keys()).copied().collect());
            match segments.last_mut() {
                Some(before) if before.rules == rules && u32::from(before.last) + 1 == here[0].0 => before.last = last,
                _ => segments.push(Segment { first, last, rules }),
            }
        }
        segments
    }
}

/// Ports that the same rules allow; both ends included.
struct Segment {
    first: u16,
    last: u16,
    rules: Vec<RuleId>,
}

fn sorted(mut rules: Vec<RuleId>) -> Vec<RuleId> {
    rules.sort_unstable();
    rules.dedup();
    rules
}

/// The fewest prefixes, as {first port, length}, that make up the ports from `first` to `last`: at most 30.
pub(super) fn prefixes(first: u16, last: u16) -> Vec<(u16, u8)> {
    let mut found = Vec::new();
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    while next < end {
        // The largest block that starts here, by its alignment and by what is left.
        let aligned = next.trailing_zeros().min(16);
        let bits = aligned.min((end - next).ilog2());
        if let (Ok(start), Ok(length)) = (u16::try_from(next), u8::try_from(16 - bits)) {
            found.push((start, length));
        }
        next += 1 << bits;
    }
    found
}

/// No fewer prefixes than a range can come to among others: besides its own, those of ranges that it cuts. A cut makes
/// of one prefix as many as there are bits of its length behind the lowest one of the cut.
pub(super) fn most_prefixes(first: u16, last: u16) -> usize {
    let cut = |port: u32| 16 - port.trailing_zeros().min(16) as usize;
    1 + cut(u32::from(first)) + cut(u32::from(last) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(first: u16, length: u8) -> u32 {
        u32::from(first) + (1 << (16 - length)) - 1
    }

    #[test]
    fn prefixes_make_up_exactly_the_range() {
        for (first, last, expected) in [
            (80, 80, vec![(80, 16)]),
            (80, 81, vec![(80, 15)]),
            (81, 82, vec![(81, 16), (82, 16)]),
            (80, 90, vec![(80, 13), (88, 15), (90, 16)]),
            (
                1024,
                65535,
                vec![(1024, 6), (2048, 5), (4096, 4), (8192, 3), (16384, 2), (32768, 1)],
            ),
            (0, 65535, vec![(0, 0)]),
        ] {
            assert_eq!(prefixes(first, last), expected, "{first} to {last}");
        }
        let ends = [
            1, 2, 3, 1000, 1023, 1024, 30000, 32767, 32768, 32769, 65533, 65534, 65535,
        ];
        for (i, first) in ends.into_iter().enumerate() {
            for last in ends[i..].iter().copied() {
                let found = prefixes(first, last);
                assert!(found.len() <= 30, "{first} to {last}: {found:?}");
                let mut next = u32::from(first);
                for (start, length) in found {
                    assert_eq!(u32::from(start), next);
                    next = end(start, length) + 1;
                }
                assert_eq!(next, u32::from(last) + 1);
            }
        }
    }

    #[test]
    fn each_port_is_decided_by_one_entry() {
        let exact = PortKey::Exact;
        let prefix = |first, length| PortKey::Prefix { first, length };
        for (why, any, ranges, exacts, expected) in [
            ("nothing", vec![], vec![], vec![], vec![]),
            ("any", vec![1, 0, 1], vec![], vec![], vec![(PortKey::Any, vec![0, 1])]),
            (
                "exact",
                vec![],
                vec![],
                vec![(80, 1), (80, 0)],
                vec![(exact(80), vec![0, 1])],
            ),
            (
                "exact over any",
                vec![2],
                vec![],
                vec![(80, 1)],
                vec![(exact(80), vec![1, 2]), (PortKey::Any, vec![2])],
            ),
            (
                "exact that any has already",
                vec![1],
                vec![],
                vec![(80, 1)],
                vec![(PortKey::Any, vec![1])],
            ),
            (
                "range that any has already",
                vec![1],
                vec![(80, 81, 1)],
                vec![],
                vec![(PortKey::Any, vec![1])],
            ),
            (
                "exact that the range has already",
                vec![],
                vec![(80, 81, 1)],
                vec![(80, 1)],
                vec![(prefix(80, 15), vec![1])],
            ),
            (
                "exact in a range",
                vec![],
                vec![(80, 81, 1)],
                vec![(81, 0), (82, 0)],
                vec![(exact(81), vec![0, 1]), (exact(82), vec![0]), (prefix(80, 15), vec![1])],
            ),
            (
                "ranges that overlap",
                vec![],
                vec![(80, 83, 0), (82, 85, 1)],
                vec![],
                vec![
                    (prefix(80, 15), vec![0]),
                    (prefix(82, 15), vec![0, 1]),
                    (prefix(84, 15), vec![1]),
                ],
            ),
            (
                "ranges that touch",
                vec![],
                vec![(80, 81, 0), (82, 83, 0)],
                vec![],
                vec![(prefix(80, 14), vec![0])],
            ),
            (
                "ranges apart",
                vec![],
                vec![(80, 81, 0), (84, 85, 0)],
                vec![],
                vec![(prefix(80, 15), vec![0]), (prefix(84, 15), vec![0])],
            ),
            (
                "up to the last port",
                vec![],
                vec![(65534, 65535, 0)],
                vec![],
                vec![(prefix(65534, 15), vec![0])],
            ),
        ] {
            assert_eq!(
                Allowed {
                    any,
                    ranges,
                    exact: exacts
                }
                .entries(),
                expected,
                "{why}"
            );
        }
    }
}
