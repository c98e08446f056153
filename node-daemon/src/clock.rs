// SPDX-License-Identifier: Apache-2.0
//! The kernel's clock and wall time, both in nanoseconds.

use rustix::time::{ClockId, clock_gettime};

/// The distance between `CLOCK_MONOTONIC`, which packets are stamped with, and wall time, read once a batch.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: u64,
}

impl Clock {
    pub fn read() -> Self {
        // In the middle of two, for whoever is interrupted between them.
        let before = monotonic();
        let wall = wall();
        Self {
            offset: wall.saturating_sub(before.midpoint(monotonic())),
        }
    }

    /// Nanoseconds since the epoch.
    pub fn wall(&self, monotonic: u64) -> u64 {
        monotonic.saturating_add(self.offset)
    }

    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub fn monotonic(&self, wall: u64) -> u64 {
        wall.saturating_sub(self.offset)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Nanoseconds since the epoch.
pub fn wall() -> u64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
