// SPDX-License-Identifier: Apache-2.0
//! What the daemon answers over HTTP: `/metrics`, `/healthz`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::control::NodeState;
use crate::metrics::Metrics;

pub async fn serve_metrics(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new().route("/metrics", get(async move || scrape(&metrics)));
    serve("metrics", address, router, cancel).await
}

pub async fn serve_health(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    state: watch::Receiver<NodeState>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route(
            "/healthz",
            get(async move || answer(metrics.is_alive(), "the control thread hangs")),
        )
        .route(
            "/readyz",
            get(async move || answer(state.borrow().synced, "policies are not in force yet")),
        );
    serve("health", address, router, cancel).await
}

async fn serve(what: &str, address: SocketAddr, router: Router, cancel: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to serve {what} on {address}"))?;
    axum::serve(listener, router)
        .with_graceful_shutdown(cancel.cancelled_owned())
        .await
        .with_context(|| format!("failed to serve {what} on {address}"))
}

fn scrape(metrics: &Metrics) -> Response {
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn answer(ok: bool, why_not: &'static str) -> Response {
    if ok {
        "ok".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, why_not).into_response()
    }
}
