// SPDX-License-Identifier: Apache-2.0
//! Image references: REPOSITORY[:TAG][@DIGEST].

use std::fmt;
use std::str::FromStr;

use wardline_crds::ImageSpec;

/// A parsed image reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Image {
    /// This image with the parts that `spec` sets. A tag of its own drops the digest, which would win over it; a digest
    /// of its own drops the tag, which would name something else.
    pub(crate) fn with(&self, spec: &ImageSpec) -> Self {
        let repository = spec.repository.clone().unwrap_or_else(|| self.repository.clone());
        let (tag, digest) = match (&spec.tag, &spec.digest) {
            (None, None) => (self.tag.clone(), self.digest.clone()),
            (tag, digest) => (tag.clone(), digest.clone()),
        };
        Self {
            repository,
            tag,
            digest,
        }
    }
}

impl FromStr for Image {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.to_owned())),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag.to_owned())),
            _ => (name, None),
        };
        let empty = |part: &Option<String>| part.as_ref().is_some_and(String::is_empty);
        if repository.is_empty() || empty(&tag) || empty(&digest) || text.contains(char::is_whitespace) {
            return Err(format!(
                "failed to parse image {text:?}: expected REPOSITORY[:TAG][@DIGEST]"
            ));
        }
        Ok(Self {
            repository: repository.to_owned(),
            tag,
            digest,
        })
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_read_back() {
        for text in [
            "node",
            "node:1",
            "r.example:5000/a/node",
            "r.example:5000/a/node:v1",
            "n@sha256:0",
            "n:1@sha256:0",
        ] {
            assert_eq!(text.parse::<Image>().unwrap().to_string(), text);
        }
        for text in ["", ":1", "node:", "node@", "a b"] {
            assert!(text.parse::<Image>().is_err(), "{text}");
        }
    }

    #[test]
    fn overrides() {
        let spec = |repository: Option<&str>, tag: Option<&str>, digest: Option<&str>| ImageSpec {
            repository: repository.map(Into::into),
            tag: tag.map(Into::into),
            digest: digest.map(Into::into),
            pull_policy: None,
        };
        for (base, spec, expected) in [
            ("n:1@sha256:a", spec(None, None, None), "n:1@sha256:a"),
            ("n:1@sha256:a", spec(Some("m/n"), None, None), "m/n:1@sha256:a"),
            ("n:1@sha256:a", spec(None, Some("2"), None), "n:2"),
            ("n:1", spec(None, None, Some("sha256:b")), "n@sha256:b"),
            ("n:1", spec(None, Some("2"), Some("sha256:b")), "n:2@sha256:b"),
        ] {
            assert_eq!(base.parse::<Image>().unwrap().with(&spec).to_string(), expected);
        }
    }
}
