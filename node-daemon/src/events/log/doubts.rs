// SPDX-License-Identifier: Apache-2.0
//! What a life cannot know of those before it, told by lines ahead of its first: as losses, since readers look for these,
//! with a count of 0, since nobody knows how many.

use std::time::Duration;

use wardline_bpf::abi::Verdict;
use wardline_policy::model::Direction;

use super::PolicyLog;
use crate::clock;
use crate::datapath::{Ledger, TOLD_EVENT, TOLD_GENERATION};
use crate::events::observed::Lost;
use crate::events::record::write_lost;
use crate::events::sequence::{Sequence, Written};

/// By how much longer a deny may wait: a generation is looked at now and then.
const LOOKS: Duration = Duration::from_secs(1);

/// What is not known. Times are nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The kernel's account began anew: with the node, mostly. What was decided in between and had not been written went
    /// with the one before.
    Gap { since: u64, until: u64 },
    /// An earlier life was killed, and what it wrote last is not there to be looked at: lines that follow may repeat it.
    MayRepeat,
}

/// What a life finds at its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    /// In the files.
    pub(super) written: &'a Written,
    /// Each could be read.
    pub(super) is_past_read: bool,
    /// And the file that was written last is among them.
    pub(super) is_read: bool,
    pub(super) ledger: &'a Ledger,
    /// When the account was begun.
    pub(super) epoch: u64,
    /// Nothing waits in the kernel that a killed life may have written.
    pub(super) is_all_entered: bool,
    /// How long a deny waits for its record, about.
    pub(super) aggregation: Duration,
}

impl Found<'_> {
    pub(super) fn doubts(&self) -> Vec<Doubt> {
        let wait = u64::try_from((self.aggregation + LOOKS).as_nanos()).unwrap_or(u64::MAX);
        let gap = match self.written.former {
            _ if self.ledger.is_begun != 0 => None,
            Some(newest) => Some(Doubt::Gap {
                since: newest.saturating_sub(wait),
                until: self.epoch.max(newest),
            }),
            // Something was before, and nobody knows until when.
            None => (!self.is_past_read && !self.written.is_own).then_some(Doubt::Gap {
                since: self.epoch,
                until: self.epoch,
            }),
        };
        let may_repeat = self.ledger.is_writing != 0 && !self.is_all_entered && !(self.is_read && self.is_tail_there());
        gap.into_iter().chain(may_repeat.then_some(Doubt::MayRepeat)).collect()
    }

    /// Whether the last line that is entered is there, behind which those that are not stand.
    fn is_tail_there(&self) -> bool {
        let Written {
            ring, closing, is_own, ..
        } = self.written;
        let told = self.ledger.told;
        match self.ledger.told_kind {
            TOLD_EVENT => ring.is_some_and(|position| position >= told),
            TOLD_GENERATION => closing.is_some_and(|(generation, _)| u64::from(generation) >= told),
            _ => *is_own,
        }
    }
}

impl PolicyLog {
    /// The lines that tell of doubts: one for each direction and verdict.
    pub(super) fn doubtful_lines(&self) -> Vec<u8> {
        let (now, mut lines, mut seq, mut index) = (clock::wall(), Vec::new(), String::new(), 0);
        for doubt in &self.doubts {
            let (why, first, last) = match *doubt {
                Doubt::Gap { since, until } => ("gap", since, until),
                Doubt::MayRepeat => ("may-repeat", now, now),
            };
            for direction in Direction::ALL {
                for verdict in Verdict::ALL {
                    let lost = Lost {
                        direction,
                        disposition: verdict.as_str(),
                        why,
                        count: 0,
                        first,
                        last,
                    };
                    Sequence::Doubt { time: now, index }.write(self.accounts.epoch(), &mut seq);
                    write_lost(&mut lines, &lost, &seq, &self.origin);
                    index += 1;
                }
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Written = Written {
        ring: Some(720),
        closing: Some((6, 3)),
        is_own: true,
        former: None,
    };
    const NONE: Written = Written {
        ring: None,
        closing: None,
        is_own: false,
        former: None,
    };
    const OTHERS: Written = Written {
        former: Some(8_000_000_000),
        ..NONE
    };

    fn ledger(is_begun: u32, is_writing: u32, told: u64, told_kind: u32) -> Ledger {
        Ledger {
            is_writing,
            told,
            told_kind,
            is_begun,
            ..Ledger::default()
        }
    }

    #[test]
    fn doubts_are_what_cannot_be_known() {
        let gap = Doubt::Gap {
            since: 2_000_000_000,
            until: 9_000_000_000,
        };
        let killed = |told, kind| ledger(1, 1, told, kind);
        let table = [
            ("the first start ever", NONE, ledger(0, 0, 0, 0), vec![]),
            ("after a reboot", OTHERS, ledger(0, 0, 0, 0), vec![gap]),
            (
                "the own file was taken, older ones are another account's, and it ended in order",
                OTHERS,
                ledger(1, 0, 720, TOLD_EVENT),
                vec![],
            ),
            ("killed, all there", OWN, killed(720, TOLD_EVENT), vec![]),
            (
                "killed with more written than entered",
                OWN,
                killed(600, TOLD_EVENT),
                vec![],
            ),
            (
                "killed, and the newest file was taken",
                OWN,
                killed(808, TOLD_EVENT),
                vec![Doubt::MayRepeat],
            ),
            ("a generation was last", OWN, killed(6, TOLD_GENERATION), vec![]),
            (
                "and its file was taken",
                OWN,
                killed(7, TOLD_GENERATION),
                vec![Doubt::MayRepeat],
            ),
            (
                "killed, and all was taken",
                NONE,
                killed(720, TOLD_EVENT),
                vec![Doubt::MayRepeat],
            ),
            ("killed before anything was entered", OWN, killed(0, 0), vec![]),
            ("and its file was taken too", NONE, killed(0, 0), vec![Doubt::MayRepeat]),
            ("ended in order", NONE, ledger(1, 0, 720, TOLD_EVENT), vec![]),
        ];
        for (what, written, ledger, expected) in table {
            let found = Found {
                written: &written,
                is_past_read: true,
                is_read: true,
                ledger: &ledger,
                epoch: 9_000_000_000,
                is_all_entered: false,
                aggregation: Duration::from_secs(5),
            };
            assert_eq!(found.doubts(), expected, "{what}");
            let unread = Found {
                is_read: false,
                ..found
            };
            assert_eq!(
                unread.doubts().contains(&Doubt::MayRepeat),
                ledger.is_writing == 1,
                "{what}, unread"
            );
            let unread_past = Found {
                is_past_read: false,
                ..unread
            };
            let has_gap = |found: &Found<'_>| found.doubts().iter().any(|doubt| matches!(doubt, Doubt::Gap { .. }));
            let may_hide_one = ledger.is_begun == 0 && !written.is_own;
            assert_eq!(has_gap(&unread_past), may_hide_one, "{what}, an unread past");
            let entered = Found {
                is_all_entered: true,
                ..unread
            };
            assert!(!entered.doubts().contains(&Doubt::MayRepeat), "{what}, nothing waits");
        }
    }
}
