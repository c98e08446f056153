// SPDX-License-Identifier: Apache-2.0
//! From a request to the API server to the first packet that meets the new policy.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

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
    /// Of a policy that is edited.
    edited: Vec<f64>,
}

/// `policy_to_enforced`: a pod's first policy, and an edit of it, in turn.
pub async fn measure(setting: &Setting<'_>, namespace: &TestNamespace, rounds: u32) -> Result<Vec<Figure>> {
    let policies: Api<NetworkPolicy> = Api::namespaced(namespace.lab.client().clone(), &namespace.name);
    let [client, server] = &setting.pods;
    let echo = format!("{}:{PORT}", server.address);
    let mut probes = setting.traffic.start(client, &["probe", &echo])?;
    flowing(&mut probes).await?;
    let mut samples = Samples::default();
    // The first round warms up and is thrown away.
    for round in 0..=rounds {
        let (first, edited) = one_round(&policies, &mut probes).await?;
        if round > 0 {
            samples.first.push(first);
            samples.edited.push(edited);
        }
    }
    Ok(samples.figures())
}

async fn one_round(policies: &Api<NetworkPolicy>, probes: &mut Running) -> Result<(f64, f64)> {
    let first = monotonic_ns();
    let deny = policy(false)?;
    policies
        .create(&PostParams::default(), &deny)
        .await
        .with_context(|| format!("failed to create NetworkPolicy {NAME}"))?;
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
    Ok((count(first) / 1e6, count(edited) / 1e6))
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
        let figure = |name: &str, value: f64, most: f64, measured: String| Figure {
            name: name.into(),
            value,
            unit: "ms".into(),
            baseline: None,
            target: Some(Target::AtMost(most)),
            measured,
        };
        let posted = format!(
            "from sending the POST of a pod's first NetworkPolicy to the first unanswered probe, median of {} (a UDP \
             probe each 0.5 ms on a flow that is open, between two pods of node1)",
            self.first.len()
        );
        let edited = "the same for a PATCH of a policy of a pod that is isolated already".to_owned();
        let the_worst = |what: &str| format!("the worst of {what}");
        vec![
            figure("policy_to_enforced", median(&self.first), 5.0, posted),
            figure("policy_to_enforced-worst", worst(&self.first), 15.0, the_worst("those")),
            figure("policy_edit_to_enforced", median(&self.edited), 5.0, edited),
            figure(
                "policy_edit_to_enforced-worst",
                worst(&self.edited),
                15.0,
                the_worst("those"),
            ),
        ]
    }
}
