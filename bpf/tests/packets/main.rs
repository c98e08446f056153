// SPDX-License-Identifier: Apache-2.0
//! Packets through the programs that ship, by `BPF_PROG_TEST_RUN`. Needs root.
//!
//! Each table is a list of packets sent one after the other to one pod. A row says what comes of its packet: whether
//! it passes, the one reason, and by how much each counter moves, which event and which deny aggregate it leaves;
//! whatever a row does not name must not change.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "so does a test fail"
)]

mod accounting;
mod addresses;
mod again;
mod balance;
mod connections;
mod extensions;
mod fragments;
mod fronts;
mod fuzz;
mod handshakes;
mod harness;
mod icmp;
mod link;
mod malformed;
mod node;
mod oracle;
mod own_node;
mod policies;
mod quotas;
mod races;
mod rewrites;
mod row;
mod service_errors;
mod service_fragments;
mod service_reuse;
mod service_watched;
mod services;
mod tables;
mod verifier;
mod world;
