// SPDX-License-Identifier: Apache-2.0
//! From JSON to an API type, with the field that is wrong.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// An object that is not of its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Undecodable {
    /// Path from the object's root, such as `spec.ingress[0].ports`; `.` for the object itself.
    pub(crate) field: String,
    pub(crate) cause: String,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to read {}: {}", self.field, self.cause)
    }
}

/// Decodes as the daemon does: fields that the type does not have are ignored.
pub(crate) fn lenient<T: DeserializeOwned>(value: Value) -> Result<T, Undecodable> {
    serde_path_to_error::deserialize(value).map_err(|error| Undecodable {
        field: error.path().to_string(),
        cause: error.inner().to_string(),
    })
}

/// Decodes as `kubectl apply` does: a field that the type does not have is an error, and so is a misspelt one. A rule
/// whose `from` is misspelt would otherwise allow everybody.
pub(crate) fn strict<T: DeserializeOwned>(value: Value) -> Result<T, Undecodable> {
    let mut unknown: Option<String> = None;
    let mut note = |path: serde_ignored::Path<'_>| {
        // An old API server added a status to NetworkPolicies, so copies of them have one.
        let path = field(&path.to_string());
        if path != "status" && !path.starts_with("status.") {
            unknown.get_or_insert(path);
        }
    };
    let decoded =
        serde_path_to_error::deserialize(serde_ignored::Deserializer::new(value, &mut note)).map_err(|error| {
            Undecodable {
                field: field(&error.path().to_string()),
                cause: error.inner().to_string(),
            }
        })?;
    match unknown {
        None => Ok(decoded),
        Some(field) => Err(Undecodable {
            field,
            cause: "there is no such field".to_owned(),
        }),
    }
}

/// A path as Kubernetes spells it: `spec.?.ingress.0.from` (a `?` for each optional value) is `spec.ingress[0].from`.
fn field(path: &str) -> String {
    let mut spelled = String::new();
    for part in path.split('.').filter(|part| *part != "?") {
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            spelled.push('[');
            spelled.push_str(part);
            spelled.push(']');
        } else {
            if !spelled.is_empty() {
                spelled.push('.');
            }
            spelled.push_str(part);
        }
    }
    if spelled.is_empty() { ".".to_owned() } else { spelled }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::NetworkPolicy;

    use super::*;

    #[test]
    fn the_field_that_is_wrong() {
        for (spec, expected) in [
            ("{podSelector: {}}", None),
            ("{podSelector: {matchLabels: {a.b/c: d}}}", None),
            (
                "{podSelector: {matchLabels: {version: 1}}}",
                Some("spec.podSelector.matchLabels.version"),
            ),
            ("{ingress: {}}", Some("spec.ingress")),
            (
                "{ingress: [{ports: [{port: [80]}]}]}",
                Some("spec.ingress[0].ports[0].port"),
            ),
            ("{ingress: [{form: []}]}", Some("spec.ingress[0].form")),
            (
                "{ingress: [{}, {from: [{podSelectr: {}}]}]}",
                Some("spec.ingress[1].from[0].podSelectr"),
            ),
            ("{podselector: {}}", Some("spec.podselector")),
        ] {
            let value: Value = serde_yaml::from_str(&format!("{{metadata: {{name: p}}, spec: {spec}}}")).unwrap();
            let read = strict::<NetworkPolicy>(value);
            assert_eq!(read.err().map(|e| e.field).as_deref(), expected, "{spec}");
        }
    }

    #[test]
    fn a_daemon_ignores_what_it_does_not_know() {
        let value = serde_json::json!({"spec": {"ingress": [{"form": []}]}, "status": {"conditions": []}});
        assert!(lenient::<NetworkPolicy>(value).is_ok());
        let value = serde_json::json!({"spec": {}, "status": {"conditions": []}});
        assert!(strict::<NetworkPolicy>(value).is_ok());
        let error = lenient::<NetworkPolicy>(serde_json::json!({"spec": {"ingress": 3}})).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("failed to read spec.ingress: invalid type"),
            "{error}"
        );
    }
}
