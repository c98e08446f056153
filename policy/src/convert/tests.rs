// SPDX-License-Identifier: Apache-2.0
//! What is refused, and by which field; what the defaults are. Details of selectors, ports and blocks are tested
//! beside them.

use super::*;
use crate::model::{IpBlock, Operator, Port, PortMatch, Protocol, Requirement, Selector};

fn read(object: &str) -> Result<Policy, InvalidPolicy> {
    Policy::try_from(&serde_yaml::from_str::<NetworkPolicy>(object).unwrap())
}

fn read_spec(spec: &str) -> Result<Policy, InvalidPolicy> {
    read(&format!(
        "{{metadata: {{namespace: shop, name: p, generation: 3}}, spec: {spec}}}"
    ))
}

#[test]
fn selectors_are_refused_with_the_field() {
    for (selector, field) in [
        ("{matchLabels: {'a b': c}}", "matchLabels[a b]"),
        ("{matchLabels: {a: 'b c'}}", "matchLabels[a]"),
        (
            "{matchExpressions: [{key: a, operator: in, values: [b]}]}",
            "matchExpressions[0].operator",
        ),
        (
            "{matchExpressions: [{key: a, operator: Gt, values: ['1']}]}",
            "matchExpressions[0].operator",
        ),
        (
            "{matchExpressions: [{key: a, operator: In}]}",
            "matchExpressions[0].values",
        ),
        (
            "{matchExpressions: [{key: a, operator: NotIn, values: []}]}",
            "matchExpressions[0].values",
        ),
        (
            "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            "matchExpressions[0].values",
        ),
        (
            "{matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}",
            "matchExpressions[0].values",
        ),
        (
            "{matchExpressions: [{key: a, operator: In, values: [b, '-']}]}",
            "matchExpressions[0].values[1]",
        ),
        (
            "{matchExpressions: [{key: a, operator: Exists}, {key: '', operator: Exists}]}",
            "matchExpressions[1].key",
        ),
    ] {
        for (spec, path) in [
            (format!("{{podSelector: {selector}}}"), "spec.podSelector"),
            (
                format!("{{ingress: [{{from: [{{podSelector: {selector}}}]}}]}}"),
                "spec.ingress[0].from[0].podSelector",
            ),
            (
                format!("{{egress: [{{to: [{{namespaceSelector: {selector}}}]}}]}}"),
                "spec.egress[0].to[0].namespaceSelector",
            ),
        ] {
            assert_eq!(
                read_spec(&spec).map_err(|e| e.field),
                Err(format!("{path}.{field}")),
                "{spec}"
            );
        }
    }
}

#[test]
fn refused_with_the_field() {
    for (spec, field) in [
        ("{podSelector: {}, policyTypes: [ingress]}", "spec.policyTypes[0]"),
        ("{podSelector: {}, policyTypes: [Ingress, '']}", "spec.policyTypes[1]"),
        (
            "{podSelector: {}, policyTypes: [Ingress, Egress, Ingress]}",
            "spec.policyTypes",
        ),
        ("{podSelector: {}, ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]"),
        (
            "{podSelector: {}, egress: [{}, {to: [{podSelector: {}}, {}]}]}",
            "spec.egress[1].to[1]",
        ),
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}",
            "spec.ingress[0].from[0]",
        ),
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}]}]}",
            "spec.ingress[0].from[0]",
        ),
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]}",
            "spec.ingress[0].from[0].ipBlock.cidr",
        ),
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: ''}}]}]}",
            "spec.ingress[0].from[0].ipBlock.cidr",
        ),
        (
            "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}]}]}",
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        (
            "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {a: '-'}}}]}]}",
            "spec.ingress[0].from[0].podSelector.matchLabels[a]",
        ),
        (
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {a: '-'}}}]}]}",
            "spec.ingress[0].from[0].namespaceSelector.matchLabels[a]",
        ),
        (
            "{podSelector: {}, ingress: [{ports: [{}, {port: 0}]}]}",
            "spec.ingress[0].ports[1].port",
        ),
        (
            "{podSelector: {}, ingress: [{ports: [{port: ''}]}]}",
            "spec.ingress[0].ports[0].port",
        ),
        (
            "{podSelector: {}, ingress: [{ports: [{protocol: ICMP}]}]}",
            "spec.ingress[0].ports[0].protocol",
        ),
        (
            "{podSelector: {}, egress: [{ports: [{port: 2, endPort: 1}]}]}",
            "spec.egress[0].ports[0].endPort",
        ),
        // Wrong in a direction that is not listed is wrong all the same.
        (
            "{podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 0}]}]}",
            "spec.egress[0].ports[0].port",
        ),
    ] {
        assert_eq!(read_spec(spec).map_err(|e| e.field), Err(field.to_owned()), "{spec}");
    }
}

#[test]
fn refused_without_a_name() {
    for (object, field) in [
        ("{metadata: {name: p}}", "metadata.namespace"),
        ("{metadata: {namespace: shop}}", "metadata.name"),
        ("{metadata: {namespace: shop, name: ''}}", "metadata.name"),
    ] {
        assert_eq!(read(object).map_err(|e| e.field), Err(field.to_owned()), "{object}");
    }
}

#[test]
fn the_message_names_field_and_cause() {
    for (spec, message) in [
        (
            "{podSelector: {}, ingress: [{ports: [{port: 70000}]}]}",
            "failed to read spec.ingress[0].ports[0].port: 70000 is not a port: 1 to 65535",
        ),
        (
            "{podSelector: {}, ingress: [{from: [{}]}]}",
            "failed to read spec.ingress[0].from[0]: must hold podSelector, namespaceSelector or ipBlock",
        ),
        (
            "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
            "failed to read spec.egress[0].to[0].ipBlock.except[0]: 10.0.0.0/8 is not a strict part of cidr, 10.0.0.0/8",
        ),
    ] {
        assert_eq!(read_spec(spec).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_whole_policy() {
    let policy = read(
        "
metadata: {namespace: shop, name: p, generation: 3}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from:
    - podSelector: {}
    - namespaceSelector: {}
      podSelector: {matchLabels: {app: web}}
    - ipBlock: {cidr: 10.1.2.3/8, except: [10.9.9.9/16]}
    ports:
    - {port: 80}
    - {port: 1000, endPort: 2000, protocol: UDP}
    - {port: http, protocol: SCTP}
  - {}
  egress:
  - to: [{namespaceSelector: {matchLabels: {team: ops}}}]
",
    )
    .unwrap();
    let label = |key: &str, value: &str| Selector {
        requirements: vec![Requirement {
            key: key.into(),
            operator: Operator::In(vec![value.into()]),
        }],
    };
    let block = IpBlock {
        cidr: "10.0.0.0/8".parse().unwrap(),
        except: vec!["10.9.0.0/16".parse().unwrap()],
    };
    let expected = Policy {
        name: ObjectName::new("shop", "p"),
        generation: 3,
        log: false,
        pod_selector: label("app", "db"),
        ingress: Some(vec![
            Rule {
                peers: Some(vec![
                    Peer::Pods {
                        namespaces: None,
                        pods: Selector::default(),
                    },
                    Peer::Pods {
                        namespaces: Some(Selector::default()),
                        pods: label("app", "web"),
                    },
                    Peer::Block(block),
                ]),
                ports: Some(vec![
                    PortMatch {
                        protocol: Protocol::Tcp,
                        port: Port::Exact(80),
                    },
                    PortMatch {
                        protocol: Protocol::Udp,
                        port: Port::Range(1000, 2000),
                    },
                    PortMatch {
                        protocol: Protocol::Sctp,
                        port: Port::Named("http".into()),
                    },
                ]),
            },
            Rule {
                peers: None,
                ports: None,
            },
        ]),
        egress: Some(vec![Rule {
            peers: Some(vec![Peer::Pods {
                namespaces: Some(label("team", "ops")),
                pods: Selector::default(),
            }]),
            ports: None,
        }]),
    };
    assert_eq!(policy, expected);
}

#[test]
fn what_is_absent() {
    // No spec is an empty one: all pods of the namespace, isolated for ingress.
    for object in [
        "{metadata: {namespace: a, name: p}}",
        "{metadata: {namespace: a, name: p}, spec: {}}",
    ] {
        let policy = read(object).unwrap();
        assert_eq!(
            (policy.pod_selector, policy.ingress, policy.egress),
            (Selector::default(), Some(vec![]), None)
        );
        assert_eq!(policy.generation, 0);
    }
}

#[test]
fn logging_is_asked_for_by_either_annotation_and_exactly_true() {
    for (annotations, expected) in [
        ("{}", false),
        ("{wardline.io/enable-logging: 'true'}", true),
        ("{policy.network.gke.io/enable-logging: 'true'}", true),
        (
            "{wardline.io/enable-logging: 'false', policy.network.gke.io/enable-logging: 'true'}",
            true,
        ),
        ("{wardline.io/enable-logging: 'True'}", false),
        ("{wardline.io/enable-logging: ''}", false),
        ("{wardline.io/enable-deny-logging: 'true'}", false),
    ] {
        let policy = read(&format!(
            "{{metadata: {{namespace: a, name: p, annotations: {annotations}}}}}"
        ))
        .unwrap();
        assert_eq!(policy.log, expected, "{annotations}");
    }
}
