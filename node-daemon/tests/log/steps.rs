// SPDX-License-Identifier: Apache-2.0
//! A life of the log that ends at each of its steps: its thread is traced, and the process killed before, within and after
//! each call by which it changes a file or a table of the kernel.
//!
//! ```text
//! batch:       write [half a line | written] -> ledger [entered] -> room given back
//! generation:  write, a part at a time [half a generation] -> ledger [entered] -> clear, entry by entry [half cleared]
//! old files:   ledger [counted] -> delete;  rename [no file] -> create
//! ```

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};
use serde_json::Value;
use time::PrimitiveDateTime;
use time::macros::format_description;
use wardline_crds::config::DaemonConfig;
use wardline_node::datapath::{Accounts, PinPaths};
use wardline_node::events::{FileOptions, PolicyLog};

use crate::support::{Node, on_a_node, output};
use crate::{Count, Traffic, desired, written};

/// Where the node of a child is.
const VARIABLE: &str = "WARDLINE_TEST_LIFE_OF_THE_LOG";
const NAME: &str = "steps::a_log_that_ends_at_any_step_is_gone_on_with";
const AGGREGATION: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_mins(1);
/// Of each life: more than are written at once, with files so small.
const CONNECTIONS: u64 = 5;
const DENIES: u64 = 5;

/// Commands of bpf(2) that change a map.
const CHANGES: [u64; 5] = [
    libbpf_sys::BPF_MAP_UPDATE_ELEM as u64,
    libbpf_sys::BPF_MAP_DELETE_ELEM as u64,
    libbpf_sys::BPF_MAP_LOOKUP_AND_DELETE_BATCH as u64,
    libbpf_sys::BPF_MAP_UPDATE_BATCH as u64,
    libbpf_sys::BPF_MAP_DELETE_BATCH as u64,
];
/// Calls that change files.
const CALLS: [i64; 4] = [
    libc::SYS_ftruncate,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
];
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: [i64; 2] = [libc::SYS_unlink, libc::SYS_rename];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: [i64; 0] = [];

#[test]
fn a_log_that_ends_at_any_step_is_gone_on_with() {
    if let Some(state) = std::env::var_os(VARIABLE) {
        live(Path::new(&state));
    }
    on_a_node(2, |node| {
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&desired(node));
        let mut traffic = Traffic::of(node, &life);
        drop(life.log);
        let (mut met, mut point) = (BTreeMap::new(), 0);
        loop {
            traffic.send(CONNECTIONS, DENIES);
            let came_so_far = Traced::start(node).end_at(point);
            if came_so_far {
                for what in what_is_met(node) {
                    *met.entry(what).or_insert(0) += 1;
                }
            }
            go_on(node, traffic.sent, point);
            if !came_so_far {
                break;
            }
            point += 1;
        }
        println!("ended at each of {point} points: {met:?}");
        let all = [
            "a file is counted and not deleted",
            "a generation is entered and not cleared",
            "a generation is half cleared",
            "a generation is half written",
            "a generation is written and not entered",
            "a line is half written",
            "events are written and not entered",
            "there is no file",
        ];
        assert!(met.keys().eq(all.iter()), "{met:?}");
    });
}

fn options(state: &Path) -> FileOptions {
    FileOptions {
        path: state.join("policy_action.log"),
        max_size: 4 << 10,
        max_files: 1,
        max_age: None,
        min_free_percent: 0,
    }
}

fn start(node: &Node) -> PolicyLog {
    Node::start_log(&node.bpffs, &node.state, options(&node.state), AGGREGATION)
}

/// The child: writes what is there, and deletes what is too much.
fn live(state: &Path) -> ! {
    ptrace::traceme().unwrap();
    let (new, thread) = (state.join("thread.new"), thread_of(state));
    fs::write(&new, gettid().to_string()).unwrap();
    fs::rename(new, thread).unwrap();
    raise(Signal::SIGSTOP).unwrap();
    let mut log = Node::start_log(&state.with_file_name("bpf"), state, options(state), AGGREGATION);
    while log.drain().unwrap() {}
    log.close().unwrap();
    for _ in 0..20 {
        log.close_if_due(Instant::now()).unwrap();
    }
    log.finish().unwrap();
    std::process::exit(0);
}

/// Holds the thread of a child that waits to be traced.
fn thread_of(state: &Path) -> PathBuf {
    state.join("thread")
}

/// A child whose log's thread is traced.
struct Traced {
    child: Child,
    thread: Pid,
    log: PathBuf,
}

impl Traced {
    fn start(node: &Node) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(VARIABLE, &node.state)
            .stdout(Stdio::null())
            .spawn();
        let path = thread_of(&node.state);
        let end = Instant::now() + PATIENCE;
        while !path.exists() {
            assert!(Instant::now() < end, "it does not come so far");
            std::thread::sleep(Duration::from_millis(1));
        }
        let thread = Pid::from_raw(fs::read_to_string(&path).unwrap().parse().unwrap());
        fs::remove_file(path).unwrap();
        let traced = Self {
            child: child.unwrap(),
            thread,
            log: options(&node.state).path,
        };
        traced.wait();
        ptrace::setoptions(thread, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).unwrap();
        traced
    }

    fn wait(&self) -> WaitStatus {
        waitpid(self.thread, Some(WaitPidFlag::__WALL)).unwrap()
    }

    /// Ends it when it comes to the point of that number. Returns false where it has fewer, and ended in order.
    fn end_at(mut self, point: u64) -> bool {
        let (mut next, mut is_within) = (0, false);
        loop {
            ptrace::syscall(self.thread, None).unwrap();
            match self.wait() {
                WaitStatus::PtraceSyscall(_) => {}
                WaitStatus::Exited(_, code) => {
                    assert_eq!(code, 0, "at point {point}");
                    assert!(self.child.wait().unwrap().success());
                    return false;
                }
                other => panic!("{other:?} at point {point}"),
            }
            if is_within {
                is_within = false;
            } else if let Some(call) = self.change() {
                is_within = true;
                if let Call::Write(length) = call {
                    if next == point {
                        self.let_write(length / 2);
                        ptrace::syscall(self.thread, None).unwrap();
                        self.wait();
                        return self.kill();
                    }
                    next += 1;
                }
            } else {
                continue;
            }
            if next == point {
                return self.kill();
            }
            next += 1;
        }
    }

    fn kill(&mut self) -> bool {
        self.child.kill().unwrap();
        // The process ends when whoever traces it has seen its thread end.
        while !matches!(self.wait(), WaitStatus::Signaled(..)) {}
        self.child.wait().unwrap();
        true
    }

    /// What it is about to do, if that changes something.
    #[allow(unsafe_code, reason = "a union")]
    fn change(&self) -> Option<Call> {
        let info = ptrace::syscall_info(self.thread).unwrap();
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return None;
        }
        // SAFETY: the kernel says which member it has filled in.
        let entry = unsafe { info.u.entry };
        let (call, [first, _, third, ..]) = (entry.nr.cast_signed(), entry.args);
        if call == libc::SYS_write {
            let file = fs::read_link(format!("/proc/{}/fd/{first}", self.child.id())).ok()?;
            return (file == self.log).then_some(Call::Write(third));
        }
        let is_change = CALLS.contains(&call) || OLD_CALLS.contains(&call);
        (is_change || call == libc::SYS_bpf && CHANGES.contains(&first)).then_some(Call::Other)
    }

    /// Lets it write no more than that, as a disk does that becomes full.
    fn let_write(&self, bytes: u64) {
        let most = fs::metadata(&self.log).unwrap().len() + bytes;
        let process = self.child.id().to_string();
        output("prlimit", &["--pid", &process, &format!("--fsize={most}")]);
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

enum Call {
    /// To the log, so many bytes.
    Write(u64),
    Other,
}

/// In which of the ways that a next life has to tell apart the last one left things.
fn what_is_met(node: &Node) -> Vec<&'static str> {
    let accounts = Accounts::open(&PinPaths::new(&node.bpffs)).unwrap();
    let ledger = accounts.ledger().unwrap();
    let log = options(&node.state).path;
    let files = wardline_record::files::open(&log).unwrap();
    let texts = files.iter().map(|file| fs::read_to_string(&file.path).unwrap());
    let text: String = texts.collect();
    let sequences: Vec<String> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|line| line["seq"].as_str().unwrap().split_once('-').unwrap().1.to_owned())
        .collect();
    let positions = sequences.iter().filter_map(|seq| seq.strip_prefix('r')?.parse().ok());
    let last: u64 = positions.max().unwrap_or(0);

    let generation = accounts.generation().wrapping_sub(1);
    let prefix = format!("g{generation}.");
    let lines = sequences.iter().filter(|seq| seq.starts_with(&prefix)).count();
    let denies = accounts.read(generation).unwrap().denies.len();
    let is_entered = ledger.closings > 0 && ledger.closed_generation == generation;
    let is_closed = accounts.generation() > 0;

    let deleted = files.iter().any(|file| id(&file.path) == Some(ledger.deleted_file));
    let table = [
        (!text.is_empty() && !text.ends_with('\n'), "a line is half written"),
        (last > ledger.ring_position, "events are written and not entered"),
        (
            is_closed && !is_entered && (1..denies).contains(&lines),
            "a generation is half written",
        ),
        (
            is_closed && !is_entered && lines > 0 && lines == denies,
            "a generation is written and not entered",
        ),
        (
            is_entered && denies > 0 && denies == lines,
            "a generation is entered and not cleared",
        ),
        (
            is_entered && (1..lines).contains(&denies),
            "a generation is half cleared",
        ),
        (deleted, "a file is counted and not deleted"),
        (!log.exists(), "there is no file"),
    ];
    table
        .into_iter()
        .filter(|(is_so, _)| *is_so)
        .map(|(_, what)| what)
        .collect()
}

/// What the ledger calls an old file: the microseconds of its name.
fn id(path: &Path) -> Option<u64> {
    let time = format_description!("[year]-[month]-[day]T[hour]-[minute]-[second].[subsecond digits:6]");
    let name = path.file_stem().and_then(OsStr::to_str)?;
    let time = PrimitiveDateTime::parse(name.strip_prefix("policy_action-")?, time).ok()?;
    u64::try_from(time.assume_utc().unix_timestamp_nanos() / 1000).ok()
}

/// Another life writes what is left, and all is held against what was sent.
fn go_on(node: &Node, sent: Count, point: u64) {
    let mut log = start(node);
    for _ in 0..2 {
        while log.drain().unwrap() {}
        log.close().unwrap();
    }
    assert_eq!(log.imbalance(), Some([[0; 2]; 2]), "at point {point}");
    let path = options(&node.state).path;
    let end = Instant::now() + PATIENCE;
    while wardline_record::files::open(&path).unwrap().len() > 2 {
        assert!(Instant::now() < end);
        log.close_if_due(Instant::now()).unwrap();
    }
    let written = written(&path);
    assert!(
        written.why.is_empty(),
        "nothing is in doubt at point {point}: {written:?}"
    );
    let [allows, denies, _] = log.ledger().deleted_records;
    let found = Count {
        allow: allows + written.records.allow,
        deny: denies + written.records.deny,
    };
    assert_eq!(found, sent, "at point {point}");
    log.finish().unwrap();
}
