// SPDX-License-Identifier: Apache-2.0
//! A JSON Schema for each kind that charts and manifests are made of, as kubeconform wants them. They are made from the
//! `OpenAPI` of the Kubernetes that the lab runs, our CRDs, and CRDs of others; nothing is asked of the internet but the
//! Go modules that `e2e/schemas` pins.
//!
//! A schema is closed: a field that it does not name is refused, as the API server does with strict validation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::command::output_of;
use crate::gobuild;
use crate::layout::Layout;
use crate::progress::step;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Where modules have the definitions of others' kinds that we write.
const OTHERS: [(&str, &str); 4] = [
    (
        "github.com/prometheus-operator/prometheus-operator",
        "example/prometheus-operator-crd",
    ),
    ("github.com/argoproj/argo-cd/v3", "manifests/crds"),
    ("github.com/fluxcd/kustomize-controller", "config/crd/bases"),
    ("github.com/fluxcd/source-controller", "config/crd/bases"),
];
/// Flux's definition of it is in no module that can be had.
pub const UNKNOWN: &str = "HelmRelease";

/// What kubeconform found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub struct Summary {
    /// Objects that are as their schemas say.
    pub valid: usize,
    /// Objects of [`UNKNOWN`].
    pub skipped: usize,
}

/// Holds manifests, YAML with any number of documents, to the schemas.
///
/// # Errors
/// When an object is not as its schema says, or there is none for its kind.
pub fn conform(layout: &Layout, manifests: &str) -> Result<Summary> {
    #[derive(serde::Deserialize)]
    struct Answer {
        summary: Summary,
    }
    // Of another name it would read nothing.
    let file = tempfile::Builder::new().suffix(".yaml").tempfile();
    let file = file.context("failed to create a file")?;
    fs::write(file.path(), manifests).context("failed to write manifests")?;
    let schemas = layout
        .schemas()
        .join("{{.Group}}/{{.ResourceKind}}_{{.ResourceAPIVersion}}.json");
    let mut kubeconform = Command::new(layout.bin("kubeconform"));
    kubeconform.args(["-strict", "-summary", "-output=json", "-skip", UNKNOWN]);
    kubeconform.arg("-schema-location").arg(schemas).arg(file.path());
    let answer = output_of(&mut kubeconform)?;
    let Answer { summary } = serde_json::from_str(&answer).context("failed to read kubeconform's answer")?;
    ensure!(summary.valid > 0, "failed to find an object in the manifests");
    Ok(summary)
}

/// Makes the schemas, where they are missing or old.
pub fn prepare(layout: &Layout) -> Result<()> {
    let folder = layout.schemas();
    let wanted = fingerprint(layout)?;
    let stamp = folder.join(".stamp");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(());
    }
    step("making schemas from the OpenAPI of Kubernetes and from CRDs");
    let modules: BTreeMap<String, PathBuf> = gobuild::schema_modules(layout)?.into_iter().collect();
    let module = |name: &str| {
        let found = modules.get(name);
        found.with_context(|| format!("failed to find module {name} in e2e/schemas/go.mod"))
    };
    let definitions = definitions(module("k8s.io/kubernetes")?)?;
    let mut schemas = of_kubernetes(&definitions);
    schemas.extend(of_crds(&super::folder(layout).join("crds"), &definitions)?);
    for (name, at) in OTHERS {
        schemas.extend(of_crds(&module(name)?.join(at), &definitions)?);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("failed to remove {}", folder.display()))?;
    }
    for (path, schema) in schemas {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(&folder);
        fs::create_dir_all(parent).with_context(|| format!("failed to create {}", parent.display()))?;
        fs::write(&path, schema.to_string()).with_context(|| format!("failed to write {}", path.display()))?;
    }
    fs::write(&stamp, wanted).with_context(|| format!("failed to write {}", stamp.display()))
}

fn fingerprint(layout: &Layout) -> Result<String> {
    let mut digest = Sha256::new();
    let source = layout.workspace().join("e2e");
    let mut files = vec![source.join("schemas/go.sum"), source.join("src/chart/schemas.rs")];
    files.extend(yaml_files(&super::folder(layout).join("crds"))?);
    for path in files {
        digest.update(fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?);
    }
    Ok(format!("{:x}", digest.finalize()))
}

fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))?;
    let paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>();
    let mut paths = paths.with_context(|| format!("failed to read {}", folder.display()))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    Ok(paths)
}

type Definitions = Map<String, Value>;

/// All types of the Kubernetes API, closed.
fn definitions(kubernetes: &Path) -> Result<Definitions> {
    let path = kubernetes.join("api/openapi-spec/swagger.json");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let mut swagger: Value =
        serde_json::from_str(&text).with_context(|| format!("failed to parse {}", path.display()))?;
    let Value::Object(mut definitions) = swagger["definitions"].take() else {
        anyhow::bail!("failed to find definitions in {}", path.display());
    };
    definitions.values_mut().for_each(close);
    // What `OpenAPI` 2 can only call a string.
    for (name, types) in [
        ("io.k8s.apimachinery.pkg.api.resource.Quantity", ["string", "number"]),
        ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", ["string", "integer"]),
    ] {
        definitions.insert(name.into(), json!({"type": types}));
    }
    Ok(definitions)
}

/// Says of each object whose fields are named that it has no others, and what Kubernetes says in words of its own.
fn close(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(close),
        Value::Object(fields) => {
            fields.values_mut().for_each(close);
            let is_true = |key: &str| fields.get(key) == Some(&Value::Bool(true));
            let (is_open, is_either) = (
                is_true("x-kubernetes-preserve-unknown-fields"),
                is_true("x-kubernetes-int-or-string"),
            );
            // A field may be called `properties`, as those of CRDs are: then it holds a schema of its own.
            let names_fields = fields
                .get("properties")
                .is_some_and(|named| named.get("type").is_none_or(Value::is_object));
            if names_fields && !is_open && !fields.contains_key("additionalProperties") {
                fields.insert("additionalProperties".into(), false.into());
            }
            if is_either {
                fields.insert("type".into(), json!(["integer", "string"]));
            }
            if is_true_at(fields, "nullable")
                && let Some(Value::String(one)) = fields.get("type").cloned()
            {
                fields.insert("type".into(), json!([one, "null"]));
            }
        }
        _ => {}
    }
}

fn is_true_at(fields: &Map<String, Value>, key: &str) -> bool {
    fields.get(key) == Some(&Value::Bool(true))
}

/// Where kubeconform looks for the schema of a kind.
fn file(group: &str, version: &str, kind: &str) -> String {
    // Of the core group it names the version.
    let group = if group.is_empty() { version } else { group };
    format!("{group}/{}_{version}.json", kind.to_lowercase())
}

fn of_kubernetes(definitions: &Definitions) -> Vec<(String, Value)> {
    let mut schemas = Vec::new();
    for (name, definition) in definitions {
        let kinds = definition["x-kubernetes-group-version-kind"].as_array();
        // Options of requests are of many groups.
        if let Some([kind]) = kinds.map(Vec::as_slice) {
            let text = |key: &str| kind[key].as_str().unwrap_or_default();
            let file = file(text("group"), text("version"), text("kind"));
            schemas.push((file, with_definitions(json!({"allOf": [reference(name)]}), definitions)));
        }
    }
    schemas
}

fn of_crds(folder: &Path, definitions: &Definitions) -> Result<Vec<(String, Value)>> {
    let mut schemas = Vec::new();
    for path in yaml_files(folder)? {
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        for document in serde_yaml::Deserializer::from_str(&text) {
            let crd = Value::deserialize(document).with_context(|| format!("failed to parse {}", path.display()))?;
            if crd["kind"] != "CustomResourceDefinition" {
                continue;
            }
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (group, kind) = (text(&crd["spec"]["group"]), text(&crd["spec"]["names"]["kind"]));
            for version in crd["spec"]["versions"].as_array().into_iter().flatten() {
                let mut schema = version["schema"]["openAPIV3Schema"].clone();
                close(&mut schema);
                // What every object has; of the metadata the API server knows more than a CRD may say.
                for field in ["apiVersion", "kind"] {
                    schema["properties"][field] = json!({"type": "string"});
                }
                schema["properties"]["metadata"] = reference(META);
                let file = file(&group, &text(&version["name"]), &kind);
                schemas.push((file, with_definitions(schema, definitions)));
            }
        }
    }
    ensure!(!schemas.is_empty(), "failed to find a CRD in {}", folder.display());
    Ok(schemas)
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/definitions/{name}")})
}

/// The schema with all that it refers to.
fn with_definitions(mut schema: Value, definitions: &Definitions) -> Value {
    let mut needed = BTreeSet::new();
    let mut look = references(&schema);
    while let Some(name) = look.pop() {
        if needed.insert(name.clone()) {
            look.extend(definitions.get(&name).map(references).unwrap_or_default());
        }
    }
    let needed: Definitions = needed
        .into_iter()
        .filter_map(|name| definitions.get_key_value(&name))
        .map(|(name, definition)| (name.clone(), definition.clone()))
        .collect();
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["definitions"] = Value::Object(needed);
    schema
}

fn references(schema: &Value) -> Vec<String> {
    match schema {
        Value::Array(items) => items.iter().flat_map(references).collect(),
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(at)) => vec![at.trim_start_matches("#/definitions/").to_owned()],
                _ => references(value),
            })
            .collect(),
        _ => Vec::new(),
    }
}
