// SPDX-License-Identifier: Apache-2.0
//! A node that Wardline leaves is as it was before, but for the log, in which nothing is missing. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use serde_json::Value;
use wardline_bpf::frame::{self, flag};
use wardline_crds::config::DaemonConfig;
use wardline_node::args::{Args, Command};
use wardline_node::cleanup::Cleanup;
use wardline_node::events::FileOptions;
use wardline_node::lock;
use wardline_policy::model::{Direction, ObjectName, Objects, Policy, Selector};

use support::{Life, Node, on_each_node, one_pod, programs_at};

const NODE: &str = "node1";
/// A list as the cluster's own plugin has it, with our entry.
const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp"}, {"type": "wardline-cni"}]}"#;

/// A node's directories of configuration, plugins and logs.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        for folder in ["net.d", "bin"] {
            fs::create_dir(files.path(folder)).unwrap();
        }
        fs::write(files.path("net.d/10-net.conflist"), LIST).unwrap();
        fs::write(files.path("bin/wardline-cni"), "the plugin").unwrap();
        // Whatever else fills this disk, the last records are written.
        let config = format!(
            "cni: {{confDir: {0}/net.d, binDir: {0}/bin}}\nlogging: {{file: {{path: {0}/policy.log, minFreePercent: 0}}}}",
            files.0.path().display()
        );
        fs::write(files.path("config.yaml"), config).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn cleanup(&self, node: &Node) -> Cleanup {
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let arguments = [
            "wardline-node".into(),
            "cleanup".into(),
            "--node-name=node1".into(),
            option("config", &self.path("config.yaml")),
            option("bpffs", &node.bpffs),
            option("state-dir", &node.state),
        ];
        match Args::try_parse_from(arguments).unwrap().command {
            Some(Command::Cleanup(args)) => Cleanup::new(&args).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("policy.log")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A life of the daemon that guards a pod which takes nothing.
    fn start(&self, node: &Node) -> Life {
        let mut config = DaemonConfig::default();
        // Quick to make.
        config.limits.connections = 1024;
        let options = FileOptions {
            path: self.path("policy.log"),
            ..node.file_options()
        };
        let mut life = node.start_logging_to(&config, options, Duration::from_mins(1));
        life.apply(&node.desired(&objects(), NODE));
        life
    }
}

fn objects() -> Objects {
    let mut objects = one_pod("db", NODE);
    let name = ObjectName::new("shop", "closed");
    let policy = Policy {
        name: name.clone(),
        generation: 1,
        log: false,
        pod_selector: Selector::default(),
        ingress: Some(Vec::new()),
        egress: None,
    };
    objects.policies.insert(name, Arc::new(policy));
    objects
}

fn syn(port: u16) -> Vec<u8> {
    let socket = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port);
    frame::tcp(socket("10.0.1.1", port), socket("10.0.0.1", 80), flag::SYN)
}

fn programs(node: &Node) -> usize {
    let at = |direction| programs_at(node.attach, node.veths[0], direction).len();
    Direction::ALL.into_iter().map(at).sum()
}

#[test]
fn a_node_that_is_left_keeps_its_log_alone_and_nothing_in_it_is_missing() {
    on_each_node(1, |node| {
        let files = Files::new();
        let life = files.start(node);
        let pod = life.program(node.veths[0], Direction::Ingress);
        assert!(!pod.passes(&syn(1000)));
        drop(life);
        // Nobody reads now.
        assert!(!pod.passes(&syn(1001)));
        assert_eq!(programs(node), 2);
        let cleanup = files.cleanup(node);
        let found = cleanup.find().unwrap().to_string();
        for part in ["10-net.conflist", "bin/wardline-cni", "names.jsonl", "bpf/wardline"] {
            assert!(found.contains(part), "{part} is not in {found}");
        }

        cleanup.clean().unwrap();
        assert_eq!(cleanup.find().unwrap().to_string(), "");
        assert_eq!(programs(node), 0);
        assert!(!node.bpffs.join("wardline").exists() && !node.state.exists());
        assert!(!files.path("bin/wardline-cni").exists());
        let list = fs::read_to_string(files.path("net.d/10-net.conflist")).unwrap();
        assert!(list.contains("ptp") && !list.contains("wardline"), "{list}");
        let records = files.records();
        let denies: u64 = records.iter().map(|record| record["count"].as_u64().unwrap()).sum();
        assert_eq!(denies, 2, "{records:?}");
        assert_eq!(records[0]["isolated_by"][0]["name"], "closed", "{records:?}");
        assert_eq!(records[0]["dest"]["pod_name"], "db", "{records:?}");

        // Once more, and as if Wardline had never been there.
        cleanup.clean().unwrap();
        assert_eq!(files.records(), records);
    });
}

#[test]
fn a_crash_half_way_leaves_what_the_next_one_finds() {
    on_each_node(1, |node| {
        let files = Files::new();
        drop(files.start(node));
        // The names of the ids are gone, and half of the pins.
        fs::remove_dir_all(&node.state).unwrap();
        let maps = node.bpffs.join("wardline/v1/maps");
        for map in ["settings", "rules"] {
            fs::remove_file(maps.join(map)).unwrap();
        }
        let cleanup = files.cleanup(node);
        cleanup.clean().unwrap();
        assert_eq!(cleanup.find().unwrap().to_string(), "");
        assert_eq!(programs(node), 0);
    });
}

#[test]
fn a_daemon_that_runs_is_left_alone() {
    on_each_node(1, |node| {
        let files = Files::new();
        let life = files.start(node);
        let held = lock::take(&node.state).unwrap();
        let error = files.cleanup(node).clean().unwrap_err().to_string();
        assert!(error.contains("a Wardline daemon runs on this node"), "{error}");
        assert_eq!(programs(node), 2);
        assert!(files.path("bin/wardline-cni").exists());
        drop((held, life));
        files.cleanup(node).clean().unwrap();
        assert_eq!(programs(node), 0);
    });
}
