// SPDX-License-Identifier: Apache-2.0
//! Clients in pods: one attempt, or a connection that stays open and is watched. [`crate::raw`] has those that forge.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, AttachedProcess};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

use crate::layout::Layout;
use crate::progress::{step, wait_until};
use crate::{images, network};

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// Datagrams between two fixed ports.
    Udp,
}

/// How a command in a pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Whether it exited with 0.
    pub success: bool,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

/// Runs a command in a pod's first container, to its end.
pub async fn exec(pods: &Api<Pod>, pod: &str, command: &[&str]) -> Result<Output> {
    let streams = AttachParams::default().stdout(true).stderr(true).stdin(false);
    let mut process = attach(pods, pod, command, &streams).await?;
    let status = process
        .take_status()
        .context("failed to follow a command: it has no status")?;
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let (mut out, mut err) = (String::new(), String::new());
    // Both at once: a command that fills one while nobody reads it would wait for ever.
    let read = async {
        tokio::try_join!(
            async {
                if let Some(mut stream) = stdout {
                    stream.read_to_string(&mut out).await
                } else {
                    Ok(0)
                }
            },
            async {
                if let Some(mut stream) = stderr {
                    stream.read_to_string(&mut err).await
                } else {
                    Ok(0)
                }
            },
        )
    };
    read.await
        .with_context(|| format!("failed to read the output of {command:?} in Pod {pod}"))?;
    let status = status
        .await
        .with_context(|| format!("failed to learn how {command:?} in Pod {pod} ended"))?;
    Ok(Output {
        success: status.status.as_deref() == Some("Success"),
        stdout: out,
        stderr: err,
    })
}

async fn attach(pods: &Api<Pod>, pod: &str, command: &[&str], streams: &AttachParams) -> Result<AttachedProcess> {
    let process = pods.exec(pod, command.iter().copied(), streams).await;
    process.with_context(|| format!("failed to run {command:?} in Pod {pod}"))
}

fn connect_command<'a>(program: &'a str, server: &'a str, protocol: Protocol) -> Vec<&'a str> {
    let mut command = vec![program, "connect", server];
    if protocol == Protocol::Udp {
        command.push("--udp");
    }
    command
}

/// One connection, one message, one echo.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attempt {
    /// Whether the echo came.
    pub ok: bool,
    /// How far it came: connect, send or echo.
    pub stage: String,
    /// The client's port, if it came to have one.
    pub local_port: Option<u16>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Attempt {
    /// Makes the attempt from a pod. It gives up after 2 s: two retransmissions of a SYN fit in.
    pub async fn make(pods: &Api<Pod>, from: &str, server: SocketAddr, protocol: Protocol) -> Result<Self> {
        let server = server.to_string();
        let command = connect_command("/bin/traffic", &server, protocol);
        let output = exec(pods, from, &command).await?;
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("failed to read the result of {command:?} in Pod {from}: {output:?}"))
    }

    /// Makes the same attempt from a socket in one of the lab's network namespaces: a node's, or
    /// [`OUTSIDE`](crate::layout::OUTSIDE)'s.
    pub async fn make_in(layout: &Layout, netns: &str, server: SocketAddr, protocol: Protocol) -> Result<Self> {
        let program = images::static_binary(layout, "traffic")?.display().to_string();
        let server = server.to_string();
        let command = connect_command(&program, &server, protocol);
        let output = tokio::process::Command::from(network::command_in(netns, &command))
            .output()
            .await;
        let output = output.with_context(|| format!("failed to run {command:?} in {netns}"))?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("failed to read the result of {command:?} in {netns}: {output:?}"))
    }

    /// Whether it failed as a dropped packet makes it fail: by silence, not by a refusal.
    pub fn timed_out(&self) -> bool {
        let error = self.error.as_deref().unwrap_or_default();
        !self.ok && (error.contains("timed out") || error.contains("temporarily unavailable"))
    }
}

/// What a client says that runs for a while.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Said {
    Connected {
        local_port: Option<u16>,
    },
    Echo {
        seq: u64,
        at_ms: u64,
    },
    Error {
        error: String,
    },
    Closed,
    Watching,
    Seen {
        from: IpAddr,
        packets: u64,
        last_us: u64,
    },
    Done {
        #[serde(default)]
        sent: u64,
        #[serde(default)]
        failed: u64,
    },
}

/// A client that runs in a pod until it is told to end, and what it has said so far.
pub(crate) struct Running {
    name: String,
    said: Arc<Mutex<Vec<Said>>>,
    /// The client ends when this does.
    stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Dropping it would cut the connection to the pod.
    process: AttachedProcess,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Running")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Running {
    /// Starts it; `name` is what messages call it.
    pub(crate) async fn start(pods: &Api<Pod>, pod: &str, name: String, command: &[&str]) -> Result<Self> {
        let streams = AttachParams::default().stdin(true).stdout(true).stderr(true);
        let mut process = attach(pods, pod, command, &streams).await?;
        tokio::spawn(complain(name.clone(), process.stderr(), process.take_status()));
        let stdout = process.stdout();
        let stdout = stdout.with_context(|| format!("failed to follow {name}: it has no output"))?;
        let stdin = process
            .stdin()
            .map(|stdin| Box::new(stdin) as Box<dyn AsyncWrite + Send + Unpin>);
        let said = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&said);
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(event) = serde_json::from_str(&line) {
                    writer.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                }
            }
        });
        Ok(Self {
            name,
            said,
            stdin,
            process,
        })
    }

    /// Starts one that sends to a server each `interval`; `how` is the command of `traffic`.
    async fn paced(
        pods: &Api<Pod>,
        pod: &str,
        name: String,
        how: &str,
        server: SocketAddr,
        protocol: Protocol,
        interval: Duration,
    ) -> Result<Self> {
        let (server, milliseconds) = (server.to_string(), interval.as_millis().to_string());
        let mut command = vec!["/bin/traffic", how, &server, "--interval", &milliseconds];
        if protocol == Protocol::Udp {
            command.push("--udp");
        }
        Self::start(pods, pod, name, &command).await
    }

    /// What it has said so far.
    pub(crate) fn events(&self) -> Vec<Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it; returns how much it says that it has sent, and all that it has said.
    pub(crate) async fn end(mut self) -> Result<(u64, Vec<Said>)> {
        if let Some(mut stdin) = self.stdin.take() {
            // Dropping it would not do: its other half, which kube reads, keeps the stream open.
            stdin
                .shutdown()
                .await
                .with_context(|| format!("failed to end {}", self.name))?;
        }
        let what = format!("the end of {}", self.name);
        let sent = wait_until(&what, Duration::from_secs(30), async || {
            Ok(self.events().iter().find_map(|event| match event {
                Said::Done { sent, .. } => Some(*sent),
                _ => None,
            }))
        })
        .await?;
        self.process.abort();
        Ok((sent, self.events()))
    }
}

/// Shows what a client has to say beside its events, and how it ended where it failed: whoever waits for an event of it
/// does not know.
async fn complain(
    name: String,
    stderr: Option<impl AsyncRead + Unpin>,
    status: Option<impl Future<Output = Option<Status>>>,
) {
    if let Some(stderr) = stderr {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            step(&format!("    {name} says: {line}"));
        }
    }
    let Some(status) = status else { return };
    if let Some(Status {
        status: Some(how),
        message,
        ..
    }) = status.await
        && how != "Success"
    {
        step(&format!("    {name} failed: {}", message.unwrap_or(how)));
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Held {
    client: Running,
}

/// How a held connection fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Messages sent.
    pub sent: u64,
    /// The numbers whose echo never came.
    pub missing: Vec<u64>,
    /// The numbers whose echo came twice.
    pub twice: Vec<u64>,
    /// The longest time between two echoes, in milliseconds.
    pub longest_gap_ms: u64,
}

impl Held {
    /// Opens it, and waits for the first echo.
    pub async fn open(
        pods: &Api<Pod>,
        from: &str,
        server: SocketAddr,
        protocol: Protocol,
        interval: Duration,
    ) -> Result<Self> {
        let name = format!("{from} -> {server}");
        let client = Running::paced(pods, from, name, "hold", server, protocol, interval).await?;
        let held = Self { client };
        held.until_echoes(1).await?;
        Ok(held)
    }

    /// The client's port.
    pub fn local_port(&self) -> Option<u16> {
        self.client.events().iter().find_map(|event| match event {
            Said::Connected { local_port } => *local_port,
            _ => None,
        })
    }

    /// How many echoes have come.
    pub fn echoes(&self) -> usize {
        self.client
            .events()
            .iter()
            .filter(|event| matches!(event, Said::Echo { .. }))
            .count()
    }

    /// Waits until `more` further echoes have come: the connection lives.
    pub async fn until_echoes(&self, more: usize) -> Result<()> {
        let wanted = self.echoes() + more;
        let what = format!("{more} more echoes of {}", self.client.name);
        wait_until(&what, Duration::from_secs(30), async || {
            for event in self.client.events() {
                match event {
                    Said::Error { error } => bail!("the client says: {error}"),
                    Said::Closed => bail!("the server closed the connection"),
                    _ => {}
                }
            }
            Ok((self.echoes() >= wanted).then_some(()))
        })
        .await
    }

    /// Waits until no echo has come while `other` had `quiet` of them: this connection has stopped, that one lives.
    pub async fn until_stopped_beside(&self, other: &Self, quiet: usize) -> Result<()> {
        let (mut mine, mut theirs) = (self.echoes(), other.echoes());
        let what = format!("{} to stop while {} goes on", self.client.name, other.client.name);
        wait_until(&what, Duration::from_mins(1), async || {
            if self.echoes() != mine {
                (mine, theirs) = (self.echoes(), other.echoes());
            }
            Ok((other.echoes() >= theirs + quiet).then_some(()))
        })
        .await
    }

    /// Ends the client, and tells how the connection fared.
    pub async fn finish(self) -> Result<Summary> {
        let (sent, events) = self.client.end().await?;
        Ok(summarise(sent, &events))
    }
}

/// A client that connects again and again.
#[derive(Debug)]
pub struct Again {
    client: Running,
}

/// How its attempts fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts {
    /// Made.
    pub made: u64,
    /// Of these, those that failed.
    pub failed: u64,
    /// What was said of them.
    pub errors: Vec<String>,
}

impl Again {
    /// Starts it. Of UDP it makes 55,535 attempts at most, each from a port of its own.
    pub async fn start(
        pods: &Api<Pod>,
        from: &str,
        server: SocketAddr,
        protocol: Protocol,
        interval: Duration,
    ) -> Result<Self> {
        let name = format!("{from} -> {server}, again and again");
        let client = Running::paced(pods, from, name, "again", server, protocol, interval).await?;
        Ok(Self { client })
    }

    /// Ends it.
    pub async fn finish(self) -> Result<Attempts> {
        let (made, events) = self.client.end().await?;
        let failed = events.iter().find_map(|event| match event {
            Said::Done { failed, .. } => Some(*failed),
            _ => None,
        });
        let errors = events.into_iter().filter_map(|event| match event {
            Said::Error { error } => Some(error),
            _ => None,
        });
        Ok(Attempts {
            made,
            failed: failed.unwrap_or_default(),
            errors: errors.collect(),
        })
    }
}

fn summarise(sent: u64, events: &[Said]) -> Summary {
    let echoes: Vec<(u64, u64)> = events
        .iter()
        .filter_map(|event| match event {
            Said::Echo { seq, at_ms } => Some((*seq, *at_ms)),
            _ => None,
        })
        .collect();
    let mut came: HashMap<u64, usize> = HashMap::new();
    for (seq, _) in &echoes {
        *came.entry(*seq).or_default() += 1;
    }
    let times = |seq: u64| came.get(&seq).copied().unwrap_or_default();
    // The client does not wait for long for the echo of its last message, so that one does not count as missing.
    let missing = (1..sent).filter(|seq| times(*seq) == 0).collect();
    let twice = (1..=sent).filter(|seq| times(*seq) > 1).collect();
    let gaps = echoes.windows(2).map(|pair| pair[1].1.saturating_sub(pair[0].1));
    Summary {
        sent,
        missing,
        twice,
        longest_gap_ms: gaps.max().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::{Said, Summary, summarise};

    #[test]
    fn a_summary_tells_what_is_missing_what_came_twice_and_the_longest_gap() {
        let echo = |seq, at_ms| Said::Echo { seq, at_ms };
        let events = [
            Said::Connected { local_port: Some(1) },
            echo(1, 100),
            echo(3, 400),
            echo(3, 410),
            echo(4, 500),
        ];
        let expected = Summary {
            sent: 5,
            missing: vec![2],
            twice: vec![3],
            longest_gap_ms: 300,
        };
        assert_eq!(summarise(5, &events), expected);
    }

    #[test]
    fn what_clients_say_is_understood() {
        let said: Said = serde_json::from_str(r#"{"at_ms":5,"event":"echo","seq":7}"#).unwrap();
        assert_eq!(said, Said::Echo { seq: 7, at_ms: 5 });
        let said: Said = serde_json::from_str(r#"{"event":"closed"}"#).unwrap();
        assert_eq!(said, Said::Closed);
    }
}
