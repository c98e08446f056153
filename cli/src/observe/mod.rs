// SPDX-License-Identifier: Apache-2.0
//! `wardline observe`.
//!
//! ```text
//! local:   the daemon's socket ------------------------------------\
//!                                                                    > Told --Merge--> Renderer
//! cluster: exec in each daemon's pod, `wardline-node observe` ------/
//! ```
//!
//! Records are filtered on their nodes; what comes here is shown.

mod args;
mod cluster;
mod local;
mod merge;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use tokio::sync::mpsc;
use wardline_record::filter::Decided;
use wardline_record::stream::{DEFAULT_SOCKET, Hello, Note, note};

pub(crate) use self::args::EXAMPLES;
pub use self::args::ObserveArgs;
use self::merge::Merge;
use crate::Outcome;
use crate::args::ClusterArgs;
use crate::cluster::Cluster;
use crate::records::{Renderer, Shown};

/// Records that wait to be shown; nodes wait when there are more, and tell what they could not keep.
const WAITING: usize = 1024;
/// Records of the past that are asked for when a node comes back: what it logged meanwhile.
const MISSED_AT_MOST: usize = 10_000;

/// What a source tells.
#[derive(Debug)]
enum Told {
    /// A node answers.
    Hello(Hello),
    Shown(Shown),
    /// A node does not answer, or no more.
    Problem {
        node: String,
        why: String,
    },
}

/// What was read of one node.
#[derive(Clone, Debug, Default)]
struct Session {
    /// As it calls itself.
    node: Option<String>,
    /// The last record's `seq`.
    last_seq: Option<String>,
}

impl Session {
    fn read(&mut self, line: &[u8]) -> Option<Told> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        match note(line) {
            Some(Note::Hello(hello)) => {
                self.node = Some(hello.node_name.clone());
                Some(Told::Hello(hello))
            }
            Some(Note::Refused { node_name, why }) => Some(Told::Problem { node: node_name, why }),
            Some(missed) => Shown::missed(missed).map(Told::Shown),
            None => {
                let record: Box<wardline_record::Record> = serde_json::from_slice(line).ok()?;
                self.last_seq = Some(record.seq().to_owned());
                Some(Told::Shown(Shown::Record(record, line.to_vec())))
            }
        }
    }

    /// How many records of the past to ask for.
    fn last(&self, args: &ObserveArgs) -> usize {
        if self.last_seq.is_some() {
            MISSED_AT_MOST
        } else {
            args.last
        }
    }
}

pub(crate) fn run(args: &ObserveArgs, cluster: &ClusterArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let screen = Screen {
        renderer: Renderer::new(args.format.output, args.color.is_on()),
        out,
        args,
        problems: HashMap::new(),
        had_problems: false,
        has_told_off: false,
        nodes: 0,
    };
    if let Some(socket) = local_socket(args, cluster) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("failed to start the runtime")?;
        let told = local::start(socket.to_owned(), args.clone());
        return runtime.block_on(screen.show(told));
    }
    let cluster = Cluster::connect(cluster)?;
    cluster.block_on(async {
        let told = cluster::start(cluster.client(), args.clone()).await?;
        screen.show(told).await
    })
}

/// The socket of this machine's daemon, where it is that which is meant.
fn local_socket<'a>(args: &'a ObserveArgs, cluster: &ClusterArgs) -> Option<&'a Path> {
    if let Some(socket) = &args.socket {
        return Some(socket);
    }
    let is_cluster_named = cluster.is_named() || !args.filter.nodes.is_empty();
    let default = Path::new(DEFAULT_SOCKET);
    if is_cluster_named || !default.exists() {
        return None;
    }
    eprintln!("wardline: this node only, by {DEFAULT_SOCKET}; all nodes with --kubeconfig, --context or --node");
    Some(default)
}

/// Where everything is shown.
struct Screen<'a> {
    renderer: Renderer,
    out: &'a mut dyn Write,
    args: &'a ObserveArgs,
    /// What is wrong with each node now.
    problems: HashMap<String, String>,
    had_problems: bool,
    has_told_off: bool,
    /// Nodes that answered.
    nodes: usize,
}

impl Screen<'_> {
    async fn show(mut self, mut told: mpsc::Receiver<Told>) -> anyhow::Result<Outcome> {
        if self.args.follow {
            self.renderer.header(&mut *self.out)?;
            self.follow(&mut told).await?;
        } else {
            let mut all = Vec::new();
            while let Some(told) = told.recv().await {
                all.extend(self.take(told));
            }
            // Each node has told its last ones; of all these, the last ones.
            all.sort_by_key(Shown::time);
            for shown in &all[all.len().saturating_sub(self.args.last)..] {
                self.renderer.write(&mut *self.out, shown)?;
            }
            self.out.flush()?;
            if all.is_empty() && self.nodes > 0 {
                eprintln!("wardline: no record fits");
            }
        }
        if self.nodes == 0 {
            anyhow::bail!("no node answers");
        }
        Ok(Outcome::well_if(!self.had_problems))
    }

    async fn follow(&mut self, told: &mut mpsc::Receiver<Told>) -> anyhow::Result<()> {
        let mut merge = Merge::new(Instant::now());
        loop {
            let due = merge.due().map(tokio::time::Instant::from_std);
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let told = tokio::select! {
                told = told.recv() => told,
                () = wait => {
                    self.write(merge.ready(Instant::now()))?;
                    continue;
                }
            };
            let Some(told) = told else {
                return self.write(merge.rest());
            };
            if let Some(shown) = self.take(told) {
                merge.push(shown, Instant::now());
            }
            self.write(merge.ready(Instant::now()))?;
        }
    }

    fn write(&mut self, ready: Vec<Shown>) -> anyhow::Result<()> {
        if ready.is_empty() {
            return Ok(());
        }
        for shown in &ready {
            self.renderer.write(&mut *self.out, shown)?;
        }
        self.out.flush()?;
        Ok(())
    }

    /// What there is to show of it; the rest is told beside.
    fn take(&mut self, told: Told) -> Option<Shown> {
        match told {
            Told::Shown(shown) => return Some(shown),
            Told::Hello(hello) => {
                self.nodes += 1;
                if self.problems.remove(&hello.node_name).is_some() {
                    eprintln!("wardline: {}: answers again", hello.node_name);
                }
                self.tell_off(&hello);
            }
            Told::Problem { node, why } => {
                self.had_problems = true;
                // It is tried again and again; once is enough.
                if self.problems.get(&node) != Some(&why) {
                    eprintln!("wardline: {node}: {why}");
                    self.problems.insert(node, why);
                }
            }
        }
        None
    }

    fn tell_off(&mut self, hello: &Hello) {
        let logging = hello.logging;
        let wants = |verdict| self.args.filter.verdicts.is_empty() || self.args.filter.verdicts.contains(&verdict);
        let is_any_on = (wants(Decided::Allow) && logging.allow) || (wants(Decided::Deny) && logging.deny);
        if is_any_on || self.has_told_off {
            return;
        }
        self.has_told_off = true;
        eprintln!(
            "wardline: {}: logging of this is off, so nothing new comes. Switch it on: kubectl apply -f - <<< \
             '{{apiVersion: wardline.io/v1alpha1, kind: NetworkLogging, metadata: {{name: default}}, \
             spec: {{cluster: {{allow: {{log: true}}, deny: {{log: true}}}}}}}}'",
            hello.node_name
        );
    }
}
