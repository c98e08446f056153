// SPDX-License-Identifier: Apache-2.0
//! The client of the API server. Every request has an end, and none is sent before the server wants one again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::body::{Bytes, HttpBody};
use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
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
                let until = Some(Instant::now() + hold);
                let mut held_until = lock(&held_until);
                *held_until = until.max(*held_until);
            }
            Ok::<_, BoxError>(answer)
        }
    });
    Client::new(service, "default")
}

/// RFC 9110, 10.2.3; API servers give seconds, never a date. What it says of anything but being busy or away is about one
/// object, and no cause to leave all the others alone.
fn retry_after<B>(answer: &Response<B>) -> Option<Duration> {
    let is_busy = matches!(
        answer.status(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    let header = answer.headers().get(RETRY_AFTER).filter(|_| is_busy)?;
    let seconds = header.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_HOLD))
}

#[cfg(test)]
mod tests {
    use axum::body::Body as AnswerBody;
    use tokio::join;
    use tokio::time::sleep;

    use super::*;

    /// Asks for these at once, then for another; returns how many seconds all of it took. Answers to `/STATUS/HOLD/DELAY`
    /// come after DELAY seconds.
    async fn seconds(first: &str, second: &str) -> u64 {
        let client = considerate(|request: Request<Body>| async move {
            let path = request.uri().path().to_owned();
            let numbers: Vec<u64> = path.split('/').skip(1).map(|part| part.parse().unwrap()).collect();
            sleep(Duration::from_secs(numbers[2])).await;
            let answer = Response::builder().status(u16::try_from(numbers[0])?);
            Ok(answer.header(RETRY_AFTER, numbers[1]).body(AnswerBody::empty())?)
        });
        let ask = async |path: &str| {
            let request = Request::get(path).body(Vec::new()).unwrap();
            drop(client.request_text(request).await);
        };
        let began = Instant::now();
        join!(ask(first), ask(second));
        ask("/200/60/0").await;
        began.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_server_is_left_alone_for_the_longest_that_it_asked_for() {
        for (first, second, expected) in [
            ("/429/60/1", "/503/1/2", 61),
            ("/503/1/1", "/429/60/2", 62),
            ("/503/600/0", "/200/1/0", 120),
            ("/409/60/1", "/500/60/1", 1),
        ] {
            assert_eq!(seconds(first, second).await, expected, "{first} {second}");
        }
    }
}
