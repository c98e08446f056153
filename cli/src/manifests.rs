// SPDX-License-Identifier: Apache-2.0
//! Files of Kubernetes objects: YAML documents or JSON, one object each or lists of them.
//!
//! ```text
//! file --documents--> value --flatten lists--> Manifest {origin, kind, value}, or Malformed {origin, cause}
//! ```

use std::fmt;
use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize as _;
use serde_json::Value;

use crate::args::FileArgs;

/// The kinds that decide about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NetworkPolicy,
    Pod,
    Namespace,
    Node,
    Other,
}

impl Kind {
    /// Other groups have kinds of these names too, which mean something else.
    fn of(api_version: &str, kind: &str) -> Self {
        match (api_version, kind) {
            ("networking.k8s.io/v1", "NetworkPolicy") => Self::NetworkPolicy,
            ("v1", "Pod") => Self::Pod,
            ("v1", "Namespace") => Self::Namespace,
            ("v1", "Node") => Self::Node,
            _ => Self::Other,
        }
    }
}

/// One object, not decoded yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manifest {
    /// The file; `-` for standard input.
    pub(crate) origin: String,
    pub(crate) kind: Kind,
    pub(crate) value: Value,
}

impl Manifest {
    /// A field of the metadata; empty where there is none.
    fn metadata(&self, field: &str) -> &str {
        self.value["metadata"][field].as_str().unwrap_or_default()
    }

    /// Kind, namespace and name, such as `NetworkPolicy shop/db`.
    pub(crate) fn title(&self) -> String {
        let kind = self.value["kind"].as_str().unwrap_or_default();
        let name = match self.metadata("name") {
            "" => "(no name)",
            name => name,
        };
        match self.metadata("namespace") {
            "" => format!("{kind} {name}"),
            namespace => format!("{kind} {namespace}/{name}"),
        }
    }
}

/// What is in a file and is no object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) origin: String,
    pub(crate) cause: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to read {}: {}", self.origin, self.cause)
    }
}

pub(crate) type Parsed = Result<Manifest, Malformed>;

/// Reads all files, `-` being `input`.
pub(crate) fn read(files: &[PathBuf], args: &FileArgs, input: &mut dyn BufRead) -> anyhow::Result<Vec<Parsed>> {
    let mut all = Vec::new();
    for file in files {
        let origin = file.display().to_string();
        let text = if file == Path::new("-") {
            let mut text = String::new();
            input.read_to_string(&mut text).map(|_| text)
        } else {
            fs::read_to_string(file)
        };
        let text = text.with_context(|| format!("failed to read {origin}"))?;
        all.extend(parse(&origin, &text, &args.namespace));
    }
    Ok(all)
}

/// Objects of one file in their order; `namespace` is for those that name none. After a syntax error nothing more of
/// the file can be told.
pub(crate) fn parse(origin: &str, text: &str, namespace: &str) -> Vec<Parsed> {
    let mut all = Vec::new();
    for (number, document) in (1..).zip(serde_yaml::Deserializer::from_str(text)) {
        let malformed = |cause: String| Malformed {
            origin: origin.to_owned(),
            cause: format!("document {number}: {cause}"),
        };
        let mut flat = Flatten {
            origin,
            namespace,
            malformed: &malformed,
            all: &mut all,
        };
        match value(document) {
            // What stands between two separators, and comments.
            Ok(Value::Null) => {}
            Ok(value) => flat.object(value, None),
            Err(error) => {
                all.push(Err(malformed(error)));
                break;
            }
        }
    }
    all
}

/// By way of YAML's own value, which refuses a key that is there twice, and knows merge keys.
fn value(document: serde_yaml::Deserializer<'_>) -> Result<Value, String> {
    let mut value = serde_yaml::Value::deserialize(document).map_err(|error| error.to_string())?;
    value.apply_merge().map_err(|error| error.to_string())?;
    serde_json::to_value(value).map_err(|error| error.to_string())
}

struct Flatten<'a> {
    origin: &'a str,
    namespace: &'a str,
    malformed: &'a dyn Fn(String) -> Malformed,
    all: &'a mut Vec<Parsed>,
}

impl Flatten<'_> {
    /// `listed` is the type of a typed list's items, which need not repeat it.
    fn object(&mut self, mut value: Value, listed: Option<(&str, &str)>) {
        if let (Some((api_version, kind)), Some(fields)) = (listed, value.as_object_mut()) {
            fields.entry("apiVersion").or_insert_with(|| api_version.into());
            fields.entry("kind").or_insert_with(|| kind.into());
        }
        let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (field("apiVersion"), field("kind"));
        if api_version.is_empty() || kind.is_empty() {
            let cause = "is no Kubernetes object: it has no apiVersion or no kind";
            self.all.push(Err((self.malformed)(cause.to_owned())));
            return;
        }
        if let (Some(item), Some(Value::Array(items))) = (kind.strip_suffix("List"), value.get_mut("items")) {
            let listed = (!item.is_empty()).then_some((api_version.as_str(), item));
            for item in std::mem::take(items) {
                self.object(item, listed);
            }
            return;
        }
        let kind = Kind::of(&api_version, &kind);
        if matches!(kind, Kind::NetworkPolicy | Kind::Pod)
            && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.entry("namespace").or_insert_with(|| self.namespace.into());
        }
        self.all.push(Ok(Manifest {
            origin: self.origin.to_owned(),
            kind,
            value,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(text: &str) -> Vec<String> {
        let one = |parsed: Parsed| match parsed {
            Ok(manifest) => format!("{:?}: {}", manifest.kind, manifest.title()),
            Err(malformed) => malformed.to_string(),
        };
        parse("f", text, "here").into_iter().map(one).collect()
    }

    #[test]
    fn documents_lists_and_other_kinds() {
        for (text, expected) in [
            ("", vec![]),
            ("---\n# only a comment\n---\n", vec![]),
            (
                "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}}",
                vec!["NetworkPolicy: NetworkPolicy here/p"],
            ),
            (
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"a","name":"p"}}"#,
                vec!["Pod: Pod a/p"],
            ),
            (
                "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n}\n",
                vec!["Namespace: Namespace a", "Node: Node n"],
            ),
            (
                "{apiVersion: crd.projectcalico.org/v1, kind: NetworkPolicy, metadata: {name: p}}",
                vec!["Other: NetworkPolicy p"],
            ),
            (
                "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {name: p}}, \
                 {apiVersion: v1, kind: PodList, items: [{metadata: {name: q}}, {metadata: {name: r}}]}]}",
                vec!["Pod: Pod here/p", "Pod: Pod here/q", "Pod: Pod here/r"],
            ),
            ("{apiVersion: v1, kind: Pod}", vec!["Pod: Pod (no name)"]),
        ] {
            assert_eq!(titles(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_object() {
        let good = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n---\n";
        for (text, expected) in [
            ("just text", "failed to read f: document 2: is no Kubernetes object"),
            ("- a\n- b\n", "failed to read f: document 2: is no Kubernetes object"),
            ("kind: Pod\n", "failed to read f: document 2: is no Kubernetes object"),
            (
                "{apiVersion: v1, kind: List, items: [{kind: Pod}]}",
                "failed to read f: document 2: is no Kubernetes",
            ),
            (
                "kind: Pod\nkind: Node\n",
                "failed to read f: document 2: duplicate entry",
            ),
            ("a: [1,\nb: {", "failed to read f: document 2: "),
        ] {
            let found = titles(&format!("{good}{text}"));
            assert_eq!(found.len(), 2, "{text}: {found:?}");
            assert!(found[1].starts_with(expected), "{text}: {found:?}");
        }
    }

    #[test]
    fn merge_keys_are_merged() {
        let text =
            "x: &labels {app: web}\napiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {<<: *labels, a: b}}\n";
        let parsed = parse("f", text, "here").remove(0).unwrap();
        assert_eq!(
            parsed.value["metadata"]["labels"],
            serde_json::json!({"app": "web", "a": "b"})
        );
    }
}
