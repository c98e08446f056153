// SPDX-License-Identifier: Apache-2.0
//! Which records are shown. The same arguments at every command, and what `wardline` passes on to the nodes.

use std::fmt;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::{Direction, Party, Record, Verdict};

/// Each argument may be repeated: one of its values must fit, and of all arguments that are given.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Filters; each may be given several times")]
pub struct Filter {
    /// Namespace of either end
    #[arg(short, long = "namespace", value_name = "NAMESPACE")]
    pub namespaces: Vec<String>,

    /// Either end, by its pod's or its workload's name
    #[arg(long = "pod", value_name = "[NAMESPACE/]NAME")]
    pub pods: Vec<Named>,

    /// A policy that allowed it, or that isolates the pod
    #[arg(long = "policy", value_name = "[NAMESPACE/]NAME")]
    pub policies: Vec<Named>,

    /// What was decided; of what was lost, what it would have been
    #[arg(long = "verdict", value_name = "VERDICT")]
    pub verdicts: Vec<Decided>,

    /// Destination port: 80, tcp/80, udp/53
    #[arg(long = "port", value_name = "[PROTOCOL/]PORT")]
    pub ports: Vec<Port>,

    /// Whose policy decided: ingress, that of the destination; egress, that of the source
    #[arg(long = "direction", value_name = "DIRECTION")]
    pub directions: Vec<Side>,

    /// Node that wrote it
    #[arg(long = "node", value_name = "NODE")]
    pub nodes: Vec<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    Allow,
    Deny,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Ingress,
    Egress,
}

/// A name, in one namespace or in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub namespace: Option<String>,
    pub name: String,
}

/// A port of one protocol or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub protocol: Option<String>,
    pub port: u16,
}

impl Filter {
    /// What was lost might have fitted: it does as far as its line tells.
    pub fn fits(&self, record: &Record) -> bool {
        let decided = match record {
            Record::Allow(_) => Decided::Allow,
            Record::Lost(loss) if loss.lost.disposition == "allow" => Decided::Allow,
            Record::Deny(_) | Record::Lost(_) => Decided::Deny,
        };
        let side = match record.direction() {
            Direction::Ingress => Side::Ingress,
            Direction::Egress => Side::Egress,
        };
        let is_there = any(&self.verdicts, |wanted| *wanted == decided)
            && any(&self.directions, |wanted| *wanted == side)
            && any(&self.nodes, |wanted| wanted == record.node());
        match record {
            Record::Allow(verdict) | Record::Deny(verdict) => is_there && self.fits_verdict(verdict),
            Record::Lost(_) => is_there,
        }
    }

    /// Whether the line is a record that fits. Where nothing is asked for, it is not even looked at.
    pub(crate) fn takes(&self, line: &[u8]) -> bool {
        *self == Self::default() || serde_json::from_slice(line).is_ok_and(|record| self.fits(&record))
    }

    fn fits_verdict(&self, verdict: &Verdict) -> bool {
        let ends = [&verdict.src, &verdict.dest];
        let connection = &verdict.connection;
        any(&self.namespaces, |wanted| {
            ends.iter().any(|end| end.namespace() == Some(wanted))
        }) && any(&self.pods, |wanted| ends.iter().any(|end| wanted.is(end)))
            && any(&self.policies, |wanted| {
                verdict
                    .deciding()
                    .any(|policy| wanted.fits(&policy.namespace, &policy.name))
            })
            && any(&self.ports, |wanted| {
                connection.dest_port == Some(wanted.port)
                    && wanted.protocol.as_ref().is_none_or(|p| *p == connection.protocol)
            })
    }

    /// The arguments that make this filter.
    pub fn to_args(&self) -> Vec<String> {
        fn add<T>(args: &mut Vec<String>, flag: &str, values: &[T], text: impl Fn(&T) -> String) {
            // In one word, so that a value that begins with a dash is no argument of its own.
            args.extend(values.iter().map(|value| format!("--{flag}={}", text(value))));
        }
        let mut args = Vec::new();
        add(&mut args, "namespace", &self.namespaces, String::clone);
        add(&mut args, "pod", &self.pods, ToString::to_string);
        add(&mut args, "policy", &self.policies, ToString::to_string);
        add(&mut args, "verdict", &self.verdicts, possible);
        add(&mut args, "port", &self.ports, ToString::to_string);
        add(&mut args, "direction", &self.directions, possible);
        add(&mut args, "node", &self.nodes, String::clone);
        args
    }
}

fn any<T>(wanted: &[T], fits: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(fits)
}

fn possible(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

impl Party {
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Pod { pod_namespace, .. } => Some(pod_namespace),
            Self::Node { .. } | Self::Instance { .. } => None,
        }
    }
}

impl Named {
    fn fits(&self, namespace: &str, name: &str) -> bool {
        self.name == name && self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }

    /// Whether the pod, or its workload, has the name.
    fn is(&self, party: &Party) -> bool {
        match party {
            Party::Pod {
                pod_name,
                pod_namespace,
                workload_name,
                ..
            } => [Some(pod_name), workload_name.as_ref()]
                .into_iter()
                .flatten()
                .any(|name| self.fits(pod_namespace, name)),
            Party::Node { .. } | Party::Instance { .. } => false,
        }
    }
}

impl FromStr for Named {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = match text.split_once('/') {
            None => (None, text),
            Some((namespace, name)) => (Some(namespace), name),
        };
        if name.is_empty() || name.contains('/') || namespace == Some("") {
            return Err("expected NAME or NAMESPACE/NAME");
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl FromStr for Port {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (protocol, port) = match text.split_once('/') {
            None => (None, text),
            Some((protocol, port)) => (Some(protocol.to_ascii_lowercase()), port),
        };
        if let Some(protocol) = &protocol
            && !matches!(protocol.as_str(), "tcp" | "udp" | "sctp")
        {
            return Err("expected tcp, udp or sctp before the slash");
        }
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self { protocol, port }),
            _ => Err("expected a port from 1 to 65535"),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.protocol {
            Some(protocol) => write!(f, "{protocol}/{}", self.port),
            None => write!(f, "{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{FromArgMatches as _, Parser};

    use super::*;
    use crate::samples::{ALLOW, DENY, LOST};

    #[derive(Parser, Debug)]
    struct Command {
        #[command(flatten)]
        filter: Filter,
    }

    fn filter(arguments: &str) -> Filter {
        Command::parse_from(["test"].into_iter().chain(arguments.split_whitespace())).filter
    }

    #[test]
    fn what_fits() {
        let records: Vec<Record> = [ALLOW, DENY, LOST]
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        for (arguments, expected) in [
            ("", [true, true, true]),
            ("--namespace shop", [true, true, true]),
            ("-n batch", [false, true, true]),
            ("-n batch -n shop", [true, true, true]),
            ("-n elsewhere", [false, false, true]),
            ("--pod web-5d9", [true, false, true]),
            ("--pod web", [true, false, true]),
            ("--pod shop/db-0", [true, true, true]),
            ("--pod batch/db-0", [false, false, true]),
            ("--policy admit-web", [true, false, true]),
            ("--policy shop/db-isolate", [false, true, true]),
            ("--verdict deny", [false, true, false]),
            ("--verdict allow", [true, false, true]),
            ("--verdict allow --verdict deny", [true, true, true]),
            ("--port 8080", [true, true, true]),
            ("--port tcp/8080", [true, false, true]),
            ("--port udp/8080", [false, true, true]),
            ("--direction egress", [false, false, false]),
            ("--node node1", [true, false, true]),
            ("--node node1 --verdict deny", [false, false, false]),
            ("--node node1 --node node2 --pod db", [true, true, true]),
        ] {
            let filter = filter(arguments);
            let fits: Vec<bool> = records.iter().map(|record| filter.fits(record)).collect();
            assert_eq!(fits, expected, "{arguments}");
        }
    }

    #[test]
    fn a_filter_can_be_passed_on() {
        let given = filter(
            "-n shop -n batch --pod shop/web --policy p --verdict deny --port udp/53 --port 80 --direction egress --node n",
        );
        let args = given.to_args();
        let matches = <Command as clap::CommandFactory>::command()
            .try_get_matches_from(["test".to_owned()].into_iter().chain(args))
            .unwrap();
        assert_eq!(Filter::from_arg_matches(&matches).unwrap(), given);
    }

    #[test]
    fn what_is_no_name_and_no_port() {
        for text in ["", "/", "a/", "/b", "a/b/c"] {
            assert!(text.parse::<Named>().is_err(), "{text}");
        }
        for text in ["", "0", "65536", "http", "icmp/1", "tcp/", "tcp"] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }
}
