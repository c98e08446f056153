// SPDX-License-Identifier: Apache-2.0
//! What is applied once more stays as it is: plain manifests, and the chart.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::Value;
use wardline_e2e::chart::{health, manifests};
use wardline_e2e::cluster::{Lab, SYSTEM_NAMESPACE};
use wardline_e2e::images::Options;
use wardline_e2e::layout::NODES;
use wardline_e2e::progress::wait_until;
use wardline_e2e::wardline;

/// How long nothing may be written for the cluster to count as settled.
const SETTLED: Duration = Duration::from_millis(600);

/// Objects by kind and name, with their generation and resource version.
type Versions = BTreeMap<String, (Option<i64>, String)>;

/// Installs by plain manifests where nothing is, and sees that applying them again changes nothing; then hands what is
/// there over to Helm. Returns with Wardline ready.
pub async fn installed_by_manifests(lab: &Lab, values: &[String]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (options, values) = options(values)?;
    manifests::write(lab.layout(), &options, &values, folder.path())?;
    let mut applied = objects(folder.path())?;
    applied.extend(owned());

    // The definitions are there already, by Helm, which leaves them.
    let server_side = ["--server-side", "--force-conflicts"];
    wardline::install_manifests(lab, folder.path(), &server_side).await?;
    unchanged(lab, &applied, "kubectl apply --server-side", || {
        apply(lab, folder.path(), &server_side)
    })
    .await?;
    is_healthy_to_argo_cd(lab).await?;

    // Later upgrades by Helm change what kubectl has set.
    let take_over = ["--take-ownership", "--force-conflicts"];
    let values: Vec<String> = values.into_iter().chain(images(&options)).collect();
    wardline::upgrade_chart(lab, &values, &take_over)?;
    unchanged(lab, &applied, "helm upgrade", || {
        wardline::upgrade_chart(lab, &values, &[])
    })
    .await
}

fn apply(lab: &Lab, folder: &Path, arguments: &[&str]) -> Result<()> {
    for file in ["install.yaml", "dataplane.yaml"] {
        wardline::apply(lab, &folder.join(file), arguments)?;
    }
    Ok(())
}

/// The names of images, and the other values.
fn options(values: &[String]) -> Result<(Options, Vec<String>)> {
    let value = |key: &str| {
        let found = values.iter().find_map(|value| value.strip_prefix(&format!("{key}=")));
        found.with_context(|| format!("{key} is not set"))
    };
    let prefix = value("operator.image.repository")?.trim_end_matches("/operator");
    let options = Options::named(prefix, value("operator.image.tag")?);
    let others = values.iter().filter(|value| !value.contains(".image."));
    Ok((options, others.cloned().collect()))
}

fn images(options: &Options) -> Vec<String> {
    let of = |whose: &str, image: &str| {
        [
            format!("{whose}.image.repository={}/{image}", options.prefix),
            format!("{whose}.image.tag={}", options.version),
        ]
    };
    [of("operator", "operator"), of("daemon", "node")].concat()
}

/// What an API server knows an object by.
#[derive(Debug)]
struct Object {
    api_version: String,
    kind: String,
    namespace: String,
    /// Empty for all of its kind in the namespace.
    name: String,
}

/// The objects of the manifests.
fn objects(folder: &Path) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for file in ["install.yaml", "dataplane.yaml"] {
        let text = fs::read_to_string(folder.join(file))?;
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object = Value::deserialize(document).context("failed to parse manifests")?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            if object.is_object() {
                objects.push(Object {
                    api_version: text(&object["apiVersion"]),
                    kind: text(&object["kind"]),
                    namespace: text(&object["metadata"]["namespace"]),
                    name: text(&object["metadata"]["name"]),
                });
            }
        }
    }
    ensure!(objects.len() > 10, "{objects:?}");
    Ok(objects)
}

/// What the operator makes of them.
fn owned() -> Vec<Object> {
    let object = |api_version: &str, kind: &str, name: &str| Object {
        api_version: api_version.into(),
        kind: kind.into(),
        namespace: SYSTEM_NAMESPACE.into(),
        name: name.into(),
    };
    vec![
        object("apps/v1", "DaemonSet", "wardline-node"),
        object("v1", "ConfigMap", ""),
    ]
}

/// Does something, and fails if it changed an object.
async fn unchanged(lab: &Lab, objects: &[Object], what: &str, does: impl Fn() -> Result<()>) -> Result<()> {
    let before = settled(lab, objects).await?;
    ensure!(before.len() >= objects.len(), "{before:?}");
    does().with_context(|| format!("failed to do {what} once more"))?;
    let after = settled(lab, objects).await?;
    let changed: Vec<_> = before
        .iter()
        .filter(|(key, version)| after.get(*key) != Some(version))
        .collect();
    ensure!(
        changed.is_empty() && before.len() == after.len(),
        "{what} once more changed {changed:?}"
    );
    Ok(())
}

/// The versions, when nobody writes any more: statuses follow a change.
async fn settled(lab: &Lab, objects: &[Object]) -> Result<Versions> {
    let mut last = Versions::new();
    wait_until("objects to settle", Duration::from_secs(30), async || {
        tokio::time::sleep(SETTLED).await;
        let now = versions(lab, objects).await?;
        let same = now == last;
        last = now;
        Ok(same.then(|| last.clone()))
    })
    .await
}

async fn versions(lab: &Lab, objects: &[Object]) -> Result<Versions> {
    let mut versions = Versions::new();
    for object in objects {
        let Object {
            api_version,
            kind,
            namespace,
            name,
        } = object;
        let found = if name.is_empty() {
            lab.list(api_version, kind, namespace).await?
        } else {
            vec![lab.get(api_version, kind, namespace, name).await?]
        };
        for found in found {
            let meta = found.metadata;
            let key = format!("{kind} {}", meta.name.unwrap_or_default());
            // The controller manager says in their status what it thinks of their expressions, when it comes to it.
            let is_written_by_others = kind == "ValidatingAdmissionPolicy";
            let version = meta.resource_version.filter(|_| !is_written_by_others);
            versions.insert(key, (meta.generation, version.unwrap_or_default()));
        }
    }
    Ok(versions)
}

/// The scripts of deploy/argocd, over statuses that the operator and the daemons wrote.
async fn is_healthy_to_argo_cd(lab: &Lab) -> Result<()> {
    let nodes = NODES.iter().map(|node| ("DataplaneNode", node.name));
    for (kind, name) in nodes.chain([("Dataplane", "default")]) {
        let object = lab.get("wardline.io/v1alpha1", kind, "", name).await?;
        let object = serde_json::to_value(&object).context("failed to read an object")?;
        let found = health::of(lab.layout(), &object)?;
        ensure!(
            found.status == "Healthy",
            "{kind} {name} is {found:?} to Argo CD: {object}"
        );
    }
    Ok(())
}
