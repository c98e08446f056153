// SPDX-License-Identifier: Apache-2.0
//! A Prometheus of a test's own, and promtool.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::http_get;
use crate::command::{output_of, tail};
use crate::layout::Layout;
use crate::progress::wait_until;
use crate::tools;

fn program(layout: &Layout, name: &str) -> Result<PathBuf> {
    Ok(tools::debian(layout, "prometheus", &["prometheus"])?
        .join("usr/bin")
        .join(name))
}

/// Runs promtool, and returns what it says.
///
/// # Errors
/// When it finds fault.
pub fn promtool(layout: &Layout, arguments: &[&str], files: &[&Path]) -> Result<String> {
    output_of(Command::new(program(layout, "promtool")?).args(arguments).args(files))
}

/// What promtool has to say about metrics that were scraped: nothing where they are as its conventions ask.
pub fn faults_of(layout: &Layout, metrics: &str) -> Result<String> {
    let mut promtool = Command::new(program(layout, "promtool")?);
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    promtool.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().context("failed to start promtool")?;
    let mut input = child.stdin.take().context("failed to write to promtool")?;
    input
        .write_all(metrics.as_bytes())
        .context("failed to write to promtool")?;
    drop(input);
    let output = child.wait_with_output().context("failed to wait for promtool")?;
    let said = [output.stdout, output.stderr].concat();
    let mut faults = String::from_utf8_lossy(&said).into_owned();
    if !output.status.success() {
        let _ = write!(faults, "{}", output.status);
    }
    Ok(faults)
}

/// What is scraped: addresses, with the job and the node that the chart's `ServiceMonitor` would give them.
#[derive(Debug, Clone)]
pub struct Target {
    pub job: &'static str,
    pub node: String,
    pub address: String,
}

/// A running Prometheus; it ends with this value.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    folder: tempfile::TempDir,
    address: String,
}

impl Prometheus {
    /// Starts one that scrapes `targets` every two seconds, and evaluates the rules of `rules`.
    pub async fn start(layout: &Layout, targets: &[Target], rules: &Path) -> Result<Self> {
        let folder = tempfile::tempdir().context("failed to create a folder for Prometheus")?;
        let mut config = format!(
            "global: {{scrape_interval: 2s, evaluation_interval: 2s}}\nrule_files: [{}]\nscrape_configs:\n",
            rules.display()
        );
        for (number, target) in targets.iter().enumerate() {
            let Target { job, node, address } = target;
            let _ = write!(
                config,
                "- job_name: target-{number}\n  static_configs:\n  - targets: ['{address}']\n    \
                 labels: {{job: {job}, node: {node}}}\n"
            );
        }
        let path = folder.path().join("prometheus.yml");
        fs::write(&path, config).with_context(|| format!("failed to write {}", path.display()))?;
        let log = fs::File::create(folder.path().join("log")).context("failed to create a log for Prometheus")?;
        let address = free_address()?;
        let mut command = Command::new(program(layout, "prometheus")?);
        command
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().context("failed to start Prometheus")?;
        let mut prometheus = Self { child, folder, address };
        let started = wait_until("Prometheus", Duration::from_mins(1), async || {
            ensure!(prometheus.child.try_wait()?.is_none(), "it has ended");
            http_get(&prometheus.address, "/-/ready").await.map(Some)
        })
        .await;
        match started {
            Ok(_) => Ok(prometheus),
            Err(error) => bail!(
                "{error:#}; it says:\n{}",
                tail(&prometheus.folder.path().join("log"), 15)
            ),
        }
    }

    /// The series that a query gives, each with its labels and its value.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let answer = self.get(&format!("/api/v1/query?query={}", escape(expression))).await;
        let answer = answer.with_context(|| format!("failed to query {expression}"))?;
        let result = answer["data"]["result"].as_array();
        Ok(result
            .with_context(|| format!("failed to read the answer to {expression}: {answer}"))?
            .clone())
    }

    /// Every rule, with its health and its last error.
    pub async fn rules(&self) -> Result<Vec<Value>> {
        let answer = self.get("/api/v1/rules").await.context("failed to list rules")?;
        let groups = answer["data"]["groups"]
            .as_array()
            .context("failed to list rules: there are no groups")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array());
        Ok(rules.flatten().cloned().collect())
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let answer: Value = serde_json::from_str(&http_get(&self.address, path).await?)?;
        ensure!(answer["status"] == "success", "{answer}");
        Ok(answer)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of this machine's that nobody listens on.
fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("failed to find a free port")?;
    Ok(listener.local_addr().context("failed to find a free port")?.to_string())
}

/// As a part of a URL's query.
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn queries_become_parts_of_urls() {
        assert_eq!(escape("a{b=\"c\"}+1"), "a%7Bb%3D%22c%22%7D%2B1");
    }
}
