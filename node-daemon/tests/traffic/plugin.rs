// SPDX-License-Identifier: Apache-2.0
//! The CNI plugin, the daemon that it asks, and real pods that connect as soon as the plugin has returned. The API
//! server is one that remembers what it is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wardline_node::cni::{Announcer, Server};
use wardline_node::control::{Control, Message, NodeState};
use wardline_node::index::{Event, Index, Kind, Update};
use wardline_node::metrics::Metrics;
use wardline_node::socket::listen;
use wardline_policy::model::Pod;

use crate::support::Life;
use crate::wire::{Cluster, Family, Plugin, connects, listener, on_a_cluster, pod_event, retransmissions, servers};

const SERVER: u8 = 1;
/// The first of the pods that come at once; each has its own.
const FIRST: u8 = 10;
const AT_ONCE: u8 = 22;
pub const FROM_FRIENDS: &str =
    "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}";

/// Bodies of the patches of Pods' statuses, by name; those of `fails` are refused.
#[derive(Clone, Default)]
pub struct ApiServer {
    patched: Arc<Mutex<BTreeMap<String, Value>>>,
    fails: Option<&'static str>,
}

impl ApiServer {
    /// One that has no patches of this pod.
    pub fn that_refuses(pod: &'static str) -> Self {
        Self {
            fails: Some(pod),
            ..Self::default()
        }
    }

    fn client(&self) -> Client {
        let server = self.clone();
        Client::new(
            tower::service_fn(move |request| server.clone().answer(request)),
            "default",
        )
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect_bytes().await.unwrap();
        let name = path
            .strip_suffix("/status")
            .and_then(|path| path.rsplit('/').next())
            .unwrap()
            .to_owned();
        let status = if self.fails == Some(name.as_str()) {
            StatusCode::FORBIDDEN
        } else {
            StatusCode::OK
        };
        self.patched
            .lock()
            .unwrap()
            .insert(name.clone(), serde_json::from_slice(&body).unwrap());
        let answer = match status {
            StatusCode::OK => json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}),
            _ => json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 403,
                        "message": "not yours", "reason": "Forbidden"}),
        };
        let body = Body::from(answer.to_string().into_bytes());
        Ok(Response::builder().status(status).body(body).unwrap())
    }
}

/// A control thread and the plugin's socket, on the cluster's node.
pub struct Daemon {
    pub state: watch::Receiver<NodeState>,
    messages: mpsc::Sender<Message>,
    cancel: CancellationToken,
    control: Option<std::thread::JoinHandle<()>>,
    socket: PathBuf,
    /// Its threads are in the test's namespaces, as the thread that made it is.
    runtime: Runtime,
    _directory: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.cancel.cancel();
        // It waits by the runtime's clock.
        let ended = self.control.take().map(std::thread::JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || std::thread::panicking());
    }
}

impl Daemon {
    pub fn start(cluster: &mut Cluster, api: &ApiServer) -> Self {
        Self::tested(cluster, api, Ok(1))
    }

    /// One that knows the cluster, and how its programs did in their test.
    pub fn tested(cluster: &mut Cluster, api: &ApiServer, result: Result<usize, String>) -> Self {
        let (daemon, told) = Self::begin(cluster, api);
        daemon.judge(result);
        let listed = listed(&told);
        for event in told {
            daemon.tell(event);
        }
        for kind in Kind::WATCHED {
            daemon.tell(Event::Listed(kind, listed.clone()));
        }
        daemon
    }

    /// One that knows nothing of the cluster yet, and what it should be told.
    fn begin(cluster: &mut Cluster, api: &ApiServer) -> (Self, Vec<Event>) {
        let (Life { datapath, names, .. }, told) = cluster.hand_over();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let index = Index::new("node1", true);
        let (control, state) = Control::new(index, datapath, names, Arc::clone(&metrics), Vec::new());
        let (messages, inbox) = mpsc::channel(4096);
        let (cancel, handle) = (CancellationToken::new(), runtime.handle().clone());
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cni.sock");
        let control = std::thread::spawn({
            let cancel = cancel.clone();
            move || control.run(&handle, inbox, &cancel).unwrap()
        });
        let entered = runtime.enter();
        let server = Server {
            messages: messages.clone(),
            state: state.clone(),
            announcer: Announcer::new(api.client()),
            metrics,
        };
        let listener = listen(&socket).unwrap();
        runtime.spawn(server.serve(listener, cancel.clone()));
        drop(entered);
        let daemon = Self {
            state,
            messages,
            cancel,
            control: Some(control),
            socket,
            runtime,
            _directory: directory,
        };
        (daemon, told)
    }

    pub fn tell(&self, event: Event) {
        self.send(Message::Cluster(event));
    }

    /// What became of the programs' test.
    pub fn judge(&self, result: Result<usize, String>) {
        self.send(Message::SelfTest(result));
    }

    fn send(&self, message: Message) {
        self.runtime.block_on(self.messages.send(message)).unwrap();
    }

    /// Runs the plugin as the runtime would, and returns what it printed and whether it succeeded.
    pub fn plugin(&self, command: &str, pod: &str, host: u8) -> (bool, Value) {
        self.plugin_with(command, pod, host, &[])
    }

    /// The same, with the attachments that the runtime has: their sandboxes and interfaces.
    pub fn plugin_with(&self, command: &str, pod: &str, host: u8, valid: &[(&str, &str)]) -> (bool, Value) {
        let netns = format!("/run/netns/{pod}");
        let variable = |name: &str| {
            Some(match name {
                "CNI_COMMAND" => command.to_owned(),
                "CNI_CONTAINERID" => format!("sandbox-of-{pod}"),
                "CNI_IFNAME" => "eth0".to_owned(),
                "CNI_NETNS" => netns.clone(),
                "CNI_ARGS" => format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod};K8S_POD_UID=uid-of-{pod}"),
                _ => return None,
            })
        };
        let input = json!({
            "cniVersion": "1.1.0", "name": "test", "type": "wardline-cni", "socket": self.socket,
            "cni.dev/valid-attachments": valid.iter().map(|(sandbox, interface)| json!({
                "containerID": sandbox, "ifname": interface,
            })).collect::<Vec<_>>(),
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{"name": format!("v-{pod}")}, {"name": "eth0", "sandbox": netns}],
                "ips": Family::BOTH.map(|family| json!({
                    "address": format!("{}/{}", family.pod(host), if family == Family::V4 { 32 } else { 128 }),
                    "interface": 1,
                })),
            },
        });
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let succeeded = wardline_cni::run(variable, &mut input.to_string().as_bytes(), &mut stdout, &mut stderr);
        (succeeded, serde_json::from_slice(&stdout).unwrap_or(Value::Null))
    }

    #[track_caller]
    pub fn must(&self, command: &str, pod: &str, host: u8) {
        let (succeeded, said) = self.plugin(command, pod, host);
        assert!(succeeded, "{command} {pod}: {said}");
    }
}

/// The names of all objects that were told; a list of one kind may hold more than its own.
fn listed(told: &[Event]) -> BTreeSet<String> {
    let name = |event: &Event| match event {
        Event::Namespace(name, _) => Some(name.to_string()),
        Event::Pod(name, _) | Event::Policy(name, _) | Event::Service(name, _) | Event::Slice(name, _) => {
            Some(name.to_string())
        }
        Event::Logging(_) => Some("default".to_owned()),
        _ => None,
    };
    told.iter().filter_map(name).collect()
}

/// A pod whose status has no address yet.
pub fn starting(name: &str, app: &str) -> Event {
    match pod_event(name, &format!("{{app: {app}}}"), 0, "node1", "Pending") {
        Event::Pod(name, Update::Set(mut info)) => {
            let pod = Pod {
                addresses: Vec::new(),
                ..Pod::clone(info.policy.as_ref().unwrap())
            };
            info.policy = Some(Arc::new(pod));
            info.is_written = false;
            Event::Pod(name, Update::Set(info))
        }
        other => panic!("{other:?}"),
    }
}

/// Whether the first packet to the server was admitted; one that is refused first and admitted when it is sent again
/// fails the test.
#[track_caller]
fn comes_at_once(pod: &str, server: SocketAddr, expected: bool) {
    let sent_again = retransmissions(pod);
    assert_eq!(connects(Some(pod), server, expected), expected, "{pod} to {server}");
    if expected {
        assert_eq!(retransmissions(pod), sent_again, "{pod} to {server}");
    }
}

#[test]
fn pods_that_come_at_once_are_judged_right_from_their_first_packet() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        cluster.policy("from-friends", FROM_FRIENDS);
        let _listener = listener("server");
        let pods: Vec<(String, u8)> = (0..AT_ONCE).map(|n| (format!("p{n}"), FIRST + n)).collect();
        for (pod, host) in &pods {
            cluster.wire(pod, *host);
        }
        let api = ApiServer::default();
        let daemon = Daemon::start(cluster, &api);
        let app = |n: usize| if n.is_multiple_of(2) { "friend" } else { "foe" };
        std::thread::scope(|scope| {
            let adds: Vec<_> = pods
                .iter()
                .map(|(pod, host)| {
                    let daemon = &daemon;
                    scope.spawn(move || {
                        let began = Instant::now();
                        daemon.must("ADD", pod, *host);
                        began.elapsed()
                    })
                })
                .collect();
            // The runtime may be ahead of the watch.
            for (n, (pod, _)) in pods.iter().enumerate() {
                daemon.tell(starting(pod, app(n)));
            }
            let slowest = adds.into_iter().map(|add| add.join().unwrap()).max().unwrap();
            println!("the slowest of {AT_ONCE} ADDs: {slowest:?}");
            assert!(slowest < Duration::from_secs(5), "{slowest:?}");
        });
        for (n, (pod, host)) in pods.iter().enumerate() {
            comes_at_once(pod, servers(SERVER)[n / 2 % 2], app(n) == "friend");
            daemon.must("CHECK", pod, *host);
            let patch = api.patched.lock().unwrap()[pod].clone();
            let condition = &patch["status"]["conditions"][0];
            let addresses = Family::BOTH.map(|family| family.pod(*host).to_string()).join(",");
            assert_eq!(patch["metadata"]["uid"], format!("uid-of-{pod}"));
            assert_eq!(
                (&condition["type"], &condition["message"]),
                (&json!("wardline.io/AddressesAssigned"), &json!(addresses))
            );
        }
        daemon.must("STATUS", "server", SERVER);
    });
}

#[test]
fn a_new_pod_has_its_address_for_itself() {
    on_a_cluster(Plugin::Bridge, |cluster| {
        cluster.pod("server", SERVER);
        cluster.policy("from-friends", FROM_FRIENDS);
        let _listener = listener("server");
        cluster.wire("old", FIRST);
        let daemon = Daemon::start(cluster, &ApiServer::default());
        daemon.tell(starting("old", "friend"));
        daemon.tell(starting("new", "foe"));
        daemon.tell(starting("newer", "friend"));
        daemon.must("ADD", "old", FIRST);
        comes_at_once("old", servers(SERVER)[0], true);
        // Its object stays, with the address in its status, while one pod after the other takes it over.
        daemon.tell(pod_event("old", "{app: friend}", FIRST, "node1", "Running"));
        for (former, pod, admitted) in [("old", "new", false), ("new", "newer", true)] {
            daemon.must("DEL", former, FIRST);
            Cluster::unwire(former);
            cluster.wire(pod, FIRST);
            daemon.must("ADD", pod, FIRST);
            for server in servers(SERVER) {
                comes_at_once(pod, server, admitted);
            }
        }
    });
}

#[test]
fn an_add_that_cannot_be_announced_fails() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        cluster.wire("web", FIRST);
        let daemon = Daemon::start(cluster, &ApiServer::that_refuses("web"));
        daemon.tell(starting("web", "friend"));
        let (succeeded, said) = daemon.plugin("ADD", "web", FIRST);
        assert!(!succeeded && said["code"] == 11, "{said}");
        let words = "failed to tell the API server of the addresses of Pod shop/web";
        assert!(said["msg"].as_str().unwrap().starts_with(words), "{said}");
        assert!(said["msg"].as_str().unwrap().contains("not yours"), "{said}");
        for _ in 0..2 {
            daemon.must("DEL", "web", FIRST);
        }
    });
}

#[test]
fn an_add_that_cannot_be_guarded_is_not_announced() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        for (pod, host) in [("web", FIRST), ("gone", FIRST + 1)] {
            cluster.wire(pod, host);
        }
        let api = ApiServer::default();
        let daemon = Daemon::start(cluster, &api);
        daemon.tell(starting("web", "friend"));
        daemon.tell(starting("gone", "friend"));
        daemon.must("ADD", "web", FIRST);
        // Nobody tells the daemon that the interface went.
        Cluster::unwire("gone");
        let (succeeded, said) = daemon.plugin("ADD", "gone", FIRST + 1);
        assert!(!succeeded && said["code"] == 11, "{said}");
        assert!(
            said["msg"]
                .as_str()
                .unwrap()
                .starts_with("failed to guard Pod shop/gone"),
            "{said}"
        );
        let patched = api.patched.lock().unwrap();
        assert_eq!(patched["web"]["status"]["conditions"][0]["status"], "True");
        assert!(!patched.contains_key("gone"), "{patched:?}");
    });
}

#[test]
fn an_announcement_is_taken_back_where_the_sandbox_fails_later() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        for (pod, host) in [("fails", FIRST), ("runs", FIRST + 1)] {
            cluster.wire(pod, host);
        }
        let api = ApiServer::default();
        let daemon = Daemon::start(cluster, &api);
        for (pod, host) in [("fails", FIRST), ("runs", FIRST + 1)] {
            daemon.tell(starting(pod, "friend"));
            daemon.must("ADD", pod, host);
        }
        daemon.tell(pod_event("runs", "{app: friend}", FIRST + 1, "node1", "Running"));
        let status = |pod: &str| api.patched.lock().unwrap()[pod]["status"]["conditions"][0]["status"].clone();
        for (pod, host, expected) in [("fails", FIRST, "False"), ("runs", FIRST + 1, "True")] {
            assert_eq!(status(pod), "True");
            daemon.must("DEL", pod, host);
            assert_eq!(status(pod), expected, "{pod}");
        }
    });
}

#[test]
fn a_pod_that_nobody_knows_is_waited_for_in_vain() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        cluster.wire("web", FIRST);
        let daemon = Daemon::start(cluster, &ApiServer::default());
        let (succeeded, said) = daemon.plugin("ADD", "web", FIRST);
        assert!(!succeeded && said["code"] == 11, "{said}");
        assert_eq!(
            said["msg"],
            "failed to guard Pod shop/web within 8 s: the API server has not told of this pod yet"
        );
        let (succeeded, said) = daemon.plugin("CHECK", "web", FIRST);
        assert!(!succeeded && said["code"] == 100, "{said}");
        daemon.must("DEL", "web", FIRST);
    });
}

#[test]
fn only_a_daemon_that_guards_nobody_yet_makes_its_node_wait() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        let (daemon, _) = Daemon::begin(cluster, &ApiServer::default());
        let (succeeded, said) = daemon.plugin("STATUS", "web", FIRST);
        assert!(!succeeded && said["code"] == 50, "{said}");
        assert_eq!(said["msg"], "policies are not in force yet");
    });
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        cluster.apply();
        cluster.restart();
        let (daemon, _) = Daemon::begin(cluster, &ApiServer::default());
        daemon.must("STATUS", "web", FIRST);
    });
}
