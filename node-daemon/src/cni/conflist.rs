// SPDX-License-Identifier: Apache-2.0
//! Our entry in somebody else's network configuration list: put in, kept as it should be, taken out. Everything else
//! stays as it is, in its order.

use serde_yaml::{Mapping, Value};
use wardline_cni::Version;
use wardline_cni::config::{Entry, TYPE};

#[derive(Debug, thiserror::Error)]
pub(super) enum ConflistError {
    #[error("it is no JSON object: {0}")]
    Decode(serde_json::Error),
    #[error("it has no list of plugins")]
    NoPlugins,
    #[error("its cniVersion is {0}, and wardline-cni speaks {spoken}", spoken = Version::ALL.map(Version::as_str).join(", "))]
    Version(String),
    #[error("failed to encode it: {0}")]
    Encode(serde_json::Error),
}

/// The list with our entry; None where it has it already. The entry comes last: the pod has its interface and
/// addresses by then, and what other plugins do to both is done.
pub(super) fn with_entry(text: &[u8], entry: &Entry) -> Result<Option<String>, ConflistError> {
    let ours = serde_json::to_value(entry).map_err(ConflistError::Encode)?;
    let ours = serde_yaml::to_value(ours).map_err(|_| ConflistError::NoPlugins)?;
    edit(text, |list| {
        check_versions(list)?;
        let plugins = plugins(list)?;
        plugins.retain(|plugin| !is_ours(plugin));
        plugins.push(ours);
        Ok(())
    })
}

/// The list without our entry; None where it has none.
pub(super) fn without_entry(text: &[u8]) -> Result<Option<String>, ConflistError> {
    edit(text, |list| {
        plugins(list)?.retain(|plugin| !is_ours(plugin));
        Ok(())
    })
}

fn edit(
    text: &[u8],
    change: impl FnOnce(&mut Mapping) -> Result<(), ConflistError>,
) -> Result<Option<String>, ConflistError> {
    // A mapping of serde_yaml, since it keeps the order of fields, which serde_json's does not here.
    let mut list: Mapping = serde_json::from_slice(text).map_err(ConflistError::Decode)?;
    let before = list.clone();
    change(&mut list)?;
    if list == before {
        return Ok(None);
    }
    let text = serde_json::to_string_pretty(&list).map_err(ConflistError::Encode)?;
    Ok(Some(text + "\n"))
}

fn plugins(list: &mut Mapping) -> Result<&mut Vec<Value>, ConflistError> {
    let plugins = list.get_mut("plugins").and_then(Value::as_sequence_mut);
    plugins.ok_or(ConflistError::NoPlugins)
}

/// In a version that the plugin does not speak every ADD would fail. The runtime takes the highest of all those named
/// that it knows itself (`NetworkConfFromBytes` in libcni/conf.go), or, if it is an older one, `cniVersion`.
fn check_versions(list: &Mapping) -> Result<(), ConflistError> {
    let others = list.get("cniVersions").and_then(Value::as_sequence);
    let mut named: Vec<&Value> = list
        .get("cniVersion")
        .into_iter()
        .chain(others.into_iter().flatten())
        .collect();
    let none = Value::from("not set");
    if named.is_empty() {
        named.push(&none);
    }
    let is_spoken = |version: &Value| version.as_str().is_some_and(|text| Version::parse(text).is_some());
    match named.into_iter().find(|version| !is_spoken(version)) {
        None => Ok(()),
        Some(Value::String(text)) => Err(ConflistError::Version(text.clone())),
        Some(other) => Err(ConflistError::Version(format!("{other:?}"))),
    }
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(TYPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true,
        "mtu": 1450,
        "ratio": 0.5
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#;

    #[test]
    fn in_and_out_again_leaves_the_list_as_it_was() {
        let entry = Entry::default();
        let with = with_entry(LIST.as_bytes(), &entry).unwrap().unwrap();
        let ours = r#"    {
      "failurePolicy": "Fail",
      "logLevel": "Warn",
      "socket": "/run/wardline/cni.sock",
      "type": "wardline-cni"
    }
  ]
}
"#;
        assert!(with.ends_with(ours), "{with}");
        assert_eq!(with_entry(with.as_bytes(), &entry).unwrap(), None, "it is there");
        assert_eq!(without_entry(with.as_bytes()).unwrap().unwrap(), LIST);
        assert_eq!(without_entry(LIST.as_bytes()).unwrap(), None);
    }

    #[test]
    fn an_entry_of_another_release_is_replaced() {
        let old = LIST.replace(
            "\"type\": \"portmap\"",
            "\"type\": \"wardline-cni\", \"socket\": \"/old\"",
        );
        let with = with_entry(old.as_bytes(), &Entry::default()).unwrap().unwrap();
        assert_eq!(with.matches("wardline-cni").count(), 1, "{with}");
        assert!(!with.contains("/old"), "{with}");
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["", "[]", "{}", r#"{"plugins":{}}"#, r#"{"type":"bridge"}"#] {
            assert!(with_entry(text.as_bytes(), &Entry::default()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_of_a_version_that_the_plugin_does_not_speak_is_left_alone() {
        let list = |versions: &str| LIST.replace("\"cniVersion\": \"0.3.1\",", versions);
        for (versions, named) in [
            (r#""cniVersion": "0.2.0","#, "0.2.0"),
            (r#""cniVersion": "9.0.0","#, "9.0.0"),
            (r#""cniVersion": "","#, ""),
            (r#""cniVersion": 1,"#, "Number(1)"),
            ("", "not set"),
            (r#""cniVersion": "1.0.0", "cniVersions": ["1.0.0", "9.0.0"],"#, "9.0.0"),
        ] {
            let text = list(versions);
            let error = with_entry(text.as_bytes(), &Entry::default()).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("its cniVersion is {named}, and ")),
                "{versions}: {error}"
            );
        }
        for versions in [
            r#""cniVersions": ["1.0.0", "1.1.0"],"#,
            r#""cniVersion": "0.4.0", "cniVersions": ["1.0.0"],"#,
        ] {
            let text = list(versions);
            assert!(with_entry(text.as_bytes(), &Entry::default()).is_ok(), "{versions}");
        }
        let theirs = list(r#""cniVersion": "0.2.0","#).replace("portmap", TYPE);
        assert!(
            without_entry(theirs.as_bytes()).unwrap().is_some(),
            "and our entry goes from any"
        );
    }
}
