// SPDX-License-Identifier: Apache-2.0
//! The meaning of a NetworkPolicy. Pure: no Kubernetes client, no libbpf, no async.
//!
//! ```text
//! NetworkPolicy, Pod, Namespace --convert--> Objects --compile--> Tables   (what the packet programs look up)
//!                                               \-----evaluate--> Verdict  (what they are checked against)
//! ```

pub mod model;
pub mod tables;
