// SPDX-License-Identifier: Apache-2.0
//! Errors as the specification wants them: a code, a message, details, as JSON on stdout.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Codes of the specification, and one of ours from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Code {
    IncompatibleVersion,
    UnknownContainer,
    InvalidEnvironment,
    Io,
    Decode,
    InvalidConfiguration,
    TryAgainLater,
    /// Answer to STATUS: no pod can be added now.
    NotAvailable,
    /// Answer to CHECK: the pod is there and is not guarded.
    NotManaged,
}

impl Code {
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfiguration => 7,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::NotManaged => 100,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{message}{}{details}", if details.is_empty() { "" } else { ": " })]
pub(crate) struct Error {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// What to do about it, or what else is known.
    pub(crate) details: String,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    pub(crate) fn with_details(self, details: impl Into<String>) -> Self {
        Self {
            details: details.into(),
            ..self
        }
    }

    pub(crate) fn to_json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code.number(), "msg": self.message, "details": self.details})
    }
}
