// SPDX-License-Identifier: Apache-2.0
//! What the chart becomes as plain manifests, and what an overlay makes of them.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::Value;
use wardline_e2e::chart::{check, manifests};
use wardline_e2e::images::Options;

use crate::layout;

fn objects(manifests: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml::Deserializer::from_str(manifests);
    let objects = documents.map(|document| Value::deserialize(document).context("failed to parse manifests"));
    let objects: Result<Vec<Value>> = objects.collect();
    Ok(objects?.into_iter().filter(|object| !object.is_null()).collect())
}

fn kinds(objects: &[Value]) -> Vec<&str> {
    objects.iter().filter_map(|object| object["kind"].as_str()).collect()
}

#[test]
fn plain_manifests_are_the_chart_in_parts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = Options::named("registry.example.com/wardline", "1.0");
    manifests::write(layout()?, &options, &["apiServer.host=10.0.0.1".into()], folder.path())?;
    let read = |name: &str| objects(&std::fs::read_to_string(folder.path().join(name))?);
    let install = read("install.yaml")?;
    let found = kinds(&install);
    for (kind, count) in [
        ("CustomResourceDefinition", 3),
        ("Namespace", 1),
        ("ServiceAccount", 2),
        ("Deployment", 1),
        ("Dataplane", 0),
        // It would run at once.
        ("Job", 0),
    ] {
        ensure!(
            found.iter().filter(|found| **found == kind).count() == count,
            "{kind}: {found:?}"
        );
    }
    let text = serde_json::to_string(&install)?;
    for part in [
        "registry.example.com/wardline/operator:1.0",
        "registry.example.com/wardline/node:1.0",
        "10.0.0.1",
    ] {
        ensure!(text.contains(part), "no {part} in install.yaml");
    }
    ensure!(!text.contains("Helm") && !text.contains("helm.sh/chart"), "{text}");
    ensure!(kinds(&read("dataplane.yaml")?) == ["Dataplane"]);
    ensure!(read("dataplane.yaml")?[0]["spec"]["apiServer"]["host"] == "10.0.0.1");
    ensure!(kinds(&read("networklogging/networklogging.yaml")?) == ["NetworkLogging"]);

    let mut base = kinds(&objects(&manifests::kustomize(layout()?, folder.path())?)?).len();
    base -= install.len();
    ensure!(
        base == 1,
        "the base is install.yaml and dataplane.yaml, and has {base} more objects than install.yaml"
    );
    Ok(())
}

#[test]
fn an_overlay_changes_the_images_of_operator_and_daemon() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = Options::named("registry.example.com/wardline", "0.0.9");
    manifests::write(layout()?, &options, &[], &folder.path().join("manifests"))?;
    let overlay = check::overlay(layout()?, folder.path())?;
    let objects = objects(&manifests::kustomize(layout()?, &overlay)?)?;
    let of_kind = |kind: &str| {
        objects
            .iter()
            .find(|object| object["kind"] == kind)
            .cloned()
            .unwrap_or_default()
    };
    let operator = &of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0];
    ensure!(
        operator["image"] == "registry.example.com/wardline/operator:0.1.0",
        "{operator}"
    );
    let env = operator["env"].as_array().context("no environment")?;
    let daemon = env.iter().find(|variable| variable["name"] == "WARDLINE_DAEMON_IMAGE");
    ensure!(
        daemon.is_some_and(|daemon| daemon["value"] == "registry.example.com/wardline/node:0.1.0"),
        "{daemon:?}"
    );
    ensure!(of_kind("Dataplane")["spec"]["policy"]["enforcement"] == "Audit");
    ensure!(of_kind("NetworkLogging")["spec"]["cluster"]["deny"]["log"] == true);
    Ok(())
}
