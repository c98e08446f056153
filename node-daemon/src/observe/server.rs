// SPDX-License-Identifier: Apache-2.0
//! The socket that observers read. They say nothing: whoever connects is told from then on what is written.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wardline_record::Timestamp;
use wardline_record::stream::{Hello, Logging, Note};

use super::{MOST, Observers, Told};
use crate::clock;
use crate::control::NodeState;
use crate::index::Logged;

/// What a greeting tells.
#[derive(Clone, Debug)]
pub struct Source {
    pub node: Arc<str>,
    /// The policy log.
    pub log: PathBuf,
    pub state: watch::Receiver<NodeState>,
}

#[derive(Clone, Debug)]
pub struct ObserveServer {
    observers: Arc<Observers>,
    source: Source,
}

impl ObserveServer {
    pub fn new(observers: Arc<Observers>, source: Source) -> Self {
        Self { observers, source }
    }

    /// Serves until cancelled.
    pub async fn serve(self, listener: UnixListener, cancel: CancellationToken) {
        // Those who are too many are told so, and need a place for that.
        let at_once = 2 * MOST;
        let ended = cancel.clone();
        crate::socket::serve(listener, "an observer", at_once, cancel, move |stream| {
            let (server, ended) = (self.clone(), ended.clone());
            async move { _ = ended.run_until_cancelled(server.converse(stream)).await }
        })
        .await;
    }

    async fn converse(self, stream: UnixStream) {
        let (mut input, mut output) = stream.into_split();
        let Some(mut observer) = self.observers.join() else {
            let refused = self.note(&Note::Refused {
                node_name: self.source.node.to_string(),
                why: format!("{MOST} observers are there already"),
            });
            _ = output.write_all(&refused).await;
            return;
        };
        loop {
            let told = tokio::select! {
                told = observer.next() => told,
                // They have nothing to say: this ends when they go.
                read = input.read_u8() => match read {
                    Ok(_) => continue,
                    Err(_) => return,
                },
            };
            let written = match told {
                None => return,
                Some(Told::Lines(lines)) => output.write_all(&lines).await,
                Some(Told::Joined(position)) => {
                    let hello = Note::Hello(Hello {
                        node_name: self.source.node.to_string(),
                        logging: self.logging(),
                        log: self.source.log.clone(),
                        position,
                    });
                    output.write_all(&self.note(&hello)).await
                }
                Some(Told::Missed(count)) => {
                    let missed = Note::Missed {
                        node_name: self.source.node.to_string(),
                        count,
                        timestamp: Timestamp(clock::wall()),
                    };
                    output.write_all(&self.note(&missed)).await
                }
            };
            if written.is_err() {
                return;
            }
        }
    }

    fn logging(&self) -> Logging {
        let logging = self.source.state.borrow().logging;
        Logging {
            allow: logging.is_some_and(|logging| logging.allow != Logged::Off),
            deny: logging.is_some_and(|logging| logging.deny != Logged::Off),
        }
    }

    fn note(&self, note: &Note) -> Vec<u8> {
        let mut line = serde_json::to_vec(note).unwrap_or_else(|error| {
            tracing::error!(%error, node = %self.source.node, "failed to tell an observer");
            Vec::new()
        });
        line.push(b'\n');
        line
    }
}
