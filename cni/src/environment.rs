// SPDX-License-Identifier: Apache-2.0
//! What the runtime says in environment variables.

use crate::error::{Code, Error};
use crate::protocol::{Attachment, PodId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Version,
    Status,
    Gc,
}

impl Command {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Version => "VERSION",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

/// Reads variables by name; None where one is not set.
pub(crate) struct Environment<F>(pub(crate) F);

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    fn required(&self, variable: &str) -> Result<String, Error> {
        (self.0)(variable)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Error::new(Code::InvalidEnvironment, format!("{variable} is not set")))
    }

    pub(crate) fn command(&self) -> Result<Command, Error> {
        let text = self.required("CNI_COMMAND")?;
        let known = [
            Command::Add,
            Command::Del,
            Command::Check,
            Command::Version,
            Command::Status,
            Command::Gc,
        ];
        let command = known.into_iter().find(|command| command.as_str() == text);
        command.ok_or_else(|| Error::new(Code::InvalidEnvironment, format!("CNI_COMMAND {text} is not known")))
    }

    pub(crate) fn attachment(&self) -> Result<Attachment, Error> {
        Ok(Attachment {
            container_id: self.required("CNI_CONTAINERID")?,
            ifname: self.required("CNI_IFNAME")?,
        })
    }

    pub(crate) fn netns(&self) -> Result<String, Error> {
        self.required("CNI_NETNS")
    }

    /// `CNI_ARGS` as kubelet's runtimes set it: `KEY=VALUE;KEY=VALUE`.
    pub(crate) fn pod(&self) -> Result<PodId, Error> {
        let args = (self.0)("CNI_ARGS").unwrap_or_default();
        let value = |key: &str| {
            let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
            let found = pairs
                .into_iter()
                .find(|(name, value)| *name == key && !value.is_empty());
            found.map(|(_, value)| value.to_owned()).ok_or_else(|| {
                Error::new(Code::InvalidEnvironment, format!("CNI_ARGS has no {key}"))
                    .with_details("this network is for pods of Kubernetes; their runtime says which pod it is")
            })
        };
        Ok(PodId {
            namespace: value("K8S_POD_NAMESPACE")?,
            name: value("K8S_POD_NAME")?,
            uid: value("K8S_POD_UID")?,
        })
    }
}
