// SPDX-License-Identifier: Apache-2.0
//! Lives of the daemon as processes of their own, each killed at some moment while packets flow, policies change, pods
//! come and go, and files are rotated by size and by age, and deleted.
//!
//! ```text
//! test: packets; rewrites the order: which policy, which pod --file--> life: load, apply, write the log, until killed
//!       <--file-- which order is in force
//! ```

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wardline_bpf::frame::{self, flag};
use wardline_crds::AttachKind;
use wardline_crds::config::DaemonConfig;
use wardline_node::events::FileOptions;
use wardline_node::index::Desired;
use wardline_policy::model::{Direction, ObjectName};

use crate::support::{Node, Program, monotonic, named, on_a_node, output};
use crate::{Count, Family, NODE, objects, parse, pod, written};

const AGGREGATION: Duration = Duration::from_millis(50);
const SERVERS: usize = 8;
const KILLS: u64 = 50;
/// Fewer where nothing is deleted, so that each line can be looked at.
const KILLS_WITH_ALL_LINES_KEPT: u64 = 15;
/// Where the node of a child is; it lives in the namespaces of whoever starts it.
const VARIABLE: &str = "WARDLINE_TEST_LIFE_OF_THE_DAEMON";
const NAME: &str = "kills::each_verdict_is_written_once_through_fifty_kills_rotation_and_deletion";
const PATIENCE: Duration = Duration::from_mins(1);
/// Packets to each server and verdict at most, by their destination ports: each life has its share of them.
const MOST: u64 = 12_000;
/// How many packets may wait to be read: too few for the ring, or anybody's share of it, to be full.
const UNREAD: u64 = 15_000;
/// Packets of each verdict to a visitor.
const VISIT: u64 = 40;

#[test]
fn each_verdict_is_written_once_through_fifty_kills_rotation_and_deletion() {
    if let Some(state) = std::env::var_os(VARIABLE) {
        live(&state);
    }
    let written = kill(KILLS, 1, false);
    assert!(written.deleted.0 + written.deleted.1 > written.lines, "{written:?}");
}

#[test]
fn each_line_names_the_policy_and_the_pod_that_its_packet_met_through_kills() {
    for tells_denies_alone in [true, false] {
        let written = kill(KILLS_WITH_ALL_LINES_KEPT, 100_000, tells_denies_alone);
        assert_eq!(written.deleted, (0, 0), "{written:?}");
    }
}

/// What the node shall be, as the API server would say it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Order {
    /// Raised with each change; the policy's generation.
    number: u64,
    attach: AttachKind,
    servers: Vec<u32>,
    visitor: Visitor,
    tells_denies_alone: bool,
    max_files: u32,
}

/// A pod that comes and goes with its interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Visitor {
    number: u64,
    ifindex: u32,
    /// The first order that has it.
    since: u64,
}

impl Visitor {
    fn create(number: u64, since: u64) -> Self {
        let name = Self::interface(number);
        output(
            "ip",
            &[
                "link",
                "add",
                &name,
                "type",
                "veth",
                "peer",
                "name",
                &format!("{name}-peer"),
            ],
        );
        let ifindex = nix::net::if_::if_nametoindex(name.as_str()).unwrap();
        Self { number, ifindex, since }
    }

    fn delete(&self) {
        output("ip", &["link", "delete", &Self::interface(self.number)]);
    }

    fn interface(number: u64) -> String {
        format!("visitor{number}")
    }

    /// Behind those of the servers.
    fn pod(&self) -> ObjectName {
        ObjectName::new("shop", format!("visitor{}", self.number))
    }
}

/// The policy of an order: each time another object than the last time.
fn policy(order: u64) -> &'static str {
    if order.is_multiple_of(2) { "even" } else { "odd" }
}

impl Order {
    fn node(&self, state: &Path, bpffs: &Path) -> Node {
        let mut veths = self.servers.clone();
        veths.push(self.visitor.ifindex);
        Node {
            bpffs: bpffs.into(),
            state: state.into(),
            veths,
            attach: self.attach,
        }
    }

    fn desired(&self, state: &Path, bpffs: &Path) -> Desired {
        let mut objects = objects(SERVERS);
        let (_, old) = objects.policies.pop_first().unwrap();
        let name = ObjectName::new("shop", policy(self.number));
        let mut new = old.as_ref().clone();
        new.name = name.clone();
        new.generation = self.number.cast_signed();
        objects.policies.insert(name, Arc::new(new));
        let visitor = pod("server", vec![Family::V4.server(SERVERS)], NODE);
        objects.pods.insert(self.visitor.pod(), Arc::new(visitor));
        self.node(state, bpffs).desired(&objects, NODE)
    }

    fn config(&self) -> DaemonConfig {
        let mut config = DaemonConfig::default();
        if self.tells_denies_alone {
            config.logging.deny_aggregation_seconds = 0;
        }
        config
    }

    fn options(&self, state: &Path) -> FileOptions {
        FileOptions {
            path: state.join("policy_action.log"),
            max_size: 256 << 10,
            max_files: self.max_files,
            max_age: Some(Duration::from_millis(300)),
            min_free_percent: 0,
        }
    }

    fn give(&self, state: &Path) {
        write(&state.join("order"), &serde_json::to_string(self).unwrap());
    }

    fn read(state: &Path) -> Self {
        serde_json::from_str(&std::fs::read_to_string(state.join("order")).unwrap()).unwrap()
    }
}

/// Replaces a small file: whoever reads it meets the old or the new one.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// The order that a life has brought in force last.
fn in_force(state: &Path) -> u64 {
    std::fs::read_to_string(state.join("in-force"))
        .unwrap()
        .parse()
        .unwrap()
}

/// What those who send and who kill know of each other.
#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    kills: AtomicU64,
    packets: AtomicU64,
}

/// What a line is about: whether it was allowed, to which pod, to which port.
type Packet = (bool, String, u64);

/// Whoever sends, and what is known of each packet.
struct Sender<'a> {
    node: &'a Node,
    order: Order,
    rounds: Vec<Round>,
    sent: Count,
    /// By the visitor's number.
    to_visitors: Vec<u64>,
    /// Packets of which it is not known that they were read.
    unread: u64,
}

/// Packets that were sent in a row.
#[derive(Debug)]
struct Round {
    first: Count,
    /// Which orders may have been in force.
    in_force: u64,
    given: u64,
}

impl Sender<'_> {
    fn round(&mut self) {
        let in_force = in_force(&self.node.state);
        self.rounds.push(Round {
            first: self.sent,
            in_force,
            given: self.order.number,
        });
        let attached = |ifindex| {
            let end = Instant::now() + PATIENCE;
            // A life that was killed before it attached its links leaves it to the next one, which begins with filters. And
            // a life that begins puts its own programs in the place of those that are there.
            loop {
                let find = |attach| Program::find(attach, ifindex, Direction::Ingress);
                if let Some(program) = find(self.node.attach).or_else(|| find(AttachKind::Clsact)) {
                    return program;
                }
                assert!(Instant::now() < end, "no program at {ifindex}");
            }
        };
        let servers: Vec<Program> = self.order.servers.iter().map(|ifindex| attached(*ifindex)).collect();
        let send = |program: &Program, server: usize, port: u64, is_admitted: bool| {
            let from = SocketAddr::new(Family::V4.client(is_admitted, 0), 40_000);
            let to = SocketAddr::new(Family::V4.server(server), u16::try_from(port).unwrap());
            let passes = program.passes(&frame::tcp(from, to, flag::SYN));
            assert_eq!(passes, is_admitted, "from {from} to {to}");
        };
        // None where it is not there yet.
        let is_there = in_force >= self.order.visitor.since;
        let visitor = is_there.then(|| attached(self.order.visitor.ifindex));
        self.unread += 8 * SERVERS as u64;
        for server in (0..SERVERS).cycle().take(5 * SERVERS) {
            send(&servers[server], server, self.sent.allow / SERVERS as u64 + 1, true);
            self.sent.allow += 1;
        }
        for (server, program) in servers.iter().enumerate().cycle().take(2 * SERVERS) {
            send(program, server, self.sent.deny / SERVERS as u64 + 1, false);
            self.sent.deny += 1;
        }
        let sent = &mut self.to_visitors[usize::try_from(self.order.visitor.number).unwrap()];
        if let Some(visitor) = visitor
            && *sent < VISIT
        {
            for port in *sent + 1..=*sent + 4 {
                send(&visitor, SERVERS, port, true);
                send(&visitor, SERVERS, port, false);
            }
            *sent += 4;
        }
    }

    /// Changes the policy, and now and then the visitor goes and another comes.
    fn change(&mut self) {
        self.order.number += 1;
        let visitor = &self.order.visitor;
        if self.to_visitors[usize::try_from(visitor.number).unwrap()] >= VISIT {
            visitor.delete();
            self.order.visitor = Visitor::create(visitor.number + 1, self.order.number);
            self.to_visitors.push(0);
        }
        self.order.give(&self.node.state);
    }

    fn run(&mut self, progress: &Progress, lives: u64) {
        for round in 0.. {
            if progress.stop.load(Ordering::Relaxed) {
                break;
            }
            if std::fs::remove_file(drained(&self.node.state)).is_ok() {
                self.unread = 0;
            }
            if self.unread > UNREAD {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            // The next change waits for the last one: else visitors would never be there.
            if round % 3 == 0 && in_force(&self.node.state) == self.order.number {
                self.change();
            }
            let most = MOST * (progress.kills.load(Ordering::Relaxed) + 1) / lives;
            if self.sent.allow / SERVERS as u64 + 5 <= most {
                self.round();
                progress.packets.store(self.sent.allow, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The round of a packet, by its number among those of its verdict.
    fn round_of(&self, number: u64, first: impl Fn(&Count) -> u64) -> &Round {
        &self.rounds[self.rounds.partition_point(|round| first(&round.first) <= number) - 1]
    }

    /// Holds a line against what its packet met.
    fn check(&self, line: &str, found: &mut BTreeSet<Packet>) {
        let value = parse(line);
        let is_allow = value["disposition"] == "allow";
        let policies = &value[if is_allow { "policies" } else { "isolated_by" }];
        let number = policies[0]["generation"].as_u64().unwrap();
        assert_eq!(policies.as_array().unwrap().len(), 1, "{line}");
        assert_eq!(policies[0]["name"], policy(number), "{line}");
        let port = value["connection"]["dest_port"].as_u64().unwrap();
        let address = value["connection"]["dest_ip"].as_str().unwrap();
        let server = (0..=SERVERS).find(|server| Family::V4.server(*server).to_string() == address);
        let server = server.unwrap_or_else(|| panic!("{line}"));
        let name = value["dest"]["pod_name"].as_str().unwrap_or_else(|| panic!("{line}"));
        assert_eq!(value["count"], 1, "{line}");
        assert!(found.insert((is_allow, name.to_owned(), port)), "twice: {line}");
        if server == SERVERS {
            assert!(name.starts_with("visitor"), "{line}");
            return;
        }
        assert_eq!(name, format!("server{server}"), "{line}");
        let packet = (port - 1) * SERVERS as u64 + server as u64;
        let round = self.round_of(packet, |first| if is_allow { first.allow } else { first.deny });
        assert!((round.in_force..=round.given).contains(&number), "{round:?}: {line}");
    }

    /// What each packet's line is about.
    fn due(&self) -> BTreeSet<Packet> {
        let to_server = |is_allow, number| {
            let (server, port) = (number % SERVERS as u64, number / SERVERS as u64 + 1);
            (is_allow, format!("server{server}"), port)
        };
        let allows = (0..self.sent.allow).map(|number| to_server(true, number));
        let denies = (0..self.sent.deny).map(|number| to_server(false, number));
        let visits = self.to_visitors.iter().enumerate().flat_map(|(visitor, sent)| {
            let both = move |port| [true, false].map(|is_allow| (is_allow, format!("visitor{visitor}"), port));
            (1..=*sent).flat_map(both)
        });
        allows.chain(denies).chain(visits).collect()
    }
}

#[derive(Debug)]
struct Kept {
    lines: u64,
    /// Allows and denies.
    deleted: (u64, u64),
}

fn kill(times: u64, max_files: u32, tells_denies_alone: bool) -> Kept {
    let mut kept = None;
    on_a_node(SERVERS, |node| {
        std::fs::create_dir_all(&node.state).unwrap();
        let order = Order {
            number: 1,
            attach: node.attach,
            servers: node.veths.clone(),
            visitor: Visitor::create(0, 1),
            tells_denies_alone,
            max_files,
        };
        order.give(&node.state);
        let mut life = node.start(&order.config());
        life.apply(&order.desired(&node.state, &node.bpffs));
        write(&node.state.join("in-force"), "1");
        drop(life);
        let mut sender = Sender {
            node,
            order,
            rounds: Vec::new(),
            sent: Count::default(),
            to_visitors: vec![0],
            unread: 0,
        };
        let progress = Progress::default();
        let mut moments = Moments(monotonic() | 1);
        println!("moments from {:#x}", moments.0);
        let (mut kills, mut sent) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| sender.run(&progress, times));
            for number in 0..times {
                let mut child = Process::start(node);
                // Now and then it is killed while it loads, finds out where the last one stopped, or attaches programs.
                match number % 3 {
                    0 => sleep(moments.next() % 800_000),
                    1 => {
                        child.wait_until(|| opened(&node.state).exists());
                        sleep(moments.next() % 300_000);
                    }
                    _ => {
                        let before = in_force(&node.state);
                        child.wait_until(|| in_force(&node.state) >= before + 3);
                        sleep(moments.next() % 10_000);
                    }
                }
                kills.push(child.kill());
                progress.kills.fetch_add(1, Ordering::Relaxed);
                sent.push(progress.packets.load(Ordering::Relaxed));
                let _ = std::fs::remove_file(opened(&node.state));
            }
            progress.stop.store(true, Ordering::Relaxed);
            sending.join().unwrap();
        });
        assert!(
            kills.iter().all(|status| status.code().is_none()),
            "none ended by itself: {kills:?}"
        );
        // A few are killed before anybody comes to send.
        let idle = sent.windows(2).filter(|sent| sent[0] == sent[1]).count() as u64;
        assert!(
            idle <= times / 10,
            "packets flow while it lives and is killed: {sent:?}"
        );
        kept = Some(account(&sender));
    });
    kept.unwrap()
}

/// A last life writes what is left, and everything is held against what was sent.
fn account(sender: &Sender<'_>) -> Kept {
    let Sender { node, order, .. } = sender;
    let mut life = node.start_logging_to(&order.config(), order.options(&node.state), AGGREGATION);
    life.apply(&order.desired(&node.state, &node.bpffs));
    let log = &mut life.log;
    while log.drain().unwrap() {}
    log.close().unwrap();
    // All that is too much goes.
    let path = order.options(&node.state).path;
    let most = order.max_files as usize + 1;
    let end = Instant::now() + PATIENCE;
    while wardline_record::files::open(&path).unwrap().len() > most {
        assert!(Instant::now() < end);
        log.close_if_due(Instant::now()).unwrap();
    }
    log.close().unwrap();
    assert_eq!(log.imbalance(), Some([[0; 2]; 2]));
    let written = written(&path);
    let ledger = log.ledger();
    let [allows, denies, losses] = ledger.deleted_records;
    println!(
        "{:?} sent, and as many of both to {} visitors, under {} orders; in the files {} lines of {} bytes, deleted {allows} \
         allows and {denies} denies of {} bytes",
        sender.sent,
        sender.to_visitors.len(),
        order.number,
        written.lines,
        written.bytes,
        ledger.deleted_bytes
    );
    assert!(order.number > 10 && sender.to_visitors.len() > 2, "too little changed");
    assert_eq!(
        (losses, written.losses),
        (0, Count::default()),
        "the ring was never full"
    );
    assert!(written.why.is_empty(), "nothing is in doubt: {written:?}");
    // Each packet is a line of its own.
    let visits: u64 = sender.to_visitors.iter().sum();
    assert_eq!(allows + written.records.allow, sender.sent.allow + visits);
    assert_eq!(denies + written.records.deny, sender.sent.deny + visits);

    let mut found = BTreeSet::new();
    for part in wardline_record::files::open(&path).unwrap() {
        let text = std::fs::read_to_string(&part.path).unwrap();
        text.lines().for_each(|line| sender.check(line, &mut found));
    }
    let due = sender.due();
    if allows + denies == 0 {
        let missing: Vec<_> = due.difference(&found).take(5).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
    let unsent: Vec<_> = found.difference(&due).take(5).collect();
    assert!(unsent.is_empty(), "{unsent:?}");
    Kept {
        lines: written.lines,
        deleted: (allows, denies),
    }
}

/// The child: a daemon's life until it is killed.
fn live(state: &OsStr) -> ! {
    let state = Path::new(state);
    let bpffs = state.with_file_name("bpf");
    let mut order = Order::read(state);
    let node = order.node(state, &bpffs);
    let mut life = node.start_logging_to(&order.config(), order.options(state), AGGREGATION);
    let (mut log, drained) = (life.log, drained(state));
    let writer = std::thread::spawn(move || {
        loop {
            while log.drain().unwrap() {}
            std::fs::write(&drained, "").unwrap();
            log.close_if_due(Instant::now()).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let mut in_force = 0;
    // The writer ends by a panic alone, and then so do we, which the test sees.
    while !writer.is_finished() {
        if order.number == in_force {
            std::thread::sleep(Duration::from_millis(2));
        } else {
            let applied = life.datapath.apply(&order.desired(state, &bpffs), named).unwrap();
            in_force = order.number;
            // An interface may go before we come to it; then there is a newer order.
            if applied.failed.is_empty() {
                write(&state.join("in-force"), &in_force.to_string());
            }
            std::fs::write(opened(state), "").unwrap();
            life.datapath.collect_garbage().unwrap();
            life.datapath.forget_names().unwrap();
            life.datapath.hand_over().unwrap();
        }
        order = Order::read(state);
    }
    std::process::exit(1);
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

    fn wait_until(&mut self, holds: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            let is_alive = self.0.try_wait().unwrap().is_none();
            assert!(Instant::now() < end && is_alive, "it does not come so far");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Is there when a child writes the log and has brought its first order in force.
fn opened(state: &Path) -> PathBuf {
    state.join("opened")
}

/// Is there when a child has read all that was sent before it was taken away.
fn drained(state: &Path) -> PathBuf {
    state.join("drained")
}

fn sleep(microseconds: u64) {
    std::thread::sleep(Duration::from_micros(microseconds));
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
