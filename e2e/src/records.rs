// SPDX-License-Identifier: Apache-2.0
//! The policy log, read back: docs/events.md describes its lines.

use std::sync::LazyLock;

use anyhow::{Context as _, Result, anyhow, ensure};
use jsonschema::Validator;
use serde::Deserialize;
use time::OffsetDateTime;

/// A line of the policy log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Record {
    /// allow, deny or lost.
    pub disposition: String,
    /// Addresses, ports, protocol and direction; a loss has its direction only.
    pub connection: Connection,
    /// Why it was denied.
    pub reason: Option<String>,
    /// Who opened the connection.
    pub src: Option<Side>,
    /// Whom it went to.
    pub dest: Option<Side>,
    /// The policies whose rules decided.
    #[serde(default)]
    pub policies: Vec<PolicyRef>,
    /// The policies that isolate the pod, on a default deny.
    #[serde(default)]
    pub isolated_by: Vec<PolicyRef>,
    /// The Service that the client asked for, where its own node judged.
    pub service: Option<ServiceRef>,
    /// Connections allowed, packets denied, or verdicts whose records were lost.
    pub count: u64,
    /// The node that the verdict fell on.
    pub node_name: String,
    /// The first packet's time.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// The last packet's time, where there can be several.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub last_timestamp: Option<OffsetDateTime>,
    /// Where the record stands among those of its node.
    pub seq: Option<serde_json::Value>,
    /// The line as it was written.
    #[serde(skip)]
    pub line: String,
}

/// Whose packet it was.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Connection {
    /// The address that opened the connection.
    pub src_ip: Option<String>,
    /// The address it went to.
    pub dest_ip: Option<String>,
    /// Left out where the protocol has none.
    pub src_port: Option<u16>,
    /// Left out where the protocol has none.
    pub dest_port: Option<u16>,
    /// tcp, udp, sctp, icmp, icmpv6 or a number.
    pub protocol: Option<serde_json::Value>,
    /// Seen from the pod that the policy is for.
    pub direction: String,
}

/// One end of a connection: a pod, a node, or an address that is neither.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Side {
    /// The pod's name.
    pub pod_name: Option<String>,
    /// The pod's namespace.
    pub pod_namespace: Option<String>,
    /// The workload's namespace.
    pub namespace: Option<String>,
    /// Such as Deployment; Node for a node.
    pub workload_kind: Option<String>,
    /// The workload's name.
    pub workload_name: Option<String>,
    /// The address of what is neither pod nor node.
    pub instance: Option<String>,
    /// The node's name.
    pub node_name: Option<String>,
}

/// A Service as its client sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ServiceRef {
    /// Left out where the Service is gone, as is its name.
    pub namespace: Option<String>,
    /// The Service's name.
    pub name: Option<String>,
    /// What the client sent to.
    pub ip: String,
    /// What the client sent to.
    pub port: u16,
}

/// A policy that had a part in a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PolicyRef {
    /// `NetworkPolicy`, today always.
    pub kind: String,
    /// The policy's namespace.
    pub namespace: Option<String>,
    /// The policy's name.
    pub name: String,
    /// Its metadata.generation when it was put in force.
    pub generation: Option<i64>,
    /// Which of its rules, counted from 0.
    #[serde(default)]
    pub rules: Vec<u32>,
}

impl Record {
    /// Whether one of its ends is a pod of the namespace.
    pub fn concerns(&self, namespace: &str) -> bool {
        [&self.src, &self.dest]
            .into_iter()
            .flatten()
            .any(|side| side.pod_namespace.as_deref() == Some(namespace))
    }
}

/// The schema that the docs promise to whoever reads the log.
static SCHEMA: LazyLock<Result<Validator, String>> = LazyLock::new(|| {
    let schema = serde_json::from_str(include_str!("../../docs/policy-log.schema.json")).map_err(|e| e.to_string())?;
    jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .map_err(|error| error.to_string())
});

fn check(line: &str, value: &serde_json::Value) -> Result<()> {
    let schema = SCHEMA
        .as_ref()
        .map_err(|error| anyhow!("failed to read the log's schema: {error}"))?;
    let wrong: Vec<_> = schema.iter_errors(value).map(|error| error.to_string()).collect();
    ensure!(
        wrong.is_empty(),
        "{} is not what the log's schema says: {}",
        line.trim(),
        wrong.join("; ")
    );
    Ok(())
}

/// Reads whole lines; a last one without its end is still being written, and left out.
pub fn parse(text: &str) -> Result<Vec<Record>> {
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n') && !line.trim().is_empty())
        .map(|line| {
            let undecoded = || format!("failed to decode the record {}", line.trim());
            let value = serde_json::from_str(line).with_context(undecoded)?;
            check(line, &value)?;
            let mut record: Record = serde_json::from_value(value).with_context(undecoded)?;
            line.trim().clone_into(&mut record.line);
            Ok(record)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    const DENY: &str = r#"{"connection":{"src_ip":"10.244.1.7","dest_ip":"10.244.0.11","src_port":55644,"dest_port":8080,"protocol":"tcp","direction":"ingress"},"disposition":"deny","reason":"default-deny","isolated_by":[{"kind":"NetworkPolicy","namespace":"shop","name":"db","generation":4}],"src":{"pod_name":"web","pod_namespace":"shop","namespace":"shop"},"dest":{"instance":"203.0.113.9"},"count":3,"node_name":"node1","timestamp":"2026-06-13T21:29:31.445836587Z","last_timestamp":"2026-06-13T21:29:33.1Z","seq":"1"}"#;

    #[test]
    fn a_line_that_is_being_written_is_left_out() {
        let records = parse(&format!("{DENY}\n{DENY}")).unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].count, 3);
        assert_eq!(records[0].isolated_by[0].name, "db");
        assert_eq!(records[0].line, DENY);
        assert!(records[0].concerns("shop"));
        assert!(!records[0].concerns("elsewhere"));
    }

    #[test]
    fn a_line_that_is_no_record_is_an_error_that_shows_it() {
        let error = format!("{:#}", parse("{\"disposition\":\"allow\"}\n").unwrap_err());
        assert!(error.contains("{\"disposition\":\"allow\"}"), "{error}");
    }
}
