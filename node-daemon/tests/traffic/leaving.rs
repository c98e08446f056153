// SPDX-License-Identifier: Apache-2.0
//! Wardline leaves, and connections to Services go on. Rules as kube-proxy's would give them another backend, and do so
//! to new ones.
//!
//! ```text
//! client -> Service  -- Wardline ----> HERE     two pods of the node, or two ports of the machine outside: pods on one
//!                    -- kube-proxy --> THERE    bridge answer each other past the node, which needs br_netfilter
//!
//! that talk by turns, that are silent until one side says something, and in which the server alone talks
//! ```

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use wardline_bpf::abi::ConntrackState;
use wardline_crds::Enforcement;
use wardline_crds::config::DaemonConfig;

use crate::services::{front, states};
use crate::wire::{Cluster, Family, Plugin, inside, run, udp_client, with_config};

/// What the backends answer with.
const HERE: u8 = 1;
const THERE: u8 = 2;

const CLIENT: u8 = 11;
const HTTP: u16 = 80;
const DNS: u16 = 53;
const MANY: u32 = 200;
const FEW: u32 = 100;
/// Longer than anything takes that was not lost for good: retransmissions of TCP among it.
const PATIENCE: Duration = Duration::from_secs(20);
/// After which a question over UDP is asked again.
const RETRY: Duration = Duration::from_millis(200);
/// Between two words of a server that nobody asked.
const PAUSE: Duration = Duration::from_millis(1);
/// The question of a client that listens from then on.
const LISTEN: u32 = u32::MAX;
const CLIENT_TO_NOBODY: &str = "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}";

/// Where a backend is.
#[derive(Clone, Copy)]
struct Backend {
    namespace: &'static str,
    address: fn(Family) -> IpAddr,
    port: u16,
    id: u8,
}

/// Wardline's and kube-proxy's.
fn backends(plugin: Plugin) -> [Backend; 2] {
    let backend = |namespace, address, port, id| Backend {
        namespace,
        address,
        port,
        id,
    };
    match plugin {
        Plugin::Ptp => [
            backend("a", |family| family.pod(3), 7000, HERE),
            backend("b", |family| family.pod(4), 7000, THERE),
        ],
        Plugin::Bridge => [
            backend("outside", |family| family.outside(2), 7000, HERE),
            backend("outside", |family| family.outside(2), 7001, THERE),
        ],
    }
}

fn serve(cluster: &mut Cluster, backend: Backend) {
    let service = format!(
        "{{spec: {{clusterIPs: ['{}', '{}'], ports: [{{name: http, port: {HTTP}}}, {{name: dns, port: {DNS}, protocol: UDP}}]}}}}",
        front(Family::V4, 0).ip(),
        front(Family::V6, 0).ip(),
    );
    cluster.service("web", &service);
    for (family, address_type) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let (address, port) = ((backend.address)(family), backend.port);
        let slice = format!(
            "{{metadata: {{labels: {{kubernetes.io/service-name: web}}}}, addressType: {address_type},
              ports: [{{name: http, port: {port}}}, {{name: dns, port: {port}, protocol: UDP}}],
              endpoints: [{{addresses: ['{address}']}}]}}"
        );
        cluster.slice(&format!("web-{address_type}"), &slice);
    }
}

fn kube_proxy(backend: Backend) {
    for family in Family::BOTH {
        let (ip, front) = (family.nft(), front(family, 0).ip());
        let target = SocketAddr::new((backend.address)(family), backend.port);
        run("nft", &format!("add table {ip} kube-proxy"));
        run(
            "nft",
            &format!("add chain {ip} kube-proxy services {{ type nat hook prerouting priority dstnat; }}"),
        );
        for (protocol, port) in [("tcp", HTTP), ("udp", DNS)] {
            let rule = format!("{ip} daddr {front} {protocol} dport {port} dnat to {target}");
            run("nft", &format!("add rule {ip} kube-proxy services {rule}"));
        }
    }
}

/// As many network plugins do it: nobody outside sees a pod's address.
fn masquerade() {
    run("nft", "add table inet plugin");
    run(
        "nft",
        "add chain inet plugin post { type nat hook postrouting priority srcnat; }",
    );
    run("nft", "add rule inet plugin post oifname up0 masquerade");
}

/// A backend's sockets. Each answers what it is asked, with its id before it.
struct Server {
    tcp: TcpListener,
    udp: UdpSocket,
    /// Those that want to hear more.
    listeners: Mutex<Vec<SocketAddr>>,
    id: u8,
}

impl Server {
    fn start(backend: Backend) -> Self {
        let any = (Ipv6Addr::UNSPECIFIED, backend.port);
        let tcp = inside(backend.namespace, || TcpListener::bind(any).unwrap());
        let udp = inside(backend.namespace, || UdpSocket::bind(any).unwrap());
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(RETRY)).unwrap();
        Self {
            tcp,
            udp,
            listeners: Mutex::default(),
            id: backend.id,
        }
    }

    fn answer_datagrams(&self, talk: &Talk) {
        let mut datagram = [0; 5];
        while !talk.is_over.load(Ordering::Relaxed) {
            if let Ok((_, from)) = self.udp.recv_from(&mut datagram[1..]) {
                datagram[0] = self.id;
                self.udp.send_to(&datagram, from).unwrap();
                if datagram[1..] == LISTEN.to_be_bytes() {
                    self.listeners.lock().unwrap().push(from);
                }
            }
        }
    }

    fn tell_listeners(&self, talk: &Talk) {
        while talk.goes_on() {
            for listener in &*self.listeners.lock().unwrap() {
                self.udp.send_to(&[self.id], listener).unwrap();
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn accept(&self) -> TcpStream {
        let began = Instant::now();
        loop {
            match self.tcp.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    return prepared(stream);
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(began.elapsed() < PATIENCE, "{} is not connected to", self.id);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn prepared(stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn connect(to: SocketAddr) -> TcpStream {
    prepared(inside("client", || TcpStream::connect_timeout(&to, PATIENCE).unwrap()))
}

/// What goes on while Wardline leaves.
#[derive(Default)]
struct Talk {
    stop: AtomicBool,
    /// Everybody has stopped, so nobody is to be answered any more.
    is_over: AtomicBool,
    answers: AtomicU32,
    /// Datagrams that nobody answered in time.
    lost: AtomicU32,
    /// Words that came unasked, of each connection.
    heard: [AtomicU32; 4],
}

/// Ends all talk, also when a test fails in its middle.
struct End<'a>(&'a Talk);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl Talk {
    /// Until that many more have come.
    fn until_answers(&self, more: u32) {
        let (began, before) = (Instant::now(), self.answers.load(Ordering::Relaxed));
        while self.answers.load(Ordering::Relaxed) < before + more {
            assert!(began.elapsed() < PATIENCE, "nobody answers");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Until that many more have come on each connection.
    fn until_heard(&self, more: u32) {
        for heard in &self.heard {
            let (began, before) = (Instant::now(), heard.load(Ordering::Relaxed));
            while heard.load(Ordering::Relaxed) < before + more {
                assert!(began.elapsed() < PATIENCE, "servers are not heard: {:?}", self.heard);
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// A connection's both ends, by turns. Returns the longest time without an answer.
    fn over_tcp(&self, near: &TcpStream, far: &TcpStream) -> Duration {
        let (mut near, mut far, mut longest) = (near, far, Duration::ZERO);
        for number in (0_u32..).take_while(|_| self.goes_on()) {
            let (asked, mut bytes) = (Instant::now(), [0; 4]);
            near.write_all(&number.to_be_bytes()).unwrap();
            far.read_exact(&mut bytes).unwrap();
            far.write_all(&bytes).unwrap();
            near.read_exact(&mut bytes).unwrap();
            assert_eq!(u32::from_be_bytes(bytes), number);
            longest = longest.max(asked.elapsed());
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        longest
    }

    /// All answers are from where the first one was.
    fn over_udp(&self, socket: &UdpSocket) -> Duration {
        let mut longest = Duration::ZERO;
        for number in (0_u32..).take_while(|_| self.goes_on()) {
            let asked = Instant::now();
            let mut by = ask(socket, number);
            while by.is_none() {
                assert!(asked.elapsed() < PATIENCE, "no answer");
                self.lost.fetch_add(1, Ordering::Relaxed);
                by = ask(socket, number);
            }
            assert_eq!(by, Some(HERE));
            longest = longest.max(asked.elapsed());
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        longest
    }
}

/// Words of the server, one after the other.
fn tell(talk: &Talk, mut far: &TcpStream) {
    for number in (0_u32..).take_while(|_| talk.goes_on()) {
        far.write_all(&number.to_be_bytes()).unwrap();
        std::thread::sleep(PAUSE);
    }
    far.shutdown(Shutdown::Write).unwrap();
}

fn hear(mut near: &TcpStream, heard: &AtomicU32) {
    let mut bytes = [0; 4];
    while near.read_exact(&mut bytes).is_ok() {
        let number = heard.fetch_add(1, Ordering::Relaxed);
        assert_eq!(u32::from_be_bytes(bytes), number);
    }
}

fn hear_datagrams(talk: &Talk, socket: &UdpSocket, heard: &AtomicU32) {
    while talk.goes_on() {
        heard.fetch_add(u32::from(socket.recv(&mut [0; 5]).is_ok()), Ordering::Relaxed);
    }
}

/// Who answers this very question; None: nobody in time.
fn ask(socket: &UdpSocket, number: u32) -> Option<u8> {
    socket.set_read_timeout(Some(RETRY)).unwrap();
    socket.send(&number.to_be_bytes()).unwrap();
    let mut answer = [0; 5];
    while socket.recv(&mut answer).is_ok() {
        // Later than a question that was asked again.
        if answer[1..] == number.to_be_bytes() {
            return Some(answer[0]);
        }
    }
    None
}

/// One byte, there and back or back and there.
fn exchange(mut first: &TcpStream, mut then: &TcpStream) {
    first.write_all(b"?").unwrap();
    then.read_exact(&mut [0]).unwrap();
    then.write_all(b"!").unwrap();
    first.read_exact(&mut [0]).unwrap();
}

/// Connections that go on, over TCP and UDP.
const ALL: usize = 2 * 4 + 2 * 2;

/// How the connections are that Wardline leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Plain,
    Masqueraded,
    /// Policy denies them, and is only watched.
    Watched,
}

fn connections_go_on(plugin: Plugin, case: Case) {
    let mut config = DaemonConfig::default();
    if case == Case::Watched {
        config.enforcement = Enforcement::Audit;
    }
    with_config(plugin, config, |cluster| {
        if case == Case::Masqueraded {
            masquerade();
        }
        if case == Case::Watched {
            cluster.policy("p", CLIENT_TO_NOBODY);
        }
        for (name, host) in [("client", CLIENT), ("a", 3), ("b", 4)] {
            cluster.pod(name, host);
        }
        let [ours, theirs] = backends(plugin);
        kube_proxy(theirs);
        serve(cluster, ours);
        cluster.apply();
        let (here, there) = (Server::start(ours), Server::start(theirs));
        let open = |family| {
            let near = connect(front(family, HTTP));
            (near, here.accept())
        };
        let talking = Family::BOTH.map(open);
        let told = Family::BOTH.map(open);
        let [silent_clients, silent_servers] = [Family::BOTH.map(open), Family::BOTH.map(open)];
        let [datagrams, listening] =
            [(); 2].map(|()| Family::BOTH.map(|family| udp_client("client", front(family, DNS))));
        let talk = Talk::default();
        std::thread::scope(|scope| {
            let _end = End(&talk);
            scope.spawn(|| here.answer_datagrams(&talk));
            scope.spawn(|| there.answer_datagrams(&talk));
            scope.spawn(|| here.tell_listeners(&talk));
            for ((near, far), heard) in told.iter().zip(&talk.heard[..2]) {
                scope.spawn(|| tell(&talk, far));
                scope.spawn(|| hear(near, heard));
            }
            for (socket, heard) in listening.iter().zip(&talk.heard[2..]) {
                assert_eq!((0..FEW).find_map(|_| ask(socket, LISTEN)), Some(HERE));
                scope.spawn(|| hear_datagrams(&talk, socket, heard));
            }
            let mut talks = Vec::new();
            for (near, far) in &talking {
                talks.push(scope.spawn(|| talk.over_tcp(near, far)));
            }
            for socket in &datagrams {
                // Its way is known before Wardline leaves, however late its thread begins.
                assert_eq!((0..FEW).find_map(|number| ask(socket, number)), Some(HERE));
                talks.push(scope.spawn(|| talk.over_udp(socket)));
            }
            talk.until_answers(MANY);
            match case {
                Case::Plain => {}
                Case::Masqueraded => {
                    let seen = talking
                        .iter()
                        .map(|(_, far)| far.peer_addr().unwrap().ip().to_canonical());
                    assert!(seen.eq(Family::BOTH.map(|family| family.outside(1))));
                }
                Case::Watched => assert_eq!(states(cluster), [u8::from(ConntrackState::Denied); ALL]),
            }
            let (began, lost_before) = (Instant::now(), talk.lost.load(Ordering::Relaxed));
            let detached = cluster.leave();
            let (took, answers) = (began.elapsed(), talk.answers.load(Ordering::Relaxed));
            talk.until_answers(MANY);
            let lost = talk.lost.load(Ordering::Relaxed) - lost_before;
            talk.until_heard(MANY);
            for (near, far) in &silent_clients {
                exchange(near, far);
            }
            for (near, far) in &silent_servers {
                exchange(far, near);
            }
            // New ones are the rules', and were all the time.
            for family in Family::BOTH {
                let near = connect(front(family, HTTP));
                exchange(&near, &there.accept());
                let socket = udp_client("client", front(family, DNS));
                assert_eq!((0..FEW).find_map(|number| ask(&socket, number)), Some(THERE));
            }
            talk.stop.store(true, Ordering::Relaxed);
            let longest: Vec<Duration> = talks.into_iter().map(|talk| talk.join().unwrap()).collect();
            let all = talk.answers.load(Ordering::Relaxed);
            println!("took {took:?}; {answers} answers, then {all}; {lost} lost; {longest:?} at most for an answer");
            assert!(detached.lost.is_empty(), "{detached:?}");
            assert_eq!(detached.handed_back.connections, ALL);
            // Each of the two waits for as many answers as fit into that time, and not for one that was asked after it.
            assert!(
                RETRY * lost <= 2 * (took + 2 * RETRY),
                "{lost} datagrams are lost within {took:?}"
            );
        });
    });
}

#[test]
fn connections_to_services_go_on_when_wardline_leaves_on_routed_links() {
    connections_go_on(Plugin::Ptp, Case::Plain);
}

#[test]
fn connections_to_services_go_on_when_wardline_leaves_on_a_bridge() {
    connections_go_on(Plugin::Bridge, Case::Plain);
}

#[test]
fn connections_that_are_masqueraded_go_on_too() {
    connections_go_on(Plugin::Bridge, Case::Masqueraded);
}

#[test]
fn connections_go_on_where_policy_was_only_watched() {
    connections_go_on(Plugin::Ptp, Case::Watched);
}
