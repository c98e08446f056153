// SPDX-License-Identifier: Apache-2.0
//! Addresses that pass from one pod to another within a second or so, and for how long the nodes take them for the old
//! one's.
//!
//! ```text
//!   node1                                          server on each node, takes the old pods only
//!     old pods, then new pods in their places  --> connect as their containers start
//!     prober, on the host network              --> a packet in the name of each address, every two milliseconds
//! ```
//!
//! The prober does not wait for containers: it shows to some milliseconds when a node stops taking an address for that of
//! the old pod, long before the new one's containers could send anything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use kube::api::{DeleteParams, ListParams};
use wardline_bpf::frame::{self, ETHERNET_BYTES};
use wardline_e2e::cluster::LabNode;
use wardline_e2e::ipam::Ipam;
use wardline_e2e::namespace::{PORT, TestNamespace, with_namespace_alone};
use wardline_e2e::progress::{step, wait_until};
use wardline_e2e::raw::{Sender, Watcher};

use crate::first_packet::{admitted, client, create, ended, server};

const PATIENCE: Duration = Duration::from_mins(1);
/// Of the pods that come and go. Each has a link of its own there.
const NODE: &str = "node1";
const SERVERS: [(&str, &str); 2] = [("near", "node1"), ("far", "node2")];
/// Where nobody listens.
const PROBED: u16 = 9;
const INTERVAL: Duration = Duration::from_millis(2);
/// Pods that hand their addresses on at the same time.
const AT_ONCE: u8 = 15;
/// The last parts of a node's addresses that pods have: from its bridge's on, and before the one of everybody.
const LAST_PARTS: Range<u8> = 2..255;
/// As long as an ADD may wait for the daemon: the other nodes are told before it ends, and containers start after it.
const ADD: Duration = Duration::from_secs(8);

const SERVERS_TAKE_OLD: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: servers-take-old}
spec:
  podSelector: {matchLabels: {role: server}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: old}}}]}]
";

/// How the old pod's address becomes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The pod is deleted, and kubelet gives the address back.
    Deleted,
    /// The address is given back behind the back of kubelet, and the pod's interface goes: everybody's API server still
    /// says that the pod runs and has it.
    StillListed,
}

/// Times of one address, in microseconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Handover {
    /// It was seen to be free.
    freed: u64,
    /// The new pod was given it.
    given: u64,
    /// The last packet in its name that the server of the same node took for the old pod's.
    last_near: u64,
    /// The same on the other node.
    last_far: u64,
    /// Whether the first packet of the new pod was taken for the old one's.
    near_admitted: bool,
    far_admitted: bool,
}

#[tokio::test]
async fn an_address_is_not_taken_for_the_former_pods() -> Result<()> {
    with_namespace_alone("reuse", async |namespace: &TestNamespace| {
        namespace.apply(SERVERS_TAKE_OLD).await?;
        for (name, node) in SERVERS {
            create(namespace, name, "server", node, &[server()]).await?;
        }
        namespace.on_host("prober", NODE).await?;
        namespace.ready().await?;
        let mut below = LAST_PARTS.end;
        for way in [Way::Deleted, Way::StillListed] {
            let batch = Batch::below(namespace, way, below)?;
            let handovers = batch.run().await?;
            below = batch.first;
            step(&report(way, &handovers));
            check(way, &handovers)?;
        }
        Ok(())
    })
    .await
}

fn check(way: Way, handovers: &[Handover]) -> Result<()> {
    let add = u64::try_from(ADD.as_micros()).context("failed to count microseconds")?;
    for handover in handovers {
        ensure!(
            !handover.near_admitted && handover.last_near < handover.given,
            "{way:?}: the own node took the new pod for the old one: {handover:?}"
        );
        ensure!(
            !handover.far_admitted && handover.last_far < handover.given + add,
            "{way:?}: the other node took the new pod for the old one: {handover:?}"
        );
    }
    Ok(())
}

fn report(way: Way, handovers: &[Handover]) -> String {
    let mut text = format!("  {way:?}, {} addresses handed on", handovers.len());
    let times = [
        "free until given to the new pod",
        "own node, old identity after that",
        "other node, the same",
    ];
    for (number, what) in times.into_iter().enumerate() {
        let milliseconds = |one: &Handover| {
            let spans = [
                (one.freed, one.given),
                (one.given, one.last_near),
                (one.given, one.last_far),
            ];
            let (from, to) = spans[number];
            to.saturating_sub(from) / 1000
        };
        let mut all: Vec<u64> = handovers.iter().map(milliseconds).collect();
        all.sort_unstable();
        let (median, worst) = (all[all.len() / 2], all[all.len() - 1]);
        let _ = write!(text, "; {what}: median {median} ms, worst {worst} ms");
    }
    let wrong = handovers.iter().filter(|one| one.far_admitted).count();
    let _ = write!(
        text,
        "; first packets that the other node took for the old pod's: {wrong}"
    );
    text
}

/// Some addresses that are handed on at the same time.
struct Batch<'a> {
    namespace: &'a TestNamespace,
    /// The last part of the first address.
    first: u8,
    way: Way,
    node: LabNode<'a>,
    ipam: Ipam,
}

impl<'a> Batch<'a> {
    /// Of addresses that nobody has, next to each other: pods get them by turns. The servers have two of the node's.
    fn below(namespace: &'a TestNamespace, way: Way, below: u8) -> Result<Self> {
        let node = namespace.lab.node(NODE)?;
        let ipam = Ipam::of(namespace.lab.layout(), node.spec);
        let taken = ipam.taken()?;
        let is_free = |number| {
            ![address(number), address6(number)]
                .iter()
                .any(|ip| taken.contains_key(ip))
        };
        let mut firsts = (LAST_PARTS.start..=below.saturating_sub(AT_ONCE)).rev();
        let first = firsts.find(|first| (*first..*first + AT_ONCE).all(is_free));
        let first =
            first.with_context(|| format!("{NODE} has no {AT_ONCE} free addresses side by side below {below}"))?;
        Ok(Self {
            namespace,
            first,
            way,
            node,
            ipam,
        })
    }

    async fn run(&self) -> Result<Vec<Handover>> {
        self.create("old").await?;
        self.namespace.ready().await?;
        self.check_given("old").await?;
        let (pods, watched) = (self.namespace.pods(), self.addresses());
        let near = Watcher::start(&pods, "near", PROBED).await?;
        let far = Watcher::start(&pods, "far", PROBED).await?;
        let prober = Sender::start(&pods, "prober", &self.probes().await?, INTERVAL).await?;
        for (name, watcher) in [("near", &near), ("far", &far)] {
            let what = format!("{name} to take all addresses for the old pods' ({:?})", self.way);
            wait_until(&what, PATIENCE, async || {
                let seen = watcher.seen();
                let missing: Vec<_> = watched.iter().filter(|ip| !seen.contains_key(ip)).collect();
                ensure!(missing.is_empty(), "nothing came from {missing:?}");
                Ok(Some(()))
            })
            .await?;
        }
        let freed = self.free().await?;
        self.create("new").await?;
        let given = self.given().await?;
        let mut verdicts = BTreeMap::new();
        for number in 0..AT_ONCE {
            let name = format!("new-{}", self.first + number);
            let pod = ended(self.namespace, &name).await?;
            verdicts.insert(self.namespace.ip(&name).await?, admitted(&pod)?);
        }
        self.check_given("new").await?;
        prober.finish().await?;
        let (near, far) = (near.finish().await?, far.finish().await?);
        self.remove().await?;
        let handover = |ip: &IpAddr| {
            let verdicts = &verdicts[ip];
            Handover {
                freed,
                given: given[ip],
                last_near: near[ip].last_us,
                last_far: far[ip].last_us,
                near_admitted: verdicts["near"],
                far_admitted: verdicts["far"],
            }
        };
        Ok(watched.iter().map(handover).collect())
    }

    /// The addresses that are handed on.
    fn addresses(&self) -> Vec<IpAddr> {
        (0..AT_ONCE).map(|number| address(self.first + number)).collect()
    }

    /// Pods that get these addresses; new ones are clients of both servers, too.
    async fn create(&self, role: &str) -> Result<()> {
        // The new ones stay too, so that their addresses stay theirs.
        let mut containers = vec![server()];
        if role == "new" {
            for (name, _) in SERVERS {
                containers.push(client(name, SocketAddr::new(self.namespace.ip(name).await?, PORT)));
            }
        }
        self.ipam
            .begin_after([address(self.first - 1), address6(self.first - 1)])?;
        for number in self.first..self.first + AT_ONCE {
            create(self.namespace, &format!("{role}-{number}"), role, NODE, &containers).await?;
        }
        Ok(())
    }

    /// The pods of a role have the addresses that are handed on, and not others.
    async fn check_given(&self, role: &str) -> Result<()> {
        for number in self.first..self.first + AT_ONCE {
            let name = format!("{role}-{number}");
            let ip = self.namespace.ip(&name).await?;
            ensure!(
                self.addresses().contains(&ip),
                "{name} was given {ip}, none of {:?}: who else takes addresses of {NODE} now? ({:?})",
                self.addresses(),
                self.way
            );
        }
        Ok(())
    }

    /// A packet in the name of each address to each server.
    async fn probes(&self) -> Result<Vec<Vec<u8>>> {
        let mut probes = Vec::new();
        for (name, _) in SERVERS {
            let server = SocketAddr::new(self.namespace.ip(name).await?, PROBED);
            let probe = |ip| frame::udp(SocketAddr::new(ip, PROBED), server)[ETHERNET_BYTES..].to_vec();
            probes.extend(self.addresses().into_iter().map(probe));
        }
        Ok(probes)
    }

    /// Frees the old pods' addresses; returns when the last was free.
    async fn free(&self) -> Result<u64> {
        if self.way == Way::StillListed {
            for number in self.first..self.first + AT_ONCE {
                let route = self
                    .node
                    .run(&["ip", "-oneline", "route", "get", &address(number).to_string()])?;
                let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
                let link = words
                    .nth(1)
                    .with_context(|| format!("failed to find a pod's link in `{route}`"))?;
                self.node.run(&["ip", "link", "delete", link])?;
                self.ipam.release(address(number))?;
                self.ipam.release(address6(number))?;
            }
            return Ok(microseconds(SystemTime::now()));
        }
        let soon = DeleteParams {
            grace_period_seconds: Some(1),
            ..DeleteParams::default()
        };
        let old = ListParams::default().labels("role=old");
        let deleted = self.namespace.pods().delete_collection(&soon, &old).await;
        deleted.context("failed to delete pods")?;
        let addresses = self.addresses();
        until(|| {
            Ok(addresses
                .iter()
                .all(|ip| !self.ipam.taken().is_ok_and(|taken| taken.contains_key(ip))))
        })
        .await?;
        Ok(microseconds(SystemTime::now()))
    }

    /// When each address was given to its new pod.
    async fn given(&self) -> Result<BTreeMap<IpAddr, u64>> {
        let mut given = BTreeMap::new();
        let addresses = self.addresses();
        until(|| {
            let taken = self.ipam.taken()?;
            let times = addresses
                .iter()
                .filter_map(|ip| Some((*ip, microseconds(*taken.get(ip)?))));
            given.extend(times);
            Ok(given.len() == addresses.len())
        })
        .await?;
        Ok(given)
    }

    async fn remove(&self) -> Result<()> {
        let at_once = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        let all = ListParams::default().labels("role in (old, new)");
        let deleted = self.namespace.pods().delete_collection(&at_once, &all).await;
        deleted.context("failed to delete pods")?;
        Ok(())
    }
}

/// Looks every few milliseconds: what is looked for does not last.
async fn until(mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let looked = async {
        while !condition()? {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    };
    let looked = tokio::time::timeout(PATIENCE, looked).await;
    looked.context("timed out waiting for addresses to change hands")?
}

/// One of node1's.
fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, 0, number).into()
}

fn address6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, number.into()).into()
}

fn microseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
