// SPDX-License-Identifier: Apache-2.0
//! Memory that the kernel shares with us: mmapable arrays and the ring buffer. The one place that maps it.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// A shared mapping of a file descriptor, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to the mapping, not to a thread, and is only reached through atomics and copies.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes from `offset`, a multiple of the page size.
    pub(crate) fn new(fd: BorrowedFd<'_>, offset: usize, length: usize, writable: bool) -> io::Result<Self> {
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address that the kernel picks overlaps nothing of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, length })
    }

    /// # Panics
    /// When `offset` is not aligned or lies outside: the offsets are constants of the ABI.
    pub(crate) fn u64(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8);
        // SAFETY: inside the mapping, aligned, alive as long as `self`, and shared with others through atomics only.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    /// # Panics
    /// As [`Mapping::u64`].
    pub(crate) fn u32(&self, offset: usize) -> &AtomicU32 {
        self.check(offset, 4);
        // SAFETY: as in `u64`.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    /// # Panics
    /// As [`Mapping::u64`].
    pub(crate) fn u8(&self, offset: usize) -> &AtomicU8 {
        self.check(offset, 1);
        // SAFETY: as in `u64`.
        unsafe { AtomicU8::from_ptr(self.start.as_ptr().add(offset)) }
    }

    /// Copies bytes that the kernel does not write any more.
    ///
    /// # Panics
    /// When the range lies outside the mapping.
    pub(crate) fn copy_to(&self, offset: usize, bytes: &mut [u8]) {
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.length),
            "{offset} is outside"
        );
        // SAFETY: inside the mapping, which `bytes` cannot overlap, being borrowed from Rust's own memory.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), bytes.as_mut_ptr(), bytes.len()) }
    }

    fn check(&self, offset: usize, size: usize) {
        assert!(
            offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.length),
            "{offset} is outside the mapping or not aligned to {size}"
        );
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// The size of a page, by which mappings are laid out.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf has no memory effects.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// Waits until every packet program that is running now has ended.
pub(crate) fn wait_for_programs() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // Packet programs run under RCU, and this command waits for a grace period of it (kernel/sched/membarrier.c).
    // SAFETY: membarrier has no memory arguments.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
