// SPDX-License-Identifier: Apache-2.0
//! What a new pod waits for Wardline: the CNI plugin from its start to its end, for pods whose Pod is in the cluster and
//! whose veth is on the node, but which no runtime starts.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::figure::{Figure, Target, median};
use super::wires::PodWires;
use crate::images;
use crate::layout::{NodeSpec, TRAFFIC_IMAGE};
use crate::namespace::TestNamespace;
use crate::node;

/// As many as a full node of 110 pods starts at once after it was restarted, in fifths.
const PODS: u8 = 22;
const SOCKET: &str = "/run/wardline/cni.sock";

struct Plugin<'a> {
    namespace: &'a TestNamespace,
    program: PathBuf,
    socket: PathBuf,
}

/// `cni_add`: one pod after the other, and all at once.
pub async fn measure(namespace: &TestNamespace, node: &NodeSpec) -> Result<Vec<Figure>> {
    let layout = namespace.lab.layout();
    let plugin = Plugin {
        namespace,
        program: images::static_binary(layout, "wardline-cni")?,
        socket: node::path_in(layout, node, SOCKET)?,
    };
    let mut uids = Vec::new();
    for number in 1..=PODS {
        uids.push(plugin.create(number, node).await?);
    }
    let result = plugin.add_all(&uids, node).await;
    let ours = ListParams::default().labels("app=never-starts");
    let at_once = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    let deleted = namespace.pods().delete_collection(&at_once, &ours).await;
    deleted.context("failed to delete pods")?;
    result
}

impl Plugin<'_> {
    /// A Pod that kubelet never starts, since one of its volumes does not exist. Returns its uid.
    async fn create(&self, number: u8, node: &NodeSpec) -> Result<String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("never-starts-{number}"), "labels": {"app": "never-starts"}},
            "spec": {
                "nodeName": node.name,
                "containers": [{"name": "traffic", "image": TRAFFIC_IMAGE, "imagePullPolicy": "Never"}],
                "volumes": [{"name": "missing", "configMap": {"name": "there-is-none"}}],
            },
        }))
        .context("failed to build a Pod")?;
        let pod = self.namespace.pods().create(&PostParams::default(), &pod).await;
        let pod = pod.with_context(|| format!("failed to create Pod never-starts-{number}"))?;
        pod.metadata.uid.context("failed to read a Pod's uid")
    }

    async fn add_all(&self, uids: &[String], node: &NodeSpec) -> Result<Vec<Figure>> {
        let pods = |wires: &PodWires| -> Vec<(usize, String, Ipv4Addr)> {
            let pods = wires.pods.iter().enumerate();
            pods.map(|(number, (link, address))| (number, link.clone(), *address))
                .collect()
        };
        let wires = PodWires::create(node, PODS)?;
        let mut alone = Vec::new();
        for (number, link, address) in pods(&wires) {
            alone.push(self.run("ADD", "alone", number, &uids[number], &link, address).await?);
        }
        for (number, link, address) in pods(&wires) {
            self.run("DEL", "alone", number, &uids[number], &link, address).await?;
        }
        drop(wires);

        let wires = PodWires::create(node, PODS)?;
        let all = pods(&wires);
        let adds = all
            .iter()
            .map(|(number, link, address)| self.run("ADD", "together", *number, &uids[*number], link, *address));
        let together = try_join_all(adds).await?;
        let slowest = together.iter().max().copied().unwrap_or_default();
        let alone: Vec<f64> = alone.into_iter().map(milliseconds).collect();
        let figure = |name: &str, value, most, measured: String| Figure {
            name: name.into(),
            value,
            unit: "ms".into(),
            baseline: None,
            target: Some(Target::AtMost(most)),
            measured,
        };
        Ok(vec![
            figure(
                "cni_add",
                median(&alone),
                20.0,
                format!("wardline-cni ADD from the start of the process to its end, median of {PODS} pods one by one"),
            ),
            figure(
                "cni_add-at-once",
                milliseconds(slowest),
                100.0,
                format!("the slowest of {PODS} that are started together"),
            ),
        ])
    }

    /// Runs the plugin once, and returns how long it took.
    async fn run(
        &self,
        command: &str,
        round: &str,
        number: usize,
        uid: &str,
        link: &str,
        address: Ipv4Addr,
    ) -> Result<Duration> {
        let (namespace, name) = (&self.namespace.name, format!("never-starts-{}", number + 1));
        let netns = "/run/netns/wardline-bench-pods";
        let input = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "wardline-cni", "socket": self.socket,
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": link}, {"name": "eth0", "sandbox": netns}],
                "ips": [{"address": format!("{address}/32"), "interface": 1}],
            },
        });
        let began = Instant::now();
        let mut child = Command::new(&self.program)
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("bench-{round}-{number}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .env(
                "CNI_ARGS",
                format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("failed to start {}", self.program.display()))?;
        let mut stdin = child.stdin.take().context("failed to reach the plugin's input")?;
        let written = stdin.write_all(input.to_string().as_bytes()).await;
        written.context("failed to tell the plugin its configuration")?;
        drop(stdin);
        let output = child
            .wait_with_output()
            .await
            .context("failed to wait for the plugin")?;
        let took = began.elapsed();
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "failed to {command} Pod {namespace}/{name}: {said}"
        );
        Ok(took)
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
