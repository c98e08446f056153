// SPDX-License-Identifier: Apache-2.0
//! From a request to the API server to the first packet that meets the new policy.

use anyhow::{Context as _, Result, bail};
use futures::TryStreamExt as _;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::connections::Setting;
use super::figure::{Figure, Target, median};
use super::load::{Running, count};
use crate::namespace::{PORT, TestNamespace};

const NAME: &str = "probed";

/// Milliseconds from sending a request to the first probe without an answer.
#[derive(Debug, Default)]
struct Samples {
    /// Of a policy that is the pod's first.
    first: Vec<f64>,
    /// From the same request until whoever watches is told of it.
    watched: Vec<f64>,
    /// Of a policy that is edited.
    edited: Vec<f64>,
}

/// When a watch of this process tells of the policy: what the API server takes.
#[derive(Debug)]
struct Watch {
    told_ns: mpsc::UnboundedReceiver<u64>,
    task: JoinHandle<Result<()>>,
}

/// `policy_to_enforced`: a pod's first policy, and an edit of it, in turn.
pub async fn measure(setting: &Setting<'_>, namespace: &TestNamespace, rounds: u32) -> Result<Vec<Figure>> {
    let policies: Api<NetworkPolicy> = Api::namespaced(namespace.lab.client().clone(), &namespace.name);
    let [client, server] = &setting.pods;
    let echo = format!("{}:{PORT}", server.address);
    let mut probes = setting.traffic.start(client, &["probe", &echo])?;
    flowing(&mut probes).await?;
    let mut watch = Watch::start(&policies).await?;
    let mut samples = Samples::default();
    // The first round warms up and is thrown away.
    for round in 0..=rounds {
        let took = one_round(&policies, &mut probes, &mut watch).await?;
        if round > 0 {
            samples.first.push(took.first);
            samples.watched.push(took.watched);
            samples.edited.push(took.edited);
        }
    }
    Ok(samples.figures())
}

/// Milliseconds of one round.
struct Took {
    first: f64,
    watched: f64,
    edited: f64,
}

async fn one_round(policies: &Api<NetworkPolicy>, probes: &mut Running, watch: &mut Watch) -> Result<Took> {
    let first = monotonic_ns();
    let deny = policy(false)?;
    policies
        .create(&PostParams::default(), &deny)
        .await
        .with_context(|| format!("failed to create NetworkPolicy {NAME}"))?;
    let watched = watch.told().await?.saturating_sub(first);
    let first = stopped(probes).await?.saturating_sub(first);

    let admit = Patch::Merge(policy(true)?);
    let patched = policies.patch(NAME, &PatchParams::default(), &admit).await;
    patched.with_context(|| format!("failed to edit NetworkPolicy {NAME}"))?;
    flowing(probes).await?;

    let deny = Patch::Merge(deny);
    let edited = monotonic_ns();
    let patched = policies.patch(NAME, &PatchParams::default(), &deny).await;
    patched.with_context(|| format!("failed to edit NetworkPolicy {NAME}"))?;
    let edited = stopped(probes).await?.saturating_sub(edited);

    let deleted = policies.delete(NAME, &DeleteParams::default()).await;
    deleted.with_context(|| format!("failed to delete NetworkPolicy {NAME}"))?;
    flowing(probes).await?;
    // The edits.
    for _ in 0..2 {
        watch.told().await?;
    }
    let [first, watched, edited] = [first, watched, edited].map(|nanoseconds| count(nanoseconds) / 1e6);
    Ok(Took { first, watched, edited })
}

impl Watch {
    async fn start(policies: &Api<NetworkPolicy>) -> Result<Self> {
        let params = WatchParams::default().fields(&format!("metadata.name={NAME}"));
        let list = policies.list(&kube::api::ListParams::default()).await;
        let from = list
            .context("failed to list NetworkPolicies")?
            .metadata
            .resource_version;
        let policies = policies.clone();
        let (sender, told_ns) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let stream = policies.watch(&params, &from.unwrap_or_default()).await?;
            let mut stream = std::pin::pin!(stream);
            while let Some(event) = stream.try_next().await? {
                if let WatchEvent::Added(_) | WatchEvent::Modified(_) = event {
                    // Whoever measured may have gone.
                    let _ = sender.send(monotonic_ns());
                }
            }
            Ok(())
        });
        Ok(Self { told_ns, task })
    }

    async fn told(&mut self) -> Result<u64> {
        let told = self.told_ns.recv().await;
        told.context("failed to watch NetworkPolicies: the watch has ended")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn policy(admits: bool) -> Result<NetworkPolicy> {
    let client = if admits { "client" } else { "nobody" };
    serde_json::from_value(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": NAME},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": client}}}]}],
        },
    }))
    .context("failed to build a NetworkPolicy")
}

/// Waits until probes go unanswered; when the first of them was sent.
async fn stopped(probes: &mut Running) -> Result<u64> {
    let event = probes.event().await.context("failed to see the probes stop")?;
    let at = event["first_unanswered_ns"].as_u64();
    at.with_context(|| format!("failed to see the probes stop: {event}"))
}

async fn flowing(probes: &mut Running) -> Result<()> {
    let event = probes.event().await.context("failed to see the probes flow")?;
    if event["event"] != "flowing" {
        bail!("failed to see the probes flow: {event}");
    }
    Ok(())
}

/// The clock that the prober reads too.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

impl Samples {
    fn figures(&self) -> Vec<Figure> {
        let worst = |samples: &[f64]| samples.iter().copied().fold(f64::NAN, f64::max);
        let figure = |name: &str, value: f64, most: Option<f64>, measured: String| Figure {
            name: name.into(),
            value,
            unit: "ms".into(),
            baseline: None,
            target: most.map(Target::AtMost),
            measured,
        };
        let posted = format!(
            "from sending the POST of a pod's first NetworkPolicy to the first unanswered probe, median of {} (a UDP \
             probe each 0.5 ms on a flow that is open, between two pods of node1)",
            self.first.len()
        );
        let watched =
            "from sending that POST until a watch in the same process is told of the policy: what is not ours";
        let edited = "the same for a PATCH of a policy of a pod that is isolated already".to_owned();
        let the_worst = |what: &str| format!("the worst of {what}");
        vec![
            figure("policy_to_enforced", median(&self.first), Some(5.0), posted),
            figure(
                "policy_to_enforced-worst",
                worst(&self.first),
                Some(15.0),
                the_worst("those"),
            ),
            figure("policy_to_watched", median(&self.watched), None, watched.to_owned()),
            figure("policy_edit_to_enforced", median(&self.edited), Some(5.0), edited),
            figure(
                "policy_edit_to_enforced-worst",
                worst(&self.edited),
                Some(15.0),
                the_worst("those"),
            ),
        ]
    }
}
