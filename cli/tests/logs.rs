// SPDX-License-Identifier: Apache-2.0
//! `logs` as it is typed.

#![allow(clippy::unwrap_used, reason = "tests")]

mod shell;

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use shell::wardline;

const OLD: &str = "tests/data/log/policy_action-2026-06-13T21-30-00.000001.log";
const NEW: &str = "tests/data/log/policy_action.log";

/// What is shown, and the exit code.
fn logs(arguments: &str, input: &str) -> (String, u8) {
    wardline(&format!("logs --color never {arguments}"), input)
}

#[test]
fn records_are_filtered() {
    for (arguments, expected) in [
        ("", vec!["a-r72", "a-g6.0", "a-g6.1", "a-g7.0", "a-g7.1", "a-r144"]),
        ("--verdict allow", vec!["a-r72", "a-g6.1", "a-r144"]),
        ("--verdict deny", vec!["a-g6.0", "a-g7.0", "a-g7.1"]),
        ("-n jobs", vec!["a-g6.0", "a-g6.1", "a-g7.0"]),
        ("--pod jobs/batch-x2", vec!["a-g6.1", "a-g7.0"]),
        ("--policy shop/web-out", vec!["a-g6.1", "a-r144"]),
        ("--direction egress", vec!["a-r144"]),
        ("--port 10250", vec!["a-g6.1", "a-r144"]),
        ("--node node2", vec![]),
        // What goes on at that time, and the moment when it ends.
        (
            "--since 2026-06-13T21:29:33.1Z",
            vec!["a-g6.0", "a-g6.1", "a-g7.0", "a-g7.1", "a-r144"],
        ),
        ("--since 2026-06-13T21:31:03.5Z", vec!["a-g7.0", "a-r144"]),
        ("--until 2026-06-13T21:29:31.445836587Z", vec!["a-g6.1"]),
        (
            "--since 2026-06-13T21:30:00Z --until 2026-06-13T21:31:03Z",
            vec!["a-g7.0"],
        ),
        ("--since 1s", vec![]),
    ] {
        let (text, code) = logs(&format!("-o json {arguments} {OLD} {NEW}"), "");
        let seen: Vec<String> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(
            (seen, code),
            (expected.into_iter().map(str::to_owned).collect(), 0),
            "{arguments}"
        );
    }
}

#[test]
fn json_is_the_file_as_it_is() {
    let file = std::fs::read_to_string(NEW).unwrap();
    assert_eq!(logs(&format!("-o json {NEW}"), ""), (file.clone(), 0));
    assert_eq!(logs("-o json -", &file), (file, 0));
}

#[test]
fn lines_for_people() {
    let (text, _) = logs(&format!("-o compact {OLD}"), "");
    assert_eq!(
        text,
        "21:29:31.445 node1 allow ingress tcp/5432 shop/web-5d9 -> shop/db-0 shop/db-takes-web[0]\n\
         21:29:31.500 node1 deny ingress tcp/5432 jobs/batch-x1 -> shop/db-0 default-deny shop/closed,shop/db-takes-web x3\n\
         21:29:31.000 node1 lost ingress 12 allow records: ring-full\n"
    );
    let (painted, _) = wardline(&format!("logs -o compact --color always {OLD}"), "");
    assert!(painted.contains("\u{1b}[31mdeny\u{1b}[0m"), "{painted}");
    for (format, columns) in [("table", 9), ("wide", 16)] {
        let (text, _) = logs(&format!("-o {format} {OLD} {NEW}"), "");
        let cells = |line: &str| line.split("  ").filter(|cell| !cell.trim().is_empty()).count();
        assert_eq!(text.lines().map(cells).collect::<Vec<_>>(), [columns; 7], "{text}");
    }
}

#[test]
fn a_loss_of_nobody_knows_how_many_is_shown_as_such() {
    let line = std::fs::read_to_string(OLD).unwrap();
    let line = line.lines().find(|line| line.contains("ring-full")).unwrap();
    let gap = line
        .replace("ring-full", "gap")
        .replace(r#""count":12"#, r#""count":0"#)
        + "\n";
    let (text, _) = logs("-o compact -", &gap);
    assert_eq!(text, "21:29:31.000 node1 lost ingress ? allow records: gap\n");
    let (text, _) = logs("-o table -", &gap);
    let words: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(words[words.len() - 4..], ["?", "allow", "records:", "gap"], "{text}");
    let (text, _) = logs("--summary -", &gap);
    assert!(
        text.contains("at least 0 records lost\nlost: ? allow records: gap\n"),
        "{text}"
    );
    let (text, _) = logs("--summary -o json -", &gap);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["lost"][0]["count"], serde_json::Value::Null, "{text}");
}

#[test]
fn what_a_file_holds_cannot_move_the_cursor() {
    let line = std::fs::read_to_string(NEW).unwrap().lines().next().unwrap().to_owned();
    let forged = line.replace("batch-x2", r"x\u001b[2J\ny").replace("node1", r"\u0007");
    for format in ["table", "wide", "compact"] {
        let (text, code) = logs(&format!("-o {format} -"), &format!("{forged}\n"));
        let lines = if format == "compact" { 1 } else { 2 };
        assert_eq!((text.lines().count(), code), (lines, 0), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{7}']), "{text}");
    }
}

#[test]
fn a_summary_is_exact_and_says_what_was_lost() {
    let (text, code) = logs(&format!("--summary -o json {OLD} {NEW}"), "");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 0);
    assert_eq!(
        report["totals"],
        serde_json::json!({"allowed": 2, "denied": 8, "lost": 12})
    );
    assert_eq!(report["denied"]["rows"][0]["from"], "jobs/Job/batch");
    assert_eq!(report["denied"]["rows"][0]["count"], 7);
    let denied: u64 = report["over_time"]
        .as_array()
        .unwrap()
        .iter()
        .map(|span| span["denied"].as_u64().unwrap())
        .sum();
    assert_eq!(denied, 8);
    let (text, _) = logs(&format!("--summary --top 1 {OLD} {NEW}"), "");
    assert!(text.contains("\n1 packets in 1 or more other rows\n"), "{text}");
    assert!(text.contains("\nlost: 12 allow records: ring-full\n"), "{text}");
}

#[test]
fn lines_that_are_no_records_are_counted_and_told() {
    let good = std::fs::read_to_string(NEW).unwrap();
    let torn = &good[..good.len() - 20];
    let mut input = format!("{{\"seq\":\"1\"}}\n\n{good}");
    for i in 0..9 {
        let _ = writeln!(input, "line {i}");
    }
    input += torn;
    let (text, code) = logs("-o json -", &input);
    assert_eq!(
        (text.lines().count(), code),
        (5, 1),
        "all records, but for the one that is being written"
    );

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("p.log");
    std::fs::write(&file, &input).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_wardline"))
        .args(["logs", "--summary"])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let name = file.display();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        told.starts_with(&format!("wardline: {name}:1: this line is no record: missing field")),
        "{told}"
    );
    assert!(told.ends_with("wardline: 10 lines are no records\n"), "{told}");
    assert_eq!(told.lines().count(), 6, "{told}");
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("10 lines that are no records")
    );
}

#[test]
fn files_that_are_not_there() {
    let (text, code) = logs("tests/data/log/none.log", "");
    assert_eq!(
        (text.as_str(), code),
        (
            "failed to read tests/data/log/none.log: No such file or directory (os error 2)",
            2
        )
    );
}
