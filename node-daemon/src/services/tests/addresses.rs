// SPDX-License-Identifier: Apache-2.0
//! Addresses that are somebody else's, several Services', or nobody's.

use super::*;

#[test]
fn an_address_that_is_the_nodes_own_is_no_front() {
    let mut services = on_node1(true);
    load(&mut services, WEB, &[]);
    let other = "{spec: {clusterIP: 10.96.0.2, externalIPs: [192.0.2.1], ports: [{port: 80, nodePort: 30080}]}}";
    services.set_service(&name("other"), parse_service(other).unwrap());
    assert_eq!(told(&mut services).len(), 6);
    services.set_local(&["10.96.0.1", "192.0.2.1"].map(|ip| ip.parse().unwrap()).into());
    let changes = services.take_changes();
    let web = changes.iter().find(|change| change.service == name("web")).unwrap();
    assert!(
        web.fronts.len() == 2 && web.fronts.values().all(Option::is_none),
        "{web:?}"
    );
    // An external address of the node is still the Service's: kube-proxy takes its traffic.
    let other = changes.iter().find(|change| change.service == name("other")).unwrap();
    assert!(other.fronts.values().all(Option::is_some), "{other:?}");

    services.set_local(&BTreeSet::new());
    assert!(told(&mut services).contains(&"tcp 10.96.0.1:80 =".to_owned()));
}

#[test]
fn an_external_address_takes_no_cluster_ip_away() {
    let mut services = on_node1(true);
    let slice = "{ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1]}]}";
    load(&mut services, WEB, &[slice]);
    let thief = "{spec: {clusterIP: 10.96.0.66, externalIPs: [10.96.0.1, 192.0.2.1], ports: [{port: 80}]}}";
    for service in ["a-thief", "z-thief"] {
        services.set_service(&name(service), parse_service(thief).unwrap());
    }
    let found = told(&mut services);
    assert!(
        found.contains(&"tcp 10.96.0.1:80 = 10.0.0.1:80".to_owned()),
        "{found:?}"
    );
    services.set_service(&name("web"), None);
    let found = told(&mut services);
    let left = ["tcp 10.96.0.1:80 = [judged] [address too]"];
    assert_eq!(found, left, "what is left is the thieves'");
}

#[test]
fn services_that_share_an_external_address_are_judged_together() {
    let mut services = on_node1(true);
    let shared = |ip| format!("{{spec: {{clusterIP: {ip}, externalIPs: [192.0.2.1], ports: [{{port: 80}}]}}}}");
    let slice = "{ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1]}]}";
    load(&mut services, &shared("10.96.0.1"), &[slice]);
    services.set_service(&name("other"), parse_service(&shared("10.96.0.2")).unwrap());
    let mut slice = parse_slice("{ports: [{port: 80}], endpoints: [{addresses: [10.0.0.2]}]}")
        .unwrap()
        .unwrap();
    slice.service = "other".into();
    services.set_slice(&name("other-0"), Some(slice));
    let both = "tcp 192.0.2.1:80 = 10.0.0.1:80 10.0.0.2:80 [judged]";
    assert!(told(&mut services).contains(&format!("{both} [address too]")));
    // Its load balancer says that the address is one of the cluster's.
    let balanced = "{spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]},
        status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}}";
    services.set_service(&name("other"), parse_service(balanced).unwrap());
    assert!(told(&mut services).contains(&both.to_owned()));
    services.set_service(&name("other"), None);
    let alone = ["tcp 192.0.2.1:80 = 10.0.0.1:80 [judged] [address too]"];
    assert_eq!(told(&mut services), alone);
}

#[test]
fn an_address_that_is_no_front_leaves_the_rest_of_its_service_alone() {
    let manifest =
        "{spec: {clusterIP: 10.96.0.1, externalIPs: [0.0.0.0, 239.1.1.1, '::ffff:192.0.2.1'], ports: [{port: 80}]},
        status: {loadBalancer: {ingress: [{ip: 127.0.0.1}, {ip: '::'}, {ip: '::ffff:127.0.0.1'}, {ip: 192.0.2.2}]}}}";
    assert_eq!(
        fronts(true, manifest, &[]),
        [
            "10.96.0.1",
            "tcp 10.96.0.1:80 =",
            "tcp 192.0.2.1:80 = [judged] [address too]",
            "tcp 192.0.2.2:80 = [judged]"
        ]
    );
}
