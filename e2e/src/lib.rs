// SPDX-License-Identifier: Apache-2.0
//! The lab: a real two-node Kubernetes cluster on one machine, and what tests need of it.
//!
//! ```text
//!   this machine                        10.77.0.1 on the bridge wardline0
//!     etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//!        |                                    |
//!   node1 (10.77.0.11)                  node2 (10.77.0.12)
//!     its own network, mount and          the same
//!     process namespace: containerd,
//!     kubelet, pods 10.244.0.0/24         pods 10.244.1.0/24
//!     on the ptp plugin                   on the bridge plugin
//! ```
//!
//! Nodes, pods and Services have an IPv6 address beside each of these, and one more host on the bridge plays the client
//! from outside ([`layout`]).
//!
//! Data flows one way: [`layout`] says where everything lies, [`gobuild`] and [`images`] fill `target/`,
//! [`up`] starts the cluster from it and [`down`] ends it. Tests, the demo and the benchmark use [`cluster::Lab`], which talks to the
//! running cluster only.

pub mod audit;
pub mod bench;
pub mod chart;
pub mod cluster;
pub mod command;
pub mod conformance;
pub mod container;
pub mod control_plane;
pub mod dataplane;
pub mod demo;
pub mod down;
pub mod evidence;
pub mod fence;
pub mod footprint;
pub mod gobuild;
pub mod image;
pub mod images;
pub mod ipam;
pub mod kube_proxy;
pub mod layout;
pub mod logging;
pub mod monitoring;
pub mod namespace;
pub mod network;
pub mod node;
pub mod operators;
pub mod pki;
pub mod pod_network;
pub mod preflight;
pub mod process;
pub mod progress;
pub mod prometheus;
pub mod raw;
pub mod records;
pub mod sbom;
pub mod status;
pub mod tools;
pub mod traffic;
pub mod up;
pub mod wardline;
