// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeSet;

use wardline_cni::protocol::PodId;
use wardline_policy::model::{Labels, Peer, Policy, Rule, Selector};

use super::super::{Event, Kind, NamespaceInfo, PolicyInfo, Update};
use super::*;
use crate::interfaces::{Interfaces, Veth};

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(pod: &str) -> ObjectName {
    ObjectName::new("shop", pod)
}

/// A pod of node1 without an address yet, unless `ip` gives it one; its label is its name.
fn pod(pod: &str, uid: &str, ip: Option<&str>) -> (ObjectName, PodInfo) {
    let policy = Pod {
        labels: Labels::from([("app".to_owned(), pod.to_owned())]),
        addresses: ip.into_iter().map(address).collect(),
        node: "node1".into(),
        ports: Vec::new(),
    };
    let info = PodInfo {
        uid: uid.into(),
        static_uid: None,
        node: "node1".into(),
        policy: Some(Arc::new(policy)),
        host_ports: Vec::new(),
        is_written: ip.is_some(),
        created: 0,
        workload: None,
    };
    (name(pod), info)
}

fn set(index: &mut Index, (name, info): (ObjectName, PodInfo)) {
    index.apply(Event::Pod(name, Update::Set(info)));
}

fn network(pod: &str, uid: &str, veth: &str, ip: &str) -> Network {
    Network {
        attachment: Attachment {
            container_id: format!("sandbox-at-{veth}"),
            ifname: "eth0".into(),
        },
        pod: PodId {
            namespace: "shop".into(),
            name: pod.into(),
            uid: uid.into(),
        },
        host_interfaces: vec!["cni0".into(), veth.into()],
        addresses: vec![address(ip)],
    }
}

fn interfaces(indexes: &[u32], ip: &str) -> Interfaces {
    let veth = |index: &u32| Veth {
        name: format!("veth{index}"),
        addresses: BTreeSet::from([address(ip)]),
    };
    Interfaces {
        veths: indexes.iter().map(|index| (*index, veth(index))).collect(),
        local: BTreeSet::new(),
    }
}

/// Everything is listed, and the veths 7 and 8 both have address A.
fn index() -> Index {
    let mut index = Index::new("node1", true);
    index.set_interfaces(interfaces(&[7, 8], A));
    index.apply(Event::Namespace("shop".into(), Update::Set(NamespaceInfo::default())));
    for kind in Kind::WATCHED {
        index.apply(Event::Listed(kind, BTreeSet::from(["shop".to_owned()])));
    }
    index
}

/// The one pod at an address, as a peer and at the interfaces of pods that are still there.
fn owner(index: &mut Index, ip: &str) -> Option<String> {
    let desired = index.desired();
    let pods: Vec<ObjectName> = index
        .objects
        .pods
        .iter()
        .filter(|(_, pod)| pod.addresses.contains(&address(ip)))
        .map(|(name, _)| name.clone())
        .collect();
    let at: Vec<&EndpointSpec> = desired
        .endpoints
        .values()
        .filter(|spec| index.pods.contains_key(&spec.pod) && spec.addresses.contains(&address(ip)))
        .collect();
    match &pods[..] {
        [only] => {
            assert!(at.iter().all(|spec| spec.pod == *only), "{only} against {at:?}");
            Some(only.name.to_string())
        }
        _ => None,
    }
}

#[test]
fn a_pod_is_guarded_before_its_status_has_an_address() {
    let mut index = index();
    let isolating = Policy {
        name: name("isolates"),
        generation: 1,
        log: false,
        pod_selector: Selector::default(),
        ingress: Some(vec![Rule {
            peers: Some(vec![Peer::Pods {
                namespaces: None,
                pods: Selector::default(),
            }]),
            ports: None,
        }]),
        egress: None,
    };
    index.apply(Event::Policy(
        name("isolates"),
        Update::Set(PolicyInfo {
            uid: "p1".into(),
            policy: isolating,
        }),
    ));
    set(&mut index, pod("web", "u1", None));
    let bound = index.attach(&network("web", "u1", "veth7", A));
    assert_eq!(
        bound,
        Attach::Bound {
            index: 7,
            pod_uid: "u1".into()
        }
    );
    let desired = index.desired();
    assert_eq!(desired.endpoints[&7].addresses, [address(A)]);
    assert!(desired.endpoints[&7].assigned && desired.unmanaged.is_empty());
    assert!(desired.tables.endpoints[&name("web")].ingress.is_some());
    assert!(
        desired.tables.peers.contains_key(&address(A)),
        "a peer at once: {desired:?}"
    );
}

#[test]
fn what_is_not_known_yet_is_waited_for() {
    let mut index = Index::new("node1", true);
    let add = network("web", "u2", "veth7", A);
    assert_eq!(index.attach(&add), Attach::NotYet(NOT_LISTED));
    let mut index = self::index();
    assert_eq!(index.attach(&add), Attach::NotYet(NOT_SEEN));
    set(&mut index, pod("web", "u1", None));
    assert_eq!(
        index.attach(&add),
        Attach::NotYet(NOT_SEEN),
        "a predecessor of the same name"
    );
    set(&mut index, pod("web", "u2", None));
    index.set_interfaces(interfaces(&[], A));
    assert_eq!(index.attach(&add), Attach::NotYet(NO_INTERFACE));
    index.set_interfaces(interfaces(&[7], A));
    assert!(matches!(index.attach(&add), Attach::Bound { index: 7, .. }));
}

#[test]
fn what_never_will_be_is_refused() {
    let mut index = index();
    let (far, mut info) = pod("far", "u1", None);
    info.node = "node2".into();
    set(&mut index, (far, info));
    let (ended, mut info) = pod("ended", "u2", None);
    info.policy = None;
    set(&mut index, (ended, info));
    for (pod, uid) in [("far", "u1"), ("ended", "u2")] {
        let refused = index.attach(&network(pod, uid, "veth7", A));
        assert!(matches!(refused, Attach::Refused(_)), "{refused:?}");
    }
}

#[test]
fn a_static_pod_is_known_by_kubelets_uid() {
    let mut index = index();
    let (mirror, mut info) = pod("web", "uid-of-the-mirror", None);
    info.static_uid = Some("hash".into());
    set(&mut index, (mirror, info));
    let bound = index.attach(&network("web", "hash", "veth7", A));
    assert_eq!(
        bound,
        Attach::Bound {
            index: 7,
            pod_uid: "uid-of-the-mirror".into()
        }
    );
}

#[test]
fn an_address_that_is_handed_on_is_the_new_pods_alone() {
    let mut index = index();
    set(&mut index, pod("old", "u1", Some(A)));
    assert_eq!(owner(&mut index, A), Some("old".into()));
    set(&mut index, pod("new", "u2", None));
    index.set_interfaces(interfaces(&[8], A));
    index.attach(&network("new", "u2", "veth8", A));
    assert_eq!(owner(&mut index, A), Some("new".into()));
    // Its status catches up, and the old one's is told once more.
    set(&mut index, pod("new", "u2", Some(A)));
    set(&mut index, pod("old", "u1", None));
    set(&mut index, pod("old", "u1", Some(A)));
    assert_eq!(owner(&mut index, A), Some("new".into()));
    assert!(index.desired().unmanaged.is_empty(), "the old one claims nothing here");
    // When the new one goes first, the claim that is left is the old one's.
    index.apply(Event::Pod(name("new"), Update::Gone));
    assert_eq!(owner(&mut index, A), Some("old".into()));
}

#[test]
fn two_claims_without_an_announcement_are_nobodys() {
    let mut index = index();
    set(&mut index, pod("one", "u1", Some(A)));
    set(&mut index, pod("two", "u2", Some(A)));
    assert_eq!(owner(&mut index, A), None);
}

#[test]
fn the_later_of_two_announcements_counts() {
    let mut index = index();
    set(&mut index, pod("one", "u1", None));
    set(&mut index, pod("two", "u2", None));
    index.attach(&network("one", "u1", "veth7", A));
    index.attach(&network("two", "u2", "veth8", A));
    assert_eq!(owner(&mut index, A), Some("two".into()));
}

#[test]
fn del_gives_the_address_back_and_keeps_the_guard() {
    let mut index = index();
    set(&mut index, pod("old", "u1", Some(A)));
    set(&mut index, pod("new", "u2", None));
    let add = network("new", "u2", "veth8", A);
    index.attach(&add);
    let another = Attachment {
        container_id: "another".into(),
        ..add.attachment.clone()
    };
    assert!(!index.detach(&another), "an older sandbox of the pod");
    assert_eq!(owner(&mut index, A), Some("new".into()));
    assert!(index.detach(&add.attachment));
    assert!(!index.detach(&add.attachment), "twice is no error");
    assert_eq!(
        index.desired().endpoints[&8].pod,
        name("new"),
        "guarded while its interface is there"
    );
    index.set_interfaces(interfaces(&[7], A));
    assert_eq!(owner(&mut index, A), Some("old".into()));
}

#[test]
fn gc_keeps_what_it_lists() {
    let mut index = index();
    set(&mut index, pod("one", "u1", None));
    set(&mut index, pod("two", "u2", None));
    let (one, two) = (network("one", "u1", "veth7", A), network("two", "u2", "veth8", B));
    index.attach(&one);
    index.attach(&two);
    assert!(index.collect(std::slice::from_ref(&one.attachment)));
    assert_eq!((owner(&mut index, A), owner(&mut index, B)), (Some("one".into()), None));
    assert!(!index.collect(&[one.attachment]));
}

#[test]
fn an_add_that_failed_leaves_nothing() {
    let mut index = index();
    set(&mut index, pod("old", "u1", Some(B)));
    set(&mut index, pod("new", "u2", None));
    index.attach(&network("new", "u2", "veth8", B));
    assert!(index.unattach(8));
    let desired = index.desired();
    assert!(!desired.endpoints.contains_key(&8), "{desired:?}");
    assert_eq!(owner(&mut index, B), Some("old".into()));
}

#[test]
fn a_sandbox_that_is_made_anew_takes_its_pod_along() {
    let mut index = index();
    set(&mut index, pod("web", "u1", None));
    index.attach(&network("web", "u1", "veth7", A));
    set(&mut index, pod("web", "u1", Some(A)));
    index.attach(&network("web", "u1", "veth8", B));
    assert_eq!(owner(&mut index, B), Some("web".into()), "the status still says A");
    assert_eq!(owner(&mut index, A), None);
    assert_eq!(index.desired().endpoints[&8].addresses, [address(B)]);
    assert_eq!(
        index.attached_at(&network("web", "u1", "veth8", B)),
        Some((8, "u1".into()))
    );
    // kubelet catches up, and later tells an address that nobody announced.
    for status in [B, "10.0.0.3"] {
        set(&mut index, pod("web", "u1", Some(status)));
        assert_eq!(owner(&mut index, status), Some("web".into()));
        assert_eq!(index.desired().endpoints[&8].addresses, [address(status)]);
    }
    assert_eq!(owner(&mut index, B), None);
}

#[test]
fn claims_outlive_the_daemon() {
    let mut index = Index::new("node1", true);
    let spec = |pod: &str, uid: &str, ip| EndpointSpec {
        pod: name(pod),
        pod_uid: uid.into(),
        addresses: vec![address(ip)],
        log_denies: false,
        assigned: true,
    };
    index.inherit(7, spec("new", "u2", A));
    index.inherit(8, spec("gone", "u0", B));
    index.set_interfaces(interfaces(&[7, 8], A));
    index.apply(Event::Namespace("shop".into(), Update::Set(NamespaceInfo::default())));
    set(&mut index, pod("old", "u1", Some(A)));
    set(&mut index, pod("new", "u2", Some(A)));
    set(&mut index, pod("other", "u3", Some(B)));
    let listed = ["shop", "shop/old", "shop/new", "shop/other"].map(str::to_owned);
    for kind in Kind::WATCHED {
        index.apply(Event::Listed(kind, BTreeSet::from(listed.clone())));
    }
    assert_eq!(owner(&mut index, A), Some("new".into()));
    assert_eq!(
        owner(&mut index, B),
        Some("other".into()),
        "who is no more claims nothing"
    );
    assert_eq!(
        index.attached_at(&network("new", "u2", "veth7", A)),
        Some((7, "u2".into()))
    );
}

/// Isolates every pod of the namespace.
fn isolates_all() -> Event {
    let policy = Policy {
        name: name("isolates"),
        generation: 1,
        log: false,
        pod_selector: Selector::default(),
        ingress: Some(Vec::new()),
        egress: None,
    };
    let uid = "p1".into();
    Event::Policy(name("isolates"), Update::Set(PolicyInfo { uid, policy }))
}

#[test]
fn the_interface_of_a_former_sandbox_takes_no_guard_along() {
    let mut index = index();
    index.apply(isolates_all());
    set(&mut index, pod("web", "u1", None));
    index.attach(&network("web", "u1", "veth7", A));
    set(&mut index, pod("web", "u1", Some(A)));
    index.attach(&network("web", "u1", "veth8", B));
    set(&mut index, pod("web", "u1", Some(B)));
    // The former sandbox's namespace is torn down only now.
    index.set_interfaces(interfaces(&[8], B));
    let desired = index.desired();
    let tables = desired.tables_of(8, &desired.endpoints[&8]);
    assert!(
        tables.is_some_and(|tables| tables.ingress.is_some()),
        "nothing isolates it any more"
    );
    assert_eq!(owner(&mut index, B), Some("web".into()), "it is a peer");
}

#[test]
fn an_add_ahead_of_the_binding_is_waited_for() {
    let mut index = index();
    let (web, info) = pod("web", "u1", None);
    let unscheduled = PodInfo {
        node: "".into(),
        policy: None,
        ..info
    };
    set(&mut index, (web, unscheduled));
    let add = index.attach(&network("web", "u1", "veth7", A));
    assert_eq!(add, Attach::NotYet(NOT_SCHEDULED));
}

#[test]
fn an_interface_made_anew_under_its_name_is_looked_for() {
    let index = index();
    let network = network("web", "u1", "veth7", A);
    for (why, on_the_node, expected) in [
        ("as scanned", Some(7), false),
        ("another has the name", Some(9), true),
        ("it is gone", None, true),
    ] {
        assert_eq!(index.lacks_interface(&network, |_| on_the_node), expected, "{why}");
    }
}

#[test]
fn a_status_that_is_behind_is_no_news_after_a_restart_either() {
    let mut index = Index::new("node1", true);
    index.inherit(
        7,
        EndpointSpec {
            pod: name("web"),
            pod_uid: "u1".into(),
            addresses: vec![address(B)],
            log_denies: false,
            assigned: true,
        },
    );
    index.set_interfaces(interfaces(&[7], B));
    index.apply(Event::Namespace("shop".into(), Update::Set(NamespaceInfo::default())));
    // Of the sandbox before.
    set(&mut index, pod("web", "u1", Some(A)));
    assert_eq!(owner(&mut index, B), Some("web".into()));
    assert_eq!(owner(&mut index, A), None);
    for caught_up in [B, "10.0.0.3"] {
        set(&mut index, pod("web", "u1", Some(caught_up)));
        assert_eq!(owner(&mut index, caught_up), Some("web".into()));
    }
}
