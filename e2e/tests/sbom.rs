// SPDX-License-Identifier: Apache-2.0
//! What images are said to be made of: valid `CycloneDX`, complete, and nothing that only tests or builds need.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use jsonschema::Retrieve;
use serde_json::Value;
use wardline_e2e::gobuild;
use wardline_e2e::layout::Layout;
use wardline_e2e::sbom::{self, Contents};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Schemas that the one of `CycloneDX` refers to lie beside it.
struct Beside(PathBuf);

impl Retrieve for Beside {
    fn retrieve(
        &self,
        uri: &jsonschema::Uri<String>,
    ) -> std::result::Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let name = uri.path().as_str().rsplit('/').next().unwrap_or_default();
        // The module spells this one otherwise.
        let name = name.replace("jsf-0.82.schema.", "jsf-0.82.schemax.");
        Ok(serde_json::from_str(&std::fs::read_to_string(self.0.join(name))?)?)
    }
}

fn node() -> Result<Value> {
    let contents = Contents {
        name: "registry.example.com/wardline/node",
        version: "1.0",
        binaries: &["wardline-node", "wardline-cni"],
        target: TARGET,
    };
    sbom::describe(&Layout::of_workspace(), contents)
}

#[test]
fn the_document_is_valid_cyclonedx() -> Result<()> {
    let layout = Layout::of_workspace();
    let modules = gobuild::schema_modules(&layout)?;
    let folder = modules.into_iter().find(|(path, _)| path.ends_with("/cyclonedx-go"));
    let folder = folder.context("e2e/schemas has no cyclonedx-go")?.1.join("schema");
    let schema = serde_json::from_str(&std::fs::read_to_string(folder.join("bom-1.6.schema.json"))?)?;
    let validator = jsonschema::options().with_retriever(Beside(folder)).build(&schema)?;
    let mut document = node()?;
    let faults: Vec<String> = validator
        .iter_errors(&document)
        .map(|fault| fault.to_string())
        .collect();
    ensure!(faults.is_empty(), "{faults:?}");
    document["components"][0]["type"] = "crate".into();
    ensure!(!validator.is_valid(&document), "the schema takes anything");
    Ok(())
}

#[test]
fn it_names_what_is_linked_in_and_nothing_else() -> Result<()> {
    let document = node()?;
    let components = document["components"].as_array().context("no components")?;
    let names: BTreeSet<&str> = components
        .iter()
        .filter_map(|component| component["name"].as_str())
        .collect();
    for linked in [
        "wardline-node",
        "wardline-cni",
        "wardline-bpf",
        "libbpf-sys",
        "libbpf",
        "elfutils",
        "zlib",
        "glibc",
        "kube",
        "tokio",
    ] {
        ensure!(names.contains(linked), "no {linked} in {names:?}");
    }
    // Of tests, of builds, and what runs in the compiler.
    for other in [
        "proptest",
        "tempfile",
        "bindgen",
        "libbpf-cargo",
        "serde_derive",
        "wardline-e2e",
    ] {
        ensure!(!names.contains(other), "{other} is in {names:?}");
    }
    for component in components {
        let purl = component["purl"].as_str().unwrap_or_default();
        let is_ours = component["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("wardline-"));
        let from_registry = purl.starts_with("pkg:cargo/") && !is_ours;
        ensure!(
            !from_registry || component["hashes"][0]["content"].is_string(),
            "{component}"
        );
        ensure!(
            component["type"] == "application" || component["licenses"].is_array(),
            "{component}"
        );
    }
    Ok(())
}
