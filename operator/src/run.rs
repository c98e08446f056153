// SPDX-License-Identifier: Apache-2.0
//! From the command line to running controllers and back. One token stops everything; a task that ends ends the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use wardline_crds::{Dataplane, NetworkLogging};

use crate::args::{Args, Command, LogFormatArg};
use crate::caches::{Caches, invalid};
use crate::context::Context;
use crate::controller::Guarded;
use crate::http;
use crate::lease::Election;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::probe::probe;
use crate::remove::remove;
use crate::{MANAGER, client, crds, dataplane, invalid_objects, network_logging};

/// After the signal: first reconciliations that have begun are finished, then watches end, then the lease is given back, then
/// the servers end. Together that is less than the thirty seconds (terminationGracePeriodSeconds) after which Kubernetes kills.
const FINISH: Duration = Duration::from_secs(10);
const END_WATCHES: Duration = Duration::from_secs(5);
const RELEASE: Duration = Duration::from_secs(5);
const END_SERVERS: Duration = Duration::from_secs(5);

/// Runs the operator until a signal, or until something that it cannot do without fails; or does what the command line
/// asks for instead.
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    match &args.command {
        Some(Command::Remove(args)) => return runtime.block_on(remove(args)),
        Some(Command::Crds) => return runtime.block_on(crds::write()),
        Some(Command::Probe { command }) => return runtime.block_on(probe(command)),
        None => {}
    }
    let filter = EnvFilter::try_new(&args.log_level).context("failed to parse --log-level")?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormatArg::Json => subscriber.json().flatten_event(true).init(),
        LogFormatArg::Text => subscriber.init(),
    }
    runtime.block_on(operate(args))
}

async fn operate(args: &Args) -> Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let config = Config::infer().await.context("failed to find the API server")?;
    let server = config.cluster_url.to_string();
    let (client, lease_client) = (client::connect(config.clone())?, client::connect(config)?);
    let metrics = Metrics::new().context("failed to register metrics")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        server,
        namespace = args.namespace,
        "starting"
    );

    // The servers answer until the work has ended.
    let served = CancellationToken::new();
    let mut servers = JoinSet::new();
    let ready = Arc::new(AtomicBool::new(false));
    let health = http::bind(args.health_address).await?;
    servers.spawn(http::serve_health(health, Arc::clone(&ready), served.clone()));
    let listener = http::bind(args.metrics_address).await?;
    servers.spawn(http::serve_metrics(listener, metrics.clone(), served.clone()));

    let operator = Operator {
        args,
        client,
        lease_client,
        metrics,
        ready,
    };
    let result = tokio::select! {
        result = operator.lead(&stop) => result,
        ended = servers.join_next() => first_end(ended),
    };
    served.cancel();
    let finished = tokio::time::timeout(END_SERVERS, finish(&mut servers)).await;
    let unfinished = || anyhow!("failed to end servers within {} s", END_SERVERS.as_secs());
    tracing::info!("stopped");
    result.and(finished.unwrap_or_else(|_| Err(unfinished())))
}

struct Operator<'a> {
    args: &'a Args,
    client: Client,
    /// Of its own, so that renewals wait for nothing else.
    lease_client: Client,
    metrics: Metrics,
    ready: Arc<AtomicBool>,
}

impl Operator<'_> {
    /// Works whenever this replica holds the lease, until `stop`. Losing the lease is no reason to end: the API server may
    /// be away for long, and who restarts a process that ends waits longer each time.
    async fn lead(&self, stop: &CancellationToken) -> Result<()> {
        if !self.args.leader_elect {
            return self.work(stop.child_token()).await;
        }
        let mut election = Election::new(
            self.lease_client.clone(),
            &self.args.namespace,
            MANAGER,
            &self.args.pod_name,
        );
        loop {
            // A replica that stands by is as ready as it should be.
            self.ready.store(true, Ordering::Relaxed);
            tokio::select! {
                () = election.acquire() => {}
                () = stop.cancelled() => return Ok(()),
            }
            self.ready.store(false, Ordering::Relaxed);
            tokio::select! {
                result = self.work(stop.child_token()) => {
                    match tokio::time::timeout(RELEASE, election.release()).await {
                        Ok(Ok(())) => tracing::info!("gave the lease back"),
                        Ok(Err(error)) => tracing::warn!(%error, "failed to give the lease back"),
                        Err(_) => tracing::warn!("failed to give the lease back: no answer"),
                    }
                    return result;
                }
                // Whatever is under way is dropped, not finished: another replica may start soon.
                lost = election.hold() => {
                    tracing::error!(error = %lost, "stopping work until the lease is ours again");
                    self.stand_down();
                }
            }
        }
    }

    fn stand_down(&self) {
        self.metrics.count_with(None);
        self.metrics.leader.set(0);
    }

    /// Runs caches and controllers until `term` ends.
    async fn work(&self, term: CancellationToken) -> Result<()> {
        tracing::info!("leading");
        self.metrics.leader.set(1);
        let mut tasks = JoinSet::new();
        let caches = Caches::start(&self.client, &self.args.namespace, &self.metrics, &term, &mut tasks);
        let context = Arc::new(Context::new(
            self.client.clone(),
            self.args.clone(),
            caches,
            self.metrics.clone(),
        ));
        let result = self.control(&context, &term, &mut tasks).await;
        term.cancel();
        self.stand_down();
        let finished = tokio::time::timeout(END_WATCHES, finish(&mut tasks)).await;
        result.and(finished.context("failed to end watches")?)
    }

    async fn control(
        &self,
        context: &Arc<Context>,
        term: &CancellationToken,
        tasks: &mut JoinSet<Result<()>>,
    ) -> Result<()> {
        let dataplanes = Guarded::<Dataplane>::new(context);
        let loggings = Guarded::<NetworkLogging>::new(context);
        count_invalid(&self.metrics, Arc::clone(context), dataplanes.store(), loggings.store());
        // Told to end, the watches end too: biased, so that this is not taken for a fault.
        tokio::select! {
            biased;
            () = term.cancelled() => return Ok(()),
            filled = context.caches.wait_until_ready() => filled?,
            ended = tasks.join_next() => return first_end(ended),
        }
        self.ready.store(true, Ordering::Relaxed);

        let mut controllers = JoinSet::new();
        controllers.spawn(dataplanes.run(Arc::clone(context), term.clone(), dataplane::reconcile));
        controllers.spawn(loggings.run(Arc::clone(context), term.clone(), network_logging::reconcile));
        controllers.spawn(invalid_objects::follow(Arc::clone(context), term.clone()));
        let result = tokio::select! {
            biased;
            () = term.cancelled() => Ok(()),
            ended = tasks.join_next() => first_end(ended),
            _ = controllers.join_next() => Err(anyhow!("failed to go on: a controller ended")),
        };
        term.cancel();
        // What has begun is finished; where the API server does not answer, what has not finished is dropped.
        if tokio::time::timeout(FINISH, async { while controllers.join_next().await.is_some() {} })
            .await
            .is_err()
        {
            tracing::warn!("dropped reconciliations that did not finish");
        }
        result
    }
}

fn count_invalid(
    metrics: &Metrics,
    context: Arc<Context>,
    dataplanes: Store<DeserializeGuard<Dataplane>>,
    loggings: Store<DeserializeGuard<NetworkLogging>>,
) {
    metrics.count_with(Some(Box::new(move |metrics| {
        let caches = &context.caches;
        metrics.set_invalid(
            "Dataplane",
            invalid(&dataplanes, |object| dataplane::check(object).is_err()),
        );
        metrics.set_invalid(
            "NetworkLogging",
            invalid(&loggings, |object| network_logging::check(object).is_err()),
        );
        metrics.set_invalid("DataplaneNode", invalid(&caches.nodes, |_| false));
        metrics.set_invalid("DaemonSet", invalid(&caches.daemon_sets, |_| false));
        for (kind, named) in invalid_objects::count(&Nodes::gather(caches)) {
            // The nodes watch all pods, so they name the daemon's own too; but they name 16 objects at most.
            let own = if kind == "Pod" {
                invalid(&caches.pods, |_| false)
            } else {
                0
            };
            metrics.set_invalid(kind, named.max(own));
        }
    })));
}

/// No task ends before it is told to.
fn first_end(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> Result<()> {
    match ended {
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(anyhow!(error).context("failed to go on: a task broke off")),
        Some(Ok(Ok(()))) | None => Err(anyhow!("failed to go on: a task ended")),
    }
}

async fn finish(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended.context("failed to stop: a task broke off")??;
    }
    Ok(())
}

fn stop_on_signals(stop: &CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    });
    Ok(())
}

#[cfg(test)]
mod tests;
