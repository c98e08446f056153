// SPDX-License-Identifier: Apache-2.0
//! What plugin and daemon say to each other over the unix socket.
//!
//! One connection is one request and one answer, each a JSON object that ends with the sending half of the connection.
//! Both sides belong to one release, but the binary on the node may be older or newer than the daemon for a moment:
//! hence the version.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Code;

/// Of this exchange. A side that reads another one refuses it.
pub const PROTOCOL: u32 = 1;
/// Where the daemon listens, unless the configuration says otherwise.
pub const SOCKET: &str = "/run/wardline/cni.sock";
/// No message may be longer, in bytes: a GC names all pods of a node.
pub const MAX_MESSAGE: u64 = 1 << 20;
/// How long the daemon may take for an answer before it gives up itself.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// One interface of one container, as the specification names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    pub container_id: String,
    pub ifname: String,
}

/// The pod that a sandbox is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodId {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub protocol: u32,
    #[serde(flatten)]
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Command {
    /// Answered when the pod's policy is in force.
    Add(Network),
    /// The pod's containers have ended; nothing of it counts any more.
    Del { attachment: Attachment },
    /// Whether the pod is guarded.
    Check(Network),
    /// Whether an ADD could be served.
    Status,
    /// Whatever is not in this list is gone.
    Gc { attachments: Vec<Attachment> },
}

/// A pod and what the plugins before have given it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    pub attachment: Attachment,
    pub pod: PodId,
    /// Interfaces of the node that belong to the attachment: the host side of its veth, perhaps a bridge.
    pub host_interfaces: Vec<String>,
    /// Of the pod, one of a family.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum Response {
    Done,
    Refused { code: Code, message: String },
}

#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the message is longer than {MAX_MESSAGE} bytes")]
    TooLong,
    #[error("the message is not understood: {0}")]
    Decode(#[from] serde_json::Error),
}

/// Decodes a whole message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    if bytes.len() as u64 > MAX_MESSAGE {
        return Err(MessageError::TooLong);
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// Reads a message to its end.
pub fn read<T: DeserializeOwned>(from: impl Read) -> Result<T, MessageError> {
    let mut bytes = Vec::new();
    from.take(MAX_MESSAGE + 1).read_to_end(&mut bytes)?;
    decode(&bytes)
}

/// Writes a message; the end is for the caller to mark.
pub fn write(mut to: impl Write, message: &impl Serialize) -> Result<(), MessageError> {
    to.write_all(&serde_json::to_vec(message)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_another_release_expects() {
        let attachment = Attachment {
            container_id: "c1".into(),
            ifname: "eth0".into(),
        };
        let network = Network {
            attachment: attachment.clone(),
            pod: PodId {
                namespace: "shop".into(),
                name: "web".into(),
                uid: "u1".into(),
            },
            host_interfaces: vec!["veth1".into()],
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        };
        let place = r#""attachment":{"containerId":"c1","ifname":"eth0"}"#;
        let pod = r#""pod":{"namespace":"shop","name":"web","uid":"u1"}"#;
        let found = r#""hostInterfaces":["veth1"],"addresses":["10.0.0.1","fd00::1"]"#;
        let table = [
            (
                Command::Add(network.clone()),
                format!(r#"{{"protocol":1,"command":"add",{place},{pod},{found}}}"#),
            ),
            (
                Command::Check(network),
                format!(r#"{{"protocol":1,"command":"check",{place},{pod},{found}}}"#),
            ),
            (
                Command::Del {
                    attachment: attachment.clone(),
                },
                format!(r#"{{"protocol":1,"command":"del",{place}}}"#),
            ),
            (Command::Status, r#"{"protocol":1,"command":"status"}"#.to_owned()),
            (
                Command::Gc {
                    attachments: vec![attachment],
                },
                r#"{"protocol":1,"command":"gc","attachments":[{"containerId":"c1","ifname":"eth0"}]}"#.to_owned(),
            ),
        ];
        for (command, text) in table {
            let request = Request {
                protocol: PROTOCOL,
                command,
            };
            let mut bytes = Vec::new();
            write(&mut bytes, &request).unwrap();
            assert_eq!(String::from_utf8(bytes.clone()).unwrap(), text);
            assert_eq!(read::<Request>(&bytes[..]).unwrap(), request);
        }
        let refused = r#"{"outcome":"refused","code":"tryAgainLater","message":"m"}"#;
        let expected = Response::Refused {
            code: Code::TryAgainLater,
            message: "m".into(),
        };
        assert_eq!(read::<Response>(refused.as_bytes()).unwrap(), expected);
        assert_eq!(
            read::<Response>(r#"{"outcome":"done"}"#.as_bytes()).unwrap(),
            Response::Done
        );
    }

    #[test]
    fn what_is_too_long_is_not_read() {
        let endless = io::repeat(b' ');
        assert!(matches!(read::<Request>(endless), Err(MessageError::TooLong)));
    }
}
