// SPDX-License-Identifier: Apache-2.0

use std::sync::Arc;

use serde_json::{Value, json};
use wardline_policy::model::ObjectName;
use wardline_policy::tables::Allowing;
use wardline_record::Record;

use super::*;
use crate::events::observed::sample;
use crate::index::Workload;
use crate::names::{EndpointName, Meaning, Move, TableName};

fn pod(name: &str, workload: Option<(&str, &str)>) -> PodName {
    let workload = workload.map(|(kind, name)| Workload {
        kind: kind.into(),
        name: name.into(),
    });
    PodName {
        pod: ObjectName::new("shop", name),
        workload,
    }
}

fn policy(name: &str, generation: i64) -> PolicyRef {
    PolicyRef {
        name: ObjectName::new("shop", name),
        generation,
    }
}

fn names(directory: &std::path::Path) -> Names {
    let names = Names::open(directory).unwrap();
    let attribution = Attribution {
        policies: vec![
            Allowing {
                policy: policy("admit-web", 2),
                rules: vec![0, 2],
                log: true,
            },
            Allowing {
                policy: policy("z-quiet", 1),
                rules: vec![0],
                log: false,
            },
        ],
    };
    let table = TableName {
        direction: Direction::Ingress,
        isolated_by: vec![policy("db-isolate", 4)],
    };
    names
        .tell(vec![
            Meaning::Endpoint {
                uid: 5,
                name: Arc::new(EndpointName {
                    name: pod("db-0", Some(("StatefulSet", "db"))),
                    pod_uid: "u".into(),
                }),
            },
            Meaning::Attribution {
                id: 7,
                attribution: Arc::new(attribution),
            },
            Meaning::Table {
                id: 9,
                name: Arc::new(table),
            },
        ])
        .unwrap();
    let web = Party::Pod(pod("web-5d9", Some(("Deployment", "web"))));
    names.apply_moves(vec![
        Move::Joins {
            addresses: vec!["10.244.1.7".parse().unwrap()],
            party: Arc::new(web),
            created: 0,
        },
        Move::Joins {
            addresses: vec!["10.77.0.12".parse().unwrap()],
            party: Arc::new(Party::Node { name: "node2".into() }),
            created: 0,
        },
    ]);
    names
}

fn line(seen: &Observed) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    let origin = Origin {
        node: "node1".into(),
        cluster: None,
    };
    write_verdict(&mut bytes, seen, "s", &names(directory.path()), &origin);
    read(&bytes)
}

/// The one line that is there; it holds what readers know of a record, and nothing else.
#[track_caller]
fn read(bytes: &[u8]) -> Value {
    assert_eq!(
        bytes.iter().position(|b| *b == b'\n'),
        Some(bytes.len() - 1),
        "one line"
    );
    let line: Value = serde_json::from_slice(bytes).unwrap();
    let record: Record = serde_json::from_slice(bytes).unwrap();
    assert_eq!(serde_json::to_value(record).unwrap(), line);
    line
}

#[test]
fn an_allowed_connection() {
    assert_eq!(
        line(&sample(Verdict::Allow {
            attribution: 7,
            only_annotated: false
        })),
        json!({
            "connection": {"src_ip": "10.244.1.7", "dest_ip": "10.244.0.11", "src_port": 55644, "dest_port": 8080,
                           "protocol": "tcp", "direction": "ingress"},
            "disposition": "allow",
            "policies": [
                {"kind": "NetworkPolicy", "namespace": "shop", "name": "admit-web", "generation": 2, "rules": [0, 2]},
                {"kind": "NetworkPolicy", "namespace": "shop", "name": "z-quiet", "generation": 1, "rules": [0]}],
            "src": {"pod_name": "web-5d9", "pod_namespace": "shop", "namespace": "shop",
                    "workload_kind": "Deployment", "workload_name": "web"},
            "dest": {"pod_name": "db-0", "pod_namespace": "shop", "namespace": "shop",
                     "workload_kind": "StatefulSet", "workload_name": "db"},
            "count": 1, "node_name": "node1", "timestamp": "2026-06-13T21:29:31.445836587Z", "seq": "s",
        })
    );
}

#[test]
fn delegated_allows_name_only_the_annotated_policies() {
    let line = line(&sample(Verdict::Allow {
        attribution: 7,
        only_annotated: true,
    }));
    assert_eq!(line["policies"].as_array().unwrap().len(), 1);
    assert_eq!(line["policies"][0]["name"], "admit-web");
}

#[test]
fn a_default_deny_names_who_isolates() {
    let verdict = Verdict::Deny {
        table: 9,
        count: 3,
        last: 1_781_386_173_100_000_000,
    };
    let line = line(&Observed {
        reason: Some("default-deny"),
        ..sample(verdict)
    });
    assert_eq!(line["disposition"], "deny");
    assert_eq!(line["reason"], "default-deny");
    assert_eq!(
        line["isolated_by"],
        json!([{"kind": "NetworkPolicy", "namespace": "shop", "name": "db-isolate", "generation": 4}])
    );
    assert_eq!(line["count"], 3);
    assert_eq!(line["last_timestamp"], "2026-06-13T21:29:33.1Z");
    assert!(line.get("policies").is_none());
}

#[test]
fn egress_turns_source_and_destination() {
    let seen = Observed {
        direction: Direction::Egress,
        remote: "10.77.0.12".parse().unwrap(),
        remote_port: 443,
        pod_port: 40000,
        ..sample(Verdict::Allow {
            attribution: 7,
            only_annotated: false,
        })
    };
    let line = line(&seen);
    assert_eq!(line["connection"]["src_ip"], "10.244.0.11");
    assert_eq!(line["connection"]["dest_port"], 443);
    assert_eq!(line["dest"], json!({"node_name": "node2", "workload_kind": "Node"}));
    assert_eq!(line["src"]["pod_name"], "db-0");
}

#[test]
fn what_has_no_ports_or_name_shows_none() {
    let seen = Observed {
        remote: "203.0.113.9".parse().unwrap(),
        protocol: 47,
        ..sample(Verdict::Allow {
            attribution: 7,
            only_annotated: false,
        })
    };
    let line = line(&seen);
    assert_eq!(line["connection"]["protocol"], "47");
    assert!(line["connection"].get("src_port").is_none());
    assert_eq!(line["src"], json!({"instance": "203.0.113.9"}));
}

#[test]
fn a_loss_is_a_line() {
    let mut bytes = Vec::new();
    let lost = Lost {
        direction: Direction::Ingress,
        disposition: "allow",
        why: "ring-full",
        count: 12,
        first: 1_000_000_000,
        last: 2_000_000_000,
    };
    write_lost(
        &mut bytes,
        &lost,
        "s",
        &Origin {
            node: "node1".into(),
            cluster: Some("prod".into()),
        },
    );
    assert_eq!(
        read(&bytes),
        json!({"disposition": "lost", "connection": {"direction": "ingress"},
               "lost": {"disposition": "allow", "why": "ring-full"}, "count": 12, "node_name": "node1",
               "cluster_name": "prod", "timestamp": "1970-01-01T00:00:01Z", "last_timestamp": "1970-01-01T00:00:02Z",
               "seq": "s"})
    );
}

fn front(address: &str, port: u16) -> FrontKey {
    FrontKey {
        address: address.parse().unwrap(),
        port: Some((model::Protocol::Tcp, port)),
    }
}

#[test]
fn a_service_is_named_where_one_was_used() {
    let directory = tempfile::tempdir().unwrap();
    let names = names(directory.path());
    let shop = |name: &str| Some(ObjectName::new("shop", name));
    names.apply_services([
        (front("10.96.0.9", 80), shop("web")),
        (front("192.0.2.80", 80), shop("edge")),
        (front("0.0.0.0", 30080), shop("doors")),
    ]);
    let sent = |remote: &str, port, service: Option<&str>| {
        let seen = Observed {
            direction: Direction::Egress,
            remote: remote.parse().unwrap(),
            remote_port: port,
            service: service.map(|service| service.parse().unwrap()),
            ..sample(Verdict::Allow {
                attribution: 7,
                only_annotated: false,
            })
        };
        let mut bytes = Vec::new();
        let origin = Origin {
            node: "node1".into(),
            cluster: None,
        };
        write_verdict(&mut bytes, &seen, "s", &names, &origin);
        read(&bytes)["service"].clone()
    };
    let named = |name, ip, port| json!({"namespace": "shop", "name": name, "ip": ip, "port": port});
    let backend = "10.244.1.7";
    assert_eq!(sent(backend, 8080, Some("10.96.0.9:80")), named("web", "10.96.0.9", 80));
    assert_eq!(
        sent("192.0.2.80", 80, None),
        named("edge", "192.0.2.80", 80),
        "left to another proxy"
    );
    assert_eq!(
        sent("10.77.0.12", 30080, None),
        named("doors", "10.77.0.12", 30080),
        "a node port"
    );
    assert_eq!(sent(backend, 8080, None), Value::Null, "straight to the backend");
    assert_eq!(
        sent(backend, 8080, Some("10.96.0.77:80")),
        json!({"ip": "10.96.0.77", "port": 80}),
        "nobody's any more"
    );
    names.apply_services([(front("10.96.0.9", 80), None)]);
    assert_eq!(
        sent(backend, 8080, Some("10.96.0.9:80")),
        named("web", "10.96.0.9", 80),
        "gone a moment ago"
    );
    names.apply_services([(front("10.96.0.9", 80), shop("other"))]);
    assert_eq!(
        sent(backend, 8080, Some("10.96.0.9:80")),
        named("web", "10.96.0.9", 80),
        "who came after the packet is not named"
    );
}

/// No name that Kubernetes takes is like these; who has them has written past the API server, or into an owner's name.
#[test]
fn names_neither_break_nor_forge_a_line() {
    for hostile in [
        "a\"}\n{\"disposition\":\"allow\",\"a\":\"",
        "a\",\"disposition\":\"allow\",\"seq\":\"forged",
        "\r\n\u{b}\u{85}\u{2028}\u{2029}",
        "\\",
        "\0\u{1b}[2J\u{202e}",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let names = Names::open(directory.path()).unwrap();
        let object = || ObjectName::new(hostile, hostile);
        let pod = PodName {
            pod: object(),
            workload: Some(Workload {
                kind: hostile.into(),
                name: hostile.into(),
            }),
        };
        let policy = PolicyRef {
            name: object(),
            generation: 1,
        };
        let endpoint = EndpointName {
            name: pod.clone(),
            pod_uid: hostile.into(),
        };
        let table = TableName {
            direction: Direction::Ingress,
            isolated_by: vec![policy],
        };
        let told = vec![
            Meaning::Endpoint {
                uid: 5,
                name: Arc::new(endpoint),
            },
            Meaning::Table {
                id: 9,
                name: Arc::new(table),
            },
        ];
        names.tell(told).unwrap();
        names.apply_moves(vec![Move::Joins {
            addresses: vec!["10.244.1.7".parse().unwrap()],
            party: Arc::new(Party::Pod(pod)),
            created: 0,
        }]);
        names.apply_services([(front("10.96.0.9", 80), Some(object()))]);
        // As after a restart: the journal is lines too.
        let names = [Names::open(directory.path()).unwrap(), names];
        let origin = Origin {
            node: hostile.into(),
            cluster: Some(hostile.into()),
        };
        for (names, knows_peers) in names.iter().zip([false, true]) {
            let seen = Observed {
                service: Some("10.96.0.9:80".parse().unwrap()),
                ..sample(Verdict::Deny {
                    table: 9,
                    count: 3,
                    last: 1_781_386_171_445_836_587,
                })
            };
            let mut bytes = Vec::new();
            write_verdict(&mut bytes, &seen, "s", names, &origin);
            let line = read(&bytes);
            assert_eq!((&line["disposition"], &line["seq"]), (&json!("deny"), &json!("s")));
            for name in [
                &line["isolated_by"][0]["name"],
                &line["dest"]["pod_name"],
                &line["dest"]["workload_kind"],
            ] {
                assert_eq!(name, hostile);
            }
            assert_eq!(
                (&line["node_name"], &line["cluster_name"]),
                (&json!(hostile), &json!(hostile))
            );
            if knows_peers {
                assert_eq!(
                    (&line["src"]["namespace"], &line["service"]["name"]),
                    (&json!(hostile), &json!(hostile))
                );
            }
        }
    }
}
