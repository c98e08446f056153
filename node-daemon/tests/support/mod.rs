// SPDX-License-Identifier: Apache-2.0
//! A node of its own for each test: network and mount namespace, bpf file system, veths, and the real datapath.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unsafe_code,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::{MapCore, MapHandle};
use serde_json::Value;
use wardline_bpf::test_run::{Context, Frame};
use wardline_crds::AttachKind;
use wardline_crds::config::DaemonConfig;
use wardline_node::datapath::{
    Accounts, Applied, ApplyError, ConntrackSweeper, Datapath, DepartureSweeper, Handles, LoadError, PinPaths,
    attach_kind,
};
use wardline_node::events::{FileOptions, LogFile, Origin, PolicyLog, Succession};
use wardline_node::index::{Desired, EndpointSpec, LogModes, Logged};
use wardline_node::names::{Names, PodName};
use wardline_policy::compile::compile;
use wardline_policy::model::{Direction, Labels, ObjectName, Objects, Pod};

/// Set to `clsact`, it makes tests do without tcx where there is tcx.
const ATTACH_VARIABLE: &str = "WARDLINE_TEST_ATTACH";

/// Runs `test` on a thread in namespaces of its own, with a bpf file system and `veths` veth pairs, whose ifindexes
/// it is given. Programs are attached in the better way that the kernel has.
pub fn on_a_node(veths: usize, test: impl FnOnce(&Node) + Send) {
    let attach = match std::env::var(ATTACH_VARIABLE).as_deref() {
        Err(_) => attach_kind(),
        Ok("clsact") => AttachKind::Clsact,
        Ok(other) => panic!("{ATTACH_VARIABLE} is {other:?}"),
    };
    on_a_node_with(attach, veths, test);
}

/// Runs `test` on a node once for each way of attaching programs that the kernel has; clsact is everywhere.
pub fn on_each_node(veths: usize, test: impl Fn(&Node) + Send + Sync) {
    if attach_kind() == AttachKind::Tcx {
        on_a_node_with(AttachKind::Tcx, veths, &test);
    }
    on_a_node_with(AttachKind::Clsact, veths, &test);
}

/// Nanoseconds of the clock that packets are stamped with.
pub fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(now.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap()
}

fn on_a_node_with(attach: AttachKind, veths: usize, test: impl FnOnce(&Node) + Send) {
    println!("attached by {attach:?}");
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("needs root");
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
            .unwrap();
            let directory = tempfile::tempdir().unwrap();
            let bpffs = directory.path().join("bpf");
            std::fs::create_dir(&bpffs).unwrap();
            mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
            let node = Node {
                bpffs: bpffs.clone(),
                state: directory.path().join("state"),
                veths: make_veths(veths),
                attach,
            };
            test(&node);
            nix::mount::umount2(&bpffs, nix::mount::MntFlags::MNT_DETACH).unwrap();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn make_veths(count: usize) -> Vec<u32> {
    (0..count)
        .map(|i| {
            let status = Command::new("ip")
                .args([
                    "link",
                    "add",
                    &format!("v{i}"),
                    "type",
                    "veth",
                    "peer",
                    "name",
                    &format!("p{i}"),
                ])
                .status()
                .unwrap();
            assert!(status.success());
            nix::net::if_::if_nametoindex(format!("v{i}").as_str()).unwrap()
        })
        .collect()
}

pub struct Node {
    pub bpffs: PathBuf,
    pub state: PathBuf,
    pub veths: Vec<u32>,
    pub attach: AttachKind,
}

/// One life of the daemon's kernel side and its log.
pub struct Life {
    pub datapath: Datapath,
    pub departures: DepartureSweeper,
    pub conntrack: ConntrackSweeper,
    pub names: Arc<Names>,
    pub log: PolicyLog,
    /// The accounts that come after that of the log.
    pub succession: Succession,
    attach: AttachKind,
    paths: PinPaths,
    log_path: PathBuf,
    /// Bytes of the log that were read.
    read: u64,
}

impl Node {
    /// Another node at some of the interfaces, that knows nothing of this one.
    pub fn beside(&self, name: &str, veths: &[u32]) -> Self {
        let bpffs = self.bpffs.join(name);
        std::fs::create_dir(&bpffs).unwrap();
        Self {
            bpffs,
            state: self.state.join(name),
            veths: veths.to_vec(),
            attach: self.attach,
        }
    }

    pub fn start(&self, config: &DaemonConfig) -> Life {
        self.start_logging_to(config, self.file_options(), Duration::from_secs(5))
    }

    /// Why the kernel side does not load.
    pub fn try_start(&self, config: &DaemonConfig) -> Result<(), LoadError> {
        let names = Arc::new(Names::open(&self.state).unwrap());
        Datapath::load(&PinPaths::new(&self.bpffs), config, names, self.attach).map(drop)
    }

    /// As if a daemon of an older version had run so far.
    pub fn becomes_another_version(&self) -> PinPaths {
        let ours = self.bpffs.join("wardline/v1");
        std::fs::rename(&ours, self.bpffs.join("wardline/v0")).unwrap();
        let others = PinPaths::new(&self.bpffs).others().unwrap();
        assert_eq!(others.len(), 1);
        others.into_iter().next().unwrap()
    }

    /// A log that is never rotated, on a disk that is never too full.
    pub fn file_options(&self) -> FileOptions {
        FileOptions {
            path: self.state.join("policy_action.log"),
            max_size: 1 << 30,
            max_files: 1,
            max_age: None,
            min_free_percent: 0,
        }
    }

    /// As [`Node::start`], with another log, and another time in which denies are aggregated.
    pub fn start_logging_to(&self, config: &DaemonConfig, options: FileOptions, aggregation: Duration) -> Life {
        let names = Arc::new(Names::open(&self.state).unwrap());
        let paths = PinPaths::new(&self.bpffs);
        let (datapath, handles) = Datapath::load(&paths, config, Arc::clone(&names), self.attach).unwrap();
        let Handles {
            accounts,
            conntrack,
            departures,
            former,
            taking_over,
            ..
        } = handles;
        let (accounts, succession) = Succession::new(former, accounts, taking_over);
        let log_path = options.path.clone();
        let log = Self::open_log(accounts, &names, options, aggregation);
        let read = std::fs::metadata(&log_path).map_or(0, |metadata| metadata.len());
        Life {
            datapath,
            departures,
            conntrack,
            names,
            log,
            succession,
            attach: self.attach,
            paths,
            log_path,
            read,
        }
    }

    /// The log alone of another life, in whatever process, on the tables that an earlier one has loaded.
    pub fn start_log(bpffs: &Path, state: &Path, options: FileOptions, aggregation: Duration) -> PolicyLog {
        let names = Arc::new(Names::open(state).unwrap());
        let accounts = Accounts::open(&PinPaths::new(bpffs)).unwrap();
        Self::open_log(accounts, &names, options, aggregation)
    }

    fn open_log(accounts: Accounts, names: &Arc<Names>, options: FileOptions, aggregation: Duration) -> PolicyLog {
        let origin = Origin {
            node: "node1".into(),
            cluster: None,
        };
        let file = LogFile::new(options);
        PolicyLog::open(accounts, file, Arc::clone(names), origin, aggregation).unwrap()
    }

    /// The cluster with its local pods at this node's veths, in the order of their names.
    pub fn desired(&self, objects: &Objects, node: &str) -> Desired {
        let local = objects
            .pods
            .iter()
            .filter(|(_, pod)| &*pod.node == node && !pod.addresses.is_empty());
        let endpoints: BTreeMap<u32, EndpointSpec> = self
            .veths
            .iter()
            .zip(local)
            .map(|(ifindex, (name, pod))| {
                let spec = EndpointSpec {
                    pod: name.clone(),
                    pod_uid: format!("uid-of-{name}").into(),
                    addresses: pod.addresses.clone(),
                    log_denies: false,
                    assigned: false,
                };
                (*ifindex, spec)
            })
            .collect();
        Desired {
            tables: compile(objects, node),
            endpoints,
            ended: BTreeMap::new(),
            unmanaged: BTreeMap::new(),
            log_modes: LogModes {
                allow: Logged::All,
                deny: Logged::All,
            },
            local: BTreeSet::from(["192.168.77.1".parse::<IpAddr>().unwrap()]),
            nodes: BTreeSet::new(),
        }
    }
}

impl Life {
    pub fn apply(&mut self, desired: &Desired) -> Applied {
        self.try_apply(desired).unwrap()
    }

    pub fn try_apply(&mut self, desired: &Desired) -> Result<Applied, ApplyError> {
        self.datapath.apply(desired, named)
    }

    /// Closes the generation and returns the lines that were written since the last call.
    pub fn records(&mut self) -> Vec<Value> {
        let lines = self.lines_from(self.read);
        self.read = std::fs::metadata(&self.log_path).unwrap().len();
        lines
    }

    /// Closes the generation and returns all lines, those of former lives among them.
    pub fn all_records(&mut self) -> Vec<Value> {
        self.lines_from(0)
    }

    fn lines_from(&mut self, offset: u64) -> Vec<Value> {
        while self.log.drain().unwrap() {}
        self.log.close().unwrap();
        let mut file = std::fs::File::open(&self.log_path).unwrap();
        file.seek(SeekFrom::Start(offset)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Empties the table of connections.
    pub fn forget_connections(&self) {
        let connections = self.map("conntrack");
        let keys: Vec<_> = connections.keys().collect();
        for key in keys {
            connections.delete(&key).unwrap();
        }
    }

    /// A map of the packet programs, by its name.
    pub fn map(&self, name: &str) -> MapHandle {
        MapHandle::from_pinned_path(self.paths.maps.join(name)).unwrap()
    }

    /// The program that is attached at an interface.
    pub fn program(&self, ifindex: u32, direction: Direction) -> Program {
        Program::attached(self.attach, ifindex, direction)
    }
}

/// A cluster of one pod of namespace `shop`, with the address 10.0.0.1 and no policy.
pub fn one_pod(name: &str, node: &str) -> Objects {
    let mut objects = Objects::default();
    objects.namespaces.insert("shop".into(), Labels::new());
    let pod = Pod {
        labels: Labels::new(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        node: node.into(),
        ports: Vec::new(),
    };
    objects.pods.insert(ObjectName::new("shop", name), Arc::new(pod));
    objects
}

/// A pod of no workload.
pub fn named(pod: &ObjectName) -> PodName {
    PodName {
        pod: pod.clone(),
        workload: None,
    }
}

/// The program at one interface.
pub struct Program {
    fd: std::os::fd::OwnedFd,
    ifindex: u32,
}

impl Program {
    pub fn attached(attach: AttachKind, ifindex: u32, direction: Direction) -> Self {
        Self::find(attach, ifindex, direction).expect("it is attached")
    }

    /// None where there is none, or another has just taken its place.
    pub fn find(attach: AttachKind, ifindex: u32, direction: Direction) -> Option<Self> {
        let id = *programs_at(attach, ifindex, direction).first()?;
        let fd = libbpf_rs::Program::fd_from_id(id).ok()?;
        Some(Self { fd, ifindex })
    }

    /// Whether the frame passes.
    pub fn passes(&self, frame: &[u8]) -> bool {
        run(&self.fd, Frame::forwarded(frame, self.ifindex))
    }

    /// Whether it does where a socket of the node sends it: it came in through no interface.
    pub fn passes_from_node(&self, frame: &[u8]) -> bool {
        run(&self.fd, Frame::of_node(frame, self.ifindex))
    }

    /// Whether it does where the pod itself sent it, and it came back.
    pub fn passes_from_itself(&self, frame: &[u8]) -> bool {
        run(&self.fd, Frame::of_pod(frame, self.ifindex))
    }
}

/// Ids of the programs at a hook of a pod's interface, the first first.
pub fn programs_at(attach: AttachKind, ifindex: u32, direction: Direction) -> Vec<u32> {
    match attach {
        AttachKind::Tcx => {
            let mut ids = [0_u32; 8];
            let mut options = libbpf_sys::bpf_prog_query_opts {
                sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as libbpf_sys::size_t,
                prog_ids: ids.as_mut_ptr(),
                ..Default::default()
            };
            options.__bindgen_anon_1.count = 8;
            let hook = match direction {
                Direction::Ingress => libbpf_sys::BPF_TCX_EGRESS,
                Direction::Egress => libbpf_sys::BPF_TCX_INGRESS,
            };
            // SAFETY: the options are valid for the call and point to an array of as many ids as they say.
            let result = unsafe { libbpf_sys::bpf_prog_query_opts(ifindex.cast_signed(), hook, &raw mut options) };
            assert_eq!(result, 0, "the hook can be asked");
            ids.into_iter().filter(|id| *id != 0).collect()
        }
        AttachKind::Clsact => {
            let hook = match direction {
                Direction::Ingress => "egress",
                Direction::Egress => "ingress",
            };
            let name = nix::net::if_::if_indextoname(ifindex).unwrap();
            let filters = output("tc", &["filter", "show", "dev", name.to_str().unwrap(), hook]);
            // `... direct-action not_in_hw id 17 name pod_egress tag ...`
            let words: Vec<&str> = filters.split_whitespace().collect();
            let ids = words.windows(2).filter(|pair| pair[0] == "id");
            ids.map(|pair| pair[1].parse().unwrap()).collect()
        }
    }
}

/// What a command prints; it must succeed.
pub fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn run(program: &std::os::fd::OwnedFd, frame: Frame<'_>) -> bool {
    use std::os::fd::AsRawFd;
    let mut context = Context::of(frame);
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.bytes.as_ptr().cast(),
        data_size_in: u32::try_from(frame.bytes.len()).unwrap(),
        ctx_in: (&raw mut context).cast(),
        ctx_size_in: size_of::<Context>().try_into().unwrap(),
        repeat: 1,
        ..Default::default()
    };
    // SAFETY: all pointers are valid for the call, with the sizes that are given.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) };
    assert_eq!(
        result,
        0,
        "the program runs over a frame of {} bytes",
        frame.bytes.len()
    );
    // On to the next program, or, where a filter behind a link is not to be asked too, to the stack.
    matches!(options.retval.cast_signed(), -1 | 0)
}
