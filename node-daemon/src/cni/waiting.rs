// SPDX-License-Identifier: Apache-2.0
//! ADDs that wait: for the cluster's objects, for their Pod, for their interface. Those that can be served at the same
//! time are applied together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use wardline_cni::Code;
use wardline_cni::protocol::{Attachment, Network};

use super::Refusal;
use crate::index::{Attach, Index};
use crate::interfaces;

/// How long an ADD may wait: less than the plugin waits for us, which would tell it less.
const PATIENCE: Duration = Duration::from_secs(8);

type Answer = oneshot::Sender<Result<(), Refusal>>;

#[derive(Debug)]
struct Add {
    network: Network,
    bound: oneshot::Sender<Arc<str>>,
    answer: Answer,
    until: Instant,
    lacks: &'static str,
}

/// An ADD whose pod the index has bound, and that is answered when this is in force.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) network: Network,
    pub(crate) index: u32,
    pub(crate) pod_uid: Arc<str>,
    pub(crate) answer: Answer,
}

#[derive(Debug, Default)]
pub(crate) struct Waiting(Vec<Add>);

impl Waiting {
    pub(crate) fn push(&mut self, network: Network, bound: oneshot::Sender<Arc<str>>, answer: Answer) {
        self.0.push(Add {
            network,
            bound,
            answer,
            until: Instant::now() + PATIENCE,
            lacks: "the daemon is busy",
        });
    }

    /// The runtime takes the sandbox down whose ADD it has given up: what it was to have is another pod's next.
    pub(crate) fn give_up(&mut self, attachment: &Attachment) {
        for add in self.0.extract_if(.., |add| add.network.attachment == *attachment) {
            let refusal = Refusal::new(Code::TryAgainLater, "its sandbox was deleted meanwhile");
            // Who asked has given up, mostly.
            let _ = add.answer.send(Err(refusal));
        }
    }

    /// Whether one waits for an interface that the last scan has not found as it is now.
    pub(crate) fn wants_scan(&self, index: &Index) -> bool {
        self.0
            .iter()
            .any(|add| index.lacks_interface(&add.network, interfaces::index_of))
    }

    /// Binds those that can be; who has been waited for in vain is told.
    pub(crate) fn attach(&mut self, index: &mut Index) -> Vec<Bound> {
        let mut bound = Vec::new();
        for mut add in std::mem::take(&mut self.0) {
            if add.answer.is_closed() {
                continue;
            }
            match index.attach(&add.network) {
                Attach::Bound { index, pod_uid } => {
                    // Who asked may have given up.
                    let _ = add.bound.send(Arc::clone(&pod_uid));
                    bound.push(Bound {
                        network: add.network,
                        index,
                        pod_uid,
                        answer: add.answer,
                    });
                }
                Attach::NotYet(lacks) => {
                    add.lacks = lacks;
                    self.0.push(add);
                }
                Attach::Refused(message) => _ = add.answer.send(Err(Refusal::new(Code::TryAgainLater, message))),
            }
        }
        bound
    }

    /// Tells those whose time is over what they lack.
    pub(crate) fn expire(&mut self) {
        let now = Instant::now();
        for add in self.0.extract_if(.., |add| add.until <= now) {
            let pod = format!("{}/{}", add.network.pod.namespace, add.network.pod.name);
            let message = format!(
                "failed to guard Pod {pod} within {} s: {}",
                PATIENCE.as_secs(),
                add.lacks
            );
            tracing::warn!(pod, cause = add.lacks, "an ADD waited in vain");
            // Who asked may have given up.
            let _ = add.answer.send(Err(Refusal::new(Code::TryAgainLater, message)));
        }
    }
}

#[cfg(test)]
mod tests {
    use wardline_cni::protocol::PodId;

    use super::*;

    #[test]
    fn an_add_whose_sandbox_is_deleted_waits_no_more() {
        let network = |container: &str| Network {
            attachment: Attachment {
                container_id: container.into(),
                ifname: "eth0".into(),
            },
            pod: PodId {
                namespace: "shop".into(),
                name: "web".into(),
                uid: "u1".into(),
            },
            host_interfaces: vec!["veth7".into()],
            addresses: vec!["10.0.0.1".parse().unwrap()],
        };
        let mut waiting = Waiting::default();
        let mut answers: Vec<_> = ["given-up", "again"]
            .into_iter()
            .map(|container| {
                let (answer, answered) = oneshot::channel();
                waiting.push(network(container), oneshot::channel().0, answer);
                answered
            })
            .collect();
        waiting.give_up(&network("given-up").attachment);
        let refusal = answers[0].try_recv().unwrap().unwrap_err();
        assert_eq!(refusal.code, Code::TryAgainLater);
        assert!(answers[1].try_recv().is_err(), "the next sandbox waits on");
    }
}
