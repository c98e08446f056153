// SPDX-License-Identifier: Apache-2.0
//! The node daemon: keeps the kernel as the cluster asks, and writes down what the kernel decided.
//!
//! ```text
//! watch (kube streams) --\
//!                         > index (pure state) -> datapath (kernel)        control thread
//! interfaces (rtnetlink) /                            |
//!                                          ring, deny table
//!                                                     |
//!                     names (what ids mean) -> events -> policy log        events thread
//! ```

pub mod api;
pub mod args;
pub mod cleanup;
mod clock;
pub mod cni;
pub mod control;
pub mod datapath;
pub mod deny_events;
pub mod events;
mod host_conntrack;
pub mod index;
pub mod interfaces;
pub mod lock;
mod mapping;
pub mod metrics;
pub mod names;
mod netlink;
pub mod observe;
pub mod preflight;
pub mod programs;
pub mod run;
pub mod services;
pub mod socket;
pub mod status;
pub mod watch;
