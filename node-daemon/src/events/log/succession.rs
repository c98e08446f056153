// SPDX-License-Identifier: Apache-2.0
//! From the account of another version, whose programs judge nothing any more, to that of ours: its verdicts are written to
//! the last one, then its totals go on in ours, and no line is written twice or says that something is missing.

use std::collections::VecDeque;

use super::{LogError, Past, PolicyLog};
use crate::datapath::{Accounts, Ledger, PinPaths, TakingOver, add};

/// The accounts that come after the one that is written.
#[derive(Debug)]
pub struct Succession {
    accounts: VecDeque<Accounts>,
    taking_over: TakingOver,
    /// What goes when the last one's turn has come.
    former: Vec<PinPaths>,
}

impl Succession {
    /// Begins with the oldest of `former`, and ends with `ours`. Returns the first one too.
    pub fn new(former: Vec<(Accounts, PinPaths)>, ours: Accounts, taking_over: TakingOver) -> (Accounts, Self) {
        let (accounts, paths): (VecDeque<_>, _) = former.into_iter().unzip();
        let mut succession = Self {
            accounts,
            taking_over,
            former: paths,
        };
        succession.accounts.push_back(ours);
        let first = succession.accounts.pop_front();
        let Some(first) = first else {
            unreachable!("ours is among them")
        };
        (first, succession)
    }

    /// None but the one that is written.
    pub fn none() -> Self {
        Self {
            accounts: VecDeque::new(),
            taking_over: TakingOver::default(),
            former: Vec::new(),
        }
    }

    /// Whether it is the next one's turn.
    pub fn is_due(&self) -> bool {
        !self.accounts.is_empty() && self.taking_over.has_all_pods()
    }

    /// Lets the log go on with the next account.
    ///
    /// # Errors
    /// The log stays with the one that it has; try again.
    pub fn advance(&mut self, log: &mut PolicyLog) -> Result<(), LogError> {
        let Some(next) = self.accounts.front() else {
            return Ok(());
        };
        log.end_account()?;
        let ledger = next.ledger()?;
        if ledger.former != log.accounts.epoch() {
            // One that went on with this one's totals has them already.
            let is_in_it = log.ledger().former == next.epoch();
            let own = if is_in_it { without_totals(&ledger) } else { ledger };
            next.store_ledger(&going_on(&own, log.ledger(), log.accounts.epoch()))?;
        }
        let past = Past::of(next, &log.file, log.aggregation)?;
        let Some(next) = self.accounts.pop_front() else {
            return Ok(());
        };
        log.go_on_with(next, past);
        if self.accounts.is_empty() {
            for paths in self.former.drain(..) {
                if let Err(error) = paths.remove() {
                    tracing::warn!(%error, maps = %paths.maps.display(), "failed to remove the maps of another version");
                    break;
                }
            }
            self.taking_over.done();
            tracing::info!("all that another version judged is written");
        }
        Ok(())
    }
}

/// What a ledger says of where its account stands, and nothing of what it counted.
fn without_totals(ledger: &Ledger) -> Ledger {
    Ledger {
        ring_position: ledger.ring_position,
        closed_generation: ledger.closed_generation,
        is_writing: ledger.is_writing,
        closings: ledger.closings,
        told: ledger.told,
        file: ledger.file,
        told_kind: ledger.told_kind,
        ..Ledger::default()
    }
}

/// A ledger with the totals of the one before it.
fn going_on(ledger: &Ledger, former: &Ledger, epoch: u64) -> Ledger {
    let mut ledger = *ledger;
    add(&mut ledger.packets, &former.packets);
    add(&mut ledger.due, &former.due);
    add(&mut ledger.written, &former.written);
    for direction in 0..ledger.lost.len() {
        add(&mut ledger.lost[direction], &former.lost[direction]);
        add(&mut ledger.untold[direction], &former.untold[direction]);
        add(&mut ledger.untold[direction], &former.carried[direction]);
    }
    let since = [ledger.untold_since, former.untold_since, former.carried_since];
    ledger.untold_since = since.into_iter().filter(|since| *since != 0).min().unwrap_or(0);
    ledger.deleted_file = former.deleted_file;
    ledger.deleted_bytes += former.deleted_bytes;
    for (sum, value) in ledger.deleted_records.iter_mut().zip(former.deleted_records) {
        *sum += value;
    }
    ledger.former = epoch;
    // What the log has to say of an account before, the former one has said.
    ledger.is_begun = 1;
    ledger
}

impl PolicyLog {
    /// Writes all that the account has, of which no more comes.
    fn end_account(&mut self) -> Result<(), LogError> {
        while self.drain()? {}
        self.close()?;
        self.mark_writing(false)
    }
}
