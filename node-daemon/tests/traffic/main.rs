// SPDX-License-Identifier: Apache-2.0
//! Real sockets in pods of a node of the test's own, under the index and the datapath as the daemon drives them. Needs
//! root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod atomic;
mod changes;
mod control;
mod flows;
mod handover;
mod host_ports;
mod hostile;
mod leaving;
mod nodes;
mod own_node;
mod path_mtu;
mod plugin;
mod restart;
mod reuse;
mod services;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod takeover;
mod wire;
