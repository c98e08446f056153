// SPDX-License-Identifier: Apache-2.0
//! Our programs at the pods' interfaces, in each way that the kernel has to attach them: first, for as long as the pod
//! is managed, whether the daemon lives or not, and whoever else attaches and detaches. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unsafe_code,
    reason = "tests"
)]

mod support;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use libbpf_rs::{Link, MapCore, MapFlags, TC_EGRESS, TC_INGRESS, TcHookBuilder};
use wardline_bpf::abi::{ENDPOINT_HANDOVER, Endpoint};
use wardline_crds::AttachKind;
use wardline_crds::config::DaemonConfig;
use wardline_node::datapath::InKernel;
use wardline_node::index::Desired;
use wardline_node::{preflight, programs};
use wardline_policy::model::{Direction, Labels, ObjectName, Objects, Pod};
use zerocopy::{FromBytes, IntoBytes};

use support::{Life, Node, on_a_node, on_each_node, output, programs_at};

const NODE: &str = "node1";

/// A pod for each veth, and no policy.
fn desired(node: &Node) -> Desired {
    let mut objects = Objects::default();
    objects.namespaces.insert("shop".into(), Labels::new());
    for i in 1..=node.veths.len() {
        let pod = Pod {
            labels: Labels::new(),
            addresses: vec![format!("10.0.0.{i}").parse().unwrap()],
            node: NODE.into(),
            ports: Vec::new(),
        };
        let name = ObjectName::new("shop", format!("pod{i}"));
        objects.pods.insert(name, Arc::new(pod));
    }
    node.desired(&objects, NODE)
}

fn start(node: &Node, desired: &Desired) -> Life {
    let mut config = DaemonConfig::default();
    // Quick to make.
    config.limits.connections = 1024;
    let mut life = node.start(&config);
    let applied = life.apply(desired);
    assert_eq!(applied.failed.len(), 0, "{:?}", applied.failed);
    life
}

/// The programs at a pod's interface: ingress, egress.
fn programs(node: &Node, ifindex: u32) -> [Vec<u32>; 2] {
    Direction::ALL.map(|direction| programs_at(node.attach, ifindex, direction))
}

#[track_caller]
fn assert_one_each(node: &Node, ifindex: u32) -> [u32; 2] {
    programs(node, ifindex).map(|ids| {
        assert_eq!(ids.len(), 1, "{:?} {ids:?}", node.attach);
        ids[0]
    })
}

#[test]
fn the_node_has_what_the_daemon_asks_for() {
    on_each_node(0, |node| {
        let kernel = preflight::check(&node.bpffs).unwrap();
        let expected = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert_eq!(kernel.release, expected.trim());
    });
}

#[test]
fn programs_stay_when_the_daemon_goes_and_are_replaced_by_the_next() {
    on_each_node(2, |node| {
        let desired = desired(node);
        drop(start(node, &desired));
        let former = assert_one_each(node, node.veths[0]);
        let life = start(node, &desired);
        let replaced = assert_one_each(node, node.veths[0]);
        assert!(
            former.iter().all(|id| !replaced.contains(id)),
            "{former:?} {replaced:?}"
        );
        assert_eq!(life.datapath.bypassed(), []);
    });
}

#[test]
fn a_pod_that_goes_takes_its_programs_along() {
    on_each_node(2, |node| {
        let mut desired = desired(node);
        let mut life = start(node, &desired);
        desired.endpoints.remove(&node.veths[0]);
        life.apply(&desired);
        assert!(programs(node, node.veths[0]).iter().all(Vec::is_empty));
        assert_one_each(node, node.veths[1]);
        // Also one that an earlier life managed.
        drop(life);
        desired.endpoints.clear();
        start(node, &desired);
        assert!(programs(node, node.veths[1]).iter().all(Vec::is_empty));
    });
}

#[test]
fn an_interface_that_passes_to_another_pod_keeps_one_program_a_direction() {
    on_each_node(1, |node| {
        let mut desired = desired(node);
        let mut life = start(node, &desired);
        let endpoint = desired.endpoints.get_mut(&node.veths[0]).unwrap();
        endpoint.pod = ObjectName::new("shop", "other");
        endpoint.pod_uid = "another".into();
        life.apply(&desired);
        assert_one_each(node, node.veths[0]);
    });
}

#[test]
fn programs_that_somebody_takes_off_are_put_back() {
    on_each_node(2, |node| {
        let mut life = start(node, &desired(node));
        assert_eq!(life.datapath.restore(None), []);
        take_off(node, &node.bpffs);
        assert!(programs(node, node.veths[0]).iter().all(Vec::is_empty));

        let elsewhere = BTreeSet::from([node.veths[1] + 1000]);
        assert_eq!(life.datapath.restore(Some(&elsewhere)), []);
        let restored = life.datapath.restore(None);
        let told: Vec<_> = restored
            .iter()
            .map(|restored| (&*restored.pod.name, restored.direction, restored.failure.as_deref()))
            .collect();
        let expected = ["pod1", "pod2"].map(|pod| Direction::ALL.map(|direction| (pod, direction, None)));
        assert_eq!(told, expected.concat());
        for ifindex in &node.veths {
            assert_one_each(node, *ifindex);
        }
        assert_eq!(life.datapath.restore(None), []);
    });
}

/// Pods whose ADD waits: where there is tcx, filters come first.
fn starting(node: &Node) -> Desired {
    let mut desired = desired(node);
    for spec in desired.endpoints.values_mut() {
        spec.assigned = true;
    }
    desired
}

/// How many programs are at the interface's hooks, by links and by filters.
fn counts(ifindex: u32) -> [[usize; 2]; 2] {
    [AttachKind::Tcx, AttachKind::Clsact]
        .map(|kind| Direction::ALL.map(|direction| programs_at(kind, ifindex, direction).len()))
}

const LINKS: [[usize; 2]; 2] = [[1, 1], [0, 0]];
const FILTERS: [[usize; 2]; 2] = [[0, 0], [1, 1]];

fn hand_all_over(life: &mut Life) {
    // Each pod has two directions, and each takes one step.
    for _ in 0..2 * 2 {
        life.datapath.hand_over().unwrap();
    }
    assert!(!life.datapath.has_filters());
}

/// That a link takes over from a filter at the interface, as packets are told.
fn is_handed_over(life: &Life, ifindex: u32) -> bool {
    endpoint(life, ifindex).flags & ENDPOINT_HANDOVER != 0
}

fn endpoint(life: &Life, ifindex: u32) -> Endpoint {
    let entry = life.map("endpoints").lookup(&ifindex.to_ne_bytes(), MapFlags::ANY);
    Endpoint::read_from_bytes(&entry.unwrap().unwrap()).unwrap()
}

/// Runs `test` where filters come before links; before tcx there are no links that could take over from them.
fn where_filters_come_first(veths: usize, test: impl Fn(&Node, Life) + Send + Sync) {
    on_a_node(veths, |node| {
        let life = start(node, &starting(node));
        match node.attach {
            AttachKind::Tcx => test(node, life),
            AttachKind::Clsact => assert!(!life.datapath.has_filters()),
        }
    });
}

fn all_counts(node: &Node) -> Vec<[[usize; 2]; 2]> {
    node.veths.iter().map(|ifindex| counts(*ifindex)).collect()
}

#[test]
fn pods_that_start_have_filters_at_once_and_links_soon() {
    where_filters_come_first(2, |node, mut life| {
        assert_eq!(all_counts(node), [FILTERS; 2]);
        assert_eq!(life.datapath.restore(None), []);
        hand_all_over(&mut life);
        assert_eq!(all_counts(node), [LINKS; 2]);
        assert!(!is_handed_over(&life, node.veths[0]));
        assert_eq!(life.datapath.bypassed(), []);
    });
}

#[test]
fn a_handover_goes_on_in_the_next_life_of_the_daemon() {
    for steps in [1, 3] {
        where_filters_come_first(2, |node, mut life| {
            for _ in 0..steps {
                life.datapath.hand_over().unwrap();
            }
            let before = all_counts(node);
            drop(life);
            let mut life = start(node, &starting(node));
            assert_eq!(all_counts(node), before, "after {steps} steps");
            hand_all_over(&mut life);
            assert_eq!(all_counts(node), [LINKS; 2]);
        });
    }
}

#[test]
fn a_handover_that_was_cut_short_is_brought_to_its_end() {
    where_filters_come_first(2, |node, mut life| {
        hand_all_over(&mut life);
        // As if it had ended between attaching a link and taking the filter off.
        let ifindex = node.veths[0];
        let mut entry = endpoint(&life, ifindex);
        entry.flags |= ENDPOINT_HANDOVER;
        let endpoints = life.map("endpoints");
        endpoints
            .update(&ifindex.to_ne_bytes(), entry.as_bytes(), MapFlags::ANY)
            .unwrap();
        let program = pass_everything();
        let mut filter = TcHookBuilder::new(program.as_fd());
        filter.ifindex(ifindex.cast_signed()).priority(1).handle(0x776c_646e);
        filter.hook(TC_INGRESS).attach().unwrap();
        drop(life);
        let mut life = start(node, &starting(node));
        assert!(is_handed_over(&life, ifindex), "as long as the filter may be there");
        hand_all_over(&mut life);
        assert_eq!(all_counts(node), [LINKS; 2]);
        assert!(!is_handed_over(&life, ifindex));
    });
}

#[test]
fn a_pod_that_goes_takes_its_filters_along() {
    where_filters_come_first(2, |node, mut life| {
        let mut desired = starting(node);
        desired.endpoints.remove(&node.veths[0]);
        life.apply(&desired);
        assert_eq!(all_counts(node), [[[0; 2]; 2], FILTERS]);
        // Also those of a pod that an earlier life managed.
        drop(life);
        desired.endpoints.clear();
        start(node, &desired);
        assert_eq!(all_counts(node), [[[0; 2]; 2]; 2]);
    });
}

#[test]
fn where_others_are_already_links_come_at_once() {
    for theirs in ["clsact", "ingress"] {
        on_each_node(1, |node| {
            if node.attach == AttachKind::Clsact {
                return;
            }
            output("tc", &["qdisc", "add", "dev", "v0", theirs]);
            let life = start(node, &starting(node));
            assert!(!life.datapath.has_filters(), "{theirs}");
            assert_one_each(node, node.veths[0]);
        });
    }
}

/// It takes filters for both hooks of clsact, and has one.
#[test]
fn where_there_is_an_ingress_qdisc_and_no_links_a_pod_is_not_managed() {
    on_each_node(1, |node| {
        if node.attach == AttachKind::Tcx {
            return;
        }
        output("tc", &["qdisc", "add", "dev", "v0", "ingress"]);
        let mut life = node.start(&DaemonConfig::default());
        let applied = life.apply(&desired(node));
        let causes: Vec<&String> = applied.failed.values().collect();
        assert!(matches!(causes[..], [cause] if cause.contains("ingress")), "{causes:?}");
        // Another's clsact will do.
        output("tc", &["qdisc", "del", "dev", "v0", "ingress"]);
        output("tc", &["qdisc", "add", "dev", "v0", "clsact"]);
        let applied = life.apply(&desired(node));
        assert!(applied.failed.is_empty(), "{:?}", applied.failed);
        assert_one_each(node, node.veths[0]);
    });
}

/// Detaches the programs of all pods behind the daemon's back.
fn take_off(node: &Node, bpffs: &std::path::Path) {
    match node.attach {
        AttachKind::Tcx => {
            let links = wardline_node::datapath::PinPaths::new(bpffs).links;
            for pin in std::fs::read_dir(links).unwrap() {
                Link::open(pin.unwrap().path()).unwrap().detach().unwrap();
            }
        }
        AttachKind::Clsact => {
            // One by its filters, as docs/operations.md says, the other with the qdisc.
            for hook in ["ingress", "egress"] {
                let filter = format!("filter del dev v0 {hook} protocol all prio 1 handle 0x776c646e bpf");
                output("tc", &filter.split(' ').collect::<Vec<_>>());
            }
            output("tc", &["qdisc", "del", "dev", "v1", "clsact"]);
        }
    }
}

#[test]
fn a_filter_that_goes_is_noticed_at_once() {
    on_each_node(2, |node| {
        // Of tcx links nobody is told: they are looked after every few seconds.
        if node.attach == AttachKind::Tcx {
            return;
        }
        let _life = start(node, &desired(node));
        let (sender, changes) = mpsc::channel();
        // In the node's namespace, as a thread of this one; it ends with the process.
        std::thread::spawn(move || programs::follow(|ifindex| sender.send(ifindex).is_ok()));
        let next = || changes.recv_timeout(Duration::from_secs(10)).expect("a notification");
        assert_eq!(next(), None, "what happened before is not known");
        take_off(node, &node.bpffs);
        for _ in 0..3 {
            assert!(next().is_some_and(|ifindex| node.veths.contains(&ifindex)));
        }
    });
}

#[test]
fn an_interface_that_is_gone_is_no_failure() {
    on_each_node(2, |node| {
        let mut life = start(node, &desired(node));
        output("ip", &["link", "del", "v0"]);
        assert_eq!(life.datapath.restore(None), []);
        assert_one_each(node, node.veths[1]);
    });
}

#[test]
fn a_program_ahead_of_ours_is_told() {
    on_each_node(2, |node| {
        let life = start(node, &desired(node));
        assert_eq!(life.datapath.bypassed(), []);
        let other = pass_everything();
        put_ahead(node, node.veths[0], Direction::Egress, &other);
        assert_eq!(programs_at(node.attach, node.veths[0], Direction::Egress).len(), 2);
        let pod = ObjectName::new("shop", "pod1");
        assert_eq!(life.datapath.bypassed(), [(pod, vec![Direction::Egress])]);
    });
}

#[test]
fn a_node_that_is_left_keeps_what_others_attached() {
    on_each_node(1, |node| {
        drop(start(node, &desired(node)));
        let other = pass_everything();
        let ifindex = node.veths[0];
        put_ahead(node, ifindex, Direction::Egress, &other);
        InKernel::find(&node.bpffs).unwrap().detach().unwrap();
        let left = Direction::ALL.map(|direction| programs_at(node.attach, ifindex, direction).len());
        assert_eq!(
            left,
            Direction::ALL.map(|direction| usize::from(direction == Direction::Egress))
        );
        let found = InKernel::find(&node.bpffs).unwrap();
        assert_eq!((found.links, found.filters), (Vec::new(), Vec::new()));
    });
}

/// A program of another tool: it lets every packet through, past all that come after it.
fn pass_everything() -> OwnedFd {
    // r0 = 0 (TC_ACT_OK); exit
    let instructions = [0xb7_u64, 0x95].map(u64::to_le_bytes);
    let license = CString::new("GPL").unwrap();
    // SAFETY: two instructions and a string, which outlive the call.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
            std::ptr::null(),
            license.as_ptr(),
            instructions.as_ptr().cast(),
            2,
            std::ptr::null_mut(),
        )
    };
    assert!(fd >= 0, "{fd}");
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn put_ahead(node: &Node, ifindex: u32, direction: Direction, program: &OwnedFd) {
    let index = i32::try_from(ifindex).unwrap();
    match node.attach {
        AttachKind::Tcx => {
            let hook = match direction {
                Direction::Ingress => libbpf_sys::BPF_TCX_EGRESS,
                Direction::Egress => libbpf_sys::BPF_TCX_INGRESS,
            };
            let options = libbpf_sys::bpf_prog_attach_opts {
                sz: size_of::<libbpf_sys::bpf_prog_attach_opts>() as libbpf_sys::size_t,
                flags: libbpf_sys::BPF_F_BEFORE,
                ..Default::default()
            };
            // SAFETY: the options are valid for the call.
            let result =
                unsafe { libbpf_sys::bpf_prog_attach_opts(program.as_raw_fd(), index, hook, &raw const options) };
            assert_eq!(result, 0);
        }
        AttachKind::Clsact => {
            let hook = match direction {
                Direction::Ingress => TC_EGRESS,
                Direction::Egress => TC_INGRESS,
            };
            let mut builder = TcHookBuilder::new(program.as_fd());
            builder.ifindex(index).priority(1).handle(1);
            builder.hook(hook).attach().unwrap();
        }
    }
}
