// SPDX-License-Identifier: Apache-2.0
//! Pods that reach Services, without kube-proxy: what they are given, what policy says of it, and what they are told
//! where there is nothing.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore as _, MapFlags};
use wardline_bpf::abi::{self, ConntrackEntry, ConntrackState};
use wardline_crds::ServicesMode;
use wardline_crds::config::DaemonConfig;
use zerocopy::FromBytes as _;

use crate::wire::{
    Cluster, Family, PORT, Plugin, SILENCE, inside, listener, on_a_cluster, run, udp_client, udp_server, with_config,
};

const PATIENCE: Duration = Duration::from_secs(5);
pub const CLIENT: u8 = 2;
/// By the last part of their pods' addresses.
pub const A: u8 = 3;
pub const B: u8 = 4;
/// Clients that are always tried, and those within which both of two backends must have been chosen.
const FEW: usize = 4;
const MANY: usize = 64;

pub fn front(family: Family, port: u16) -> SocketAddr {
    let address = match family {
        Family::V4 => "10.96.0.10",
        Family::V6 => "fd00:96::10",
    };
    SocketAddr::new(address.parse().unwrap(), port)
}

/// What becomes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Served, by which pod.
    By(u8),
    /// Told at once that nobody is there.
    Refused,
    Silence,
}

use Outcome::{By, Refused, Silence};

pub struct Backend {
    host: u8,
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Backend {
    fn start(pod: &str, host: u8) -> Self {
        Self::of(host, listener(pod), udp_server(pod))
    }

    fn of(host: u8, tcp: TcpListener, udp: UdpSocket) -> Self {
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        Self { host, tcp, udp }
    }
}

pub struct World<'a, 'b> {
    pub cluster: &'a mut Cluster<'b>,
    pub backends: Vec<Backend>,
}

/// A client and two pods that serve, on a node joined by each plugin. Nothing is in force yet.
fn with_two_backends(test: impl Fn(&mut World<'_, '_>) + Sync) {
    for plugin in [Plugin::Ptp, Plugin::Bridge] {
        with_two_backends_on(plugin, DaemonConfig::default(), &test);
    }
}

pub fn with_two_backends_on(plugin: Plugin, config: DaemonConfig, test: impl Fn(&mut World<'_, '_>) + Sync) {
    with_config(plugin, config, |cluster| {
        for (name, host) in [("client", CLIENT), ("a", A), ("b", B)] {
            cluster.pod(name, host);
        }
        let backends = [("a", A), ("b", B)]
            .map(|(name, host)| Backend::start(name, host))
            .into();
        test(&mut World { cluster, backends });
    });
}

impl World<'_, '_> {
    /// The Service `web`, port 80 of TCP and 53 of UDP, with these backends; `more` are further fields of its spec.
    pub fn serve(&mut self, more: &str, hosts: &[u8]) {
        let service = format!(
            "{{spec: {{clusterIPs: [10.96.0.10, 'fd00:96::10'], {more} ports: [
                {{name: http, port: 80, targetPort: web}}, {{name: dns, port: 53, protocol: UDP}}]}}}}"
        );
        self.cluster.service("web", &service);
        for (family, address_type) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            let endpoints: Vec<String> = hosts
                .iter()
                .map(|host| format!("{{addresses: ['{}'], nodeName: node1}}", family.pod(*host)))
                .collect();
            let slice = format!(
                "{{metadata: {{labels: {{kubernetes.io/service-name: web}}}}, addressType: {address_type},
                  ports: [{{name: http, port: {PORT}}}, {{name: dns, port: {PORT}, protocol: UDP}}],
                  endpoints: [{}]}}",
                endpoints.join(", ")
            );
            self.cluster.slice(&format!("web-{address_type}"), &slice);
        }
        self.cluster.apply();
    }

    #[track_caller]
    pub fn tcp(&self, client: &str, to: SocketAddr) -> Outcome {
        match inside(client, || TcpStream::connect_timeout(&to, SILENCE)) {
            Ok(mut stream) => {
                assert_eq!(stream.peer_addr().unwrap(), to);
                let (mut far, host) = self.accept();
                // Both ways: what comes back comes from the Service.
                far.write_all(b"answer").unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.read_exact(&mut [0; 6]).unwrap();
                By(host)
            }
            Err(error) => outcome(&error),
        }
    }

    #[track_caller]
    pub fn accept(&self) -> (TcpStream, u8) {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            for backend in &self.backends {
                if let Ok((stream, _)) = backend.tcp.accept() {
                    return (stream, backend.host);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no backend has the connection");
    }

    pub fn udp(&self, client: &str, to: SocketAddr) -> Outcome {
        self.ask(&udp_client(client, to))
    }

    /// A connected socket hears of its peer only.
    pub fn ask(&self, socket: &UdpSocket) -> Outcome {
        socket.set_nonblocking(true).unwrap();
        if let Err(error) = socket.send(b"?") {
            return outcome(&error);
        }
        let began = Instant::now();
        while began.elapsed() < SILENCE {
            for backend in &self.backends {
                if let Ok((_, from)) = backend.udp.recv_from(&mut [0; 8]) {
                    backend.udp.send_to(&[backend.host], from).unwrap();
                }
            }
            let mut host = [0];
            match socket.recv(&mut host) {
                Ok(_) => return By(host[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return outcome(&error),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Silence
    }

    /// What becomes of many clients over TCP and UDP, in both families: each of these happens, and nothing else.
    #[track_caller]
    fn expect(&self, client: &str, outcomes: &[Outcome]) {
        let expected: BTreeSet<Outcome> = outcomes.iter().copied().collect();
        for family in Family::BOTH {
            let tcp = seen(&expected, || self.tcp(client, front(family, 80)));
            let udp = seen(&expected, || self.udp(client, front(family, 53)));
            assert_eq!((&tcp, &udp), (&expected, &expected), "TCP and UDP over {family:?}");
        }
    }
}

/// What happens until all that is expected has.
fn seen(expected: &BTreeSet<Outcome>, mut attempt: impl FnMut() -> Outcome) -> BTreeSet<Outcome> {
    let mut seen = BTreeSet::new();
    for n in 0..MANY {
        if n >= FEW && seen.is_superset(expected) {
            break;
        }
        seen.insert(attempt());
    }
    seen
}

fn outcome(error: &std::io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionRefused => Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Silence,
        _ => panic!("failed to reach the Service: {error}"),
    }
}

/// Of each connection to a Service, a [`ConntrackState`].
pub fn states(cluster: &mut Cluster) -> Vec<u8> {
    let map = cluster.life().map("conntrack");
    let entries = map.keys().map(|key| map.lookup(&key, MapFlags::ANY).unwrap().unwrap());
    let entries = entries.map(|entry| ConntrackEntry::read_from_bytes(&entry).unwrap());
    let translated = entries.filter(|entry| u32::from(entry.flags) & abi::CONNTRACK_TRANSLATED != 0);
    translated.map(|entry| entry.state).collect()
}

const ISOLATE_B: &str = "{podSelector: {matchLabels: {app: b}}}";
const CLIENT_TO_A: &str = "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: a}}}]}]}";
const CLIENT_TO_A_AND_OUTSIDE: &str = "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: a}}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]}";
const ISOLATE_A: &str = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress, Egress]}";

#[test]
fn clients_are_given_each_backend_and_policy_judges_the_one_they_got() {
    with_two_backends(|world| {
        world.serve("", &[A, B]);
        world.expect("client", &[By(A), By(B)]);
        for policy in [ISOLATE_B, CLIENT_TO_A] {
            world.cluster.policy("p", policy);
            world.cluster.apply();
            world.expect("client", &[By(A), Silence]);
        }
        world.cluster.no_policy("p");
        world.cluster.apply();
        world.expect("client", &[By(A), By(B)]);
    });
}

#[test]
fn a_connection_is_open_when_its_handshake_is_over_whatever_comes_after() {
    with_two_backends(|world| {
        world.serve("", &[A]);
        let _open = Family::BOTH.map(|family| inside("client", || TcpStream::connect(front(family, 80)).unwrap()));
        assert_eq!(states(world.cluster), [u8::from(ConntrackState::Open); 2]);
    });
}

#[test]
fn where_nobody_serves_clients_are_told_at_once() {
    with_two_backends(|world| {
        world.serve("", &[A]);
        world.expect("client", &[By(A)]);
        world.serve("", &[]);
        world.expect("client", &[Refused]);
        world.serve("", &[A]);
        for family in Family::BOTH {
            assert_eq!(
                world.tcp("client", front(family, 81)),
                Refused,
                "a port that is not listed"
            );
            assert_eq!(
                world.udp("client", front(family, 80)),
                Refused,
                "nor that of another protocol"
            );
        }
        world.expect("client", &[By(A)]);
        let elsewhere = "{metadata: {labels: {kubernetes.io/service-name: web}}, addressType: IPv4,
            ports: [{name: http, port: 7000}], endpoints: [{addresses: [10.1.0.3], nodeName: node2}]}";
        world.serve("internalTrafficPolicy: Local,", &[A]);
        world.expect("client", &[By(A)]);
        world.cluster.slice("web-IPv4", elsewhere);
        world.cluster.apply();
        assert_eq!(
            world.tcp("client", front(Family::V4, 80)),
            Silence,
            "there is one, on another node"
        );
    });
}

#[test]
fn datagrams_leave_a_backend_that_goes_away() {
    with_two_backends(|world| {
        world.serve("", &[A]);
        let sockets = Family::BOTH.map(|family| udp_client("client", front(family, 53)));
        for (hosts, expected) in [(&[A][..], By(A)), (&[B], By(B)), (&[], Refused), (&[A, B], By(A))] {
            world.serve("", hosts);
            for socket in &sockets {
                let outcome = world.ask(socket);
                let is_expected = outcome == expected || hosts.len() == 2 && outcome == By(B);
                assert!(is_expected, "{outcome:?} of {hosts:?}");
            }
        }
    });
}

#[test]
fn a_client_stays_with_its_backend_as_long_as_that_is_there() {
    with_two_backends(|world| {
        world.serve("sessionAffinity: ClientIP,", &[A, B]);
        for family in Family::BOTH {
            let By(host) = world.tcp("client", front(family, 80)) else {
                panic!("nobody serves");
            };
            for _ in 0..4 * FEW {
                assert_eq!(world.tcp("client", front(family, 80)), By(host));
            }
        }
        world.serve("sessionAffinity: ClientIP,", &[B]);
        world.expect("client", &[By(B)]);
        world.serve("sessionAffinity: ClientIP,", &[A, B]);
        world.expect("client", &[By(B)]);
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service_whatever_policies_say() {
    with_two_backends(|world| {
        world.serve("", &[A]);
        world.expect("a", &[By(A)]);
        world.cluster.policy("p", ISOLATE_A);
        world.cluster.apply();
        world.expect("a", &[By(A)]);
        world.expect("client", &[Silence]);
    });
}

#[test]
fn addresses_that_are_not_translated_are_judged_by_all_backends() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        for (name, host) in [("client", CLIENT), ("a", A), ("b", B)] {
            cluster.pod(name, host);
        }
        // The machine outside stands for what another proxy makes of the address.
        let backends = vec![Backend::start("outside", 0)];
        let mut world = World { cluster, backends };
        let to = SocketAddr::new(Family::V4.outside(2), PORT);
        world.serve("", &[A, B]);
        world.cluster.policy("p", CLIENT_TO_A);
        world.cluster.apply();
        assert_eq!(world.tcp("client", to), Silence, "no Service yet, and no rule");
        let balanced = format!(
            "{{spec: {{clusterIP: 10.96.0.11, ports: [{{port: {PORT}}}]}},
              status: {{loadBalancer: {{ingress: [{{ip: {}}}]}}}}}}",
            to.ip()
        );
        let external = format!(
            "{{spec: {{clusterIP: 10.96.0.11, externalIPs: [{}], ports: [{{port: {PORT}}}]}}}}",
            to.ip()
        );
        let (a, b) = ("{addresses: [10.1.0.3]}", "{addresses: [10.1.0.4]}");
        let both = format!("{a}, {b}");
        for (service, policy, endpoints, expected) in [
            (&balanced, CLIENT_TO_A, a, By(0)),
            (&balanced, CLIENT_TO_A, &both, Silence),
            (&balanced, CLIENT_TO_A, b, Silence),
            (&external, CLIENT_TO_A, a, Silence),
            (&external, CLIENT_TO_A_AND_OUTSIDE, a, By(0)),
            (&external, CLIENT_TO_A_AND_OUTSIDE, &both, Silence),
        ] {
            let slice = format!(
                "{{metadata: {{labels: {{kubernetes.io/service-name: external}}}}, addressType: IPv4,
                  ports: [{{port: {PORT}}}], endpoints: [{endpoints}]}}"
            );
            world.cluster.service("external", service);
            world.cluster.slice("external-0", &slice);
            world.cluster.policy("p", policy);
            world.cluster.apply();
            assert_eq!(world.tcp("client", to), expected, "{service} {policy} {endpoints}");
        }
    });
}

#[test]
fn another_life_of_the_daemon_keeps_services_and_their_connections() {
    with_two_backends(|world| {
        world.serve("", &[A]);
        let sockets = Family::BOTH.map(|family| udp_client("client", front(family, 53)));
        for socket in &sockets {
            assert_eq!(world.ask(socket), By(A));
        }
        world.cluster.restart();
        for socket in &sockets {
            assert_eq!(world.ask(socket), By(A), "before anything is known");
        }
        world.cluster.apply();
        world.expect("client", &[By(A)]);
        for socket in &sockets {
            assert_eq!(world.ask(socket), By(A));
        }
    });
}

#[test]
fn where_services_are_disabled_another_proxy_gives_out_backends() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        for (name, host) in [("client", CLIENT), ("a", A), ("b", B)] {
            cluster.pod(name, host);
        }
        // The machine outside, which has the Service's address, stands for what another proxy makes of it.
        let to = SocketAddr::new(front(Family::V4, 0).ip(), PORT);
        let gateway = Family::V4.outside(2);
        run("ip", &format!("-n outside addr add {}/32 dev lo", to.ip()));
        run("ip", &format!("route add {} via {gateway}", to.ip()));
        let unlisted = SocketAddr::new(to.ip(), PORT + 1);
        let (_unlisted, other) = inside("outside", || {
            let (tcp, udp) = (TcpListener::bind(to).unwrap(), UdpSocket::bind(to).unwrap());
            (TcpListener::bind(unlisted).unwrap(), Backend::of(0, tcp, udp))
        });
        let backends = vec![Backend::start("a", A), other];
        let mut world = World { cluster, backends };
        let goes_on = || match inside("client", || TcpStream::connect_timeout(&unlisted, SILENCE)) {
            Ok(_) => By(0),
            Err(error) => outcome(&error),
        };
        let ports = format!("[{{name: tcp, port: {PORT}}}, {{name: udp, port: {PORT}, protocol: UDP}}]");
        let service = format!("{{spec: {{clusterIP: {}, ports: {ports}}}}}", to.ip());
        world.cluster.service("web", &service);
        let slice = |world: &mut World, endpoints: &str| {
            let slice = format!(
                "{{metadata: {{labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4,
                  ports: {ports}, endpoints: [{endpoints}]}}"
            );
            world.cluster.slice("web-0", &slice);
            world.cluster.apply();
        };
        let (a, b) = ("{addresses: [10.1.0.3]}", "{addresses: [10.1.0.4]}");
        slice(&mut world, a);
        assert_eq!(world.tcp("client", to), By(A));
        assert_eq!(goes_on(), Refused);

        let mut open = inside("client", || TcpStream::connect(to).unwrap());
        let (mut far, _) = world.accept();
        let datagrams = udp_client("client", to);
        assert_eq!(world.ask(&datagrams), By(A));
        world.cluster.restart_with(ServicesMode::Disabled);
        assert_eq!(world.ask(&datagrams), By(A), "before anything is known");
        world.cluster.apply();
        open.write_all(b"question").unwrap();
        far.read_exact(&mut [0; 8]).unwrap();
        far.write_all(b"answer").unwrap();
        open.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(world.ask(&datagrams), By(0), "flows of UDP are the other proxy's");
        assert_eq!((world.tcp("client", to), world.udp("client", to)), (By(0), By(0)));
        assert_eq!(goes_on(), By(0), "nothing is refused");
        world.cluster.policy("p", CLIENT_TO_A);
        for (endpoints, expected) in [
            (a.to_owned(), By(0)),
            (format!("{a}, {b}"), Silence),
            (b.to_owned(), Silence),
        ] {
            slice(&mut world, &endpoints);
            let found = (world.tcp("client", to), world.udp("client", to));
            assert_eq!(found, (expected, expected), "judged by all of {endpoints}");
        }
        assert_eq!(goes_on(), Silence, "judged as the address that it is");

        slice(&mut world, a);
        world.cluster.restart_with(ServicesMode::PodEdge);
        world.cluster.apply();
        assert_eq!((world.tcp("client", to), world.udp("client", to)), (By(A), By(A)));
        assert_eq!(goes_on(), Refused);
    });
}
