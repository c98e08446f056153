// SPDX-License-Identifier: Apache-2.0
//! The running cluster, as tests and the demo see it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::{Client, discovery};
use serde::Deserialize as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::control_plane::admin_client;
use crate::layout::{Layout, NODES, NodeSpec};
use crate::node;
use crate::records::{self, Record};

/// The namespace that Wardline runs in.
pub const SYSTEM_NAMESPACE: &str = "wardline-system";
/// Where the daemons write, unless the Dataplane says otherwise.
const POLICY_LOG: &str = "/var/log/network/policy_action.log";
/// The port of the daemons' metrics, on the nodes' addresses.
const METRICS_PORT: u16 = 9470;

/// A connection to the running lab.
#[derive(Clone)]
pub struct Lab {
    layout: Layout,
    client: Client,
}

impl std::fmt::Debug for Lab {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Lab")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl Lab {
    /// Connects as the administrator.
    ///
    /// # Errors
    /// When the lab is not up: tests that need it fail, they never skip themselves.
    pub async fn connect() -> Result<Self> {
        let layout = Layout::of_workspace();
        let client = admin_client(&layout).await?;
        client
            .apiserver_version()
            .await
            .context("failed to reach the lab: is it up? `make lab` starts it")?;
        Ok(Self { layout, client })
    }

    /// A client with the administrator's rights.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where the lab's files are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Both nodes.
    pub fn nodes(&self) -> [LabNode<'_>; 2] {
        NODES.each_ref().map(|spec| LabNode { lab: self, spec })
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<LabNode<'_>> {
        let spec = NODES.iter().find(|node| node.name == name);
        let spec = spec.with_context(|| format!("failed to find node {name}: there are node1 and node2"))?;
        Ok(LabNode { lab: self, spec })
    }

    /// Applies YAML documents of any kind, as `kubectl apply --server-side` does. Objects that name no namespace go
    /// into `namespace`.
    pub async fn apply(&self, namespace: &str, yaml: &str) -> Result<()> {
        for object in parse(yaml)? {
            let types = object
                .types
                .clone()
                .context("failed to apply an object: it has no apiVersion and kind")?;
            let name = object
                .metadata
                .name
                .clone()
                .context("failed to apply an object: it has no name")?;
            let api = self
                .api_for(&types, object.metadata.namespace.as_deref().unwrap_or(namespace))
                .await?;
            api.patch(
                &name,
                &PatchParams::apply("wardline-e2e").force(),
                &Patch::Apply(&object),
            )
            .await
            .with_context(|| format!("failed to apply {} {name}", types.kind))?;
        }
        Ok(())
    }

    /// Deletes an object of any kind; it is no error if it is not there.
    pub async fn delete(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let types = TypeMeta {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        };
        match self
            .api_for(&types, namespace)
            .await?
            .delete(name, &kube::api::DeleteParams::default())
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("failed to delete {kind} {name}")),
        }
    }

    /// Changes an object of any kind by a merge patch.
    pub async fn patch(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: &serde_json::Value,
    ) -> Result<()> {
        let types = TypeMeta {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        };
        let api = self.api_for(&types, namespace).await?;
        let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.with_context(|| format!("failed to patch {kind} {name}"))?;
        Ok(())
    }

    /// Reads an object of any kind.
    pub async fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<DynamicObject> {
        let types = TypeMeta {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        };
        let object = self.api_for(&types, namespace).await?.get(name).await;
        object.with_context(|| format!("failed to get {kind} {name}"))
    }

    /// Reads all objects of a kind in a namespace.
    pub async fn list(&self, api_version: &str, kind: &str, namespace: &str) -> Result<Vec<DynamicObject>> {
        let types = TypeMeta {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        };
        let objects = self
            .api_for(&types, namespace)
            .await?
            .list(&ListParams::default())
            .await;
        Ok(objects.with_context(|| format!("failed to list {kind}"))?.items)
    }

    async fn api_for(&self, types: &TypeMeta, namespace: &str) -> Result<Api<DynamicObject>> {
        let kind = GroupVersionKind::try_from(types).with_context(|| format!("failed to read kind {}", types.kind))?;
        let (resource, capabilities) = discovery::pinned_kind(&self.client, &kind)
            .await
            .with_context(|| format!("failed to find kind {} {}", types.api_version, types.kind))?;
        Ok(match capabilities.scope {
            discovery::Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            discovery::Scope::Namespaced => Api::namespaced_with(self.client.clone(), namespace, &resource),
        })
    }

    /// The policy records of both nodes, each node's in the order of its file.
    pub fn records(&self) -> Result<Vec<Record>> {
        let mut all = Vec::new();
        for node in self.nodes() {
            all.extend(node.records()?);
        }
        Ok(all)
    }
}

/// A node of the running lab.
#[derive(Debug, Clone, Copy)]
pub struct LabNode<'a> {
    pub lab: &'a Lab,
    /// Its names and addresses.
    pub spec: &'static NodeSpec,
}

impl LabNode<'_> {
    /// The file that its daemon writes to.
    pub fn policy_log(&self) -> PathBuf {
        self.lab.layout.node_path(self.spec, POLICY_LOG)
    }

    /// The records of its policy log and of the files it was rotated to, the oldest first.
    pub fn records(&self) -> Result<Vec<Record>> {
        let current = self.policy_log();
        let mut text = String::new();
        for rotated in self.rotated()? {
            text += &fs::read_to_string(rotated).unwrap_or_default();
        }
        // Before the first record there is no file.
        text += &fs::read_to_string(&current).unwrap_or_default();
        records::parse(&text).with_context(|| format!("failed to read the policy log of {}", self.spec.name))
    }

    /// Removes the files that its policy log was rotated to, so that nobody reads them again and again.
    pub fn forget_rotated_records(&self) -> Result<()> {
        for path in self.rotated()? {
            fs::remove_file(&path).with_context(|| format!("failed to remove {}", path.display()))?;
        }
        Ok(())
    }

    /// The files that its policy log was rotated to, the oldest first: their names end with the time.
    fn rotated(&self) -> Result<Vec<PathBuf>> {
        let current = self.policy_log();
        let folder = current
            .parent()
            .context("failed to find the folder of the policy log")?;
        let entries = fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))?;
        let mut rotated: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.to_string_lossy().contains("policy_action-"))
            .collect();
        rotated.sort();
        Ok(rotated)
    }

    /// Runs a command in the node's namespaces.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        node::enter(&self.lab.layout, self.spec, args)
    }

    /// The pid of the node's daemon, in the node's own pid namespace. Those who observe run the same program beside it.
    pub fn daemon_pid(&self) -> Result<u32> {
        let programs = self.run(&["busybox", "pidof", "wardline-node"]);
        let programs = programs.with_context(|| format!("failed to find the daemon on {}", self.spec.name))?;
        let mut daemons = Vec::new();
        for pid in programs.split_ascii_whitespace() {
            // Who observed and has gone meanwhile is not the daemon.
            let arguments = self.run(&["busybox", "cat", &format!("/proc/{pid}/cmdline")]);
            if arguments.is_ok_and(|arguments| arguments.split('\0').any(|argument| argument == "--config")) {
                daemons.push(pid);
            }
        }
        match daemons[..] {
            [pid] => Ok(pid.parse()?),
            _ => bail!("failed to find one daemon on {}: {daemons:?}", self.spec.name),
        }
    }

    /// Kills the node's daemon without warning, and returns the pid that it had.
    pub fn kill_daemon(&self) -> Result<u32> {
        let pid = self.daemon_pid()?;
        self.run(&["busybox", "kill", "-9", &pid.to_string()])?;
        Ok(pid)
    }

    /// The daemon's metrics.
    pub async fn metrics(&self) -> Result<Metrics> {
        metrics_of(&format!("{}:{METRICS_PORT}", self.spec.address)).await
    }
}

impl<'a> LabNode<'a> {
    /// Stops a process of the node until the result is dropped.
    pub fn stop(self, pid: &str) -> Result<Stopped<'a>> {
        self.run(&["busybox", "kill", "-STOP", pid])?;
        Ok(Stopped {
            node: self,
            pid: pid.to_owned(),
        })
    }
}

/// A process that does not run until this is dropped.
#[derive(Debug)]
pub struct Stopped<'a> {
    node: LabNode<'a>,
    pid: String,
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let _ = self.node.run(&["busybox", "kill", "-CONT", &self.pid]);
    }
}

/// What is served at an address as metrics.
pub async fn metrics_of(address: &str) -> Result<Metrics> {
    let text = tokio::time::timeout(Duration::from_secs(5), http_get(address, "/metrics"))
        .await
        .with_context(|| format!("failed to read http://{address}/metrics: no answer within 5 s"))?
        .with_context(|| format!("failed to read http://{address}/metrics"))?;
    Ok(Metrics(text))
}

/// Metrics in the text format of Prometheus.
#[derive(Debug, Clone)]
pub struct Metrics(String);

impl Metrics {
    /// The sum of a metric's samples whose labels include all of `labels`, such as `direction="ingress"`; none if there
    /// is no such sample.
    pub fn sum(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let samples: Vec<f64> = self
            .0
            .lines()
            .filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                let starts = rest.starts_with(['{', ' ']);
                let value = rest.rsplit_once(' ')?.1.parse().ok()?;
                (starts && labels.iter().all(|label| rest.contains(label))).then_some(value)
            })
            .collect();
        (!samples.is_empty()).then(|| samples.iter().sum())
    }

    /// The lines, for messages.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// HTTP/1.0, so that the answer ends with the connection and comes in one piece.
pub(crate) async fn http_get(address: &str, path: &str) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no body")?;
    ensure!(
        head.split(' ').nth(1) == Some("200"),
        "the answer is {}",
        head.lines().next().unwrap_or_default()
    );
    Ok(body.to_owned())
}

fn parse(yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut objects = Vec::new();
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let value = serde_yaml::Value::deserialize(document).context("failed to parse YAML")?;
        if !value.is_null() {
            objects.push(serde_yaml::from_value(value).context("failed to read an object")?);
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::{Metrics, parse};

    #[test]
    fn documents_are_told_apart() {
        let objects = parse("---\napiVersion: v1\nkind: A\n---\n---\napiVersion: v1\nkind: B\n").unwrap();
        let kinds: Vec<String> = objects.into_iter().map(|object| object.types.unwrap().kind).collect();
        assert_eq!(kinds, ["A", "B"]);
    }

    #[test]
    fn samples_are_summed_by_labels() {
        let metrics = Metrics("# HELP x y\nx{a=\"1\",b=\"2\"} 3\nx{a=\"1\",b=\"3\"} 4\nxy 9\nz 1\n".to_owned());
        assert_eq!(metrics.sum("x", &[]), Some(7.0));
        assert_eq!(metrics.sum("x", &["b=\"3\""]), Some(4.0));
        assert_eq!(metrics.sum("x", &["b=\"4\""]), None);
        assert_eq!(metrics.sum("z", &[]), Some(1.0));
        assert_eq!(metrics.sum("w", &[]), None);
    }
}
