// SPDX-License-Identifier: Apache-2.0
//! One packet through a loaded program, by `BPF_PROG_TEST_RUN`: for tests and the benchmark.
//!
//! The kernel builds the packet buffer and always gives it a socket, of no family; so at `pod_ingress` a packet counts
//! as sent by the node itself unless it came in through an interface ([`Frame::ingress_ifindex`]).

use std::time::Duration;

use libbpf_rs::{ProgramInput, ProgramMut};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Where a frame is at the time the program sees it.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// From the Ethernet header on; with a whole IP header where it says that there is one, or the kernel refuses to run.
    pub bytes: &'a [u8],
    /// The interface that the program is asked about, which must exist in this network namespace.
    pub ifindex: u32,
    /// The interface that the frame came in through; 0 for one that this host made.
    pub ingress_ifindex: u32,
}

/// An interface that is no pod's, and need not exist.
const ELSEWHERE: u32 = 1 << 30;

impl<'a> Frame<'a> {
    /// A frame that came in through another interface.
    pub fn forwarded(bytes: &'a [u8], ifindex: u32) -> Self {
        Self {
            bytes,
            ifindex,
            ingress_ifindex: ELSEWHERE,
        }
    }

    /// A frame that a socket of this host made.
    pub fn of_node(bytes: &'a [u8], ifindex: u32) -> Self {
        Self {
            ingress_ifindex: 0,
            ..Self::forwarded(bytes, ifindex)
        }
    }

    /// A frame that came in through this very interface.
    pub fn of_pod(bytes: &'a [u8], ifindex: u32) -> Self {
        Self {
            ingress_ifindex: ifindex,
            ..Self::forwarded(bytes, ifindex)
        }
    }
}

/// What the program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The action code, as the program returned it.
    pub action: i32,
    /// The frame, as the program left it.
    pub frame: Vec<u8>,
    /// Mean of a run.
    pub duration: Duration,
}

impl Outcome {
    /// `TCX_NEXT`: other programs go on with the packet.
    pub fn passed(&self) -> bool {
        self.action == -1
    }

    /// `TCX_PASS`: no other program on the hook sees it.
    pub fn passed_alone(&self) -> bool {
        self.action == 0
    }

    /// `TCX_REDIRECT`: back to where it came from.
    pub fn sent_back(&self) -> bool {
        self.action == 7
    }

    /// `TCX_DROP`.
    pub fn dropped(&self) -> bool {
        self.action == 2
    }
}

/// The start of `struct __sk_buff` of `linux/bpf.h`; the kernel takes the rest as zero.
#[derive(Debug, IntoBytes, Immutable, FromBytes)]
#[repr(C)]
pub struct Context {
    len_and_type: [u32; 2],
    mark: u32,
    queue_to_priority: [u32; 6],
    ingress_ifindex: u32,
    ifindex: u32,
}

impl Context {
    /// What tells the program where the frame is.
    pub fn of(frame: Frame<'_>) -> Self {
        let mut context = Self::new_zeroed();
        context.ifindex = frame.ifindex;
        if cfg!(feature = "ingress-ifindex-from-mark") {
            context.mark = frame.ingress_ifindex;
        } else {
            context.ingress_ifindex = frame.ingress_ifindex;
        }
        context
    }
}

/// Runs `program` `repeat` times over the same frame (0 is 1). The frame is not handed to the network.
///
/// # Errors
/// What the kernel says: an interface that does not exist, a frame that is too short or too long.
pub fn run(program: &ProgramMut<'_>, frame: Frame<'_>, repeat: u32) -> libbpf_rs::Result<Outcome> {
    run_with(program, frame, repeat, 0)
}

/// Runs `program` once over a frame that a device took the sum of (`CHECKSUM_COMPLETE`).
///
/// # Errors
/// As [`run`]; EBADMSG where the sum is not that of the frame that the program left; EINVAL of a kernel that cannot
/// tell, as 6.12.
pub fn run_summed(program: &ProgramMut<'_>, frame: Frame<'_>) -> libbpf_rs::Result<Outcome> {
    run_with(
        program,
        frame,
        1,
        libbpf_rs::libbpf_sys::BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
    )
}

fn run_with(program: &ProgramMut<'_>, frame: Frame<'_>, repeat: u32, flags: u32) -> libbpf_rs::Result<Outcome> {
    let mut context = Context::of(frame);
    // A refused datagram grows by the headers of its answer.
    let mut left = vec![0; frame.bytes.len() + 128];
    let output = program.test_run(ProgramInput {
        context_in: Some(context.as_mut_bytes()),
        data_in: Some(frame.bytes),
        data_out: Some(&mut left),
        repeat,
        flags,
        ..ProgramInput::default()
    })?;
    let frame = output.data.unwrap_or_default().to_vec();
    Ok(Outcome {
        action: output.return_value.cast_signed(),
        frame,
        duration: output.duration,
    })
}
