// SPDX-License-Identifier: Apache-2.0
//! Real SCTP associations between pods, on kernels that have the protocol. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;
#[allow(dead_code, reason = "each test uses its part")]
#[path = "traffic/wire.rs"]
mod wire;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use wire::{Cluster, Family, Plugin, inside, on_a_cluster};

const SERVER: u8 = 1;
const OPEN: u8 = 2;
/// Longer than emulated machines take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Two of the three seconds after which an INIT is repeated, so that only one is denied (RFC 9260, section 16).
const SILENCE: Duration = Duration::from_secs(2);

/// Who the server admits, and where to `a` may go.
const SERVER_POLICY: &str = "{podSelector: {matchLabels: {app: server}}, ingress: [
    {from: [{podSelector: {matchLabels: {app: a}}}], ports: [{protocol: SCTP, port: 7000}]}]}";
const CLIENT_POLICY: &str = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [
    {to: [{podSelector: {matchLabels: {app: server}}}], ports: [{protocol: SCTP}]}]}";
const NOBODY: &str = "{podSelector: {matchLabels: {app: server}}, ingress: []}";

fn socket(domain: Domain) -> Socket {
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::SCTP)).expect("the kernel has SCTP");
    // Answers come at once, and what was denied is not waited for at the end.
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket
}

/// A server of both families on one port.
fn listener(pod: &str, port: u16) -> Socket {
    inside(pod, || {
        let socket = socket(Domain::IPV6);
        socket
            .bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())
            .unwrap();
        socket.listen(16).unwrap();
        socket
    })
}

/// None where the association is not admitted.
fn connect(pod: &str, server: SocketAddr, expected: bool) -> Option<Socket> {
    inside(pod, || {
        let socket = socket(Domain::for_address(server));
        let limit = if expected { PATIENCE } else { SILENCE };
        match socket.connect_timeout(&server.into(), limit) {
            Ok(()) => Some(socket),
            Err(error) if error.kind() == ErrorKind::TimedOut => None,
            Err(error) => panic!("failed to connect from {pod} to {server}: {error}"),
        }
    })
}

/// Whether bytes arrive, one way and back.
fn talks(near: &mut Socket, far: &mut Socket, limit: Duration) -> bool {
    let pass = |from: &mut Socket, to: &mut Socket| {
        let mut byte = [0];
        to.set_read_timeout(Some(limit)).unwrap();
        from.write_all(b"x").unwrap();
        to.read_exact(&mut byte).is_ok()
    };
    pass(near, far) && pass(far, near)
}

struct Row {
    from: &'static str,
    to: u8,
    port: u16,
    admitted: bool,
    /// The direction of the deny, where there is one.
    direction: &'static str,
}

const ROWS: [Row; 5] = [
    row("a", SERVER, 7000, true, ""),
    row("b", SERVER, 7000, false, "ingress"),
    row("a", SERVER, 7001, false, "ingress"),
    row("b", OPEN, 7000, true, ""),
    row("a", OPEN, 7000, false, "egress"),
];

const fn row(from: &'static str, to: u8, port: u16, admitted: bool, direction: &'static str) -> Row {
    Row {
        from,
        to,
        port,
        admitted,
        direction,
    }
}

fn with_pods(test: impl FnOnce(&mut Cluster) + Send) {
    on_a_cluster(Plugin::Ptp, |cluster| {
        for (name, host) in [("server", SERVER), ("open", OPEN), ("a", 3), ("b", 4)] {
            cluster.pod(name, host);
        }
        cluster.policy("server", SERVER_POLICY);
        cluster.policy("a", CLIENT_POLICY);
        cluster.apply();
        test(cluster);
    });
}

#[test]
fn associations_open_where_policies_of_both_sides_admit_them() {
    with_pods(|cluster| {
        let servers = [
            listener("server", 7000),
            listener("server", 7001),
            listener("open", 7000),
        ];
        for family in Family::BOTH {
            for row in &ROWS {
                let server = SocketAddr::new(family.pod(row.to), row.port);
                let admitted = connect(row.from, server, row.admitted).is_some();
                assert_eq!(admitted, row.admitted, "{} to {server}", row.from);
                let denies = denies(cluster, server);
                let expected = if row.admitted {
                    vec![]
                } else {
                    vec![row.direction.to_owned()]
                };
                assert_eq!(denies, expected, "{} to {server}", row.from);
            }
        }
        drop(servers);
    });
}

/// The directions of the denies of SCTP to a server since the last call.
fn denies(cluster: &mut Cluster, server: SocketAddr) -> Vec<String> {
    let records = cluster.life().records();
    let of_server = records.iter().filter(|record| {
        record["disposition"] == "deny"
            && record["connection"]["protocol"] == "sctp"
            && record["connection"]["dest_ip"] == server.ip().to_string()
            && record["connection"]["dest_port"] == server.port()
    });
    of_server
        .map(|record| record["connection"]["direction"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn an_open_association_follows_its_policy() {
    with_pods(|cluster| {
        let listener = listener("server", 7000);
        for family in Family::BOTH {
            let mut near = connect("a", SocketAddr::new(family.pod(SERVER), 7000), true).expect("admitted");
            let (mut far, _) = listener.accept().unwrap();
            assert!(talks(&mut near, &mut far, PATIENCE), "{family:?}");
            cluster.policy("server", NOBODY);
            cluster.apply();
            assert!(!talks(&mut near, &mut far, SILENCE), "{family:?}: cut");
            cluster.policy("server", SERVER_POLICY);
            cluster.apply();
        }
    });
}
