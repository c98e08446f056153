// SPDX-License-Identifier: Apache-2.0
//! Lives of the daemon's log as processes of their own, each killed at some moment while packets flow, and files are
//! rotated by size and by age, and deleted.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wardline_crds::config::DaemonConfig;
use wardline_node::events::FileOptions;

use crate::support::{Node, monotonic, on_a_node};
use crate::{Traffic, desired, written};

const AGGREGATION: Duration = Duration::from_millis(50);
const KILLS: u32 = 50;
/// Where the node of a child is; it lives in the namespaces of whoever starts it.
const VARIABLE: &str = "WARDLINE_TEST_LIFE_OF_THE_LOG";
const NAME: &str = "kills::each_verdict_is_written_once_through_fifty_kills_rotation_and_deletion";
/// Fewer where denies are told one by one: what is done with an event does not depend on its verdict.
const MORE_KILLS: u32 = 15;
/// Connections at most: what eight pods may have half open.
const MOST: u64 = 100_000;
const PATIENCE: Duration = Duration::from_mins(1);

fn options(state: &Path) -> FileOptions {
    FileOptions {
        path: state.join("policy_action.log"),
        max_size: 256 << 10,
        max_files: 1,
        max_age: Some(Duration::from_millis(300)),
        min_free_percent: 0,
    }
}

#[test]
fn each_verdict_is_written_once_through_fifty_kills_rotation_and_deletion() {
    if let Some(state) = std::env::var_os(VARIABLE) {
        live(&state);
    }
    kill(&DaemonConfig::default(), KILLS, "-g");
}

#[test]
fn so_is_each_deny_that_is_told_alone() {
    let mut config = DaemonConfig::default();
    config.logging.deny_aggregation_seconds = 0;
    kill(&config, MORE_KILLS, "-r");
}

/// `place` is where denies come from, as `seq` says.
fn kill(config: &DaemonConfig, times: u32, place: &str) {
    on_a_node(8, |node| {
        let mut life = node.start(config);
        life.apply(&desired(node));
        let mut traffic = Traffic::of(node, &life);
        drop(life.log);
        let stop = AtomicBool::new(false);
        let mut moments = Moments(monotonic() | 1);
        println!("moments from {:#x}", moments.0);
        let mut kills = Vec::new();
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && traffic.sent.allow < MOST {
                    traffic.send(40, 16);
                    std::thread::sleep(Duration::from_millis(4));
                }
            });
            for number in 0..times {
                let mut child = Process::start(node);
                // Now and then it is killed before, or just when, it has found out where the last one stopped.
                if number % 5 != 0 {
                    child.wait_for(&opened(&node.state));
                }
                std::thread::sleep(Duration::from_micros(moments.next() % 200_000));
                kills.push(child.kill());
                let _ = std::fs::remove_file(opened(&node.state));
            }
            stop.store(true, Ordering::Relaxed);
            sending.join().unwrap();
        });
        assert!(
            kills.iter().all(|status| status.code().is_none()),
            "none ended by itself: {kills:?}"
        );

        let mut log = Node::start_log(&node.bpffs, &node.state, options(&node.state), AGGREGATION);
        while log.drain().unwrap() {}
        log.close().unwrap();
        // All that is too much goes.
        let path = options(&node.state).path;
        let end = Instant::now() + PATIENCE;
        while wardline_record::files::open(&path).unwrap().len() > 2 {
            assert!(Instant::now() < end);
            log.close_if_due(Instant::now()).unwrap();
        }
        log.close().unwrap();
        assert_eq!(log.imbalance(), Some([[0; 2]; 2]));
        let written = written(&path);
        let ledger = log.ledger();
        println!(
            "{:?} sent; in the files {} lines of {} bytes, deleted {:?} of {} bytes",
            traffic.sent, written.lines, written.bytes, ledger.deleted_records, ledger.deleted_bytes
        );
        let [allows, denies, losses] = ledger.deleted_records;
        let text = std::fs::read_to_string(&path).unwrap();
        let mut denied = text.lines().filter(|line| line.contains(r#""disposition":"deny""#));
        assert!(denied.all(|line| line.contains(place)), "all come from {place}");
        assert_eq!(
            (losses, written.losses.allow, written.losses.deny),
            (0, 0, 0),
            "the ring was never full"
        );
        assert!(written.why.is_empty(), "nothing is in doubt: {written:?}");
        // Each packet is a line of its own.
        assert_eq!(allows + written.records.allow, traffic.sent.allow);
        assert_eq!(denies + written.records.deny, traffic.sent.deny);
        assert!(ledger.deleted_bytes > 10 * (256 << 10), "files were deleted");
    });
}

/// The child: writes the log until it is killed.
fn live(state: &OsStr) -> ! {
    let state = Path::new(state);
    let bpffs = state.with_file_name("bpf");
    let mut log = Node::start_log(&bpffs, state, options(state), AGGREGATION);
    std::fs::write(opened(state), "").unwrap();
    loop {
        while log.drain().unwrap() {}
        log.close_if_due(Instant::now()).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A life, which does not outlast the test.
struct Process(Child);

impl Process {
    fn start(node: &Node) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(VARIABLE, &node.state)
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    fn kill(&mut self) -> ExitStatus {
        self.0.kill().unwrap();
        self.0.wait().unwrap()
    }

    fn wait_for(&mut self, path: &Path) {
        let end = Instant::now() + PATIENCE;
        while !path.exists() {
            let is_alive = self.0.try_wait().unwrap().is_none();
            assert!(Instant::now() < end && is_alive, "it does not open the log");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Is there when a child has opened the log.
fn opened(state: &Path) -> PathBuf {
    state.join("opened")
}

/// Numbers that look arbitrary (xorshift).
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
