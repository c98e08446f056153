// SPDX-License-Identifier: Apache-2.0
//! Ports of the node that lead to its pods.

use super::*;

const LOCAL: [&str; 6] = ["127.0.0.1", "::1", "192.0.2.1", "10.0.0.254", "2001:db8::1", "fe80::1"];

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn on_node1_with_addresses() -> Services {
    let mut services = on_node1(true);
    services.set_local(&addresses(&LOCAL).into_iter().collect());
    services
}

/// A pod from the fields of its spec.
fn set_pod(services: &mut Services, pod: &str, ips: &[&str], spec: &str) {
    let ports = host_ports(&serde_yaml::from_str(spec).unwrap());
    let host_ports = HostPorts {
        addresses: addresses(ips),
        ports,
    };
    services.set_host_ports(&name(pod), Some(host_ports));
}

/// One container with these ports.
fn ports(ports: &str) -> String {
    format!("{{containers: [{{name: c, ports: [{ports}]}}]}}")
}

#[test]
fn each_leads_from_the_nodes_addresses_to_the_pod() {
    let both = ["10.0.0.1", "fd00::1"];
    let table: [(&str, &[&str], &str, &[&str]); 9] = [
        (
            "at each address that a pod's packets come to",
            &both,
            "{containerPort: 80, hostPort: 8080}",
            &[
                "tcp 10.0.0.254:8080 = 10.0.0.1:80 [judged]",
                "tcp 192.0.2.1:8080 = 10.0.0.1:80 [judged]",
                "tcp [2001:db8::1]:8080 = [fd00::1]:80 [judged]",
            ],
        ),
        (
            "that has the pod's family",
            &["fd00::1"],
            "{containerPort: 80, hostPort: 8080}",
            &["tcp [2001:db8::1]:8080 = [fd00::1]:80 [judged]"],
        ),
        ("of a pod that has none yet", &[], "{containerPort: 80, hostPort: 8080}", &[]),
        (
            "only that which it names",
            &both,
            "{containerPort: 53, hostPort: 53, protocol: UDP, hostIP: 192.0.2.1}",
            &["udp 192.0.2.1:53 = 10.0.0.1:53 [judged]"],
        ),
        (
            "written in another way",
            &both,
            "{containerPort: 53, hostPort: 53, protocol: SCTP, hostIP: '::ffff:192.0.2.1'}",
            &["sctp 192.0.2.1:53 = 10.0.0.1:53 [judged]"],
        ),
        (
            "not where it is somebody else's, or no pod's packet comes to it",
            &both,
            "{containerPort: 80, hostPort: 80, hostIP: 198.51.100.1}, {containerPort: 81, hostPort: 81, hostIP: 127.0.0.1},
             {containerPort: 82, hostPort: 82, hostIP: 'fe80::1'}",
            &[],
        ),
        (
            "all, where the address is left open",
            &["10.0.0.1"],
            "{containerPort: 80, hostPort: 80, hostIP: 0.0.0.0}, {containerPort: 81, hostPort: 81, hostIP: ''}",
            &[
                "tcp 10.0.0.254:80 = 10.0.0.1:80 [judged]",
                "tcp 10.0.0.254:81 = 10.0.0.1:81 [judged]",
                "tcp 192.0.2.1:80 = 10.0.0.1:80 [judged]",
                "tcp 192.0.2.1:81 = 10.0.0.1:81 [judged]",
            ],
        ),
        (
            "one port twice",
            &["10.0.0.1"],
            "{containerPort: 80, hostPort: 80, hostIP: 192.0.2.1}, {containerPort: 81, hostPort: 80, hostIP: 192.0.2.1}",
            &["tcp 192.0.2.1:80 = 10.0.0.1:80 10.0.0.1:81 [judged]"],
        ),
        (
            "no port of the node, or none that there is",
            &both,
            "{containerPort: 80}, {containerPort: 80, hostPort: 0}, {containerPort: 80, hostPort: 80, protocol: QUIC}",
            &[],
        ),
    ];
    for (what, ips, text, expected) in table {
        let mut services = on_node1_with_addresses();
        set_pod(&mut services, "web", ips, &ports(text));
        assert_eq!(told(&mut services), expected, "{what}");
    }
}

#[test]
fn containers_that_serve_have_them() {
    let mut services = on_node1_with_addresses();
    let spec = "{containers: [{name: a, ports: [{containerPort: 1, hostPort: 1}]}, {name: b, ports: [{containerPort: 2, hostPort: 2}]}],
        initContainers: [{name: setup, ports: [{containerPort: 3, hostPort: 3}]},
          {name: sidecar, restartPolicy: Always, ports: [{containerPort: 4, hostPort: 4}]}]}";
    set_pod(&mut services, "web", &["fd00::1"], spec);
    let expected = [1, 2, 4].map(|port| format!("tcp [2001:db8::1]:{port} = [fd00::1]:{port} [judged]"));
    assert_eq!(told(&mut services), expected);
}

#[test]
fn they_come_and_go_with_the_pod_and_the_nodes_addresses() {
    let mut services = on_node1_with_addresses();
    services.set_local(&addresses(&["192.0.2.1"]).into_iter().collect());
    let spec = ports("{containerPort: 80, hostPort: 8080}");
    set_pod(&mut services, "web", &["10.0.0.1"], &spec);
    assert_eq!(told(&mut services), ["tcp 192.0.2.1:8080 = 10.0.0.1:80 [judged]"]);
    set_pod(&mut services, "web", &["10.0.0.1"], &spec);
    assert_eq!(services.take_changes(), [], "the same again");
    services.set_local(&addresses(&["192.0.2.9"]).into_iter().collect());
    let changes = services.take_changes();
    let fronts: Vec<_> = changes.iter().flat_map(|change| &change.fronts).collect();
    let shown: Vec<_> = fronts
        .iter()
        .map(|(key, front)| (key.address.to_string(), front.is_some()))
        .collect();
    assert_eq!(shown, [("192.0.2.1".to_owned(), false), ("192.0.2.9".to_owned(), true)]);
    services.set_host_ports(&name("web"), None);
    let changes = services.take_changes();
    assert!(
        changes
            .iter()
            .flat_map(|change| change.fronts.values())
            .all(Option::is_none)
    );
    assert!(services.known.is_empty() && services.fronts.is_empty(), "{services:?}");
}

#[test]
fn pods_and_services_that_share_one_are_judged_together() {
    let mut services = on_node1(true);
    services.set_local(&addresses(&["192.0.2.1"]).into_iter().collect());
    // A Service and a pod may have one name.
    let slice = "{ports: [{port: 80}], endpoints: [{addresses: [10.0.0.9]}]}";
    let service = "{spec: {clusterIP: 10.96.0.1, externalIPs: [192.0.2.1], ports: [{port: 30080, nodePort: 30080}]}}";
    let spec = ports("{containerPort: 80, hostPort: 30080}");
    set_pod(&mut services, "web", &["10.0.0.1"], &spec);
    set_pod(&mut services, "other", &["10.0.0.2"], &spec);
    assert_eq!(
        told(&mut services),
        ["tcp 192.0.2.1:30080 = 10.0.0.1:80 10.0.0.2:80 [judged]"]
    );
    load(&mut services, service, &[slice]);
    let all = "tcp 192.0.2.1:30080 = 10.0.0.1:80 10.0.0.2:80 10.0.0.9:80 [judged]".to_owned();
    assert!(told(&mut services).contains(&all));

    // The NodePort alone is at the node's address too.
    load(
        &mut services,
        "{spec: {clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}}",
        &[],
    );
    assert!(told(&mut services).contains(&all));
    load(&mut services, WEB, &[]);
    let pods = "tcp 192.0.2.1:30080 = 10.0.0.1:80 10.0.0.2:80 [judged]".to_owned();
    assert!(told(&mut services).contains(&pods));
    services.set_host_ports(&name("web"), None);
    assert_eq!(told(&mut services), ["tcp 192.0.2.1:30080 = 10.0.0.2:80 [judged]"]);
    let key = FrontKey {
        address: "192.0.2.1".parse().unwrap(),
        port: Some((wardline_policy::model::Protocol::Tcp, 30_080)),
    };
    assert_eq!(services.owner(&key), None, "no Service is named for it");
}

#[test]
fn a_cluster_ip_that_the_node_serves_itself_has_them() {
    let mut services = on_node1(true);
    load(&mut services, WEB, &[]);
    let spec = ports("{containerPort: 80, hostPort: 80}");
    set_pod(&mut services, "dns", &["10.0.0.1"], &spec);
    assert_eq!(told(&mut services), ["10.96.0.1", "tcp 10.96.0.1:80 ="]);
    services.set_local(&addresses(&["10.96.0.1"]).into_iter().collect());
    assert_eq!(told(&mut services), ["tcp 10.96.0.1:80 = 10.0.0.1:80 [judged]"]);
}
