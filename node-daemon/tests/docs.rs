// SPDX-License-Identifier: Apache-2.0
//! What the documentation names is what the code has.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use wardline_bpf::abi::Reason;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The part of a page under a heading, up to the next of the same or a higher level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = page
        .find(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("no {heading}"));
    let body = &page[start + heading.len() + 2..];
    let level = heading.find(' ').unwrap();
    let ends = (1..=level).filter_map(|level| body.find(&format!("\n{} ", "#".repeat(level))));
    &body[..ends.min().unwrap_or(body.len())]
}

/// What stands in backticks in the cells of a table, headings and rulers left out.
fn named(section: &str, is_meant: fn(&str) -> bool) -> BTreeSet<String> {
    let cells = section
        .lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| line.split('|'));
    cells
        .filter_map(|cell| cell.trim().strip_prefix('`')?.strip_suffix('`'))
        .filter(|name| is_meant(name))
        .map(str::to_owned)
        .collect()
}

#[test]
fn reasons_are_documented() {
    let reasons: BTreeSet<String> = Reason::ALL.iter().map(ToString::to_string).collect();
    for (page, heading) in [("docs/events.md", "## Reasons"), ("docs/packet.md", "## All reasons")] {
        let text = read(page);
        assert_eq!(named(section(&text, heading), |_| true), reasons, "{page}");
    }
}

#[test]
fn reasons_stand_under_what_becomes_of_the_packet() {
    let page = read("docs/packet.md");
    for line in section(&page, "## All reasons")
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'))
    {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        for (cell, passes) in [(cells[1], true), (cells[2], false)] {
            let name = cell.trim_matches('`');
            let Some(reason) = Reason::ALL.into_iter().find(|reason| reason.as_str() == name) else {
                assert!(name.is_empty(), "{line}");
                continue;
            };
            assert_eq!(reason.verdict().as_str() == "allow", passes, "{line}");
        }
    }
}

/// Quoted words of the source that begin with `prefix`.
fn quoted(source: &str, prefix: &str) -> BTreeSet<String> {
    let words = source.split('"').filter(|word| word.starts_with(prefix));
    words
        .filter(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn metrics_are_documented() {
    let page = read("docs/operations.md");
    let documented = named(section(&page, "## Metrics"), |name| name.starts_with("wardline_"));
    let mut metrics = quoted(&read("node-daemon/src/metrics.rs"), "wardline_");
    assert!(metrics.len() > 10, "{metrics:?}");
    let operator = read("operator/src/metrics.rs");
    let names = operator
        .split("name(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next());
    metrics.extend(names.map(|name| format!("wardline_operator_{name}")));
    assert_eq!(documented, metrics);
}

/// Places are written as `path/file.rs: function`.
#[test]
fn what_the_specification_names_exists() {
    let page = read("docs/specification.md");
    let places: Vec<(&str, &str)> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once(".rs: "))
        .collect();
    assert!(places.len() > 30, "only {} places", places.len());
    for (file, function) in places {
        let source = read(&format!("{file}.rs"));
        assert!(
            source.contains(&format!("fn {function}(")),
            "{file}.rs has no function {function}"
        );
    }
}

fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bpf/LICENSE.md"]
        .iter()
        .map(|page| root().join(page))
        .collect();
    for folder in ["docs", "docs/decisions"] {
        let files = fs::read_dir(root().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    pages
}

/// As GitHub makes anchors of headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let lower = heading.to_lowercase();
        let kept = lower
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for path in pages() {
        let page = fs::read_to_string(&path).unwrap();
        for target in page
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
            .filter(|target| !target.contains("://"))
        {
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                path.clone()
            } else {
                path.with_file_name(file)
            };
            assert!(file.exists(), "{} links to {target}", path.display());
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&file).unwrap());
                assert!(there.contains(anchor), "{} links to {target}", path.display());
            }
        }
    }
    assert!(links > 20, "only {links} links");
}

#[test]
fn decisions_that_the_code_cites_exist() {
    let crates = ["cli", "crds", "e2e", "node-daemon", "operator", "policy"];
    let mut folders: Vec<PathBuf> = crates.iter().map(|name| root().join(name).join("src")).collect();
    folders.extend([root().join("bpf/prog"), root().join("bpf/include")]);
    let mut cited = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let Ok(source) = fs::read_to_string(&path) else {
                continue;
            };
            for rest in source.split("docs/decisions/").skip(1) {
                let name: String = rest
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                    .collect();
                let decision = root().join(format!("docs/decisions/{name}.md"));
                assert!(decision.exists(), "{} cites {}", path.display(), decision.display());
                cited += 1;
            }
        }
    }
    assert!(cited > 0);
}
