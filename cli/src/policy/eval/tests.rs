// SPDX-License-Identifier: Apache-2.0
//! Objects as an API server has them: what a policy that cannot be used, or another broken object, does to an answer.
//! Verdicts and renderings are tested over files, in `tests/eval.rs`.

use serde_json::{Value, json};

use super::answer::Answer;
use super::inventory::Inventory;
use super::judge::{Question, What, answer};
use crate::args::ServiceArg;
use crate::manifests::Kind;

fn pod(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": "node1", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

/// `web` asks `db` for port 80, under one policy of this spec.
fn under(spec: Value) -> Answer {
    let mut inventory = Inventory::default();
    let policy = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec});
    let elsewhere = json!({"metadata": {"namespace": "ops", "name": "bad"}, "spec": {"ingress": 3}});
    for (kind, value) in [
        (Kind::Namespace, json!({"metadata": {"name": "shop"}})),
        (Kind::Pod, pod("web", "10.0.0.1")),
        (Kind::Pod, pod("db", "10.0.0.2")),
        (
            Kind::Pod,
            json!({"metadata": {"namespace": "shop", "name": "broken"}, "spec": 3}),
        ),
        (Kind::NetworkPolicy, policy),
        (Kind::NetworkPolicy, elsewhere),
    ] {
        inventory.add_stored(kind, value).unwrap();
    }
    let question = Question {
        from: "shop/web".parse().unwrap(),
        to: "shop/db".parse().unwrap(),
        service: What::Port("80".parse::<ServiceArg>().unwrap()),
    };
    answer(&inventory, &question).unwrap()
}

#[test]
fn a_stored_policy_that_cannot_be_used_isolates() {
    for (spec, denying, note) in [
        (json!({"podSelector": {}, "ingress": [{}]}), vec![], None),
        // Fields that are not known are the API server's matter: the daemon goes by those that are.
        (json!({"podSelector": {}, "ingress": [{}], "later": 1}), vec![], None),
        (
            json!({"podSelector": {}, "ingress": [{}, {"ports": [{"port": 0}]}]}),
            vec!["ingress"],
            Some("taken as isolating its pods"),
        ),
        (
            json!({"podSelector": {}, "egress": [{"to": [{}]}]}),
            vec!["egress", "ingress"],
            Some("taken as isolating its pods"),
        ),
        (
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{}]}]}),
            vec!["egress"],
            Some("taken as isolating its pods"),
        ),
        (
            json!({"podSelector": {"matchLabels": {"app": "none"}}, "ingress": [{"from": [{}]}]}),
            vec![],
            Some("taken as isolating its pods"),
        ),
        (
            json!({"podSelector": {"matchLabels": {"a b": ""}}}),
            vec![],
            Some("nobody can tell which pods it isolates"),
        ),
        (
            json!({"podSelector": {}, "ingress": 3}),
            vec![],
            Some("nobody can tell which pods it isolates"),
        ),
    ] {
        let answer = under(spec.clone());
        let edges = serde_json::to_value(&answer.paths[0].edges).unwrap();
        let denied: Vec<&str> = edges
            .as_array()
            .unwrap()
            .iter()
            .filter(|edge| edge["verdict"] == "default-deny")
            .map(|edge| edge["direction"].as_str().unwrap())
            .collect();
        assert_eq!(denied, denying, "{spec}");
        match note {
            None => assert_eq!(answer.notes, [""; 0], "{spec}"),
            Some(expected) => {
                assert_eq!(answer.notes.len(), 1, "{:?}", answer.notes);
                let prefix = "NetworkPolicy shop/p cannot be used: failed to read spec.";
                assert!(answer.notes[0].starts_with(prefix), "{:?}", answer.notes);
                assert!(answer.notes[0].contains(expected), "{:?}", answer.notes);
            }
        }
    }
}
