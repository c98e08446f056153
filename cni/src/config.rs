// SPDX-License-Identifier: Apache-2.0
//! Our entry of a network configuration list: the daemon writes it, the runtime hands it to the plugin.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Code, Error};
use crate::protocol::{Attachment, SOCKET};
use crate::version::Version;

/// `type` of the entry, and name of the binary.
pub const TYPE: &str = "wardline-cni";

/// What happens to a pod while the daemon is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailurePolicy {
    #[default]
    Fail,
    Ignore,
}

/// What is written to stderr, where the runtime's own log takes it in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LogLevel {
    Error,
    #[default]
    Warn,
    Info,
    Debug,
}

/// The fields of the entry that are ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    #[serde(rename = "type")]
    pub plugin: String,
    /// Of the daemon: an absolute path.
    pub socket: String,
    pub failure_policy: FailurePolicy,
    pub log_level: LogLevel,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            plugin: TYPE.into(),
            socket: SOCKET.into(),
            failure_policy: FailurePolicy::default(),
            log_level: LogLevel::default(),
        }
    }
}

/// What the plugin is given on stdin.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) version: Version,
    pub(crate) entry: Entry,
    pub(crate) prev_result: Option<Value>,
    /// Of a GC.
    pub(crate) valid_attachments: Option<Vec<Attachment>>,
}

/// `cniVersion` of a configuration that may be of any version, or none.
pub(crate) fn version_of(object: &Map<String, Value>) -> Result<Version, Error> {
    // Before 0.2.0 there was no such field.
    let text = match object.get("cniVersion") {
        None => "0.1.0",
        Some(Value::String(text)) if text.is_empty() => "0.1.0",
        Some(Value::String(text)) => text,
        Some(other) => return Err(invalid("cniVersion", &format!("{other} is no string"))),
    };
    Version::parse(text).ok_or_else(|| {
        let spoken = Version::ALL.map(Version::as_str).join(", ");
        Error::new(Code::IncompatibleVersion, format!("cniVersion {text} is not supported"))
            .with_details(format!("wardline-cni speaks {spoken}"))
    })
}

impl Entry {
    /// Of a configuration of any version.
    pub(crate) fn parse(object: &Map<String, Value>) -> Result<Self, Error> {
        Ok(Self {
            plugin: TYPE.into(),
            socket: socket(object)?,
            failure_policy: field(object, "failurePolicy", "Fail or Ignore")?.unwrap_or_default(),
            log_level: field(object, "logLevel", "Error, Warn, Info or Debug")?.unwrap_or_default(),
        })
    }
}

impl Config {
    pub(crate) fn parse(object: &Map<String, Value>) -> Result<Self, Error> {
        Ok(Self {
            version: version_of(object)?,
            entry: Entry::parse(object)?,
            prev_result: object.get("prevResult").filter(|value| !value.is_null()).cloned(),
            valid_attachments: valid_attachments(object)?,
        })
    }
}

fn invalid(field: &str, cause: &str) -> Error {
    Error::new(Code::InvalidConfiguration, format!("{field}: {cause}"))
}

fn field<T: for<'de> Deserialize<'de>>(
    object: &Map<String, Value>,
    name: &str,
    wanted: &str,
) -> Result<Option<T>, Error> {
    let Some(value) = object.get(name) else {
        return Ok(None);
    };
    let parsed = T::deserialize(value).map_err(|_| invalid(name, &format!("{value} is not {wanted}")))?;
    Ok(Some(parsed))
}

fn socket(object: &Map<String, Value>) -> Result<String, Error> {
    let socket = field::<String>(object, "socket", "a path")?.unwrap_or_else(|| SOCKET.into());
    // The length is that of sun_path, with its closing zero.
    if socket.starts_with('/') && socket.len() < 108 {
        Ok(socket)
    } else {
        Err(invalid(
            "socket",
            &format!("{socket:?} is no absolute path of at most 107 bytes"),
        ))
    }
}

/// The specification's field, whose names are not those of our protocol.
fn valid_attachments(object: &Map<String, Value>) -> Result<Option<Vec<Attachment>>, Error> {
    const FIELD: &str = "cni.dev/valid-attachments";
    #[derive(Deserialize)]
    struct Valid {
        #[serde(rename = "containerID")]
        container_id: String,
        ifname: String,
    }
    let listed = field::<Option<Vec<Valid>>>(object, FIELD, "a list of containerID and ifname")?;
    let attachment = |valid: Valid| Attachment {
        container_id: valid.container_id,
        ifname: valid.ifname,
    };
    // Present and null is Go's empty list.
    Ok(listed.map(|list| list.unwrap_or_default().into_iter().map(attachment).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn defaults() {
        let config = parse(r#"{"cniVersion":"1.0.0","type":"wardline-cni","name":"lab"}"#).unwrap();
        assert_eq!(config.entry, Entry::default());
        assert_eq!((config.version, config.prev_result), (Version::V1_0_0, None));
    }

    #[test]
    fn what_the_daemon_writes_reads_back() {
        let entry = Entry {
            socket: "/run/other.sock".into(),
            failure_policy: FailurePolicy::Ignore,
            log_level: LogLevel::Debug,
            ..Entry::default()
        };
        let mut object = serde_json::to_value(&entry).unwrap();
        object["cniVersion"] = "1.1.0".into();
        assert_eq!(parse(&object.to_string()).unwrap().entry, entry);
    }

    #[test]
    fn errors_name_the_field() {
        for (text, code, message) in [
            ("{}", Code::IncompatibleVersion, "cniVersion 0.1.0 is not supported"),
            (
                r#"{"cniVersion":""}"#,
                Code::IncompatibleVersion,
                "cniVersion 0.1.0 is not supported",
            ),
            (
                r#"{"cniVersion":"0.2.0"}"#,
                Code::IncompatibleVersion,
                "cniVersion 0.2.0 is not supported",
            ),
            (
                r#"{"cniVersion":"2.0.0"}"#,
                Code::IncompatibleVersion,
                "cniVersion 2.0.0 is not supported",
            ),
            (
                r#"{"cniVersion":1}"#,
                Code::InvalidConfiguration,
                "cniVersion: 1 is no string",
            ),
            (
                r#"{"cniVersion":"1.0.0","socket":"run.sock"}"#,
                Code::InvalidConfiguration,
                r#"socket: "run.sock" is no absolute path of at most 107 bytes"#,
            ),
            (
                r#"{"cniVersion":"1.0.0","socket":7}"#,
                Code::InvalidConfiguration,
                "socket: 7 is not a path",
            ),
            (
                r#"{"cniVersion":"1.0.0","failurePolicy":"ignore"}"#,
                Code::InvalidConfiguration,
                r#"failurePolicy: "ignore" is not Fail or Ignore"#,
            ),
            (
                r#"{"cniVersion":"1.0.0","logLevel":"Loud"}"#,
                Code::InvalidConfiguration,
                r#"logLevel: "Loud" is not Error, Warn, Info or Debug"#,
            ),
            (
                r#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":[{"ifname":"eth0"}]}"#,
                Code::InvalidConfiguration,
                r#"cni.dev/valid-attachments: [{"ifname":"eth0"}] is not a list of containerID and ifname"#,
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (code, message), "{text}");
        }
    }
}
