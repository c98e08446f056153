// SPDX-License-Identifier: Apache-2.0
//! The socket that the plugin asks. Only root of the node can reach it; what it says is checked all the same.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use wardline_cni::Code;
use wardline_cni::protocol::{
    self, ANSWER_TIMEOUT, Attachment, Command, MAX_MESSAGE, Network, PROTOCOL, Request, Response,
};

use super::announce::AnnounceError;
use super::{Announcer, Call, Refusal};
use crate::control::{Message, NodeState};
use crate::metrics::Metrics;

/// How long a request may take to arrive, and an answer to be taken.
const TALKING: Duration = Duration::from_secs(5);
/// Connections that are served at a time; others wait in the socket's queue.
const AT_ONCE: usize = 256;
/// Interfaces of the node that belong to one attachment.
const MAX_INTERFACES: usize = 16;

/// What a connection needs.
#[derive(Clone)]
#[allow(missing_debug_implementations, reason = "kube's client has none")]
pub struct Server {
    pub messages: mpsc::Sender<Message>,
    pub state: watch::Receiver<NodeState>,
    pub announcer: Announcer,
    pub metrics: Arc<Metrics>,
}

/// How a pod's addresses were announced.
struct Announced {
    /// Of the Pod's object.
    uid: Arc<str>,
    /// When the pod was bound to its interface.
    bound: Instant,
    result: Result<(), AnnounceError>,
}

impl Server {
    /// Serves until cancelled; requests that are being served are finished.
    pub async fn serve(self, listener: UnixListener, cancel: CancellationToken) {
        crate::socket::serve(listener, "the CNI plugin", AT_ONCE, cancel, move |stream| {
            let server = self.clone();
            async move { server.converse(stream).await }
        })
        .await;
    }

    async fn converse(&self, mut stream: UnixStream) {
        let began = Instant::now();
        let (command, result) = match tokio::time::timeout(TALKING, receive(&mut stream)).await {
            Ok(Ok(command)) => (name(&command), self.serve_command(command).await),
            Ok(Err(refusal)) => ("unknown", Err(refusal)),
            // Whoever says nothing expects no answer.
            Err(_) => return,
        };
        self.metrics.observe_cni(command, result.is_ok(), began.elapsed());
        let response = match result {
            Ok(()) => Response::Done,
            Err(Refusal { code, message }) => {
                tracing::warn!(command, cause = message, "refused a request of the CNI plugin");
                Response::Refused { code, message }
            }
        };
        let mut bytes = Vec::new();
        if protocol::write(&mut bytes, &response).is_ok() {
            // The plugin may have gone; the runtime calls it again with DEL.
            let _ = tokio::time::timeout(TALKING, stream.write_all(&bytes)).await;
        }
    }

    async fn serve_command(&self, command: Command) -> Result<(), Refusal> {
        match command {
            Command::Add(network) => {
                check(&network)?;
                self.add(network).await
            }
            Command::Del { attachment } => self.del(attachment).await,
            Command::Gc { attachments } => self.send(Call::Collect(attachments)).await,
            Command::Check(network) => {
                check(&network)?;
                let (answer, answered) = oneshot::channel();
                self.send(Call::Check { network, answer }).await?;
                in_time(answered).await
            }
            Command::Status => {
                let state = self.state.borrow();
                // A node that is told no is `NotReady`. After a restart that would cost pods that are guarded all the
                // while; an ADD waits for the rest.
                if state.inherits || state.last_applied.is_some() {
                    return Ok(());
                }
                Err(Refusal::new(Code::NotAvailable, "policies are not in force yet"))
            }
        }
    }

    /// Puts the pod's policy in force and makes its addresses known, side by side.
    async fn add(&self, network: Network) -> Result<(), Refusal> {
        let (bound, is_bound) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        let asked = Instant::now();
        let call = Call::Attach {
            network: network.clone(),
            bound,
            answer,
        };
        self.send(call).await?;
        let in_force = async { (in_time(answered).await, Instant::now()) };
        let ((in_force, at), announced) = tokio::join!(in_force, self.announce(&network, is_bound));
        let Some(Announced { uid, bound, result }) = announced else {
            // The answer says why.
            return in_force.and(Err(Refusal::stopping()));
        };
        self.metrics.observe_add("wait", bound.duration_since(asked));
        self.metrics.observe_add("apply", at.duration_since(bound));
        self.metrics.observe_add("announce", bound.elapsed());
        match (in_force, result) {
            (Ok(()), Ok(())) => Ok(()),
            (Ok(()), Err(error)) => {
                // Other nodes may still hold its address for another pod's. The runtime takes the sandbox down with DEL,
                // which also takes back what the API server may have been told all the same.
                let pod = format!("{}/{}", network.pod.namespace, network.pod.name);
                let message = format!("failed to tell the API server of the addresses of Pod {pod}: {error}");
                Err(Refusal::new(Code::TryAgainLater, message))
            }
            (Err(refusal), _) => {
                // Also where announcing failed: an answer that was lost tells nothing of what the API server did.
                self.announcer.withdraw(&network.pod, &uid).await;
                Err(refusal)
            }
        }
    }

    /// Where kubelet has not written the pod's addresses, its sandbox failed after the ADD: they may be another pod's
    /// next, and other nodes must not count the claim against that one.
    async fn del(&self, attachment: Attachment) -> Result<(), Refusal> {
        let (answer, answered) = oneshot::channel();
        self.send(Call::Detach { attachment, answer }).await?;
        if let Ok(Ok(Some(pod))) = tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
            self.announcer.withdraw(&pod, &pod.uid).await;
        }
        Ok(())
    }

    /// Announces the pod's addresses once it is bound to its interface; None where it never is.
    async fn announce(&self, network: &Network, bound: oneshot::Receiver<Arc<str>>) -> Option<Announced> {
        let uid = tokio::time::timeout(ANSWER_TIMEOUT, bound).await.ok()?.ok()?;
        let bound = Instant::now();
        let result = self.announcer.announce(&network.pod, &uid, &network.addresses).await;
        Some(Announced { uid, bound, result })
    }

    async fn send(&self, call: Call) -> Result<(), Refusal> {
        let sent = self.messages.send(Message::Cni(call)).await;
        sent.map_err(|_| Refusal::stopping())
    }
}

async fn in_time<T>(answered: oneshot::Receiver<Result<T, Refusal>>) -> Result<T, Refusal> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(Refusal::stopping()),
        Err(_) => Err(Refusal::new(Code::TryAgainLater, "the daemon is busy")),
    }
}

async fn receive(stream: &mut UnixStream) -> Result<Command, Refusal> {
    let mut bytes = Vec::new();
    let read = stream.take(MAX_MESSAGE + 1).read_to_end(&mut bytes).await;
    read.map_err(|error| Refusal::new(Code::Io, error.to_string()))?;
    let request: Request = protocol::decode(&bytes).map_err(|error| Refusal::new(Code::Decode, error.to_string()))?;
    if request.protocol == PROTOCOL {
        return Ok(request.command);
    }
    let message = format!("the plugin speaks protocol {}, the daemon {PROTOCOL}", request.protocol);
    Err(Refusal::new(Code::TryAgainLater, message))
}

fn name(command: &Command) -> &'static str {
    match command {
        Command::Add(_) => "add",
        Command::Del { .. } => "del",
        Command::Check(_) => "check",
        Command::Status => "status",
        Command::Gc { .. } => "gc",
    }
}

/// Shapes, as the API server and the kernel know them: what is asked about never came to be otherwise.
fn check(network: &Network) -> Result<(), Refusal> {
    let Network {
        attachment: Attachment { container_id, ifname },
        pod,
        host_interfaces,
        addresses,
    } = network;
    let families = [IpAddr::is_ipv4, IpAddr::is_ipv6].map(|is_one| addresses.iter().filter(|ip| is_one(ip)).count());
    let is_interface = |name: &str| !name.is_empty() && name.len() < libc::IFNAMSIZ && !name.contains('/');
    for (is_valid, what) in [
        (is_name(&pod.namespace), "the pod's namespace"),
        (is_name(&pod.name), "the pod's name"),
        (is_id(&pod.uid), "the pod's uid"),
        (is_id(container_id), "the container's id"),
        (is_interface(ifname), "the interface's name"),
        (
            host_interfaces.len() <= MAX_INTERFACES && host_interfaces.iter().all(|name| is_interface(name)),
            "the list of the node's interfaces",
        ),
        (
            !addresses.is_empty() && families.into_iter().all(|count| count <= 1),
            "the number of addresses",
        ),
        (addresses.iter().all(is_unicast), "an address"),
    ] {
        if !is_valid {
            let message = format!(
                "{what} is not valid in the request for Pod {}/{}",
                pod.namespace, pod.name
            );
            return Err(Refusal::new(Code::InvalidConfiguration, message));
        }
    }
    Ok(())
}

/// A DNS subdomain, as names of objects are.
fn is_name(text: &str) -> bool {
    let is_part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    !text.is_empty() && text.len() <= 253 && text.bytes().all(is_part)
}

fn is_id(text: &str) -> bool {
    let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= 128 && text.bytes().all(is_part)
}

fn is_unicast(address: &IpAddr) -> bool {
    let is_mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_mapped)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::{Request, Response, StatusCode};
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};
    use wardline_cni::protocol::PodId;

    use super::*;

    /// What is wrong with a request, and what the answer calls it.
    type Bad = (fn(&mut Network), &'static str);

    fn network() -> Network {
        Network {
            attachment: Attachment {
                container_id: "c1".into(),
                ifname: "eth0".into(),
            },
            pod: PodId {
                namespace: "shop".into(),
                name: "web-0.a".into(),
                uid: "0f0e-1".into(),
            },
            host_interfaces: vec!["veth1".into()],
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        }
    }

    /// An API server that takes in patches of Pods' statuses; it says that it failed at the first `lost` of them.
    fn announcer(patches: Arc<Mutex<Vec<Value>>>, lost: usize) -> Announcer {
        let answer = move |request: Request<Body>| {
            let patches = Arc::clone(&patches);
            async move {
                let body = request.into_body().collect_bytes().await.unwrap();
                let mut patches = patches.lock().unwrap();
                patches.push(serde_json::from_slice(&body).unwrap());
                let (status, answer) = if patches.len() <= lost {
                    let failure =
                        json!({"kind": "Status", "status": "Failure", "code": 504, "message": "", "reason": "Timeout"});
                    (StatusCode::GATEWAY_TIMEOUT, failure)
                } else {
                    (
                        StatusCode::OK,
                        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}}),
                    )
                };
                let body = Body::from(answer.to_string().into_bytes());
                Ok::<_, std::convert::Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        };
        Announcer::new(Client::new(tower::service_fn(answer), "default"))
    }

    #[tokio::test]
    async fn what_was_announced_is_taken_back_where_the_pod_cannot_be_guarded() {
        let refusal = || Refusal::new(Code::TryAgainLater, "failed to guard it");
        for (why, in_force, lost, expected) in [
            ("guarded", Ok(()), 0, vec!["True"]),
            ("not guarded", Err(refusal()), 0, vec!["True", "False"]),
            (
                "nor known whether it was announced",
                Err(refusal()),
                1,
                vec!["True", "False"],
            ),
        ] {
            let (messages, mut inbox) = mpsc::channel(1);
            let patches = Arc::default();
            let server = Server {
                messages,
                state: watch::channel(NodeState::default()).1,
                announcer: announcer(Arc::clone(&patches), lost),
                metrics: Arc::new(Metrics::new().unwrap()),
            };
            let control = async {
                let Some(Message::Cni(Call::Attach { bound, answer, .. })) = inbox.recv().await else {
                    panic!("{why}: no ADD came");
                };
                bound.send("0f0e-1".into()).unwrap();
                answer.send(in_force.clone()).unwrap();
            };
            let (result, ()) = tokio::join!(server.add(network()), control);
            assert_eq!(result, in_force, "{why}");
            let patches = patches.lock().unwrap();
            let told = patches.iter().map(|patch| {
                assert_eq!(patch["metadata"]["uid"], "0f0e-1", "{why}");
                patch["status"]["conditions"][0]["status"].as_str().unwrap()
            });
            assert_eq!(told.collect::<Vec<_>>(), expected, "{why}");
        }
    }

    #[test]
    fn requests_are_checked() {
        let good = network();
        assert_eq!(check(&good), Ok(()));
        let table: [Bad; 12] = [
            (|n| n.pod.namespace = String::new(), "the pod's namespace"),
            (|n| n.pod.name = "Web".into(), "the pod's name"),
            (|n| n.pod.name = "a".repeat(254), "the pod's name"),
            (|n| n.pod.uid = "a b".into(), "the pod's uid"),
            (|n| n.attachment.container_id = "../x".into(), "the container's id"),
            (
                |n| n.attachment.ifname = "sixteen-letters-".into(),
                "the interface's name",
            ),
            (
                |n| n.host_interfaces = vec!["a/b".into()],
                "the list of the node's interfaces",
            ),
            (
                |n| n.host_interfaces = vec!["a".into(); 17],
                "the list of the node's interfaces",
            ),
            (|n| n.addresses.clear(), "the number of addresses"),
            (
                |n| n.addresses.push("10.0.0.2".parse().unwrap()),
                "the number of addresses",
            ),
            (|n| n.addresses[0] = "127.0.0.1".parse().unwrap(), "an address"),
            (|n| n.addresses[1] = "::ffff:10.0.0.1".parse().unwrap(), "an address"),
        ];
        for (spoil, what) in table {
            let mut bad = good.clone();
            spoil(&mut bad);
            let refusal = check(&bad).unwrap_err();
            assert_eq!(refusal.code, Code::InvalidConfiguration);
            assert!(
                refusal.message.starts_with(&format!("{what} is not valid")),
                "{refusal}"
            );
        }
    }
}
