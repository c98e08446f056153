// SPDX-License-Identifier: Apache-2.0
//! The CNI plugin: tells the node's daemon of each pod before its containers start, and returns when the pod's policy
//! is in force.
//!
//! ```text
//! runtime -- CNI_*, JSON on stdin --> environment, config, previous -> commands -> daemon -- unix socket --> wardline-node
//!         <- JSON on stdout -------------------------------------------------------------- protocol
//! ```
//!
//! It is chained: another plugin has made the pod's interface and given it addresses, and what that one answered is
//! answered again. Specification: <https://www.cni.dev/docs/spec/>, of which 0.3.0 to 1.1.0 are spoken. The modules
//! [`protocol`] and [`config`] are also the daemon's, which serves the socket and writes the configuration.

mod commands;
pub mod config;
mod daemon;
mod environment;
mod error;
mod previous;
pub mod protocol;
mod version;

pub use self::commands::run;
pub use self::error::Code;
pub use self::version::Version;
