// SPDX-License-Identifier: Apache-2.0
//! Pods whose containers connect before they do anything else.
//!
//! Each has two containers, and each container is one connection that gives up before its first packet would be sent
//! again: it succeeds only if that packet was admitted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use wardline_e2e::layout::TRAFFIC_IMAGE;
use wardline_e2e::namespace::{PORT, TestNamespace, with_namespace};
use wardline_e2e::progress::{step, wait_until};

const PODS: usize = 200;
const AT_ONCE: usize = 40;
/// Shorter than the time after which Linux sends a SYN again, a second.
const GIVES_UP_MS: &str = "950";
const PATIENCE: Duration = Duration::from_mins(3);
/// The name of a container that serves, and does not end.
const SERVER: &str = "traffic";

/// First packets that the other node may deny since it does not know their pods yet. Where addresses are announced before
/// containers start there are none, unless its watch is late.
const MOST_DENIED: usize = PODS / 50;

pub(crate) const WEB_TAKES_FRIENDS_BY_ROLE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-takes-friends}
spec:
  podSelector: {matchLabels: {role: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]
";

/// Who is mute may not speak, also not to `open`, which takes everybody.
const MUTE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: mute}
spec:
  podSelector: {matchLabels: {role: mute}}
  policyTypes: [Egress]
";

/// What a pod is, whom it calls, and whether it should reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    role: &'static str,
    calls: &'static str,
    is_admitted: bool,
}

const KINDS: [Kind; 3] = [
    Kind {
        role: "friend",
        calls: "web",
        is_admitted: true,
    },
    Kind {
        role: "foe",
        calls: "web",
        is_admitted: false,
    },
    Kind {
        role: "mute",
        calls: "open",
        is_admitted: false,
    },
];

/// Connections by what became of them.
#[derive(Debug, Default)]
struct Tally {
    right: usize,
    /// On another node than the client's, which may not know the client yet.
    denied_by_the_other_node: usize,
    wrong: Vec<String>,
}

#[tokio::test]
async fn pods_that_connect_at_once_get_the_right_verdict() -> Result<()> {
    with_namespace("first", async |namespace: &TestNamespace| {
        namespace.apply(WEB_TAKES_FRIENDS_BY_ROLE).await?;
        namespace.apply(MUTE).await?;
        for role in ["web", "open"] {
            for node in ["node1", "node2"] {
                create(namespace, &format!("{role}-{node}"), role, node, &[server()]).await?;
            }
        }
        namespace.ready().await?;
        let mut tally = Tally::default();
        for batch in 0..PODS / AT_ONCE {
            run_batch(namespace, batch, &mut tally).await?;
        }
        let Tally {
            right,
            denied_by_the_other_node,
            wrong,
        } = &tally;
        step(&format!(
            "  {PODS} pods, {right} first packets judged right, {denied_by_the_other_node} denied by another node that \
             did not know the pod yet, {} wrong",
            wrong.len()
        ));
        ensure!(wrong.is_empty(), "judged wrong: {wrong:#?}");
        ensure!(
            *denied_by_the_other_node <= MOST_DENIED,
            "more than {MOST_DENIED} were denied by a node that did not know the pod"
        );
        ensure!(
            right + denied_by_the_other_node == 2 * PODS,
            "not all were judged: {tally:?}"
        );
        Ok(())
    })
    .await
}

/// A container that serves.
pub(crate) fn server() -> serde_json::Value {
    let args = ["serve", "--port", &PORT.to_string()];
    json!({"name": SERVER, "image": TRAFFIC_IMAGE, "args": args, "imagePullPolicy": "Never"})
}

/// A container of this name that is one connection to a server.
pub(crate) fn client(name: &str, server: SocketAddr) -> serde_json::Value {
    let args = ["connect", &server.to_string(), "--timeout", GIVES_UP_MS];
    json!({"name": name, "image": TRAFFIC_IMAGE, "args": args, "imagePullPolicy": "Never"})
}

/// Creates a pod that is not started again when it has ended.
pub(crate) async fn create(
    namespace: &TestNamespace,
    name: &str,
    role: &str,
    node: &str,
    containers: &[serde_json::Value],
) -> Result<()> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"role": role, "app": name}},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": containers,
        },
    }))
    .context("failed to build a Pod")?;
    let created = namespace.pods().create(&PostParams::default(), &pod).await;
    created.with_context(|| format!("failed to create Pod {name}"))?;
    Ok(())
}

async fn run_batch(namespace: &TestNamespace, batch: usize, tally: &mut Tally) -> Result<()> {
    let first = batch * AT_ONCE;
    for number in first..first + AT_ONCE {
        let (kind, node, other) = plan(number);
        let mut containers = Vec::new();
        for (name, at) in [("near", node), ("far", other)] {
            let server = SocketAddr::new(namespace.ip(&format!("{}-{at}", kind.calls)).await?, PORT);
            containers.push(client(name, server));
        }
        create(namespace, &format!("client-{number}"), kind.role, node, &containers).await?;
    }
    for number in first..first + AT_ONCE {
        let name = format!("client-{number}");
        tally.add(plan(number).0, &ended(namespace, &name).await?)?;
    }
    let clients = ListParams::default().labels("role in (friend, foe, mute)");
    let deleted = namespace
        .pods()
        .delete_collection(&DeleteParams::default(), &clients)
        .await;
    deleted.context("failed to delete pods")?;
    Ok(())
}

/// Waits until the clients of a pod have ended.
pub(crate) async fn ended(namespace: &TestNamespace, name: &str) -> Result<Pod> {
    wait_until(&format!("{name} to end"), PATIENCE, async || {
        let pod = namespace.pods().get(name).await?;
        let clients = pod
            .spec
            .iter()
            .flat_map(|spec| &spec.containers)
            .filter(|one| one.name != SERVER);
        let (clients, ended) = (clients.count(), admitted(&pod)?.len());
        Ok((ended == clients).then_some(pod))
    })
    .await
}

/// The containers of a pod that have ended, and whether each was admitted.
pub(crate) fn admitted(pod: &Pod) -> Result<BTreeMap<String, bool>> {
    let status = pod.status.as_ref().context("failed to read a Pod's status")?;
    let containers = status.container_statuses.iter().flatten();
    let ended = containers.filter_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        Some((container.name.clone(), ended.exit_code == 0))
    });
    Ok(ended.collect())
}

/// What the pod of a number is, its node, and the other one.
fn plan(number: usize) -> (Kind, &'static str, &'static str) {
    let kind = KINDS[number % KINDS.len()];
    if (number / KINDS.len()).is_multiple_of(2) {
        (kind, "node1", "node2")
    } else {
        (kind, "node2", "node1")
    }
}

impl Tally {
    fn add(&mut self, kind: Kind, pod: &Pod) -> Result<()> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let containers = admitted(pod)?;
        ensure!(
            containers.len() == 2,
            "Pod {name} has no two containers: {containers:?}"
        );
        for (container, was_admitted) in containers {
            if was_admitted == kind.is_admitted {
                self.right += 1;
            } else if container == "far" && !was_admitted {
                self.denied_by_the_other_node += 1;
            } else {
                let verdict = if was_admitted { "admitted" } else { "denied" };
                self.wrong
                    .push(format!("{name} ({}), {container}: {verdict}", kind.role));
            }
        }
        check_condition(pod)
    }
}

/// kubelet has left the condition alone by which other nodes knew the addresses before it wrote them.
fn check_condition(pod: &Pod) -> Result<()> {
    let status = pod.status.as_ref().context("failed to read a Pod's status")?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let condition = conditions
        .iter()
        .find(|condition| condition.type_ == "wardline.io/AddressesAssigned");
    let condition = condition.context("failed to find the condition that announces addresses")?;
    if condition.status == "False" {
        // The pod's sandbox went before kubelet had written its addresses, and so the node took its word back. The phase
        // may come later still.
        let containers = status.container_statuses.iter().flatten();
        let mut states = containers.map(|container| container.state.as_ref());
        let has_ended = states.all(|state| state.is_some_and(|state| state.terminated.is_some()));
        ensure!(
            has_ended,
            "the announcement of a pod that runs was taken back: {status:?}"
        );
        return Ok(());
    }
    let announced = condition.message.as_deref().unwrap_or_default();
    let ips: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    let mut announced: Vec<&str> = announced.split(',').collect();
    announced.sort_by_key(|ip| ips.iter().position(|other| other == ip));
    ensure!(announced == ips, "announced {announced:?}, and kubelet wrote {ips:?}");
    Ok(())
}
