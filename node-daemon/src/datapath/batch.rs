// SPDX-License-Identifier: Apache-2.0
//! Reads a whole hash in batches. Written here because the kernel ends a batch early, without an error, when the next
//! bucket does not fit into what is left of it: a short batch is not the last one.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Entries a call; grown where a single bucket holds more.
const BATCH: usize = 2048;
/// The kernel's name for "one bucket does not fit", and for "that was all".
const NO_SPACE: i32 = libc::ENOSPC;
const END: i32 = libc::ENOENT;

/// Calls `each` with every key and value. What changes meanwhile may be seen before or after the change, or missed.
pub(super) fn read(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut each: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut size = BATCH;
    let (mut keys, mut values) = (vec![0; size * key_size], vec![0; size * value_size]);
    // The kernel's place in the table: a bucket's number for hashes, at least four bytes.
    let (mut position, mut next) = (vec![0; key_size.max(4)], vec![0; key_size.max(4)]);
    let mut is_first = true;
    loop {
        let mut count = u32::try_from(size).map_err(io::Error::other)?;
        let from = if is_first {
            std::ptr::null_mut()
        } else {
            position.as_mut_ptr()
        };
        // SAFETY: the buffers hold `count` keys and values and a position each, for the duration of the call.
        let result = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_raw_fd(),
                from.cast(),
                next.as_mut_ptr().cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &raw mut count,
                std::ptr::null(),
            )
        };
        if result == -NO_SPACE {
            size *= 2;
            keys.resize(size * key_size, 0_u8);
            values.resize(size * value_size, 0_u8);
            continue;
        }
        if result != 0 && result != -END {
            return Err(io::Error::from_raw_os_error(-result));
        }
        let entries = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
        for (key, value) in entries.take(count as usize) {
            each(key, value);
        }
        if result == -END {
            return Ok(());
        }
        std::mem::swap(&mut position, &mut next);
        is_first = false;
    }
}
