// SPDX-License-Identifier: Apache-2.0
//! What a person knows: the workload that a pod belongs to, and the Service that it asked for.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use wardline_e2e::fence::Fences;
use wardline_e2e::layout::TRAFFIC_IMAGE;
use wardline_e2e::logging;
use wardline_e2e::namespace::{PORT, TestNamespace, is_ready, with_namespace};
use wardline_e2e::progress::wait_until;
use wardline_e2e::records::{Record, ServiceRef, Side};
use wardline_e2e::traffic::{Attempt, Protocol};

use crate::{WEB_SERVICE, lines, of_client};

/// The kind and name of each client's workload, and how many pods it has.
const WORKLOADS: [(&str, &str, usize); 5] = [
    ("Deployment", "front", 2),
    ("DaemonSet", "agent", 2),
    ("StatefulSet", "shard", 1),
    ("CronJob", "tick", 1),
    ("Job", "once", 1),
];
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]
";
/// A `CronJob` begins with the next minute.
const PATIENCE: Duration = Duration::from_mins(3);

/// All workloads, of pods that serve until they are deleted.
fn workloads() -> String {
    let template = |name: &str, more: &str| {
        format!(
            "
metadata: {{labels: {{role: client, app: {name}}}}}
spec:
  {more}
  terminationGracePeriodSeconds: 0
  containers: [{{name: traffic, image: \"{TRAFFIC_IMAGE}\", args: [serve, --port, \"{PORT}\"], imagePullPolicy: Never}}]
"
        )
    };
    let indented = |text: String, by: usize| text.replace('\n', &format!("\n{}", " ".repeat(by)));
    let selected = |kind: &str, name: &str, more: &str| {
        let template = indented(template(name, ""), 4);
        format!(
            "
apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}}}
spec:
  {more}
  selector: {{matchLabels: {{app: {name}}}}}
  template: {template}
---"
        )
    };
    let job = |name: &str| indented(template(name, "restartPolicy: Never"), 4);
    [
        selected("Deployment", "front", "replicas: 2"),
        selected("DaemonSet", "agent", ""),
        selected("StatefulSet", "shard", "serviceName: shard"),
        format!(
            "
apiVersion: batch/v1
kind: CronJob
metadata: {{name: tick}}
spec:
  schedule: \"* * * * *\"
  concurrencyPolicy: Forbid
  jobTemplate:
    spec:
      template: {}
---
apiVersion: batch/v1
kind: Job
metadata: {{name: once}}
spec:
  template: {}
",
            indented(job("tick"), 4),
            job("once"),
        ),
    ]
    .concat()
}

#[tokio::test]
async fn records_name_the_workloads_and_the_service() -> Result<()> {
    with_namespace("workloads", async |namespace: &TestNamespace| {
        let _logged = logging::on(&namespace.lab).await?;
        let fences = Fences::create(namespace).await?;
        namespace.server("web", "node2").await?;
        namespace.apply(&workloads()).await?;
        namespace.apply(WEB_SERVICE).await?;
        let service = namespace.lab.get("v1", "Service", &namespace.name, "web").await?;
        let ip: IpAddr =
            serde_json::from_value(service.data["spec"]["clusterIP"].clone()).context("failed to read clusterIP")?;
        fences.ready().await?;
        let clients = clients(namespace).await?;
        namespace.apply(POLICIES).await?;
        namespace.until_reach("fence-node1", "web", false).await?;
        let expected = ServiceRef {
            namespace: Some(namespace.name.clone()),
            name: Some("web".to_owned()),
            ip: ip.to_string(),
            port: 80,
        };
        for (pod, _) in &clients {
            // Once its own policy is in force.
            let other = if pod == "shard-0" { &clients[0].0 } else { "shard-0" };
            namespace.until_reach(pod, other, false).await?;
            let server = SocketAddr::new(ip, 80);
            wait_until(&format!("{pod} -> Service web"), PATIENCE, async || {
                let attempt = Attempt::make(&namespace.pods(), pod, server, Protocol::Tcp).await?;
                Ok(attempt.ok.then_some(()))
            })
            .await?;
        }
        let records = fences.settled_records().await?;
        for (pod, workload) in &clients {
            check(namespace, pod, workload, &expected, &records)?;
        }
        Ok(())
    })
    .await
}

/// The pods of all workloads, once there are as many as there shall be, with kind and name of each one's workload.
async fn clients(namespace: &TestNamespace) -> Result<Vec<(String, (&'static str, &'static str))>> {
    wait_until("the pods of all workloads", PATIENCE, async || {
        let mut clients = Vec::new();
        for (kind, name, count) in WORKLOADS {
            let pods = namespace
                .pods()
                .list(&ListParams::default().labels(&format!("app={name}")))
                .await?;
            let ready: Vec<&Pod> = pods.items.iter().filter(|pod| is_ready(pod)).collect();
            ensure!(ready.len() == count, "{kind} {name} has {} pods", ready.len());
            clients.extend(ready.into_iter().map(|pod| (pod.name_any(), (kind, name))));
        }
        Ok(Some(clients))
    })
    .await
}

/// The client's own node names the Service, and the server's node does not know it; both name both ends.
fn check(
    namespace: &TestNamespace,
    pod: &str,
    (kind, name): &(&str, &str),
    service: &ServiceRef,
    records: &[Record],
) -> Result<()> {
    let client = Side {
        pod_name: Some(pod.to_owned()),
        pod_namespace: Some(namespace.name.clone()),
        namespace: Some(namespace.name.clone()),
        workload_kind: Some((*kind).to_owned()),
        workload_name: Some((*name).to_owned()),
        ..Side::default()
    };
    let allowed = of_client(records, pod);
    let mut allowed: Vec<_> = allowed
        .into_iter()
        .filter(|record| record.disposition == "allow")
        .collect();
    allowed.sort_by_key(|record| record.connection.direction.clone());
    let [egress, ingress] = allowed[..] else {
        anyhow::bail!("{pod} has not two records of its connection:\n{}", lines(records));
    };
    for (record, direction, service) in [(egress, "egress", Some(service)), (ingress, "ingress", None)] {
        ensure!(record.connection.direction == direction, "direction: {}", record.line);
        ensure!(record.connection.dest_port == Some(PORT), "dest_port: {}", record.line);
        ensure!(record.src.as_ref() == Some(&client), "src: {}", record.line);
        let dest = record.dest.as_ref().and_then(|dest| dest.pod_name.as_deref());
        ensure!(dest == Some("web"), "dest: {}", record.line);
        ensure!(record.service.as_ref() == service, "service: {}", record.line);
    }
    Ok(())
}
