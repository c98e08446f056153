// SPDX-License-Identifier: Apache-2.0
//! Ports of rules, and protocols.

use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::InvalidPolicy;
use crate::model::{Port, PortMatch, Protocol};

pub(super) fn read(source: &NetworkPolicyPort) -> Result<PortMatch, InvalidPolicy> {
    let protocol = protocol(source.protocol.as_deref()).map_err(|cause| InvalidPolicy::at("protocol", cause))?;
    let port = match (&source.port, source.end_port) {
        (None, None) => Port::Any,
        (Some(IntOrString::Int(port)), None) => Port::Exact(number(*port, "port")?),
        (Some(IntOrString::Int(first)), Some(last)) => range(*first, last)?,
        (Some(IntOrString::String(name)), None) => {
            check_name(name).map_err(|cause| InvalidPolicy::at("port", cause))?;
            Port::Named(name.as_str().into())
        }
        (Some(IntOrString::String(_)) | None, Some(_)) => {
            return Err(InvalidPolicy::at("endPort", "may only be given with a numeric port"));
        }
    };
    Ok(PortMatch { protocol, port })
}

/// TCP where absent.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{other:?} is not a protocol: TCP, UDP or SCTP")),
    }
}

fn range(first: i32, last: i32) -> Result<Port, InvalidPolicy> {
    let (start, end) = (number(first, "port")?, number(last, "endPort")?);
    if end < start {
        return Err(InvalidPolicy::at(
            "endPort",
            format!("{end} is less than port, {start}"),
        ));
    }
    Ok(if start == end {
        Port::Exact(start)
    } else {
        Port::Range(start, end)
    })
}

fn number(port: i32, field: &str) -> Result<u16, InvalidPolicy> {
    match u16::try_from(port) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(InvalidPolicy::at(field, format!("{port} is not a port: 1 to 65535"))),
    }
}

/// A service name as of RFC 6335: up to 15 lower-case letters, digits and single inner `-`, with a letter among them.
fn check_name(name: &str) -> Result<(), String> {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let shaped = (1..=15).contains(&name.len())
        && name.bytes().all(known)
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if shaped {
        Ok(())
    } else {
        Err(format!("{name:?} is not a port name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(yaml: &str) -> Result<PortMatch, (String, String)> {
        let port: NetworkPolicyPort = serde_yaml::from_str(yaml).unwrap();
        read(&port).map_err(|e| (e.field, e.cause))
    }

    #[test]
    fn accepted() {
        let named = |name: &str| Port::Named(name.into());
        for (yaml, protocol, port) in [
            ("{}", Protocol::Tcp, Port::Any),
            ("{protocol: SCTP}", Protocol::Sctp, Port::Any),
            ("{port: 1}", Protocol::Tcp, Port::Exact(1)),
            ("{port: 65535, protocol: UDP}", Protocol::Udp, Port::Exact(65535)),
            ("{port: 80, endPort: 80}", Protocol::Tcp, Port::Exact(80)),
            ("{port: 1, endPort: 65535}", Protocol::Tcp, Port::Range(1, 65535)),
            ("{port: http}", Protocol::Tcp, named("http")),
            ("{port: 8-x}", Protocol::Tcp, named("8-x")),
            ("{port: fifteen-letters}", Protocol::Tcp, named("fifteen-letters")),
        ] {
            assert_eq!(reads(yaml), Ok(PortMatch { protocol, port }), "{yaml}");
        }
    }

    #[test]
    fn refused() {
        for (yaml, field, cause) in [
            (
                "{protocol: tcp}",
                "protocol",
                "\"tcp\" is not a protocol: TCP, UDP or SCTP",
            ),
            (
                "{protocol: ICMP}",
                "protocol",
                "\"ICMP\" is not a protocol: TCP, UDP or SCTP",
            ),
            ("{protocol: ''}", "protocol", "\"\" is not a protocol: TCP, UDP or SCTP"),
            ("{port: 0}", "port", "0 is not a port: 1 to 65535"),
            ("{port: -1}", "port", "-1 is not a port: 1 to 65535"),
            ("{port: 65536}", "port", "65536 is not a port: 1 to 65535"),
            ("{port: 80, endPort: 79}", "endPort", "79 is less than port, 80"),
            (
                "{port: 80, endPort: 65536}",
                "endPort",
                "65536 is not a port: 1 to 65535",
            ),
            ("{endPort: 80}", "endPort", "may only be given with a numeric port"),
            (
                "{port: http, endPort: 80}",
                "endPort",
                "may only be given with a numeric port",
            ),
            ("{port: ''}", "port", "\"\" is not a port name"),
            ("{port: '80'}", "port", "\"80\" is not a port name"),
            ("{port: HTTP}", "port", "\"HTTP\" is not a port name"),
            ("{port: a--b}", "port", "\"a--b\" is not a port name"),
            ("{port: -a}", "port", "\"-a\" is not a port name"),
            ("{port: a-}", "port", "\"a-\" is not a port name"),
            ("{port: a_b}", "port", "\"a_b\" is not a port name"),
            (
                "{port: sixteen-letters-}",
                "port",
                "\"sixteen-letters-\" is not a port name",
            ),
            (
                "{port: sixteen-lettersx}",
                "port",
                "\"sixteen-lettersx\" is not a port name",
            ),
        ] {
            assert_eq!(reads(yaml), Err((field.to_owned(), cause.to_owned())), "{yaml}");
        }
    }
}
