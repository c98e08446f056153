// SPDX-License-Identifier: Apache-2.0
//! The demo: real connections between pods, each beside the record that it left.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use time::OffsetDateTime;

use crate::cluster::Lab;
use crate::images::{self, Options};
use crate::layout::Layout;
use crate::namespace::TestNamespace;
use crate::progress::{step, wait_until};
use crate::records::Record;
use crate::traffic::exec;
use crate::{preflight, up, wardline};

const NAMESPACE: &str = "wardline-demo";
const WORKLOADS: &str = include_str!("../demo/workloads.yaml");
const POLICY: &str = include_str!("../demo/policy.yaml");
/// Pods of [`WORKLOADS`]: the server, and a client of each kind on both nodes.
const PODS: usize = 5;
const PATIENCE: Duration = Duration::from_mins(1);

/// A pod of the demo.
#[derive(Debug, Clone)]
struct DemoPod {
    name: String,
    app: String,
    node: String,
    ip: String,
}

/// A connection that was tried.
struct Attempted {
    client: DemoPod,
    connected: bool,
    record: Record,
}

/// Brings everything up from nothing and shows what Wardline does.
pub async fn demo(layout: &Layout, options: &Options) -> Result<()> {
    preflight::check()?;
    let built = images::build(layout, options)?;
    up::up(layout).await?;
    let lab = Lab::connect().await?;
    wardline::install(&lab, options, &built).await?;
    let namespace = TestNamespace {
        lab: lab.clone(),
        name: NAMESPACE.to_owned(),
    };
    namespace.create(&serde_json::json!({})).await?;
    lab.apply(NAMESPACE, WORKLOADS).await?;
    let pods = running_pods(&namespace).await?;
    let web = pods
        .iter()
        .find(|pod| pod.app == "web")
        .context("failed to find the pod of web")?
        .clone();
    step("applying e2e/demo/policy.yaml: web takes connections from frontend, and both outcomes are logged");
    lab.apply(NAMESPACE, POLICY).await?;
    wait_enforced(&namespace, &pods, &web).await?;
    step("opening a connection from each client to web");
    let clients: Vec<DemoPod> = pods.into_iter().filter(|pod| pod.app != "web").collect();
    let attempts = try_join_all(clients.into_iter().map(|client| attempt(&namespace, client, &web))).await?;
    show(&attempts, &web);
    show_next(layout, &web);
    Ok(())
}

async fn running_pods(namespace: &TestNamespace) -> Result<Vec<DemoPod>> {
    let api: Api<Pod> = namespace.pods();
    wait_until(&format!("the pods of {NAMESPACE}"), PATIENCE, async || {
        let mut pods: Vec<DemoPod> = api
            .list(&ListParams::default())
            .await?
            .items
            .iter()
            .filter_map(running)
            .collect();
        pods.sort_by(|a, b| (&b.app, &a.node).cmp(&(&a.app, &b.node)));
        Ok((pods.len() == PODS).then_some(pods))
    })
    .await
}

fn running(pod: &Pod) -> Option<DemoPod> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|one| one.type_ == "Ready" && one.status == "True");
    let going = pod.metadata.deletion_timestamp.is_some();
    (ready && !going).then_some(DemoPod {
        name: pod.name_any(),
        app: pod.labels().get("app")?.clone(),
        node: spec.node_name.clone()?,
        ip: status.pod_ip.clone()?,
    })
}

/// Waits until the policy is in force, and until what that took has been logged: what is shown later stands alone.
async fn wait_enforced(namespace: &TestNamespace, pods: &[DemoPod], web: &DemoPod) -> Result<()> {
    for (app, expected) in [("batch", false), ("frontend", true)] {
        let client = pods
            .iter()
            .find(|pod| pod.app == app)
            .context("failed to find a client")?;
        let what = format!("{app} to be {}", if expected { "admitted" } else { "refused" });
        let since = wait_until(&what, PATIENCE, async || {
            let since = OffsetDateTime::now_utc();
            Ok((connect(namespace, client, web).await? == expected).then_some(since))
        })
        .await?;
        record_of(namespace, client, web, since).await?;
    }
    Ok(())
}

async fn connect(namespace: &TestNamespace, client: &DemoPod, web: &DemoPod) -> Result<bool> {
    let server = format!("{}:8080", web.ip);
    let output = exec(
        &namespace.pods(),
        &client.name,
        &["/agnhost", "connect", "--timeout=2s", &server],
    )
    .await?;
    Ok(output.success)
}

async fn attempt(namespace: &TestNamespace, client: DemoPod, web: &DemoPod) -> Result<Attempted> {
    let since = OffsetDateTime::now_utc();
    let connected = connect(namespace, &client, web).await?;
    let record = record_of(namespace, &client, web, since).await?;
    Ok(Attempted {
        client,
        connected,
        record,
    })
}

/// The record of what the client did since then.
async fn record_of(
    namespace: &TestNamespace,
    client: &DemoPod,
    web: &DemoPod,
    since: OffsetDateTime,
) -> Result<Record> {
    wait_until(
        &format!("the record of {} -> {}", client.name, web.name),
        PATIENCE,
        async || {
            Ok(namespace.records()?.into_iter().find(|record| {
                let named = |side: &Option<crate::records::Side>, pod: &DemoPod| {
                    side.as_ref().and_then(|side| side.pod_name.as_deref()) == Some(&pod.name)
                };
                let last = record.last_timestamp.unwrap_or(record.timestamp);
                named(&record.src, client) && named(&record.dest, web) && last >= since
            }))
        },
    )
    .await
}

fn show(attempts: &[Attempted], web: &DemoPod) {
    println!(
        "\nConnections to {} ({}:8080 on {}), and the records of them:\n",
        web.name, web.ip, web.node
    );
    println!(
        "  {:<16} {:<6} {:<10} | {:<6} {:<53} {:<7} COUNT",
        "FROM", "NODE", "OUTCOME", "RECORD", "BECAUSE OF", "LOGGED"
    );
    for Attempted {
        client,
        connected,
        record,
    } in attempts
    {
        let outcome = if *connected { "connected" } else { "timed out" };
        println!(
            "  {:<16} {:<6} {:<10} | {:<6} {:<53} {:<7} {}",
            client.name,
            client.node,
            outcome,
            record.disposition,
            because(record),
            record.node_name,
            record.count
        );
    }
    println!("\nThe same as the lines of the policy log:\n");
    for attempt in attempts {
        println!("{}", attempt.record.line);
    }
}

/// In words, who decided: the policies that allowed, or the reason with the policies that isolate the pod.
fn because(record: &Record) -> String {
    let names = |policies: &[crate::records::PolicyRef]| -> String {
        let one = |policy: &crate::records::PolicyRef| {
            let rules: Vec<String> = policy.rules.iter().map(u32::to_string).collect();
            let rules = if rules.is_empty() {
                String::new()
            } else {
                format!(", rule {}", rules.join(","))
            };
            format!("{}{rules}", policy.name)
        };
        policies.iter().map(one).collect::<Vec<_>>().join("; ")
    };
    if record.policies.is_empty() {
        format!(
            "{}: isolated by {}",
            record.reason.as_deref().unwrap_or("-"),
            names(&record.isolated_by)
        )
    } else {
        names(&record.policies)
    }
}

fn show_next(layout: &Layout, web: &DemoPod) {
    let (kubeconfig, kubectl) = (layout.kubeconfig(), layout.bin("kubectl"));
    let log = layout.lab().join("node1/root/var/log/network/policy_action.log");
    println!("\nThe cluster is still up. To go on by hand:\n");
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!("  alias kubectl={}", kubectl.display());
    println!("  kubectl get dataplanes,networkloggings,dataplanenodes");
    println!(
        "  kubectl -n {NAMESPACE} exec ds/batch -- /agnhost connect --timeout=2s {}:8080",
        web.ip
    );
    println!("  tail -f {}", log.display());
    println!("\n`make demo-down` takes it down.");
}

#[cfg(test)]
mod tests {
    use super::because;
    use crate::records::parse;

    fn record(rest: &str) -> crate::records::Record {
        let line = format!(
            r#"{{"connection":{{"src_ip":"10.0.0.1","dest_ip":"10.0.0.2","protocol":"icmp","direction":"ingress"}},"src":{{"instance":"10.0.0.1"}},"dest":{{"instance":"10.0.0.2"}},"count":1,"node_name":"n","timestamp":"2026-06-13T21:29:31Z","seq":"1",{rest}}}"#
        ) + "\n";
        parse(&line).unwrap().remove(0)
    }

    #[test]
    fn a_record_is_put_in_words() {
        let allow = record(
            r#""disposition":"allow","policies":[{"kind":"NetworkPolicy","namespace":"n","name":"a","generation":1,"rules":[0,2]},{"kind":"NetworkPolicy","namespace":"n","name":"b","generation":1}]"#,
        );
        assert_eq!(because(&allow), "a, rule 0,2; b");
        let deny = record(
            r#""disposition":"deny","reason":"default-deny","isolated_by":[{"kind":"NetworkPolicy","namespace":"n","name":"c","generation":1}]"#,
        );
        assert_eq!(because(&deny), "default-deny: isolated by c");
    }
}
