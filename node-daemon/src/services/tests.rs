// SPDX-License-Identifier: Apache-2.0
//! Each rule of Kubernetes as rows of {objects, fronts on node1 in zone a}.

mod addresses;
mod host_ports;

use std::fmt::Write;

use super::*;

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

/// A Service from the fields of its manifest.
fn parse_service(manifest: &str) -> Result<Option<Service>, String> {
    service(serde_yaml::from_str(manifest).unwrap())
}

/// A slice of the Service `web`, IPv4 unless it says otherwise.
fn parse_slice(manifest: &str) -> Result<Option<Slice>, String> {
    let mut object: k8s_openapi::api::discovery::v1::EndpointSlice = serde_yaml::from_str(manifest).unwrap();
    let labels = object.metadata.labels.get_or_insert_default();
    labels.insert("kubernetes.io/service-name".to_owned(), "web".to_owned());
    if object.address_type.is_empty() {
        object.address_type = "IPv4".to_owned();
    }
    slice(object)
}

fn on_node1(is_translating: bool) -> Services {
    let mut services = Services::new("node1", is_translating);
    services.set_zone(Some("a".into()));
    services
}

fn load(services: &mut Services, manifest: &str, slices: &[&str]) {
    services.set_service(&name("web"), parse_service(manifest).unwrap());
    for (n, slice) in slices.iter().enumerate() {
        services.set_slice(&name(&format!("web-{n}")), parse_slice(slice).unwrap());
    }
}

/// `tcp 10.96.0.1:80 = backends [flags]`, an address itself as `10.96.0.1`.
fn show(key: &FrontKey, front: &Front) -> String {
    let Some((protocol, port)) = key.port else {
        return key.address.to_string();
    };
    let mut text = format!("{protocol:?} {} =", SocketAddr::new(key.address, port)).to_lowercase();
    for backend in &*front.backends {
        write!(text, " {backend}").unwrap();
    }
    if !front.is_translated {
        text.push_str(" [judged]");
    }
    if front.is_address_judged {
        text.push_str(" [address too]");
    }
    if front.is_silent {
        text.push_str(" [silent]");
    }
    if front.affinity_seconds != 0 {
        write!(text, " [stays {} s]", front.affinity_seconds).unwrap();
    }
    text
}

/// What there is after the changes, in order.
fn told(services: &mut Services) -> Vec<String> {
    let fronts = services.take_changes().into_iter().flat_map(|change| change.fronts);
    let there = fronts.filter_map(|(key, front)| Some((key, front?)));
    there
        .collect::<BTreeMap<_, _>>()
        .iter()
        .map(|(key, front)| show(key, front))
        .collect()
}

fn fronts(is_translating: bool, manifest: &str, slices: &[&str]) -> Vec<String> {
    let mut services = on_node1(is_translating);
    load(&mut services, manifest, slices);
    told(&mut services)
}

/// Endpoints by the last part of their addresses.
fn backends(numbers: &str) -> String {
    let shown = numbers.split_whitespace().map(|n| format!(" 10.0.0.{n}:80"));
    shown.collect::<Vec<_>>().concat()
}

const WEB: &str = "{spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}";

#[test]
fn ports_find_their_backends() {
    let two = "{spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}}";
    let dual = "{spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80}]}}";
    let table: [(&str, &str, &[&str], &[&str]); 9] = [
        (
            "one port without a name",
            WEB,
            &["{ports: [{port: 8080}], endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}]}"],
            &["10.96.0.1", "tcp 10.96.0.1:80 = 10.0.0.1:8080 10.0.0.2:8080"],
        ),
        (
            "several ports, told apart by name and protocol",
            two,
            &[
                "{ports: [{name: dns, port: 5353, protocol: UDP}, {name: http, port: 8080}, {name: dns, port: 9},
                {name: metrics, port: 9090}, {name: http}], endpoints: [{addresses: [10.0.0.1]}]}",
            ],
            &[
                "10.96.0.1",
                "tcp 10.96.0.1:80 = 10.0.0.1:8080",
                "udp 10.96.0.1:53 = 10.0.0.1:5353",
            ],
        ),
        (
            "a target port by name, another number in each pod",
            WEB,
            &[
                "{ports: [{port: 8080}], endpoints: [{addresses: [10.0.0.1]}]}",
                "{ports: [{port: 9090}], endpoints: [{addresses: [10.0.0.2]}]}",
            ],
            &["10.96.0.1", "tcp 10.96.0.1:80 = 10.0.0.1:8080 10.0.0.2:9090"],
        ),
        (
            "dual stack, each family with its slices",
            dual,
            &[
                "{ports: [{port: 8080}], endpoints: [{addresses: [10.0.0.1]}]}",
                "{addressType: IPv6, ports: [{port: 8080}], endpoints: [{addresses: ['fd00::1']}]}",
            ],
            &[
                "10.96.0.1",
                "tcp 10.96.0.1:80 = 10.0.0.1:8080",
                "fd00:96::1",
                "tcp [fd00:96::1]:80 = [fd00::1]:8080",
            ],
        ),
        (
            "an endpoint in two slices counts once, and one of its addresses stands for it",
            WEB,
            &[
                "{ports: [{port: 8080}], endpoints: [{addresses: [10.0.0.1]}]}",
                "{ports: [{port: 8080}], endpoints: [{addresses: [10.0.0.1, 10.0.0.9]}]}",
            ],
            &["10.96.0.1", "tcp 10.96.0.1:80 = 10.0.0.1:8080"],
        ),
        (
            "names are no addresses",
            WEB,
            &["{addressType: FQDN, ports: [{port: 8080}], endpoints: [{addresses: [web.example]}]}"],
            &["10.96.0.1", "tcp 10.96.0.1:80 ="],
        ),
        ("no slice", WEB, &[], &["10.96.0.1", "tcp 10.96.0.1:80 ="]),
        (
            "SCTP, the port stays",
            "{spec: {clusterIP: 10.96.0.1, ports: [{port: 80, protocol: SCTP}]}}",
            &["{ports: [{port: 80, protocol: SCTP}], endpoints: [{addresses: [10.0.0.1]}]}"],
            &["10.96.0.1", "sctp 10.96.0.1:80 = 10.0.0.1:80"],
        ),
        (
            "SCTP, the port changes",
            "{spec: {clusterIP: 10.96.0.1, ports: [{port: 80, protocol: SCTP}]}}",
            &["{ports: [{port: 8080, protocol: SCTP}], endpoints: [{addresses: [10.0.0.1]}]}"],
            &["10.96.0.1", "sctp 10.96.0.1:80 = 10.0.0.1:8080 [judged]"],
        ),
    ];
    for (what, manifest, slices, expected) in table {
        assert_eq!(fronts(true, manifest, slices), expected, "{what}");
    }
}

#[test]
fn conditions_decide_who_takes_traffic() {
    let table: [(&str, &[&str], &str); 8] = [
        ("nothing is said", &["{}"], "1"),
        ("ready", &["{ready: true, serving: true, terminating: false}"], "1"),
        ("not ready", &["{ready: false, serving: false}", "{ready: true}"], "2"),
        (
            "serving without being ready and without terminating is nothing",
            &["{ready: false, serving: true, terminating: false}"],
            "",
        ),
        (
            "terminating while another is ready",
            &["{ready: false, serving: true, terminating: true}", "{ready: true}"],
            "2",
        ),
        (
            "only terminating ones, of which one serves",
            &[
                "{ready: false, serving: true, terminating: true}",
                "{ready: false, serving: false, terminating: true}",
            ],
            "1",
        ),
        (
            "terminating, serving left out",
            &["{ready: false, terminating: true}"],
            "1",
        ),
        (
            "publishNotReadyAddresses has them ready while they terminate",
            &["{ready: true, serving: false, terminating: true}", "{ready: true}"],
            "1 2",
        ),
    ];
    for (what, conditions, expected) in table {
        let endpoints = (1..).zip(conditions);
        let endpoints: Vec<String> = endpoints
            .map(|(n, conditions)| format!("{{addresses: [10.0.0.{n}], conditions: {conditions}}}"))
            .collect();
        let slice = format!("{{ports: [{{port: 80}}], endpoints: [{}]}}", endpoints.join(", "));
        let expected = backends(expected);
        let found = fronts(true, WEB, &[&slice]);
        assert_eq!(found[1], format!("tcp 10.96.0.1:80 ={expected}"), "{what}");
    }
}

#[test]
fn of_an_endpoint_in_two_slices_the_one_that_is_ready_counts() {
    let ready = "{ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]}";
    let going = "{ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1],
        conditions: {ready: false, serving: true, terminating: true}}, {addresses: [10.0.0.2]}]}";
    for slices in [[ready, going], [going, ready]] {
        assert_eq!(
            fronts(true, WEB, &slices)[1],
            "tcp 10.96.0.1:80 = 10.0.0.1:80 10.0.0.2:80"
        );
    }
}

#[test]
fn local_traffic_stays_on_the_node() {
    let local = "{spec: {clusterIP: 10.96.0.1, internalTrafficPolicy: Local, ports: [{port: 80}]}}";
    let going = "conditions: {ready: false, serving: true, terminating: true}";
    let table = [
        (
            "{addresses: [10.0.0.1], nodeName: node1}, {addresses: [10.0.0.2], nodeName: node2}",
            "= 10.0.0.1:80",
        ),
        (
            "{addresses: [10.0.0.2], nodeName: node2}, {addresses: [10.0.0.3]}",
            "= [silent]",
        ),
        ("", "="),
        (
            &format!("{{addresses: [10.0.0.1], nodeName: node1, {going}}}, {{addresses: [10.0.0.2], nodeName: node2}}"),
            "= 10.0.0.1:80",
        ),
        // Hints are for those who may leave the node.
        (
            "{addresses: [10.0.0.1], nodeName: node1, hints: {forZones: [{name: b}]}},
             {addresses: [10.0.0.2], nodeName: node2, hints: {forZones: [{name: a}]}}",
            "= 10.0.0.1:80",
        ),
    ];
    for (endpoints, expected) in table {
        let slice = format!("{{ports: [{{port: 80}}], endpoints: [{endpoints}]}}");
        let found = fronts(true, local, &[&slice]);
        assert_eq!(found[1], format!("tcp 10.96.0.1:80 {expected}"), "{endpoints}");
    }
}

#[test]
fn hints_keep_traffic_near() {
    let zone = |zone: &str| format!("hints: {{forZones: [{{name: {zone}}}]}}");
    let node =
        |node: &str, zone: &str| format!("hints: {{forNodes: [{{name: {node}}}], forZones: [{{name: {zone}}}]}}");
    let table = [
        ("each its zone", vec![zone("a"), zone("b")], "1"),
        ("none for this zone", vec![zone("b"), zone("c")], "1 2"),
        ("one has no hint", vec![zone("a"), String::new()], "1 2"),
        (
            "one without a hint is not ready",
            vec![zone("a"), zone("b"), "conditions: {ready: false}".to_owned()],
            "1",
        ),
        (
            "the node before the zone",
            vec![node("node1", "a"), node("node2", "a")],
            "1",
        ),
        (
            "none for this node, then the zone",
            vec![node("node2", "a"), node("node3", "b")],
            "1",
        ),
        (
            "one without a node, then the zone",
            vec![node("node1", "a"), zone("a")],
            "1 2",
        ),
        (
            "neither node nor zone",
            vec![node("node2", "b"), node("node3", "b")],
            "1 2",
        ),
        (
            "where nothing is ready, hints count no more",
            vec![
                format!(
                    "{}, conditions: {{ready: false, serving: true, terminating: true}}",
                    zone("a")
                ),
                format!(
                    "{}, conditions: {{ready: false, serving: true, terminating: true}}",
                    zone("b")
                ),
            ],
            "1 2",
        ),
    ];
    for (what, endpoints, expected) in table {
        let endpoints: Vec<String> = (1..)
            .zip(endpoints)
            .map(|(n, more)| format!("{{addresses: [10.0.0.{n}], {more}}}"))
            .collect();
        let slice = format!("{{ports: [{{port: 80}}], endpoints: [{}]}}", endpoints.join(", "));
        let expected = backends(expected);
        assert_eq!(
            fronts(true, WEB, &[&slice])[1],
            format!("tcp 10.96.0.1:80 ={expected}"),
            "{what}"
        );
    }
}

#[test]
fn a_node_without_a_zone_takes_no_zone_hints_until_it_has_one() {
    let mut services = Services::new("node1", true);
    let slice = "{ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1], hints: {forZones: [{name: a}]}},
        {addresses: [10.0.0.2], hints: {forZones: [{name: b}]}}]}";
    load(&mut services, WEB, &[slice]);
    assert_eq!(told(&mut services)[1], "tcp 10.96.0.1:80 = 10.0.0.1:80 10.0.0.2:80");
    services.set_zone(Some("b".into()));
    assert_eq!(told(&mut services)[1], "tcp 10.96.0.1:80 = 10.0.0.2:80");
}

#[test]
fn what_kube_proxy_keeps_is_judged_by_all_backends() {
    let slice = "{ports: [{port: 8080}], endpoints: [
        {addresses: [10.0.0.1], nodeName: node1, hints: {forZones: [{name: a}]}},
        {addresses: [10.0.0.2], nodeName: node2, hints: {forZones: [{name: b}]}}]}";
    let all = "10.0.0.1:8080 10.0.0.2:8080 [judged]";
    let balancer = "{spec: {type: LoadBalancer, clusterIPs: [10.96.0.1], externalTrafficPolicy: Local,
          externalIPs: [192.0.2.7, '2001:db8::7'], ports: [{port: 80, nodePort: 30080}]},
        status: {loadBalancer: {ingress: [{ip: 192.0.2.1, ipMode: VIP}, {ip: 192.0.2.2, ipMode: Proxy},
          {ip: 192.0.2.3}, {hostname: lb.example}]}}}";
    assert_eq!(
        fronts(true, balancer, &[slice]),
        [
            format!("tcp 0.0.0.0:30080 = {all}"),
            "10.96.0.1".to_owned(),
            "tcp 10.96.0.1:80 = 10.0.0.1:8080".to_owned(),
            format!("tcp 192.0.2.1:80 = {all}"),
            format!("tcp 192.0.2.3:80 = {all}"),
            format!("tcp 192.0.2.7:80 = {all} [address too]"),
        ]
    );
    assert_eq!(
        fronts(false, WEB, &[slice]),
        [format!("tcp 10.96.0.1:80 = {all}")],
        "with translation off"
    );
    let local = "{spec: {clusterIP: 10.96.0.1, sessionAffinity: ClientIP, internalTrafficPolicy: Local,
        ports: [{port: 80}]}}";
    assert_eq!(
        fronts(false, local, &[slice]),
        ["tcp 10.96.0.1:80 = 10.0.0.1:8080 [judged]"]
    );
    // A node where none but a terminating one is has it chosen, whatever is ready elsewhere.
    let terminating = "{ports: [{port: 8080}], endpoints: [
        {addresses: [10.0.0.1], nodeName: node1},
        {addresses: [10.0.0.2], nodeName: node2, conditions: {ready: false, serving: true, terminating: true}},
        {addresses: [10.0.0.3], nodeName: node2, conditions: {ready: false, serving: false, terminating: true}}]}";
    let found = fronts(true, balancer, &[terminating]);
    assert_eq!(found[0], format!("tcp 0.0.0.0:30080 = {all}"));
    assert_eq!(found[2], "tcp 10.96.0.1:80 = 10.0.0.1:8080");
    assert_eq!(found[3], format!("tcp 192.0.2.1:80 = {all}"));
    let v6 = "{spec: {type: NodePort, clusterIPs: ['fd00:96::1'], ports: [{port: 80, nodePort: 30080}]}}";
    assert_eq!(
        fronts(true, v6, &[slice]),
        ["tcp [::]:30080 = [judged]", "fd00:96::1", "tcp [fd00:96::1]:80 ="]
    );
}

#[test]
fn affinity_has_its_timeout() {
    for (config, expected) in [
        ("sessionAffinity: None", ""),
        ("sessionAffinity: ClientIP", " [stays 10800 s]"),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}",
            " [stays 1 s]",
        ),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}",
            " [stays 86400 s]",
        ),
    ] {
        let manifest = format!("{{spec: {{clusterIP: 10.96.0.1, {config}, ports: [{{port: 80}}]}}}}");
        assert_eq!(fronts(true, &manifest, &[])[1], format!("tcp 10.96.0.1:80 ={expected}"));
    }
}

#[test]
fn what_is_not_ours_makes_no_front() {
    for manifest in [
        "{spec: {clusterIP: None, clusterIPs: [None], ports: [{port: 80}]}}",
        "{spec: {type: ExternalName, externalName: example.org, ports: [{port: 80}]}}",
        "{spec: {type: ExternalName, clusterIP: 10.96.0.1, externalName: example.org}}",
        "{spec: {ports: [{port: 80}]}}",
        "{metadata: {labels: {service.kubernetes.io/service-proxy-name: other}},
          spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}",
    ] {
        assert_eq!(parse_service(manifest), Ok(None), "{manifest}");
    }
    let headless = "{metadata: {labels: {service.kubernetes.io/headless: ''}}, ports: [{port: 80}],
        endpoints: [{addresses: [10.0.0.1]}]}";
    assert_eq!(parse_slice(headless), Ok(None));
    let of_nobody = serde_yaml::from_str("{addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}").unwrap();
    assert_eq!(slice(of_nobody), Ok(None));
}

#[test]
fn what_cannot_be_used_is_told_by_its_field() {
    let spec = |fields: &str| parse_service(&format!("{{spec: {{{fields}}}}}")).unwrap_err();
    let endpoints = |fields: &str| parse_slice(&format!("{{{fields}}}")).unwrap_err();
    for (error, expected) in [
        (
            spec("clusterIP: 10.96.0.1, ports: [{port: 70000}]"),
            "spec.ports.port: 70000 is not in 1..=65535",
        ),
        (
            spec("clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: -1}]"),
            "spec.ports.nodePort: -1 is not in 1..=65535",
        ),
        (
            spec("clusterIP: 10.96.0.1, ports: [{port: 80, protocol: QUIC}]"),
            "spec.ports.protocol: QUIC is none of TCP, UDP and SCTP",
        ),
        (spec("clusterIP: ten"), "spec.clusterIPs: \"ten\" is not an IP address"),
        (
            spec("clusterIP: 127.0.0.1"),
            "spec.clusterIPs: 127.0.0.1 can be no Service's",
        ),
        (
            spec("clusterIP: '::ffff:10.96.0.1'"),
            "spec.clusterIPs: ::ffff:10.96.0.1 can be no Service's",
        ),
        (
            spec("clusterIP: 10.96.0.1, externalIPs: [192.0.2]"),
            "spec.externalIPs: \"192.0.2\" is not an IP address",
        ),
        (
            spec(
                "clusterIP: 10.96.0.1, sessionAffinity: ClientIP,
                 sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            ),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not in 1..=86400",
        ),
        (
            endpoints("endpoints: [{addresses: ['fd00::1']}]"),
            "endpoints.addresses: fd00::1 is not of the slice's addressType",
        ),
        (
            endpoints("endpoints: [{addresses: [224.0.0.1]}]"),
            "endpoints.addresses: 224.0.0.1 can be no Service's",
        ),
        (
            endpoints("endpoints: [{addresses: []}]"),
            "endpoints.addresses: is empty",
        ),
        (
            endpoints("ports: [{port: 0}], endpoints: []"),
            "ports.port: 0 is not in 1..=65535",
        ),
        (
            endpoints("addressType: MAC"),
            "addressType: MAC is none of IPv4, IPv6 and FQDN",
        ),
    ] {
        assert_eq!(error, expected);
    }
}

#[test]
fn only_what_changed_is_told() {
    let mut services = on_node1(true);
    let slice = "{ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1]}]}";
    load(&mut services, WEB, &[slice]);
    services.set_service(
        &name("other"),
        parse_service("{spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}").unwrap(),
    );
    assert_eq!(told(&mut services).len(), 4);
    load(&mut services, WEB, &[slice]);
    assert_eq!(services.take_changes(), [], "the same again");

    let moved = "{ports: [{port: 80}], endpoints: [{addresses: [10.0.0.2]}]}";
    load(&mut services, WEB, &[moved]);
    assert_eq!(told(&mut services), ["10.96.0.1", "tcp 10.96.0.1:80 = 10.0.0.2:80"]);

    // A slice that another Service's name is put on leaves the first one.
    let mut slice = parse_slice(moved).unwrap().unwrap();
    slice.service = "other".into();
    services.set_slice(&name("web-0"), Some(slice));
    assert_eq!(
        told(&mut services),
        [
            "10.96.0.1",
            "tcp 10.96.0.1:80 =",
            "10.96.0.2",
            "tcp 10.96.0.2:80 = 10.0.0.2:80"
        ]
    );
}

#[test]
fn a_list_that_does_not_name_them_takes_them_away() {
    let mut services = on_node1(true);
    let slice = "{ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1]}]}";
    load(&mut services, WEB, &[slice]);
    services.take_changes();
    services.retain_slices(|_| false);
    assert_eq!(told(&mut services)[1], "tcp 10.96.0.1:80 =");
    services.retain_services(|_| false);
    let changes = services.take_changes();
    assert!(changes[0].fronts.len() == 2 && changes[0].fronts.values().all(Option::is_none));
}

#[test]
fn what_was_refused_is_told_again_as_it_is_by_then() {
    let mut services = on_node1(true);
    load(&mut services, WEB, &[]);
    let refused = services.take_changes().remove(0);
    services.refuse(refused);
    assert_eq!(services.take_changes(), [], "not before it is asked for");
    services.set_service(&name("web"), None);
    let gone = services.take_changes().remove(0);
    assert_eq!(gone.fronts.len(), 2);
    services.refuse(gone);
    services.retry();
    let again = services.take_changes().remove(0);
    assert!(
        again.fronts.len() == 2 && again.fronts.values().all(Option::is_none),
        "{again:?}"
    );
    services.retry();
    assert_eq!(services.take_changes(), []);
}
