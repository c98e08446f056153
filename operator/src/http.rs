// SPDX-License-Identifier: Apache-2.0
//! /metrics on one address, /healthz and /readyz on another: metrics are for the network, health for the kubelet of the
//! node only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on {address}"))
}

/// Serves /metrics until `stop`.
pub(crate) async fn serve_metrics(listener: TcpListener, metrics: Metrics, stop: CancellationToken) -> Result<()> {
    let answer = move || {
        let metrics = metrics.clone();
        async move {
            match metrics.render() {
                Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            }
        }
    };
    serve(listener, Router::new().route("/metrics", get(answer)), stop).await
}

/// Serves /healthz, which answers while the process does, and /readyz, which follows `ready`, until `stop`.
pub(crate) async fn serve_health(listener: TcpListener, ready: Arc<AtomicBool>, stop: CancellationToken) -> Result<()> {
    let readyz = move || {
        let ready = ready.load(Ordering::Relaxed);
        async move {
            if ready {
                (StatusCode::OK, "ok")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "starting")
            }
        }
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz));
    serve(listener, router, stop).await
}

async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> Result<()> {
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context("failed to serve HTTP")
}
