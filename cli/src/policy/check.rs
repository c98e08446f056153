// SPDX-License-Identifier: Apache-2.0
//! `wardline policy check`: each NetworkPolicy of the files, and what of it cannot be used. Stricter than the daemon in
//! one point: a field that does not exist is an error, as it is for `kubectl apply`.

use std::io::{BufRead, Write as _};

use anyhow::Context as _;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::Serialize;
use wardline_policy::model::Policy;

use crate::args::{CheckArgs, Format};
use crate::manifests::{self, Kind, Manifest, Parsed};
use crate::{Outcome, decode, output};

#[derive(Debug, Serialize)]
struct Report {
    checked: usize,
    refused: usize,
    /// Objects of other kinds.
    ignored: usize,
    results: Vec<Finding>,
}

/// One NetworkPolicy, or a document that is no object.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    file: String,
    /// Kind, namespace and name; None for what is no object.
    object: Option<String>,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

pub(crate) fn run(args: &CheckArgs, input: &mut dyn BufRead, out: &mut Vec<u8>) -> anyhow::Result<Outcome> {
    let report = check(manifests::read(&args.files, &args.file_args, input)?);
    match args.format.output {
        Format::Table | Format::Wide | Format::Compact => render(out, &report)?,
        Format::Json => output::json(out, &report)?,
    }
    Ok(Outcome::well_if(report.refused == 0))
}

fn check(parsed: Vec<Parsed>) -> Report {
    let mut report = Report {
        checked: 0,
        refused: 0,
        ignored: 0,
        results: Vec::new(),
    };
    for one in parsed {
        let finding = match one {
            Ok(manifest) if manifest.kind == Kind::NetworkPolicy => {
                report.checked += 1;
                policy(manifest)
            }
            Ok(_) => {
                report.ignored += 1;
                continue;
            }
            Err(malformed) => Finding {
                file: malformed.origin,
                object: None,
                ok: false,
                field: None,
                cause: Some(malformed.cause),
            },
        };
        report.refused += usize::from(!finding.ok);
        report.results.push(finding);
    }
    report
}

fn policy(manifest: Manifest) -> Finding {
    let object = Some(manifest.title());
    let wrong = match decode::strict::<NetworkPolicy>(manifest.value) {
        Err(error) => Some((error.field, error.cause)),
        Ok(policy) => Policy::try_from(&policy).err().map(|error| (error.field, error.cause)),
    };
    let (field, cause) = wrong.unzip();
    Finding {
        file: manifest.origin,
        object,
        ok: cause.is_none(),
        field,
        cause,
    }
}

fn render(out: &mut Vec<u8>, report: &Report) -> anyhow::Result<()> {
    for finding in &report.results {
        let cause = finding.cause.as_deref().unwrap_or("ok");
        let parts = [
            Some(finding.file.as_str()),
            finding.object.as_deref(),
            finding.field.as_deref(),
            Some(cause),
        ];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        writeln!(out, "{}", parts.join(": ")).context("failed to write")?;
    }
    let Report {
        checked,
        refused,
        ignored,
        ..
    } = report;
    let checked = output::count(*checked, "NetworkPolicy", "NetworkPolicies");
    let ignored = output::count(*ignored, "other object", "other objects");
    writeln!(out, "{checked} checked, {refused} refused, {ignored} ignored").context("failed to write")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> (Report, String) {
        let report = check(manifests::parse("p.yaml", text, "shop"));
        let mut out = Vec::new();
        render(&mut out, &report).unwrap();
        (report, String::from_utf8(out).unwrap())
    }

    const HEAD: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";

    #[test]
    fn each_policy_is_told_with_its_field() {
        for (rest, expected) in [
            (
                "metadata: {name: p}\nspec: {podSelector: {}}",
                "NetworkPolicy shop/p: ok",
            ),
            (
                "metadata: {name: p, namespace: a}\nspec: {podSelector: {}}",
                "NetworkPolicy a/p: ok",
            ),
            ("metadata: {name: p}", "NetworkPolicy shop/p: ok"),
            (
                "metadata: {name: p}\nspec: {ingress: [{ports: [{}, {port: 0}]}]}",
                "NetworkPolicy shop/p: spec.ingress[0].ports[1].port: 0 is not a port: 1 to 65535",
            ),
            (
                "metadata: {name: p}\nspec: {podSelector: {}, ingress: [{form: []}]}",
                "NetworkPolicy shop/p: spec.ingress[0].form: there is no such field",
            ),
            (
                "metadata: {name: p}\nspec: {podSelector: {matchLabels: {v: 1}}}",
                "NetworkPolicy shop/p: spec.podSelector.matchLabels.v: invalid type: integer `1`, expected a string",
            ),
            (
                "metadata: {labels: {}}\nspec: {podSelector: {}}",
                "NetworkPolicy shop/(no name): metadata.name: is required",
            ),
            (
                "spec: {podSelector: {}}",
                "NetworkPolicy (no name): metadata.namespace: is required",
            ),
        ] {
            let (report, text) = checked(&format!("{HEAD}{rest}\n"));
            assert_eq!(text.lines().next(), Some(&*format!("p.yaml: {expected}")), "{rest}");
            assert_eq!(report.refused == 0, expected.ends_with(": ok"), "{rest}");
        }
    }

    #[test]
    fn others_are_ignored_and_counted() {
        let text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n---\n{HEAD}metadata: {{name: p}}\n---\nno object\n"
        );
        let (report, text) = checked(&text);
        assert_eq!((report.checked, report.refused, report.ignored), (1, 1, 1));
        assert_eq!(
            text,
            "p.yaml: NetworkPolicy shop/p: ok\n\
             p.yaml: document 3: is no Kubernetes object: it has no apiVersion or no kind\n\
             1 NetworkPolicy checked, 1 refused, 1 other object ignored\n"
        );
    }

    #[test]
    fn programs_get_the_same() {
        let (report, _) = checked(&format!("{HEAD}metadata: {{name: p}}\nspec: {{egress: {{}}}}\n"));
        let mut out = Vec::new();
        output::json(&mut out, &report).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let expected = serde_json::json!({
            "checked": 1, "refused": 1, "ignored": 0,
            "results": [{
                "file": "p.yaml", "object": "NetworkPolicy shop/p", "ok": false,
                "field": "spec.egress", "cause": "invalid type: map, expected a sequence",
            }],
        });
        assert_eq!(json, expected);
    }
}
