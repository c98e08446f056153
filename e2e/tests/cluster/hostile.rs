// SPDX-License-Identifier: Apache-2.0
//! A pod that forges, floods and scans with what the runtime lets any pod do (raw sockets), while its neighbours talk.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wardline_bpf::frame::{self, ETHERNET_BYTES, flag, protocol};
use wardline_e2e::cluster::{LabNode, Metrics};
use wardline_e2e::container::ContainerProcess;
use wardline_e2e::layout::{API_SERVICE, NODES, OUTSIDE};
use wardline_e2e::namespace::{PORT, TestNamespace, with_namespace_alone};
use wardline_e2e::progress::wait_until;
use wardline_e2e::raw::{self, Flood, Watcher};
use wardline_e2e::traffic::Protocol;
use wardline_e2e::{dataplane, logging, wardline};

use crate::WEB_TAKES_FRIENDS;
use crate::daemon::{check_balance, check_flow};

/// How long counters may take to show what has happened.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between messages of a flow.
const INTERVAL: Duration = Duration::from_millis(10);
/// Datagrams that a busy machine may lose on its own, of more than a thousand.
const NOISE: usize = 2;
/// Milliseconds between two echoes of a flow, at most: a busy machine lets a process wait for hundreds of them.
const LATE: u64 = 2000;
/// Where forged packets come from and go to; nobody listens there.
const FORGED: u16 = 9;
/// Of each forged or crafted packet.
const TIMES: u64 = 100;
const FLOOD: Flood = Flood {
    rate: 50_000,
    ports: u16::MAX,
    duration: Duration::from_secs(10),
};
/// How much the daemon's memory, and that of its maps, may grow, in MiB. The ring of events is mapped twice, 8 MiB each,
/// and counts as it is gone through; the maps that are not allocated in advance hold no connections.
const RESIDENT_GROWTH: f64 = 20.0;
const MAP_GROWTH: f64 = 1.0;
/// Addresses that no pod has.
const NOBODY: [&str; 2] = ["10.244.0.254", "fd00:10:244::fe"];
const API_SERVICE6: &str = "fd00:10:96::1";

const ADMITTED: [(&str, &str); 2] = [("friend1", "node1"), ("friend2", "node2")];

#[tokio::test]
async fn a_hostile_pod_gets_nowhere_and_its_neighbours_do_not_notice() -> Result<()> {
    with_namespace_alone("hostile", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let enforce = json!({"policy": {"sourceAddressCheck": "Enforce"}});
        let audit = json!({"policy": {"sourceAddressCheck": "Audit"}});
        let tested = dataplane::while_patched(lab, &enforce, &audit, async || {
            wardline::wait_ready(lab).await?;
            Box::pin(attacked(namespace)).await
        })
        .await;
        // The records of a scan are many, and nobody reads them.
        lab.node("node1")?.forget_rotated_records()?;
        tested
    })
    .await
}

async fn attacked(namespace: &TestNamespace) -> Result<()> {
    let _logged = logging::on(&namespace.lab).await?;
    for (pod, node) in [("web", "node1"), ("open", "node2"), ("hostile", "node1")] {
        namespace.server(pod, node).await?;
    }
    for (client, node) in ADMITTED {
        namespace.client(client, node).await?;
    }
    namespace.ready().await?;
    namespace
        .apply(&WEB_TAKES_FRIENDS.replace("[{protocol: TCP, port: 8080}]", "[]"))
        .await?;
    namespace.until_reach("hostile", "web", false).await?;
    let mut held = Vec::new();
    for (client, _) in ADMITTED {
        for server in ["web", "open"] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                held.push((
                    client,
                    server,
                    namespace.hold(client, server, protocol, INTERVAL).await?,
                ));
            }
        }
    }
    let node = namespace.lab.node("node1")?;
    let before = Figures::read(namespace, node).await?;
    let hostile = Hostile::of(namespace).await?;
    let (sent, attempts) = tokio::try_join!(hostile.attack(), talk(namespace))?;
    let after = Figures::read(namespace, node).await?;
    let (mut messages, mut longest_gap) = (0, 0);
    for (client, server, flow) in held {
        let fared = flow.finish().await?;
        check_flow(&format!("{client} -> {server}"), &fared, NOISE)?;
        messages += fared.sent;
        longest_gap = longest_gap.max(fared.longest_gap_ms);
    }
    println!("sent {sent:?}, before: {before}, after: {after}");
    println!("others meanwhile: {attempts} connections, {messages} messages, at most {longest_gap} ms between echoes");
    ensure!(longest_gap < LATE, "{longest_gap} ms between two echoes");
    after.check_bounds(&before)?;
    check_counted(node, &before.metrics, &sent).await?;
    check_balance(node).await
}

/// New connections of those that are admitted, for as long as the attack goes on; returns how many.
async fn talk(namespace: &TestNamespace) -> Result<u32> {
    let (began, mut attempts) = (Instant::now(), 0);
    while began.elapsed() < FLOOD.duration {
        let attempt = |client, server| namespace.attempt(client, server, Protocol::Tcp);
        let made = tokio::try_join!(
            attempt("friend1", "web"),
            attempt("friend2", "web"),
            attempt("friend1", "open"),
            attempt("friend2", "open")
        )?;
        for attempt in [made.0, made.1, made.2, made.3] {
            ensure!(attempt.ok, "an admitted client was refused: {attempt:?}");
            attempts += 1;
        }
    }
    Ok(attempts)
}

/// Packets sent, by the reason that they should be dropped for.
#[derive(Debug, Default)]
struct Sent {
    /// By the pod's own edge.
    at_the_pod: BTreeMap<&'static str, u64>,
    /// SYNs of the pod's own address to another pod's ports: until its quota is used up the other pod's edge drops
    /// them.
    flood: u64,
}

/// The hostile pod, whom it attacks, and whose addresses it takes.
struct Hostile<'a> {
    namespace: &'a TestNamespace,
    /// Its own, one a family.
    own: Vec<IpAddr>,
    /// One that takes friends only, and one that takes everybody.
    targets: [Vec<IpAddr>; 2],
    stolen: Vec<IpAddr>,
}

impl<'a> Hostile<'a> {
    async fn of(namespace: &'a TestNamespace) -> Result<Self> {
        let mut stolen = Vec::new();
        for (client, _) in ADMITTED {
            stolen.extend(namespace.ips(client).await?);
        }
        let nodes = NODES.iter().flat_map(|node| [node.address, node.address6]);
        let others = [API_SERVICE, API_SERVICE6, OUTSIDE.address, OUTSIDE.address6];
        for text in nodes.chain(others).chain(NOBODY) {
            stolen.push(text.parse().with_context(|| format!("failed to parse {text}"))?);
        }
        Ok(Self {
            namespace,
            own: namespace.ips("hostile").await?,
            targets: [namespace.ips("web").await?, namespace.ips("open").await?],
            stolen,
        })
    }

    /// All at once, and nobody sees a packet of it that is not the pod's own.
    async fn attack(&self) -> Result<Sent> {
        let pods = self.namespace.pods();
        let watchers = [
            Watcher::start(&pods, "web", FORGED).await?,
            Watcher::start(&pods, "open", FORGED).await?,
        ];
        // They see: what is the pod's own arrives where everybody is taken.
        let honest = self.own.iter().zip(&self.targets[1]);
        let honest: Vec<_> = honest.map(|(own, to)| datagram(*own, *to)).collect();
        raw::send(&pods, "hostile", &honest, TIMES).await?;
        let web = SocketAddr::new(self.targets[0][0], 1);
        let flood = FLOOD.run(&pods, "hostile", self.own[0], web);
        let forged = self.forged();
        let crafted = self.crafted();
        let (flood, forged, at_the_pod) = tokio::try_join!(
            flood,
            raw::send(&pods, "hostile", &forged, TIMES),
            send_each(self.namespace, &crafted)
        )?;
        let mut sent = Sent { at_the_pod, flood };
        sent.at_the_pod.insert("spoofed", forged);
        let [web, open] = watchers;
        let (web, open) = (web.finish().await?, open.finish().await?);
        ensure!(web.is_empty(), "web has seen forged packets: {web:?}");
        let seen: BTreeMap<IpAddr, u64> = open.into_iter().map(|(from, seen)| (from, seen.packets)).collect();
        let expected: BTreeMap<IpAddr, u64> = self.own.iter().map(|own| (*own, TIMES)).collect();
        ensure!(seen == expected, "open has seen {seen:?} instead of {expected:?}");
        Ok(sent)
    }

    /// SYNs and datagrams to both targets, from addresses that are not the pod's.
    fn forged(&self) -> Vec<Vec<u8>> {
        let targets = self.targets.iter().flatten();
        let pairs = targets.flat_map(|to| self.stolen.iter().map(move |from| (*from, *to)));
        let same_family = pairs.filter(|(from, to)| from.is_ipv4() == to.is_ipv4());
        same_family
            .flat_map(|(from, to)| [datagram(from, to), syn(from, to)])
            .collect()
    }

    /// Fragments and chains of headers to the one that takes everybody, and the reason that each is dropped for.
    fn crafted(&self) -> Vec<(Vec<u8>, Option<&'static str>)> {
        self.own
            .iter()
            .zip(&self.targets[1])
            .flat_map(|(own, to)| crafted(*own, *to))
            .collect()
    }
}

fn packet(frame: &[u8]) -> Vec<u8> {
    frame[ETHERNET_BYTES..].to_vec()
}

fn datagram(from: IpAddr, to: IpAddr) -> Vec<u8> {
    packet(&frame::udp(SocketAddr::new(from, FORGED), SocketAddr::new(to, FORGED)))
}

fn syn(from: IpAddr, to: IpAddr) -> Vec<u8> {
    packet(&frame::tcp(
        SocketAddr::new(from, FORGED),
        SocketAddr::new(to, FORGED),
        flag::SYN,
    ))
}

/// None of them a whole honest packet. The reason that each is dropped for: one is needed for the next, and passes.
fn crafted(own: IpAddr, to: IpAddr) -> Vec<(Vec<u8>, Option<&'static str>)> {
    let whole = frame::tcp(SocketAddr::new(own, FORGED), SocketAddr::new(to, PORT), flag::SYN);
    let [high, low] = PORT.to_be_bytes();
    let long = [vec![0, 1, high, low, 0, 24, 0, 0], vec![0; 16]].concat();
    let long = frame::ip(own, to, protocol::UDP, &long);
    let mut frames = vec![
        // The flags would come in the second, and be judged by nobody.
        (frame::fragment(&whole, 1, 0..8), Some("malformed")),
        // Nothing went before.
        (frame::fragment(&whole, 2, 8..16), Some("fragment")),
        (frame::fragment(&whole, 3, 8..20), Some("fragment")),
        (frame::fragment(&whole, 4, 0..0), Some("malformed")),
        // The second lies over the end of the first.
        (frame::fragment(&long, 5, 0..16), None),
        (frame::fragment(&long, 5, 8..24), Some("malformed")),
    ];
    if own.is_ipv6() {
        let options = (protocol::DESTINATION_OPTIONS, vec![0, 0, 1, 4, 0, 0, 0, 0]);
        frames.push((frame::extended(&whole, &vec![options; 40]), Some("extension-header")));
        frames.push((
            frame::extended(&whole, &[(protocol::ROUTING, vec![0; 8])]),
            Some("extension-header"),
        ));
    }
    frames
        .into_iter()
        .map(|(frame, reason)| (packet(&frame), reason))
        .collect()
}

/// Sends packets; returns how many should be dropped, by reason.
async fn send_each(
    namespace: &TestNamespace,
    packets: &[(Vec<u8>, Option<&'static str>)],
) -> Result<BTreeMap<&'static str, u64>> {
    let bytes: Vec<Vec<u8>> = packets.iter().map(|(packet, _)| packet.clone()).collect();
    raw::send(&namespace.pods(), "hostile", &bytes, TIMES).await?;
    let mut sent = BTreeMap::new();
    for reason in packets.iter().filter_map(|(_, reason)| *reason) {
        *sent.entry(reason).or_default() += TIMES;
    }
    Ok(sent)
}

/// What a node's daemon counts, and what it and its maps take.
struct Figures {
    metrics: Metrics,
    resident_mebibytes: f64,
    map_mebibytes: f64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (resident, maps) = (self.resident_mebibytes, self.map_mebibytes);
        write!(formatter, "daemon {resident:.1} MiB, maps {maps:.1} MiB")
    }
}

impl Figures {
    async fn read(namespace: &TestNamespace, node: LabNode<'_>) -> Result<Self> {
        let daemon = ContainerProcess::of_daemon(&namespace.lab, node.spec.name).await?;
        Ok(Self {
            metrics: node.metrics().await?,
            resident_mebibytes: daemon.resident_mebibytes()?,
            map_mebibytes: daemon.map_mebibytes()?,
        })
    }

    fn check_bounds(&self, before: &Self) -> Result<()> {
        let resident = self.resident_mebibytes - before.resident_mebibytes;
        let maps = self.map_mebibytes - before.map_mebibytes;
        ensure!(
            resident <= RESIDENT_GROWTH && maps <= MAP_GROWTH,
            "the daemon grew by {resident:.1} MiB, and its maps by {maps:.1}"
        );
        Ok(())
    }
}

/// Each packet is counted once, under its own reason.
async fn check_counted(node: LabNode<'_>, before: &Metrics, sent: &Sent) -> Result<()> {
    wait_until("every packet to be counted", PATIENCE, async || {
        let now = node.metrics().await?;
        let grown = |direction: &str, reason: &str| {
            let labels = [format!("direction=\"{direction}\""), format!("reason=\"{reason}\"")];
            let labels = labels.each_ref().map(String::as_str);
            let at = |metrics: &Metrics| metrics.sum("wardline_packets_total", &labels).unwrap_or(0.0);
            at(&now) - at(before)
        };
        for (reason, sent) in &sent.at_the_pod {
            check_count(reason, grown("egress", reason), *sent)?;
        }
        let quota = grown("egress", "half-open-quota");
        let denied = grown("ingress", "default-deny");
        check_count("of the flood", quota + denied, sent.flood)?;
        println!("of the flood {quota} were dropped by the quota, {denied} by the other pod's policy");
        Ok(Some(()))
    })
    .await
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn check_count(what: &str, counted: f64, sent: u64) -> Result<()> {
    ensure!(
        (counted - sent as f64).abs() < 0.5,
        "{what}: {counted} counted, {sent} sent"
    );
    Ok(())
}
