// SPDX-License-Identifier: Apache-2.0
//! Needs root: makes network namespaces of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::net::IpAddr;
use std::process::Command;

use wardline_node::interfaces::{self, Interfaces};

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}: {status}");
}

/// Two namespaces joined by a veth pair; both gone at the end.
struct Namespaces(Vec<String>);

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Scans the namespace.
fn scan(node: &str) -> Interfaces {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = std::fs::File::open(format!("/run/netns/{node}")).expect("the namespace is there");
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("enters the namespace");
            interfaces::scan().expect("scans")
        });
        thread.join().expect("the scan ends")
    })
}

/// kube-proxy in IPVS mode gives an interface of this name every address of a Service: were they taken for the node's,
/// each Service would be the node, which a pod may always reach.
#[test]
fn addresses_that_ipvs_holds_are_not_the_nodes() {
    let node = format!("wl-ipvs-{}", std::process::id());
    let _namespaces = Namespaces(vec![node.clone()]);
    ip(&format!("netns add {node}"));
    for (interface, address) in [("kube-ipvs0", "10.96.0.1/32"), ("other0", "10.9.0.1/24")] {
        // A dummy there; not every kernel that runs this has those.
        ip(&format!("-n {node} link add {interface} type bridge"));
        ip(&format!("-n {node} addr add {address} dev {interface}"));
    }
    ip(&format!("-n {node} addr add fd00:96::1/128 dev kube-ipvs0 nodad"));
    let expected: [IpAddr; 1] = ["10.9.0.1".parse().unwrap()];
    assert_eq!(scan(&node).local, expected.into_iter().collect());
}

#[test]
fn finds_the_pod_behind_a_veth() {
    let (node, pod) = (
        format!("wl-node-{}", std::process::id()),
        format!("wl-pod-{}", std::process::id()),
    );
    let _namespaces = Namespaces(vec![node.clone(), pod.clone()]);
    ip(&format!("netns add {node}"));
    ip(&format!("netns add {pod}"));
    ip(&format!(
        "-n {node} link add veth7 type veth peer name eth0 netns {pod}"
    ));
    ip(&format!("-n {node} link add both0 type veth peer name both1"));
    ip(&format!("-n {node} addr add 10.9.0.1/24 dev veth7"));
    ip(&format!("-n {pod} addr add 10.9.0.7/24 dev eth0"));
    ip(&format!("-n {pod} addr add fd00:9::7/64 dev eth0 nodad"));
    ip(&format!("-n {pod} link set eth0 up"));

    let scanned = scan(&node);
    let veths: Vec<_> = scanned
        .veths
        .values()
        .map(|v| (v.name.as_str(), v.addresses.clone()))
        .collect();
    let expected: Vec<IpAddr> = vec!["10.9.0.7".parse().unwrap(), "fd00:9::7".parse().unwrap()];
    assert_eq!(veths, [("veth7", expected.into_iter().collect())]);
    assert!(
        scanned.local.contains(&"10.9.0.1".parse::<IpAddr>().unwrap()),
        "{scanned:?}"
    );
}
