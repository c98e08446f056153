// SPDX-License-Identifier: Apache-2.0
//! How much of the disk must stay free.

use std::io;
use std::os::fd::AsFd;

use nix::sys::statvfs::fstatvfs;

/// Percent beyond the floor that must be free before writing goes on, so that it does not stop and go all the time.
const MARGIN: u32 = 1;

/// Of a file system, in blocks. Counted as kubelet counts `nodefs.available`: what root alone may use is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) free: u64,
    pub(super) all: u64,
}

impl Space {
    pub(super) fn of(file: &impl AsFd) -> io::Result<Self> {
        let found = fstatvfs(file)?;
        Ok(Self {
            free: found.blocks_available(),
            all: found.blocks(),
        })
    }

    fn has(self, percent: u32) -> bool {
        u128::from(self.free) * 100 >= u128::from(self.all) * u128::from(percent)
    }
}

#[derive(Debug)]
pub(super) struct Floor {
    percent: u32,
    is_below: bool,
}

impl Floor {
    pub(super) fn new(percent: u32) -> Self {
        Self {
            percent,
            is_below: false,
        }
    }

    /// Whether lines may be written.
    pub(super) fn allows(&mut self, space: Space) -> bool {
        let needed = match (self.percent, self.is_below) {
            (0, _) => 0,
            (percent, true) => percent + MARGIN,
            (percent, false) => percent,
        };
        self.is_below = !space.has(needed);
        !self.is_below
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_stops_below_the_floor_and_goes_on_above_it() {
        let space = |free| Space { free, all: 1000 };
        for (percent, steps) in [
            (
                12,
                [
                    (500, true),
                    (120, true),
                    (119, false),
                    (129, false),
                    (130, true),
                    (120, true),
                ],
            ),
            (0, [(500, true), (1, true), (0, true), (0, true), (1, true), (0, true)]),
        ] {
            let mut floor = Floor::new(percent);
            let found = steps.map(|(free, _)| (free, floor.allows(space(free))));
            assert_eq!(found, steps, "{percent}%");
        }
    }

    #[test]
    fn a_file_system_without_a_size_is_never_full() {
        assert!(Floor::new(50).allows(Space { free: 0, all: 0 }));
    }
}
