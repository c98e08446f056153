// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in a reconciliation, sorted into few categories that are safe as metric labels.

use thiserror::Error;
use wardline_crds::config::ConfigError;

#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("failed to {verb} {object}: {cause}", cause = explain(.source))]
    Api {
        verb: &'static str,
        object: String,
        source: kube::Error,
    },
    #[error("failed to render the configuration of the node daemon: {0}")]
    Config(#[from] ConfigError),
    #[error("failed to serialise {object}: {source}")]
    Serialise { object: String, source: serde_json::Error },
    #[error("failed to read {object}: {source}")]
    Deserialise { object: String, source: serde_json::Error },
}

/// Label of `wardline_operator_reconcile_errors_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Category {
    /// The API server refused: a right is missing.
    Forbidden,
    /// The API server refused: somebody else was faster, or claims the field.
    Conflict,
    /// The API server refused the object itself.
    Rejected,
    /// The API server did not answer, or could not.
    Unavailable,
    /// A mistake of ours.
    Internal,
}

impl Category {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Forbidden => "forbidden",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

impl Error {
    /// For `map_err`: `verb` in the infinitive, `object` as kind and name.
    pub(crate) fn api(verb: &'static str, object: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let object = object.into();
        move |source| Self::Api { verb, object, source }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { source: kube::Error::Api(status), .. } if status.code == 404)
    }

    /// Whether the API server will say the same again until somebody acts.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.category(), Category::Rejected | Category::Forbidden)
    }

    pub(crate) fn category(&self) -> Category {
        match self {
            Self::Api {
                source: kube::Error::Api(status),
                ..
            } => match status.code {
                401 | 403 => Category::Forbidden,
                409 => Category::Conflict,
                429 | 500.. => Category::Unavailable,
                _ => Category::Rejected,
            },
            Self::Api { .. } => Category::Unavailable,
            Self::Config(_) | Self::Serialise { .. } | Self::Deserialise { .. } => Category::Internal,
        }
    }
}

/// The API server's own words where it has some; the client's rendering repeats the whole status.
pub(crate) fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}
