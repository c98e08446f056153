// SPDX-License-Identifier: Apache-2.0
//! Servers and clients of benchmarks: the same static program, started the same way in every network namespace.
//!
//! Not by `exec` into pods: what is compared should differ in its network only, not in its cgroup or its parent.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::wires::Place;

/// The port that the servers listen on.
pub const PORT: u16 = 9000;

/// The program `traffic`, as a static binary.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Where it is.
    pub program: PathBuf,
}

/// A program that runs until this is dropped, and the lines that it prints.
#[derive(Debug)]
pub struct Running {
    lines: Lines<BufReader<ChildStdout>>,
    /// Killed when dropped.
    child: Child,
}

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Done {
    /// Requests answered, or connections opened.
    pub transactions: u64,
    /// How long it took.
    pub seconds: f64,
    /// How long the slowest request took, where that is told.
    pub longest_gap_ms: Option<f64>,
}

impl Done {
    /// Transactions a second.
    pub fn rate(&self) -> f64 {
        count(self.transactions) / self.seconds
    }
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn count(number: u64) -> f64 {
    number as f64
}

impl Traffic {
    /// Starts it in a place.
    pub fn start(&self, place: &Place, args: &[&str]) -> Result<Running> {
        let mut command = Command::new("nsenter");
        command.arg(net_argument(&place.netns)).arg("--").arg(&self.program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("failed to start traffic {args:?}"))?;
        let stdout = child.stdout.take().context("failed to read what traffic prints")?;
        Ok(Running {
            lines: BufReader::new(stdout).lines(),
            child,
        })
    }

    /// Starts a server for `rr` and `crr` on [`PORT`], and waits until it listens.
    pub async fn respond(&self, place: &Place, threads: u16) -> Result<Running> {
        let (port, threads) = (PORT.to_string(), threads.to_string());
        let mut server = self.start(place, &["respond", "--port", &port, "--threads", &threads])?;
        server.event().await?;
        Ok(server)
    }

    /// Runs a client to its end.
    pub async fn run(&self, place: &Place, args: &[&str]) -> Result<Done> {
        let mut client = self.start(place, args)?;
        let said = client.event().await;
        let status = client.child.wait().await;
        let status = status.with_context(|| format!("failed to wait for traffic {args:?}"))?;
        ensure!(status.success(), "traffic {args:?} failed: {status}");
        serde_json::from_value(said?).with_context(|| format!("failed to read what traffic {args:?} printed"))
    }

    /// Runs `rr` or `crr` from one place to the server in another.
    pub async fn load(&self, kind: &str, [client, server]: &[Place; 2], duration: Duration) -> Result<Done> {
        let address = format!("{}:{PORT}", server.address);
        let milliseconds = duration.as_millis().to_string();
        self.run(client, &[kind, &address, "--duration", &milliseconds]).await
    }
}

impl Running {
    /// The next line that it prints.
    pub async fn event(&mut self) -> Result<serde_json::Value> {
        let line = tokio::time::timeout(Duration::from_mins(1), self.lines.next_line()).await;
        let line = line.context("failed to hear from traffic: it said nothing for 60 s")?;
        let line = line.context("failed to read what traffic prints")?;
        let line = line.context("failed to hear from traffic: it has ended")?;
        serde_json::from_str(&line).with_context(|| format!("failed to decode `{line}`"))
    }
}

fn net_argument(netns: &Path) -> String {
    format!("--net={}", netns.display())
}
