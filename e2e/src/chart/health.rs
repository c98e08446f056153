// SPDX-License-Identifier: Apache-2.0
//! What Argo CD makes of an object: the scripts of `deploy/argocd/health.yaml`, run by the Lua that it uses itself.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command::output_of;
use crate::layout::Layout;

/// Where the scripts are, in the workspace.
const FILE: &str = "deploy/argocd/health.yaml";

/// Healthy, Progressing or Degraded, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// As Argo CD spells it.
    pub status: String,
    /// Empty where the script gives none.
    pub message: String,
}

/// What the script for the object's kind says of it.
///
/// # Errors
/// When there is no script for its kind, or it fails.
pub fn of(layout: &Layout, object: &Value) -> Result<Health> {
    let path = layout.workspace().join(FILE);
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let config: Value = serde_yaml::from_str(&text).with_context(|| format!("failed to parse {}", path.display()))?;
    let key = format!(
        "resource.customizations.health.wardline.io_{}",
        object["kind"].as_str().unwrap_or_default()
    );
    let script = config["data"][&key].as_str();
    let script = script.with_context(|| format!("{FILE} has no {key}"))?;
    let program = format!(
        "obj = {}\nlocal function health()\n{script}\nend\nlocal hs = health()\nprint(hs.status)\nprint(hs.message or '')\n",
        literal(object)
    );
    let file = tempfile::NamedTempFile::new().context("failed to create a file")?;
    fs::write(file.path(), program).context("failed to write a script")?;
    let printed = output_of(Command::new(layout.bin("glua")).arg(file.path()))?;
    let (status, message) = printed.split_once('\n').context("the script said nothing")?;
    Ok(Health {
        status: status.to_owned(),
        message: message.trim_end().to_owned(),
    })
}

/// The object as Lua writes it; what is null is not there.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "nil".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(literal).collect();
            format!("{{{}}}", items.join(", "))
        }
        Value::Object(fields) => {
            let mut table = String::from("{");
            for (key, value) in fields {
                let _ = write!(table, "[{}] = {}, ", quoted(key), literal(value));
            }
            table + "}"
        }
    }
}

fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}
