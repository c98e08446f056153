// SPDX-License-Identifier: Apache-2.0
//! Known numbers of packets against the sums of the records, tuple by tuple; and at a rate that is too much for everything,
//! by direction and verdict, with what was lost.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use wardline_bpf::frame::{self, Echo, flag};
use wardline_crds::config::DaemonConfig;
use wardline_policy::model::Direction;
use wardline_record::files;

use crate::support::{Life, Node, Program, monotonic, on_a_node};
use crate::{CLIENTS, Family, desired, parse};

/// Packets of each protocol and verdict, half of them in each family, unless this variable says otherwise.
const PACKETS: usize = 100_000;
const PACKETS_VARIABLE: &str = "WARDLINE_EXACT_PACKETS";
const PODS: usize = 8;
/// Packets between two looks of the writer: less than the ring holds.
const BURST: usize = 20_000;
/// Connections after which the table is emptied: less than what eight pods may have half open, to open more themselves.
const ROOM: usize = 60_000;
/// More connections than the ring holds.
const ENOUGH: usize = 2 * ROOM;
/// How long the writer is stopped at least.
const STOPPED: Duration = Duration::from_secs(5);

/// What a record is about: verdict, direction, protocol, addresses, ports. A deny has no source port, ICMP none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Tuple {
    disposition: &'static str,
    direction: Direction,
    protocol: &'static str,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Icmp];

    fn name(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Tcp, _) => "tcp",
            (Self::Udp, _) => "udp",
            (Self::Icmp, Family::V4) => "icmp",
            (Self::Icmp, Family::V6) => "icmpv6",
        }
    }

    /// The first packet of a flow; of ICMP the source port is the echo's id.
    fn frame(self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        match self {
            Self::Tcp => frame::tcp(source, destination, flag::SYN),
            Self::Udp => frame::udp(source, destination),
            Self::Icmp => frame::echo(source.ip(), destination.ip(), Echo::Request, source.port()),
        }
    }
}

/// The edges of the pods in both directions, and what was sent by tuple.
struct Sender {
    pods: Vec<[(Direction, Program); 2]>,
    sent: HashMap<Tuple, u64>,
    /// Each denied packet goes to another port.
    scans: bool,
}

impl Sender {
    fn of(node: &Node, life: &Life, scans: bool) -> Self {
        let edge = |ifindex: &u32| Direction::ALL.map(|direction| (direction, life.program(*ifindex, direction)));
        Self {
            pods: node.veths.iter().map(edge).collect(),
            sent: HashMap::new(),
            scans,
        }
    }

    /// Sends packet `number` of a protocol: it says which pod, direction, family, peer and ports. A flow that is admitted
    /// is a new one; of those that are not, some are sent once and some many times.
    fn send(&mut self, protocol: Protocol, is_admitted: bool, number: usize) {
        let pod = number % PODS;
        let (direction, program) = &self.pods[pod][number / PODS % 2];
        let family = [Family::V4, Family::V6][number / (2 * PODS) % 2];
        let flow = number / (4 * PODS);
        let port = |n: usize| u16::try_from(n).unwrap();
        let (near, far) = if is_admitted {
            (port(1 + flow / CLIENTS % 50), port(1024 + flow / CLIENTS / 50))
        } else if self.scans {
            (port(1 + flow % 60_000), 1024)
        } else {
            // Twice as many for each port than for the one before, roughly.
            (port(1 + flow.trailing_ones() as usize), port(1024 + flow % 60_000))
        };
        let server = family.server(pod);
        let client = family.client(is_admitted, flow % CLIENTS);
        let (source, destination) = match direction {
            Direction::Ingress => (SocketAddr::new(client, far), SocketAddr::new(server, near)),
            Direction::Egress => (SocketAddr::new(server, far), SocketAddr::new(client, near)),
        };
        // An echo has its id in place of both ports.
        let source = match protocol {
            Protocol::Icmp => SocketAddr::new(source.ip(), port(flow)),
            _ => source,
        };
        assert_eq!(
            program.passes(&protocol.frame(source, destination)),
            is_admitted,
            "{protocol:?} {number} {source} -> {destination}"
        );
        let ports = match protocol {
            Protocol::Icmp => (0, 0),
            _ if is_admitted => (source.port(), destination.port()),
            _ => (0, destination.port()),
        };
        let tuple = Tuple {
            disposition: if is_admitted { "allow" } else { "deny" },
            direction: *direction,
            protocol: protocol.name(family),
            source: (source.ip(), ports.0),
            destination: (destination.ip(), ports.1),
        };
        *self.sent.entry(tuple).or_default() += 1;
    }

    /// Compares all that was sent with all that is written, and begins anew with both.
    fn check_and_forget(&mut self, log: &Path) {
        let found = read(log);
        println!(
            "{} tuples, {:?} by direction and verdict",
            found.records.len(),
            sums(&found.records)
        );
        assert_eq!(sums(&found.records), self.sums());
        for (tuple, count) in &self.sent {
            assert_eq!(found.records.get(tuple), Some(count), "{tuple:?}");
        }
        assert_eq!(found.records.len(), self.sent.len(), "records of what nobody sent");
        assert_eq!(found.losses, [[0; 2]; 2]);
        self.sent.clear();
        // Emptied in place, as others may do.
        File::create(log).unwrap();
    }

    /// By direction, then verdict.
    fn sums(&self) -> [[u64; 2]; 2] {
        sums(&self.sent)
    }
}

fn sums(tuples: &HashMap<Tuple, u64>) -> [[u64; 2]; 2] {
    let mut sums = [[0; 2]; 2];
    for (tuple, count) in tuples {
        let direction = usize::from(tuple.direction == Direction::Ingress);
        sums[direction][usize::from(tuple.disposition == "deny")] += count;
    }
    sums
}

/// What stands in a log: records by tuple, and losses by direction and verdict, with their causes.
#[derive(Default)]
struct Found {
    records: HashMap<Tuple, u64>,
    losses: [[u64; 2]; 2],
    why: BTreeSet<String>,
}

/// Reads all files; each line must be whole, and about something else.
fn read(log: &Path) -> Found {
    let mut found = Found::default();
    let mut sequences = HashSet::new();
    for part in files::open(log).unwrap() {
        let mut lines = BufReader::new(part.file);
        let mut line = String::new();
        while lines.read_line(&mut line).unwrap() > 0 {
            assert!(line.ends_with('\n'), "torn: {line}");
            let value = parse(&line);
            assert!(
                sequences.insert(value["seq"].as_str().unwrap().to_owned()),
                "twice: {line}"
            );
            found.take_in(&value);
            line.clear();
        }
    }
    found
}

impl Found {
    fn take_in(&mut self, line: &Value) {
        let connection = &line["connection"];
        let direction = match connection["direction"].as_str().unwrap() {
            "ingress" => Direction::Ingress,
            _ => Direction::Egress,
        };
        let count = line["count"].as_u64().unwrap();
        let disposition = match line["disposition"].as_str().unwrap() {
            "allow" => "allow",
            "deny" => "deny",
            _ => {
                let verdict = usize::from(line["lost"]["disposition"] == "deny");
                self.losses[usize::from(direction == Direction::Ingress)][verdict] += count;
                self.why.insert(line["lost"]["why"].as_str().unwrap().to_owned());
                return;
            }
        };
        let address = |field: &str| connection[field].as_str().unwrap().parse().unwrap();
        let port = |field: &str| {
            connection[field]
                .as_u64()
                .map_or(0, |port| u16::try_from(port).unwrap())
        };
        let mut protocols = ["tcp", "udp", "icmp", "icmpv6"].into_iter();
        let protocol = protocols.find(|name| connection["protocol"] == *name);
        let source_port = if disposition == "allow" { port("src_port") } else { 0 };
        let tuple = Tuple {
            disposition,
            direction,
            protocol: protocol.unwrap(),
            source: (address("src_ip"), source_port),
            destination: (address("dest_ip"), port("dest_port")),
        };
        *self.records.entry(tuple).or_default() += count;
    }
}

/// Takes all connections out of the table, and out of what pods are counted to have.
fn forget_connections(life: &Life) {
    life.forget_connections();
    life.conntrack.sweep(monotonic()).unwrap();
}

#[test]
fn records_are_what_was_sent_tuple_by_tuple() {
    let packets = std::env::var(PACKETS_VARIABLE).map_or(PACKETS, |text| text.parse().unwrap());
    on_a_node(PODS, |node| {
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&desired(node));
        let mut sender = Sender::of(node, &life, false);
        for protocol in Protocol::ALL {
            for is_admitted in [true, false] {
                for number in 0..packets {
                    sender.send(protocol, is_admitted, number);
                    if (number + 1) % BURST == 0 {
                        while life.log.drain().unwrap() {}
                        life.log.close().unwrap();
                    }
                    if is_admitted && (number + 1) % ROOM == 0 {
                        forget_connections(&life);
                    }
                }
                forget_connections(&life);
                while life.log.drain().unwrap() {}
                life.log.close().unwrap();
                assert_eq!(life.log.imbalance(), Some([[0; 2]; 2]));
                sender.check_and_forget(&node.file_options().path);
            }
        }
    });
}

#[test]
fn records_and_losses_are_what_was_sent_when_everything_is_overrun() {
    on_a_node(PODS, |node| {
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&desired(node));
        let mut sender = Sender::of(node, &life, true);
        let options = node.file_options();
        let mut log = Node::start_log(&node.bpffs, &node.state, options.clone(), Duration::from_millis(50));
        let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
        let mut log = std::thread::scope(|scope| {
            let (stop, sent) = (&stop, &sent);
            let writer = scope.spawn(move || {
                std::thread::sleep(STOPPED);
                while sent.load(Ordering::Relaxed) < ENOUGH {
                    std::thread::sleep(Duration::from_millis(1));
                }
                while !stop.load(Ordering::Relaxed) {
                    while log.drain().unwrap() {}
                    log.close_if_due(Instant::now()).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
                log
            });
            // The ring is full, and the denies of each pod have no room, long before the writer goes on.
            let (began, mut number) = (Instant::now(), 0);
            while began.elapsed() < STOPPED + Duration::from_secs(2) || number < ENOUGH + ROOM {
                for _ in 0..ROOM {
                    sender.send(Protocol::Udp, true, number % (10 * ROOM));
                    sender.send(Protocol::Tcp, false, number % (10 * ROOM));
                    number += 1;
                }
                sent.store(number, Ordering::Relaxed);
                forget_connections(&life);
            }
            println!("{number} connections and as many denies in {:?}", began.elapsed());
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        });
        while log.drain().unwrap() {}
        log.close().unwrap();
        assert_eq!(log.imbalance(), Some([[0; 2]; 2]));
        let Found { records, losses, why } = read(&options.path);
        println!(
            "records {:?}, losses {losses:?} by direction and verdict: {why:?}",
            sums(&records)
        );
        assert!(why.iter().eq(["aggregates-full", "ring-full"]), "{why:?}");
        let mut all = losses;
        for (sums, records) in all.iter_mut().zip(sums(&records)) {
            for (sum, count) in sums.iter_mut().zip(records) {
                *sum += count;
            }
        }
        assert_eq!(all, sender.sums());
        for (tuple, count) in &records {
            assert!(
                sender.sent.get(tuple).is_some_and(|sent| count <= sent),
                "{tuple:?}: {count}"
            );
        }
    });
}
