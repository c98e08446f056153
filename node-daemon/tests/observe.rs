// SPDX-License-Identifier: Apache-2.0
//! Observers of a policy log that a real datapath fills. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wardline_bpf::frame::{self, flag};
use wardline_crds::config::DaemonConfig;
use wardline_node::control::NodeState;
use wardline_node::index::{Logged, LoggingSpec};
use wardline_node::observe::{MOST, ObserveServer, Observers, Source};
use wardline_node::socket::listen;
use wardline_policy::model::{Direction, Labels, ObjectName, Objects, Pod, Policy, Rule, Selector};
use wardline_record::filter::{Filter, Port};
use wardline_record::history::Past;
use wardline_record::stream::{self, Logging, Note, StreamError};

use support::{Life, Node, Program, on_a_node};

const SERVER: &str = "10.0.0.1";
const CLIENT: &str = "10.0.1.1";

/// A pod that takes everything from everybody, and so leaves a record of each connection.
fn objects() -> Objects {
    let mut objects = Objects::default();
    objects.namespaces.insert("shop".into(), Labels::new());
    let name = ObjectName::new("shop", "server");
    let pod = Pod {
        labels: Labels::new(),
        addresses: vec![SERVER.parse().unwrap()],
        node: "node1".into(),
        ports: Vec::new(),
    };
    objects.pods.insert(name.clone(), Arc::new(pod));
    let policy = Policy {
        name: name.clone(),
        generation: 1,
        log: false,
        pod_selector: Selector::default(),
        ingress: Some(vec![Rule {
            peers: None,
            ports: None,
        }]),
        egress: None,
    };
    objects.policies.insert(name, Arc::new(policy));
    objects
}

/// A daemon's log with its socket; the test is the policy log thread.
struct Watched {
    life: Life,
    server: Program,
    socket: PathBuf,
    log: PathBuf,
    next_port: u16,
    cancel: CancellationToken,
    _runtime: tokio::runtime::Runtime,
}

impl Watched {
    fn start(node: &Node) -> Self {
        let mut life = node.start(&DaemonConfig::default());
        life.apply(&node.desired(&objects(), "node1"));
        let server = life.program(node.veths[0], Direction::Ingress);
        let (socket, log) = (
            node.state.join("run/observe.sock"),
            node.state.join("policy_action.log"),
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (observers, cancel) = (Arc::<Observers>::default(), CancellationToken::new());
        life.log.hand_to(Arc::clone(&observers));
        let logging = LoggingSpec {
            generation: 1,
            allow: Logged::All,
            deny: Logged::Off,
            deny_events: false,
        };
        let (_, state) = watch::channel(NodeState {
            logging: Some(logging),
            ..NodeState::default()
        });
        let source = Source {
            node: "node1".into(),
            log: log.clone(),
            state,
        };
        let entered = runtime.enter();
        let listener = listen(&socket).unwrap();
        runtime.spawn(ObserveServer::new(observers, source).serve(listener, cancel.clone()));
        drop(entered);
        Self {
            life,
            server,
            socket,
            log,
            next_port: 1,
            cancel,
            _runtime: runtime,
        }
    }

    /// Opens so many connections to the port, and writes their records.
    fn connect(&mut self, number: u16, port: u16) {
        for _ in 0..number {
            let client = SocketAddr::new(CLIENT.parse().unwrap(), self.next_port);
            let server = SocketAddr::new(SERVER.parse().unwrap(), port);
            assert!(self.server.passes(&frame::tcp(client, server, flag::SYN)));
            self.next_port += 1;
        }
        while self.life.log.drain().unwrap() {}
    }

    /// Does what the thread does between writes until somebody has joined or so.
    fn until<T>(&self, what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.life.log.admit_observers();
            if let Some(so) = is_so() {
                return so;
            }
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Runs what `wardline-node observe` runs, and hands over its lines.
    fn observe(&self, filter: Filter, last: usize, follow: bool) -> mpsc::Receiver<Result<String, StreamError>> {
        let (sender, lines) = mpsc::channel();
        let socket = self.socket.clone();
        std::thread::spawn(move || {
            let (reader, mut writer) = std::io::pipe().unwrap();
            let told = sender.clone();
            let reading = std::thread::spawn(move || {
                for line in BufReader::new(reader).lines() {
                    let _ = told.send(Ok(line.unwrap()));
                }
            });
            let past = Past {
                last,
                after: None,
                filter,
            };
            let observed = stream::observe(&socket, &past, follow, &mut writer);
            drop(writer);
            reading.join().unwrap();
            if let Err(error) = observed {
                let _ = sender.send(Err(error));
            }
        });
        lines
    }

    fn take(&self, lines: &mpsc::Receiver<Result<String, StreamError>>, number: usize) -> Vec<String> {
        (0..number)
            .map(|i| {
                self.until(&format!("line {i} of {number}"), || lines.try_recv().ok())
                    .unwrap()
            })
            .collect()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_observer_sees_the_past_and_then_each_line_once() {
    on_a_node(1, |node| {
        let mut watched = Watched::start(node);
        assert_eq!(
            (mode(&watched.socket), mode(watched.socket.parent().unwrap())),
            (0o600, 0o700)
        );
        watched.connect(50, 80);
        watched.connect(2, 443);
        let all = watched.observe(Filter::default(), 5, true);
        let port = Port {
            protocol: Some("tcp".into()),
            port: 443,
        };
        let filter = Filter {
            ports: vec![port],
            ..Filter::default()
        };
        let some = watched.observe(filter, 5, true);
        let hello = watched.take(&all, 1).remove(0);
        let Some(Note::Hello(hello)) = stream::note(hello.as_bytes()) else {
            panic!("{hello}");
        };
        assert_eq!(hello.node_name, "node1");
        assert_eq!(
            hello.logging,
            Logging {
                allow: true,
                deny: false
            }
        );
        watched.take(&some, 1);
        // While the past is being read, too.
        for _ in 0..20 {
            watched.connect(100, 80);
        }
        watched.connect(3, 443);
        let lines = watched.lines();
        assert_eq!(lines.len(), 2055);
        assert_eq!(watched.take(&all, 2008), lines[lines.len() - 2008..]);
        let expected: Vec<&String> = lines.iter().filter(|line| line.contains("\"dest_port\":443")).collect();
        assert_eq!(watched.take(&some, 5).iter().collect::<Vec<_>>(), expected);

        let once = watched.observe(Filter::default(), 3, false);
        assert_eq!(watched.take(&once, 4)[1..], lines[lines.len() - 3..]);
        let ended = watched.until("it ends", || match once.try_recv() {
            Err(mpsc::TryRecvError::Disconnected) => Some(true),
            Ok(line) => panic!("{line:?}"),
            Err(mpsc::TryRecvError::Empty) => None,
        });
        assert!(ended && all.try_recv().is_err() && some.try_recv().is_err());
    });
}

#[test]
fn a_slow_observer_is_told_what_it_missed_and_holds_up_nobody() {
    on_a_node(1, |node| {
        let mut watched = Watched::start(node);
        let mut slow = BufReader::new(UnixStream::connect(&watched.socket).unwrap());
        let quick = watched.observe(Filter::default(), 0, true);
        let mut line = String::new();
        slow.get_ref()
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        watched.until("a greeting", || slow.read_line(&mut line).ok());
        watched.take(&quick, 1);
        slow.get_ref().set_read_timeout(None).unwrap();

        let (mut seen, mut longest) = (Vec::new(), Duration::ZERO);
        for _ in 0..100 {
            let began = Instant::now();
            watched.connect(100, 80);
            longest = longest.max(began.elapsed());
            seen.extend(watched.take(&quick, 100));
        }
        let lines = watched.lines();
        assert_eq!(seen, lines, "the quick one misses nothing");
        assert!(longest < Duration::from_secs(5), "a write took {longest:?}");

        let mut at = 0;
        let mut missed_in_all = 0;
        let slow_lines = {
            let (sender, lines) = mpsc::channel();
            std::thread::spawn(move || slow.lines().try_for_each(|line| sender.send(line.unwrap())));
            lines
        };
        while at < lines.len() {
            let line = watched.until("the slow one goes on", || slow_lines.try_recv().ok());
            if let Some(Note::Missed { count, node_name, .. }) = stream::note(line.as_bytes()) {
                assert_eq!(node_name, "node1");
                missed_in_all += count;
                at += usize::try_from(count).unwrap();
            } else {
                assert_eq!(line, lines[at]);
                at += 1;
            }
        }
        assert_eq!(at, lines.len(), "lines and what was missed are all that there are");
        println!("{missed_in_all} of {at} lines missed, longest step {longest:?}");
        assert!(missed_in_all > 1000, "only {missed_in_all} missed");
        watched.connect(1, 80);
        let line = watched.until("it is up to date", || slow_lines.try_recv().ok());
        assert_eq!(&line, watched.lines().last().unwrap());
    });
}

#[test]
fn too_many_observers_are_refused_until_one_goes() {
    on_a_node(1, |node| {
        let watched = Watched::start(node);
        // One that says nothing and takes nothing has a place too.
        let idle = UnixStream::connect(&watched.socket).unwrap();
        let there: Vec<_> = (1..MOST)
            .map(|_| {
                let observer = watched.observe(Filter::default(), 0, true);
                watched.take(&observer, 1);
                observer
            })
            .collect();
        let first = || {
            let observer = watched.observe(Filter::default(), 0, true);
            watched.until("an answer", || observer.try_recv().ok())
        };
        let refusal = first().unwrap_err().to_string();
        assert_eq!(
            refusal,
            format!("the daemon refused: {MOST} observers are there already")
        );
        // It goes while nothing is written.
        drop(idle);
        watched.until("a place", || first().ok());
        watched.cancel.cancel();
        for observer in &there {
            let ended = watched.until("the end", || match observer.try_recv() {
                Err(mpsc::TryRecvError::Disconnected) => Some(true),
                _ => None,
            });
            assert!(ended);
        }
    });
}
