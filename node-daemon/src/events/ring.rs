// SPDX-License-Identifier: Apache-2.0
//! The consumer's side of a BPF ring buffer: reads a batch in place and moves the consumer's position only when told
//! to, so that a batch counts as read once it is written (kernel/bpf/ringbuf.c has the layout).
//!
//! ```text
//! page 0            page 1            page 2 ..
//! consumer position producer position  data, mapped twice in a row
//! ```

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use crate::mapping::{Mapping, page_size};

const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
const HEADER: usize = 8;

#[derive(Debug)]
pub struct Ring {
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    mask: u64,
}

impl Ring {
    /// `size` is the map's `max_entries`.
    pub fn new(fd: BorrowedFd<'_>, size: u32) -> io::Result<Self> {
        let page = page_size();
        let consumer = Mapping::new(fd, 0, page, true)?;
        let producer = Mapping::new(fd, page, page + 2 * size as usize, false)?;
        Ok(Self {
            consumer,
            producer,
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

    /// Gives up to `most` records of `size` bytes each from `start` on, each with the position behind it. Stops
    /// before a record that is not committed yet. Returns the position behind the last one.
    pub fn read(&self, start: u64, most: usize, size: usize, mut each: impl FnMut(u64, &[u8])) -> u64 {
        let end = self.end();
        let mut position = start;
        let mut bytes = vec![0; size];
        for _ in 0..most {
            if position >= end {
                break;
            }
            let offset = self.page + usize::try_from(position & self.mask).unwrap_or(0);
            let length = self.producer.u32(offset).load(Ordering::Acquire);
            if length & BUSY != 0 {
                break;
            }
            let data = (length & !DISCARD) as usize;
            position += (HEADER + data).next_multiple_of(8) as u64;
            if length & DISCARD == 0 && data == size {
                self.producer.copy_to(offset + HEADER, &mut bytes);
                each(position, &bytes);
            }
        }
        position
    }

    /// Gives the room before `position` back to the programs.
    pub fn advance(&self, position: u64) {
        self.consumer.u64(0).store(position, Ordering::Release);
    }
}
