// SPDX-License-Identifier: Apache-2.0
//! `wardline sysdump`: what whoever is asked for help needs is in it, and no secret is.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wardline_cli::Outcome;
use wardline_e2e::namespace::{TestNamespace, with_namespace};
use wardline_e2e::progress::wait_until;
use wardline_e2e::traffic::Protocol;
use wardline_e2e::{layout, logging};

use crate::wardline::{account_with, run, says, without_account};
use crate::{WEB_TAKES_FRIENDS, of_client};

const PATIENCE: Duration = Duration::from_mins(1);
/// Nowhere in an archive.
const SECRET: &str = "hunter2-secret";

/// A secret wherever the API server takes one.
fn secretive(namespace: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Secret
metadata: {{name: password, annotations: {{example.com/a: {SECRET}}}}}
stringData: {{password: {SECRET}}}
---
apiVersion: v1
kind: Pod
metadata:
  name: secretive
  labels: {{app: secretive}}
  annotations: {{example.com/token: {SECRET}, wardline.io/enable-logging: {SECRET}}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  hostname: secretive
  hostAliases: [{{ip: 192.0.2.1, hostnames: [{SECRET}]}}]
  tolerations: [{{key: {SECRET}, operator: Exists}}]
  containers:
    - name: c
      image: {image}
      imagePullPolicy: Never
      command: [/pause]
      args: [{SECRET}]
      workingDir: /
      env: [{{name: PASSWORD, value: {SECRET}}}, {{name: P, valueFrom: {{secretKeyRef: {{name: password, key: password}}}}}}]
      envFrom: [{{prefix: {prefix}, secretRef: {{name: password}}}}]
      readinessProbe: {{exec: {{command: [{SECRET}]}}}}
      volumeMounts: [{{name: v, mountPath: /{SECRET}}}]
  volumes: [{{name: v, secret: {{secretName: password}}}}, {{name: {SECRET}, emptyDir: {{}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: secretive, annotations: {{example.com/a: {SECRET}}}}}
spec: {{type: ExternalName, externalName: {SECRET}.example.com}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: secretive, annotations: {{example.com/a: {SECRET}}}}}
spec: {{podSelector: {{matchLabels: {{app: secretive}}}}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, annotations: {{example.com/a: {SECRET}}}}}
",
        image = layout::PAUSE_IMAGE,
        prefix = SECRET.replace('-', "_"),
    )
}

/// The files of an archive, without its folder.
fn unpacked(file: &Path) -> Result<BTreeMap<String, String>> {
    let archive = std::fs::File::open(file).with_context(|| format!("failed to open {}", file.display()))?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    let mut files = BTreeMap::new();
    for entry in archive.entries().context("failed to read the archive")? {
        let mut entry = entry.context("failed to read the archive")?;
        let path = entry.path()?.display().to_string();
        let (_, name) = path.split_once('/').context("a file is in no folder")?;
        let mut text = String::new();
        entry
            .read_to_string(&mut text)
            .with_context(|| format!("failed to read {name}"))?;
        files.insert(name.to_owned(), text);
    }
    Ok(files)
}

#[tokio::test]
async fn it_holds_what_is_needed_and_no_secret() -> Result<()> {
    with_namespace("sysdump", async |namespace: &TestNamespace| {
        let _logged = logging::on(&namespace.lab).await?;
        namespace.server("web", "node1").await?;
        namespace.client("foe1", "node1").await?;
        namespace.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.apply(&secretive(&namespace.name)).await?;
        namespace.until_reach("foe1", "web", false).await?;
        let attempt = namespace.attempt("foe1", "web", Protocol::Tcp).await?;
        ensure!(attempt.timed_out(), "{attempt:?}");
        let denied = |records: &[wardline_e2e::records::Record]| !of_client(records, "foe1").is_empty();
        namespace.records_until("the record of a deny", denied).await?;

        let account = account_with(namespace, "sysdump").await?;
        let dumped = dump(namespace, &account).await;
        without_account(namespace, "sysdump").await?;
        let files = dumped?;
        for (name, text) in &files {
            ensure!(!text.contains(SECRET), "there is a secret in {name}");
        }
        check(namespace, &files)
    })
    .await
}

/// As somebody who has the rights that docs/rbac/sysdump.yaml grants.
async fn dump(namespace: &TestNamespace, account: &str) -> Result<BTreeMap<String, String>> {
    let folder = tempfile::tempdir().context("failed to make a folder")?;
    wait_until("an archive that has all parts", PATIENCE, async || {
        let file = folder.path().join("dump.tar.gz");
        let _ = std::fs::remove_file(&file);
        let arguments = format!("sysdump --as {account} --since 1h --output {}", file.display());
        let (text, outcome) = run(&namespace.lab, &arguments).await?;
        let files = unpacked(&file)?;
        let errors = files.get("errors.txt").map_or("", String::as_str);
        ensure!(outcome == Outcome::Well && errors.is_empty(), "{text}{errors}");
        Ok(Some(files))
    })
    .await
}

fn check(namespace: &TestNamespace, files: &BTreeMap<String, String>) -> Result<()> {
    let text = |name: &str| {
        files
            .get(name)
            .with_context(|| format!("there is no {name}: {:?}", files.keys()))
    };
    for node in ["node1", "node2"] {
        let part = |name: &str| text(&format!("nodes/{node}/{name}"));
        says(part("metrics.txt")?, "wardline_packets_total{")?;
        says(part("kernel.txt")?, "everything that Wardline needs is there")?;
        for found in [
            "Wardline is on this node:",
            "/etc/cni/net.d/",
            "/sys/fs/bpf/wardline",
            "/run/wardline/",
        ] {
            says(part("on-node.txt")?, found)?;
        }
    }
    says(
        text("nodes/node1/policy-log.jsonl")?,
        &format!("\"pod_namespace\":\"{}\"", namespace.name),
    )?;
    says(text("status.txt")?, "node2")?;
    let messages = |of: &str| {
        files
            .keys()
            .filter(|name| name.ends_with(&format!("/{of}.log")))
            .count()
    };
    ensure!(
        messages("wardline-node") == 2 && messages("wardline-operator") >= 1,
        "{:?}",
        files.keys()
    );

    let list = |name: &str| -> Result<Vec<Value>> {
        serde_json::from_str(text(name)?).with_context(|| format!("failed to read {name}"))
    };
    let of_ours = |objects: Vec<Value>, name: &str| {
        let is = |object: &Value| {
            object["metadata"]["name"] == name && object["metadata"]["namespace"] == namespace.name.as_str()
        };
        objects
            .into_iter()
            .find(is)
            .with_context(|| format!("there is no {name}"))
    };
    let pod = of_ours(list("pods.json")?, "secretive")?;
    ensure!(
        pod["metadata"]["labels"]["app"] == "secretive" && pod["spec"]["nodeName"] == "node1",
        "{pod}"
    );
    let policy = of_ours(list("networkpolicies.json")?, "web-takes-friends")?;
    ensure!(policy["spec"]["ingress"][0]["ports"][0]["port"] == 8080, "{policy}");
    of_ours(list("services.json")?, "secretive")?;
    for (name, least) in [
        ("dataplanes.json", 1),
        ("networkloggings.json", 1),
        ("dataplanenodes.json", 2),
        ("nodes.json", 2),
        ("namespaces.json", 3),
        ("endpointslices.json", 1),
        ("events.json", 1),
        ("wardline/daemonsets.json", 1),
        ("wardline/deployments.json", 1),
        ("wardline/controllerrevisions.json", 1),
        ("wardline/leases.json", 1),
        ("wardline/configurations.json", 1),
        ("wardline/pods.json", 3),
    ] {
        let objects = list(name)?;
        ensure!(objects.len() >= least, "{name} has {} objects", objects.len());
    }
    let manifest: Value = serde_json::from_str(text("manifest.json")?).context("failed to read the manifest")?;
    let listed = manifest["files"].as_array().map(Vec::len);
    ensure!(listed == Some(files.len() - 1), "{listed:?} of {} files", files.len());
    Ok(())
}
