// SPDX-License-Identifier: Apache-2.0
//! Another version of the daemon takes over from one that has run: what that one left lies under the name of another
//! version here. Layouts that really differ are tried on a cluster.

use std::fs;

use wardline_bpf::frame::{self, flag};
use wardline_crds::config::DaemonConfig;
use wardline_policy::model::{Direction, Objects};

use crate::support::{Life, Node, on_each_node, programs_at};
use crate::{A, B, Edge, NODE, SERVER, admit, objects, socket};

/// Another version has let A connect.
fn another_version_has_run(node: &Node) -> Objects {
    let mut objects = objects();
    admit(&mut objects, 1, &["a", "b"]);
    let mut life = node.start(&DaemonConfig::default());
    life.apply(&node.desired(&objects, NODE));
    assert!(Edge::of(node, &life).connect(A));
    drop(life);
    node.becomes_another_version();
    objects
}

fn layouts(node: &Node) -> Vec<String> {
    let entries = fs::read_dir(node.bpffs.join("wardline")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn advance(life: &mut Life) {
    assert!(life.succession.is_due());
    life.succession.advance(&mut life.log).unwrap();
    assert!(!life.succession.is_due());
}

fn of(disposition: &str, records: &[serde_json::Value]) -> usize {
    records
        .iter()
        .filter(|record| record["disposition"] == disposition)
        .count()
}

fn refused(edge: &Edge, port: u16) -> bool {
    !edge
        .ingress
        .passes(&frame::tcp(socket(A, 40_000), socket(SERVER, port), flag::SYN))
}

#[test]
fn another_version_takes_over_connections_account_and_programs() {
    on_each_node(1, |node| {
        let mut objects = objects();
        admit(&mut objects, 1, &["a", "b"]);
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.connect(A) && refused(&edge, 81));
        drop(life);
        let former = node.becomes_another_version();

        let mut life = node.start(&DaemonConfig::default());
        // It judges by its own maps until the new ones are filled.
        assert!(edge.connect(B) && edge.talks(A) && refused(&edge, 82));
        assert!(!life.succession.is_due());
        life.apply(&node.desired(&objects, NODE));
        for direction in [Direction::Ingress, Direction::Egress] {
            assert_eq!(
                programs_at(node.attach, node.veths[0], direction).len(),
                1,
                "one in the place of the other"
            );
        }
        let edge = Edge::of(node, &life);
        assert!(edge.talks(A) && edge.talks(B), "connections live on");
        assert!(refused(&edge, 83));
        let swept = life.conntrack.sweep(crate::monotonic()).unwrap();
        assert_eq!((swept.entries, swept.deleted), (2, 0));

        advance(&mut life);
        assert_eq!(layouts(node), ["v1"]);
        assert!(!former.maps.exists());
        let records = life.all_records();
        assert_eq!(
            (of("allow", &records), of("deny", &records), of("lost", &records)),
            (2, 3, 0),
            "{records:?}"
        );
        assert_eq!(life.log.imbalance(), Some([[0; 2]; 2]));
        let written = life.log.ledger().written;
        assert_eq!(written, [[2, 3], [0, 0]], "totals go on");
        life.datapath.collect_garbage().unwrap();
        life.datapath.forget_names().unwrap();
        assert!(edge.talks(A) && edge.talks(B));
        drop(life);

        // Nothing is told twice, or missing, in the lives after.
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, NODE));
        assert_eq!(life.all_records().len(), 5);
    });
}

#[test]
fn a_life_that_is_killed_while_it_takes_over_is_gone_on_with() {
    on_each_node(1, |node| {
        let objects = another_version_has_run(node);
        // Killed before the first change, and when its pods are its own but what was counted is not written.
        drop(node.start(&DaemonConfig::default()));
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.talks(A) && edge.connect(B) && refused(&edge, 81));
        drop(life);

        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.talks(A) && edge.talks(B));
        advance(&mut life);
        let records = life.all_records();
        assert_eq!(
            (of("allow", &records), of("deny", &records), of("lost", &records)),
            (2, 1, 0),
            "{records:?}"
        );
        assert_eq!(layouts(node), ["v1"]);
        assert_eq!(life.log.ledger().written, [[2, 1], [0, 0]]);
    });
}

#[test]
fn a_version_that_comes_back_before_the_next_one_had_all_pods_goes_on() {
    on_each_node(1, |node| {
        let objects = another_version_has_run(node);
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, NODE));
        assert!(Edge::of(node, &life).connect(B));
        drop(life);
        // The older one, whose own maps are still there, is started again: for it, ours are the others.
        let [ours, other, aside] = ["v1", "v0", "v2"].map(|name| node.bpffs.join("wardline").join(name));
        fs::rename(&ours, &aside).unwrap();
        fs::rename(&other, &ours).unwrap();
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects, NODE));
        let edge = Edge::of(node, &life);
        assert!(edge.talks(A) && edge.talks(B) && refused(&edge, 81));
        advance(&mut life);
        let records = life.all_records();
        assert_eq!(
            (of("allow", &records), of("deny", &records), of("lost", &records)),
            (2, 1, 0),
            "{records:?}"
        );
        assert_eq!(layouts(node), ["v1"]);
    });
}

#[test]
fn maps_of_a_layout_that_nobody_knows_are_refused() {
    on_each_node(1, |node| {
        drop(node.start(&DaemonConfig::default()));
        let former = node.becomes_another_version();
        // What a life left that was killed while it made its tables, or removed another's, is nobody's.
        for name in ["v7/maps", "v3-gone/maps"] {
            fs::create_dir_all(node.bpffs.join("wardline").join(name)).unwrap();
        }
        node.try_start(&DaemonConfig::default()).unwrap();
        assert!(!layouts(node).contains(&"v3-gone".to_owned()));
        fs::remove_file(former.maps.join("layout")).unwrap();
        let error = node.try_start(&DaemonConfig::default()).unwrap_err().to_string();
        assert!(error.contains("failed to read the layout of the maps in"), "{error}");
    });
}
