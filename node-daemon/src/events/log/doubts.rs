// SPDX-License-Identifier: Apache-2.0
//! What a life cannot know of those before it, told by lines of its own before any other: as losses, since readers look
//! for these, with a count of 0, since nobody knows how many.

use wardline_bpf::abi::Verdict;
use wardline_policy::model::Direction;

use super::{LogError, PolicyLog};
use crate::clock;
use crate::datapath::Ledger;
use crate::events::observed::Lost;
use crate::events::record::write_lost;
use crate::events::sequence::{Sequence, Written};

/// What is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The kernel's account began anew: with the node, mostly. What was decided since this time, nanoseconds since the
    /// epoch, and had not been written, went with the one before.
    Gap(u64),
    /// An earlier life was killed, and the lines that it wrote last are not there to be looked at: some that follow may
    /// repeat them.
    MayRepeat,
}

impl Doubt {
    fn why(self) -> &'static str {
        match self {
            Self::Gap(_) => "gap",
            Self::MayRepeat => "may-repeat",
        }
    }

    /// What there is to doubt for a life that found these lines and this ledger.
    pub(super) fn of(written: &Written, ledger: &Ledger, is_all_entered: bool) -> Vec<Self> {
        let gap = written.former.map(Self::Gap);
        let is_unknown = ledger.is_writing != 0 && !written.is_own && !is_all_entered;
        gap.into_iter().chain(is_unknown.then_some(Self::MayRepeat)).collect()
    }
}

impl PolicyLog {
    pub(super) fn tell_doubts(&mut self) -> Result<(), LogError> {
        if self.doubts.is_empty() {
            return Ok(());
        }
        self.begin();
        let (now, mut seq, mut index) = (clock::wall(), String::new(), 0);
        for doubt in &self.doubts {
            let first = match doubt {
                Doubt::Gap(since) => *since,
                Doubt::MayRepeat => now,
            };
            for direction in Direction::ALL {
                for verdict in Verdict::ALL {
                    let lost = Lost {
                        direction,
                        disposition: verdict.as_str(),
                        why: doubt.why(),
                        count: 0,
                        first,
                        last: now,
                    };
                    Sequence::Doubt { time: now, index }.write(self.accounts.epoch(), &mut seq);
                    write_lost(&mut self.buffer, &lost, &seq, &self.origin);
                    index += 1;
                }
            }
        }
        self.append()?;
        self.doubts.clear();
        Ok(())
    }
}
