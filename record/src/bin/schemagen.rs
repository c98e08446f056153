// SPDX-License-Identifier: Apache-2.0
//! Writes the JSON Schema of a line of the policy log to docs; with `--check`, compares instead.

use std::path::Path;
use std::process::ExitCode;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policy-log.schema.json");

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("schemagen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let check = match (args.next().as_deref(), args.next()) {
        (None, None) => false,
        (Some("--check"), None) => true,
        _ => return Err("usage: schemagen [--check]".into()),
    };
    let schema = wardline_record::schema();
    let content = serde_json::to_string_pretty(&schema).map_err(|error| format!("failed to encode schema: {error}"))?;
    let (path, content) = (Path::new(FILE), content + "\n");
    if !check {
        return std::fs::write(path, content).map_err(|error| format!("failed to write {FILE}: {error}"));
    }
    match std::fs::read_to_string(path) {
        Ok(found) if found == content => Ok(()),
        _ => Err(format!("{FILE} is not what the types say: run schemagen")),
    }
}
