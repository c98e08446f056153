// SPDX-License-Identifier: Apache-2.0
//! From verdicts in the kernel to lines in the policy log: docs/events.md.
//!
//! ```text
//! ring, deny table -> decode -> observed -> record -> file -> stdout
//!          \------- log: the account -- meters -------/
//! ```

mod decode;
mod file;
mod follow;
mod log;
mod meters;
mod observed;
mod record;
mod ring;
mod sequence;
mod stdout;

pub use self::file::{FileError, FileOptions, LogFile};
pub use self::follow::{LogHealth, follow as follow_events, show as show_account};
pub use self::log::{Imbalance, LogError, PolicyLog, Succession};
pub use self::meters::Meters;
pub(crate) use self::observed::{Observed, Verdict, protocol_name};
pub use self::record::Origin;
pub use self::stdout::Stdout;
