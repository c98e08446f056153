// SPDX-License-Identifier: Apache-2.0
//! Wardline leaves: nobody's connection breaks, and each node is what it was before.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::DeleteParams;
use libbpf_rs::query::{MapInfoIter, ProgInfoIter};
use serde_json::Value;
use wardline_e2e::cluster::{Lab, SYSTEM_NAMESPACE};
use wardline_e2e::namespace::{TestNamespace, with_namespace_alone};
use wardline_e2e::progress::{step, wait_until};
use wardline_e2e::traffic::{Attempt, Held, Protocol};
use wardline_e2e::{footprint, logging, wardline};

use crate::{WEB_SERVICE, WEB_TAKES_FRIENDS, applied_twice};

/// How often held connections say something.
const BEAT: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn nobody_notices_that_it_leaves_and_nothing_of_it_stays() -> Result<()> {
    with_namespace_alone("removal", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let _logged = logging::on(lab).await?;
        namespace.server("web", "node1").await?;
        namespace.client("friend1", "node1").await?;
        namespace.client("friend2", "node2").await?;
        namespace.client("foe2", "node2").await?;
        namespace.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.until_reach("foe2", "web", false).await?;
        namespace.apply(WEB_SERVICE).await?;
        let service = namespace.lab.get("v1", "Service", &namespace.name, "web").await?;
        let front = service.data["spec"]["clusterIP"].as_str().unwrap_or_default();
        let front: IpAddr = front.parse().context("failed to read the Service's clusterIP")?;
        let mut held = Vec::new();
        for friend in ["friend1", "friend2"] {
            held.push(namespace.hold(friend, "web", Protocol::Tcp, BEAT).await?);
            // No kube-proxy is there: that these go on is the node's own connection tracking alone.
            held.push(hold_through_service(namespace, friend, SocketAddr::new(front, 80)).await?);
        }
        let values = wardline::values_in_use(lab)?;
        let printed = wardline::uninstall(lab)?;
        step(printed.trim());
        let gone = left(namespace).await;
        for held in held {
            held.until_echoes(10).await?;
            held.finish().await?;
        }
        // Whatever came of it, others need it. Nothing is there now: that is where the other way to install begins.
        let installed = applied_twice::installed_by_manifests(lab, &values).await;
        wardline::upgrade_chart(lab, &values, &["--take-ownership", "--force-conflicts"])?;
        let reinstalled = wardline::wait_ready(lab).await;
        gone?;
        installed?;
        reinstalled?;
        namespace.until_reach("friend2", "web", true).await?;
        namespace.until_reach("foe2", "web", false).await
    })
    .await
}

/// A connection to the Service, as soon as it is served.
async fn hold_through_service(namespace: &TestNamespace, client: &str, front: SocketAddr) -> Result<Held> {
    wait_until(&format!("{client} -> {front} to be served"), PATIENCE, async || {
        let attempt = Attempt::make(&namespace.pods(), client, front, Protocol::Tcp).await?;
        Ok(attempt.ok.then_some(()))
    })
    .await?;
    Held::open(&namespace.pods(), client, front, Protocol::Tcp, BEAT).await
}

/// How the cluster is without it.
async fn left(namespace: &TestNamespace) -> Result<()> {
    let lab = &namespace.lab;
    let namespaced = |group: &str, kind: &str| format!("/{group}/namespaces/{SYSTEM_NAMESPACE}/{kind}");
    for path in [
        "/apis/wardline.io/v1alpha1/dataplanes".to_owned(),
        "/apis/wardline.io/v1alpha1/dataplanenodes".to_owned(),
        namespaced("apis/apps/v1", "daemonsets"),
        namespaced("apis/apps/v1", "deployments"),
        namespaced("apis/batch/v1", "jobs"),
        namespaced("api/v1", "configmaps"),
        namespaced("api/v1", "pods"),
    ] {
        // Helm does not wait for the operator's pod.
        wait_until(&format!("{path} to be empty"), Duration::from_secs(30), async || {
            let left = list(lab, &path).await?;
            let left: Vec<String> = left.into_iter().filter(|name| name != "kube-root-ca.crt").collect();
            ensure!(left.is_empty(), "there are still {left:?}");
            Ok(Some(()))
        })
        .await?;
    }
    // Pods that run were started with our plugin; new ones are not.
    namespace.until_reach("foe2", "web", true).await?;
    namespace.client("late1", "node1").await?;
    namespace.client("late2", "node2").await?;
    namespace.ready().await?;
    namespace.until_reach("late2", "web", true).await?;
    namespace.pods().delete("late2", &DeleteParams::default()).await?;
    wait_until("a pod to end", Duration::from_mins(1), async || {
        Ok(namespace.pods().get_opt("late2").await?.is_none().then_some(()))
    })
    .await?;
    let changes = footprint::changes(lab)?;
    ensure!(
        changes.is_empty(),
        "the nodes are not what they were:\n{}",
        changes.join("\n")
    );
    wait_until(
        "the kernel to free programs, maps and links",
        Duration::from_secs(30),
        async || {
            let left = in_kernel();
            ensure!(left.is_empty(), "there are still {left:?}");
            Ok(Some(()))
        },
    )
    .await?;
    ensure!(!namespace.records()?.is_empty(), "the log stays");
    Ok(())
}

/// Programs and maps of ours, of both nodes: they share a kernel. A link holds its program.
fn in_kernel() -> BTreeSet<String> {
    let is_ours = |name: &String| ["pod_ingress", "pod_egress", "policy_words", "conntrack"].contains(&&**name);
    let text = |name: &OsStr| name.to_string_lossy().into_owned();
    let programs = ProgInfoIter::default().map(|program| text(&program.name));
    programs
        .chain(MapInfoIter::default().map(|map| text(&map.name)))
        .filter(is_ours)
        .collect()
}

/// The names of objects.
async fn list(lab: &Lab, path: &str) -> Result<Vec<String>> {
    let request = http::Request::get(path).body(Vec::new())?;
    let found: Value = lab.client().request(request).await?;
    let items = found["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str().map(Into::into))
        .collect())
}
