// SPDX-License-Identifier: Apache-2.0
//! docs/values.md: each value of the chart, its default and what it takes, from `values.yaml` with its comments and
//! `values.schema.json`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use serde_yaml::{Mapping, Value as Yaml};

use crate::layout::Layout;

const PAGE: &str = "docs/values.md";
const HEAD: &str = "# Values of the chart

```
  values.yaml (defaults) <-- --values FILE <-- --set KEY=VALUE
        |
        v   held to values.schema.json
  charts/wardline/templates --> operator, RBAC, Dataplane, NetworkLogging, monitoring
```

Written by `make values` from `charts/wardline/values.yaml` and its schema. What is set most stands in
[operations.md](operations.md#install).
";

/// One value, as the page shows it.
#[derive(Debug)]
struct Row {
    key: String,
    default: String,
    takes: String,
    about: String,
}

/// Writes the page.
pub fn write(layout: &Layout) -> Result<()> {
    let path = layout.workspace().join(PAGE);
    fs::write(&path, page(layout)?).with_context(|| format!("failed to write {}", path.display()))
}

/// # Errors
/// When the page is not what the chart says.
pub fn check(layout: &Layout) -> Result<()> {
    let found = fs::read_to_string(layout.workspace().join(PAGE)).unwrap_or_default();
    ensure!(
        found == page(layout)?,
        "{PAGE} is not what the chart says: run `make values`"
    );
    Ok(())
}

fn page(layout: &Layout) -> Result<String> {
    let read = |name: &str| {
        let path = super::folder(layout).join(name);
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
    };
    let values = read("values.yaml")?;
    let schema = serde_json::from_str(&read("values.schema.json")?).context("failed to parse values.schema.json")?;
    tables(&values, &schema)
}

/// A table for each value at the top.
fn tables(values: &str, schema: &Value) -> Result<String> {
    let comments = comments(values);
    // In the order of the file.
    let values: Mapping = serde_yaml::from_str(values).context("failed to parse values.yaml")?;
    let mut page = HEAD.to_owned();
    for (name, value) in &values {
        let name = name.as_str().context("a key of values.yaml is no text")?;
        let mut rows = Vec::new();
        let own = schema["properties"].get(name);
        let own = own.with_context(|| format!("values.schema.json has no {name}"))?;
        collect(name, value, resolve(own, schema), schema, &comments, &mut rows)?;
        let _ = writeln!(page, "\n## {name}\n");
        if let Some(comment) = comments.get(name).filter(|_| rows[0].key != name) {
            let _ = writeln!(page, "{}\n", linked(comment));
        }
        page.push_str("| value | default | takes | |\n|---|---|---|---|\n");
        for row in rows {
            let about = linked(&row.about);
            let _ = writeln!(page, "| `{}` | `{}` | {} | {about} |", row.key, row.default, row.takes);
        }
    }
    Ok(page)
}

fn collect(
    key: &str,
    value: &Yaml,
    schema: &Value,
    root: &Value,
    comments: &BTreeMap<String, String>,
    rows: &mut Vec<Row>,
) -> Result<()> {
    if let (Some(properties), Yaml::Mapping(fields)) = (schema["properties"].as_object(), value) {
        let of_schema: Vec<&String> = properties
            .keys()
            .filter(|name| !fields.contains_key(name.as_str()))
            .collect();
        ensure!(of_schema.is_empty(), "values.yaml has no {key}.{}", of_schema[0]);
        for (name, value) in fields {
            let name = name.as_str().context("a key of values.yaml is no text")?;
            let at = format!("{key}.{name}");
            let schema = properties.get(name);
            let schema = schema.with_context(|| format!("values.schema.json has no {at}"))?;
            collect(&at, value, resolve(schema, root), root, comments, rows)?;
        }
        return Ok(());
    }
    let about = comments.get(key);
    rows.push(Row {
        key: key.to_owned(),
        default: serde_json::to_string(value)
            .with_context(|| format!("failed to write {key} as JSON"))?
            .replace('|', "\\|"),
        takes: takes(schema, root).with_context(|| format!("failed to say what {key} takes"))?,
        about: about
            .with_context(|| format!("values.yaml has no comment above {key}"))?
            .clone(),
    });
    Ok(())
}

fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let at = schema["$ref"].as_str().and_then(|at| at.strip_prefix('#'));
    at.and_then(|at| root.pointer(at)).unwrap_or(schema)
}

/// A type in words.
fn takes(schema: &Value, root: &Value) -> Result<String> {
    if let Some(choices) = schema["enum"].as_array() {
        let choices: Vec<String> = choices
            .iter()
            .map(|choice| format!("`{}`", choice.as_str().unwrap_or_default()))
            .collect();
        return Ok(choices.join(", "));
    }
    Ok(match schema["type"].as_str() {
        Some("integer") => match (schema["minimum"].as_i64(), schema["maximum"].as_i64()) {
            (Some(least), Some(most)) => format!("{least} to {most}"),
            (Some(least), None) => format!("integer from {least}"),
            _ => "integer".into(),
        },
        Some("array") => format!("list of {}s", takes(resolve(&schema["items"], root), root)?),
        Some(plain @ ("boolean" | "string" | "object")) => plain.into(),
        other => bail!("no word for the type {other:?}"),
    })
}

/// The comment right above each key, by the key's path.
fn comments(values: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut path: Vec<(usize, &str)> = Vec::new();
    let mut above: Vec<&str> = Vec::new();
    for line in values.lines() {
        let text = line.trim_start();
        let depth = line.len() - text.len();
        if let Some(comment) = text.strip_prefix('#') {
            above.push(comment.trim());
        } else if let Some((key, _)) = text.split_once(':') {
            path.retain(|(at, _)| *at < depth);
            path.push((depth, key));
            let names: Vec<&str> = path.iter().map(|(_, name)| *name).collect();
            if !above.is_empty() {
                found.insert(names.join("."), above.join(" "));
            }
            above.clear();
        } else {
            above.clear();
        }
    }
    found
}

/// Pages of docs/ that a comment names become links.
fn linked(comment: &str) -> String {
    let link = |word: &str| {
        let page = word.strip_prefix("docs/")?;
        let end = page.trim_end_matches(['.', ',', ')']);
        let name = end.split('#').next()?;
        Some(format!("[{name}]({end}){}", &page[end.len()..]))
    };
    let words = comment
        .split(' ')
        .map(|word| link(word).unwrap_or_else(|| word.to_owned()));
    words.collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::tables;

    fn schema() -> serde_json::Value {
        json!({
            "properties": {
                "names": {"type": "array", "items": {"type": "string"}},
                "server": {"properties": {"port": {"$ref": "#/$defs/port"}, "mode": {"enum": ["a", "b"]}}},
            },
            "$defs": {"port": {"type": "integer", "minimum": 1, "maximum": 9}},
        })
    }

    #[test]
    fn each_value_has_a_row() {
        let values = "# No comment of a value.\n\n# Whose.\nnames: []\n\n# See docs/a.md#b.\nserver:\n  # Which\n  # one.\n  port: 1\n  # How.\n  mode: a\n";
        let page = tables(values, &schema()).unwrap();
        for row in [
            "## names\n\n| value",
            "| `names` | `[]` | list of strings | Whose. |",
            "## server\n\nSee [a.md](a.md#b).\n\n| value",
            "| `server.port` | `1` | 1 to 9 | Which one. |",
            "| `server.mode` | `\"a\"` | `a`, `b` | How. |",
        ] {
            assert!(page.contains(row), "{row}\n\n{page}");
        }
    }

    #[test]
    fn a_value_without_comment_schema_or_default_is_refused() {
        for (values, told) in [
            (
                "# A.\nnames: []\nserver:\n  port: 1\n  # B.\n  mode: a\n",
                "no comment above server.port",
            ),
            ("# A.\nnames: []\n# B.\nmore: 1\n", "values.schema.json has no more"),
            (
                "# A.\nnames: []\nserver:\n  # B.\n  port: 1\n",
                "values.yaml has no server.mode",
            ),
        ] {
            let error = tables(values, &schema()).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
