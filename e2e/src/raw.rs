// SPDX-License-Identifier: Apache-2.0
//! Pods that send whatever packets they like, and pods that look at which packets arrive.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde::Deserialize;

use crate::progress::wait_until;
use crate::traffic::{Running, Said, exec};

/// How long a watcher may take to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends packets, given from their IP headers on, `times` times in turn; returns how many that were.
pub async fn send(pods: &Api<Pod>, from: &str, packets: &[Vec<u8>], times: u64) -> Result<u64> {
    let (packets, times) = (packets.iter().map(|packet| hexadecimal(packet)), times.to_string());
    let packets: Vec<String> = packets.collect();
    let mut command = vec!["/bin/traffic", "send", "--times", &times];
    command.extend(packets.iter().map(String::as_str));
    let done: Sent = run(pods, from, &command).await?;
    Ok(done.sent)
}

/// What a sender says at its end.
#[derive(Deserialize)]
struct Sent {
    sent: u64,
}

async fn run<T: serde::de::DeserializeOwned>(pods: &Api<Pod>, from: &str, command: &[&str]) -> Result<T> {
    let output = exec(pods, from, command).await?;
    ensure!(
        output.success,
        "failed to run {command:?} in Pod {from}: {}",
        output.stderr
    );
    serde_json::from_str(&output.stdout)
        .with_context(|| format!("failed to read what {command:?} printed in Pod {from}: {output:?}"))
}

/// TCP connections that nobody answers, and how they are spread.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    /// Connections a second, at most.
    pub rate: u32,
    /// How many ports are taken in turn, from the target's on.
    pub ports: u16,
    /// For how long.
    pub duration: Duration,
}

/// What a flood says at its end.
#[derive(Deserialize)]
struct Flooded {
    transactions: u64,
}

impl Flood {
    /// Sends it from a pod's own address; returns how many connections were opened, a packet each.
    pub async fn run(self, pods: &Api<Pod>, from: &str, source: IpAddr, to: SocketAddr) -> Result<u64> {
        let (source, to) = (source.to_string(), to.to_string());
        let (rate, ports) = (self.rate.to_string(), self.ports.to_string());
        let milliseconds = self.duration.as_millis().to_string();
        let mut command = vec!["/bin/traffic", "flood", &to, "--half-open", "--from", &source];
        command.extend(["--rate", &rate, "--ports", &ports, "--duration", &milliseconds]);
        let flooded: Flooded = run(pods, from, &command).await?;
        Ok(flooded.transactions)
    }
}

/// A pod that sends packets again and again.
#[derive(Debug)]
pub struct Sender {
    client: Running,
}

impl Sender {
    /// Starts to send all packets, given from their IP headers on, each `interval`.
    pub async fn start(pods: &Api<Pod>, from: &str, packets: &[Vec<u8>], interval: Duration) -> Result<Self> {
        let packets: Vec<String> = packets.iter().map(|packet| hexadecimal(packet)).collect();
        let interval = interval.as_micros().to_string();
        let mut command = vec!["/bin/traffic", "send", "--interval", &interval];
        command.extend(packets.iter().map(String::as_str));
        let client = Running::start(pods, from, format!("the packets of {from}"), &command).await?;
        Ok(Self { client })
    }

    /// Stops; returns how many packets it has sent.
    pub async fn finish(self) -> Result<u64> {
        Ok(self.client.end().await?.0)
    }
}

/// Packets from one source that came to a watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrivals {
    /// How many.
    pub packets: u64,
    /// When the last came, in microseconds since 1970.
    pub last_us: u64,
}

/// A pod that looks at what comes to it over the wire.
#[derive(Debug)]
pub struct Watcher {
    client: Running,
}

impl Watcher {
    /// Starts to look for TCP and UDP packets to `port`, and waits until nothing is missed any more.
    pub async fn start(pods: &Api<Pod>, pod: &str, port: u16) -> Result<Self> {
        let name = format!("the watcher in {pod}");
        let client = Running::start(pods, pod, name.clone(), &["/bin/traffic", "watch", &port.to_string()]).await?;
        wait_until(&name, PATIENCE, async || {
            Ok(client.events().contains(&Said::Watching).then_some(()))
        })
        .await?;
        Ok(Self { client })
    }

    /// What has come so far, by source.
    pub fn seen(&self) -> BTreeMap<IpAddr, Arrivals> {
        arrivals(&self.client.events())
    }

    /// Stops; returns all that came, by source.
    pub async fn finish(self) -> Result<BTreeMap<IpAddr, Arrivals>> {
        Ok(arrivals(&self.client.end().await?.1))
    }
}

/// The last word about each source.
fn arrivals(events: &[Said]) -> BTreeMap<IpAddr, Arrivals> {
    let seen = events.iter().filter_map(|event| match *event {
        Said::Seen { from, packets, last_us } => Some((from, Arrivals { packets, last_us })),
        _ => None,
    });
    seen.collect()
}

fn hexadecimal(packet: &[u8]) -> String {
    use std::fmt::Write as _;
    packet.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::{Arrivals, arrivals, hexadecimal};

    #[test]
    fn the_last_word_about_a_source_counts() {
        let lines = [
            r#"{"event":"watching"}"#,
            r#"{"event":"seen","from":"10.0.0.1","packets":2,"last_us":5}"#,
            r#"{"event":"seen","from":"fd00::1","packets":1,"last_us":6}"#,
            r#"{"event":"seen","from":"10.0.0.1","packets":3,"last_us":7}"#,
            r#"{"event":"done"}"#,
        ];
        let said: Vec<_> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let arrivals = arrivals(&said);
        let of = |ip: &str| arrivals[&ip.parse().unwrap()];
        assert_eq!(of("10.0.0.1"), Arrivals { packets: 3, last_us: 7 });
        assert_eq!(of("fd00::1"), Arrivals { packets: 1, last_us: 6 });
    }

    #[test]
    fn packets_are_written_in_digits() {
        assert_eq!(hexadecimal(&[0x45, 0, 0xff]), "4500ff");
    }
}
