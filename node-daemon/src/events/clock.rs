// SPDX-License-Identifier: Apache-2.0
//! From the kernel's clock to wall time.

use nix::time::{ClockId, clock_gettime};

/// The distance between `CLOCK_MONOTONIC`, which packets are stamped with, and wall time, read once a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    offset: u64,
}

impl Clock {
    pub(super) fn read() -> nix::Result<Self> {
        Ok(Self {
            offset: nanoseconds(ClockId::CLOCK_REALTIME)?.saturating_sub(monotonic()?),
        })
    }

    /// Nanoseconds since the epoch.
    pub(super) fn wall(&self, monotonic: u64) -> u64 {
        monotonic.saturating_add(self.offset)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn monotonic() -> nix::Result<u64> {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

fn nanoseconds(clock: ClockId) -> nix::Result<u64> {
    let time = clock_gettime(clock)?;
    Ok(u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0))
}
