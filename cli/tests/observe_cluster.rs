// SPDX-License-Identifier: Apache-2.0
//! `observe` of a whole cluster, at an API server that a test plays; e2e/tests/cluster/observe.rs has the real one.

#![allow(clippy::unwrap_used, reason = "tests")]

mod api_server;
mod shell;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use api_server::{Answer, Exec, STDERR, STDOUT, kubeconfig};
use serde_json::{Value, json};
use shell::wardline;

/// Told: what each exec asked for.
fn start(serve_exec: fn(&str, &mut Exec)) -> (String, mpsc::Receiver<String>) {
    api_server::start(|path| Answer::Json(list(path)), serve_exec)
}

/// Three daemons, of which one has not started, and a node without any.
fn list(path: &str) -> Value {
    if path.contains("/dataplanenodes") {
        let nodes = ["node1", "node2", "node3", "node4"];
        let items: Vec<Value> = nodes
            .iter()
            .map(|name| json!({"metadata": {"name": name}, "spec": {}}))
            .collect();
        return json!({"apiVersion": "wardline.io/v1alpha1", "kind": "DataplaneNodeList", "metadata": {}, "items": items});
    }
    let pods = [
        ("a", "node1", "Running"),
        ("b", "node2", "Running"),
        ("c", "node3", "Pending"),
    ];
    let items: Vec<Value> = pods
        .iter()
        .map(|(name, node, phase)| {
            json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}})
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items})
}

fn hello(node: &str) -> String {
    format!(
        "{{\"observer\":\"hello\",\"node_name\":\"{node}\",\"logging\":{{\"allow\":true,\"deny\":true}},\"log\":\"/l\",\
         \"position\":{{\"inode\":1,\"size\":1}}}}\n"
    )
}

fn record(node: &str, second: u8) -> String {
    let record = json!({
        "connection": {"src_ip": "10.0.0.1", "dest_ip": "10.0.0.2", "src_port": 1, "dest_port": 80, "protocol": "tcp",
                       "direction": "ingress"},
        "disposition": "deny", "reason": "default-deny", "src": {"instance": "10.0.0.1"},
        "dest": {"instance": "10.0.0.2"}, "count": 1, "node_name": node,
        "timestamp": format!("2026-06-13T21:29:{second:02}Z"), "seq": format!("{node}-r{second}"),
    });
    format!("{record}\n")
}

#[test]
fn nodes_are_merged_and_those_that_do_not_answer_are_named() {
    let (server, asked) = start(|pod, exec| {
        if pod == "a" {
            exec.send(STDOUT, &(hello("node1") + &record("node1", 1)));
            // Lines are what a line feed ends, not what one message holds.
            let line = record("node1", 3);
            exec.send(STDOUT, &line[..20]);
            exec.send(STDOUT, &line[20..]);
        } else {
            exec.send(STDOUT, &(hello("node2") + &record("node2", 2) + &record("node2", 4)));
        }
        exec.ends_well();
    });
    let directory = tempfile::tempdir().unwrap();
    let config = kubeconfig(directory.path(), &server);
    let arguments = format!(
        "observe --kubeconfig {} --last 3 -o json --verdict deny -n shop",
        config.display()
    );
    let (text, code) = wardline(&arguments, "");
    let seconds: Vec<String> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["seq"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(seconds, ["node2-r2", "node1-r3", "node2-r4"]);
    assert_eq!(code, 1, "node3 and node4 did not answer");
    let asked = [asked.recv().unwrap(), asked.recv().unwrap()].concat();
    for part in [
        "container=wardline-node",
        "command=%2Fwardline-node&command=observe&command=--while-stdin&command=--last%3D3",
        "command=--namespace%3Dshop&command=--verdict%3Ddeny",
    ] {
        assert_eq!(asked.matches(part).count(), 2, "{part}: {asked}");
    }

    let output = Command::new(env!("CARGO_BIN_EXE_wardline"))
        .args(["observe", "--kubeconfig"])
        .arg(&config)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let mut told: Vec<&str> = told.lines().collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            "wardline: node3: its daemon's Pod c is Pending",
            "wardline: node4: no daemon runs there"
        ]
    );
}

#[test]
fn a_daemon_that_ends_is_asked_again_for_what_came_since() {
    let (server, asked) = start(|pod, exec| {
        if pod == "b" {
            exec.send(
                STDERR,
                "wardline-node: failed to reach the daemon at /run/wardline/observe.sock: gone\n",
            );
            exec.fails("exit code 1");
            return;
        }
        exec.send(STDOUT, &(hello("node1") + &record("node1", 5)));
    });
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_wardline"))
        .args([
            "observe",
            "-f",
            "-o",
            "compact",
            "--node=node1",
            "--node=node2",
            "--kubeconfig",
        ])
        .arg(kubeconfig(directory.path(), &server))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut again = Vec::new();
    while again.len() < 2 {
        let asked = asked.recv_timeout(Duration::from_secs(30)).unwrap();
        if asked.contains("/pods/a ") {
            again.push(asked);
        }
    }
    assert!(
        again[0].contains("command=--last%3D20&command=--follow"),
        "{}",
        again[0]
    );
    assert!(
        again[1].contains("command=--after%3Dnode1-r5&command=--follow"),
        "{}",
        again[1]
    );
    let mut shown = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(
        shown.next().unwrap().unwrap(),
        "21:29:05.000 node1 deny ingress tcp/80 10.0.0.1 -> 10.0.0.2 default-deny -"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let told: Vec<String> = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .collect();
    let of_node2: Vec<&String> = told.iter().filter(|line| line.contains("node2")).collect();
    assert_eq!(
        of_node2,
        ["wardline: node2: failed to reach the daemon at /run/wardline/observe.sock: gone"],
        "once"
    );
}
