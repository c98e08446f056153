// SPDX-License-Identifier: Apache-2.0
//! All nodes of a cluster: `wardline-node observe` in each daemon's container, by way of the API server.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess, ListParams};
use kube::{Client, ResourceExt as _};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wardline_crds::DataplaneNode;

use super::{ObserveArgs, Session, Told, WAITING};
use crate::daemons::{CONTAINER, DAEMONS, PROGRAM};

/// How long a node may take to say that it is there.
const ANSWER: Duration = Duration::from_secs(20);
/// How often it is looked for nodes that have come, and those that went are tried again.
const RETRY: Duration = Duration::from_secs(3);
/// Bytes of output that wait, and of a complaint that are read.
const BUFFER: usize = 64 << 10;
const COMPLAINT: u64 = 2 << 10;

/// Who can be asked, and why others cannot.
#[derive(Debug, Default)]
struct Nodes {
    /// Pods by their nodes.
    daemons: BTreeMap<String, String>,
    problems: BTreeMap<String, String>,
}

/// Asks all nodes.
///
/// # Errors
/// When the daemons' pods cannot be listed.
pub(super) async fn start(client: Client, args: ObserveArgs) -> anyhow::Result<mpsc::Receiver<Told>> {
    let pods = Api::namespaced(client.clone(), &args.system.wardline_namespace);
    let nodes = find(&client, &pods, &args).await.with_context(|| {
        format!(
            "failed to list the daemons in namespace {}",
            args.system.wardline_namespace
        )
    })?;
    if nodes.daemons.is_empty() && nodes.problems.is_empty() {
        anyhow::bail!("no daemon runs in namespace {}", args.system.wardline_namespace);
    }
    let (sender, told) = mpsc::channel(WAITING);
    tokio::spawn(keep(client, pods, args, nodes, sender));
    Ok(told)
}

/// Asks those that are there; where what comes is followed, those that come later too, and again those that went.
async fn keep(client: Client, pods: Api<Pod>, args: ObserveArgs, mut nodes: Nodes, told: mpsc::Sender<Told>) {
    let mut asked = JoinSet::new();
    let mut active = BTreeSet::new();
    let mut sessions = HashMap::<String, Session>::new();
    loop {
        for (node, why) in std::mem::take(&mut nodes.problems) {
            if told.send(Told::Problem { node, why }).await.is_err() {
                return;
            }
        }
        for (node, pod) in std::mem::take(&mut nodes.daemons) {
            if active.insert(node.clone()) {
                let session = sessions.remove(&node).unwrap_or_default();
                asked.spawn(ask(pods.clone(), node, pod, args.clone(), session, told.clone()));
            }
        }
        if !args.follow {
            while asked.join_next().await.is_some() {}
            return;
        }
        let again = tokio::time::Instant::now() + RETRY;
        while let Ok(done) = tokio::time::timeout_at(again, asked.join_next()).await {
            match done {
                Some(Ok((node, session))) => {
                    active.remove(&node);
                    sessions.insert(node, session);
                }
                Some(Err(_)) => {}
                None => break,
            }
        }
        tokio::time::sleep_until(again).await;
        if told.is_closed() {
            return;
        }
        match find(&client, &pods, &args).await {
            Ok(found) => nodes = found,
            Err(error) => {
                let node = "the API server".to_owned();
                let why = format!("failed to list the daemons: {error}");
                nodes.problems.insert(node, why);
            }
        }
    }
}

async fn find(client: &Client, pods: &Api<Pod>, args: &ObserveArgs) -> kube::Result<Nodes> {
    let listed = pods.list(&ListParams::default().labels(DAEMONS)).await?;
    // Those that should run a daemon. Who may not list them is told of those that do.
    let known = Api::<DataplaneNode>::all(client.clone())
        .list(&ListParams::default())
        .await;
    let mut names: BTreeSet<String> = args.filter.nodes.iter().cloned().collect();
    if names.is_empty() {
        names = known.into_iter().flatten().map(|node| node.name_any()).collect();
    }
    let mut nodes = Nodes::default();
    for pod in listed {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
            continue;
        };
        let is_wanted = args.filter.nodes.is_empty() || args.filter.nodes.contains(&node);
        if !is_wanted || pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
        match phase.as_deref() {
            Some("Running") => _ = nodes.daemons.insert(node, pod.name_any()),
            phase => {
                let why = format!("its daemon's Pod {} is {}", pod.name_any(), phase.unwrap_or("unknown"));
                nodes.problems.insert(node, why);
            }
        }
    }
    nodes.problems.retain(|node, _| !nodes.daemons.contains_key(node));
    for name in names {
        if !nodes.daemons.contains_key(&name) {
            let why = || "no daemon runs there".to_owned();
            nodes.problems.entry(name).or_insert_with(why);
        }
    }
    Ok(nodes)
}

/// Asks one node until it says no more.
async fn ask(
    pods: Api<Pod>,
    node: String,
    pod: String,
    args: ObserveArgs,
    mut session: Session,
    told: mpsc::Sender<Told>,
) -> (String, Session) {
    let why = match read(&pods, &pod, &args, &mut session, &told).await {
        Ok(()) if args.follow => "its daemon ended".to_owned(),
        Ok(()) => return (node, session),
        Err(error) => format!("{error:#}"),
    };
    // Nobody may listen any more.
    let _ = told
        .send(Told::Problem {
            node: node.clone(),
            why,
        })
        .await;
    (node, session)
}

fn command(args: &ObserveArgs, session: &Session) -> Vec<String> {
    let mut command = vec![PROGRAM.to_owned(), "observe".into(), "--while-stdin".into()];
    command.push(format!("--last={}", session.last(args)));
    command.extend(session.last_seq.as_ref().map(|seq| format!("--after={seq}")));
    command.extend(args.follow.then(|| "--follow".to_owned()));
    command.extend(args.filter.to_args());
    command
}

async fn read(
    pods: &Api<Pod>,
    pod: &str,
    args: &ObserveArgs,
    session: &mut Session,
    told: &mpsc::Sender<Told>,
) -> anyhow::Result<()> {
    let streams = AttachParams::default()
        .container(CONTAINER)
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .max_stdout_buf_size(BUFFER);
    let started = tokio::time::timeout(ANSWER, pods.exec(pod, command(args, session), &streams)).await;
    let mut process = started
        .map_err(|_| anyhow::anyhow!("it does not answer"))?
        .with_context(|| format!("failed to run {PROGRAM} in Pod {pod}"))?;
    // Its end is what ends the process there.
    let input = process.stdin();
    let (Some(output), Some(complaints)) = (process.stdout(), process.stderr()) else {
        anyhow::bail!("failed to read of Pod {pod}: it has no output");
    };
    let mut complaint = String::new();
    let complaining = async {
        let read = complaints.take(COMPLAINT).read_to_string(&mut complaint).await;
        // A process that has more to complain about must not wait for us.
        read
    };
    let mut lines = BufReader::new(output);
    let reading = async {
        let (mut line, mut has_answered) = (Vec::new(), false);
        loop {
            line.clear();
            let read = lines.read_until(b'\n', &mut line);
            let read = if has_answered {
                read.await
            } else {
                let answer = tokio::time::timeout(ANSWER, read).await;
                answer.map_err(|_| anyhow::anyhow!("its daemon does not answer"))?
            };
            if read.context("failed to read what it writes")? == 0 {
                return anyhow::Ok(());
            }
            has_answered = true;
            if let Some(said) = session.read(&line)
                && told.send(said).await.is_err()
            {
                return Ok(());
            }
        }
    };
    let (read, _) = tokio::join!(reading, complaining);
    drop(input);
    read?;
    ended(process, complaint.trim()).await
}

/// How the process ended.
async fn ended(mut process: AttachedProcess, complaint: &str) -> anyhow::Result<()> {
    let status = match process.take_status() {
        Some(status) => status.await,
        None => None,
    };
    let is_well = status.as_ref().and_then(|status| status.status.as_deref()) == Some("Success");
    if is_well {
        return Ok(());
    }
    if complaint.is_empty() {
        let message = status
            .and_then(|status| status.message)
            .unwrap_or_else(|| "the connection was cut".to_owned());
        anyhow::bail!("{message}");
    }
    anyhow::bail!("{}", complaint.strip_prefix("wardline-node: ").unwrap_or(complaint));
}
