// SPDX-License-Identifier: Apache-2.0
//! Flows through the programs of a world, new ones and open ones, against what the evaluators say of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::TcpRepair};
use socket2::{Domain, Socket, Type};
use wardline_bpf::frame::protocol;
use wardline_policy::compile::compile;
use wardline_policy::evaluate::evaluate;
use wardline_policy::lookup::lookup;
use wardline_policy::model::{Direction as Edge, Objects};
use wardline_policy::oracle::generate::NODE;
use wardline_policy::oracle::naive::{Answer, judge};
use wardline_policy::oracle::{Direction, Flow};
use wardline_policy::tables::Tables;

use crate::packet::{Connection, Key, Part, decided_by};
use crate::support::output;
use crate::world::{World, pod_addresses, uid};

/// Connections that are kept open while the cluster changes.
const OPEN: usize = 24;
/// Those without a handshake are forgotten after that long, well before the kernel does it.
const OPEN_FOR: Duration = Duration::from_secs(15);

/// What was found wrong, at which flow, and whether that was open before.
#[derive(Debug)]
pub struct Disagreement {
    pub flow: Flow,
    pub opened_in: Option<usize>,
    pub why: String,
}

/// A connection that was allowed once.
#[derive(Debug)]
struct Open {
    connection: Connection,
    uid: String,
    since: Instant,
    /// Which state of the cluster it was opened in.
    opened_in: usize,
}

/// One state of the cluster, as the evaluators see it.
struct State {
    objects: Objects,
    tables: Tables,
}

impl State {
    fn of(world: &World<'_>) -> Self {
        let objects = world.cluster.objects().unwrap();
        let tables = compile(&objects, NODE);
        Self { objects, tables }
    }

    /// What all evaluators say.
    fn judge(&self, world: &World<'_>, flow: &Flow) -> Result<Answer, String> {
        let naive = judge(&world.cluster, flow);
        let edge = flow.edge();
        let reference = evaluate(&self.objects, &edge);
        let found = lookup(&self.tables, &edge);
        // Whose a packet is, is for the packet program to tell.
        if reference != found || (naive != Answer::Always && naive != Answer::from(&reference)) {
            return Err(format!("naive {naive:?}, reference {reference:?}, tables {found:?}"));
        }
        Ok(naive)
    }
}

/// Asks the programs of a world, and keeps some of the connections open.
#[derive(Debug, Default)]
pub struct Judge {
    pub answers: BTreeMap<&'static str, usize>,
    /// Questions to open connections.
    pub again: BTreeMap<&'static str, usize>,
    pub flows: usize,
    open: Vec<Open>,
    /// Of a kind that has one flow between two addresses, asked before.
    asked_once: BTreeSet<(String, Key)>,
    own_port: u16,
}

impl Judge {
    /// New flows in the world as it is, which is the state of that number. Their records are checked too.
    pub fn ask(&mut self, world: &mut World<'_>, number: usize, flows: &[Flow]) -> Result<(), Disagreement> {
        let state = State::of(world);
        let mut expected = BTreeMap::new();
        for flow in flows {
            let Some((ifindex, connection)) = self.connection(world, flow) else {
                continue;
            };
            let mut key = connection.key();
            key.own_port = 0;
            // Denies of one client are added up.
            if expected.keys().any(|other: &Key| {
                Key {
                    own_port: 0,
                    ..other.clone()
                } == key
            }) {
                continue;
            }
            let uid = uid(world.pod(&flow.pod).unwrap());
            if connection.is_one_of_a_kind() && !self.asked_once.insert((uid.clone(), key)) {
                continue;
            }
            let wrong = |why| Disagreement {
                flow: flow.clone(),
                opened_in: None,
                why,
            };
            let answer = state.judge(world, flow).map_err(wrong)?;
            let passed = send(world, ifindex, &connection, Part::Opening);
            self.flows += 1;
            *self.answers.entry(name(&answer)).or_default() += 1;
            if passed != answer.passes() {
                let passed = if passed { "passes" } else { "is dropped" };
                return Err(wrong(format!("{answer:?}, and the packet {passed}")));
            }
            if matches!(answer, Answer::Allowed(_) | Answer::Denied(_)) && (passed || !is_refused(world, flow)) {
                expected.insert(connection.key(), answer.by().to_vec());
            }
            let is_to_itself = pod_addresses(world.pod(&flow.pod).unwrap()).contains(&flow.remote);
            if passed && !is_to_itself {
                self.keep_open(world, ifindex, connection, uid, number);
            }
        }
        check_records(world, expected)
    }

    fn connection(&mut self, world: &World<'_>, flow: &Flow) -> Option<(u32, Connection)> {
        let ifindex = world.interface(&flow.pod)?;
        let pod = world.pod(&flow.pod)?;
        let address = pod_addresses(pod)
            .into_iter()
            .find(|ip| ip.is_ipv4() == flow.remote.is_ipv4())?;
        self.own_port = if (40_000..60_000).contains(&self.own_port) {
            self.own_port + 1
        } else {
            40_000
        };
        let connection = Connection {
            flow: flow.clone(),
            address,
            own_port: self.own_port,
        };
        Some((ifindex, connection))
    }

    fn keep_open(&mut self, world: &mut World<'_>, ifindex: u32, connection: Connection, uid: String, number: usize) {
        if self.open.len() >= OPEN {
            return;
        }
        assert!(
            send(world, ifindex, &connection, Part::Answer),
            "{connection:?} is answered"
        );
        self.open.push(Open {
            connection,
            uid,
            since: Instant::now(),
            opened_in: number,
        });
    }

    /// Later packets of connections that were opened in earlier states: each follows the policy of now.
    pub fn ask_again(&mut self, world: &mut World<'_>) -> Result<(), Disagreement> {
        let mut denied = false;
        self.open.retain(|open| is_still_there(world, open));
        let state = State::of(world);
        for (index, open) in self.open.iter().enumerate() {
            let wrong = |why| Disagreement {
                flow: open.connection.flow.clone(),
                opened_in: Some(open.opened_in),
                why,
            };
            let Some(ifindex) = world.interface(&open.connection.flow.pod) else {
                continue;
            };
            let answer = state.judge(world, &open.connection.flow).map_err(wrong)?;
            denied |= !answer.passes();
            *self.again.entry(name(&answer)).or_default() += 1;
            let parts = if index % 2 == 0 {
                [Part::Later, Part::LaterAnswer]
            } else {
                [Part::LaterAnswer, Part::Later]
            };
            for part in parts {
                if send(world, ifindex, &open.connection, part) != answer.passes() {
                    return Err(wrong(format!("{answer:?}, and not so its packet {part:?}")));
                }
            }
        }
        if denied {
            world.life.records();
        }
        // Others get their turn.
        if self.open.len() >= OPEN {
            self.open.drain(..OPEN / 8);
        }
        Ok(())
    }

    /// The kernel knows of no connection any more.
    pub fn forget_connections(&mut self, world: &World<'_>) {
        world.life.forget_connections();
        self.open.clear();
        self.asked_once.clear();
    }
}

fn is_still_there(world: &World<'_>, open: &Open) -> bool {
    let pod = world.pod(&open.connection.flow.pod);
    let is_same = pod.is_some_and(|pod| uid(pod) == open.uid && pod_addresses(pod).contains(&open.connection.address));
    let is_tcp = open.connection.flow.protocol == 6;
    is_same && (is_tcp || open.since.elapsed() < OPEN_FOR)
}

/// Nobody is there: policy has no part in it, and no record tells of it.
fn is_refused(world: &World<'_>, flow: &Flow) -> bool {
    let may_be_found = flow.direction == Direction::Egress && matches!(flow.protocol, protocol::TCP | protocol::UDP);
    may_be_found && !flow.with_node && is_of_node(world, flow)
}

/// What that packet goes to, for as long as it is held.
fn socket_of_node(connection: &Connection, part: Part) -> OwnedFd {
    let at = (Ipv6Addr::UNSPECIFIED, connection.flow.port);
    match connection.flow.protocol {
        protocol::TCP if part == Part::Opening => TcpListener::bind(at).unwrap().into(),
        protocol::TCP => connected(connection),
        _ => UdpSocket::bind(at).unwrap().into(),
    }
}

/// Without a way to the pods nothing could be connected to them. No packet is sent.
pub fn route_to_all_pods() {
    for arguments in [
        "link set lo up",
        "-4 route add local default dev lo",
        "-6 route add local default dev lo",
    ] {
        output("ip", &arguments.split(' ').collect::<Vec<_>>());
    }
}

/// The node's end of a connection, of which no packet was ever sent.
fn connected(connection: &Connection) -> OwnedFd {
    let node = SocketAddr::new(connection.flow.remote, connection.flow.port);
    let pod = SocketAddr::new(connection.address, connection.own_port);
    let socket = Socket::new(Domain::for_address(node), Type::STREAM, None).unwrap();
    match node {
        SocketAddr::V4(_) => socket.set_freebind_v4(true).unwrap(),
        SocketAddr::V6(_) => socket.set_freebind_v6(true).unwrap(),
    }
    setsockopt(&socket, TcpRepair, &1).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&node.into()).unwrap();
    socket.connect(&pod.into()).unwrap();
    socket.into()
}

fn is_of_node(world: &World<'_>, flow: &Flow) -> bool {
    world.local_addresses().any(|address| address == flow.remote)
}

/// Whether a packet of the connection passes.
fn send(world: &mut World<'_>, ifindex: u32, connection: &Connection, part: Part) -> bool {
    let to_pod = (connection.flow.direction == Direction::Ingress) != part.is_answer();
    let direction = if to_pod { Edge::Ingress } else { Edge::Egress };
    let frame = connection.frame(part);
    let is_echo = matches!(connection.flow.protocol, protocol::ICMP | protocol::ICMPV6);
    let is_answered_by_node = part.is_answer() && is_echo && is_of_node(world, &connection.flow);
    let program = world.program(ifindex, direction);
    if to_pod && connection.flow.remote == connection.address {
        program.passes_from_itself(&frame)
    } else if to_pod && (connection.flow.with_node || is_answered_by_node) {
        program.passes_from_node(&frame)
    } else if connection.flow.with_node && connection.flow.direction == Direction::Egress {
        let _socket = socket_of_node(connection, part);
        program.passes(&frame)
    } else {
        program.passes(&frame)
    }
}

fn check_records(
    world: &mut World<'_>,
    mut expected: BTreeMap<Key, Vec<wardline_policy::oracle::naive::By>>,
) -> Result<(), Disagreement> {
    for record in world.life.records() {
        let key = Key::of(&record);
        let by = expected
            .remove(&key)
            .unwrap_or_else(|| panic!("nobody asked for {record}"));
        if decided_by(&record) != by {
            return Err(disagreement(&key, format!("{by:?} decide, and the record is {record}")));
        }
    }
    if let Some((key, by)) = expected.first_key_value() {
        return Err(disagreement(key, format!("{by:?} decide, and there is no record")));
    }
    assert_eq!(world.life.log.imbalance(), Some([[0; 2]; 2]));
    Ok(())
}

fn disagreement(key: &Key, why: String) -> Disagreement {
    Disagreement {
        flow: Flow {
            pod: key.pod.clone(),
            direction: key.direction,
            remote: key.remote,
            protocol: key.protocol,
            port: key.port,
            with_node: false,
        },
        opened_in: None,
        why,
    }
}

fn name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Always => "always allowed",
        Answer::NotIsolated => "not isolated",
        Answer::Allowed(_) => "allowed",
        Answer::Denied(_) => "denied",
    }
}
