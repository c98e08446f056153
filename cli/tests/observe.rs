// SPDX-License-Identifier: Apache-2.0
//! `observe` at the socket of a daemon that a test plays; node-daemon/tests/observe.rs has the real one.

#![allow(clippy::unwrap_used, reason = "tests")]

mod shell;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use shell::wardline;
use wardline_record::stream::{Hello, Logging, Note, Position};

const LOG: &str = "tests/data/log/policy_action.log";

/// The greeting of a daemon whose log is this one, of which the first `size` bytes are the past.
fn hello(logs: bool, size: Option<usize>) -> String {
    let log = std::fs::canonicalize(LOG).unwrap();
    let metadata = log.metadata().unwrap();
    let hello = Hello {
        node_name: "node1".to_owned(),
        logging: Logging {
            allow: logs,
            deny: false,
        },
        log,
        position: Position {
            inode: metadata.ino(),
            size: size.map_or(metadata.len(), |size| size as u64),
        },
    };
    serde_json::to_string(&Note::Hello(hello)).unwrap()
}

fn listen(directory: &Path) -> (PathBuf, UnixListener) {
    let socket = directory.join("observe.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    (socket, listener)
}

fn follow(socket: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_wardline"))
        .args(["observe", "--socket"])
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn the_last_records_that_fit() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, listener) = listen(directory.path());
    let daemon = std::thread::spawn(move || {
        for _ in 0..2 {
            writeln!(listener.accept().unwrap().0, "{}", hello(true, None)).unwrap();
        }
    });
    let socket = socket.display();
    let (text, code) = wardline(
        &format!("observe --socket {socket} --last 2 -o compact --color never"),
        "",
    );
    assert_eq!(
        (text.as_str(), code),
        (
            "21:31:03.000 node1 deny ingress icmp 203.0.113.9 -> shop/web-5d9 default-deny shop/closed\n\
             21:31:05.000 node1 allow egress tcp/10250 shop/web-5d9 -> node/node2 shop/web-out[1]\n",
            0
        )
    );
    let (text, code) = wardline(
        &format!("observe --socket {socket} --port 5432 -o compact --color never"),
        "",
    );
    assert_eq!(
        (text.lines().count(), code),
        (4, 0),
        "rotated files are searched too: {text}"
    );
    daemon.join().unwrap();
}

#[test]
fn a_daemon_that_restarts_is_asked_for_what_came_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, listener) = listen(directory.path());
    let mut child = follow(&socket, &["-f", "--last", "1", "-o", "json", "--verdict", "deny"]);
    let mut shown = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || shown.next().unwrap().unwrap();
    let record = |seq: &str| {
        let text = std::fs::read_to_string(LOG).unwrap();
        text.lines().find(|line| line.contains(seq)).unwrap().to_owned()
    };

    // All but the last two lines were there when it was asked first.
    let (mut first, _) = listener.accept().unwrap();
    let past = record("a-g7.0").len() + 1;
    writeln!(first, "{}", hello(false, Some(past))).unwrap();
    assert_eq!(next(), record("a-g7.0"));
    let missed = r#"{"observer":"missed","node_name":"node1","count":9,"timestamp":"2026-06-13T21:31:02.5Z"}"#;
    writeln!(first, "{missed}").unwrap();
    let missed: serde_json::Value = serde_json::from_str(&next()).unwrap();
    assert_eq!(
        (&missed["disposition"], &missed["count"]),
        (&"missed".into(), &9.into())
    );
    drop(first);

    let (mut second, _) = listener.accept().unwrap();
    writeln!(second, "{}", hello(false, None)).unwrap();
    assert_eq!(next(), record("a-g7.1"), "what came meanwhile, and nothing twice");
    child.kill().unwrap();
    child.wait().unwrap();
    let told: Vec<String> = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(
        told[0].starts_with("wardline: node1: logging of this is off"),
        "{told:?}"
    );
    assert!(told[0].contains("kind: NetworkLogging"), "{told:?}");
    assert_eq!(told[1], "wardline: node1: its daemon ended");
    assert_eq!(told[2], "wardline: node1: answers again");
}

#[test]
fn what_is_wrong_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let none = directory.path().join("none.sock");
    let (text, code) = wardline(&format!("observe --socket {}", none.display()), "");
    assert_eq!((text.as_str(), code), ("no node answers", 2));

    let (socket, listener) = listen(directory.path());
    let daemon = std::thread::spawn(move || {
        let refused = r#"{"observer":"refused","node_name":"node1","why":"8 observers are there already"}"#;
        writeln!(listener.accept().unwrap().0, "{refused}").unwrap();
    });
    let child = follow(&socket, &[]);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        told.contains("the daemon refused: 8 observers are there already"),
        "{told}"
    );
    daemon.join().unwrap();
}
