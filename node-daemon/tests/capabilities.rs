// SPDX-License-Identifier: Apache-2.0
//! Each capability of the daemon is needed, and no other is. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::mpsc;

use caps::{CapSet, Capability, CapsHashSet};
use wardline_bpf::frame::{self, flag};
use wardline_crds::config::DaemonConfig;
use wardline_node::datapath::{Datapath, LoadError, PinPaths};
use wardline_node::names::Names;
use wardline_policy::model::{Direction, ObjectName, Objects, Policy, Selector};

use support::{Node, on_a_node, on_each_node, one_pod};

/// What the operator gives it: `CAPABILITIES` in operator/src/dataplane/build.rs.
const ALL: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

fn all_but(missing: Capability) -> CapsHashSet {
    ALL.into_iter().filter(|one| *one != missing).collect()
}

/// Runs `work` on a thread that has these and no others; the thread ends with it.
fn with<T: Send>(capabilities: &CapsHashSet, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            caps::clear(None, CapSet::Inheritable).unwrap();
            for set in [CapSet::Effective, CapSet::Permitted] {
                caps::set(None, set, capabilities).unwrap();
            }
            work()
        });
        thread.join().unwrap()
    })
}

/// The daemon's own check, as a container's runtime would start it: as root, with these in its bounding set.
fn check(node: &Node, capabilities: &CapsHashSet) -> Output {
    let names = capabilities
        .iter()
        .map(|one| format!("+{}", one.to_string().trim_start_matches("CAP_").to_lowercase()));
    let sets = ["-all".to_owned()]
        .into_iter()
        .chain(names)
        .collect::<Vec<_>>()
        .join(",");
    Command::new("setpriv")
        .args(["--no-new-privs", "--inh-caps=-all", &format!("--bounding-set={sets}")])
        .arg(env!("CARGO_BIN_EXE_wardline-node"))
        .args(["--check", "--node-name=node1", "--bpffs"])
        .arg(&node.bpffs)
        .output()
        .unwrap()
}

fn config() -> DaemonConfig {
    let mut config = DaemonConfig::default();
    // Quick to make.
    config.limits.connections = 1024;
    config
}

#[test]
fn what_is_missing_is_named() {
    on_a_node(0, |node| {
        for missing in ALL {
            let output = check(node, &all_but(missing));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success() && said.contains(&format!("capability {missing} is missing: add it to")),
                "{missing}: {output:?}"
            );
        }
        let output = check(node, &ALL.into());
        assert!(output.status.success(), "{output:?}");
    });
}

/// It is the kernel that asks for them, not our word alone.
#[test]
fn without_one_of_them_the_kernel_takes_no_programs() {
    on_each_node(0, |node| {
        for missing in ALL {
            let error = with(&all_but(missing), || {
                let names = Arc::new(Names::open(&node.state).unwrap());
                Datapath::load(&PinPaths::new(&node.bpffs), &config(), names, node.attach).err()
            });
            match error {
                Some(LoadError::Load(cause)) => println!("without {missing}: {cause}"),
                other => panic!("without {missing}: {other:?}"),
            }
        }
    });
}

/// A pod that takes nothing.
fn objects() -> Objects {
    let mut objects = one_pod("server", "node1");
    let policy = Policy {
        name: ObjectName::new("shop", "nothing"),
        generation: 1,
        log: false,
        pod_selector: Selector::default(),
        ingress: Some(Vec::new()),
        egress: None,
    };
    objects.policies.insert(policy.name.clone(), Arc::new(policy));
    objects
}

#[test]
fn with_them_alone_programs_are_loaded_and_attached_and_their_events_read() {
    on_each_node(1, |node| {
        let (attached, guarded) = mpsc::channel();
        let (denied, told) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                with(&ALL.into(), move || {
                    let mut life = node.start(&config());
                    let applied = life.apply(&node.desired(&objects(), "node1"));
                    assert_eq!(applied.failed.len(), 0, "{:?}", applied.failed);
                    attached.send(()).unwrap();
                    told.recv().unwrap();
                    let records = life.records();
                    assert!(
                        records.iter().any(|record| record["reason"] == "default-deny"),
                        "{records:?}"
                    );
                    // Another life takes over what is there, with as little.
                    drop(life);
                    node.start(&config()).apply(&node.desired(&objects(), "node1"));
                });
            });
            guarded.recv().unwrap();
            // To run a program by its id takes more than the daemon has.
            let program = support::Program::attached(node.attach, node.veths[0], Direction::Ingress);
            let [client, server]: [SocketAddr; 2] = ["10.0.1.1:40000", "10.0.0.1:80"].map(|at| at.parse().unwrap());
            assert!(!program.passes(&frame::tcp(client, server, flag::SYN)));
            denied.send(()).unwrap();
        });
    });
}
