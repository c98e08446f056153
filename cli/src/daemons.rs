// SPDX-License-Identifier: Apache-2.0
//! The daemons, reached through the API server: their metrics by its proxy, their program by its exec.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams};
use kube::{Client, ResourceExt as _};
use tokio::io::AsyncReadExt as _;

/// How the operator labels the daemons' pods, and the chart the operator's.
pub(crate) const DAEMONS: &str = "app.kubernetes.io/name=wardline-node";
pub(crate) const OPERATORS: &str = "app.kubernetes.io/name=wardline-operator";
pub(crate) const CONTAINER: &str = "wardline-node";
pub(crate) const PROGRAM: &str = "/wardline-node";
/// Name of the port in the pods of both.
const METRICS: &str = "metrics";
/// What a program printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    /// Why it is not exit code 0.
    pub(crate) failure: Option<String>,
}

/// A pod's metrics, in the text format of Prometheus. Needs `get` of pods/proxy.
pub(crate) async fn metrics(client: &Client, pod: &Pod, patience: Duration) -> anyhow::Result<String> {
    let port = metrics_port(pod).context("its pod has no port named metrics")?;
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics");
    let request = http::Request::get(path)
        .body(Vec::new())
        .context("failed to ask for its metrics")?;
    within(patience, client.request_text(request)).await
}

fn metrics_port(pod: &Pod) -> Option<i32> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some(METRICS));
    port.map(|port| port.container_port)
}

/// Runs the daemon's program once more beside it; of what it prints and complains about, `at_most` bytes each are read.
/// Needs `create` and `get` of pods/exec.
pub(crate) async fn run(
    pods: &Api<Pod>,
    pod: &str,
    arguments: &[&str],
    at_most: u64,
    patience: Duration,
) -> anyhow::Result<Ran> {
    let command: Vec<&str> = [PROGRAM].iter().chain(arguments).copied().collect();
    let running = async {
        let streams = AttachParams::default().container(CONTAINER).stdout(true).stderr(true);
        let mut process = pods.exec(pod, command, &streams).await.map_err(explain)?;
        let (Some(output), Some(complaints)) = (process.stdout(), process.stderr()) else {
            anyhow::bail!("it has no output");
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (mut output, mut complaints) = (output.take(at_most), complaints.take(at_most));
        let (read, complained) = tokio::join!(output.read_to_end(&mut stdout), complaints.read_to_end(&mut stderr));
        read.context("failed to read what it prints")?;
        complained.context("failed to read what it complains about")?;
        let status = match process.take_status() {
            Some(status) => status.await,
            None => None,
        };
        let is_well = status.as_ref().and_then(|status| status.status.as_deref()) == Some("Success");
        let failure = || {
            status
                .and_then(|status| status.message)
                .unwrap_or_else(|| "the connection was cut".into())
        };
        Ok(Ran {
            stdout,
            stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
            failure: (!is_well).then(failure),
        })
    };
    let ran = tokio::time::timeout(patience, running).await;
    ran.map_err(|_| too_late(patience))?
}

/// Waits for an answer, and no longer than that.
pub(crate) async fn within<T>(patience: Duration, answer: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    let answered = tokio::time::timeout(patience, answer).await;
    answered.map_err(|_| too_late(patience))?.map_err(explain)
}

fn too_late(patience: Duration) -> anyhow::Error {
    anyhow::anyhow!("no answer within {} s", patience.as_secs())
}

/// What the API server says, without the words around it.
fn explain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::Error::new(Refused {
            code: status.code,
            message: if status.message.is_empty() {
                status.reason.clone()
            } else {
                status.message.clone()
            },
        }),
        // Which would quote what it met instead: a secret perhaps.
        kube::Error::SerdeError(error) => {
            anyhow::anyhow!(
                "the answer is not of its type, at line {} column {}",
                error.line(),
                error.column()
            )
        }
        error => anyhow::anyhow!("{error}"),
    }
}

/// The API server's answer, other than what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) code: u16,
    message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Bodies of a proxied answer may be pages long.
        let first = self.message.trim().lines().next().unwrap_or_default();
        f.write_str(first)
    }
}

impl std::error::Error for Refused {}

/// Whether whoever asks has no right to.
pub(crate) fn is_forbidden(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.code == 403)
}
