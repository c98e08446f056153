// SPDX-License-Identifier: Apache-2.0
//! The consumer's side of a BPF ring buffer: reads a batch in place and moves the consumer's position only when told
//! to, so that a batch counts as read once it is written (kernel/bpf/ringbuf.c has the layout).
//!
//! ```text
//! page 0            page 1            page 2 ..
//! consumer position producer position  data, twice in a row: ---window---|page
//! ```
//!
//! A mapping of the ring counts to our resident memory with all its pages from the beginning, and the data twice. So
//! a window of it is mapped, which moves along; a record that begins in it ends at most a page behind it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use crate::mapping::{Mapping, page_size};

const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
const HEADER: usize = 8;
/// Bytes: thousands of records, so that moving it costs each of them nothing.
const WINDOW: usize = 1 << 18;

#[derive(Debug)]
pub struct Ring {
    map: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
    window: Window,
    page: usize,
    mask: u64,
}

/// The part of the data that is mapped.
#[derive(Debug)]
struct Window {
    /// Where it begins, in bytes of the data.
    start: usize,
    data: Mapping,
}

impl Window {
    fn map(ring: BorrowedFd<'_>, page: usize, start: usize) -> io::Result<Self> {
        let data = Mapping::new(ring, 2 * page + start, WINDOW + page, false)?;
        Ok(Self { start, data })
    }
}

impl Ring {
    /// `size` is the map's `max_entries`, at least that of a window.
    pub fn new(fd: BorrowedFd<'_>, size: u32) -> io::Result<Self> {
        let page = page_size();
        Ok(Self {
            map: fd.try_clone_to_owned()?,
            consumer: Mapping::new(fd, 0, page, true)?,
            producer: Mapping::new(fd, page, page, false)?,
            window: Window::map(fd, page, 0)?,
            page,
            mask: u64::from(size) - 1,
        })
    }

    /// Where the next batch begins: bytes since the ring was made.
    pub fn position(&self) -> u64 {
        self.consumer.u64(0).load(Ordering::Acquire)
    }

    /// Where the next record will be written.
    pub fn end(&self) -> u64 {
        self.producer.u64(0).load(Ordering::Acquire)
    }

    /// Gives records of `size` bytes each, less than a page, from `start` on, each with the position behind it, until
    /// `each` returns false. Stops before a record that is not committed yet. Returns the position behind the last one.
    pub fn read(&mut self, start: u64, size: usize, mut each: impl FnMut(u64, &[u8]) -> bool) -> io::Result<u64> {
        let end = self.end();
        let mut position = start;
        let mut bytes = vec![0; size];
        while position < end {
            let offset = self.look_at(position)?;
            let data = &self.window.data;
            let length = data.u32(offset).load(Ordering::Acquire);
            if length & BUSY != 0 {
                break;
            }
            let taken = (length & !DISCARD) as usize;
            position += (HEADER + taken).next_multiple_of(8) as u64;
            if length & DISCARD == 0 && taken == size {
                data.copy_to(offset + HEADER, &mut bytes);
                if !each(position, &bytes) {
                    break;
                }
            }
        }
        Ok(position)
    }

    /// Moves the window to where the position is. Returns its offset there.
    fn look_at(&mut self, position: u64) -> io::Result<usize> {
        let place = usize::try_from(position & self.mask).map_err(io::Error::other)?;
        let start = place - place % WINDOW;
        if start != self.window.start {
            self.window = Window::map(self.map.as_fd(), self.page, start)?;
        }
        Ok(place - start)
    }

    /// Gives the room before `position` back to the programs.
    pub fn advance(&self, position: u64) {
        self.consumer.u64(0).store(position, Ordering::Release);
    }
}
