// SPDX-License-Identifier: Apache-2.0
//! While the file cannot be written.
//!
//! The kernel keeps what it has room for: events in the ring, denies in their table. What half of the ring cannot hold is
//! given up, the oldest first, and a closed generation when it has waited for [`PATIENCE`], with the events up to its end:
//! their ids could not be forgotten either. Both are entered as lost, in the ledger, and the next generation that is
//! written tells of them. So memory and the kernel's tables stay bounded for as long as it takes, and the account exact.
//! Where a write failed half way and cannot be taken back, nothing is given up, for a part of it may stand in the file:
//! names are then kept until it can be (docs/decisions/0012-a-log-that-cannot-be-written.md).

use std::time::{Duration, Instant};

use super::{Fate, LogError, PolicyLog};
use crate::datapath::Cause;
use crate::events::file::FileError;

/// Until the file is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// After an old file could not be deleted.
const RETRY_DELETING: Duration = Duration::from_secs(30);
/// How long a closed generation waits: ids that its records name cannot be forgotten meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_mins(5);
/// Bytes of an old file that are counted at once: more than is written between two looks.
const COUNTED: usize = 8 << 20;

#[derive(Debug)]
pub(super) struct Stop {
    pub(super) cause: Cause,
    problem: String,
    retry_at: Instant,
}

impl PolicyLog {
    /// Why nothing is written, while that is so.
    pub fn stopped(&self) -> Option<&str> {
        self.stop.as_ref().map(|stop| stop.problem.as_str())
    }

    /// What is to be told where a write has not come to its end for so long.
    pub fn hanging(&self, long: Duration) -> String {
        format!(
            "failed to write policy log {}: its disk has not answered for more than {} s",
            self.file.path().display(),
            long.as_secs()
        )
    }

    pub(super) fn may_write(&self, now: Instant) -> bool {
        self.stop.as_ref().is_none_or(|stop| now >= stop.retry_at)
    }

    /// Takes in that the file cannot be written.
    pub(super) fn stop_for(&mut self, error: FileError) -> LogError {
        self.write_errors += 1;
        self.stop = Some(Stop {
            cause: if error.is_disk_full() {
                Cause::DiskFull
            } else {
                Cause::WriteError
            },
            problem: error.to_string(),
            retry_at: Instant::now() + RETRY,
        });
        error.into()
    }

    /// Sees whether the file could be written, without writing.
    pub(super) fn probe(&mut self) -> Result<(), LogError> {
        self.file.prepare().map_err(|error| self.stop_for(error))
    }

    /// Gives up the oldest events where they take more than half of the ring. Returns whether more may be to do.
    pub(super) fn shed(&mut self) -> Result<bool, LogError> {
        match self.fate_of_the_unwritten() {
            Some(fate) if self.is_filling() => self.take_batch(fate),
            _ => Ok(false),
        }
    }

    /// None while nothing may be given up: it can be written, or a part of it may stand in the file.
    pub(super) fn fate_of_the_unwritten(&self) -> Option<Fate> {
        let stop = self.stop.as_ref()?;
        (!self.file.is_torn()).then_some(Fate::Lost(stop.cause))
    }

    /// What is to be done for the file while no lines wait for it.
    pub(super) fn keep_file(&mut self, now: Instant) -> Result<(), LogError> {
        if self.stop.is_some() {
            if self.backlog() == 0 && self.may_write(now) {
                self.probe()?;
                self.stop = None;
            }
            return Ok(());
        }
        self.file.rotate_if_old().map_err(|error| self.stop_for(error))?;
        self.delete_old(now)
    }

    /// Deletes what is too much while nothing can be written: it may be what fills the disk. Not where lines that are not
    /// entered may stand in more than the newest file: a next life would look for them.
    pub(super) fn make_space(&mut self, now: Instant) -> Result<(), LogError> {
        let closing = self.written.closing.map(|(generation, _)| generation);
        let is_half_written = self.pending.is_some_and(|pending| closing == Some(pending.generation));
        if self.stop.is_none() || self.file.is_torn() || is_half_written {
            return Ok(());
        }
        self.delete_old(now)
    }

    fn delete_old(&mut self, now: Instant) -> Result<(), LogError> {
        if now < self.delete_at {
            return Ok(());
        }
        match self.delete_excess() {
            Err(LogError::File(error)) => {
                tracing::warn!(%error, "an old policy log stays; trying again");
                self.write_errors += 1;
                self.delete_at = now + RETRY_DELETING;
                Ok(())
            }
            result => result,
        }
    }

    /// Deletes an old file that is too much. First what stands in it is entered as deleted, with the file's name, so that
    /// a crash between the two counts it once.
    fn delete_excess(&mut self) -> Result<(), LogError> {
        let Some(excess) = self.file.count_excess(COUNTED, self.ledger.deleted_file)? else {
            return Ok(());
        };
        if let Some(contents) = excess.contents {
            let mut ledger = self.ledger;
            ledger.deleted_file = excess.id;
            ledger.deleted_bytes += contents.bytes;
            for (sum, count) in ledger.deleted_records.iter_mut().zip(contents.records) {
                *sum += count;
            }
            self.accounts.store_ledger(&ledger)?;
            self.ledger = ledger;
        }
        Ok(self.file.delete(&excess)?)
    }
}
