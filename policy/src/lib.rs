// SPDX-License-Identifier: Apache-2.0
//! The meaning of a `NetworkPolicy`. Pure: no Kubernetes client, no libbpf, no async.
//!
//! ```text
//! NetworkPolicy, Pod, Namespace --convert--> Objects --compile--> Tables --lookup--> Verdict  (what packets get)
//!                                               \-----evaluate---------------------> Verdict  (what they should get)
//! ```
//!
//! [`evaluate`](evaluate::evaluate) reads like the API's documentation and is the reference;
//! [`compile`](compile::compile) and [`lookup`](lookup::lookup) are the fast way to the same verdicts, and share
//! nothing with it but the types of [`model`].

pub mod compile;
pub mod convert;
pub mod evaluate;
pub mod lookup;
pub mod model;
#[cfg(feature = "oracle")]
pub mod oracle;
pub mod tables;

#[cfg(test)]
mod testing;
