// SPDX-License-Identifier: Apache-2.0
//! `wardline policy eval` over the files of `data/`, as it is typed.

mod shell;

use shell::wardline;

const SHOP: &str = "-f tests/data/shop.yaml";

/// The last lines and the exit code.
fn answers(question: &str, lines: usize) -> (String, u8) {
    let (text, code) = wardline(&format!("policy eval {question} {SHOP}"), "");
    let all: Vec<&str> = text.lines().collect();
    (all[all.len().saturating_sub(lines)..].join("\n"), code)
}

#[test]
fn verdicts() {
    for (question, expected, code) in [
        (
            "--from shop/web --to shop/db --port 5432",
            "allowed over IPv4\nallowed over IPv6",
            0,
        ),
        ("--from shop/web --to 10.244.1.9 --port 5432", "\nallowed", 0),
        ("--from 10.244.0.7 --to shop/db --port 5432", "\nallowed", 0),
        (
            "--from shop/web --to shop/db --port 80",
            "denied over IPv4 by the destination's ingress\ndenied over IPv6 by the destination's ingress",
            1,
        ),
        // One family may differ from the other.
        (
            "--from shop/web --to shop/db --port 22",
            "denied over IPv4 by the destination's ingress\nallowed over IPv6",
            1,
        ),
        ("--from shop/six --to shop/db --port 22", "\nallowed", 0),
        // A named port is of its protocol.
        (
            "--from shop/web --to fd00::9 --port udp/5432",
            "\ndenied by the destination's ingress",
            1,
        ),
        (
            "--from shop/web --to fd00::9 --protocol icmp",
            "\ndenied by the destination's ingress",
            1,
        ),
        // Both edges are asked, and either is enough.
        (
            "--from shop/batch --to shop/db --port 5432",
            "\ndenied by the source's egress and by the destination's ingress",
            1,
        ),
        (
            "--from shop/batch --to shop/web --port 80",
            "\ndenied by the source's egress",
            1,
        ),
        (
            "--from shop/web --to shop/batch --port 80",
            "\ndenied by the destination's ingress",
            1,
        ),
        (
            "--from shop/batch --to 203.0.113.9 --port udp/53",
            "\ndenied by the source's egress",
            1,
        ),
        ("--from shop/web --to 203.0.113.9 --port 443", "\nallowed", 0),
        ("--from 203.0.113.9 --to 203.0.113.10 --port 443", "\nallowed", 0),
        // A pod and itself, a pod and its node: whatever policies say.
        ("--from shop/batch --to shop/batch --port 80", "\nallowed", 0),
        ("--from shop/batch --to 10.244.1.8 --protocol icmp", "\nallowed", 0),
        ("--from ops/agent --to shop/db --port 80", "\nallowed", 0),
        ("--from shop/batch --to ops/agent --port 80", "\nallowed", 0),
        ("--from shop/batch --to 192.168.0.2 --port 80", "\nallowed", 0),
        (
            "--from shop/batch --to 192.168.0.1 --port 80",
            "\ndenied by the source's egress",
            1,
        ),
        // An address alone is not the node.
        (
            "--from 192.168.0.2 --to shop/batch --port 80",
            "masqueraded ones\ndenied by the destination's ingress",
            1,
        ),
    ] {
        let (text, got) = answers(question, 2);
        assert!(text.ends_with(expected), "{question}\n{text}");
        assert_eq!(got, code, "{question}\n{text}");
    }
}

#[test]
fn every_rule_that_misses_says_why() {
    let (text, code) = wardline(
        &format!("policy eval --from shop/batch --to shop/db --port 5432 {SHOP}"),
        "",
    );
    let expected = "\
shop/batch (10.244.1.8, node2) -> shop/db (10.244.1.9, node2), tcp/5432
  egress of shop/batch: DENIED: no rule allows it, and it is isolated by
    NetworkPolicy shop/closed
      it has no egress rules
  ingress of shop/db: DENIED: no rule allows it, and it is isolated by
    NetworkPolicy shop/db-takes-all-of-ipv6
      spec.ingress[0]: neither peer nor port match
    NetworkPolicy shop/db-takes-web (generation 3)
      spec.ingress[0]: the port matches, the peer does not
      spec.ingress[1]: neither peer nor port match

denied by the source's egress and by the destination's ingress
";
    assert_eq!((text.as_str(), code), (expected, 1));
}

#[test]
fn every_policy_that_allows_is_named() {
    let more = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-takes-shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 1}]}, {from: [{podSelector: {}}]}, {}]}
";
    let command = format!("policy eval --from 10.244.0.7 --to shop/db --port 5432 {SHOP} - -n shop");
    let (text, code) = wardline(&command, more);
    let expected = "\
shop/web (10.244.0.7, node1) -> shop/db (10.244.1.9, node2), tcp/5432
  egress of shop/web: allowed: no policy isolates it for egress
  ingress of shop/db: allowed by
    NetworkPolicy shop/db-takes-shop: spec.ingress[1], spec.ingress[2]
    NetworkPolicy shop/db-takes-web (generation 3): spec.ingress[0]

allowed
";
    assert_eq!((text.as_str(), code), (expected, 0));
}

#[test]
fn programs_get_the_same() {
    let command = format!("policy eval --from 203.0.113.9 --to 10.244.1.9 --port 9187 -o json {SHOP}");
    let (text, code) = wardline(&command, "");
    assert_eq!(code, 1);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["allowed"], false);
    assert_eq!(
        json["to"]["pod"],
        serde_json::json!({"namespace": "shop", "name": "db"})
    );
    let expected = serde_json::json!([{
        "allowed": false, "src_ip": "203.0.113.9", "dest_ip": "10.244.1.9", "protocol": "tcp", "dest_port": 9187,
        "edges": [
            {"direction": "egress", "verdict": "no-edge"},
            {"direction": "ingress", "verdict": "default-deny", "isolated_by": [
                {"namespace": "shop", "name": "db-takes-all-of-ipv6",
                 "misses": [{"rule": 0, "peer_matches": false, "port_matches": false}]},
                {"namespace": "shop", "name": "db-takes-web", "generation": 3, "misses": [
                    {"rule": 0, "peer_matches": false, "port_matches": false},
                    {"rule": 1, "peer_matches": false, "port_matches": true}]},
            ]},
        ],
    }]);
    assert_eq!(json["paths"], expected);
}

#[test]
fn what_cannot_be_answered() {
    for (question, expected) in [
        (
            "--from shop/none --to shop/db --port 80",
            "failed to resolve --from: there is no pod shop/none",
        ),
        (
            "--from shop/web --to shop/done --port 80",
            "failed to resolve --to: pod shop/done has finished",
        ),
        (
            "--from shop/starting --to shop/db --port 80",
            "pod shop/starting has no address",
        ),
        (
            "--from shop/six --to shop/batch --port 80",
            "have no addresses of the same family",
        ),
        (
            "--from shop/web --to shop/db --port 80 -f tests/data/none.yaml",
            "failed to read tests/data/none.yaml",
        ),
    ] {
        let (text, code) = wardline(&format!("policy eval {SHOP} {question}"), "");
        assert!(text.contains(expected), "{question}\n{text}");
        assert_eq!(code, 2, "{question}");
    }
    let pod = "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web}, spec: {containers: []}}";
    let bad = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {ingres: []}}";
    for (input, expected) in [
        (pod, "failed to read -: Pod shop/web: it is there twice"),
        (
            bad,
            "failed to read -: NetworkPolicy default/p: spec.ingres: there is no such field",
        ),
        ("no object", "failed to read -: document 1: is no Kubernetes object"),
    ] {
        let command = format!("policy eval --from shop/web --to shop/db --port 80 {SHOP} -");
        let (text, code) = wardline(&command, input);
        assert!(text.contains(expected), "{input}\n{text}");
        assert_eq!(code, 2, "{input}");
    }
}

#[test]
fn an_address_of_two_pods_is_nobodys() {
    let twin = "
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: twin, labels: {app: web}}
spec: {nodeName: node1, containers: []}
status: {podIPs: [{ip: 10.244.0.7}]}
";
    for from in ["10.244.0.7", "shop/web"] {
        let command = format!("policy eval --from {from} --to 10.244.1.9 --port 5432 {SHOP} -");
        let (text, code) = wardline(&command, twin);
        let note = "note: 10.244.0.7 is claimed by pods shop/twin and shop/web";
        assert_eq!(text.matches(note).count(), 1, "{text}");
        assert_eq!(code, 1);
    }
}

#[test]
fn namespaces_that_no_file_describes_have_their_name() {
    let more = "
{apiVersion: v1, kind: Pod, metadata: {namespace: new, name: a}, spec: {containers: []}, status: {podIP: 10.244.9.1}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web-takes-new}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: new}}}]}]
";
    let (text, code) = wardline(
        &format!("policy eval --from new/a --to shop/web --port 80 {SHOP} -"),
        more,
    );
    let note =
        "note: the files do not describe these namespaces, which are taken to have no labels but their name: new";
    assert!(text.contains(note), "{text}");
    assert_eq!(code, 0, "{text}");
}
