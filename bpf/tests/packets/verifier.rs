// SPDX-License-Identifier: Apache-2.0
//! How far the kernel's verifier walks before it accepts the programs.

use libbpf_rs::Program;
use libbpf_rs::query::ProgInfoIter;
use std::os::fd::AsFd;
use wardline_bpf::abi::Direction;
use wardline_bpf::sandbox::{Sandbox, Sizes};

/// A verifier gives up at a million instructions, and old ones walk up to five times as far as new ones: so far that one
/// change too many has been too much for Linux 5.10, while all was well here. Of those that tell, 6.1 walks farthest: 301,312.
const MOST: u32 = 350_000;

#[test]
fn old_verifiers_have_room_to_spare() {
    let sandbox = Sandbox::load(Sizes::default()).unwrap();
    for direction in [Direction::Ingress, Direction::Egress] {
        let id = Program::id_from_fd(sandbox.program(direction).as_fd()).unwrap();
        let info = ProgInfoIter::default().find(|info| info.id == id).unwrap();
        println!(
            "{direction:?}: the verifier walked {} instructions",
            info.verified_insns
        );
        assert!(info.verified_insns <= MOST, "{direction:?}: {}", info.verified_insns);
    }
}
