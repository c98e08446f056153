// SPDX-License-Identifier: Apache-2.0

use serde_json::{Value, json};
use wardline_crds::InvalidObject;

use super::*;
use crate::testing::{Cached, FakeApi, Sent, failure, pod};

const DB: &str = "NetworkPolicy shop/db: bad port";

/// `KIND NAMESPACE/NAME: MESSAGE`, or `KIND NAME: MESSAGE`.
fn object(text: &str) -> InvalidObject {
    let (object, message) = text.split_once(": ").unwrap();
    let (kind, name) = object.split_once(' ').unwrap();
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    InvalidObject {
        kind: kind.into(),
        namespace: namespace.into(),
        name: name.into(),
        message: message.into(),
    }
}

type Row<'a> = (&'a str, bool, &'a [&'a str]);

fn nodes(rows: &[Row<'_>]) -> Nodes {
    let report = |(name, names_all, invalid): &Row<'_>| {
        let report = Report {
            invalid: invalid.iter().map(|text| object(text)).collect(),
            names_all: *names_all,
            ..Report::default()
        };
        ((*name).to_owned(), report)
    };
    Nodes::from_reports(rows.iter().map(report).collect())
}

#[test]
fn one_change_an_object_and_transition() {
    let mut memory = Memory::default();
    let mut now = Instant::now();
    let steps: [(&str, &[Row<'_>], &[&str]); 11] = [
        ("nothing", &[("a", true, &[]), ("b", true, &[])], &[]),
        (
            "the first node",
            &[("a", true, &[]), ("b", true, &[DB])],
            &["Invalid NetworkPolicy shop/db: bad port"],
        ),
        ("the second", &[("a", true, &[DB]), ("b", true, &[DB])], &[]),
        (
            "another mistake",
            &[("a", true, &["NetworkPolicy shop/db: worse"]), ("b", true, &[DB])],
            &["Invalid NetworkPolicy shop/db: worse"],
        ),
        (
            "and a kind of our own, and one that is unknown",
            &[(
                "a",
                true,
                &[
                    "NetworkPolicy shop/db: worse",
                    "NetworkLogging default: bad",
                    "Gadget x: bad",
                    "Node n: bad",
                ],
            )],
            &["Invalid Node /n: bad"],
        ),
        ("the daemons are away", &[], &[]),
        ("one starts and has read nothing yet", &[("a", false, &[])], &[]),
        (
            "it has read all but the policy",
            &[("a", true, &["NetworkPolicy shop/db: worse"])],
            &["Valid Node /n"],
        ),
        (
            "no room in its list",
            &[("a", false, &["Pod x/y: bad"])],
            &["Invalid Pod x/y: bad"],
        ),
        (
            "another node is sure, the one that named it is not",
            &[("a", false, &[]), ("c", true, &[])],
            &[],
        ),
        (
            "mended",
            &[("a", true, &[]), ("c", true, &[])],
            &["Valid NetworkPolicy shop/db", "Valid Pod x/y"],
        ),
    ];
    for (what, rows, expected) in steps {
        assert_eq!(changed(&mut memory, rows, now), expected, "{what}");
        now += QUIET;
    }
    assert!(memory.known.is_empty());
}

fn changed(memory: &mut Memory, rows: &[Row<'_>], now: Instant) -> Vec<String> {
    let changes = memory.changes(&nodes(rows), now).into_iter();
    changes
        .map(|(key, change)| match change {
            Change::Invalid { message, .. } => {
                format!("Invalid {} {}/{}: {message}", key.kind, key.namespace, key.name)
            }
            Change::Valid => format!("Valid {} {}/{}", key.kind, key.namespace, key.name),
        })
        .collect()
}

#[test]
fn a_node_that_words_it_anew_each_time_is_heard_once_a_minute() {
    let mut memory = Memory::default();
    let start = Instant::now();
    let mut at = |seconds, text: &str| {
        let invalid: &[&str] = if text.is_empty() { &[] } else { &[text] };
        changed(
            &mut memory,
            &[("a", true, invalid)],
            start + Duration::from_secs(seconds),
        )
    };
    assert_eq!(at(0, "Pod x/y: one"), ["Invalid Pod x/y: one"]);
    assert_eq!(at(1, "Pod x/y: two"), Vec::<String>::new());
    assert_eq!(at(2, ""), ["Valid Pod x/y"], "good news does not wait");
    assert_eq!(at(3, "Pod x/y: three"), Vec::<String>::new());
    assert_eq!(
        at(4, "Pod x/y: one"),
        ["Invalid Pod x/y: one"],
        "the same Event once more"
    );
    assert_eq!(at(63, "Pod x/y: four"), Vec::<String>::new());
    assert_eq!(at(64, "Pod x/y: four"), ["Invalid Pod x/y: four"]);
}

#[test]
fn what_is_not_a_name_is_ignored() {
    let long = |length| "a".repeat(length);
    for (namespace, name, is_name) in [
        ("shop", "db", true),
        ("shop", "db.v1-0", true),
        ("shop", &long(253), true),
        (&long(63), "db", true),
        ("shop", &long(254), false),
        (&long(64), "db", false),
        ("shop", "", false),
        ("", "db", false),
        ("shop", "../../../secrets/db", false),
        ("shop/pods", "db", false),
        ("shop.x", "db", false),
        ("shop", "db?watch=true", false),
        ("shop", "Db", false),
        ("shop", "-db", false),
        ("shop", "db.", false),
        ("shop", "db\n", false),
        ("shop", "bücher", false),
    ] {
        let invalid = InvalidObject {
            kind: "Pod".into(),
            namespace: namespace.into(),
            name: name.into(),
            message: "bad".into(),
        };
        let report = Report {
            invalid: vec![invalid],
            names_all: true,
            ..Report::default()
        };
        let nodes = Nodes::from_reports(BTreeMap::from([("node1".to_owned(), report)]));
        assert_eq!(named(&nodes).len() == 1, is_name, "{namespace}/{name}");
        assert_eq!(nodes_without_names(&nodes).is_empty(), is_name, "{namespace}/{name}");
    }
    let elsewhere = nodes(&[("a", true, &["Node shop/n: a node is in no namespace"])]);
    assert!(named(&elsewhere).is_empty());
}

#[test]
fn objects_are_counted_once_and_by_kind() {
    let nodes = nodes(&[
        ("a", true, &[DB, "NetworkPolicy shop/web: bad", "Gadget x: bad"]),
        ("b", true, &[DB, "NetworkLogging default: bad"]),
    ]);
    let counts: Vec<_> = count(&nodes).collect();
    assert_eq!(
        counts,
        [
            ("EndpointSlice", 0),
            ("Namespace", 0),
            ("NetworkPolicy", 2),
            ("Node", 0),
            ("Pod", 0),
            ("Service", 0)
        ]
    );
}

fn node(name: &str, synced: bool, invalid: &[&str]) -> Value {
    let invalid: Vec<InvalidObject> = invalid.iter().map(|text| object(text)).collect();
    json!({"metadata": {"name": name}, "status": {"policy": {"synced": synced}, "invalidObjects": invalid}})
}

/// What `follow` sends for the nodes as they are now, before it waits for a change.
async fn sent_for(api: &FakeApi, nodes: Vec<Value>) -> Vec<Sent> {
    let caches = Cached {
        pods: vec![pod("node1", "c"), pod("node2", "c")],
        nodes,
        ..Cached::default()
    };
    let stop = CancellationToken::new();
    stop.cancel();
    follow(api.context(caches.caches()), stop).await;
    api.take()
}

#[tokio::test]
async fn an_event_is_about_the_object_itself() {
    let metadata = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {"name": "db", "namespace": "shop", "uid": "u1"}});
    let api = FakeApi::default().answer("/namespaces/shop/networkpolicies/db", 200, metadata);
    let nodes = vec![
        node("node1", true, &[DB]),
        node("node2", true, &[DB]),
        node("gone", true, &["Pod x/y: z"]),
    ];
    let sent = sent_for(&api, nodes).await;
    let summaries: Vec<String> = sent.iter().map(Sent::summary).collect();
    assert_eq!(summaries, ["GET networkpolicies/db", "EVENT InvalidNetworkPolicy"]);
    assert!(sent[1].path.ends_with("/namespaces/shop/events"), "{}", sent[1].path);
    let event = &sent[1].body;
    assert_eq!(
        (&event["type"], &event["note"]),
        (&json!("Warning"), &json!("node1: bad port"))
    );
    let regarding = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "shop",
        "name": "db", "uid": "u1"});
    assert_eq!(event["regarding"], regarding);
}

#[tokio::test]
async fn what_is_not_there_or_cannot_be_asked_for_has_no_event() {
    for code in [404, 403, 500] {
        let api = FakeApi::default().answer("/networkpolicies/db", code, failure(code, "no"));
        let sent = sent_for(&api, vec![node("node1", true, &[DB])]).await;
        assert_eq!(
            sent.iter().map(Sent::summary).collect::<Vec<_>>(),
            ["GET networkpolicies/db"],
            "{code}"
        );
    }
}

#[test]
fn what_could_not_be_said_is_tried_again_in_a_while() {
    let mut memory = Memory::default();
    let start = Instant::now();
    let rows: &[Row<'_>] = &[("a", true, &["Pod x/y: bad"])];
    assert_eq!(changed(&mut memory, rows, start), ["Invalid Pod x/y: bad"]);
    let key = memory.known.keys().next().unwrap().clone();
    memory.forget(&key);
    assert_eq!(changed(&mut memory, rows, start), Vec::<String>::new());
    assert_eq!(changed(&mut memory, rows, start + QUIET), ["Invalid Pod x/y: bad"]);
    memory.forget(&key);
    let gone: &[Row<'_>] = &[("a", true, &[])];
    assert_eq!(
        changed(&mut memory, gone, start + 2 * QUIET),
        Vec::<String>::new(),
        "nobody was told that it was wrong"
    );
}

#[tokio::test]
async fn a_note_is_cut() {
    let metadata = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "db", "uid": "u1"}});
    let api = FakeApi::default().answer("/networkpolicies/db", 200, metadata);
    let long = format!("{DB}{}", "t".repeat(600));
    let sent = sent_for(&api, vec![node("node1", true, &[&long])]).await;
    let note = sent[1].body["note"].as_str().unwrap();
    assert_eq!(note.chars().count(), LONGEST_NOTE);
    assert!(note.starts_with("node1: bad portt"), "{note}");
}

#[test]
fn a_node_that_starts_or_lists_as_many_as_it_can_does_not_name_all() {
    let many: Vec<String> = (0..16).map(|n| format!("Pod x/{n}: bad")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (synced, invalid, names_all) in [
        (true, &many[..15], true),
        (true, &many[..], false),
        (false, &many[..1], false),
    ] {
        let caches = Cached {
            pods: vec![pod("node1", "c")],
            nodes: vec![node("node1", synced, invalid)],
            ..Cached::default()
        };
        let nodes = Nodes::gather(&caches.caches());
        assert_eq!(
            nodes.reports()["node1"].names_all,
            names_all,
            "{synced} {}",
            invalid.len()
        );
    }
}
