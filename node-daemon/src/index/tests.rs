// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeSet;
use std::net::IpAddr;

use wardline_policy::model::{Direction, Labels, NamedPort, Operator, Policy, Requirement, Selector};

use super::*;
use crate::interfaces::Veth;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(uid: &str, node: &str, ip: &str, app: &str) -> PodInfo {
    PodInfo {
        uid: uid.into(),
        static_uid: None,
        node: node.into(),
        policy: Some(Arc::new(Pod {
            labels: Labels::from([("app".to_owned(), app.to_owned())]),
            addresses: vec![address(ip)],
            node: node.into(),
            ports: Vec::<NamedPort>::new(),
        })),
        host_ports: Vec::new(),
        is_written: true,
        created: 0,
        workload: None,
    }
}

fn veths(found: &[(u32, &str)]) -> Interfaces {
    let veth = |ip| Veth {
        name: "veth".into(),
        addresses: BTreeSet::from([address(ip)]),
    };
    Interfaces {
        veths: found.iter().map(|(i, ip)| (*i, veth(ip))).collect(),
        local: BTreeSet::new(),
    }
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn isolating(policy: &str) -> Policy {
    Policy {
        name: name(policy),
        generation: 1,
        log: false,
        pod_selector: Selector::default(),
        ingress: Some(Vec::new()),
        egress: None,
    }
}

fn good(uid: &str, policy: Policy) -> Event {
    let uid = uid.into();
    Event::Policy(policy.name.clone(), Update::Set(PolicyInfo { uid, policy }))
}

/// One that cannot be used, and what is to isolate its pods.
fn bad(uid: &str, policy: &str, instead: Option<Policy>) -> Event {
    Event::PolicyRefused {
        name: name(policy),
        uid: uid.into(),
        cause: "spec.ingress[0]: bad".into(),
        instead,
    }
}

fn index() -> Index {
    let mut index = Index::new("node1", true);
    index.set_interfaces(veths(&[(7, "10.0.0.1"), (8, "10.0.0.2")]));
    index.apply(Event::Namespace("shop".into(), Update::Set(NamespaceInfo::default())));
    index.apply(Event::Pod(
        name("web"),
        Update::Set(pod("u1", "node1", "10.0.0.1", "web")),
    ));
    index.apply(good("p1", isolating("deny")));
    index
}

#[test]
fn a_pod_meets_its_interface() {
    let mut index = index();
    index.apply(Event::Pod(
        name("far"),
        Update::Set(pod("u2", "node2", "10.0.1.1", "web")),
    ));
    index.apply(Event::Pod(
        name("lost"),
        Update::Set(pod("u3", "node1", "10.0.0.9", "web")),
    ));
    let desired = index.desired();
    assert_eq!(desired.endpoints.keys().copied().collect::<Vec<_>>(), [7]);
    assert_eq!(desired.endpoints[&7].pod, name("web"));
    assert_eq!(desired.unmanaged.keys().cloned().collect::<Vec<_>>(), [name("lost")]);
    assert!(desired.tables.endpoints[&name("web")].ingress.is_some());
}

/// One of its addresses was a pod's that is on its way out, at an interface that nobody knows any more.
#[test]
fn a_pod_does_not_meet_the_interface_of_who_had_one_of_its_addresses() {
    let both = |index, v4: &str| {
        let mut found = veths(&[(index, v4)]);
        let veth = found.veths.values_mut().next().unwrap();
        veth.addresses.insert(address("fd00::15"));
        found
    };
    let mut index = index();
    let mut told = pod("u2", "node1", "10.0.0.16", "web");
    let pod = Arc::make_mut(told.policy.as_mut().unwrap());
    pod.addresses.push(address("fd00::15"));
    index.set_interfaces(both(9, "10.0.0.14"));
    index.apply(Event::Pod(name("new"), Update::Set(told)));
    let desired = index.desired();
    assert!(desired.unmanaged.contains_key(&name("new")), "{:?}", desired.endpoints);

    index.set_interfaces(both(29, "10.0.0.16"));
    let desired = index.desired();
    assert_eq!(desired.endpoints[&29].pod, name("new"));
    assert!(!desired.unmanaged.contains_key(&name("new")));
}

/// The interface was of a pod that is on its way out too, and that had no address of the other family.
#[test]
fn a_pod_that_met_anothers_interface_finds_its_own_when_that_goes() {
    let mut index = index();
    let mut told = pod("u2", "node1", "10.0.0.20", "web");
    let pod = Arc::make_mut(told.policy.as_mut().unwrap());
    pod.addresses.push(address("fd00::10"));
    index.set_interfaces(veths(&[(9, "10.0.0.20")]));
    index.apply(Event::Pod(name("new"), Update::Set(told)));
    assert_eq!(index.desired().endpoints[&9].pod, name("new"));

    let mut own = veths(&[(29, "10.0.0.20")]);
    own.veths.get_mut(&29).unwrap().addresses.insert(address("fd00::10"));
    index.set_interfaces(own);
    let desired = index.desired();
    assert_eq!(desired.endpoints[&29].pod, name("new"));
    assert!(!desired.unmanaged.contains_key(&name("new")));
    assert!(index.objects.pods.contains_key(&name("new")), "it is a peer");
}

/// Two pods claimed the interface's address, so that neither was found at it, and both are on their way out.
#[test]
fn a_pod_that_met_an_interface_that_others_claimed_finds_its_own_when_that_goes() {
    let mut index = index();
    let told = |uid: &str| Update::Set(pod(uid, "node1", "10.0.0.2", "web"));
    index.apply(Event::Pod(name("a"), told("u2")));
    index.apply(Event::Pod(name("b"), told("u3")));
    assert_eq!(index.desired().unmanaged.len(), 2);
    for gone in ["a", "b"] {
        index.apply(Event::Pod(name(gone), Update::Gone));
    }
    index.apply(Event::Pod(name("new"), told("u4")));
    assert_eq!(index.desired().endpoints[&8].pod, name("new"));

    index.set_interfaces(veths(&[(7, "10.0.0.1"), (9, "10.0.0.2")]));
    let desired = index.desired();
    assert!(desired.unmanaged.is_empty(), "{:?}", desired.unmanaged);
    assert_eq!(desired.endpoints[&9].pod, name("new"));

    // That one is nobody else's.
    index.set_interfaces(veths(&[(7, "10.0.0.1"), (10, "10.0.0.2")]));
    assert_eq!(
        index.desired().unmanaged[&name("new")],
        "the interface that it had is gone"
    );
}

/// The one before it had been found at another's interface, and never at its own.
#[test]
fn a_pod_that_met_the_interface_of_one_that_was_parted_finds_its_own_when_that_goes() {
    let mut index = index();
    let told = |uid: &str| Update::Set(pod(uid, "node1", "10.0.0.2", "web"));
    index.apply(Event::Pod(name("old"), told("u2")));
    assert_eq!(index.desired().endpoints[&8].pod, name("old"));
    index.set_interfaces(veths(&[(7, "10.0.0.1"), (9, "10.0.0.2")]));
    assert_eq!(
        index.desired().unmanaged[&name("old")],
        "the interface that it had is gone"
    );

    index.apply(Event::Pod(name("old"), Update::Gone));
    index.apply(Event::Pod(name("new"), told("u3")));
    assert_eq!(index.desired().endpoints[&9].pod, name("new"));
    index.set_interfaces(veths(&[(7, "10.0.0.1"), (10, "10.0.0.2")]));
    assert_eq!(index.desired().endpoints[&10].pod, name("new"));
}

/// It was seen to be its own: when it goes, what its status claims may be another's by then.
#[test]
fn a_pod_that_loses_an_address_before_its_interface_goes_is_parted_all_the_same() {
    let with = |found: &[&str]| {
        let mut interfaces = veths(&[(9, "10.0.0.20")]);
        let veth = interfaces.veths.get_mut(&9).unwrap();
        veth.addresses = found.iter().map(|ip| address(ip)).collect();
        interfaces
    };
    // The other address came while the pod was there, or with it.
    for found_at in [with(&["10.0.0.20"]), with(&["10.0.0.20", "fd00::10"])] {
        let mut index = index();
        let mut told = pod("u2", "node1", "10.0.0.20", "web");
        let pod = Arc::make_mut(told.policy.as_mut().unwrap());
        pod.addresses.push(address("fd00::10"));
        index.set_interfaces(found_at);
        index.apply(Event::Pod(name("new"), Update::Set(told)));
        assert_eq!(index.desired().endpoints[&9].pod, name("new"));
        index.set_interfaces(with(&["10.0.0.20", "fd00::10"]));
        index.set_interfaces(with(&[]));
        index.set_interfaces(veths(&[]));
        assert_eq!(
            index.desired().unmanaged.get(&name("new")),
            Some(&"the interface that it had is gone")
        );
        assert!(!index.objects.pods.contains_key(&name("new")), "it is a peer no more");
    }
}

#[test]
fn a_pod_that_is_gone_stays_guarded_while_its_interface_is_there() {
    let mut index = index();
    index.desired();
    index.apply(Event::Pod(name("web"), Update::Gone));
    assert!(is_isolated(&mut index, 7, "u1"));

    index.set_interfaces(veths(&[(8, "10.0.0.2")]));
    let desired = index.desired();
    assert!(desired.endpoints.is_empty() && desired.tables.endpoints.is_empty());
}

/// Whether the pod at the interface has this uid, and a policy isolates it.
fn is_isolated(index: &mut Index, ifindex: u32, uid: &str) -> bool {
    let desired = index.desired();
    let endpoint = &desired.endpoints[&ifindex];
    assert_eq!(&*endpoint.pod_uid, uid);
    let tables = desired.tables_of(ifindex, endpoint);
    tables.expect("it is known what selects it").ingress.is_some()
}

/// Of a pod that no scheduler has given a node yet.
fn unscheduled(uid: &str) -> PodInfo {
    PodInfo {
        policy: None,
        node: "".into(),
        ..pod(uid, "", "10.0.0.9", "web")
    }
}

#[test]
fn a_pod_deleted_by_force_stays_guarded_whoever_has_its_name() {
    for (why, successor) in [
        ("waits for a node", unscheduled("u9")),
        ("runs elsewhere", pod("u9", "node2", "10.0.1.9", "web")),
        (
            "runs here, and nothing selects it",
            pod("u9", "node1", "10.0.0.2", "free"),
        ),
    ] {
        let mut index = index();
        let selects_web = Policy {
            pod_selector: Selector {
                requirements: vec![Requirement {
                    key: "app".into(),
                    operator: Operator::In(["web".into()].into()),
                }],
            },
            ..isolating("deny")
        };
        index.apply(good("p1", selects_web));
        index.desired();
        // The object goes at once, the containers when their grace period is over.
        index.apply(Event::Pod(name("web"), Update::Gone));
        index.apply(Event::Pod(name("web"), Update::Set(successor)));
        assert!(is_isolated(&mut index, 7, "u1"), "its successor {why}");
        // Policies that change go on changing for it.
        index.apply(Event::Policy(name("deny"), Update::Gone));
        assert!(!is_isolated(&mut index, 7, "u1"), "its successor {why}");
    }
}

#[test]
fn what_guards_a_pod_that_is_gone_outlives_the_daemon() {
    let mut index = Index::new("node1", true);
    index.inherit(7, inherited("web", "u1", true));
    index.set_interfaces(veths(&[(7, "10.0.0.1"), (8, "10.0.0.2")]));
    index.apply(Event::Namespace("shop".into(), Update::Set(NamespaceInfo::default())));
    // A successor has the name, and nothing isolates that one.
    index.apply(Event::Pod(
        name("web"),
        Update::Set(pod("u9", "node1", "10.0.0.2", "web")),
    ));
    let desired = index.desired();
    assert_eq!(
        desired.tables_of(7, &desired.endpoints[&7]),
        None,
        "nobody knows its labels: what is in force stays"
    );
    assert!(desired.tables_of(8, &desired.endpoints[&8]).is_some());
}

#[test]
fn a_pod_cannot_give_itself_or_others_another_interface() {
    let mut index = index();
    index.apply(Event::Pod(
        name("victim"),
        Update::Set(pod("u2", "node1", "10.0.0.2", "web")),
    ));
    assert_eq!(index.desired().endpoints.len(), 2);
    // web, at 7, moves its own address away and takes the victim's.
    index.set_interfaces(veths(&[(7, "10.0.0.2"), (8, "10.0.0.2")]));
    let desired = index.desired();
    assert_eq!(desired.endpoints[&7].pod, name("web"));
    assert_eq!(desired.endpoints[&7].addresses, [address("10.0.0.1")]);
    assert_eq!(desired.endpoints[&8].pod, name("victim"));
    assert!(desired.unmanaged.is_empty());
    // Nor does it catch a pod that comes later.
    index.set_interfaces(veths(&[(7, "10.0.0.3"), (8, "10.0.0.2"), (9, "10.0.0.3")]));
    index.apply(Event::Pod(
        name("late"),
        Update::Set(pod("u3", "node1", "10.0.0.3", "web")),
    ));
    assert_eq!(index.desired().endpoints[&9].pod, name("late"));
}

fn inherited(pod: &str, uid: &str, assigned: bool) -> EndpointSpec {
    EndpointSpec {
        pod: name(pod),
        pod_uid: uid.into(),
        addresses: vec![address("10.0.0.1")],
        log_denies: false,
        assigned,
    }
}

#[test]
fn an_address_leaves_its_pod_with_the_interface() {
    let mut index = index();
    index.desired();
    // Deleted, but not yet gone: its interface is, and another has the address.
    index.set_interfaces(veths(&[(9, "10.0.0.1")]));
    let desired = index.desired();
    assert!(desired.endpoints.is_empty(), "{:?}", desired.endpoints);
    assert!(desired.unmanaged.contains_key(&name("web")));
    // News of it changes nothing, and the address's next pod is not kept from it.
    index.apply(Event::Pod(
        name("web"),
        Update::Set(pod("u1", "node1", "10.0.0.1", "relabelled")),
    ));
    index.apply(Event::Pod(
        name("next"),
        Update::Set(pod("u2", "node1", "10.0.0.1", "web")),
    ));
    let desired = index.desired();
    assert_eq!(desired.endpoints[&9].pod, name("next"));
    // The pod itself has another sandbox, with an address of its own.
    index.set_interfaces(veths(&[(9, "10.0.0.1"), (10, "10.0.0.4")]));
    index.apply(Event::Pod(
        name("web"),
        Update::Set(pod("u1", "node1", "10.0.0.4", "web")),
    ));
    assert_eq!(index.desired().endpoints[&10].pod, name("web"));
}

#[test]
fn two_pods_that_claim_an_address_get_no_interface_by_it() {
    let mut index = index();
    for uid in ["u2", "u3"] {
        index.apply(Event::Pod(name(uid), Update::Set(pod(uid, "node1", "10.0.0.2", "web"))));
    }
    let desired = index.desired();
    assert_eq!(desired.endpoints.keys().copied().collect::<Vec<_>>(), [7]);
    index.apply(Event::Pod(name("u2"), Update::Gone));
    assert_eq!(index.desired().endpoints[&8].pod, name("u3"));
}

#[test]
fn what_an_earlier_life_managed_is_known_by_its_interface() {
    let mut index = Index::new("node1", true);
    index.inherit(7, inherited("web", "u1", false));
    index.inherit(6, inherited("gone", "u0", false));
    index.set_interfaces(veths(&[(7, "10.9.9.9"), (8, "10.0.0.1")]));
    index.apply(Event::Namespace("shop".into(), Update::Set(NamespaceInfo::default())));
    index.apply(Event::Pod(
        name("web"),
        Update::Set(pod("u1", "node1", "10.0.0.1", "web")),
    ));
    let desired = index.desired();
    assert_eq!(desired.endpoints.keys().copied().collect::<Vec<_>>(), [7]);
    assert_eq!(desired.endpoints[&7].addresses, [address("10.0.0.1")]);
}

#[test]
fn a_successor_of_the_same_name_is_another_endpoint() {
    let mut index = index();
    index.desired();
    index.apply(Event::Pod(
        name("web"),
        Update::Set(pod("u9", "node1", "10.0.0.2", "web")),
    ));
    let desired = index.desired();
    assert_eq!(desired.endpoints[&7].pod_uid, "u1".into());
    assert_eq!(desired.endpoints[&8].pod_uid, "u9".into());
}

#[test]
fn what_does_not_decode_leaves_the_last_good_version() {
    let mut index = index();
    index.apply(Event::Policy(
        name("deny"),
        Update::Invalid("spec.podSelector: bad".into()),
    ));
    assert!(index.desired().tables.endpoints[&name("web")].ingress.is_some());
    let invalid: Vec<_> = index.invalid_objects().collect();
    assert_eq!(invalid.len(), 1);
    assert_eq!(
        (invalid[0].kind, invalid[0].name.as_str()),
        (Kind::NetworkPolicy, "shop/deny")
    );

    index.apply(Event::Policy(name("deny"), Update::Gone));
    assert_eq!(index.invalid_objects().count(), 0);
    assert!(index.desired().tables.endpoints.is_empty());
}

#[test]
fn a_refused_policy_isolates_only_where_nothing_better_is_in_force() {
    let mut index = index();
    let instead = |policy| Policy {
        generation: 9,
        ..isolating(policy)
    };
    index.apply(bad("p1", "deny", Some(instead("deny"))));
    index.apply(bad("p2", "new", Some(instead("new"))));
    let tables = index.desired().tables;
    let ingress = tables.endpoints[&name("web")].ingress.as_ref().unwrap();
    let in_force: Vec<_> = ingress
        .policies
        .iter()
        .map(|policy| (policy.name.clone(), policy.generation))
        .collect();
    assert_eq!(in_force, [(name("deny"), 1), (name("new"), 9)]);
    assert_eq!(index.invalid_objects().count(), 2);
}

/// Selects the pods of one app, in one direction.
fn selecting(app: &str, direction: Direction) -> Policy {
    let requirement = Requirement {
        key: "app".into(),
        operator: Operator::In(vec![app.into()]),
    };
    let rules = |of| (direction == of).then(Vec::new);
    Policy {
        pod_selector: Selector {
            requirements: vec![requirement],
        },
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
        ..isolating("p")
    }
}

#[test]
fn what_isolates_in_place_of_a_bad_policy_follows_it() {
    use Direction::{Egress, Ingress};
    type Isolated = (&'static str, Direction);
    let stand_in = |uid, app, direction| bad(uid, "p", Some(selecting(app, direction)));
    let table: [(&str, Vec<Event>, &[Isolated]); 8] = [
        (
            "its selector changes",
            vec![stand_in("p1", "a", Ingress), stand_in("p1", "b", Ingress)],
            &[("b", Ingress)],
        ),
        (
            "its types change",
            vec![stand_in("p1", "a", Ingress), stand_in("p1", "a", Egress)],
            &[("a", Egress)],
        ),
        (
            "whom it means cannot be told any more",
            vec![stand_in("p1", "a", Ingress), bad("p1", "p", None)],
            &[("a", Ingress)],
        ),
        (
            "it was good",
            vec![good("p1", selecting("a", Ingress)), stand_in("p1", "b", Ingress)],
            &[("a", Ingress)],
        ),
        (
            "it was good in between",
            vec![
                stand_in("p1", "b", Ingress),
                good("p1", selecting("a", Ingress)),
                stand_in("p1", "b", Ingress),
            ],
            &[("a", Ingress)],
        ),
        (
            "it was good when it was another object",
            vec![good("p1", selecting("a", Ingress)), stand_in("p2", "b", Ingress)],
            &[("b", Ingress)],
        ),
        (
            "the same, and whom it means cannot be told",
            vec![good("p1", selecting("a", Ingress)), bad("p2", "p", None)],
            &[],
        ),
        (
            "it is deleted",
            vec![stand_in("p1", "a", Ingress), Event::Policy(name("p"), Update::Gone)],
            &[],
        ),
    ];
    for (why, events, expected) in table {
        let mut index = Index::new("node1", true);
        index.apply(Event::Namespace("shop".into(), Update::Set(NamespaceInfo::default())));
        for (app, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
            index.apply(Event::Pod(name(app), Update::Set(pod(app, "node1", ip, app))));
        }
        for event in events {
            index.apply(event);
            index.desired();
        }
        let tables = index.desired().tables;
        let isolated = tables.endpoints.iter().flat_map(|(pod, tables)| {
            let sides = [(Ingress, tables.ingress.is_some()), (Egress, tables.egress.is_some())];
            let isolated = sides.into_iter().filter(|(_, is_isolated)| *is_isolated);
            isolated.map(|(direction, _)| (&*pod.name, direction))
        });
        assert_eq!(isolated.collect::<Vec<_>>(), expected, "{why}");
    }
}

#[test]
fn a_bad_dataplane_is_named_until_it_is_mended() {
    let mut index = index();
    let before = index.desired().tables;
    index.apply(Event::Dataplane(Update::Invalid("spec.limits.rules: bad".into())));
    let invalid: Vec<_> = index.invalid_objects().collect();
    assert_eq!(invalid.len(), 1);
    assert_eq!(
        (invalid[0].kind, invalid[0].name.as_str()),
        (Kind::Dataplane, "default")
    );
    assert_eq!(index.desired().tables, before);
    index.apply(Event::Dataplane(Update::Set(())));
    assert_eq!(index.invalid_objects().count(), 0);
}

#[test]
fn a_list_removes_what_it_does_not_name() {
    let mut index = index();
    index.apply(Event::Listed(Kind::NetworkPolicy, BTreeSet::new()));
    assert!(index.desired().tables.endpoints.is_empty());
    assert!(!index.is_synced());
    for kind in Kind::WATCHED {
        index.apply(Event::Listed(
            kind,
            BTreeSet::from(["shop".to_owned(), "shop/web".to_owned()]),
        ));
    }
    assert!(index.is_synced());
    assert_eq!(index.desired().endpoints.len(), 1);
}

#[test]
fn logging_off_without_an_object_and_last_good_with_a_bad_one() {
    let mut index = index();
    let off = LogModes {
        allow: Logged::Off,
        deny: Logged::Off,
    };
    assert_eq!(index.desired().log_modes, off);
    let spec = LoggingSpec {
        generation: 3,
        allow: Logged::All,
        deny: Logged::Delegated,
        deny_events: false,
    };
    index.apply(Event::Logging(Update::Set(spec)));
    index.apply(Event::Logging(Update::Invalid("spec.cluster: bad".into())));
    assert_eq!(
        index.desired().log_modes,
        LogModes {
            allow: Logged::All,
            deny: Logged::Delegated
        }
    );
    assert_eq!(index.logging().map(|logging| logging.generation), Some(3));
    index.apply(Event::Logging(Update::Gone));
    assert_eq!(index.desired().log_modes, off);
}

#[test]
fn host_ports_are_those_of_this_nodes_pods_while_they_live() {
    let told = |node: &str, host_network: bool, phase: &str| {
        let object = format!(
            "{{metadata: {{namespace: shop, name: dns, uid: u9}},
              spec: {{nodeName: {node}, hostNetwork: {host_network},
                containers: [{{name: c, ports: [{{containerPort: 53, hostPort: 53, protocol: UDP}}]}}]}},
              status: {{phase: {phase}, podIPs: [{{ip: 10.0.0.2}}]}}}}"
        );
        let key = crate::watch::ObjectKey {
            namespace: "shop".into(),
            name: "dns".into(),
            uid: "u9".into(),
        };
        let object = serde_yaml::from_str(&object).unwrap();
        crate::watch::convert::pod(&key, crate::watch::Seen::Here(object))
    };
    let mut index = index();
    let mut interfaces = veths(&[(7, "10.0.0.1"), (8, "10.0.0.2")]);
    interfaces.local.insert(address("192.0.2.1"));
    index.set_interfaces(interfaces);
    let mut has_front = |event| {
        index.apply(event);
        index.services().take_changes();
        let key = crate::services::FrontKey {
            address: address("192.0.2.1"),
            port: Some((wardline_policy::model::Protocol::Udp, 53)),
        };
        index.services().front(&key).map(|front| front.backends.to_vec())
    };
    let leads = Some(vec!["10.0.0.2:53".parse().unwrap()]);
    assert_eq!(has_front(told("node2", false, "Running")), None, "another node's");
    assert_eq!(has_front(told("node1", true, "Running")), None, "on the host network");
    for ends in [
        told("node1", false, "Succeeded"),
        told("node1", false, "Failed"),
        Event::Pod(name("dns"), Update::Gone),
        Event::Listed(Kind::Pod, BTreeSet::from(["shop/web".to_owned()])),
    ] {
        assert_eq!(has_front(told("node1", false, "Running")), leads);
        assert_eq!(has_front(ends.clone()), None, "{ends:?}");
    }
}
