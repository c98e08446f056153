// SPDX-License-Identifier: Apache-2.0
//! The client of the API server. Every request has an end, and none is sent before the server wants one again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::body::{Bytes, HttpBody};
use http::header::RETRY_AFTER;
use http::{Request, Response};
use kube::client::Body;
use kube::{Client, Config};
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout};
use tower::BoxError;

use crate::context::lock;

/// A server that has not begun to answer by then is taken not to answer at all.
const ANSWER: Duration = Duration::from_secs(30);
/// An answer that has begun and then says nothing is taken for ended. Watches have a bookmark a minute.
const SILENCE: Duration = Duration::from_mins(3);
/// However long a server asks to be left alone.
const LONGEST_HOLD: Duration = Duration::from_mins(2);

#[derive(Debug, Error)]
#[error("no answer within {} s", ANSWER.as_secs())]
struct Unanswered;

/// Who has a client of its own does not wait for what others are asked to wait for.
pub(crate) fn connect(mut config: Config) -> Result<Client> {
    let server = config.cluster_url.to_string();
    // Each attempt is to be seen, in messages and metrics, and those who make it know best when to make the next.
    config.default_retry = false;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let client = Client::try_from(config).with_context(|| format!("failed to set up a client of {server}"))?;
    Ok(considerate(move |request| {
        let client = client.clone();
        async move { client.send(request).await.map_err(BoxError::from) }
    }))
}

/// A client whose requests end, and that heeds `Retry-After`: until then, all of its requests wait.
pub(crate) fn considerate<S, F, B>(send: S) -> Client
where
    S: Fn(Request<Body>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, BoxError>> + Send + 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let held_until = Arc::new(Mutex::new(None::<Instant>));
    let service = tower::service_fn(move |request| {
        let (send, held_until) = (send.clone(), Arc::clone(&held_until));
        async move {
            let until = *lock(&held_until);
            if let Some(until) = until {
                sleep_until(until).await;
            }
            let answer = timeout(ANSWER, send(request)).await.map_err(|_| Unanswered)??;
            if let Some(hold) = retry_after(&answer) {
                tracing::warn!(
                    status = answer.status().as_u16(),
                    ?hold,
                    "the API server asks to be left alone"
                );
                *lock(&held_until) = Some(Instant::now() + hold);
            }
            Ok::<_, BoxError>(answer)
        }
    });
    Client::new(service, "default")
}

/// RFC 9110, 10.2.3; API servers give seconds, never a date.
fn retry_after<B>(answer: &Response<B>) -> Option<Duration> {
    let is_refusal = answer.status().is_client_error() || answer.status().is_server_error();
    let header = answer.headers().get(RETRY_AFTER).filter(|_| is_refusal)?;
    let seconds = header.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_HOLD))
}
