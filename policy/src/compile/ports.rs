// SPDX-License-Identifier: Apache-2.0
//! From the ports that rules allow to entries that answer alone: each port is decided by one entry, which names every
//! rule that allows it.
//!
//! ```text
//! any port      A A A A A A A A          entry any:      A
//! 80 to 85            B B B B B B        entries of 80 to 85, as prefixes: A B, without those below
//! 81                    C                entry 81:       A B C
//! ```

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
            let behind = segments
                .iter()
                .find(|s| (s.first..=s.last).contains(&port))
                .map_or(&any, |s| &s.rules);
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
        let starts = self.ranges.iter().map(|(first, _, _)| u32::from(*first));
        let ends = self.ranges.iter().map(|(_, last, _)| u32::from(*last) + 1);
        let mut cuts: Vec<u32> = starts.chain(ends).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut segments: Vec<Segment> = Vec::new();
        for cut in cuts.windows(2) {
            let (Ok(first), Ok(last)) = (u16::try_from(cut[0]), u16::try_from(cut[1] - 1)) else {
                continue;
            };
            let over = self.ranges.iter().filter(|(from, to, _)| *from <= first && last <= *to);
            let over: Vec<RuleId> = over.map(|(_, _, id)| *id).collect();
            if over.is_empty() {
                continue;
            }
            let rules = sorted([any, &over].concat());
            match segments.last_mut() {
                Some(before) if before.rules == rules && u32::from(before.last) + 1 == cut[0] => before.last = last,
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
fn prefixes(first: u16, last: u16) -> Vec<(u16, u8)> {
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
