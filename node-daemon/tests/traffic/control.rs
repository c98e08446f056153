// SPDX-License-Identifier: Apache-2.0
//! What the control thread does besides following the watches: it takes away what it was told is no more, and tries
//! again what did not fit.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use wardline_node::index::{Event, Update};
use wardline_node::services;
use wardline_policy::model::ObjectName;

use crate::plugin::{ApiServer, Daemon, FROM_FRIENDS, starting};
use crate::wire::{NAMESPACE, PORT, Plugin, SILENCE, inside, listener, on_a_cluster, servers};

const SERVER: u8 = 1;
const CLIENT: u8 = 2;
const FIRST: u8 = 10;
/// Longer than what was refused waits until it is tried again.
const PATIENCE: Duration = Duration::from_secs(20);

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a pod gets through to the server, whose queue of connections is left empty.
fn reaches(pod: &str, to: SocketAddr, server: &TcpListener) -> bool {
    let is_open = inside(pod, || TcpStream::connect_timeout(&to, SILENCE).is_ok());
    if is_open {
        server.accept().unwrap();
    }
    is_open
}

#[test]
fn what_the_runtime_no_longer_has_is_collected() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        cluster.policy("from-friends", FROM_FRIENDS);
        let listener = listener("server");
        // The pods' statuses do not have their addresses yet.
        let is_friend = |pod: &str| reaches(pod, servers(SERVER)[0], &listener);
        for (pod, host) in [("stays", FIRST), ("goes", FIRST + 1)] {
            cluster.wire(pod, host);
        }
        let daemon = Daemon::start(cluster, &ApiServer::default());
        for (pod, host) in [("stays", FIRST), ("goes", FIRST + 1)] {
            daemon.tell(starting(pod, "friend"));
            daemon.must("ADD", pod, host);
            assert!(is_friend(pod));
        }
        let (succeeded, said) = daemon.plugin_with("GC", "stays", FIRST, &[("sandbox-of-stays", "eth0")]);
        assert!(succeeded, "{said}");
        wait_for("the other's address is nobody's", || !is_friend("goes"));
        assert!(is_friend("stays"));
    });
}

#[test]
fn an_add_that_cannot_be_announced_leaves_nothing_behind_when_it_is_deleted() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        cluster.policy("from-friends", FROM_FRIENDS);
        let listener = listener("server");
        let is_friend = |pod: &str| reaches(pod, servers(SERVER)[0], &listener);
        cluster.wire("web", FIRST);
        let daemon = Daemon::start(cluster, &ApiServer::that_refuses("web"));
        daemon.tell(starting("web", "friend"));
        let (succeeded, said) = daemon.plugin("ADD", "web", FIRST);
        assert!(!succeeded, "{said}");
        assert!(
            is_friend("web"),
            "guarded as what it is until the runtime takes it down"
        );
        daemon.must("DEL", "web", FIRST);
        wait_for("its address is nobody's", || !is_friend("web"));
    });
}

#[test]
fn what_an_earlier_life_brought_in_force_stays_until_programs_judge_as_they_should() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        for (name, host) in [("server", SERVER), ("client", CLIENT)] {
            cluster.pod(name, host);
        }
        cluster.policy("from-friends", FROM_FRIENDS);
        cluster.apply();
        let listener = listener("server");
        let is_open = || reaches("client", servers(SERVER)[0], &listener);
        assert!(!is_open());
        // The next life would open it, and whoever starts a pod would be told that it is guarded.
        cluster.no_policy("from-friends");
        cluster.restart();
        cluster.wire("late", FIRST);
        let daemon = Daemon::tested(cluster, &ApiServer::default(), Err("a packet was let through".into()));
        daemon.tell(starting("late", "friend"));
        std::thread::sleep(2 * SILENCE);
        assert!(!is_open(), "nothing was taken over");
        let (succeeded, said) = daemon.plugin("ADD", "late", FIRST);
        assert!(!succeeded, "{said}");
        daemon.judge(Ok(1));
        wait_for("the policy that is gone is taken away", is_open);
        daemon.must("ADD", "late", FIRST);
    });
}

#[test]
fn a_service_that_went_while_the_daemon_was_away_goes() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        for (name, host) in [("server", SERVER), ("client", CLIENT)] {
            cluster.pod(name, host);
        }
        let listener = listener("server");
        for (name, address) in [("stays", "10.96.0.10"), ("goes", "10.96.0.11")] {
            cluster.service(
                name,
                &format!("{{spec: {{clusterIP: {address}, ports: [{{port: {PORT}}}]}}}}"),
            );
            let slice = format!(
                "{{metadata: {{labels: {{kubernetes.io/service-name: {name}}}}}, addressType: IPv4,
                  ports: [{{port: {PORT}}}], endpoints: [{{addresses: [10.1.0.{SERVER}]}}]}}"
            );
            cluster.slice(&format!("{name}-0"), &slice);
        }
        cluster.apply();
        let reaches = |address: &str| reaches("client", format!("{address}:{PORT}").parse().unwrap(), &listener);
        assert!(reaches("10.96.0.10") && reaches("10.96.0.11"));
        cluster.forget_service("goes");
        cluster.restart();
        assert!(reaches("10.96.0.11"), "before anything is known");
        let _daemon = Daemon::start(cluster, &ApiServer::default());
        wait_for("the Service that is gone is taken away", || !reaches("10.96.0.11"));
        assert!(reaches("10.96.0.10"));
    });
}

/// A Service of a hundred ports, and a thousand backends of each that no other Service has.
fn large_service(name: &str, number: u32) -> [Event; 2] {
    let ports = |field: &str| -> String {
        let port = |n: u32| format!("{{name: p{n}, {field}: {}}}", 1000 + n);
        (0..100).map(port).collect::<Vec<_>>().join(", ")
    };
    let endpoints: Vec<String> = (0..1000_u32)
        .map(|n| format!("{{addresses: [10.{}.{}.{}]}}", 2 + number, n / 250, n % 250 + 1))
        .collect();
    let service = format!(
        "{{spec: {{clusterIP: 10.96.0.{}, ports: [{}]}}}}",
        10 + number,
        ports("port")
    );
    let slice = format!(
        "{{metadata: {{labels: {{kubernetes.io/service-name: {name}}}}}, addressType: IPv4, ports: [{}], endpoints: [{}]}}",
        ports("port"),
        endpoints.join(", ")
    );
    let service = services::service(serde_yaml::from_str(&service).unwrap()).unwrap();
    let slice = services::slice(serde_yaml::from_str(&slice).unwrap()).unwrap();
    [
        Event::Service(
            ObjectName::new(NAMESPACE, name),
            service.map_or(Update::Gone, Update::Set),
        ),
        Event::Slice(
            ObjectName::new(NAMESPACE, format!("{name}-0")),
            slice.map_or(Update::Gone, Update::Set),
        ),
    ]
}

#[test]
fn a_service_that_did_not_fit_is_tried_again_when_there_is_room() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        let daemon = Daemon::start(cluster, &ApiServer::default());
        // One namespace may have half of the table of backends.
        for event in large_service("first", 0).into_iter().chain(large_service("second", 1)) {
            daemon.tell(event);
        }
        let second = ObjectName::new(NAMESPACE, "second");
        let is_refused = || daemon.state.borrow().refused_services.contains_key(&second);
        wait_for("the second is refused", is_refused);
        daemon.tell(Event::Service(ObjectName::new(NAMESPACE, "first"), Update::Gone));
        wait_for("the second is in force", || !is_refused());
    });
}
