// SPDX-License-Identifier: Apache-2.0
//! From the command line to running controllers and back. One token stops everything; a task that ends ends the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use wardline_crds::{Dataplane, NetworkLogging};

use crate::args::{Args, LogFormatArg};
use crate::caches::{Caches, invalid};
use crate::context::Context;
use crate::controller::Guarded;
use crate::http::{self, Render};
use crate::lease::Election;
use crate::metrics::Metrics;
use crate::{MANAGER, dataplane, network_logging};

/// Until this long after the signal, tasks may finish what they do. Kubernetes kills after thirty seconds.
const GRACE: Duration = Duration::from_secs(10);

/// Runs the operator until a signal, or until something that it cannot do without fails.
pub fn run(args: &Args) -> Result<()> {
    let filter = EnvFilter::try_new(&args.log_level).context("failed to parse --log-level")?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormatArg::Json => subscriber.json().flatten_event(true).init(),
        LogFormatArg::Text => subscriber.init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.context("failed to start the runtime")?.block_on(operate(args))
}

async fn operate(args: &Args) -> Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let config = Config::infer().await.context("failed to find the API server")?;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).with_context(|| format!("failed to set up a client of {server}"))?;
    let metrics = Metrics::new().context("failed to register metrics")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        server,
        namespace = args.namespace,
        "starting"
    );

    let mut tasks = JoinSet::new();
    let ready = Arc::new(AtomicBool::new(false));
    let health = http::bind(args.health_address).await?;
    tasks.spawn(http::serve_health(health, Arc::clone(&ready), stop.clone()));

    let result = tokio::select! {
        result = lead(args, client, &metrics, &ready, &stop, &mut tasks) => result,
        () = stop.cancelled() => Ok(()),
    };
    stop.cancel();
    let finished = tokio::time::timeout(GRACE, finish(&mut tasks)).await;
    result.and(finished.unwrap_or_else(|_| Err(anyhow!("failed to stop within {}s", GRACE.as_secs()))))
}

/// Waits for the lease, then works until `stop` or until the lease is lost.
async fn lead(
    args: &Args,
    client: Client,
    metrics: &Metrics,
    ready: &AtomicBool,
    stop: &CancellationToken,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let mut election = Election::new(client.clone(), &args.namespace, MANAGER, &args.pod_name);
    if args.leader_elect {
        // A replica that stands by is as ready as it should be.
        ready.store(true, Ordering::Relaxed);
        election.acquire().await;
    }
    tracing::info!("leading");
    metrics.leader.set(1);
    let result = tokio::select! {
        result = work(args, client, metrics, ready, stop, tasks) => result,
        lost = election.hold(), if args.leader_elect => return Err(lost.into()),
    };
    stop.cancel();
    if args.leader_elect && result.is_ok() {
        election.release().await?;
    }
    result
}

async fn work(
    args: &Args,
    client: Client,
    metrics: &Metrics,
    ready: &AtomicBool,
    stop: &CancellationToken,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let caches = Caches::start(&client, &args.namespace, metrics, stop, tasks);
    let context = Arc::new(Context::new(client, args.clone(), caches, metrics.clone()));
    let dataplanes = Guarded::<Dataplane>::new(&context);
    let loggings = Guarded::<NetworkLogging>::new(&context);

    let (for_metrics, dataplane_store, logging_store) = (Arc::clone(&context), dataplanes.store(), loggings.store());
    let render: Render = Arc::new(move || {
        let metrics = &for_metrics.metrics;
        metrics.set_invalid("Dataplane", invalid(&dataplane_store));
        metrics.set_invalid("NetworkLogging", invalid(&logging_store));
        metrics.set_invalid("DataplaneNode", invalid(&for_metrics.caches.nodes));
        metrics.set_invalid("DaemonSet", invalid(&for_metrics.caches.daemon_sets));
        metrics.set_invalid("Pod", invalid(&for_metrics.caches.pods));
        metrics.render()
    });
    let listener = http::bind(args.metrics_address).await?;
    tasks.spawn(http::serve_metrics(listener, render, stop.clone()));

    tokio::select! {
        filled = context.caches.wait_until_ready() => filled?,
        () = stop.cancelled() => return Ok(()),
        ended = tasks.join_next() => return first_end(ended),
    }
    ready.store(true, Ordering::Relaxed);

    let mut controllers = JoinSet::new();
    controllers.spawn(dataplanes.run(Arc::clone(&context), stop.clone(), dataplane::reconcile));
    controllers.spawn(loggings.run(Arc::clone(&context), stop.clone(), network_logging::reconcile));
    let result = tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = tasks.join_next() => first_end(ended),
        _ = controllers.join_next() => Err(anyhow!("failed to go on: a controller ended")),
    };
    stop.cancel();
    // Reconciliations that have begun are finished while the lease is still ours.
    tokio::time::timeout(GRACE, controllers.join_all())
        .await
        .context("failed to finish reconciliations")?;
    result
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
