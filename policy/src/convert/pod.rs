// SPDX-License-Identifier: Apache-2.0
//! Pods: what policy needs of them, and which of them it knows.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod as PodObject, PodSpec, PodStatus};

use super::port;
use crate::model::{NamedPort, ObjectName, Pod};

/// The condition by which the pod's node says which addresses it was given, before kubelet writes them: its message
/// is a list of them, separated by commas. Unlike an annotation it cannot be written by whoever may create pods: only
/// `pods/status` takes it (docs/decisions/0008-addresses-as-a-condition.md).
pub const ADDRESSES_CONDITION: &str = "wardline.io/AddressesAssigned";

/// A pod as policy sees it. None for one that policy does not reach: on the host network (it wears its node's address),
/// finished (its address may be another's by now), or not yet given a node. A pod that has no address yet is known, since
/// its policy must be in force before its first packet.
pub fn pod(object: &PodObject) -> Option<(ObjectName, Pod)> {
    let spec = object.spec.as_ref()?;
    let status = object.status.as_ref();
    let finished = matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
    if finished || spec.host_network == Some(true) {
        return None;
    }
    let node = spec.node_name.as_deref().filter(|node| !node.is_empty())?;
    let name = ObjectName::new(object.metadata.namespace.as_deref()?, object.metadata.name.as_deref()?);
    let pod = Pod {
        labels: object.metadata.labels.clone().unwrap_or_default(),
        addresses: status.map(addresses).unwrap_or_default(),
        node: node.into(),
        ports: ports(spec),
    };
    Some((name, pod))
}

/// In the order of the status, its first being the primary one; what is no address is left out. What the node
/// announced counts until kubelet has written what it is.
fn addresses(status: &PodStatus) -> Vec<IpAddr> {
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let written = parse(listed.chain(status.pod_ip.as_deref()));
    if !written.is_empty() {
        return written;
    }
    let mut conditions = status.conditions.iter().flatten();
    let announced = conditions.find(|condition| condition.type_ == ADDRESSES_CONDITION && condition.status == "True");
    let message = announced.and_then(|condition| condition.message.as_deref());
    parse(message.unwrap_or_default().split(','))
}

fn parse<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts {
        if let Ok(address) = text.parse::<IpAddr>().map(|address| address.to_canonical())
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses
}

/// The named ports of the containers that serve while the pod runs: an init container is one of them if it is
/// restarted always (a sidecar, KEP-753).
fn ports(spec: &PodSpec) -> Vec<NamedPort> {
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten().filter(sidecar));
    let mut ports: Vec<NamedPort> = Vec::new();
    for source in containers.flat_map(|container| container.ports.iter().flatten()) {
        let (Some(name), Ok(protocol), Ok(port)) = (
            source.name.as_deref(),
            port::protocol(source.protocol.as_deref()),
            u16::try_from(source.container_port),
        ) else {
            continue;
        };
        let named = NamedPort {
            name: name.into(),
            protocol,
            port,
        };
        if port != 0 && !name.is_empty() && !ports.contains(&named) {
            ports.push(named);
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn read(yaml: &str) -> Option<(ObjectName, Pod)> {
        pod(&serde_yaml::from_str(yaml).unwrap())
    }

    const NAME: &str = "metadata: {namespace: a, name: p, labels: {app: web}}";

    #[test]
    fn those_that_policy_does_not_reach() {
        for (why, rest) in [
            (
                "host network",
                "spec: {containers: [], nodeName: n1, hostNetwork: true}",
            ),
            ("not scheduled", "spec: {containers: []}"),
            ("not scheduled", "spec: {containers: [], nodeName: ''}"),
            (
                "succeeded",
                "spec: {containers: [], nodeName: n1}, status: {phase: Succeeded}",
            ),
            (
                "failed",
                "spec: {containers: [], nodeName: n1}, status: {phase: Failed}",
            ),
            ("no spec", "status: {podIP: 10.0.0.1}"),
        ] {
            assert_eq!(read(&format!("{{{NAME}, {rest}}}")), None, "{why}");
        }
    }

    #[test]
    fn addresses_of_both_families_once() {
        for (status, expected) in [
            ("{}", vec![]),
            ("{phase: Pending}", vec![]),
            ("{podIP: 10.0.0.1}", vec!["10.0.0.1"]),
            (
                "{podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}",
                vec!["10.0.0.1", "fd00::1"],
            ),
            (
                "{podIPs: [{ip: ''}, {ip: nonsense}, {ip: '::ffff:10.0.0.2'}]}",
                vec!["10.0.0.2"],
            ),
            (
                "{conditions: [{type: wardline.io/AddressesAssigned, status: 'True', message: '10.0.0.3,fd00::3'}]}",
                vec!["10.0.0.3", "fd00::3"],
            ),
            (
                "{conditions: [{type: wardline.io/AddressesAssigned, status: 'False', message: '10.0.0.3'}]}",
                vec![],
            ),
            (
                "{podIP: 10.0.0.4, conditions: [{type: wardline.io/AddressesAssigned, status: 'True', message: 10.0.0.3}]}",
                vec!["10.0.0.4"],
            ),
        ] {
            let (name, pod) = read(&format!(
                "{{{NAME}, spec: {{containers: [], nodeName: n1}}, status: {status}}}"
            ))
            .unwrap();
            let expected: Vec<IpAddr> = expected.into_iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(pod.addresses, expected, "{status}");
            assert_eq!((name.to_string().as_str(), &*pod.node), ("a/p", "n1"));
            assert_eq!(pod.labels["app"], "web");
        }
    }

    #[test]
    fn named_ports_of_what_serves() {
        let (_, pod) = read(
            "
metadata: {namespace: a, name: p}
spec:
  nodeName: n1
  containers:
  - {name: a, ports: [{name: http, containerPort: 80}, {containerPort: 81}, {name: dns, containerPort: 53, protocol: UDP}]}
  - {name: b, ports: [{name: http, containerPort: 8080}, {name: http, containerPort: 80}]}
  initContainers:
  - {name: setup, ports: [{name: setup, containerPort: 1}]}
  - {name: proxy, restartPolicy: Always, ports: [{name: admin, containerPort: 9000, protocol: SCTP}]}
",
        )
        .unwrap();
        let ports: Vec<_> = pod.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
        let expected = [
            ("http", Protocol::Tcp, 80),
            ("dns", Protocol::Udp, 53),
            ("http", Protocol::Tcp, 8080),
            ("admin", Protocol::Sctp, 9000),
        ];
        assert_eq!(ports, expected);
    }
}
