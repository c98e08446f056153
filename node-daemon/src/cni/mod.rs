// SPDX-License-Identifier: Apache-2.0
//! New pods, from their first packet: the daemon's side of the CNI plugin.
//!
//! ```text
//! runtime -> wardline-cni -- socket --> server -- Call --> control thread: index, datapath
//!                                         |                (waits until the pod is known, applies, answers)
//!                                         +-- announce --> Pod's status: the other nodes learn its addresses,
//!                                                          while the policy is being put in force
//!
//! install: the plugin's binary and its entry in the node's configuration list, put there and kept there
//! ```

mod announce;
mod conflist;
mod directory;
mod install;
mod server;
mod waiting;

use std::sync::Arc;

use tokio::sync::oneshot;
use wardline_cni::Code;
use wardline_cni::protocol::{Attachment, Network, PodId};

pub use self::announce::Announcer;
pub use self::install::{InstallError, Installed, Installer};
pub use self::server::Server;
pub(crate) use self::waiting::{Bound, Waiting};

/// Where the plugin finds the daemon, among what else belongs to the node's life.
pub const PLUGIN_SOCKET: &str = "cni.sock";

/// Why the plugin is told no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: Code,
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    fn stopping() -> Self {
        Self::new(Code::TryAgainLater, "the daemon is stopping")
    }
}

/// What is asked of the control thread.
#[derive(Debug)]
pub enum Call {
    /// Answered when the pod's policy is in force.
    Attach {
        network: Network,
        /// Told the uid of the Pod's object as soon as its interface is known; dropped where that never is.
        bound: oneshot::Sender<Arc<str>>,
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
    Detach {
        attachment: Attachment,
        /// Told the pod whose announcement nobody will follow up.
        answer: oneshot::Sender<Option<PodId>>,
    },
    Check {
        network: Network,
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
    /// All other attachments are gone.
    Collect(Vec<Attachment>),
    /// What keeps the plugin from being installed; None: it is.
    Installed(Option<String>),
}
