// SPDX-License-Identifier: Apache-2.0
//! A pod ends and another gets its address at once: whatever the order in which the node learns of it, the other never
//! has the identity of the first, as a peer or at its own edge.

use std::net::SocketAddr;

use crate::flows::Server;
use crate::wire::{Cluster, Family, Plugin, connects, listener, on_a_cluster, pod_event, pod_gone};

const SERVER: u8 = 1;
/// Of one pod after the other.
const ADDRESS: u8 = 9;
const OLD: &str = "{app: old}";
const NEW: &str = "{app: new}";

/// The first may come to the server, and go anywhere; the second may do neither.
const FROM_OLD: &str =
    "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: old}}}]}]}";
const NEW_STAYS: &str = "{podSelector: {matchLabels: {app: new}}, policyTypes: [Egress]}";

/// What the node learns, in some order; after each the daemon looks and applies.
#[derive(Clone, Copy, Debug)]
enum News {
    InterfaceGone,
    NewInterface,
    /// kubelet says that the pod has ended.
    OldFinished,
    OldGone,
    /// The new pod's object, with its address.
    NewPod,
}

use News::{InterfaceGone, NewInterface, NewPod, OldFinished, OldGone};

const ORDERS: [&[News]; 5] = [
    &[InterfaceGone, OldFinished, OldGone, NewInterface, NewPod],
    &[InterfaceGone, NewInterface, OldGone, NewPod],
    &[InterfaceGone, NewInterface, NewPod, OldGone],
    &[OldFinished, InterfaceGone, NewInterface, NewPod, OldGone],
    &[OldGone, InterfaceGone, NewInterface, NewPod],
];

fn learn(cluster: &mut Cluster, news: News) {
    match news {
        InterfaceGone => Cluster::unwire("old"),
        NewInterface => cluster.wire("new", ADDRESS),
        OldFinished => cluster.tell(pod_event("old", OLD, ADDRESS, "node1", "Failed")),
        OldGone => cluster.tell(pod_gone("old")),
        NewPod => cluster.tell(pod_event("new", NEW, ADDRESS, "node1", "Running")),
    }
    cluster.look();
    let desired = cluster.index.desired();
    cluster.life().apply(&desired);
}

#[test]
fn a_reused_address_never_has_the_former_pods_identity() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        cluster.pod("witness", 2);
        let server = Server::start("server", SERVER);
        let _witness = listener("witness");
        cluster.policy("from-old", FROM_OLD);
        cluster.policy("new-stays", NEW_STAYS);
        for order in ORDERS {
            cluster.pod("old", ADDRESS);
            cluster.apply();
            server.admits("old", true);
            server.open("old").talk(&server, true);
            for (i, news) in order.iter().enumerate() {
                learn(cluster, *news);
                let learnt = &order[..=i];
                println!("{learnt:?}");
                if learnt.iter().any(|news| matches!(news, NewInterface)) {
                    server.admits("new", false);
                }
                if learnt.iter().any(|news| matches!(news, NewPod)) {
                    let witness = SocketAddr::new(Family::V4.pod(2), crate::wire::PORT);
                    assert!(
                        !connects(Some("new"), witness, false),
                        "the new pod's policy is not in force, after {learnt:?}"
                    );
                }
            }
            // Its own identity is what counts from now on.
            cluster.policy("from-old", &FROM_OLD.replace("old", "new"));
            cluster.no_policy("new-stays");
            cluster.apply();
            server.admits("new", true);
            cluster.policy("from-old", FROM_OLD);
            cluster.policy("new-stays", NEW_STAYS);
            cluster.tell(pod_gone("new"));
            Cluster::unwire("new");
            cluster.look();
        }
    });
}
