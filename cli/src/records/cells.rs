// SPDX-License-Identifier: Apache-2.0
//! Parts of a record in a few words.

use std::fmt::Write as _;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use wardline_record::{Connection, Party, Policy, Service, Timestamp, Verdict};

use crate::output::NOTHING;

const SHORT: &[BorrowedFormatItem<'_>] =
    format_description!("[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]");
const CLOCK: &[BorrowedFormatItem<'_>] = format_description!("[hour]:[minute]:[second].[subsecond digits:3]");
const SECONDS: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
const LONG: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");

/// Month, day and milliseconds, in UTC.
pub(crate) fn short(time: Timestamp) -> String {
    formatted(time.utc(), SHORT)
}

/// Milliseconds of a day, in UTC.
pub(crate) fn clock(time: Timestamp) -> String {
    formatted(time.utc(), CLOCK)
}

/// All of it.
pub(crate) fn long(time: Timestamp) -> String {
    formatted(time.utc(), LONG)
}

/// To the second.
pub(crate) fn long_seconds(time: Timestamp) -> String {
    formatted(time.utc(), SECONDS)
}

fn formatted(time: OffsetDateTime, as_: &[BorrowedFormatItem<'_>]) -> String {
    // The formats ask for nothing that a time lacks.
    time.format(as_).unwrap_or_default()
}

/// `shop/web-5d9`, `node/node2`, `203.0.113.9`.
pub(crate) fn party(party: &Party) -> String {
    match party {
        Party::Pod {
            pod_name,
            pod_namespace,
            ..
        } => format!("{pod_namespace}/{pod_name}"),
        Party::Node { node_name, .. } => format!("node/{node_name}"),
        Party::Instance { instance } => instance.to_string(),
    }
}

/// `Deployment/web`, where it has one.
pub(crate) fn workload(party: &Party) -> String {
    match party {
        Party::Pod {
            workload_kind: Some(kind),
            workload_name: Some(name),
            ..
        } => format!("{kind}/{name}"),
        _ => NOTHING.to_owned(),
    }
}

/// `tcp/8080`, `icmp`.
pub(crate) fn port(connection: &Connection) -> String {
    match connection.dest_port {
        Some(port) => format!("{}/{port}", connection.protocol),
        None => connection.protocol.clone(),
    }
}

/// `10.0.0.1:80`, `[fd00::1]:80`, `10.0.0.1`.
pub(crate) fn address(ip: std::net::IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => std::net::SocketAddr::new(ip, port).to_string(),
        None => ip.to_string(),
    }
}

/// `shop/db:5432`, or the address where its name is not known.
pub(crate) fn service(service: &Service) -> String {
    match (&service.namespace, &service.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}:{}", service.port),
        _ => address(service.ip, Some(service.port)),
    }
}

/// `shop/admit-web[0,2]`, several after a comma.
pub(crate) fn policies<'a>(policies: impl Iterator<Item = &'a Policy>, with_generation: bool) -> String {
    let mut text = String::new();
    for policy in policies {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{}/{}", policy.namespace, policy.name);
        if with_generation {
            let _ = write!(text, "@{}", policy.generation);
        }
        if let Some(rules) = &policy.rules {
            let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
            let _ = write!(text, "[{}]", rules.join(","));
        }
    }
    if text.is_empty() { NOTHING.to_owned() } else { text }
}

/// The policies, and before them why, where a record says so.
pub(crate) fn because(verdict: &Verdict) -> String {
    let policies = policies(verdict.deciding(), false);
    match &verdict.reason {
        Some(reason) => format!("{reason} {policies}"),
        None => policies,
    }
}

/// Text as it can be shown: a file may hold what moves a terminal's cursor.
pub(crate) fn clean(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains(char::is_control) {
        text.replace(char::is_control, "\u{fffd}").into()
    } else {
        text.into()
    }
}
