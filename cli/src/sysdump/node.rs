// SPDX-License-Identifier: Apache-2.0
//! What each pod of Wardline tells: its messages, its metrics; and of daemons, what is on their node.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use kube::{Client, ResourceExt as _};

use super::SysdumpArgs;
use super::archive::Fit;
use crate::daemons::{self, Ran, Refused, within};

/// How long each question may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lines of messages that are asked of a container.
const LINES: i64 = 50_000;
/// Bytes that are read of what a program prints.
const PRINTED: u64 = 16 << 20;
const CONFIG: &str = "--config=/etc/wardline/config.yaml";

/// A file to be, or why there is none.
pub(super) struct Part {
    pub(super) path: String,
    pub(super) what: String,
    pub(super) content: anyhow::Result<Vec<u8>>,
    pub(super) fit: Fit,
}

/// All that one pod tells.
pub(super) async fn of_pod(client: &Client, pod: &Pod, args: &SysdumpArgs) -> Vec<Part> {
    let pods = Api::<Pod>::namespaced(client.clone(), &args.system.wardline_namespace);
    let mut parts = messages(&pods, pod, args).await;
    let name = pod.name_any();
    let is_daemon = pod
        .labels()
        .get("app.kubernetes.io/name")
        .is_some_and(|name| name == "wardline-node");
    let is_running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let folder = match (is_daemon, &node) {
        (true, Some(node)) => format!("nodes/{node}"),
        _ => format!("wardline/{name}"),
    };
    if !is_running {
        return parts;
    }
    parts.push(Part {
        path: format!("{folder}/metrics.txt"),
        what: format!("metrics of Pod {name}"),
        content: daemons::metrics(client, pod, PATIENCE).await.map(String::into_bytes),
        fit: Fit::Whole,
    });
    if let (true, Some(node)) = (is_daemon, node) {
        parts.extend(node_state(&pods, &name, &node, args).await);
    }
    parts
}

/// What its containers said, and those before them.
async fn messages(pods: &Api<Pod>, pod: &Pod, args: &SysdumpArgs) -> Vec<Part> {
    let name = pod.name_any();
    let statuses = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let mut parts = Vec::new();
    for status in statuses {
        for (previous, suffix) in [(false, ""), (true, ".previous")] {
            if previous && status.restart_count == 0 {
                continue;
            }
            let parameters = LogParams {
                container: Some(status.name.clone()),
                previous,
                since_seconds: Some(i64::try_from(args.since.0.as_secs()).unwrap_or(i64::MAX)),
                tail_lines: Some(LINES),
                timestamps: true,
                ..LogParams::default()
            };
            let which = if previous { "the container before" } else { "container" };
            let content = within(PATIENCE, pods.logs(&name, &parameters)).await;
            // What the container before said is not kept for ever.
            let is_refused = |error: &anyhow::Error| error.downcast_ref::<Refused>().is_some_and(|why| why.code == 400);
            if previous && content.as_ref().is_err_and(is_refused) {
                continue;
            }
            parts.push(Part {
                path: format!("wardline/{name}/{}{suffix}.log", status.name),
                what: format!("messages of {which} {} of Pod {name}", status.name),
                content: content.map(String::into_bytes),
                fit: Fit::Tail,
            });
        }
    }
    parts
}

/// What the daemon's program finds on its node.
async fn node_state(pods: &Api<Pod>, pod: &str, node: &str, args: &SysdumpArgs) -> Vec<Part> {
    let last = format!("--last={}", args.log_lines);
    let name = format!("--node-name={node}");
    let mut questions = vec![
        (
            "on-node.txt",
            "what of Wardline is on the node: CNI configurations, programs at interfaces, pins, state",
            vec!["cleanup", "--check", CONFIG],
        ),
        (
            "kernel.txt",
            "whether the kernel has what Wardline needs",
            vec!["--check", &name, CONFIG],
        ),
    ];
    if args.log_lines > 0 {
        questions.push((
            "policy-log.jsonl",
            "the last lines of the policy log",
            vec!["observe", &last],
        ));
    }
    let mut parts = Vec::new();
    for (file, what, arguments) in questions {
        let ran = daemons::run(pods, pod, &arguments, PRINTED, PATIENCE).await;
        parts.push(Part {
            path: format!("nodes/{node}/{file}"),
            what: format!("{what}, of {node}"),
            content: ran.and_then(|ran| printed(ran, arguments[0] == "cleanup")),
            fit: Fit::Tail,
        });
    }
    parts
}

/// `--check` of a cleanup fails where there is something to clean, and says what.
fn printed(ran: Ran, is_found_on_stderr: bool) -> anyhow::Result<Vec<u8>> {
    let found = ran.stderr.strip_prefix("wardline-node: ").unwrap_or(&ran.stderr);
    match ran.failure {
        Some(_) if is_found_on_stderr && found.starts_with("Wardline is on this node") => {
            Ok(format!("{found}\n").into_bytes())
        }
        Some(why) if found.is_empty() => anyhow::bail!("{why}"),
        Some(_) => anyhow::bail!("{found}"),
        None => Ok(ran.stdout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_check_finds_is_no_failure() {
        let ran = |stderr: &str, failure: Option<&str>| Ran {
            stdout: b"out".to_vec(),
            stderr: stderr.to_owned(),
            failure: failure.map(str::to_owned),
        };
        let found = "wardline-node: Wardline is on this node:\n/sys/fs/bpf/wardline";
        for (ran, is_check, expected) in [
            (ran("", None), true, Ok("out")),
            (ran("", None), false, Ok("out")),
            (
                ran(found, Some("exit code 1")),
                true,
                Ok("Wardline is on this node:\n/sys/fs/bpf/wardline\n"),
            ),
            (
                ran(found, Some("exit code 1")),
                false,
                Err("Wardline is on this node:\n/sys/fs/bpf/wardline"),
            ),
            (
                ran("wardline-node: no such file", Some("exit code 1")),
                true,
                Err("no such file"),
            ),
            (ran("", Some("exit code 137")), true, Err("exit code 137")),
        ] {
            let printed = printed(ran, is_check).map_err(|error| error.to_string());
            let printed = printed.map(|bytes| String::from_utf8(bytes).unwrap());
            assert_eq!(printed.as_deref().map_err(String::as_str), expected);
        }
    }
}
