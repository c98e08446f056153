// SPDX-License-Identifier: Apache-2.0
//! docs/cli.md and docs/observe.md are true: their commands are commands, and what they show is what they print.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod shell;

use clap::Parser as _;
use shell::wardline;
use wardline_cli::Cli;

/// The lines of each block in this language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<Vec<&'a str>> {
    let mut blocks: Vec<Vec<&str>> = Vec::new();
    let mut inside = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), inside) {
            (Some(opened), None) => {
                inside = Some(opened == language);
                if opened == language {
                    blocks.push(Vec::new());
                }
            }
            (Some(_), Some(_)) => inside = None,
            (None, Some(true)) => blocks.last_mut().unwrap().push(line),
            (None, _) => {}
        }
    }
    blocks
}

#[test]
fn the_pages_are_true() {
    let pages = ["../docs/cli.md", "../docs/observe.md"].map(|page| std::fs::read_to_string(page).unwrap());
    let page = pages.join("\n");
    std::env::set_current_dir("tests/data").unwrap();

    let mut parsed = 0;
    for line in blocks(&page, "sh").concat() {
        let Some(start) = line.find("wardline ") else { continue };
        let command = line[start..].split(['#', '>', '|', ')']).next().unwrap();
        Cli::try_parse_from(command.split_whitespace()).unwrap_or_else(|error| panic!("{line}: {error}"));
        parsed += 1;
    }
    assert!(parsed >= 13, "only {parsed} commands");

    let consoles = blocks(&page, "console");
    for block in &consoles {
        let (command, shown) = block.split_first().unwrap();
        let (printed, _) = wardline(command.strip_prefix("$ wardline ").unwrap(), "");
        assert_eq!(printed.trim_end(), shown.join("\n"), "{command}");
    }
    assert!(consoles.len() >= 5, "only {} outputs", consoles.len());
}
