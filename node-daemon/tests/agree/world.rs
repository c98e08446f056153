// SPDX-License-Identifier: Apache-2.0
//! A node in a generated cluster: what its watches and interfaces would say goes through the real index into the real
//! datapath, one state of the cluster after another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Resource;
use wardline_crds::config::{DaemonConfig, Limits};
use wardline_node::index::{Desired, Event, Index, Kind, Logged, LoggingSpec, Update};
use wardline_node::interfaces::{Interfaces, Veth};
use wardline_node::names::PodName;
use wardline_node::watch::{ObjectKey, Seen, convert};
use wardline_policy::model::{Direction, ObjectName};
use wardline_policy::oracle::Cluster;
use wardline_policy::oracle::generate::{NODE, node_addresses};

use crate::support::{Life, Node, Program};

/// More than a cluster has pods, so that a pod that comes finds an interface before the last one's is gone.
pub const VETHS: usize = 24;

pub struct World<'a> {
    pub node: &'a Node,
    pub life: Life,
    pub cluster: Cluster,
    index: Index,
    /// Interfaces by the pods' uids.
    at: BTreeMap<String, u32>,
    endpoints: BTreeMap<String, u32>,
    /// Pods without an interface, and why.
    pub unmanaged: BTreeMap<ObjectName, &'static str>,
    programs: BTreeMap<(u32, Direction), Program>,
}

impl<'a> World<'a> {
    /// A node that has nothing yet comes up in this cluster.
    pub fn start(node: &'a Node, cluster: Cluster) -> Self {
        Self::begin(node, BTreeMap::new(), cluster)
    }

    /// Another life of the daemon begins, and the cluster is another one already.
    #[must_use]
    pub fn restart(self, cluster: Cluster) -> Self {
        let Self { node, life, at, .. } = self;
        drop(life);
        Self::begin(node, at, cluster)
    }

    fn begin(node: &'a Node, at: BTreeMap<String, u32>, cluster: Cluster) -> Self {
        let mut world = Self {
            node,
            life: node.start(&config()),
            cluster,
            index: Index::new(NODE, false),
            at,
            endpoints: BTreeMap::new(),
            unmanaged: BTreeMap::new(),
            programs: BTreeMap::new(),
        };
        for (ifindex, spec) in world.life.datapath.inherited() {
            world.index.inherit(ifindex, spec);
        }
        world.plug();
        let all = events(&Cluster::default(), &world.cluster);
        for event in all.into_iter().chain([logging()]).chain(listed(&world.cluster)) {
            world.index.apply(event);
        }
        assert!(world.index.is_synced());
        world.bring_about();
        world
    }

    /// What watches tell of the change, and then what interfaces tell of it.
    pub fn turn_to(&mut self, cluster: Cluster) {
        for event in events(&self.cluster, &cluster) {
            self.index.apply(event);
        }
        self.cluster = cluster;
        self.bring_about();
        if self.plug() {
            self.bring_about();
        }
    }

    /// Gives pods interfaces and takes those of pods that are gone.
    fn plug(&mut self) -> bool {
        let here: BTreeMap<String, BTreeSet<IpAddr>> = self
            .cluster
            .pods
            .iter()
            .filter(|pod| has_interface(pod))
            .map(|pod| (uid(pod), pod_addresses(pod)))
            .collect();
        // As in the kernel, an index is not used again at once.
        let before: BTreeSet<u32> = self.at.values().copied().collect();
        self.at.retain(|uid, _| here.contains_key(uid));
        let mut veths = BTreeMap::new();
        for (uid, addresses) in here {
            if addresses.is_empty() && !self.at.contains_key(&uid) {
                continue;
            }
            let is_free =
                |ifindex: &&u32| !before.contains(*ifindex) && !self.at.values().any(|taken| taken == *ifindex);
            let ifindex = match self.at.get(&uid) {
                Some(ifindex) => *ifindex,
                None => *self.node.veths.iter().find(is_free).unwrap(),
            };
            self.at.insert(uid, ifindex);
            let name = format!("v{ifindex}");
            veths.insert(ifindex, Veth { name, addresses });
        }
        self.index.set_interfaces(Interfaces {
            veths,
            local: self.local_addresses().collect(),
        })
    }

    /// The node's.
    pub fn local_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let is_this = |node: &&NodeObject| node.metadata.name.as_deref() == Some(NODE);
        self.cluster.nodes.iter().filter(is_this).flat_map(node_addresses)
    }

    fn bring_about(&mut self) {
        self.life.names.apply_moves(self.index.take_moves());
        let desired: Desired = self.index.desired();
        let applied = self.life.datapath.apply(&desired, |pod| PodName {
            pod: pod.clone(),
            workload: None,
        });
        assert!(applied.unwrap().failed.is_empty());
        self.programs.clear();
        self.endpoints = desired
            .endpoints
            .iter()
            .filter(|(ifindex, spec)| self.at.get(&*spec.pod_uid) == Some(*ifindex))
            .map(|(ifindex, spec)| (spec.pod.to_string(), *ifindex))
            .collect();
        self.unmanaged = desired.unmanaged;
    }

    /// The interface that the daemon found for a pod: none where two pods of the node have one address.
    pub fn interface(&self, pod: &str) -> Option<u32> {
        self.endpoints.get(pod).copied()
    }

    /// The pods that the daemon manages.
    pub fn guarded(&self) -> impl Iterator<Item = &String> {
        self.endpoints.keys()
    }

    pub fn pod(&self, name: &str) -> Option<&Pod> {
        let is_it = |pod: &&Pod| format!("{}/{}", namespace(pod), pod_name(pod)) == name;
        self.cluster.pods.iter().find(is_it)
    }

    pub fn program(&mut self, ifindex: u32, direction: Direction) -> &Program {
        let life = &self.life;
        self.programs
            .entry((ifindex, direction))
            .or_insert_with(|| life.program(ifindex, direction))
    }
}

/// Small tables: each life that begins with nothing keeps its own until the process ends. That of connections has its
/// usual size, so that no pod comes to its share of them.
fn config() -> DaemonConfig {
    let limits = Limits {
        peers: 4096,
        rules: 16_384,
        deny_aggregates: 16_384,
        ..DaemonConfig::default().limits
    };
    DaemonConfig {
        limits,
        ..DaemonConfig::default()
    }
}

/// Of a pod whose sandbox is there: kubelet takes a finished one's away.
fn has_interface(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref().unwrap();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_finished = matches!(phase, Some("Succeeded" | "Failed"));
    spec.node_name.as_deref() == Some(NODE) && spec.host_network != Some(true) && !is_finished
}

/// Name, uid and addresses of the node's pods, and whether each has an interface.
pub fn own_pods(cluster: &Cluster) -> Vec<String> {
    let is_own = |pod: &&Pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some(NODE);
    let pods = cluster.pods.iter().filter(is_own);
    pods.map(|pod| {
        let (namespace, name, uid) = (namespace(pod), pod_name(pod), uid(pod));
        format!(
            "{namespace}/{name} {uid} {:?} {}",
            pod_addresses(pod),
            has_interface(pod)
        )
    })
    .collect()
}

pub fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap()
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap()
}

fn pod_name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap()
}

pub fn pod_addresses(pod: &Pod) -> BTreeSet<IpAddr> {
    let listed = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    listed.map(|ip| ip.ip.parse().unwrap()).collect()
}

/// What watches tell when `old` becomes `new`.
fn events(old: &Cluster, new: &Cluster) -> Vec<Event> {
    let mut events = differences(&old.namespaces, &new.namespaces, convert::namespace);
    events.extend(differences(&old.pods, &new.pods, convert::pod));
    events.extend(differences(&old.policies, &new.policies, convert::policy));
    events.extend(differences(&old.nodes, &new.nodes, convert::node));
    events
}

fn differences<K>(old: &[K], new: &[K], convert: fn(&ObjectKey, Seen<K>) -> Event) -> Vec<Event>
where
    K: Resource<DynamicType = ()> + Clone + PartialEq,
{
    let key = |object: &K| {
        let metadata = object.meta();
        (metadata.namespace.clone(), metadata.name.clone())
    };
    let gone = old.iter().filter(|was| !new.iter().any(|is| key(is) == key(was)));
    let gone = gone.map(|object| convert(&ObjectKey::of(object), Seen::Gone));
    let changed = new.iter().filter(|is| !old.contains(is));
    let changed = changed.map(|object| convert(&ObjectKey::of(object), Seen::Here(object.clone())));
    gone.chain(changed).collect()
}

/// Everything is logged.
fn logging() -> Event {
    Event::Logging(Update::Set(LoggingSpec {
        generation: 1,
        allow: Logged::All,
        deny: Logged::All,
        deny_events: false,
    }))
}

/// The ends of all lists.
fn listed(cluster: &Cluster) -> Vec<Event> {
    fn names<K: Resource<DynamicType = ()>>(objects: &[K]) -> BTreeSet<String> {
        objects.iter().map(|object| ObjectKey::of(object).to_string()).collect()
    }
    let listed = |kind| match kind {
        Kind::Namespace => names(&cluster.namespaces),
        Kind::Pod => names(&cluster.pods),
        Kind::NetworkPolicy => names(&cluster.policies),
        Kind::Node => names(&cluster.nodes),
        Kind::Service | Kind::EndpointSlice => BTreeSet::new(),
        Kind::NetworkLogging | Kind::Dataplane => BTreeSet::from(["default".to_owned()]),
    };
    Kind::WATCHED
        .into_iter()
        .map(|kind| Event::Listed(kind, listed(kind)))
        .collect()
}
