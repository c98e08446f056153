// SPDX-License-Identifier: Apache-2.0
//! Shippers, with the very configurations that docs/shipping.md shows: each line of the log arrives once, whatever is
//! rotated, and whenever the shipper is stopped. They build the OpenTelemetry Collector and unpack rsyslog, hence the
//! feature `shipping-tests`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use wardline_e2e::layout::Layout;
use wardline_e2e::{gobuild, tools};
use wardline_node::events::{FileOptions, LogFile};

const PATIENCE: Duration = Duration::from_mins(1);
/// What rsyslog needs beside what each Debian has.
const RSYSLOG: [&str; 3] = ["rsyslog", "libestr0", "libfastjson4"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The first block of code of a section of docs/shipping.md, with what stands for other paths in its place.
fn configuration(heading: &str, paths: &[(&str, &Path)]) -> String {
    let page = fs::read_to_string(Layout::of_workspace().workspace().join("docs/shipping.md")).unwrap();
    let section = page.split_once(&format!("\n## {heading}\n")).unwrap().1;
    let block = section.split("\n```").nth(1).unwrap();
    let mut text = block.split_once('\n').unwrap().1.to_owned();
    for (path, to) in paths {
        assert!(text.contains(path), "{heading} has no {path}");
        text = text.replace(path, to.to_str().unwrap());
    }
    assert!(!text.contains("/var/"), "{text}");
    text
}

/// A policy log, written by the daemon's own code, and what was written to it.
struct Log {
    file: LogFile,
    folder: PathBuf,
    lines: BTreeMap<String, String>,
}

impl Log {
    fn new(folder: PathBuf) -> Self {
        fs::create_dir(&folder).unwrap();
        let file = LogFile::new(FileOptions {
            path: folder.join("policy_action.log"),
            max_size: 64 << 10,
            max_files: 1000,
            max_age: Some(Duration::from_secs(1)),
            min_free_percent: 0,
        });
        Self {
            file,
            folder,
            lines: BTreeMap::new(),
        }
    }

    /// Writes batches of records until files were rotated `rotations` times, as fast as a busy node does.
    fn write(&mut self, rotations: u64) {
        let until = self.file.rotations() + rotations;
        while self.file.rotations() < until {
            let mut batch = String::new();
            for _ in 0..10 {
                let number = self.lines.len();
                let line = record(number);
                batch += &line;
                batch.push('\n');
                self.lines.insert(format!("e-r{number}"), line);
            }
            self.file.append(batch.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the last file is old, and renamed.
    fn age(&mut self) {
        let before = self.file.rotations();
        let end = Instant::now() + PATIENCE;
        while self.file.rotations() == before {
            assert!(Instant::now() < end, "it does not grow old");
            self.file.rotate_if_old().unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Allows, denies, losses, and now and then a line that is very long.
fn record(number: usize) -> String {
    let policy = r#"{"kind":"NetworkPolicy","namespace":"shop","name":"db-takes-web","generation":2,"rules":[0]}"#;
    let policies = vec![policy; if number % 500 == 7 { 4_000 } else { 2 }].join(",");
    let what = match number % 100 {
        99 => {
            r#""disposition":"lost","connection":{"direction":"ingress"},"lost":{"disposition":"allow","why":"ring-full"}"#
                .to_owned()
        }
        last => {
            let (disposition, names) = if last % 3 == 0 { ("deny", "isolated_by") } else { ("allow", "policies") };
            format!(
                r#""connection":{{"src_ip":"10.244.1.7","dest_ip":"10.244.0.11","src_port":55644,"dest_port":8080,"protocol":"tcp","direction":"ingress"}},"disposition":"{disposition}","{names}":[{policies}],"src":{{"pod_name":"wéb"}},"dest":{{"instance":"203.0.113.9"}}"#
            )
        }
    };
    format!(
        r#"{{{what},"count":1,"node_name":"node1","timestamp":"2026-06-13T21:29:31.{:09}Z","seq":"e-r{number}"}}"#,
        number * 1000
    )
}

/// A shipper that runs; it does not outlast the test.
struct Shipper {
    command: Command,
    child: Option<Child>,
}

impl Shipper {
    fn start(&mut self) {
        self.child = Some(self.command.spawn().unwrap());
    }

    /// As its service manager ends it.
    fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Lets it ship a log that was there before, that is written while it runs, and that was written while it was stopped.
/// `arrived` tells the lines so far.
fn ship(log: &mut Log, shipper: &mut Shipper, arrived: &dyn Fn() -> Vec<String>) {
    log.write(3);
    log.age();
    for round in 0..2 {
        shipper.start();
        log.write(12);
        log.age();
        let end = Instant::now() + PATIENCE;
        while arrived().len() < log.lines.len() {
            assert!(
                Instant::now() < end,
                "round {round}: {} of {} lines arrived",
                arrived().len(),
                log.lines.len()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        shipper.stop();
        log.write(3);
        log.age();
    }
    shipper.start();
    let end = Instant::now() + PATIENCE;
    while arrived().len() < log.lines.len() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
    }
    // It also hands over what it holds, so that a line that comes twice is seen.
    shipper.stop();
    let mut received = BTreeMap::new();
    for line in arrived() {
        let record: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let seq = record["seq"].as_str().unwrap().to_owned();
        let before = received.insert(seq, line);
        assert_eq!(before, None, "it came twice");
    }
    let missing: Vec<_> = log.lines.keys().filter(|seq| !received.contains_key(*seq)).collect();
    assert!(missing.is_empty(), "{} lines are missing: {missing:?}", missing.len());
    assert_eq!(received, log.lines, "what arrived is what was written");
}

fn losses(log: &Log) -> usize {
    log.lines
        .values()
        .filter(|line| line.starts_with(r#"{"disposition":"lost""#))
        .count()
}

#[test]
fn the_collector_ships_each_line_once() {
    let folder = tempfile::tempdir().unwrap();
    let [config, state, logs] = ["otelcol.yaml", "state", "network"].map(|name| folder.path().join(name));
    let mut log = Log::new(logs);
    let paths = [
        ("/var/log/network", log.folder.as_path()),
        ("/var/lib/otelcol", state.as_path()),
    ];
    fs::write(&config, configuration("OpenTelemetry Collector", &paths)).unwrap();
    let mut command = Command::new(gobuild::collector(&Layout::of_workspace()).unwrap());
    command
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let mut shipper = Shipper { command, child: None };
    let records = || {
        let text = fs::read_to_string(state.join("policy-log.json")).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole).to_owned();
        let batches = whole.lines().map(|batch| serde_json::from_str::<Value>(batch).unwrap());
        let mut records = Vec::new();
        for batch in batches {
            for resource in batch["resourceLogs"].as_array().unwrap() {
                for scope in resource["scopeLogs"].as_array().unwrap() {
                    records.extend(scope["logRecords"].as_array().unwrap().iter().cloned());
                }
            }
        }
        records
    };
    let line = |record: &Value| record["body"]["stringValue"].as_str().unwrap().to_owned();
    ship(&mut log, &mut shipper, &|| records().iter().map(line).collect());
    // As the page says: losses are ERROR, which is 17; and times are the packet's.
    let errors = records().iter().filter(|record| record["severityNumber"] == 17).count();
    assert_eq!(errors, losses(&log));
    let first = records()
        .iter()
        .find(|record| line(record).contains(r#""seq":"e-r7""#))
        .cloned()
        .unwrap();
    assert_eq!(first["timeUnixNano"], "1781386171000007000");
}

#[test]
fn rsyslog_ships_each_line_once() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["rsyslog.conf", "pid", "spool", "network", "received", "lost"];
    let [config, pid, spool, logs, received, lost] = names.map(|name| folder.path().join(name));
    fs::create_dir(&spool).unwrap();
    let mut log = Log::new(logs);
    let paths = [
        ("/var/log/network", log.folder.as_path()),
        ("/var/spool/rsyslog", spool.as_path()),
        ("/var/log/policy-log.json", received.as_path()),
        ("/var/log/policy-losses.json", lost.as_path()),
    ];
    fs::write(&config, configuration("rsyslog", &paths)).unwrap();
    let root = tools::debian(&Layout::of_workspace(), "rsyslog", &RSYSLOG).unwrap();
    let libraries = root.join(LIBRARIES);
    let mut command = Command::new(root.join("usr/sbin/rsyslogd"));
    command.arg("-n").arg("-f").arg(&config).arg("-i").arg(&pid);
    command
        .arg("-M")
        .arg(libraries.join("rsyslog"))
        .env("LD_LIBRARY_PATH", &libraries);
    command.stdin(Stdio::null());
    let mut shipper = Shipper { command, child: None };
    let lines = |path: &Path| -> Vec<String> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(str::to_owned).collect()
    };
    ship(&mut log, &mut shipper, &|| lines(&received));
    assert_eq!(lines(&lost).len(), losses(&log));
}

#[test]
fn losses_are_found_by_the_line_that_the_page_shows() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::new(folder.path().join("network"));
    log.write(12);
    let page = fs::read_to_string(Layout::of_workspace().workspace().join("docs/shipping.md")).unwrap();
    let command = page.lines().find(|line| line.starts_with("grep ")).unwrap();
    let command = command.replace("/var/log/network", log.folder.to_str().unwrap());
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    assert_eq!(found.lines().count(), losses(&log));
    assert!(losses(&log) > 0);
}
