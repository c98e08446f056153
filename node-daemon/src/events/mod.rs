// SPDX-License-Identifier: Apache-2.0
//! From verdicts in the kernel to lines in the policy log: docs/events.md.
//!
//! ```text
//! ring, deny table -> decode -> observed -> record -> file
//!          \------------ log: the account ------------/
//! ```

mod clock;
mod decode;
mod file;
mod follow;
mod log;
mod observed;
mod record;
mod ring;
mod sequence;

pub(crate) use self::clock::monotonic;
pub use self::file::{FileOptions, LogFile};
pub use self::follow::follow as follow_events;
pub use self::log::{Imbalance, LogError, PolicyLog};
pub use self::record::Origin;
