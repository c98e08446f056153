// SPDX-License-Identifier: Apache-2.0
//! Puts the daemon together: starts its threads and tasks, and stops them all when one ends or a signal comes.

mod parts;

use std::fs::File;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::FutureExt;
use nix::fcntl::Flock;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as watch_channel};
use wardline_crds::config::{DaemonConfig, LogFormat};
use wardline_crds::{AttachKind, ServicesMode};

use self::parts::Parts;
use crate::args::{Args, Command};
use crate::cni::{Announcer, Call, Installer, PLUGIN_SOCKET, Server};
use crate::control::{Control, Message, NodeState};
use crate::datapath::{ConntrackSweeper, Datapath, DepartureSweeper, Handles, PinPaths, SelfTestError, self_test};
use crate::deny_events::{DenyEvents, deny_events};
use crate::events::{
    FileOptions, LogFile, LogHealth, Origin, PolicyLog, Stdout, Succession, follow_events, show_account,
};
use crate::index::Index;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::observe::{ObserveServer, Observers, Source};
use crate::preflight::NodeKernel;
use crate::status::StatusWriter;
use crate::{api, cleanup, clock, interfaces, lock, observe, preflight, programs, socket, watch};

/// Messages that wait for the control thread; the watches wait when it is full.
const MESSAGES: usize = 4096;
/// How long open requests may hold the end of the daemon.
const STOPPING: Duration = Duration::from_secs(5);
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How often it is asked whether some pod is so near its share of the connection table that a sweep cannot wait.
const PRESSURE_INTERVAL: Duration = Duration::from_secs(2);
/// After the programs could not be tested.
const TEST_AGAIN: Duration = Duration::from_secs(10);
/// After the kernel refused to tidy.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until a signal comes.
///
/// # Errors
/// When the node lacks something, or a part of the daemon ends with an error.
pub async fn run(args: Args) -> Result<()> {
    match &args.command {
        Some(Command::Observe(args)) => return Ok(observe::copy(args)?),
        Some(Command::Cleanup(args)) => return cleanup::run(args).await,
        None => {}
    }
    let config = match &args.config {
        Some(path) => DaemonConfig::from_file(path)?,
        None => DaemonConfig::default(),
    };
    start_logging(&config);
    let node = preflight::check(&args.bpffs)?;
    if args.check {
        println!("kernel {node}: everything that Wardline needs is there");
        return Ok(());
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = args.node_name(),
        kernel = %node,
        "starting"
    );
    Daemon::new(args, config, node).await?.run().await
}

struct Daemon {
    /// Held until the process ends: two daemons would take the kernel from each other.
    _lock: Flock<File>,
    args: Args,
    config: DaemonConfig,
    node: NodeKernel,
    client: kube::Client,
    names: Arc<Names>,
    metrics: Arc<Metrics>,
    parts: Parts,
}

impl Daemon {
    async fn new(args: Args, config: DaemonConfig, node: NodeKernel) -> Result<Self> {
        let lock = lock::take(&args.state_dir)?;
        let names = Arc::new(Names::open(&args.state_dir)?);
        let metrics = Arc::new(Metrics::new()?);
        let client = kube::Client::try_default()
            .await
            .context("failed to find the API server")?;
        Ok(Self {
            _lock: lock,
            args,
            config,
            node,
            client,
            names,
            metrics,
            parts: Parts::new(),
        })
    }

    async fn run(mut self) -> Result<()> {
        let paths = PinPaths::new(&self.args.bpffs);
        let kind = self.node.attach;
        let (datapath, handles) = Datapath::load(&paths, &self.config, Arc::clone(&self.names), kind)?;
        let Handles {
            accounts,
            conntrack,
            departures,
            kept_limits,
            former,
            taking_over,
        } = handles;
        let translates_services = self.config.services_mode == ServicesMode::PodEdge;
        let (control, state) = Control::new(
            Index::new(self.args.node_name(), translates_services),
            datapath,
            Arc::clone(&self.names),
            Arc::clone(&self.metrics),
            kept_limits,
        );
        let (account, succession) = Succession::new(former, accounts, taking_over);
        let mut log = self.open_log(account)?;
        log.hand_to(self.start_observing(state.clone())?);
        log.tell_denies_to(self.start_deny_events(state.clone()));
        let (messages, inbox) = mpsc::channel(MESSAGES);
        let cancel = self.parts.cancel.clone();

        let metrics = Arc::clone(&self.metrics);
        self.parts.thread("policy log", {
            let cancel = cancel.clone();
            let told = messages.clone();
            // Not waited for: whoever is told may wait for something else, and is told again.
            let tell = move |health: &LogHealth| told.try_send(Message::PolicyLog(health.clone())).is_ok();
            let state = state.clone();
            let knows_names = move || state.borrow().last_applied.is_some();
            move || follow_events(log, succession, &metrics, &cancel, knows_names, tell)
        });
        self.start_control(control, inbox);
        self.start_self_test(messages.clone());
        let told = messages.clone();
        self.start_follower("interfaces", move || {
            interfaces::follow(|| told.blocking_send(Message::InterfacesChanged).is_ok())
        });
        // Of a link that somebody detaches, nobody is told.
        if kind == AttachKind::Clsact {
            let told = messages.clone();
            self.start_follower("programs", move || {
                programs::follow(|ifindex| told.blocking_send(Message::ProgramsChanged(ifindex)).is_ok())
            });
        }
        self.start_sweeper(conntrack);
        self.start_departures(departures);
        watch::start(&self.client, &messages, &cancel, |kind, work| {
            self.parts.task(format!("watch of {kind}"), work.map(Ok));
        });
        self.start_plugin(&messages, state.clone())?;
        drop(messages);
        let writer = StatusWriter::new(
            self.client.clone(),
            self.args.node_name(),
            &self.args.revision,
            self.node.clone(),
        );
        self.parts
            .task("status writer", writer.run(state.clone(), cancel.clone()).map(Ok));
        self.parts.task(
            "metrics",
            api::serve_metrics(self.config.metrics_address, Arc::clone(&self.metrics), cancel.clone()),
        );
        self.parts.task(
            "health",
            api::serve_health(self.config.health_address, Arc::clone(&self.metrics), state, cancel),
        );
        self.wait().await
    }

    fn open_log(&self, accounts: crate::datapath::Accounts) -> Result<PolicyLog> {
        let logging = &self.config.logging;
        let options = FileOptions::from(&logging.file);
        let origin = Origin::new(self.args.node_name(), &logging.cluster_name);
        // What finds no room as a record of its own is aggregated over the shortest time that can be set.
        let aggregation = Duration::from_secs(logging.deny_aggregation_seconds.max(1).into());
        let file = LogFile::new(options);
        let mut log = PolicyLog::open(accounts, file, Arc::clone(&self.names), origin, aggregation)?;
        // Whoever scrapes first must not take counters that go on for such that begin anew.
        show_account(&log, &self.metrics)?;
        log.measure_with(self.metrics.meters(self.config.metrics.policies));
        if logging.stdout {
            log.copy_to(Stdout::start().context("failed to open standard output")?);
        }
        Ok(log)
    }

    fn start_control(&self, control: Control, inbox: mpsc::Receiver<Message>) {
        let (runtime, cancel) = (Handle::current(), self.parts.cancel.clone());
        self.parts.thread("control", move || {
            control
                .run(&runtime, inbox, &cancel)
                .context("failed to read the node's interfaces")
        });
    }

    /// Off the way of whoever waits for policies: loading programs once more takes a moment.
    fn start_self_test(&self, messages: mpsc::Sender<Message>) {
        let cancel = self.parts.cancel.clone();
        self.parts.task("self-test", async move {
            loop {
                let result = tokio::task::spawn_blocking(self_test).await?;
                match &result {
                    Ok(packets) => tracing::info!(packets, "the programs judge as they should"),
                    Err(error) => tracing::error!(%error, "the programs do not judge as they should"),
                }
                // The kernel may be short of something for a while; a wrong verdict stays wrong.
                let may_pass = !matches!(result, Ok(_) | Err(SelfTestError::Verdict { .. }));
                // Whoever is told may have ended.
                let told = Message::SelfTest(result.map_err(|error| error.to_string()));
                let _ = messages.send(told).await;
                let pause = tokio::time::sleep(TEST_AGAIN);
                if !may_pass || cancel.run_until_cancelled(pause).await.is_none() {
                    break;
                }
            }
            drop(messages);
            cancel.cancelled().await;
            Ok(())
        });
    }

    /// A plain thread: it waits for the kernel, where no cancellation reaches it, and ends with the process.
    fn start_follower(&self, what: &'static str, follow: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let (failed, cancel) = (self.parts.failed.clone(), self.parts.cancel.clone());
        std::thread::spawn(move || {
            let followed = panic::catch_unwind(AssertUnwindSafe(follow));
            if let Err(error) = followed.unwrap_or_else(|_| Err(io::Error::other("the thread panicked"))) {
                let error = anyhow::Error::from(error).context(format!("failed to follow the node's {what}"));
                let _ = failed.try_send(error);
                cancel.cancel();
            }
        });
    }

    fn start_deny_events(&self, state: watch_channel::Receiver<NodeState>) -> DenyEvents {
        let (events, writer) = deny_events(&self.metrics, self.client.clone(), self.args.node_name());
        let work = writer.run(state, self.parts.cancel.clone());
        self.parts.task("Event writer", work.map(Ok));
        events
    }

    /// Serves those who watch the log.
    fn start_observing(&self, state: watch_channel::Receiver<NodeState>) -> Result<Arc<Observers>> {
        let listener = socket::listen(&self.args.state_dir.join("observe.sock"))?;
        let observers = Arc::<Observers>::default();
        let source = Source {
            node: self.args.node_name().into(),
            log: self.config.logging.file.path.clone(),
            state,
        };
        let server = ObserveServer::new(Arc::clone(&observers), source);
        let cancel = self.parts.cancel.clone();
        self.parts
            .task("observe server", server.serve(listener, cancel).map(Ok));
        Ok(observers)
    }

    /// Serves the CNI plugin, and installs it once it would be served well.
    fn start_plugin(&self, messages: &mpsc::Sender<Message>, state: watch_channel::Receiver<NodeState>) -> Result<()> {
        let (path, cancel) = (self.args.state_dir.join(PLUGIN_SOCKET), self.parts.cancel.clone());
        let listener = socket::listen(&path)?;
        let server = Server {
            messages: messages.clone(),
            state: state.clone(),
            announcer: Announcer::new(self.client.clone()),
            metrics: Arc::clone(&self.metrics),
        };
        self.parts.task("CNI server", {
            let cancel = cancel.clone();
            async move {
                server.serve(listener, cancel).await;
                Ok(())
            }
        });
        let installer =
            Installer::new(&self.config, &path, Path::new("/")).context("failed to find this program's file")?;
        let (messages, mut state) = (messages.clone(), state);
        self.parts.task("CNI installer", async move {
            let in_force = cancel.run_until_cancelled(state.wait_for(|state| state.last_applied.is_some()));
            if !matches!(in_force.await, Some(Ok(_))) {
                return Ok(());
            }
            let told = move |problem| _ = messages.blocking_send(Message::Cni(Call::Installed(problem)));
            tokio::task::spawn_blocking(move || installer.keep(&cancel, told)).await?;
            Ok(())
        });
        Ok(())
    }

    fn start_sweeper(&self, conntrack: ConntrackSweeper) {
        let (metrics, cancel) = (Arc::clone(&self.metrics), self.parts.cancel.clone());
        self.parts.task("conntrack sweeper", async move {
            let conntrack = Arc::new(conntrack);
            let mut swept = Instant::now();
            while cancel
                .run_until_cancelled(tokio::time::sleep(PRESSURE_INTERVAL))
                .await
                .is_some()
            {
                if swept.elapsed() < SWEEP_INTERVAL && !conntrack.is_pressed() {
                    continue;
                }
                swept = Instant::now();
                let conntrack = Arc::clone(&conntrack);
                let now = clock::monotonic();
                match tokio::task::spawn_blocking(move || conntrack.sweep(now)).await? {
                    Ok(swept) => metrics.set_connections(swept.entries - swept.deleted),
                    Err(error) => tracing::warn!(%error, "failed to sweep the connection table; trying again"),
                }
            }
            Ok(())
        });
    }

    fn start_departures(&self, departures: DepartureSweeper) {
        let cancel = self.parts.cancel.clone();
        self.parts.task("departures", async move {
            let departures = Arc::new(departures);
            while cancel.run_until_cancelled(departures.needed()).await.is_some() {
                let sweeper = Arc::clone(&departures);
                if let Err(error) = tokio::task::spawn_blocking(move || sweeper.sweep()).await? {
                    tracing::warn!(%error, "failed to tidy after backends that left; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
            Ok(())
        });
    }

    async fn wait(&mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
        let failure = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            failure = self.parts.failures.recv() => failure,
        };
        let began = Instant::now();
        tracing::info!("stopping; what is in force stays in the kernel");
        self.parts.cancel.cancel();
        self.parts.tasks.close();
        if tokio::time::timeout(STOPPING, self.parts.tasks.wait()).await.is_err() {
            tracing::warn!("a request or a task does not end; leaving it");
        }
        tracing::info!(seconds = began.elapsed().as_secs_f64(), "stopped");
        failure.map_or(Ok(()), Err)
    }
}

fn start_logging(config: &DaemonConfig) {
    let level = format!("{:?}", config.log_level).to_lowercase();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("wardline={level},warn")));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
}
