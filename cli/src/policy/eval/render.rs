// SPDX-License-Identifier: Apache-2.0
//! The answer in words.

use std::fmt::Write as _;

use wardline_policy::model::Direction;

use super::answer::{Allowed, Answer, Edge, Isolating, Party, Path, PolicyName, Ruling};

pub(super) fn text(out: &mut Vec<u8>, answer: &Answer) -> anyhow::Result<()> {
    let mut text = String::new();
    for path in &answer.paths {
        let service = match path.dest_port {
            Some(port) => format!("{}/{port}", path.protocol),
            None => path.protocol.clone(),
        };
        let (from, to) = (end(&answer.from, path.src_ip), end(&answer.to, path.dest_ip));
        writeln!(text, "{from} -> {to}, {service}")?;
        for edge in &path.edges {
            let party = match edge.direction {
                Direction::Egress => &answer.from,
                Direction::Ingress => &answer.to,
            };
            write_edge(&mut text, edge, party)?;
        }
        writeln!(text)?;
    }
    for note in &answer.notes {
        writeln!(text, "note: {note}")?;
    }
    for path in &answer.paths {
        writeln!(text, "{}", summary(path, answer.paths.len() > 1))?;
    }
    out.extend(text.into_bytes());
    Ok(())
}

/// Such as `shop/web (10.0.1.1, node1)`.
fn end(party: &Party, address: std::net::IpAddr) -> String {
    let node = party.node.as_deref();
    match &party.pod {
        Some(pod) => {
            let on = node.map(|node| format!(", {node}")).unwrap_or_default();
            format!("{}/{} ({address}{on})", pod.namespace, pod.name)
        }
        None => node.map_or_else(|| address.to_string(), |node| format!("{address} (node {node})")),
    }
}

/// Whose edge it is.
fn whose(party: &Party) -> String {
    match &party.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => party.addresses.first().map(ToString::to_string).unwrap_or_default(),
    }
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn write_edge(text: &mut String, edge: &Edge, party: &Party) -> std::fmt::Result {
    let direction = direction_name(edge.direction);
    write!(text, "  {direction} of {}: ", whose(party))?;
    match &edge.ruling {
        Ruling::NoEdge if party.host_network => writeln!(text, "not judged: it is on the host network"),
        Ruling::NoEdge => writeln!(text, "not judged: it is no pod's address"),
        Ruling::Itself => writeln!(text, "allowed: a pod always reaches itself"),
        Ruling::Node => writeln!(text, "allowed: a pod and its own node always reach each other"),
        Ruling::NotIsolated => writeln!(text, "allowed: no policy isolates it for {direction}"),
        Ruling::Allow { policies } => {
            writeln!(text, "allowed by")?;
            policies
                .iter()
                .try_for_each(|allowed| write_allowed(text, allowed, direction))
        }
        Ruling::DefaultDeny { isolated_by } => {
            writeln!(text, "DENIED: no rule allows it, and it is isolated by")?;
            isolated_by
                .iter()
                .try_for_each(|isolating| write_isolating(text, isolating, direction))
        }
    }
}

fn title(policy: &PolicyName) -> String {
    let generation = policy
        .generation
        .map(|generation| format!(" (generation {generation})"))
        .unwrap_or_default();
    format!("NetworkPolicy {}/{}{generation}", policy.namespace, policy.name)
}

fn write_allowed(text: &mut String, allowed: &Allowed, direction: &str) -> std::fmt::Result {
    let rules: Vec<String> = allowed
        .rules
        .iter()
        .map(|rule| format!("spec.{direction}[{rule}]"))
        .collect();
    writeln!(text, "    {}: {}", title(&allowed.policy), rules.join(", "))
}

fn write_isolating(text: &mut String, isolating: &Isolating, direction: &str) -> std::fmt::Result {
    writeln!(text, "    {}", title(&isolating.policy))?;
    if isolating.misses.is_empty() {
        return writeln!(text, "      it has no {direction} rules");
    }
    for miss in &isolating.misses {
        let why = match (miss.peer_matches, miss.port_matches) {
            (true, false) => "the peer matches, the port does not",
            (false, true) => "the port matches, the peer does not",
            _ => "neither peer nor port match",
        };
        writeln!(text, "      spec.{direction}[{}]: {why}", miss.rule)?;
    }
    Ok(())
}

fn summary(path: &Path, several: bool) -> String {
    let family = match (several, path.dest_ip.is_ipv4()) {
        (false, _) => "",
        (true, true) => " over IPv4",
        (true, false) => " over IPv6",
    };
    let denying: Vec<&str> = path
        .edges
        .iter()
        .filter(|edge| !edge.ruling.allows())
        .map(|edge| match edge.direction {
            Direction::Egress => "the source's egress",
            Direction::Ingress => "the destination's ingress",
        })
        .collect();
    if denying.is_empty() {
        format!("allowed{family}")
    } else {
        format!("denied{family} by {}", denying.join(" and by "))
    }
}
