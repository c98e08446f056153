// SPDX-License-Identifier: Apache-2.0
//! Where the lab keeps what: every path and address has its one name here.

use std::path::{Path, PathBuf};

/// The bridge that joins the control plane and the nodes.
pub const BRIDGE: &str = "wardline0";
/// The address of the control plane on the bridge; its API server listens on port 6443.
pub const CONTROL_PLANE: &str = "10.77.0.1";
/// The control plane's IPv6 address, where nothing listens: for routes.
pub const CONTROL_PLANE6: &str = "fd00:10:77::1";
/// The URL of the API server, as nodes and host-network pods reach it.
pub const API_SERVER: &str = "https://10.77.0.1:6443";
/// Service addresses come from here, IPv4 first, as the first family is the one of Services that ask for none.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// `kubernetes.default`: the first address of [`SERVICE_CIDRS`].
pub const API_SERVICE: &str = "10.96.0.1";
/// Pods of all nodes; each node has a /24 of it.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// The same for IPv6; each node has a /64 of it.
pub const POD_CIDR6: &str = "fd00:10:244::/48";
/// The URL of etcd. On the lab's own address, where no other etcd of this machine can be.
pub const ETCD: &str = "http://10.77.0.1:2379";
/// The URL that etcd would talk to other members on.
pub const ETCD_PEER: &str = "http://10.77.0.1:2380";
/// The sandbox image of every pod.
pub const PAUSE_IMAGE: &str = "lab.wardline.io/pause:1";
/// The tag is what `e2e.test --list-images` of the pinned Kubernetes asks for.
pub const AGNHOST_IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// The echo server and its clients that tests run in pods.
pub const TRAFFIC_IMAGE: &str = "lab.wardline.io/traffic:1";

/// A daemon whose packet programs let everything through, and one that ends at once: for tests of rollouts.
pub const OPEN_IMAGE: &str = "lab.wardline.io/open-node:1";
pub const OTHER_LAYOUT_IMAGE: &str = "lab.wardline.io/other-layout-node:1";
pub const CRASHING_IMAGE: &str = "lab.wardline.io/crashing-node:1";

/// The directories in which a node sees its own files instead of this machine's.
///
/// They are what hostPath volumes, the kubelet, containerd and CNI plugins keep state in; were they shared, one node's
/// daemon would read and write the other's.
pub const PRIVATE_DIRS: [&str; 9] = [
    "/run",
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/cni",
    "/var/log/network",
    "/var/log/pods",
    "/var/log/containers",
    "/etc/cni/net.d",
    "/opt/cni/bin",
];

/// What makes the pods' interfaces on a node. The nodes differ, so that both are always tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// Each pod on a link of its own, and the node routes between them.
    Ptp,
    /// The pods of the node share a bridge.
    Bridge,
}

/// One of the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSpec {
    /// The name of the Kubernetes node, and of its folder in `target/lab`.
    pub name: &'static str,
    /// The network namespace, as `ip netns` lists it.
    pub netns: &'static str,
    /// The bridge's side of the node's uplink.
    pub uplink: &'static str,
    /// The node's address on the bridge.
    pub address: &'static str,
    /// The same for IPv6.
    pub address6: &'static str,
    /// The addresses of its pods.
    pub pod_cidr: &'static str,
    /// The same for IPv6.
    pub pod_cidr6: &'static str,
    /// What connects its pods.
    pub plugin: Plugin,
}

/// The nodes of the lab.
pub const NODES: [NodeSpec; 2] = [
    NodeSpec {
        name: "node1",
        netns: "wardline-node1",
        uplink: "wardline-n1",
        address: "10.77.0.11",
        address6: "fd00:10:77::11",
        pod_cidr: "10.244.0.0/24",
        pod_cidr6: "fd00:10:244:0::/64",
        plugin: Plugin::Ptp,
    },
    NodeSpec {
        name: "node2",
        netns: "wardline-node2",
        uplink: "wardline-n2",
        address: "10.77.0.12",
        address6: "fd00:10:77::12",
        pod_cidr: "10.244.1.0/24",
        pod_cidr6: "fd00:10:244:1::/64",
        plugin: Plugin::Bridge,
    },
];

/// A host on the bridge that is no part of the cluster. It knows the way to the nodes, and none to pods or Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutsideSpec {
    /// The network namespace, as `ip netns` lists it.
    pub netns: &'static str,
    /// The bridge's side of its uplink.
    pub uplink: &'static str,
    /// Its address on the bridge.
    pub address: &'static str,
    /// The same for IPv6.
    pub address6: &'static str,
}

/// The client from outside of the cluster.
pub const OUTSIDE: OutsideSpec = OutsideSpec {
    netns: "wardline-outside",
    uplink: "wardline-nx",
    address: "10.77.0.99",
    address6: "fd00:10:77::99",
};

/// The folders of the workspace that the lab reads and writes.
#[derive(Debug, Clone)]
pub struct Layout {
    workspace: PathBuf,
}

impl Layout {
    /// The layout of the checkout that this program was built from.
    pub fn of_workspace() -> Self {
        let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self {
            workspace: crate_dir.parent().unwrap_or(crate_dir).to_path_buf(),
        }
    }

    /// The root of the checkout.
    pub fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// `target/`, also where Cargo builds.
    pub fn target(&self) -> PathBuf {
        self.workspace.join("target")
    }

    /// `target/lab`, which holds everything of the cluster.
    pub fn lab(&self) -> PathBuf {
        self.target().join("lab")
    }

    /// The binaries built from the Go modules; they outlive the cluster.
    pub fn bin(&self, name: &str) -> PathBuf {
        self.lab().join("bin").join(name)
    }

    /// Programs that only some tests need.
    pub fn tools(&self) -> PathBuf {
        self.target().join("tools")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.lab().join("kubeconfig")
    }

    /// Keys, certificates and the components' kubeconfigs.
    pub fn pki(&self, name: &str) -> PathBuf {
        self.lab().join("pki").join(name)
    }

    /// Image archives that every node imports when it starts; they outlive the cluster.
    pub fn base_images(&self) -> PathBuf {
        self.lab().join("images")
    }

    /// Image archives of Wardline itself.
    pub fn images(&self) -> PathBuf {
        self.target().join("images")
    }

    /// Plain manifests, made from the chart.
    pub fn manifests(&self) -> PathBuf {
        self.target().join("manifests")
    }

    /// Schemas of all kinds that charts and manifests are made of.
    pub fn schemas(&self) -> PathBuf {
        self.target().join("schemas")
    }

    /// Logs and outcomes of the upstream suite.
    pub fn conformance(&self) -> PathBuf {
        self.target().join("conformance")
    }

    /// What is running: a JSON file a process.
    pub fn run(&self) -> PathBuf {
        self.lab().join("run")
    }

    /// The logs of the components; kept until the next cluster comes up.
    pub fn log(&self, name: &str) -> PathBuf {
        self.lab().join("log").join(format!("{name}.log"))
    }

    /// What the API server writes down.
    pub fn audit_policy(&self) -> PathBuf {
        self.run().join("audit-policy.yaml")
    }

    /// The requests that Wardline made, a JSON object a line; kept until the next cluster comes up.
    pub fn audit_log(&self) -> PathBuf {
        self.lab().join("log/audit.jsonl")
    }

    /// etcd's data.
    pub fn etcd(&self) -> PathBuf {
        self.lab().join("etcd")
    }

    /// A node's folder: its configuration files, and `root/`.
    pub fn node(&self, node: &NodeSpec) -> PathBuf {
        self.lab().join(node.name)
    }

    /// A path as the node sees it, where this machine finds it. Only below [`PRIVATE_DIRS`] do the two differ.
    pub fn node_path(&self, node: &NodeSpec, path: &str) -> PathBuf {
        self.node(node).join("root").join(path.trim_start_matches('/'))
    }
}
